"""Annotations in one JSON file: COCO's captions, Karpathy's splits, or a list of objects."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grr_coca.data.sources.columns import as_captions, find_columns
from grr_coca.data.sources.listed import ListedPairs, ListedRow, StoredRows, first_paths
from grr_coca.data.sources.located import locate_images
from grr_coca.errors import UserError, nearest


def open_json(path: Path, split: str | None, needs_captions: bool = True) -> ListedPairs:
    """The pairs of a JSON file. Its keys tell which of the formats it has.

    Args:
        path: `captions_train2017.json`, `dataset_coco.json`, `dataset_flickr30k.json`, or a list of objects with the
            path of an image and its caption or captions.
        split: a split of Karpathy's files, such as `val`, or `train+restval`, which are usually trained on together.
        needs_captions: whether a list of objects without captions is refused.

    Raises:
        UserError: the file has none of these formats or no such split, or no images are in the places of the format.
    """
    content = _read(path)
    fields: Iterator[dict[str, Any]] | None = None
    try:
        if isinstance(content, dict) and "annotations" in content and "images" in content:
            rows, folders = _coco_rows(content), _coco_folders(path)
        elif isinstance(content, dict) and "images" in content:
            rows, folders = _karpathy_rows(content, path, split), _karpathy_folders(path)
            split = None
        elif isinstance(content, list) and content and isinstance(content[0], dict):
            image, caption = find_columns(list(content[0]), str(path), needs_captions)
            rows, folders = list(_object_rows(content, image, caption)), [path.parent, path.parent / "images"]
            fields = ({name: value for name, value in record.items() if name != image} for record in content)
        else:
            raise UserError(f"{path}: neither COCO's captions, Karpathy's splits nor a list of objects")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not as the format has it ({type(error).__name__}: {error})") from error
    if split is not None:
        raise UserError(f"{path}: has no splits to choose '{split}' from; only Karpathy's files have")
    stored = StoredRows(rows, fields)
    return ListedPairs(path, stored, locate_images(path, first_paths(stored), folders))


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file that can be read ({error})") from error


def _coco_rows(content: dict[str, Any]) -> list[ListedRow]:
    captions = defaultdict(list)
    for annotation in content["annotations"]:
        captions[annotation["image_id"]].append(str(annotation["caption"]))
    return [ListedRow(str(image["file_name"]), tuple(captions[image["id"]])) for image in content["images"]]


def _coco_folders(path: Path) -> list[Path]:
    """`captions_train2017.json` lies in `annotations/`, and its images in `train2017/` beside that folder."""
    part = path.stem.removeprefix("captions_")
    bases = [path.parent, path.parent.parent] if path.parent.name == "annotations" else [path.parent]
    return [base / inner for base in bases for inner in (part, f"images/{part}", "images", "")]


def _karpathy_rows(content: dict[str, Any], path: Path, split: str | None) -> list[ListedRow]:
    splits = sorted({str(image["split"]) for image in content["images"]})
    wanted = _wanted_splits(path, split, splits)
    return [
        # The files of Flickr have no `filepath`.
        ListedRow("/".join(filter(None, (image.get("filepath"), image["filename"]))), _sentences(image))
        for image in content["images"]
        if image["split"] in wanted
    ]


def _wanted_splits(path: Path, split: str | None, splits: list[str]) -> set[str]:
    if split is None:
        if len(splits) == 1:
            return set(splits)
        # All splits together would train on test images.
        raise UserError(f"{path}: has the splits {', '.join(splits)}; say which, such as {path.name}#{splits[0]}")
    for name in split.split("+"):
        if name not in splits:
            raise UserError(
                f"{path}: has no split '{name}'; {nearest(name, splits)}; it has {', '.join(splits)}, and two together "
                f"are written {'+'.join(splits[:2])}"
            )
    return set(split.split("+"))


def _sentences(image: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(sentence["raw"]) for sentence in image["sentences"])


def _karpathy_folders(path: Path) -> list[Path]:
    """COCO's images lie in `train2014/` and `val2014/`, as `filepath` says; Flickr's in `flickr30k-images/`."""
    inner = ("", "images", "flickr30k-images", "flickr30k_images", "Images", "coco", "mscoco")
    return [base / name for base in (path.parent, path.parent.parent) for name in inner]


def _object_rows(content: list[Any], image: str, caption: str | None) -> Iterator[ListedRow]:
    for record in content:
        written = record.get(image)
        captions = () if caption is None else as_captions(record.get(caption))
        yield ListedRow(written if isinstance(written, str) else "", captions)
