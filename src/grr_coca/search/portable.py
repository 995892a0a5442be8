"""An index as a Parquet file: everything that it holds, so that it can be made again anywhere without the model.

A row is a picture: the values of its `Entry`, its embedding in half precision, and the columns of its table as JSON.
The header and the pictures that could not be read are in the metadata of the file.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import numpy as np

from grr_coca.errors import UserError
from grr_coca.extras import require_extra
from grr_coca.search.entry import VERSION, Entry, Failure, Header, Stamp, pieces
from grr_coca.search.index import make_store, open_store, remove_store
from grr_coca.search.store import Changes, Store
from grr_coca.structure import from_dict

METADATA = b"grr_coca.index"
ROWS_AT_ONCE = 2048
TEXTS = ("name", "root", "file", "digest", "caption")
NUMBERS = ("size", "mtime_ns", "phash", "width", "height")


def export_parquet(store: Store, file: IO[bytes]) -> int:
    """Write an index to a file that is open for writing. Returns the number of pictures.

    Raises:
        UserError: pyarrow is not installed.
    """
    require_extra("parquet", "exporting an index")
    import pyarrow
    import pyarrow.parquet

    with store.snapshot():
        schema = _schema(store)
        count = 0
        with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            for piece in pieces(store.everything(), ROWS_AT_ONCE):
                writer.write_table(pyarrow.table(_columns(piece, store.header.embed_dim), schema=schema))
                count += len(piece)
    return count


def import_parquet(path: Path, location: str) -> int:
    """Make an index from an exported file. Returns the number of pictures.

    Raises:
        UserError: the file is damaged or no exported index, a newer version wrote it, there is an index already, or the
            disk is full. No part of an index stays behind.
    """
    require_extra("parquet", "importing an index")
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        metadata = json.loads((file.schema_arrow.metadata or {})[METADATA])
        header = from_dict(Header, metadata["header"], f"{path}: header")
        failures = [_failure(*failure) for failure in metadata["failures"]]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: a Parquet file, and not an index that grr-coca export index wrote") from error
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a Parquet file that can be read ({error})") from error
    if header.version > VERSION:
        raise UserError(f"{path}: written by a newer grr-coca (format {header.version}; this one reads {VERSION})")
    if header.embed_dim < 1:
        raise UserError(f"{path}: damaged (embeddings of {header.embed_dim} numbers)")
    existing = open_store(location, is_optional=True)
    if existing is not None:
        existing.close()
        raise UserError(f"{location}: there is an index already; give another place")
    with closing(make_store(location, header)) as store:
        store.claim()
        try:
            store.commit(Changes(failed=failures))
            for pictures in _read_pictures(file, header.embed_dim, path):
                store.commit(Changes(added=pictures))
            return len(store)
        except BaseException:
            remove_store(location)  # half an index would pass for a whole one
            raise


def _read_pictures(file: Any, width: int, path: Path) -> Iterator[list[tuple[Entry, np.ndarray]]]:
    import pyarrow

    try:
        for batch in file.iter_batches(ROWS_AT_ONCE):
            yield list(_rows(batch.to_pydict(), width))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); export the index again, or take the file from a copy") from error


def _schema(store: Store) -> Any:
    import pyarrow

    header = store.header
    failures = [(f.name, f.root, f.stamp, f.message) for f in store.failures()]
    metadata = json.dumps({"header": vars(header), "failures": failures})
    texts = [pyarrow.field(name, pyarrow.string()) for name in TEXTS]
    numbers = [pyarrow.field(name, pyarrow.int64()) for name in (*NUMBERS, "offset")]
    vector = pyarrow.field("embedding", pyarrow.list_(pyarrow.float16(), header.embed_dim))
    fields = [*texts, *numbers, pyarrow.field("fields", pyarrow.string()), vector]
    return pyarrow.schema(fields, metadata={METADATA: metadata})


def _columns(pictures: list[tuple[Entry, np.ndarray]], width: int) -> dict[str, Any]:
    import pyarrow

    columns: dict[str, Any] = {name: [_written(getattr(entry, name)) for entry, _ in pictures] for name in TEXTS}
    columns |= {name: [_number(entry, name) for entry, _ in pictures] for name in (*NUMBERS, "offset")}
    columns["fields"] = [json.dumps(dict(entry.fields)) for entry, _ in pictures]
    flat = np.stack([np.asarray(vector, np.float16) for _, vector in pictures]).reshape(-1)
    columns["embedding"] = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat, pyarrow.float16()), width)
    return columns


def _number(entry: Entry, name: str) -> int | None:
    return getattr(entry.stamp if name in Stamp._fields else entry, name)


def _rows(columns: dict[str, list], width: int) -> Iterator[tuple[Entry, np.ndarray]]:
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        vector = np.array(row.pop("embedding"), np.float16)
        if vector.shape != (width,):
            raise ValueError(f"an embedding of shape {vector.shape} in place of {width} numbers")
        texts: dict[str, Any] = {name: _read(row.pop(name)) for name in TEXTS}
        fields = json.loads(row.pop("fields"))
        if not isinstance(fields, dict) or not all(isinstance(n, int | None) for n in row.values()):
            raise ValueError("a cell of another type than an index has")
        stamp = Stamp(row.pop("size"), row.pop("mtime_ns"))
        yield Entry(**texts, stamp=stamp, fields=fields, **row), vector


def _failure(name: str, root: str, stamp: list[int] | None, message: str) -> Failure:
    return Failure(name, root, None if stamp is None else Stamp(*stamp), message)


def _written(text: str) -> str:
    """Parquet's strings are UTF-8: the bytes of a file name that is not are escaped behind a null byte."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "\0" + json.dumps(text)
    return text


def _read(text: str) -> str:
    return json.loads(text[1:]) if text.startswith("\0") else text
