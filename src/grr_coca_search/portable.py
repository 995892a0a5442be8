"""Export an index to a Parquet file, and create an index from such a file. This needs no model.

Each row describes an image: the values of its `Entry`, its embedding in half precision, its fields as JSON, and the
metadata from cameras and users. The header and the list of unreadable images are in the metadata of the Parquet file.
"""

import json
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import IO, Any

import numpy as np

from grr_coca.common.dict_to_dataclass import from_dict
from grr_coca.common.errors import UserError, require_extra
from grr_coca.common.outputs import write_output
from grr_coca.infer.calibration import CaptionConfidence
from grr_coca_search.entry import MAX_WIDTH, Entry, Failure, Header, Photo, Stamp, chunks, require_supported
from grr_coca_search.fields import FIELDS, names_of
from grr_coca_search.store import Changes, Store, find_store, make_store, remove_store

_METADATA = b"grr_coca.index"
_ROWS_PER_READ = 2048
_MAX_ROUNDING = 0.01
"""Maximum difference between 1 and the length of an embedding in half precision."""
_TEXTS = ("name", "root", "file", "digest", "caption")
_NUMBERS = ("size", "mtime_ns", "phash", "width", "height", "offset")
_OF_FILES = [FIELDS[name] for name in names_of("file") if name not in ("headline", "keywords")]
"""Fields from image files that also have a separate column, for other programs. The column `photo` contains all fields.
"""


def export_parquet(store: Store, path: Path) -> int:
    """Write the newest state of an index to a Parquet file, and return the number of images.

    The file is written under a temporary name, and replaces an existing file when it is complete.

    Raises:
        UserError: If pyarrow is not installed, the file cannot be written, or the index cannot be read.
    """
    require_extra("parquet", "exporting an index")
    import pyarrow
    import pyarrow.parquet

    count = 0

    def write(file: IO[bytes]) -> None:
        nonlocal count
        schema = _schema(store)
        with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
            for chunk in chunks(store.everything(), _ROWS_PER_READ):
                writer.write_table(pyarrow.table(_values(chunk, store.header.embed_dim), schema=schema))
                count += len(chunk)

    # The snapshot is the outer context, because it would blame the index for errors of the written file.
    with store.snapshot():
        write_output(path, write)
    return count


def import_parquet(path: Path, location: str) -> int:
    """Create an index from an exported file, and return the number of images.

    Args:
        path: File that `export_parquet` wrote.
        location: Location of the new index; see `open_store`.

    Raises:
        UserError: If pyarrow is not installed, if the file is corrupt, is not an exported index, or was written by a
            newer version, if the location already has an index or other content, or if the index cannot be written
            there. No unfinished index remains.
    """
    require_extra("parquet", "importing an index")
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
        metadata = json.loads((file.schema_arrow.metadata or {})[_METADATA])
        header = from_dict(Header, metadata["header"], f"{path}: header")
        failures = [_failure(*failure) for failure in metadata["failures"]]
        exclude = [str(pattern) for pattern in metadata.get("exclude", ())]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: a Parquet file, but not an index; pass a file from `grr-coca export index`"
        ) from error
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable Parquet file ({error}); pass a file from `grr-coca export index`"
        ) from error
    require_supported(path, header.version)
    if not 1 <= header.embed_dim <= MAX_WIDTH:
        raise UserError(
            f"{path}: corrupt: the width of embeddings must be from 1 to {MAX_WIDTH:,}, but is {header.embed_dim}; "
            "export the index again"
        )
    existing = find_store(location)
    if existing is not None:
        existing.close()
        raise UserError(f"{location}: already has an index; pass another location")
    with make_store(location, header) as store:
        store.claim()
        try:
            store.commit(Changes(failed=failures, notes={"imported": "yes", "exclude": json.dumps(exclude)}))
            for images in _read_images(file, header.embed_dim, path):
                store.commit(Changes(added=images))
            return len(store)
        except BaseException:
            remove_store(location)  # an unfinished index would look like a complete one
            raise


def _read_images(file: Any, width: int, path: Path) -> Iterator[list[tuple[Entry, np.ndarray]]]:
    import pyarrow

    try:
        for batch in file.iter_batches(_ROWS_PER_READ):
            yield list(_rows(batch.to_pydict(), width))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: corrupt ({error}); export the index again, or restore the file from a copy"
        ) from error


