"""Reads the headers of a tar file, one after the other."""

import tarfile


def next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member; None at the end. Unlike `TarFile.next`, it keeps nothing of the members before.

    Raises:
        tarfile.ReadError: the member before is cut off.
        tarfile.HeaderError: the header makes no sense. Tar's extensions can write sizes below 0, after which the
            same members would come again and again, and files with holes, whose bytes are not those of an image.
    """
    try:
        member = tar.next()
    except ValueError as error:
        raise tarfile.HeaderError(f"a header that cannot be read ({error})") from error
    tar.members = []  # type: ignore[attr-defined]
    if member is not None and (member.size < 0 or member.issparse()):
        raise tarfile.HeaderError(f"the header of {member.name} makes no sense")
    return member
