"""Works through many images with progress. Images are decoded in the background; unreadable ones are skipped."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from PIL import Image

from grr_coca.cli.output.progress import bars
from grr_coca.data.image_files.decode import decoded
from grr_coca.data.image_files.find import ImageFile
from grr_coca.errors import UserError
from grr_coca.messages import on_one_line

if TYPE_CHECKING:
    from grr_coca.data.preprocess import Preprocess

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
