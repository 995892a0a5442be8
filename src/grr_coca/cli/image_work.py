"""Process many images with a progress bar, on this machine or on a Ray cluster (`--on ray`).

Images are decoded in the background. Unreadable images are skipped, and listed on standard error at the end.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from PIL import Image

import grr_coca
from grr_coca.cli.output import failure_lines
from grr_coca.cli.progress import bars
from grr_coca.common.errors import UserError, count_of
from grr_coca.data.image_files import ImageFile, decode_in_background, find_images
from grr_coca.data.images import has_more_frames
from grr_coca.data.walk import Exclusions
from grr_coca.infer.generate.options import GenerationOptions
from grr_coca.infer.load import locate_checkpoint, require_input
from grr_coca.infer.on_ray import Machines, map_on_ray

if TYPE_CHECKING:
    from grr_coca.infer import Description, ImageTextModel

Result = TypeVar("Result")
BatchResult = TypeVar("BatchResult")
TakeResults = Callable[[list[ImageFile], list[Result]], None]
"""Function that receives a batch of files, and one result per file."""
_Batch = list[tuple[ImageFile, Result | UserError]]
"""Files, each with its opened image, result or error."""


def find_inputs(arguments: Sequence[str], exclude: Sequence[str], checkpoint: str) -> tuple[list[ImageFile], Path]:
    """Find the images and the checkpoint of a command, before the model is loaded.

    Excluded files are reported on standard error.

    Args:
        arguments: Arguments that specify images.
        exclude: Patterns of files to exclude.
        checkpoint: Name or folder of the model.

    Raises:
        UserError: If there are no arguments, an argument matches no image, a pattern is invalid, or the checkpoint does
            not exist or does not take images.
        SystemExit: If none of the image files exists. All of them are reported.
    """
    exclusions = Exclusions(exclude)
    found = find_images(arguments, exclusions)
    report_excluded(exclusions)
    folder = locate_checkpoint(checkpoint)
    require_input(folder, arguments)
    failures = []
    for file in found:
        if file.path is None or file.path.exists():
            return found, folder
        try:
            file.read()
        except UserError as error:
            failures.append(error)
    raise SystemExit(report_failures(failures, len(found)))


def report_excluded(exclusions: Exclusions) -> None:
    """Report on standard error how many files were excluded, if any."""
    if str(exclusions):
        print(exclusions, file=sys.stderr)


def report_first_frames(count: int) -> None:
    """Report on standard error that `count` files have several frames, of which only the first was used, if any."""
    if count:
        files = "1 file has" if count == 1 else f"{count:,} files have"
        print(f"{files} several frames or pages; only the first was used", file=sys.stderr)


def process_images(
    files: Sequence[ImageFile],
    model: "ImageTextModel",
    batch_size: int,
    label: str,
    work: Callable[[list[ImageFile], list[Image.Image]], Sequence[BatchResult]],
    take: TakeResults[BatchResult],
    show_progress: bool,
) -> int:
    """Open all images, apply a function to them batch by batch, and pass the results on.

    Args:
        files: the images.
        model: the model. A small model processes several batches at the same time.
        batch_size: images per batch.
        label: label of the progress bar.
        work: function of a batch of files and their opened images, which returns one result per file. Called in
            threads.
        take: receives files and their results, batch by batch and in order.
        show_progress: whether to show the bar.

    Returns:
        The exit code: 1 if no image could be read, else 0.

    Raises:
        UserError: If the work itself fails. Images that cannot be read raise no error.
    """
    num_first_frames = 0

    def opened() -> Iterator[_Batch[Image.Image]]:
        nonlocal num_first_frames
        for batch in decode_in_background(files, model.preprocess, batch_size):
            num_first_frames += sum(has_more_frames(image) for _, image in batch if isinstance(image, Image.Image))
            yield batch

    def process_batch(batch: _Batch[Image.Image]) -> _Batch[BatchResult]:
        readable = [(file, image) for file, image in batch if isinstance(image, Image.Image)]
        results = iter(work([file for file, _ in readable], [image for _, image in readable]) if readable else ())
        return [(file, image if isinstance(image, UserError) else next(results)) for file, image in batch]

    code = _run_with_progress(
        lambda take_batch: model.map_batches(opened(), process_batch, take_batch),
        len(files),
        label,
        take,
        show_progress,
    )
    report_first_frames(num_first_frames)
    return code


def describe_images(
    files: Sequence[ImageFile],
    folder: Path,
    engine: str,
    on: Machines,
    *,
    captioning: tuple[str, GenerationOptions] | None,
    num_tags: int = 0,
    batch_size: int,
    label: str,
    take: "TakeResults[Description]",
    show_progress: bool,
) -> int:
    """Caption and embed all images, on this machine or on a Ray cluster.

    The machines of a cluster must have the images and the checkpoint.

    Args:
        files: the images.
        folder: the checkpoint.
        engine: engine of the model, as in `grr_coca.load`.
        on: machines to run on.
        captioning: prompt and options for captions. If None, images are only embedded.
        num_tags: number of words to return for each image besides its captions; only on this machine.
        batch_size: images per batch.
        label: label of the progress bar.
        take: receives files and their descriptions, batch by batch and in order.
        show_progress: whether to show the bar.

    Returns:
        The exit code: 1 if no image could be read, else 0.

    Raises:
        UserError: If Ray is not installed, its cluster cannot be reached, or the work itself fails.
    """
    if on == "this":
        model = grr_coca.load(folder, engine=engine)
        if captioning is None:
            model.warn_if_unsuitable()
        else:
            model.open_ahead()
        describe = partial(_describe_batch, model, captioning, num_tags, batch_size)
        return process_images(files, model, batch_size, label, describe, take, show_progress)

    def run(take_batch: "Callable[[_Batch[Description]], None]") -> None:
        done = 0
        for results in map_on_ray(
            files, attrgetter("name"), partial(_make_ray_worker, folder.absolute(), engine, captioning), batch_size
        ):
            take_batch(list(zip(files[done : done + len(results)], results, strict=True)))
            done += len(results)

    return _run_with_progress(run, len(files), label, take, show_progress)


def _run_with_progress(
    run: Callable[[Callable[[_Batch[Result]], None]], None],
    total: int,
    label: str,
    take: TakeResults[Result],
    show_progress: bool,
) -> int:
    """Show the progress of `run`, report images that could not be read, and return the exit code.

    `run` calls its argument with each batch of results.
    """
    failures: list[UserError] = []
    done = 0
    with bars({label: total}) if total and show_progress else nullcontext() as shown:

        def take_batch(batch: _Batch[Result]) -> None:
            nonlocal done
            failures.extend(result for _, result in batch if isinstance(result, UserError))
            results = [(file, result) for file, result in batch if not isinstance(result, UserError)]
            if results:
                take([file for file, _ in results], [result for _, result in results])
            done += len(batch)
            if shown is not None:
                shown.update(label, done, f"{len(failures)} failed" if failures else "")

        run(take_batch)
    return report_failures(failures, total)


def shows_progress(prints: bool) -> bool:
    """Return whether a progress bar is useful. Results that are printed to a terminal already show the progress."""
    return not (prints and sys.stdout.isatty())


def report_failures(failures: Sequence[UserError], total: int) -> int:
    """List on standard error the images that could not be read, and return the exit code: 1 if all failed, else 0."""
    sys.stdout.flush()
    if failures:
        print(f"{len(failures):,} of {count_of(total, 'image')} failed:", file=sys.stderr)
        for line in failure_lines(map(str, failures)):
            print(f"  {line}", file=sys.stderr)
    return 1 if failures and len(failures) == total else 0


def _describe_batch(
    model: "ImageTextModel",
    captioning: tuple[str, GenerationOptions] | None,
    num_tags: int,
    batch_size: int,
    files: Sequence[ImageFile],
    images: Sequence[Image.Image],
) -> "list[Description]":
    from grr_coca.infer.image_text_model import Description

    if captioning is not None:
        keys = [file.name for file in files]
        return model.describe_many(images, *captioning, batch_size, keys=keys, num_tags=num_tags)
    # Copied because a view of a row would keep its whole batch in memory.
    rows = model.embed_images(images, batch_size=batch_size)
    return [Description([], row.copy(), engine=model.engine.name) for row in rows]


def _make_ray_worker(
    folder: Path, engine: str, captioning: tuple[str, GenerationOptions] | None
) -> "Callable[[Sequence[ImageFile]], list[Description | UserError]]":
    """Load the model, and return the function that a process of the cluster applies to each batch of files.

    The function returns a description for each file, or the error if the image could not be read.
    """
    model = grr_coca.load(folder, engine=engine)

    def work(files: Sequence[ImageFile]) -> "list[Description | UserError]":
        (batch,) = decode_in_background(files, model.preprocess, len(files))
        opened = [(file, image) for file, image in batch if not isinstance(image, UserError)]
        images = [image for _, image in opened]
        described = (
            _describe_batch(model, captioning, 0, len(files), [file for file, _ in opened], images) if images else []
        )
        results = iter(described)
        return [image if isinstance(image, UserError) else next(results) for _, image in batch]

    return work
