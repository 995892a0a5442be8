"""Read files with clear errors, and write files and folders atomically.

After a crash of the machine, a file that is written atomically has either its old or its new content.
"""

import errno
import hashlib
import json
import os
import re
import reprlib
import shutil
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Generic, TypeVar

from grr_coca.common.errors import UserError

MANIFEST = "manifest.json"
"""Name of the file that lists the size and hash of each other file in a folder; see `atomic_folder`."""

BINARY = getattr(os, "O_BINARY", 0)
"""Flag of `os.open` without which Windows changes line ends."""

_RETRY_PAUSES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Pauses in seconds between attempts to rename. On Windows, renaming fails while another process, such as a virus
scanner, has the file open."""

CACHE_PREFIX = "cache:"
"""Prefix of paths in the user's cache."""


def user_cache() -> Path:
    """Return the user's cache folder: `$XDG_CACHE_HOME/grr-coca`, or `~/.cache/grr-coca`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grr-coca"


def is_offline() -> bool:
    """Return whether downloads are forbidden by the environment variable `HF_HUB_OFFLINE`, which `--offline` sets."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def models_cache() -> Path:
    """Return the folder of downloaded and imported models in the user's cache. The folder may not exist."""
    return user_cache() / "models"


def expand_cache_prefix(path: str) -> str:
    """Replace the prefix `cache:` with the user's cache folder. Other paths are unchanged."""
    return str(user_cache() / path.removeprefix(CACHE_PREFIX)) if path.startswith(CACHE_PREFIX) else path


def require_nonempty_path(path: str) -> None:
    """Check that a path is not empty. An unset shell variable yields an empty path, which `Path` interprets as `.`.

    Raises:
        UserError: If the path is empty.
    """
    if not path:
        raise UserError("the path is empty; pass a file or a folder, such as `.` for the current folder")


def require_no_url(path: str | Path) -> None:
    """Reject a URL in a place where only local files are accepted. `Path` merges the two slashes of a URL.

    Raises:
        UserError: If the path is a URL and no file or folder has this name. The message contains both slashes even if
            `path` has lost one.
    """
    scheme, colon, rest = str(path).partition(":")
    url = f"{scheme}://{rest.lstrip('/')}"
    if colon and rest.startswith("/") and is_url(url) and not os.path.exists(path):  # noqa: PTH110 (it never raises)
        raise UserError(f"{url}: URLs are not read here; download the file first")


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading. Other files are rejected, because opening a named pipe could block forever.

    Raises:
        OSError: If the file does not exist, cannot be read, or is not a regular file.
        ValueError: If the path is invalid, for example because it contains a null byte.
    """
    return open(_open_descriptor(path)[0], "rb")  # noqa: PTH123 (opens a descriptor)


def read_regular(path: str | Path, check_size: Callable[[int], object]) -> bytes:
    """Return the bytes of a regular file; see `open_regular`.

    Compared with Python's file objects, this needs a third of the system calls, which take longer than the rest of
    reading a small image.

    Args:
        path: Path of the file.
        check_size: Called with the size of the file in bytes before the file is read. Any error that it raises, for
            example because the file is too large, is passed on.

    Raises:
        OSError: If the file does not exist, cannot be read, or is not a regular file.
        ValueError: If the path is invalid.
    """
    descriptor, size = _open_descriptor(path)
    try:
        check_size(size)
        content = os.read(descriptor, size + 1)  # fewer bytes than requested: the end of the file
        while len(content) != size and (part := os.read(descriptor, 2**20)):  # the size has changed
            content += part
        return content
    finally:
        os.close(descriptor)


def _open_descriptor(path: str | Path) -> tuple[int, int]:
    """Open a regular file, and return its descriptor and its size in bytes; see `open_regular` for errors."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | BINARY)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        return descriptor, status.st_size
    os.close(descriptor)
    raise OSError(errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL, "not a regular file", str(path))


def is_within(path: str | Path, folders: Iterable[str | Path]) -> bool:
    """Return whether a path is inside one of the given folders.

    Symbolic links are followed, and the path need not exist.
    """
    resolved = Path(os.path.realpath(path))
    return any(resolved.is_relative_to(os.path.realpath(folder)) for folder in folders)


@contextmanager
def read_errors(path: str | Path) -> Iterator[None]:
    """Convert an `OSError` or `ValueError` that occurs in the context to a `UserError` that names the file.

    A `UserError` is passed on unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        require_no_url(path)
        raise UserError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: expected a file, found a folder; pass a file in it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # the path contains a null byte, or the offset is negative
        raise UserError(f"{str(path)!r}: cannot be read ({error})") from error


def read_file_bytes(path: str | Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        UserError: If the file does not exist, is a folder, or cannot be read.
    """
    with read_errors(path):
        return Path(path).read_bytes()


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that contains one JSON object.

    Raises:
        UserError: If the file does not exist, cannot be read, or does not contain one JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error}); correct it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, found {reprlib.repr(content)}")
    return content


