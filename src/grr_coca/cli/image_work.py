"""`--on ray`: captions and embeddings by the machines of a Ray cluster, the results in the order of the images.

Works through many images with progress. Images are decoded in the background; unreadable ones are skipped.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from grr_coca.cli.progress import bars
from grr_coca.data.image_files import ImageFile, decoded
from grr_coca.errors import UserError
from grr_coca.generate.options import GenerationOptions
from grr_coca.inference.on_ray import map_on_ray
from grr_coca.messages import on_one_line

if TYPE_CHECKING:
    from grr_coca.data.preprocess import Preprocess
    from grr_coca.inference import Description

Work = Callable[[list[ImageFile], list[Image.Image]], None]
"""The work on a batch of images."""


def work_through(
    files: Sequence[ImageFile], preprocess: "Preprocess", batch_size: int, label: str, work: Work, show_progress: bool
) -> int:
    """Do the work on all images. Images that cannot be read are listed on standard error at the end.

    Returns:
        The exit code: 1 if no image could be read, else 0.

    Raises:
        UserError: the batch size is below 1, or the work itself fails.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: give 1 or more")
    failures: list[UserError] = []
    done = 0
    with bars({label: len(files)}) if files and show_progress else nullcontext() as shown:
        for batch in decoded(files, preprocess, batch_size):
            read = [(file, image) for file, image in batch if isinstance(image, Image.Image)]
            failures += [image for _, image in batch if isinstance(image, UserError)]
            if read:
                work([file for file, _ in read], [image for _, image in read])
            done += len(batch)
            if shown is not None:
                shown.update(label, done, f"{len(failures)} failed" if failures else "")
    return report_failures(failures, len(files))


def report_if_none_exists(files: Sequence[ImageFile]) -> int | None:
    """If no image file exists, report that and return the exit code. None if there is work to do.

    It is called before the model is loaded, so that a mistyped name is reported at once.
    """
    failures = []
    for file in files:
        if file.path is None or file.path.exists():
            return None
        try:
            file.read()
        except UserError as error:
            failures.append(error)
    return report_failures(failures, len(files))


def shows_progress(prints: bool) -> bool:
    """True if a progress bar is useful. It is not if the results are printed to a terminal, and so show the
    progress."""
    return not (prints and sys.stdout.isatty())


def report_failures(failures: Sequence[UserError], total: int) -> int:
    """List the images that could not be read, and give the exit code."""
    sys.stdout.flush()
    if failures:
        print(f"{len(failures)} of {total} images failed:", file=sys.stderr)
        for failure in failures:
            print(f"  {on_one_line(str(failure))}", file=sys.stderr)
    return 1 if failures and len(failures) == total else 0


Take = Callable[[list[ImageFile], "list[Description]"], None]


def describe_on_ray(
    files: Sequence[ImageFile],
    folder: Path,
    *,
    captioning: tuple[str, GenerationOptions] | None,
    batch_size: int,
    label: str,
    take: Take,
    show_progress: bool,
) -> int:
    """Caption and embed all images; those that cannot be read are listed on standard error at the end.

    Args:
        files: the images, which every machine must see.
        folder: the checkpoint, which every machine must see.
        captioning: words that every caption begins with, and how to go on; None: embed alone.
        batch_size: images at once.
        label: what the progress bar says.
        take: is given files and what was said of each, batch by batch and in order.
        show_progress: whether there is a bar.

    Returns:
        The exit code: 1 if not a single image could be read, else 0.

    Raises:
        UserError: the batch size is below 1, Ray is not installed, or its cluster cannot be reached.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: give 1 or more")
    failures: list[UserError] = []
    done = 0
    with bars({label: len(files)}) if files and show_progress else nullcontext() as shown:
        for results in map_on_ray(files, partial(_worker, folder, captioning), batch_size):
            batch = list(zip(files[done : done + len(results)], results, strict=True))
            failures += [result for _, result in batch if isinstance(result, UserError)]
            described = [(file, result) for file, result in batch if not isinstance(result, UserError)]
            if described:
                take([file for file, _ in described], [result for _, result in described])
            done += len(batch)
            if shown is not None:
                shown.update(label, done, f"{len(failures)} failed" if failures else "")
    return report_failures(failures, len(files))


def _worker(
    folder: Path, captioning: tuple[str, GenerationOptions] | None
) -> "Callable[[Sequence[ImageFile]], list[Description | UserError]]":
    from grr_coca.data.image_files import decoded
    from grr_coca.inference.model import Description, load

    model = load(folder)

    def work(files: Sequence[ImageFile]) -> "list[Description | UserError]":
        (batch,) = decoded(files, model.checkpoint.preprocess, len(files))
        pictures = [(file, image) for file, image in batch if not isinstance(image, UserError)]
        images, names = [image for _, image in pictures], [file.name for file, _ in pictures]
        said: list[Description] = []
        if images and captioning is None:
            rows = model.embed_images(images, batch_size=len(files))
            said = [Description([], row.clone()) for row in rows]  # each is sent, and without the rest of its batch
        elif images and captioning is not None:
            said = model.describe_many(images, *captioning, len(files), keys=names)
        described = iter(said)
        return [image if isinstance(image, UserError) else next(described) for _, image in batch]

    return work
