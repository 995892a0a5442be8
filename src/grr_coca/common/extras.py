"""Packages that only some uses need, and the commands that install them here.

The base installation brings what captioning, embedding, classification and search need. Extras bring other packages,
such as PyTorch.
"""

import json
import os
import shlex
import sys
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from grr_coca.common.errors import UserError

Extra = Literal[
    "torch",
    "train",
    "report",
    "study",
    "hub",
    "parquet",
    "milvus",
    "ray",
    "probe",
    "open-clip",
    "icons",
    "photos",
    "serve",
    "export",
    "mcp",
]

_IS_WINDOWS = os.name == "nt"

_TORCH = {"torch": "torch", "jaxtyping": "jaxtyping"}
_ICONS = {"resvg_py": "resvg-py", "rapidfuzz": "rapidfuzz", "fontTools": "fonttools", "brotli": "brotli"}
PACKAGES: dict[Extra, dict[str, str]] = {
    "torch": _TORCH,
    "train": {**_TORCH, "tensorboard": "tensorboard", "yaml": "pyyaml"},
    "report": {"matplotlib": "matplotlib"},
    "study": {**_TORCH, "scipy": "scipy", "matplotlib": "matplotlib", "yaml": "pyyaml"},
    "hub": {"huggingface_hub": "huggingface-hub"},
    "parquet": {"pyarrow": "pyarrow"},
    "milvus": {"pymilvus": "pymilvus"},
    "ray": {"ray": "ray"},
    "probe": {**_TORCH, "sklearn": "scikit-learn"},
    "open-clip": {**_TORCH, "ftfy": "ftfy"},
    "icons": _ICONS,
    "mcp": {**_ICONS, "mcp": "mcp"},
    "export": {**_TORCH, "onnx": "onnx", "onnxscript": "onnxscript"},
    "serve": {
        "fastapi": "fastapi",
        "uvicorn": "uvicorn",
        "python_multipart": "python-multipart",
        "prometheus_client": "prometheus-client",
    },
    "photos": {
        **_TORCH,
        "onnx": "onnx",
        "onnxscript": "onnxscript",
        "huggingface_hub": "huggingface-hub",
        "ftfy": "ftfy",
        "pillow_heif": "pillow-heif",
    },
}
"""The packages of each extra: import name → name to install."""


def require_extra(extra: Extra, purpose: str, unneeded: Collection[str] = ()) -> None:
    """Raise an error if packages of an extra are not installed. Nothing is imported.

    Args:
        extra: the name of the extra.
        purpose: what needs the extra, as the subject of the message, such as "training".
        unneeded: modules of the extra that this purpose does without.

    Raises:
        UserError: a package is missing; the message names it and the command that installs it.
    """
    missing = [name for module, name in PACKAGES[extra].items() if module not in unneeded and find_spec(module) is None]
    if missing:
        raise UserError(f"{purpose} needs {' and '.join(missing)}; {install_command(extra)}")


def install_command(extra: Extra) -> str:
    """The command that installs an extra, of the source or the wheel that this package was installed from.

    Never `pip install grr-coca[EXTRA]`: anybody may own that name where pip looks. If nothing tells where this package
    came from, the command names the packages of the extra.
    """
    installer = _installer()
    origin = _origin(extra)
    if origin is not None:
        return f"{installer} {origin}"
    if not installer.endswith("pip install"):  # a command that installs programs, not packages
        installer = f"{_quoted(sys.executable)} -m pip install"
    return f"{installer} {' '.join(PACKAGES[extra].values())}"


def _origin(extra: Extra) -> str | None:
    """The source, wheel or address of this package with an extra, as installers take it; None if it is not known, or no
    longer there."""
    if (clone := _clone()) is not None:
        place = "." if _is_current(clone) else str(clone)
        return f"-e {_quoted(f'{place}[{extra}]')}"
    told = json.loads(_told("direct_url.json") or "{}")  # PEP 610
    url = str(told.get("url", ""))
    if url.startswith("file:"):
        path = _file_of(url)
        return _quoted(f"{path}[{extra}]") if path.exists() else None
    if "vcs_info" in told:
        url = f"{told['vcs_info']['vcs']}+{url}@{told['vcs_info']['commit_id']}"
    return _quoted(f"grr-coca[{extra}] @ {url}") if url else None


def install_origin() -> str:
    """Where this package was installed from: `a clone`, the name of a wheel or folder, or an address."""
    if _clone() is not None:
        return "a clone"
    told = json.loads(_told("direct_url.json") or "{}")
    url = str(told.get("url", ""))
    if url.startswith("file:"):
        return _file_of(url).name
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if rest else "an unknown place"


def _file_of(url: str) -> Path:
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    return Path(url2pathname(urlsplit(url).path))


def _clone() -> Path | None:
    """The clone that this file lies in; None if it was copied into an environment."""
    clone = Path(__file__).parents[3]
    is_there = Path(__file__).parents[2] == clone / "src" and (clone / "pyproject.toml").is_file()
    return clone if is_there else None


def _told(name: str) -> str | None:
    """A file of the metadata of the installation."""
    import importlib.metadata  # late, as in `_file_of`: only messages need it

    try:
        return importlib.metadata.distribution("grr-coca").read_text(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _installer() -> str:
    """The command that installs into this environment."""
    environment = Path(sys.prefix)
    if (environment / "pipx_metadata.json").exists():
        return "pipx install --force"
    if (environment / "uv-receipt.toml").exists():
        return "uv tool install --force"
    return "uv pip install" if (_told("INSTALLER") or "").strip() == "uv" else "pip install"


def _is_current(folder: Path) -> bool:
    try:
        return folder.samefile(Path.cwd())
    except OSError:  # the current folder was removed
        return False


def _quoted(word: str) -> str:
    """A word for the shell of this system. That of Windows knows no single quotes."""
    return f'"{word}"' if _IS_WINDOWS else shlex.quote(word)
