"""`grr-coca embed`: the verb, and files of embeddings with their keys, in formats that other programs read.

Shapes: N rows, E embedding width.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import tyro

import grr_coca
from grr_coca.cli.flags import CheckpointFlag, EngineFlag, ExcludeFlag, ImageArguments, require_batch_size
from grr_coca.cli.output import require_other, require_suffix, require_writable, write_output
from grr_coca.cli.progress import bars
from grr_coca.common.errors import UserError, on_one_line
from grr_coca.common.extras import require_extra
from grr_coca.common.files import read_lines
from grr_coca.infer.locate import locate_checkpoint
from grr_coca.infer.on_ray import Machines
from grr_coca.model.shipped_models import DEFAULT

if TYPE_CHECKING:
    import numpy as np

    from grr_coca.infer import Description
    from grr_coca.search.image_files import ImageFile

_SUFFIXES = (".safetensors", ".npy", ".parquet")
MAX_HEADER_BYTES = 100_000_000
"""Bytes of names and metadata that a safetensors reader accepts."""


def run(
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    checkpoint: CheckpointFlag = DEFAULT,
    images: ImageArguments = (),
    texts: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    exclude: ExcludeFlag = (),
    batch_size: int = 32,
    on: Annotated[Machines, tyro.conf.arg(metavar="this|ray")] = "this",
    engine: EngineFlag = "auto",
) -> int:
    """Embed images or texts as vectors of unit length. The dot product of two vectors is their similarity.

    Images that cannot be read are listed at the end. The exit code is 1 only if no image was embedded.

    Args:
        checkpoint: folder, name of a model (see `grr-coca models`), or OWNER/NAME on the Hugging Face hub.
        out: file to write: .safetensors or .parquet with keys inside, or .npy with keys in NAME.keys.txt beside it.
        images: image files, folders, patterns, .tar shards, or tables of images.
        texts: text file with one text per line, to embed texts instead of images.
        exclude: leave out what this pattern of .gitignore matches, such as "raw/" or "*.gif".
        batch_size: images or texts per batch.
        on: this machine, or the Ray cluster at RAY_ADDRESS, whose machines must see the same files.
        engine: onnx (on a CPU) or torch; auto chooses by a fixed rule.
    """
    if bool(images) == bool(texts):
        raise UserError("give either images or --texts FILE" + (", not both" if texts else " to embed"))
    for flag, is_given in (("--exclude", bool(exclude)), ("--on ray", on == "ray")):
        if is_given and texts is not None:
            raise UserError(f"{flag} is about images; leave it out to embed --texts")
    require_batch_size(batch_size)
    if on == "ray":
        require_extra("ray", "--on ray")
    _check_format(out)
    if texts is None:
        from grr_coca.cli.image_work import report_if_none_exists, search_for_images  # late: imports NumPy and Pillow

        found = search_for_images(images, exclude)
        folder = locate_checkpoint(checkpoint)
        code = report_if_none_exists(found)
        if code is not None:
            return code
        _check_keys(out, [file.name for file in found])
        _check_places(out, images)
        keys, vectors, code = (_embed_on_ray if on == "ray" else _embed_images)(found, folder, engine, batch_size)
    else:
        lines, folder = list(read_lines(texts).values()), locate_checkpoint(checkpoint)
        _check_keys(out, lines)
        _check_places(out, [texts])
        keys, vectors, code = lines, _embed_texts(lines, folder, engine, batch_size), 0
    if keys:
        write_vectors(out, keys, vectors)
        print(f"{len(vectors)} embeddings of {vectors.shape[1]} numbers are in {out}")
    return code


class VectorBuffer:
    """Keys and vectors of images that come batch by batch. The array has a row for each image that may come: a list of
    rows would take more than twice the memory."""

    def __init__(self, num_images: int) -> None:
        self.keys: list[str] = []
        self._num_images = num_images
        self._rows: np.ndarray | None = None

    def add(self, files: "list[ImageFile]", embeddings: "list[np.ndarray]") -> None:
        """Add the embeddings of some images."""
        import numpy as np

        if self._rows is None:
            self._rows = np.empty((self._num_images, len(embeddings[0])), np.float32)
        self._rows[len(self.keys) : len(self.keys) + len(embeddings)] = embeddings
        self.keys.extend(file.name for file in files)

    @property
    def vectors(self) -> "np.ndarray":
        """The embeddings of the images that came, N E."""
        import numpy as np

        return np.empty((0, 0), np.float32) if self._rows is None else self._rows[: len(self.keys)]


def _embed_images(
    found: "list[ImageFile]", checkpoint: Path, engine: str, batch_size: int
) -> "tuple[list[str], np.ndarray, int]":
    from grr_coca.cli.image_work import work_through

    model = grr_coca.load(checkpoint, engine=engine)
    collected = VectorBuffer(len(found))

    def embed(_: "list[ImageFile]", opened: list) -> "list[np.ndarray]":
        return list(model.embed_images(opened, batch_size=batch_size))

    model.warn_if_unfit()
    code = work_through(found, model, batch_size, "embedded", embed, collected.add, show_progress=True)
    return collected.keys, collected.vectors, code


def _embed_on_ray(
    found: "list[ImageFile]", checkpoint: Path, engine: str, batch_size: int
) -> "tuple[list[str], np.ndarray, int]":
    from grr_coca.cli.image_work import describe_on_ray

    collected = VectorBuffer(len(found))

    def take(files: "list[ImageFile]", described: "list[Description]") -> None:
        collected.add(files, [one.embedding for one in described])

    code = describe_on_ray(
        found,
        checkpoint,
        engine,
        captioning=None,
        batch_size=batch_size,
        label="embedded",
        take=take,
        show_progress=True,
    )
    return collected.keys, collected.vectors, code


def _embed_texts(lines: list[str], checkpoint: Path, engine: str, batch_size: int) -> "np.ndarray":
    model = grr_coca.load(checkpoint, engine=engine)
    with bars({"embedded": len(lines)}) as shown:
        return model.embed_texts(
            lines, batch_size=batch_size, on_progress=lambda done, _: shown.update("embedded", done, "")
        )


def _check_format(path: Path) -> None:
    """Raise an error if `write_vectors` cannot write this file. All three checks are made before the work begins.

    Raises:
        UserError: the suffix names no format, or a package for the format is missing.
    """
    if require_suffix(path, _SUFFIXES) == ".parquet":
        require_extra("parquet", f"{path}: writing Parquet")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")


def _check_keys(path: Path, keys: Sequence[str]) -> None:
    """Raise an error if a file of this format cannot hold so many keys.

    Raises:
        UserError: there are too many for the format.
    """
    if path.suffix.lower() == ".safetensors" and len(_as_header(keys)) > MAX_HEADER_BYTES // 2:
        raise UserError(f"{path}: {len(keys):,} keys are more than a safetensors file holds; use .parquet or .npy")


def _check_places(path: Path, inputs: Iterable[str | Path]) -> None:
    """Raise an error if an output file cannot be written, or would replace an input.

    Raises:
        UserError: it cannot, or would.
    """
    for place in (path, _keys_file(path)) if path.suffix.lower() == ".npy" else (path,):
        require_other(place, inputs)
        require_writable(place)


def _keys_file(path: Path) -> Path:
    """The file of keys beside a `.npy` file."""
    return path.with_suffix(".keys.txt")


def _as_header(keys: Sequence[str]) -> str:
    return json.dumps(list(keys))  # ASCII: a file name that is not UTF-8 is escaped


def write_vectors(path: Path, keys: Sequence[str], vectors: "np.ndarray") -> None:
    """Write N vectors of width E in 32-bit floating point, each with its key.

    | suffix | vectors | keys |
    |---|---|---|
    | `.safetensors` | tensor `embeddings` N E | metadata `keys`, a JSON list |
    | `.npy` | array N E | `NAME.keys.txt` beside it, one per line |
    | `.parquet` | column `embedding`, lists of E | column `key` |

    Raises:
        UserError: the disk is full, or there are too many keys for the format.
    """
    suffix = require_suffix(path, _SUFFIXES)
    if suffix == ".safetensors":
        _write_safetensors(path, keys, vectors)
    elif suffix == ".npy":
        # Bytes of a file name that are not UTF-8 stay unchanged. Line ends of any kind in a key are escaped.
        lines = "".join(on_one_line(key) + "\n" for key in keys).encode("utf-8", "surrogateescape")
        import numpy as np

        write_output(_keys_file(path), lambda file: file.write(lines))
        write_output(path, lambda file: np.save(file, vectors))
    else:
        _write_parquet(path, keys, vectors)


def _write_safetensors(path: Path, keys: Sequence[str], vectors: "np.ndarray") -> None:
    from safetensors.numpy import save

    _check_keys(path, keys)
    content = save({"embeddings": vectors}, metadata={"keys": _as_header(keys)})
    write_output(path, lambda file: file.write(content))


def _write_parquet(path: Path, keys: Sequence[str], vectors: "np.ndarray") -> None:
    import pyarrow
    import pyarrow.parquet

    def write(file: IO[bytes]) -> Any:
        # Parquet's strings are UTF-8: other bytes of a file name are written as \udc… escapes.
        names = [key.encode("utf-8", "backslashreplace").decode() for key in keys]
        flat = pyarrow.array(vectors.reshape(-1))
        rows = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        pyarrow.parquet.write_table(pyarrow.table({"key": names, "embedding": rows}), file)

    write_output(path, write)
