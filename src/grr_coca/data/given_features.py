"""Read features that were computed elsewhere, in common file formats.

- `.npy`: an array of M × D or M × N × D numbers, in the order of the images.
- Parquet: a column whose values are lists of D numbers, or lists of N such lists, and a column with the names or paths
  of images. If no column contains names, rows are in the order of the images.
- HDF5: for each image, a dataset of D or N × D numbers with the name of the image; or a single dataset with the same
  content as a `.npy` file.
- Folder: for each image, a `.npy` or HDF5 file of D or N × D numbers with the name of the image. If an HDF5 file has
  several datasets, the dataset `features` is used.

N can differ between images. Arrays of Python objects are rejected.

Shapes: M images, N tokens, D width.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from grr_coca.common.errors import UserError, pip_install_command, require_extra
from grr_coca.common.shapes import Float
from grr_coca.data.sources.base import locate_part
from grr_coca.data.sources.columns import IMAGE_COLUMNS, first_column
from grr_coca.data.sources.listed import without_suffix
from grr_coca.data.sources.parquet import group_sizes

_HDF5 = (".h5", ".hdf5")
_NAME_COLUMNS = ("key", "id", "name", *IMAGE_COLUMNS)
_CACHED_GROUPS = 4
_PARSE_LOCK = threading.Lock()
"""Lock for opening `.npy` files. NumPy parses their headers with `ast`, which sometimes raises a SystemError in threads
of Python 3.11."""
_Read = Callable[[int], object]


class GivenFeatures:
    """Features of images, by image name or in the order of the images. They are read on demand.

    Args:
        path: File or folder, for messages.
        read: Function that reads the row with a given index.
        count: Number of rows.
        names: Image name of each row. If None, rows are in the order of the images.

    Attributes:
        names: Name of each row without suffix, or the number of the row if rows have no names.
    """

    def __init__(self, path: Path, read: _Read, count: int, names: Iterable[str] | None = None) -> None:
        self.path, self._read, self._count = path, read, count
        names = None if names is None else [without_suffix(name.replace("\\", "/")) for name in names]
        self.names: Sequence[str] = [str(row) for row in range(count)] if names is None else names
        self._rows = None if names is None else _index_names(names)

    def require_row_count(self, num_images: int) -> None:
        """Check that the number of rows equals the number of images if rows have no names.

        Raises:
            UserError: If the numbers differ.
        """
        if self._rows is None and self._count != num_images:
            raise UserError(
                f"{self.path}: rows without names belong to the images in order, but {self._count:,} rows do not match "
                f"{num_images:,} images; pass one row per image"
            )

    def find(self, number: int, key: str) -> Float[np.ndarray, "N D"] | None:
        """Return the features of an image, or None if no row has the image's name.

        Args:
            number: Index of the image in its source.
            key: Name of the image without suffix.

        Raises:
            UserError: If the features are not N × D numbers, or cannot be read.
        """
        row: int | None = number
        if self._rows is not None:
            path = PurePosixPath(key)
            row = next((self._rows[name] for name in (key, path.name, path.stem) if name in self._rows), None)
        return None if row is None else self._tokens(row, key)

    def first(self) -> Float[np.ndarray, "N D"]:
        """Return the features of the first row.

        Raises:
            UserError: In the same cases as in `find`.
        """
        return self._tokens(0, self.names[0])

    def _tokens(self, row: int, key: str) -> Float[np.ndarray, "N D"]:
        try:
            found = np.asarray(self._read(row), np.float32)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self.path}: the features of {key} cannot be read ({error}); write them again") from error
        found = found[0] if found.ndim == 3 and len(found) == 1 else np.atleast_2d(found)
        if found.ndim != 2 or not found.size:
            raise UserError(
                f"{self.path}: the features of {key} have the shape {found.shape}; expected D or N × D numbers"
            )
        return found


def open_given_features(path: Path) -> GivenFeatures:
    """Open features that were computed elsewhere. The module's docstring describes the formats.

    Raises:
        UserError: If the file does not exist, has another format or is corrupt, or a package is missing.
    """
    try:
        if path.is_dir():
            return _open_folder(path)
        if path.suffix.lower() == ".npy":
            rows = _open_rows(path)
            return GivenFeatures(path, lambda row: rows[row], len(rows))
        if path.suffix.lower() == ".parquet":
            return _open_parquet(path)
        if path.suffix.lower() in _HDF5:
            return _open_hdf5(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file or folder") from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: its features cannot be read ({error}); write the file again") from error
    raise UserError(f"{path}: unsupported feature format; use .npy, .parquet, {', '.join(_HDF5)}, or a folder")


def _index_names(names: Iterable[str]) -> Mapping[str, int]:
    """Return the row index of each name without suffix, and of the last part of each name if that part is unique."""
    rows, last = {}, dict[str, int | None]()
    for row, name in enumerate(names):
        rows[name] = row
        part = PurePosixPath(name).name
        last[part] = None if part in last else row
    return {**{part: row for part, row in last.items() if row is not None}, **rows}


def _open_array(path: Path) -> np.ndarray:
    with _PARSE_LOCK:
        return np.lib.format.open_memmap(path, mode="r")  # this rejects Python objects


def _open_rows(path: Path) -> np.ndarray:
    rows = _open_array(path)
    if rows.ndim not in (2, 3):
        raise UserError(f"{path}: has the shape {rows.shape}; expected images × D or images × N × D")
    return rows


def _open_folder(folder: Path) -> GivenFeatures:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".npy", *_HDF5))
    if not files:
        raise UserError(f"{folder}: has no .npy or HDF5 file; expected one file per image, with the image's name")
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
    if any(path.suffix.lower() in _HDF5 for path in files):
        _require_h5py(folder)

    def read(row: int) -> object:
        path = files[row]
        return _open_array(path) if path.suffix.lower() == ".npy" else _read_only_dataset(path)

    return GivenFeatures(folder, read, len(files), names)


def _open_parquet(path: Path) -> GivenFeatures:
    require_extra("parquet", f"{path}: reading Parquet")
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    schema, ends = file.schema_arrow, np.cumsum(group_sizes(file.metadata))
    lists = [name for name, kind in zip(schema.names, schema.types, strict=True) if _is_list_of_numbers(kind)]
    if len(lists) > 1 and "features" in lists:
        lists = ["features"]
    if len(lists) != 1:
        fix = "rename the column of features to 'features'" if lists else "store the features as lists of floats"
        raise UserError(f"{path}: expected one column with lists of numbers, found {', '.join(lists) or 'none'}; {fix}")
    column = first_column(schema.names, _NAME_COLUMNS)
    names = None if column is None else [str(name) for name in file.read([schema.names[column]]).column(0).to_pylist()]

    @lru_cache(_CACHED_GROUPS)
    def group_of(group: int) -> Any:
        return file.read_row_group(group, lists).column(0)

    def read(row: int) -> object:
        group, inner = locate_part(ends, row)
        return group_of(group)[inner].as_py()

    return GivenFeatures(path, read, file.metadata.num_rows, names)


def _is_list_of_numbers(kind: Any) -> bool:
    from pyarrow import types

    depth = 0
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth in (1, 2) and types.is_floating(kind)


def _open_hdf5(path: Path) -> GivenFeatures:
    file = _open_hdf5_file(path)
    names = _dataset_names(file)
    if len(names) == 1:
        rows = file[names[0]]
        return GivenFeatures(path, lambda row: rows[row], len(rows))
    return GivenFeatures(path, lambda row: file[names[row]][()], len(names), names)


def _read_only_dataset(path: Path) -> object:
    with _open_hdf5_file(path) as file:
        names = _dataset_names(file)
        if len(names) > 1 and "features" in names:
            names = ["features"]
        if len(names) != 1:
            fix = "rename the dataset of features to 'features'" if names else "write the features as a dataset"
            raise UserError(f"{path}: expected one dataset, found {', '.join(names) or 'none'}; {fix}")
        return file[names[0]][()]


def _dataset_names(file: Any) -> Sequence[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
    return names


def _open_hdf5_file(path: Path) -> Any:
    _require_h5py(path)
    import h5py

    return h5py.File(path, "r")


def _require_h5py(path: Path) -> None:
    if find_spec("h5py") is None:
        raise UserError(f"{path}: reading HDF5 needs h5py; run: {pip_install_command('h5py')}")
