"""Files beside images that `caption` and `classify` write: where they lie, and XMP files."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grr_coca.cli.output import disk_errors, failure_lines
from grr_coca.common.errors import UserError
from grr_coca.model.shipped_models import FOR_PHOTOGRAPHS
from grr_coca.search.sidecar import XmpError, has_caption, sidecar_to_write, write_sidecar

if TYPE_CHECKING:
    from grr_coca.search.image_files import ImageFile


def places_beside(
    images: "Sequence[ImageFile]", place_of: Callable[[Path], Path], *, instead: str = "--out FILE"
) -> dict[str, Path]:
    """The file to write beside each image, by the name of the image. `instead`: the flag that error messages advise.

    Raises:
        UserError: an image is not a separate file, two images would share a file, or the file is an image.
    """
    places: dict[str, Path] = {}
    owners: dict[Path, str] = {}  # names of images, by the file in a folder without links
    for image in images:
        if image.path is None:
            raise UserError(
                f"{image.name}: part of a shard or table, so --sidecar cannot write beside it; use {instead}"
            )
        place = places[image.name] = place_of(image.path)
        other = owners.setdefault(place.parent.resolve() / place.name, image.name)
        if other != image.name:
            raise UserError(f"{other} and {image.name} would share {place.name}; use {instead}")
    for image in images:
        path = Path(image.name)
        if path.resolve() in owners or path.parent.resolve() / path.name in owners:
            raise UserError(f"{image.name}: an image, into which --sidecar would write; use {instead}")
    return places


def in_closed_folders(places: Mapping[str, Path]) -> dict[str, str]:
    """The images in read-only folders, by name, each with an error message. They are found before the work begins, so
    that they do not end it for the others."""
    folders = {place.parent for place in places.values()}
    closed = {folder for folder in folders if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK)}
    return {name: f"{place}: the folder is read-only" for name, place in places.items() if place.parent in closed}


def report_unwritten(failures: Sequence[str], kind: str) -> None:
    """List the files that could not be written on standard error. `kind`: what they are, such as "XMP file"."""
    if failures:
        files = f"1 {kind}" if len(failures) == 1 else f"{len(failures)} {kind}s"
        print(f"{files} cannot be written:", file=sys.stderr)
        for line in failure_lines(failures):
            print(f"  {line}", file=sys.stderr)


def report_unfamiliar(unfamiliar: Sequence[bool | None]) -> None:
    """Say beside how many images nothing was written, as they are unlike those that the model was trained on.

    A guess would stay there as if someone had meant it. None: unknown.
    """
    count = sum(map(bool, unfamiliar))
    if count:
        print(
            f"{count:,} of {len(unfamiliar):,} images are unlike those that this model was trained on, so nothing was "
            f"written beside them; for photographs, add -c {FOR_PHOTOGRAPHS}",
            file=sys.stderr,
        )


class XmpFiles:
    """XMP files beside images. One that cannot be changed is left as it is, and listed by `report`.

    `instead`: see `places_beside`.

    `captioned`, `unusable`: names of the images whose file has a caption already, or cannot be changed.

    Raises:
        UserError: an image is not a separate file, or is an XMP file itself.
    """

    def __init__(self, images: "Sequence[ImageFile]", *, instead: str = "--out FILE") -> None:
        self.captioned: set[str] = set()
        self.unusable: set[str] = set()
        self._failures: list[str] = []
        stems = Counter(image.path.with_suffix("") for image in images if image.path is not None)
        self._places = places_beside(
            images,
            lambda path: sidecar_to_write(path, is_alone=stems[path.with_suffix("")] == 1),
            instead=instead,
        )
        self._closed = in_closed_folders(self._places)
        for name, sidecar in self._places.items():
            try:
                if has_caption(sidecar):
                    self.captioned.add(name)
                elif name in self._closed:
                    raise XmpError(self._closed[name])
            except XmpError as error:
                self.unusable.add(name)
                self._failures.append(str(error))

    def write(
        self, image: "ImageFile", caption: str | None, keywords: Sequence[str] = (), *, overwrite: bool = False
    ) -> None:
        """Write a caption and keywords into the file of an image. See `write_sidecar`."""
        if image.name in self.unusable:
            return
        sidecar = self._places[image.name]
        try:
            if image.name in self._closed:
                raise XmpError(self._closed[image.name])
            with disk_errors(sidecar):
                write_sidecar(sidecar, caption, keywords, overwrite=overwrite)
        except XmpError as error:
            self.unusable.add(image.name)
            self._failures.append(str(error))

    def report(self) -> None:
        """List the files that could not be changed on standard error."""
        report_unwritten(self._failures, "XMP file")
