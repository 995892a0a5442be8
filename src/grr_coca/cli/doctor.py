"""`grr-coca doctor`: report installed and missing packages, and check the bundled files.

The module imports as little as possible, so that it also works in an incomplete installation.
"""

import base64
import hashlib
import importlib
import importlib.metadata
import json as json_format
import locale
import os
import platform
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import grr_coca
from grr_coca.cli.flags import Flag
from grr_coca.common.errors import PACKAGES, UserError, install_command, is_clone
from grr_coca.common.files import file_sha256, read_json, read_manifest, user_cache
from grr_coca.common.threads import num_threads
from grr_coca.infer.load import choose_engine
from grr_coca.model.checkpoint_files import DEFAULT, FOLDER, read_config

_BASE_PACKAGES = ("numpy", "pillow", "tokenizers", "safetensors", "onnxruntime", "tyro", "rich", "filelock", "pathspec")
_CPU_FEATURES = ("SSE42", "AVX2", "FMA3", "AVX512F", "AVX512VNNI", "AVX512_SPR", "NEON", "ASIMDDP", "SVE")
"""Processor features that affect speed, by NumPy's names."""
_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS", "HF_HUB_OFFLINE", "XDG_CACHE_HOME")
_MAX_SHOWN = 5


def run(json: Flag = False) -> int:
    """Show versions, engine, processor, threads, caches and extras, and check the bundled files by their hashes.

    Include the output in bug reports. The only paths in it are those of the cache, of Python, and of a clone. The exit
    code is 2 if a bundled file is corrupt or missing.

    Args:
        json: print one JSON object.
    """
    corrupt = list(_corrupt_files())
    config_file = FOLDER / DEFAULT / "config.json"
    config = read_config(read_json(config_file)["model"], str(config_file))
    report = {
        "grr-coca": f"{grr_coca.__version__}, from a {'clone' if is_clone() else 'package'}",
        "python": f"{platform.python_version()} ({platform.python_implementation()}, {platform.architecture()[0]})",
        "system": platform.platform(),
        "processor": " ".join([platform.machine(), *_cpu_features()]),
        "threads": f"{num_threads()} of {os.cpu_count()}",
        "settings": " ".join(f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ) or "none",
        "encodings": f"{sys.stdout.encoding}, files {locale.getpreferredencoding(False)}",
        "sqlite": sqlite3.sqlite_version,
        "engine": f"{choose_engine(FOLDER / DEFAULT, config)} for {DEFAULT}",
        "packages": {name: _version(name) or "missing" for name in _BASE_PACKAGES},
        "extras": {
            extra: ", ".join(f"{name} {_version(name) or '(missing)'}" for name in packages.values())
            for extra, packages in PACKAGES.items()
        },
        "missing": {
            extra: install_command(extra)
            for extra, packages in PACKAGES.items()
            if not all(map(_version, packages.values()))
        },
        "cache": _folder_sizes(user_cache()),
        "files": f"corrupt or missing: {', '.join(corrupt)}" if corrupt else "intact",
    }
    print(json_format.dumps(report) if json else "\n".join(_format_report(report)))
    if corrupt:
        more = f" and {len(corrupt) - _MAX_SHOWN} more" if len(corrupt) > _MAX_SHOWN else ""
        raise UserError(f"{', '.join(corrupt[:_MAX_SHOWN])}{more}: corrupt or missing; install grr-coca again")
    return 0


def _format_report(report: Mapping[str, object]) -> Iterator[str]:
    for name, value in report.items():
        if not isinstance(value, Mapping):
            yield f"{name:<11}{value}"
            continue
        yield f"{name:<11}{'none' if not value else ''}".rstrip()
        width = max(map(len, value), default=0)
        yield from (f"  {key:<{width}}  {text}" for key, text in value.items())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_features() -> list[str]:
    try:
        features = importlib.import_module("numpy._core._multiarray_umath").__cpu_features__
    except (ImportError, AttributeError):  # NumPy 2 has only a private name for it
        return []
    return [name for name in _CPU_FEATURES if features.get(name)]


def _folder_sizes(cache: Path) -> dict[str, str]:
    """Return the size of each folder in the cache, by path."""
    folders = sorted(path for path in cache.iterdir() if path.is_dir()) if cache.is_dir() else []
    return {str(folder): f"{_folder_bytes(folder) / 1e6:,.1f} MB" for folder in folders}


def _folder_bytes(folder: Path) -> int:
    return sum((Path(above) / name).lstat().st_size for above, _, names in os.walk(folder) for name in names)


def _corrupt_files() -> Iterator[str]:
    """Yield the bundled files that are missing, or differ from the installation record or from a manifest."""
    for folder in sorted(path.parent for path in FOLDER.glob("*/manifest.json")):
        try:
            listed = read_manifest(folder)
        except UserError:
            yield f"{folder.name}/manifest.json"
            continue
        for name, (_, sha256) in listed.items():
            path = folder / name
            if not path.is_file() or file_sha256(path) != sha256:
                yield f"{folder.name}/{name}"
    if not (FOLDER / DEFAULT / "manifest.json").is_file():
        yield f"{DEFAULT}/manifest.json"
    yield from _corrupt_installed_files()


def _corrupt_installed_files() -> Iterator[str]:
    """Yield the files that are missing, or differ from the record of an installed wheel. A clone has no such record."""
    try:
        files = importlib.metadata.distribution("grr-coca").files or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.hash is None or file.hash.mode != "sha256" or not file.parts[0].isidentifier():
            continue
        path = Path(str(file.locate()))
        if path.parent.parent == FOLDER:
            continue  # the manifest checks this file
        content = path.read_bytes() if path.is_file() else b""
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        if digest != file.hash.value:
            yield file.as_posix()
