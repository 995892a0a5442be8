"""Copy a run folder to an object store, and update the copy after each checkpoint."""

import logging
from pathlib import Path

from grr_coca.common.errors import UserError
from grr_coca.common.files import MANIFEST
from grr_coca.common.remote import list_file_sizes, read_range, remove_file, upload_file

log = logging.getLogger(__name__)

_CHECKPOINTS = "checkpoints"


def copy_run(folder: Path, url: str) -> None:
    """Copy a run folder to a URL, and remove from the copy the checkpoints that the run has removed.

    Checkpoints that the copy already contains are not copied again; all other files are, except hidden files. The
    manifest of a checkpoint is copied last, so that an interrupted copy is not mistaken for a complete one. If the
    store cannot be reached, a warning is logged, and no error is raised, so that the run continues.
    """
    url = url.rstrip("/")
    try:
        remote_sizes = list_file_sizes(url)
        files = {
            path.relative_to(folder).as_posix(): path
            for path in folder.rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        }
        copied = {
            name.rpartition("/")[0]
            for name, path in files.items()
            if _is_copied_manifest(name, path, url, remote_sizes)
        }
        for name in sorted(files, key=lambda name: (name.endswith(MANIFEST), name)):
            if not any(name.startswith(f"{checkpoint}/") for checkpoint in copied):
                upload_file(files[name], f"{url}/{name}")
        for name in sorted(remote_sizes.keys() - files.keys(), key=lambda name: not name.endswith(MANIFEST)):
            if name.startswith(f"{_CHECKPOINTS}/"):
                remove_file(f"{url}/{name}")
    except UserError as error:
        log.warning("%s; the run continues, and the copy is updated after the next checkpoint", error)


def _is_copied_manifest(name: str, path: Path, url: str, remote_sizes: dict[str, int]) -> bool:
    size = path.stat().st_size
    if not name.startswith(f"{_CHECKPOINTS}/") or path.name != MANIFEST or remote_sizes.get(name) != size:
        return False
    return read_range(f"{url}/{name}", 0, size) == path.read_bytes()
