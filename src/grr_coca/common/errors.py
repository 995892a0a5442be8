"""Errors that users can fix, such as missing optional packages, and helpers that make messages safe to print."""

import difflib
import logging
import os
import re
import shlex
import sys
from collections.abc import Collection, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

NOTES = logging.getLogger("grr_coca.notes")
"""Logger for notes to users about choices and delays, such as downloads. The command line prints these notes."""
_MAX_COMPARED = 200
"""Maximum number of characters of an unknown name that are compared with other names. Untrusted input can be megabytes
long."""
_MAX_LISTED = 40
"""Maximum number of valid names that a message lists. A model can have hundreds of names of parameters."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters, line ends, and marks that change the direction of the text after them."""


class UserError(ValueError):
    """Invalid input or incorrect use. The message names the file, key or value, and how to fix it.

    The command line prints only the message, without a traceback, and exits with code 2.
    """


class DivergedError(UserError):
    """Divergence of training: the loss or the gradients are not finite."""


class CorruptDataError(UserError):
    """Corruption of a file: its content is incomplete, or differs from the content that was written."""


class DiskError(UserError):
    """Failure to write, because a disk is full or not writable. The message names the path."""


class Interruption(Exception):  # noqa: N818 (not an error)
    """Stop of a run by a signal, after the run has saved its state. `number` is the number of the signal."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(number, message)  # other processes rebuild the exception from these arguments
        self.number = number
        self._message = message

    def __str__(self) -> str:
        return self._message


def suggest_name(name: str, valid: Iterable[str]) -> str:
    """Return a hint for an unknown name: `did you mean 'x'?` with the most similar valid name.

    If no valid name is similar, the hint lists at most `_MAX_LISTED` of them: `valid names: x, y`.
    """
    valid = sorted(valid)
    guess = difflib.get_close_matches(name[:_MAX_COMPARED], valid, n=1, cutoff=0.5)
    if guess:
        return f"did you mean '{guess[0]}'?"
    more = f" and {len(valid) - _MAX_LISTED:,} more" if len(valid) > _MAX_LISTED else ""
    return f"valid names: {', '.join(valid[:_MAX_LISTED])}{more}" if valid else "no names are available"


def suggest_multiples(number: int, factor: int) -> str:
    """Return advice about a number that is not a multiple of a factor: to use the nearest positive multiples.

    For a factor of 4, the advice is `use 4 or 8` if the number is 6, and `use 4` if it is below 4.
    """
    lower = number // factor * factor
    return f"use {lower} or {lower + factor}" if lower > 0 else f"use {factor}"


def count_of(number: int, noun: str) -> str:
    """Return a number and its noun, to which an s is added unless the number is 1: `1 image`, `2,000 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def escape_control_chars(text: str) -> str:
    """Escape line ends, control characters and marks that change the text direction.

    File names from untrusted sources can contain all of these.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not blank, or the name of its type if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def make_printable(text: str) -> str:
    r"""Escape the characters of a message that `escape_control_chars` escapes, except line feeds (`\n`)."""
    return "\n".join(map(escape_control_chars, text.split("\n")))


def print_warnings() -> None:
    """Print logged warnings and errors, and the messages of `NOTES`, on standard error.

    If the root logger already has handlers, these handlers and the level of the root logger are not changed.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    NOTES.setLevel(logging.INFO)


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return make_printable(super().format(record))


# --- Optional packages. The base installation captions, embeds, classifies and searches; extras install other packages

Extra = Literal[
    "torch", "train", "report", "study", "hub", "parquet", "s3", "wandb", "mlflow", "milvus", "ray", "probe",
    "open-clip", "timm", "transformers", "icons", "codemod", "photos", "serve", "export", "mcp",
]  # fmt: skip

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
"""Packages of each extra, as a map from the import name of a package to the name by which it is installed."""


def require_extra(extra: Extra, purpose: str, unneeded: Collection[str] = ()) -> None:
    """Check that the packages of an extra are installed. They are not imported.

    Args:
        extra: Name of the extra.
        purpose: Task that needs the extra, as the subject of the message, such as "training".
        unneeded: Import names of packages of the extra that are not needed for the purpose.

    Raises:
        UserError: If packages are missing. The message names them, and the command that installs the extra.
    """
    missing = [name for module, name in PACKAGES[extra].items() if module not in unneeded and find_spec(module) is None]
    if missing:
        raise UserError(f"{purpose} needs {', '.join(missing)}; run: {install_command(extra)}")


def install_command(extra: Extra) -> str:
    """Return the command that installs the packages of an extra, for messages.

    In a clone, the command installs the clone with the extra; elsewhere, it installs the packages of the extra. The
    command is never `pip install grr-coca[EXTRA]`, because another project may own that name in pip's index.
    """
    if is_clone():
        return pip_install_command("-e", f"{_ROOT}[{extra}]")
    return pip_install_command(*PACKAGES[extra].values())


def pip_install_command(*arguments: str) -> str:
    """Return the command that installs packages for the running interpreter with pip, for messages.

    If the folder of the interpreter comes first in `PATH`, which is the case in an activated environment, the
    interpreter is written as `python`. Otherwise, its full path is written. Arguments are quoted for POSIX shells.
    """
    first = os.environ.get("PATH", "").split(os.pathsep)[0]
    python = "python" if Path(first) == Path(sys.executable).parent else sys.executable
    return shlex.join([python, "-m", "pip", "install", *arguments])


def is_clone() -> bool:
    """Return whether this file belongs to a clone of the repository, not to a copy in an environment."""
    return Path(__file__).parents[2] == _ROOT / "src" and (_ROOT / "pyproject.toml").is_file()
