"""Read files with clear errors, and write files and folders completely or not at all, even if the machine stops."""

import errno
import hashlib
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, runtime_checkable

from grr_coca.common.errors import UserError

MANIFEST = "manifest.json"

BINARY = getattr(os, "O_BINARY", 0)
"""Flag of `os.open`. Without it, Windows changes the ends of lines."""

_SECONDS_BETWEEN_TRIES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Pauses before a rename is tried again. On Windows, it fails while another process has the file open, such as a
scanner of viruses."""

CACHE = "cache:"
"""Prefix of paths in the user's cache."""


def user_cache() -> Path:
    """The user's cache folder: `$XDG_CACHE_HOME/grr-coca`, or `~/.cache/grr-coca`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grr-coca"


def is_offline() -> bool:
    """True if nothing may be fetched (`--offline`)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def models_cache() -> Path:
    """The folder of the models that were fetched and imported."""
    return user_cache() / "models"


def in_cache(path: str) -> str:
    """Replace the prefix `cache:` by the user's cache folder; other paths stay unchanged."""
    return str(user_cache() / path.removeprefix(CACHE)) if path.startswith(CACHE) else path


def require_path(path: str) -> None:
    """Raise an error if a path is empty, like an unset variable of a shell. The system would take it as `.`.

    Raises:
        UserError: it is empty.
    """
    if not path:
        raise UserError("an empty path; give files or folders, `.` for this folder")


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file to read it. To open a named pipe would wait for a writer, perhaps for ever.

    Raises:
        OSError: it does not exist, cannot be read, or is no regular file.
        ValueError: it is no path, such as one with a null byte.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | BINARY)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise OSError(kind, "not a regular file", str(path))
        return open(descriptor, "rb")  # noqa: PTH123 (of a descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def is_within(path: str | Path, folders: Iterable[str | Path]) -> bool:
    """True if a path leads into one of some folders. Symbolic links are followed, and the path need not exist."""
    place = Path(os.path.realpath(path))
    return any(place.is_relative_to(os.path.realpath(folder)) for folder in folders)


@contextmanager
def read_errors(path: str | Path) -> Iterator[None]:
    """Raise a `UserError` that names the file if it does not exist, or cannot be opened or read."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder; give a file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # a null byte in a path, or an offset below 0
        raise UserError(f"{str(path)!r}: cannot be read ({error})") from error


def read_whole(path: str | Path) -> bytes:
    """The bytes of a file.

    Raises:
        UserError: the file does not exist, or cannot be read.
    """
    with read_errors(path):
        return Path(path).read_bytes()


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        UserError: the file is missing, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: the file is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file that can be read ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, found {content!r}")
    return content


def read_lines(path: Path) -> dict[int, str]:
    """The non-empty lines of a UTF-8 file, by line number (from 1). Runs of spaces become one space.

    Raises:
        UserError: the file cannot be read, is not UTF-8, or holds no text.
    """
    try:
        text = read_whole(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from error
    lines = {number: " ".join(line.split()) for number, line in enumerate(text.splitlines(), start=1)}
    if not any(lines.values()):
        raise UserError(f"{path}: holds no text; expected one text per line")
    return {number: line for number, line in lines.items() if line}


def write_whole(path: Path, content: bytes) -> None:
    """Write bytes to a file as `fill_whole` does."""
    fill_whole(path, lambda file: file.write(content))


def fill_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name, flush it to disk, and only then rename it to `path`.

    A file that is replaced keeps its permissions. A symbolic link is replaced: in a foreign folder it may lead
    anywhere. For a path that the user gave, pass `behind_link(path)`. If several processes write the same file, the
    last one wins.

    Raises:
        OSError: the disk is full, or the folder is not writable. No partial file is left.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.partial")
    try:
        with partial.open("wb") as file:
            if path.is_file() and not path.is_symlink():
                mode = path.stat().st_mode & 0o777
                if mode != os.fstat(file.fileno()).st_mode & 0o777:  # some drives refuse every chmod
                    partial.chmod(mode)
            write(file)
            file.flush()
            os.fsync(file.fileno())
        replace_file(partial, path)
        sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def replace_file(source: Path, target: Path) -> None:
    """Rename a file. A file that is there is replaced.

    Raises:
        OSError: the folder is not writable, or another process on Windows keeps one of the files open.
    """
    _tried_again(lambda: source.replace(target))


def _tried_again(rename: Callable[[], object]) -> None:
    for seconds in _SECONDS_BETWEEN_TRIES:
        try:
            rename()
            return
        except PermissionError:
            time.sleep(seconds)
    rename()


def open_to_read(path: Path) -> int:
    """A descriptor of a file, for `read_at`."""
    return os.open(path, os.O_RDONLY | BINARY)


@runtime_checkable
class Bytes(Protocol):
    """The content of a file on this machine or elsewhere, of which any part can be read.

    `etag`: changes when the content does.
    """

    @property
    def size(self) -> int:
        """Number of bytes."""
        ...

    @property
    def etag(self) -> str:
        """See above."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Read a part, which is shorter if the file ends before."""
        ...


