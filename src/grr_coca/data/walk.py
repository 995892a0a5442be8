"""Walk through folders of images and pairs. Some files and folders are excluded, and no folder is entered twice."""

import errno
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from posixpath import basename
from typing import TYPE_CHECKING, NamedTuple

from grr_coca.common.errors import UserError, escape_control_chars

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IMAGE_SUFFIXES = frozenset(
    {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "jp2", "svg", "avif", "heic", "heif", "hif"}
)
_TRASH = frozenset({"$recycle.bin", "recycler", "#recycle", "@recycle", "@eadir", "#snapshot", "lost+found"})
"""Names, in lower case, of folders with deleted files, previews and old versions that systems and network drives
create. Other folders of this kind, such as `.Trash-1000`, are hidden."""

_MAX_EXAMPLES = 3


def is_image_name(name: str) -> bool:
    """Return whether a name is that of an image: it is not hidden, and has a suffix in `IMAGE_SUFFIXES`."""
    return has_image_suffix(name) and not is_hidden(name)


def has_image_suffix(name: str) -> bool:
    """Return whether a name ends with one of the `IMAGE_SUFFIXES`, even if the name is hidden."""
    _, dot, suffix = name.rpartition(".")
    return bool(dot) and suffix.lower() in IMAGE_SUFFIXES


def is_raster_name(name: str) -> bool:
    """Return whether a name has the suffix of a pixel image, as opposed to a drawing."""
    return has_image_suffix(name) and not name.lower().endswith(".svg")


def is_hidden(name: str) -> bool:
    """Return whether a name is hidden, such as the `._NAME.jpg` that macOS writes next to NAME.jpg."""
    return basename(name).startswith(".")