def _schema(store: Store) -> Any:
    import pyarrow

    header = store.header
    failures = [(f.name, f.root, f.stamp, f.message) for f in store.failures()]
    metadata = json.dumps({"header": vars(header), "failures": failures, "exclude": store.excluded()})
    vector = pyarrow.field("embedding", pyarrow.list_(pyarrow.float16(), header.embed_dim))
    fields = [pyarrow.field(name, kind) for name, kind, _ in _columns()]
    return pyarrow.schema([*fields, vector], metadata={_METADATA: metadata})


def _columns() -> list[tuple[str, Any, Callable[[Entry], Any]]]:
    """Return all columns of a file except the embeddings.

    Each column has a name, a type, and a function that returns its value for an entry.
    """
    import pyarrow

    text, texts = pyarrow.string(), pyarrow.list_(pyarrow.string())
    return [
        *((name, text, lambda entry, name=name: _encode_text(getattr(entry, name))) for name in _TEXTS),
        *((name, pyarrow.int64(), attrgetter(f"stamp.{name}" if name in Stamp._fields else name)) for name in _NUMBERS),
        ("fields", text, lambda entry: json.dumps(dict(entry.fields))),
        # The column `photo` has the complete metadata, for importing. The columns after it are for other programs.
        ("photo", text, lambda entry: entry.photo and json.dumps(entry.photo.to_dict())),
        *(
            (
                field.name,
                text if field.kind == "text" else pyarrow.float64(),
                lambda entry, name=field.name: entry.photo and entry.photo.fields.get(name),
            )
            for field in _OF_FILES
        ),
        ("keywords", texts, lambda entry: entry.photo and list(entry.photo.keywords)),
        ("tags", texts, lambda entry: list(entry.tags)),
        ("look", pyarrow.binary(), attrgetter("pixel_signature")),
        ("confidence", pyarrow.float64(), attrgetter("caption_confidence.confidence")),
        ("unfamiliar", pyarrow.bool_(), attrgetter("caption_confidence.unfamiliar")),
    ]


def _values(images: list[tuple[Entry, np.ndarray]], width: int) -> dict[str, Any]:
    import pyarrow

    values: dict[str, Any] = {name: [value_of(entry) for entry, _ in images] for name, _, value_of in _columns()}
    flat = np.stack([np.asarray(vector, np.float16) for _, vector in images]).reshape(-1)
    return values | {"embedding": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat, pyarrow.float16()), width)}


def _rows(columns: dict[str, list], width: int) -> Iterator[tuple[Entry, np.ndarray]]:
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        vector = np.array(row["embedding"], np.float16)
        if vector.shape != (width,):
            raise ValueError(f"an embedding must have {width} numbers, got the shape {vector.shape}")
        if not abs(float(np.linalg.norm(vector.astype(np.float32))) - 1) < _MAX_ROUNDING:  # also true for NaN
            raise ValueError("an embedding does not have unit length")
        texts: dict[str, Any] = {name: _decode_text(row[name]) for name in _TEXTS}
        numbers = {name: row[name] for name in _NUMBERS}
        fields = json.loads(row["fields"])
        if not isinstance(fields, dict) or not all(isinstance(number, int | None) for number in numbers.values()):
            raise ValueError("a cell has the wrong type")
        entry = Entry(
            **texts,
            stamp=Stamp(numbers.pop("size"), numbers.pop("mtime_ns")),
            fields=fields,
            photo=None if row["photo"] is None else Photo.from_dict(json.loads(row["photo"])),
            caption_confidence=CaptionConfidence(*(row[name] for name in CaptionConfidence._fields)),
            tags=tuple(row.get("tags") or ()),  # files from older versions do not have `tags` and `look`
            pixel_signature=row.get("look") or b"",
            **numbers,
        )
        yield entry, vector


def _failure(name: str, root: str, stamp: list[int] | None, message: str) -> Failure:
    return Failure(name, root, None if stamp is None else Stamp(*stamp), message)


def _encode_text(text: str) -> str:
    """Convert a text to valid UTF-8, which Parquet requires.

    A file name that is not UTF-8 is escaped as JSON, and marked by a null character in front. `_decode_text` restores
    it.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return "\0" + json.dumps(text)
    return text


def _decode_text(text: str) -> str:
    return json.loads(text[1:]) if text.startswith("\0") else text
