"""Optional packages, and the commands that install them here.

The base installation has the packages for captioning, embedding, classification and search. Extras install others,
such as PyTorch.
"""

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
    "s3",
    "wandb",
    "mlflow",
    "milvus",
    "ray",
    "probe",
    "open-clip",
    "timm",
    "transformers",
    "icons",
    "codemod",
    "photos",
    "serve",
    "export",
    "mcp",
]

_ROOT = Path(__file__).parents[3]

_TORCH = {"torch": "torch", "jaxtyping": "jaxtyping"}
_ICONS = {"resvg_py": "resvg-py", "rapidfuzz": "rapidfuzz", "fontTools": "fonttools", "brotli": "brotli"}
PACKAGES: dict[Extra, dict[str, str]] = {
    "torch": _TORCH,
    "train": {**_TORCH, "tensorboard": "tensorboard", "yaml": "pyyaml"},
    "report": {"matplotlib": "matplotlib"},
    "study": {**_TORCH, "scipy": "scipy", "matplotlib": "matplotlib", "yaml": "pyyaml"},
    "hub": {"huggingface_hub": "huggingface-hub"},
    "parquet": {"pyarrow": "pyarrow"},
    "s3": {"fsspec": "fsspec", "aiohttp": "aiohttp", "s3fs": "s3fs"},
    "wandb": {"wandb": "wandb"},
    "mlflow": {"mlflow": "mlflow-skinny"},
    "milvus": {"pymilvus": "pymilvus"},
    "ray": {"ray": "ray"},
    "probe": {**_TORCH, "sklearn": "scikit-learn"},
    "open-clip": {**_TORCH, "ftfy": "ftfy"},
    "timm": {**_TORCH, "timm": "timm"},
    "transformers": {**_TORCH, "transformers": "transformers", "huggingface_hub": "huggingface-hub"},
    "icons": _ICONS,
    "codemod": {**_ICONS, "ast_grep_py": "ast-grep-py"},
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
    """Check that the packages of an extra are installed. Nothing is imported.

    Args:
        extra: The name of the extra.
        purpose: Use that needs the extra, as the subject of the message, such as "training".
        unneeded: Modules of the extra that this purpose does not need.

    Raises:
        UserError: If a package is missing; the message names it and the command that installs it.
    """
    missing = [name for module, name in PACKAGES[extra].items() if module not in unneeded and find_spec(module) is None]
    if missing:
        raise UserError(f"{purpose} needs {' and '.join(missing)}; {install_command(extra)}")


def install_command(extra: Extra) -> str:
    """Return the command that installs the packages of an extra, for messages.

    It never contains `pip install grr-coca[EXTRA]`: another project may own that name in pip's index. In a clone,
    the command installs the extra of the clone, elsewhere the packages of the extra.
    """
    if is_clone():
        return f'pip install -e "{_ROOT}[{extra}]"'
    return f"pip install {' '.join(PACKAGES[extra].values())}"


def is_clone() -> bool:
    """Return whether this file is in a clone of the repository, not in a copy within an environment."""
    return Path(__file__).parents[2] == _ROOT / "src" and (_ROOT / "pyproject.toml").is_file()