class Exclusions:
    """Rules that exclude files and folders from a search for images, and counts of the excluded files and folders.

    Hidden files, hidden folders, and folders in `_TRASH` are always excluded, unless they are arguments themselves.
    Links without a target are counted, too.

    Args:
        patterns: Patterns in the syntax of .gitignore, for files and folders below an argument. If an argument is
            itself a file, the patterns apply only to the name of the file.

    Raises:
        UserError: If a pattern is invalid.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self.patterns = tuple(patterns)
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}
        if self.patterns:
            _ = self._spec  # convert the patterns now, because errors must be reported before the work starts

    @cached_property
    def _spec(self) -> "GitIgnoreSpec":
        from pathspec import GitIgnoreSpec  # lazy import, because few searches need it

        try:
            return GitIgnoreSpec.from_lines(self.patterns)
        except ValueError as error:
            raise UserError(f"--exclude: invalid pattern ({error}); use the syntax of .gitignore") from error

    def excludes_folder(self, name: str, path: str) -> bool:
        """Return whether a folder is excluded. An excluded folder is counted.

        `name` is the last part of `path`, which is the path from the argument to the folder.
        """
        if is_hidden(name):
            return self._count("hidden folders", name)
        if name.lower() in _TRASH:
            return self._count("trash folders", name)
        return self._matches(f"{path}/") and self._count("excluded folders", name)

    def excludes_file(self, name: str, path: str, *, keep_hidden: bool = False) -> bool:
        """Return whether an image or shard is excluded. An excluded file is counted.

        `name` is the last part of `path`, which is the path from the argument to the file. If `keep_hidden` is true, a
        hidden file is not excluded.
        """
        if is_hidden(name) and not keep_hidden:
            return self._count("hidden files", name)
        return self._matches(path) and self._count("excluded files", name)

    def count_broken_link(self, name: str, path: str, *, keep_hidden: bool = False) -> None:
        """Count a link without a target; see `excludes_file` for the arguments."""
        if not self.excludes_file(name, path, keep_hidden=keep_hidden):
            self._count("broken links", name)

    def is_excluded(self, path: str) -> bool:
        """Return whether a file or one of the folders in its path is excluded, without counting it."""
        *folders, name = path.replace(os.sep, "/").split("/")
        return (
            is_hidden(name)
            or any(is_hidden(folder) or folder.lower() in _TRASH for folder in folders)
            or self._matches(path)
        )

    def __str__(self) -> str:
        """Return one line such as `left out: 2 hidden folders (.cache, .git)`, or an empty text if nothing was
        excluded."""
        parts = []
        for kind, count in self._counts.items():
            examples = self._examples[kind]
            more = ", …" if count > len(examples) else ""
            parts.append(
                f"{count:,} {kind if count > 1 else kind[:-1]} ({escape_control_chars(', '.join(examples))}{more})"
            )
        return f"left out: {', '.join(parts)}" if parts else ""

    def _matches(self, path: str) -> bool:
        return bool(self.patterns) and self._spec.match_file(path)

    def _count(self, kind: str, name: str) -> bool:
        self._counts[kind] += 1
        examples = self._examples.setdefault(kind, [])
        if len(examples) < _MAX_EXAMPLES and name not in examples:
            examples.append(name)
        return True


class Listing(NamedTuple):
    """A folder, and the names of the images and shards in it, including hidden files.

    Attributes:
        folder: Path of the folder.
        files: Sorted names of files and of links to files.
        broken_links: Names of links without a target.
    """

    folder: str
    files: list[str]
    broken_links: list[str]


class Walk:
    """Iterator over a folder and its subfolders, in the order of their names.

    Links to folders are followed, except links to a folder above the link. No folder is entered twice: each is listed
    under its path without links or, if it has no such path below the root, under the first link to it. A link to a file
    counts as a file. Memory grows with the number of folders and with the number of files in a single folder.

    Args:
        root: The folder.
        exclusions: Rules by which folders are excluded. Files are not excluded.

    Attributes:
        errors: Errors of folders and entries that could not be read. The caller may remove errors from this list.
    """

    def __init__(self, root: str, exclusions: Exclusions) -> None:
        self.errors: list[OSError] = []
        self._root = "" if root == "." else root
        self._exclusions = exclusions
        self._entered: set[tuple[int, int]] = set()
        self._links: deque[str] = deque()  # links to folders, which are entered last

    def __iter__(self) -> Iterator[Listing]:
        yield from self._walk_below(self._root)
        while self._links:
            link = self._links.popleft()
            if not _leads_up(link):
                yield from self._walk_below(link)

    def path(self, folder: str, name: str) -> str:
        """Return the path from the root to an entry in a folder."""
        return os.path.join(folder, name)[len(os.path.join(self._root, "")) :]  # noqa: PTH118

    def _walk_below(self, top: str) -> Iterator[Listing]:
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            listing, folders = Listing(folder, [], []), list[str]()
            try:
                if not _record_folder(os.stat(folder or "."), self._entered):  # noqa: PTH116
                    continue
                self._read(listing, folders)
            except OSError as error:  # this also happens if a network drive becomes unavailable
                error.filename = folder or "."
                self.errors.append(error)
            listing.files.sort()
            paths = [os.path.join(folder, name) for name in sorted(folders)]  # noqa: PTH118
            self._links += filter(os.path.islink, paths)
            waiting += (path for path in reversed(paths) if not os.path.islink(path))  # noqa: PTH114
            yield listing

    def _read(self, listing: Listing, folders: list[str]) -> None:
        if not os.access(listing.folder or ".", os.X_OK):  # the folder's file names are readable, but its files are not
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with os.scandir(listing.folder or ".") as entries:
            for entry in entries:
                try:
                    self._classify(entry, listing, folders)
                except OSError as error:
                    error.filename = entry.path.removeprefix(os.path.join(".", ""))  # noqa: PTH118
                    self.errors.append(error)

    def _classify(self, entry: "os.DirEntry[str]", listing: Listing, folders: list[str]) -> None:
        if not entry.is_dir():
            if not has_wanted_suffix(entry.name):
                return
            if entry.is_file():
                listing.files.append(entry.name)
            elif entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
                listing.broken_links.append(entry.name)
        elif not self._exclusions.excludes_folder(entry.name, self.path(listing.folder, entry.name)):
            folders.append(entry.name)


def walk_visible(
    root: Path, on_error: Callable[[OSError], object] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk visible files and folders like `os.walk`, in sorted order.

    Hidden files and folders (such as `.ipynb_checkpoints`) and folders in `_TRASH` are skipped. Links to folders are
    followed after all other folders, except links to a folder above the link. No folder is entered twice. If the caller
    removes folders from the yielded list of folders, these are not entered. `on_error` is called with the error of each
    folder that cannot be listed. If it is None, such folders are skipped.
    """
    entered: set[tuple[int, int]] = set()
    tops = deque([str(root)])
    while tops:
        for folder, folders, files in os.walk(tops.popleft(), onerror=on_error):
            if not _record_folder(os.stat(folder), entered):  # noqa: PTH116
                folders.clear()
                continue
            folders[:] = sorted(name for name in folders if not is_hidden(name) and name.lower() not in _TRASH)
            yield folder, folders, sorted(name for name in files if not is_hidden(name))
            paths = (os.path.join(folder, name) for name in folders)  # noqa: PTH118
            tops += (link for link in filter(os.path.islink, paths) if not _leads_up(link))


def _record_folder(status: os.stat_result, seen: set[tuple[int, int]]) -> bool:
    """Record a folder, and return whether it was not recorded before."""
    identity = (status.st_dev, status.st_ino)
    is_new = identity not in seen or not status.st_ino  # some network drives have no inode numbers
    seen.add(identity)
    return is_new


def _leads_up(link: str) -> bool:
    """Return whether a link leads to its own folder or to one of the parent folders."""
    target = os.path.realpath(link)
    return f"{os.path.realpath(os.path.dirname(link) or '.')}{os.sep}".startswith(os.path.join(target, ""))  # noqa: PTH118, PTH120


def has_wanted_suffix(name: str) -> bool:
    """Return whether a name has the suffix of an image or of a tar shard. The name may be hidden."""
    return has_image_suffix(name) or name.lower().endswith(".tar")
