"""Write embeddings with their keys to files, in common formats.

Shapes: N rows, E embedding width.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grr_coca.common.errors import UserError, escape_control_chars, require_extra
from grr_coca.common.outputs import require_not_an_input, require_suffix, require_writable, write_output

if TYPE_CHECKING:
    import numpy as np

    from grr_coca.data.image_files import ImageFile

_SUFFIXES = (".safetensors", ".npy", ".parquet")
MAX_HEADER_BYTES = 100_000_000
"""Maximum total size, in bytes, of the names and metadata in a file that readers of safetensors accept."""


class VectorBuffer:
    """Keys and vectors of images, which are added batch by batch.

    The array is allocated for all images at once, because a list of rows would take more than twice the memory.
    """

    def __init__(self, num_images: int) -> None:
        self.keys: list[str] = []
        self._num_images = num_images
        self._rows: np.ndarray | None = None

    def add(self, files: "list[ImageFile]", embeddings: "list[np.ndarray]") -> None:
        """Add the embeddings of one or more images, one embedding per image."""
        import numpy as np

        if self._rows is None:
            self._rows = np.empty((self._num_images, len(embeddings[0])), np.float32)
        self._rows[len(self.keys) : len(self.keys) + len(embeddings)] = embeddings
        self.keys.extend(file.name for file in files)

    @property
    def vectors(self) -> "np.ndarray":
        """Embeddings of the images that have been added, N E."""
        import numpy as np

        return np.empty((0, 0), np.float32) if self._rows is None else self._rows[: len(self.keys)]


def check_format(path: Path) -> None:
    """Check that `write_vectors` supports a file's format, before the work begins.

    Raises:
        UserError: If the suffix is not a supported format, a package for the format is missing, or the path is a
            folder.
    """
    if require_suffix(path, _SUFFIXES) == ".parquet":
        require_extra("parquet", f"{path}: writing Parquet")
    if path.is_dir():
        raise UserError(f"{path}: expected a file, found a folder; pass a file name")


def check_output(path: Path, keys: Sequence[str], inputs: Iterable[str | Path]) -> None:
    """Check that a file of vectors can contain all keys, can be written, and does not replace an input.

    The file of keys next to a `.npy` file is also checked. The folder of the files is created if it does not exist.

    Raises:
        UserError: If there are too many keys for the format, a file cannot be written, or a file is an input.
    """
    _require_room(path, keys)
    for place in (path, _keys_file(path)) if path.suffix.lower() == ".npy" else (path,):
        require_not_an_input(place, inputs)
        require_writable(place)


def _require_room(path: Path, keys: Sequence[str]) -> None:
    if path.suffix.lower() == ".safetensors" and len(_format_header(keys)) > MAX_HEADER_BYTES // 2:
        raise UserError(f"{path}: too many keys for a safetensors file ({len(keys):,}); use .parquet or .npy")


def _keys_file(path: Path) -> Path:
    """Return the file of keys next to a `.npy` file."""
    return path.with_suffix(".keys.txt")


def _format_header(keys: Sequence[str]) -> str:
    return json.dumps(list(keys))  # ASCII, so that a file name that is not UTF-8 is escaped


def write_vectors(path: str | Path, keys: Sequence[str], vectors: "np.ndarray") -> None:
    """Write N vectors of width E in fp32, each with its key. The suffix determines the format:

    | suffix | vectors | keys |
    |---|---|---|
    | `.safetensors` | tensor `embeddings` N E | metadata `keys`, a JSON list |
    | `.npy` | array N E | `NAME.keys.txt` next to it, one per line |
    | `.parquet` | column `embedding`, lists of E | column `key` |

    Args:
        path: The file, which is replaced if it exists.
        keys: Key of each vector.
        vectors: The vectors, as an array with the shape N E and the type float32.

    Raises:
        UserError: If the suffix is not a supported format, the disk is full or cannot be written to, or there are too
            many keys for the format.
    """
    path = Path(path)
    suffix = require_suffix(path, _SUFFIXES)
    if suffix == ".safetensors":
        from safetensors.numpy import save

        _require_room(path, keys)
        content = save({"embeddings": vectors}, metadata={"keys": _format_header(keys)})
        write_output(path, lambda file: file.write(content))
    elif suffix == ".npy":
        import numpy as np

        # Bytes of a file name that are not UTF-8 stay unchanged. All line ends in a key are escaped.
        lines = "".join(escape_control_chars(key) + "\n" for key in keys).encode("utf-8", "surrogateescape")
        write_output(_keys_file(path), lambda file: file.write(lines))
        write_output(path, lambda file: np.save(file, vectors))
    else:
        import pyarrow
        import pyarrow.parquet

        # Parquet strings are UTF-8, so other bytes of a file name are written as \udc… escapes.
        names = [key.encode("utf-8", "backslashreplace").decode() for key in keys]
        rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), vectors.shape[1])
        table = pyarrow.table({"key": names, "embedding": rows})
        write_output(path, lambda file: pyarrow.parquet.write_table(table, file))