def read_lines(path: Path) -> dict[int, str]:
    """Return the lines of a UTF-8 file that are not blank, by line number (from 1).

    Each run of whitespace becomes one space, and whitespace at the ends of a line is removed.

    Raises:
        UserError: If the file does not exist, cannot be read, is not UTF-8, or has no text.
    """
    try:
        text = read_file_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    lines = {number: " ".join(line.split()) for number, line in enumerate(text.splitlines(), start=1)}
    if not any(lines.values()):
        raise UserError(f"{path}: has no text; expected one text per line")
    return {number: line for number, line in lines.items() if line}


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write bytes to a file atomically, as `write_atomic` does."""
    write_atomic(path, lambda file: file.write(content))


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file atomically: under a temporary name, flushed to disk, then renamed to `path`.

    `write` is called with the open temporary file. The new file gets the permissions of the file that it replaces. If
    `path` is a symbolic link, the link is replaced and its target is not changed, because in an untrusted folder the
    target could be anywhere. To follow a link that the user passed, pass `resolve_link(path)`. If several processes
    write the same file, the last version is kept.

    Raises:
        OSError: If the disk is full, or the folder does not exist or is not writable. After this or any error of
            `write`, no partial file remains.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.partial")
    try:
        with partial.open("wb") as file:
            if path.is_file() and not path.is_symlink():
                mode = path.stat().st_mode & 0o777
                if mode != os.fstat(file.fileno()).st_mode & 0o777:  # some drives reject every chmod
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
    """Rename a file, and replace the target if it exists. If permission is denied, try again for up to 1.5 seconds.

    Raises:
        OSError: If the source does not exist, the folder is not writable, or, on Windows, another process keeps one of
            the files open.
    """
    _retry_rename(lambda: source.replace(target))


def _retry_rename(rename: Callable[[], object]) -> None:
    for seconds in _RETRY_PAUSES:
        try:
            rename()
            return
        except PermissionError:
            time.sleep(seconds)
    rename()


class LocalFile:
    """File on this machine, open for reading until `close` is called.

    Raises:
        OSError: If the file does not exist or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | BINARY)

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from an offset, or fewer if the file ends earlier. This method is thread-safe."""
        return read_at(self._descriptor, size, offset)

    def will_need(self, start: int, end: int) -> None:
        """Ask the system to read the bytes from `start` to `end` (exclusive) in advance.

        This has no effect if the system does not support it.
        """
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(self._descriptor, start, end - start, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


_SEEK_LOCK = threading.Lock()


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Return up to `size` bytes of an open file from an offset, or fewer if the file ends earlier.

    This function is thread-safe. On Windows, it changes the position of the descriptor.
    """
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    with _SEEK_LOCK:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size)


def resolve_link(path: Path) -> Path:
    """Return the target of a symbolic link, or the path itself if it is not a link. The target need not exist."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def atomic_folder(folder: Path, facts: Mapping[str, object] | None = None) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder` (or the target of a symbolic link) when the context ends.

    A manifest of sizes and hashes, which starts with `facts`, is added to the folder. If the context ends with an
    exception, `folder` stays unchanged. The previous folder is first renamed to `.NAME.old`, which remains only if the
    machine crashes or the next rename fails. Only one process at a time may write a folder.

    Raises:
        UserError: If the path has no name, such as `.`, and thus cannot be replaced.
        OSError: If the disk is full or cannot be written to. The temporary folder is removed.
    """
    require_folder_name(folder)
    folder = resolve_link(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        _write_manifest(partial, facts or {})
        for path in (*partial.rglob("*"), partial):
            sync_folder(path) if path.is_dir() else _sync_file(path)
        _swap_folders(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def edit_folder_atomic(folder: Path, facts: Mapping[str, object] | None = None) -> Iterator[Path]:
    """Yield a copy of a folder that has a manifest. The copy replaces the folder at the end, as in `atomic_folder`.

    Files that the manifest does not list are not copied, and are thus removed.

    Args:
        folder: Folder to change.
        facts: Entries with which the manifest starts. If None, the present entries are kept.

    Raises:
        UserError: If the folder has no manifest, or the manifest is corrupt.
        OSError: If a listed file is missing, or the disk is full or cannot be written to. The folder stays unchanged.
    """
    if facts is None:
        facts = {key: value for key, value in read_json(folder / MANIFEST).items() if key != "files"}
    with atomic_folder(folder, facts) as partial:
        for name in read_manifest(folder):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, partial / name)
        yield partial


def require_folder_name(folder: Path) -> None:
    """Check that a path ends in a folder name. A path such as `.` does not.

    Raises:
        UserError: If the path has no name.
    """
    if folder.name in ("", ".."):
        raise UserError(f"{folder}: has no folder name; pass the path of a new folder")


def verify_folder(folder: Path, only: Collection[str] | None = None) -> None:
    """Compare the sizes and hashes of files in a folder with its manifest.

    Args:
        folder: The folder.
        only: Names of the files to compare, if they are in the manifest. If None, all files in the manifest are
            compared.

    Raises:
        UserError: If the manifest is missing or corrupt, or a file is missing, cannot be read, or differs, even by a
            single bit.
    """
    for name, (size, sha256) in read_manifest(folder).items():
        if only is not None and name not in only:
            continue
        path = folder / name
        try:
            is_whole = path.stat().st_size == size and file_sha256(path) == sha256
        except OSError as error:
            raise UserError(f"{path}: missing, or cannot be read ({error.strerror})") from error
        if not is_whole:
            raise UserError(f"{path}: corrupt: its size or checksum differs from the manifest")


def read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Return the size in bytes and the SHA-256 of each file that a folder's manifest lists, by relative path.

    Raises:
        UserError: If the manifest is missing or corrupt, or lists a path outside the folder.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        listed = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{folder / MANIFEST}: missing or corrupt ({error})") from error
    for name in listed:
        if "\0" in name:
            raise UserError(f"{folder / MANIFEST}: corrupt: {name!r} is not a file name")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{folder / MANIFEST}: lists {name}, which is outside its folder")
    return listed


def _write_manifest(folder: Path, facts: Mapping[str, object]) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in paths
    }
    (folder / MANIFEST).write_bytes(json.dumps({**facts, "files": files}, indent=2).encode())