class LocalFile:
    """A file on this machine, open until `close`.

    Raises:
        OSError: it does not exist or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | BINARY)
        status = os.fstat(self._descriptor)
        self.size, self.etag = status.st_size, str(status.st_mtime_ns)

    def read(self, offset: int, size: int) -> bytes:
        """Read a part. Several threads can do so at once."""
        return read_at(self._descriptor, size, offset)

    def will_need(self, start: int, end: int) -> None:
        """Ask the system to read a part ahead. It is not an error if the system cannot."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(self._descriptor, start, end - start, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


_SEEKING = threading.Lock()


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Read a part of a file. Several threads can do so at once. The part is shorter if the file ends before."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    with _SEEKING:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size)


def behind_link(path: Path) -> Path:
    """The target of a symbolic link, which need not exist; any other path unchanged."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def whole_folder(folder: Path, facts: Mapping[str, object] | None = None) -> Iterator[Path]:
    """A temporary folder to fill. When the context ends, it replaces `folder` (or the target of a symbolic link).

    A manifest of sizes and hashes is added, which begins with `facts`. If the context ends with an exception, `folder`
    stays as it was.

    Raises:
        UserError: the path has no name, such as `.`, so it cannot be replaced.
        OSError: the disk is full or cannot be written to. Nothing is left behind.
    """
    require_own_name(folder)
    folder = behind_link(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        _write_manifest(partial, facts or {})
        for path in (*partial.rglob("*"), partial):
            sync_folder(path) if path.is_dir() else _sync_file(path)
        _put_in_place(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def changed_folder(folder: Path, facts: Mapping[str, object] | None = None) -> Iterator[Path]:
    """A copy of a folder with a manifest, to change. When the context ends, it replaces the folder, as `whole_folder`.

    Args:
        folder: to change.
        facts: what the manifest begins with; None: what it has begun with.

    Raises:
        UserError: the folder has no manifest, or it is damaged.
        OSError: the disk is full or cannot be written to. The folder is as it was.
    """
    if facts is None:
        facts = {key: value for key, value in read_json(folder / MANIFEST).items() if key != "files"}
    with whole_folder(folder, facts) as partial:
        for name in listed_files(folder):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, partial / name)
        yield partial


def require_own_name(folder: Path) -> None:
    """Raise an error if a path has no name under which a folder could be written, such as `.`.

    Raises:
        UserError: it has none.
    """
    if folder.name in ("", ".."):
        raise UserError(f"{folder}: has no name of its own; give a new folder")


def verify_folder(folder: Path, only: Collection[str] | None = None) -> None:
    """Compare the files of a folder with its manifest: all that this lists, or those of some names.

    Raises:
        UserError: there is no manifest, or a file is missing or differs by a single bit.
    """
    for name, (size, sha256) in listed_files(folder).items():
        if only is not None and name not in only:
            continue
        path = folder / name
        try:
            is_whole = path.stat().st_size == size and file_sha256(path) == sha256
        except OSError as error:
            raise UserError(f"{path}: missing, or cannot be read ({error.strerror})") from error
        if not is_whole:
            raise UserError(f"{path}: damaged: its checksum differs from the manifest")


def listed_files(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of each file of a folder, by relative path, from the folder's manifest.

    Raises:
        UserError: there is no manifest, or it is damaged.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        listed = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{folder / MANIFEST}: missing or damaged ({error})") from error
    for name in listed:
        if "\0" in name:
            raise UserError(f"{folder / MANIFEST}: damaged: {name!r} is not a file name")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{folder / MANIFEST}: lists {name}, which is outside of its folder")
    return listed


def _write_manifest(folder: Path, facts: Mapping[str, object]) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in paths
    }
    (folder / MANIFEST).write_bytes(json.dumps({**facts, "files": files}, indent=2).encode())


def _put_in_place(partial: Path, folder: Path) -> None:
    older = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        shutil.rmtree(older, ignore_errors=True)
        _tried_again(lambda: folder.rename(older))
    _tried_again(lambda: partial.rename(folder))
    sync_folder(folder.parent)
    shutil.rmtree(older, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_file(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR)  # Windows asks for permission to write
    except PermissionError:
        descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk. Windows has no such call: it opens no folder."""
    with suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
