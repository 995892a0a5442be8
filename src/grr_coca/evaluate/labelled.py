"""Images with their classes, read from class folders, pairs or a CSV file, for classification and probes."""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from grr_coca.common.errors import UserError
from grr_coca.common.files import read_file_bytes
from grr_coca.data.sources.columns import CAPTION_COLUMNS, IMAGE_COLUMNS, first_column
from grr_coca.data.sources.open import open_source
from grr_coca.data.walk import has_image_suffix, is_hidden, is_image_name, walk_visible
from grr_coca.infer.class_names import check_class_names, find_class
from grr_coca.model.checkpoint import Checkpoint

LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", *CAPTION_COLUMNS)


def _read_label_table(path: Path) -> list[tuple[Path, str]]:
    """Return the path of the image and the label in each row of a CSV file, whose first row names the columns.

    Empty rows are skipped. Relative paths are relative to the folder of the file.

    Raises:
        UserError: If the file cannot be read, a column is missing, or a row has too many or too few cells. For such a
            row, the message gives its number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = {number: row for number, row in enumerate(csv.reader(file), start=1) if row}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV file ({error})") from error
    names = rows.pop(min(rows, default=0), [])
    image, label = first_column(names, IMAGE_COLUMNS), first_column(names, LABEL_COLUMNS)
    if image is None or label is None:
        raise UserError(f"{path}: the first row must name a column of images and one of labels, such as path,label")
    for number, row in rows.items():
        if len(row) != len(names):
            raise UserError(
                f"{path}, row {number}: expected {len(names)} columns, found {len(row)}; put a cell that contains a "
                "comma in quotes"
            )
    return [(path.parent / row[image], " ".join(row[label].split())) for row in rows.values()]


@dataclass(frozen=True)
class LabelledImages:
    """Images with their classes.

    Attributes:
        read: Function that returns the bytes and the name of the image with a given index, or raises `UserError`.
        targets: Index in `class_names` of each image's class.
        class_names: Names of all classes.
    """

    read: Callable[[int], tuple[bytes, str]]
    targets: tuple[int, ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, checkpoint: Checkpoint, batch_size: int) -> Iterator[Float[Tensor, "B 3 S S"]]:
        """Yield all images in batches, as inputs of the checkpoint's model, on its device and in its precision.

        Raises:
            UserError: If an image cannot be read or decoded.
        """
        model = checkpoint.model
        for start in range(0, len(self), batch_size):
            files = [self.read(index) for index in range(start, min(start + batch_size, len(self)))]
            rows = [checkpoint.pixels(checkpoint.preprocess.decode_square(data, name)) for data, name in files]
            yield torch.stack(rows).to(model.device, model.logit_scale.dtype)


def open_labelled(path: str, class_names: Sequence[str] | None = None) -> LabelledImages:
    """Open labelled images: a folder with one subfolder per class, a .csv file, or pairs whose captions are the labels.

    The label of a class folder is its name, with spaces in place of underscores. The first row of a .csv file names the
    columns of paths and labels. Images are read later, when they are used.

    Args:
        path: Folder, file, shards or pattern.
        class_names: All classes, in order. If None, the classes are the sorted labels that occur.

    Raises:
        UserError: If the path cannot be read, no image is found, a class folder has its images in subfolders, there are
            fewer than two classes, a class name is invalid, or an image has a label that is not one of the classes.
    """
    root = Path(path)
    if root.suffix.lower() == ".csv":
        return _from_files(_read_label_table(root), class_names, path)
    folders = _class_folders(root)
    if folders:
        rows = [(file, folder.name.replace("_", " ")) for folder in folders for file in _images(folder)]
        return _from_files([(file, " ".join(name.split())) for file, name in rows], class_names, path)
    source = open_source(path)
    labels = [" ".join(source.caption(index).split()) for index in range(len(source))]
    names = [source.name(index) for index in range(len(source))]
    return _label_images(lambda index: (source[index].image, names[index]), labels, names, class_names, path)


def _from_files(rows: Sequence[tuple[Path, str]], class_names: Sequence[str] | None, path: str) -> LabelledImages:
    files, labels = [file for file, _ in rows], [label for _, label in rows]
    return _label_images(lambda i: (_read(files[i]), str(files[i])), labels, files, class_names, path)


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # reading a device file might never end
        raise UserError(f"{path}: not a regular file; correct the path in the .csv file")
    return read_file_bytes(path)


def _label_images(
    read: Callable[[int], tuple[bytes, str]],
    labels: Sequence[str],
    names: Sequence[object],
    class_names: Sequence[str] | None,
    path: str,
) -> LabelledImages:
    if not labels:
        raise UserError(f"{path}: no labelled image found; expected a subfolder per class, a .csv file or pairs")
    known = check_class_names(sorted(set(labels)) if class_names is None else class_names, path)
    index = {name: number for number, name in enumerate(known)}
    targets = tuple(find_class(label, index, str(name)) for label, name in zip(labels, names, strict=True))
    return LabelledImages(read, targets, known)


def _class_folders(root: Path) -> list[Path]:
    # If a folder has images at its top level, captions or shards, it contains pairs. Otherwise, each subfolder with
    # images is a class.
    if not root.is_dir() or _images(root) or _has_pairs(root):
        return []
    visible = [folder for folder in _list_folder(root) if folder.is_dir() and not is_hidden(folder.name)]
    classes = [folder for folder in visible if _images(folder)]
    for folder in visible if classes else ():
        if folder not in classes and any(
            has_image_suffix(name) for _, _, files in walk_visible(folder) for name in files
        ):
            raise UserError(f"{folder}: its images are in subfolders; move all images of a class into one folder")
    return classes


def _has_pairs(root: Path) -> bool:
    """Return whether a folder contains image-text pairs.

    This is true if the folder or a subfolder contains a shard, a text file named like an image, or ROCO's
    `captions.txt` next to a folder `images`.
    """
    for _, folders, files in walk_visible(root):
        if any(name.lower().endswith(".tar") for name in files):
            return True
        if "captions.txt" in files and "images" in folders:
            return True
        texts = {Path(name).stem for name in files if name.endswith((".txt", ".TXT"))}
        if any(Path(name).stem in texts for name in files if has_image_suffix(name)):
            return True
    return False


def _images(folder: Path) -> list[Path]:
    return [file for file in _list_folder(folder) if is_image_name(file.name) and file.is_file()]


def _list_folder(folder: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror or error}); make it readable") from error
