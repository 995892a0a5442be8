"""Makes this process like one on Windows, as far as the package can tell. Import it before anything else.

- Modules, functions, flags and signals that only POSIX has are gone.
- `Path` and `os.path` read and write `C:\\folder\\file`. What Python asks the system is translated.
- Names do not differ by case, and cannot hold `:` or `?`.
- A file that is open or mapped cannot be replaced, renamed or removed, and a rename replaces nothing.
- A folder cannot be opened, and `fsync` needs a descriptor that can write.
- New processes do not inherit memory (`spawn`).
- A file that is opened as text without an encoding is an error, since that encoding differs.

Libraries keep what they have on Windows too: `filelock`, which is imported first, keeps its locks. On Windows itself,
nothing of this is needed, and nothing is done.
"""

import sys

if sys.platform != "win32":
    import builtins
    import errno
    import fcntl
    import glob
    import io
    import multiprocessing
    import multiprocessing.connection
    import multiprocessing.spawn
    import ntpath
    import os
    import pathlib
    import posix
    import posixpath
    import shutil
    import signal
    import sqlite3
    import subprocess
    import tempfile
    import warnings
    from collections.abc import Callable
    from importlib import reload
    from typing import Any
    from urllib.parse import quote

    import filelock  # noqa: F401

    MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posixshmem")
    OF_SYSTEM = """
        pread preadv pwrite pwritev fchmod fchown chown lchown fork forkpty getuid geteuid getgid getegid getgroups
        sched_getaffinity sched_setaffinity posix_fadvise posix_fallocate mkfifo mknod sendfile statvfs fstatvfs setsid
        setpgid killpg getpgid wait3 wait4 nice sync fdatasync getpriority setpriority O_NOFOLLOW O_DIRECTORY O_NONBLOCK
        O_CLOEXEC O_TMPFILE O_SYNC O_DSYNC memfd_create copy_file_range getloadavg
    """
    OF_SIGNAL = """
        SIGUSR1 SIGUSR2 SIGPIPE SIGALRM SIGPROF SIGVTALRM pthread_sigmask pthread_kill sigwait sigwaitinfo sigtimedwait
        sigpending setitimer getitimer alarm pause siginterrupt
    """
    NOT_IN_NAMES = set('<>:"|?*')

    BARE = f"""
import os, runpy, signal, sys
for name in {MODULES!r}:
    sys.modules[name] = None
for module, names in ((os, {OF_SYSTEM.split()!r}), (signal, {OF_SIGNAL.split()!r})):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

    def to_posix(path: Any) -> Any:
        """The path of this system for one of Windows: `/folder/file` for `C:\\folder\\file`, in its own case."""
        if path is None or isinstance(path, int):
            return path
        text = os.fspath(path)
        if isinstance(text, bytes):
            return text
        text = text.replace("\\", "/")
        if text[1:2] == ":":
            text = text[2:]
        return text if _posix_exists(text) else _in_other_case(text)

    def to_windows(path: str) -> str:
        """The path of Windows for one of this system."""
        return "C:" + path.replace("/", "\\") if path.startswith("/") else path.replace("/", "\\")

    def _posix_exists(text: str) -> bool:
        try:
            posix.lstat(text or ".")
        except (OSError, ValueError):
            return False
        return True

    def _in_other_case(text: str) -> str:
        folder, name = posixpath.split(text)
        if not name or "\0" in text:
            return text
        if folder and not _posix_exists(folder):
            folder = _in_other_case(folder)
        try:
            others = [other for other in posix.listdir(folder or ".") if other.casefold() == name.casefold()]
        except OSError:
            others = []
        return posixpath.join(folder, others[0] if others else name)

    def _require_name(path: Any, translated: Any) -> None:
        if isinstance(translated, str) and NOT_IN_NAMES & set(posixpath.basename(translated)):
            raise OSError(errno.EINVAL, "the name is invalid on Windows", os.fspath(path))

    def _require_closed(path: Any, translated: str) -> None:
        """Raise the error of Windows if this process has a file open or mapped, or one in a folder."""
        real = posixpath.join(_realpath(posixpath.dirname(translated) or "."), posixpath.basename(translated))
        for real_path in (*_descriptors(), *_mapped()):
            if real_path == real or real_path.startswith(f"{real}/"):
                message = f"it is being used by another process: {real_path}"
                raise PermissionError(errno.EACCES, message, os.fspath(path))

    def _realpath(folder: str) -> str:
        descriptor = posix.open(folder, posix.O_RDONLY | posix.O_DIRECTORY)
        try:
            return posix.readlink(f"/proc/self/fd/{descriptor}")
        finally:
            posix.close(descriptor)

    def _descriptors() -> list[str]:
        found = []
        for name in posix.listdir("/proc/self/fd"):
            try:
                found.append(posix.readlink(f"/proc/self/fd/{name}"))
            except OSError:
                continue
        return found

    def _mapped() -> list[str]:
        with _open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            return [line.split(None, 5)[5].rstrip("\n") for line in maps if line.count(" /")]

    def _translated(function: Callable, count: int = 1) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            return function(*map(to_posix, arguments[:count]), *arguments[count:], **options)

        return call

    def _naming(function: Callable) -> Callable:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            _require_name(path, to_posix(path))
            return function(to_posix(path), *arguments, **options)

        return call

    def _removing(function: Callable) -> Callable:
        def call(path: Any, **options: Any) -> Any:
            _require_closed(path, to_posix(path))
            return function(to_posix(path), **options)

        return call

    def _rename(source: Any, target: Any) -> None:
        if _posix_exists(to_posix(target)):
            raise FileExistsError(errno.EEXIST, "already exists", os.fspath(source), None, os.fspath(target))
        _replace(source, target)

    def _replace(source: Any, target: Any) -> None:
        _require_name(target, to_posix(target))
        for path in (source, target):
            _require_closed(path, to_posix(path))
        if posixpath.isdir(to_posix(target)):
            raise PermissionError(errno.EACCES, "is a folder", os.fspath(target))
        posix.rename(to_posix(source), to_posix(target))

    def _os_open(path: Any, flags: int, mode: int = 0o777) -> int:
        real_path = to_posix(path)
        _require_name(path, real_path)
        if _is_folder(real_path):
            raise PermissionError(errno.EACCES, "is a folder", os.fspath(path))
        return posix.open(real_path, flags, mode)

    def _is_folder(real_path: str) -> bool:
        try:
            return (posix.stat(real_path).st_mode & 0o170000) == 0o040000
        except OSError:
            return False

    def _fsync(file: Any) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & posix.O_ACCMODE == posix.O_RDONLY:
            raise OSError(errno.EBADF, "opened for reading")
        posix.fsync(descriptor)

    class _Entry:
        """An `os.DirEntry` with a path of Windows."""

        def __init__(self, entry: "os.DirEntry[str]", folder: str) -> None:
            self._entry = entry
            self.name = entry.name
            self.path = ntpath.join(folder, entry.name)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._entry, name)

        def __fspath__(self) -> str:
            return self.path

    class _Scan:
        """The entries of a folder; a context."""

        def __init__(self, folder: Any = ".") -> None:
            self._folder = os.fspath(folder)
            self._entries = posix.scandir(to_posix(folder))

        def __enter__(self) -> "_Scan":
            return self

        def __exit__(self, *_: object) -> None:
            self._entries.close()

        def close(self) -> None:
            self._entries.close()

        def __iter__(self) -> "_Scan":
            return self

        def __next__(self) -> _Entry:
            return _Entry(next(self._entries), self._folder)

    _open = builtins.open

    def _text_open(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        real_path = to_posix(file)
        if not isinstance(real_path, int):
            if set(mode) & set("wax+"):
                _require_name(file, real_path)
            if _is_folder(real_path) and options.get("opener") is None:
                raise PermissionError(errno.EACCES, "is a folder", os.fspath(file))
        if "b" not in mode and len(arguments) < 2 and options.get("encoding") is None:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            caller = sys._getframe(2).f_globals.get("__name__", "") if caller == "pathlib" else caller
            if caller.startswith("grr_coca"):
                raise EncodingWarning(f"{file} is opened without an encoding")
        return _open(real_path, mode, *arguments, **options)

    _connect = sqlite3.connect

    def _sqlite(database: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(database, str) and database.startswith("file:"):
            return _connect(database.replace("file:///C:/", "file:///"), *arguments, **options)
        return _connect(to_posix(database) if database not in ("", ":memory:") else database, *arguments, **options)

    _prepare = multiprocessing.spawn.get_preparation_data

    def _preparation(name: str) -> dict[str, Any]:
        data = _prepare(name)
        for key in ("init_main_from_path", "orig_dir", "dir"):
            if key in data:
                data[key] = to_posix(data[key])
        return data

    def pretend() -> None:
        """Begin."""
        for name in MODULES:
            sys.modules[name] = None  # type: ignore[assignment]
        for name in OF_SYSTEM.split():
            if hasattr(os, name):
                delattr(os, name)
        for name in OF_SIGNAL.split():
            if hasattr(signal, name):
                delattr(signal, name)
        for name in ("stat", "lstat", "listdir", "access", "readlink", "chmod", "utime", "chdir", "truncate"):
            setattr(os, name, _translated(getattr(posix, name)))
        for name in ("link", "symlink"):
            setattr(os, name, _translated(getattr(posix, name), 2))
        for name in ("unlink", "remove", "rmdir"):
            setattr(os, name, _removing(getattr(posix, name)))
        os.mkdir = _naming(posix.mkdir)
        os.rename, os.replace = _rename, _replace
        os.open, os.fsync = _os_open, _fsync
        os.scandir = _Scan  # type: ignore[assignment,misc]
        os.getcwd = lambda: to_windows(posix.getcwd())
        for functions in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
            functions.clear()  # type: ignore[attr-defined]
        builtins.open = io.open = _text_open
        sqlite3.connect = sqlite3.dbapi2.connect = _sqlite
        ntpath.realpath = lambda path, *, strict=False: to_windows(posixpath.realpath(to_posix(path), strict=strict))
        os.path, os.sep, os.altsep = ntpath, "\\", "/"
        sys.modules["os.path"] = ntpath
        flavour = getattr(pathlib, "_windows_flavour", ntpath)  # an object of its own in Python 3.11
        flavour.is_supported = True
        for kind in (pathlib.PurePosixPath, pathlib.PosixPath):
            kind._flavour, kind.parser = flavour, ntpath
        for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
            if name in os.environ:
                os.environ[name] = to_windows(os.environ[name])
        os.environ["USERPROFILE"] = os.environ.get("HOME", "C:\\")
        os.linesep = "\r\n"
        if hasattr(os, "process_cpu_count"):  # since Python 3.13; it asks for the affinity
            os.process_cpu_count = os.cpu_count
        globber = getattr(glob, "_StringGlobber", None)  # Python 3.13 and 3.14 keep functions of the system
        if hasattr(globber, "lstat"):
            globber.lstat, globber.scandir = staticmethod(os.lstat), staticmethod(os.scandir)
        elif globber is not None:
            globber.lexists = staticmethod(ntpath.lexists)
            pathlib.Path.as_uri = lambda path: "file:///" + quote(path.as_posix(), "/:")  # it asks for the system
        reload(shutil)
        reload(tempfile)
        tempfile.TemporaryFile = tempfile.NamedTemporaryFile  # type: ignore[assignment]
        multiprocessing.set_start_method("spawn", force=True)
        multiprocessing.spawn.get_preparation_data = _preparation
        socket_name = multiprocessing.connection.arbitrary_address
        multiprocessing.connection.arbitrary_address = lambda family: to_posix(socket_name(family))
        warnings.filterwarnings("error", category=EncodingWarning)
        _translate_libraries()

    class _Program(subprocess.Popen):
        """A program that this process starts. One in Python has nothing of POSIX, too."""

        def __init__(self, command: Any, *arguments: Any, **options: Any) -> None:
            if isinstance(command, list) and sys.executable in command[:1] and "-c" not in command:
                position = next(i for i, argument in enumerate(command) if argument.endswith(".py"))
                command = [*command[:position], "-c", BARE, *map(to_posix, command[position:])]
            super().__init__(command, *arguments, **options)

    subprocess.Popen = _Program  # type: ignore[misc]

    def _translate_libraries() -> None:
        """Files that libraries open without Python."""
        import onnxruntime

        opened = onnxruntime.InferenceSession
        onnxruntime.InferenceSession = lambda path, *rest, **options: opened(to_posix(path), *rest, **options)
        import safetensors  # its parts for NumPy and PyTorch take these two from here

        safetensors.safe_open = _file_argument(safetensors.safe_open, 0)
        safetensors.serialize_file = _file_argument(safetensors.serialize_file, 1)
        from PIL import ImageFont

        font = ImageFont.core.getfont
        ImageFont.core.getfont = lambda path, *rest, **options: font(to_posix(path), *rest, **options)
        import ctypes

        load = ctypes._dlopen
        ctypes._dlopen = lambda name, *rest: load(to_posix(name), *rest)

    def _file_argument(function: Callable, position: int) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            given = list(arguments)
            given[position] = to_posix(given[position])
            return function(*given, **options)

        return call

    pretend()