def _swap_folders(partial: Path, folder: Path) -> None:
    older = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        shutil.rmtree(older, ignore_errors=True)
        _retry_rename(lambda: folder.rename(older))
    _retry_rename(lambda: partial.rename(folder))
    sync_folder(folder.parent)
    shutil.rmtree(older, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_file(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR)  # Windows requires write permission to flush a file
    except PermissionError:
        descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Flush the file names in a folder to the disk, if the system permits the folder to be opened.

    This does nothing on Windows, where folders cannot be opened.
    """
    with suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- Open files

_OPEN_FILES = 8192
"""Limit of open files to request. Many systems allow 256 or 1,024 open files by default, and more on request."""

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class HandleCache(Generic[K, T]):
    """Cache that opens items by key, and keeps the `size` most recently used items. It is not thread-safe.

    A copy that is sent to another process starts empty, because open files and memory maps are not valid there.

    Args:
        open_: Function that opens the item of a key.
        close: Function that closes an item that is removed from the cache. If None, the item is only released.
        size: Maximum number of items.
    """

    def __init__(self, open_: Callable[[K], T], close: Callable[[T], None] | None, size: int) -> None:
        self._open = open_
        self._close = close
        self._size = size
        self._items: OrderedDict[K, T] = OrderedDict()

    def __getitem__(self, key: K) -> T:
        if key in self._items:
            self._items.move_to_end(key)
            return self._items[key]
        item = self._items[key] = self._open(key)
        if len(self._items) > self._size:
            _, oldest = self._items.popitem(last=False)
            if self._close is not None:
                self._close(oldest)
        return item

    def discard(self, key: K) -> None:
        """Remove an item from the cache and close it, if it is in the cache."""
        item = self._items.pop(key, None)
        if item is not None and self._close is not None:
            self._close(item)

    def __del__(self) -> None:
        if self._close is not None:
            for item in self._items.values():
                self._close(item)

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_items": OrderedDict()}


def raise_open_file_limit() -> int:
    """Raise this process's limit of open files to `_OPEN_FILES`, or as far as the system allows.

    A limit that is already higher is kept. On Windows, nothing is changed, because the default is sufficient.

    Returns:
        The resulting limit, or `_OPEN_FILES` if the system has no limit.
    """
    try:
        from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit, setrlimit
    except ImportError:
        return _OPEN_FILES
    soft, hard = (_OPEN_FILES if limit == RLIM_INFINITY else limit for limit in getrlimit(RLIMIT_NOFILE))
    allowed = min(hard, _OPEN_FILES)
    if allowed <= soft:
        return soft
    setrlimit(RLIMIT_NOFILE, (allowed, getrlimit(RLIMIT_NOFILE)[1]))
    return allowed


# --- URLs

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_LOCAL_SCHEMES = ("file", "local")


def is_url(path: str) -> bool:
    """Return whether a path is the URL of a remote file, such as `s3://bucket/a.tar`.

    URLs that begin with `file://` or `local://` are not remote.
    """
    found = _URL.match(path)
    return found is not None and found[1].lower() not in _LOCAL_SCHEMES
