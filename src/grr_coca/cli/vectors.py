"""Files of embeddings with their keys, in formats that other programs can read.

Shapes: N rows, E embedding width.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from grr_coca.cli.output import require_other, require_suffix, require_writable, write_output
from grr_coca.errors import UserError
from grr_coca.extras import require_extra

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".npy", ".parquet")
MAX_HEADER = 100_000_000
"""The most bytes of names and metadata that a safetensors reader accepts."""


def check_format(path: Path) -> None:
    """Make sure, before the work begins, that `write_vectors` can write this file.

    Raises:
        UserError: the suffix is not that of a format, or a package for the format is missing.
    """
    if require_suffix(path, SUFFIXES) == ".parquet":
        require_extra("parquet", f"{path}: writing Parquet")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")


def check_keys(path: Path, keys: Sequence[str]) -> None:
    """Make sure, before the work begins, that a file can hold these keys.

    Raises:
        UserError: there are too many for the format.
    """
    if path.suffix.lower() == ".safetensors" and len(_in_header(keys)) > MAX_HEADER // 2:
        raise UserError(f"{path}: {len(keys):,} keys are more than a safetensors file holds; use .parquet or .npy")


def check_places(path: Path, inputs: Iterable[str | Path]) -> None:
    """Make sure, before the work begins, that the files can be written, and take the place of no input.

    Raises:
        UserError: they cannot, or do.
    """
    for place in (path, _keys_file(path)) if path.suffix.lower() == ".npy" else (path,):
        require_other(place, inputs)
        require_writable(place)


def _keys_file(path: Path) -> Path:
    """Beside a `.npy` file."""
    return path.with_suffix(".keys.txt")


def _in_header(keys: Sequence[str]) -> str:
    return json.dumps(list(keys))  # ASCII: a file name that is not UTF-8 is escaped


def write_vectors(path: Path, keys: Sequence[str], vectors: "Tensor") -> None:
    """Write N vectors of width E in 32-bit floating point, each with its key.

    | suffix | vectors | keys |
    |---|---|---|
    | `.safetensors` | tensor `embeddings` N E | metadata `keys`, a JSON list |
    | `.npy` | array N E | `NAME.keys.txt` beside it, one per line |
    | `.parquet` | column `embedding`, lists of E | column `key` |

    Raises:
        UserError: the disk is full, or there are too many keys for the format.
    """
    suffix = require_suffix(path, SUFFIXES)
    if suffix == ".safetensors":
        _write_safetensors(path, keys, vectors)
    elif suffix == ".npy":
        # Bytes of a file name that are not UTF-8 stay unchanged. A line end is escaped, so that a key stays on its
        # line.
        lines = "".join(key.replace("\n", "\\n") + "\n" for key in keys).encode("utf-8", "surrogateescape")
        write_output(_keys_file(path), lambda file: file.write(lines))
        write_output(path, lambda file: np.save(file, vectors.numpy()))
    else:
        _write_parquet(path, keys, vectors)


def _write_safetensors(path: Path, keys: Sequence[str], vectors: "Tensor") -> None:
    from safetensors.torch import save

    check_keys(path, keys)
    content = save({"embeddings": vectors.contiguous()}, metadata={"keys": _in_header(keys)})
    write_output(path, lambda file: file.write(content))


def _write_parquet(path: Path, keys: Sequence[str], vectors: "Tensor") -> None:
    import pyarrow
    import pyarrow.parquet

    def write(file: IO[bytes]) -> Any:
        # Parquet's strings are UTF-8: other bytes of a file name are written as \udc… escapes.
        names = [key.encode("utf-8", "backslashreplace").decode() for key in keys]
        flat = pyarrow.array(vectors.numpy().reshape(-1))
        rows = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        pyarrow.parquet.write_table(pyarrow.table({"key": names, "embedding": rows}), file)

    write_output(path, write)
