"""Find, read and write files in object stores and on web servers, despite intermittent network errors.

This module uses `fsspec`. Credentials, endpoints and other options come from the usual sources of its packages: the
environment, the configuration files of the cloud's own tools, and fsspec's configuration. A URL that contains a
credential is rejected, so that no credential gets into recipes, logs or file names.
"""

import itertools
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from grr_coca.common.errors import UserError, require_extra

_log = logging.getLogger(__name__)

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0)
"""Seconds between attempts. In total, they bridge a network failure of a minute and a half."""

_WARN_FROM = 3
"""Number of the failed attempt from which on the failures of a request are reported. Earlier failures are common and
short."""

SECONDS_TO_ANSWER, _SLOWEST = 30.0, 2**17
"""Time limit of a request in seconds, and the number of bytes per additional second."""

_MAX_PARALLEL_REQUESTS = 32
"""Maximum number of files whose states are requested at the same time."""

_MIN_LISTED = 16
"""Minimum number of wanted files in a folder for listing the folder instead of requesting each file. A listing returns
about a thousand files per request, but not every server supports it."""

_MAX_NAMES = 10**6

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_DATES = ("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "modified", "created")
_ETAGS = ("ETag", "etag", "md5Hash", "content_md5", "blob_id")

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """File at a URL, with the size and etag that it had when it was found.

    Attributes:
        url: URL of the file.
        size: Size in bytes.
        etag: Value that changes with the content: the server's etag, or the size and date if the server has no etag.
    """

    url: str
    size: int
    etag: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """Last part of the URL."""
        return self.url.rpartition("/")[2]

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from an offset, read in one request, which is repeated if it fails.

        Raises:
            UserError: If access is denied, or all attempts fail, for example because the file ends earlier. The message
                names the URL.
        """
        return read_range(self.url, offset, size)

    def require_same(self) -> None:
        """Check that the file is unchanged.

        Raises:
            UserError: If the file has changed or no longer exists, access is denied, or the server does not answer.
        """
        if remote_file(self.url) != self:
            raise UserError(f"{self.url}: has changed since it was indexed; run `grr-coca data index` on it again")


# --- URLs


def require_no_credentials(url: str) -> str:
    """Check that no part of a URL can be a credential, and return the URL.

    Raises:
        UserError: If the URL contains a query, a user with a password, or, with HTTP, a user. The message does not
            contain this part of the URL.
    """
    plain, _, query = url.partition("?")
    scheme, _, rest = plain.partition("://")
    host, slash, path = rest.partition("/")
    user, at, host = host.rpartition("@")
    what = "a query" if query else "a user or password" if at and (":" in user or scheme.startswith("http")) else None
    if what is not None:
        raise UserError(
            f"{scheme}://{host}{slash}{path}: has {what}, which may contain credentials, but recipes and logs "
            "are shared; omit it, and set credentials in the environment (docs/data.md)"
        )
    return url


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern represents, in order, with the last braces varying fastest.

    `{00000..01242}` counts with a fixed number of digits, and `{a,b}` lists values. A pattern without braces represents
    itself.

    Raises:
        UserError: If braces have other content, or there are more than a million names.
    """
    pieces: list[list[str]] = []
    end = 0
    for found in _BRACES.finditer(pattern):
        pieces += [[pattern[end : found.start()]], _expand_brace(found[1], pattern)]
        end = found.end()
    count = 1
    for piece in pieces:
        count *= len(piece)
    if count > _MAX_NAMES:
        raise _too_many_names(pattern, count)
    return ["".join(parts) for parts in itertools.product(*pieces, [pattern[end:]])]


def _expand_brace(inner: str, pattern: str) -> list[str]:
    if (numbers := _RANGE.fullmatch(inner)) is not None:
        first, last = numbers.groups()
        if int(first) <= int(last) and len(first) <= len(last) <= 12:
            if int(last) - int(first) >= _MAX_NAMES:
                raise _too_many_names(pattern, int(last) - int(first) + 1)
            return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    elif "," in inner:
        return inner.split(",")
    raise UserError(
        f"{pattern}: '{{{inner}}}' must be an ascending range such as {{00000..01242}}, or a list such as {{a,b}}"
    )


def _too_many_names(pattern: str, count: int) -> UserError:
    return UserError(f"{pattern}: represents {count:,} files (limit {_MAX_NAMES:,}); use smaller ranges")


# --- Finding


def remote_file(url: str) -> RemoteFile:
    """Return the current size and etag of the file at a URL.

    Raises:
        UserError: If the file does not exist, access is denied, the server does not answer or does not report the size,
            or a package for the scheme of the URL is not installed.
    """
    return _as_file(url, _retry(url, lambda files, path, timeout: files.info(path, **timeout), missing_at_once=True))


def find_remote(pattern: str) -> list[RemoteFile]:
    """Return the files that match a URL pattern, in the order of `expand_braces`, and for `*` in alphabetical order.

    A pattern can contain braces and, in stores that can list files, `*`.

    Raises:
        UserError: If the pattern is invalid or may contain credentials, a file is missing (the message names it), no
            file matches, access is denied, or the server does not answer.
    """
    require_no_credentials(pattern)
    urls = [url for name in expand_braces(pattern) for url in (_find_matches(name) if "*" in name else [name])]
    listed = _list_folders(urls)
    with ThreadPoolExecutor(min(_MAX_PARALLEL_REQUESTS, len(urls))) as threads:
        return list(threads.map(lambda url: listed.get(url) or remote_file(url), urls))


def _find_matches(pattern: str) -> list[str]:
    scheme = urlsplit(pattern).scheme
    if scheme in ("http", "https"):
        raise UserError(f"{pattern}: a web server does not list its files; use a range such as {{00000..01242}}")
    found = sorted(_retry(pattern, lambda files, path, timeout: files.glob(path, **timeout)))
    if not found:
        raise UserError(f"{pattern}: no file matches this pattern; check the URL")
    return [_open_filesystem(pattern)[0].unstrip_protocol(name) for name in found]


def _list_folders(urls: Sequence[str]) -> dict[str, RemoteFile]:
    """List the folders that contain at least `_MIN_LISTED` of the URLs, and return the files at these URLs, by URL.

    Folders on web servers are not listed. Files that a listing omits, or lists without a size, are not in the result.

    Raises:
        UserError: If a folder does not exist or cannot be listed.
    """
    folders: dict[str, int] = {}
    for url in urls:
        folder = url.rpartition("/")[0]
        folders[folder] = folders.get(folder, 0) + 1
    wanted, found = set(urls), {}
    for folder, count in folders.items():
        if count < _MIN_LISTED or urlsplit(folder).scheme in ("http", "https"):
            continue
        entries = _retry(
            folder, lambda files, path, timeout: files.ls(path, detail=True, **timeout), missing_at_once=True
        )
        for entry in entries:
            url = f"{folder}/{str(entry['name']).rpartition('/')[2]}"
            if url in wanted and entry.get("size") is not None:
                found[url] = _as_file(url, entry)
    return found


def _as_file(url: str, entry: Mapping[str, Any]) -> RemoteFile:
    size = entry.get("size")
    if size is None:
        raise UserError(
            f"{url}: the server does not report the file's length; use another server or a copy on this machine"
        )
    etag = next((str(entry[key]) for key in _ETAGS if entry.get(key)), None)
    date = next((str(entry[key]) for key in _DATES if entry.get(key)), "")
    return RemoteFile(url, int(size), etag or f"{size} {date}")


# --- Reading and writing


def read_range(url: str, offset: int, size: int) -> bytes:
    """Return exactly `size` bytes of the file at a URL; see `RemoteFile.read`. For 0 bytes, no request is made."""

    def read(files: Any, path: str, timeout: Mapping[str, float]) -> bytes:
        # By default, the file system of the Hugging Face hub would read five megabytes ahead, which nothing would use.
        exactly = {"cache_type": "none"} if files.protocol == "hf" else {}
        content = files.cat_file(path, start=offset, end=offset + size, **timeout, **exactly)
        if len(content) != size:
            raise _WrongLengthError(f"received {len(content):,} bytes instead of {size:,}")
        return content

    return _retry(url, read, size, uses_cache=True) if size else b""


def upload_file(path: Path, url: str) -> None:
    """Copy a file from this machine to a URL, and try again if this fails.

    Raises:
        UserError: If all attempts fail, or access is denied.
        OSError: If the file does not exist.
    """
    size = path.stat().st_size
    _retry(url, lambda files, target, timeout: files.put_file(str(path), target, **timeout), size, uses_cache=True)


def list_file_sizes(url: str) -> dict[str, int]:
    """Return the size in bytes of each file in a folder at a URL and in its subfolders, by relative path.

    The result is empty if the folder does not exist.

    Raises:
        UserError: If all attempts fail, or access is denied.
    """

    def find(files: Any, root: str, timeout: Mapping[str, float]) -> dict[str, int]:
        try:
            found = files.find(root, detail=True, **timeout)
        except FileNotFoundError:
            return {}
        prefix = root.rstrip("/") + "/"
        return {name.removeprefix(prefix): int(entry["size"] or 0) for name, entry in found.items()}

    return _retry(url, find)


def remove_file(url: str) -> None:
    """Remove a file at a URL.

    Raises:
        UserError: If all attempts fail, for example because the file does not exist, or access is denied.
    """
    _retry(url, lambda files, path, timeout: files.rm_file(path, **timeout), uses_cache=True)


class _WrongLengthError(Exception):
    """Response with more or fewer bytes than requested."""


def _retry(
    url: str,
    call: Callable[[Any, str, Mapping[str, float]], T],
    num_bytes: int = 0,
    *,
    uses_cache: bool = False,
    missing_at_once: bool = False,
) -> T:
    """Return the result of a call. While the call fails, repeat it after each of the `PAUSES`.

    Args:
        url: URL of the file or folder.
        call: Function that takes the file system of the URL, the path in it, and the time limit as keyword arguments
            for fsspec.
        num_bytes: Number of bytes sent or received, which extends the time limit of each attempt.
        uses_cache: Whether the file system may use listings from earlier calls.
        missing_at_once: Whether to stop immediately if the file does not exist.

    Raises:
        UserError: If all attempts fail, access is denied, the file does not exist and `missing_at_once` is set, or the
            file system of the URL cannot be opened.
    """
    filesystem, path = _open_filesystem(url)
    limit = SECONDS_TO_ANSWER + num_bytes / _SLOWEST
    timeout = {"timeout": limit} if getattr(filesystem, "async_impl", False) else {}
    for number, pause in enumerate((*PAUSES, None), start=1):
        try:
            if not uses_cache:
                filesystem.invalidate_cache()
            return call(filesystem, path, timeout)
        except Exception as error:
            if _is_denied(error):
                message = f"{url}: access is denied ({_describe_error(error)}); see docs/data.md for credentials"
                raise UserError(message) from None
            if missing_at_once and _is_missing(error):
                raise UserError(f"{url}: no such file") from None
            # The message of the error may contain the signed URL of a redirect, so only its kind is reported.
            reason = _describe_error(error)
            if pause is None:
                raise UserError(
                    f"{url}: cannot be read or written after {number} attempts ({reason}); check network and URL"
                ) from None
            if number >= _WARN_FROM:
                _log.warning("%s: %s; trying again in %g s", url, reason, pause)
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _is_missing(error: BaseException) -> bool:
    # The HTTP file system raises this error for all failures, with the reason as its cause.
    return isinstance(error, FileNotFoundError) and (
        error.__cause__ is None or isinstance(error.__cause__, FileNotFoundError) or _status(error) in (404, 410)
    )


def _is_denied(error: BaseException) -> bool:
    return isinstance(error, PermissionError) or _status(error) in (401, 403)


def _status(error: BaseException) -> int | None:
    status = getattr(error, "status", None) or getattr(error.__cause__, "status", None)
    return status if isinstance(status, int) else None


def _describe_error(error: BaseException) -> str:
    """Return a short description of an error's kind. The message of the error may contain a signed URL."""
    if isinstance(error, _WrongLengthError):
        return str(error)
    if (status := _status(error)) is not None:
        return f"HTTP {status}"
    if _is_missing(error):
        return "no such file"
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ is not None else error
    if isinstance(cause, TimeoutError) or "Timeout" in type(cause).__name__:
        return "no answer in time"
    number = getattr(cause, "errno", None)
    return os.strerror(number) if isinstance(number, int) and number > 0 else type(cause).__name__


# --- File systems of fsspec

_filesystems: dict[tuple[int, str], Any] = {}
_opening_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    # At the time of a fork, another thread may hold the lock, which would then never be released in the child.
    os.register_at_fork(after_in_child=lambda: globals().update(_opening_lock=threading.Lock()))


def _open_filesystem(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in the file system.

    Each process opens its own file systems, because a file system does not work after a fork.

    Raises:
        UserError: If a package for the scheme is not installed, or the scheme is unknown.
    """
    scheme, _, rest = url.partition("://")
    key = os.getpid(), f"{scheme}://{rest.partition('/')[0]}"
    with _opening_lock:
        if key not in _filesystems:
            _filesystems[key] = _new_filesystem(scheme.lower(), url)
        filesystem = _filesystems[key]
    return filesystem, filesystem._strip_protocol(url)


def _new_filesystem(scheme: str, url: str) -> Any:
    missing = [name for name in ("fsspec", "aiohttp", "s3fs") if find_spec(name) is None]
    if "fsspec" in missing or (scheme in ("http", "https", "s3", "s3a") and missing):
        require_extra("s3", f"{url}: access to remote files")
    import fsspec
    from fsspec.registry import known_implementations

    if scheme not in known_implementations and scheme not in fsspec.registry:
        raise UserError(f"{url}: fsspec does not support '{scheme}:'; use s3:, https: or a path on this machine")
    try:
        return fsspec.core.url_to_fs(url, skip_instance_cache=True)[0]
    except ImportError as error:
        raise UserError(f"{url}: needs a package that is not installed ({error}); install it") from error
