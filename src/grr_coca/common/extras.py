"""Packages that only some uses need, and the commands that install them.

`pip install grr-coca` installs what captioning, embedding, classification and search need. Extras install the other
packages, such as PyTorch.
"""

from collections.abc import Collection
from importlib.util import find_spec
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

_TORCH = {"torch": "torch", "jaxtyping": "jaxtyping"}
_ICONS = {"resvg_py": "resvg-py", "rapidfuzz": "rapidfuzz", "fontTools": "fonttools", "brotli": "brotli"}
PACKAGES: dict[Extra, dict[str, str]] = {
    "torch": _TORCH,
    "train": {**_TORCH, "tensorboard": "tensorboard", "yaml": "pyyaml"},
    "report": {"matplotlib": "matplotlib", "jinja2": "jinja2"},
    "study": {**_TORCH, "scipy": "scipy", "matplotlib": "matplotlib", "jinja2": "jinja2", "yaml": "pyyaml"},
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
        "filelock": "filelock",
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
        raise UserError(f"{purpose} needs {' and '.join(missing)}; pip install 'grr-coca[{extra}]'")
