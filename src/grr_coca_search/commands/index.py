"""`grr-coca index`: create, update, watch or check an index, or remove images from an index."""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import tyro

from grr_coca.cli.flags import EngineFlag, ExcludeFlag, Flag, ImageArguments, OptionalCheckpointFlag, require_batch_size
from grr_coca.cli.output import failure_lines, print_first
from grr_coca.cli.progress import late_bar
from grr_coca.common.errors import UserError, count_of, require_extra
from grr_coca.infer.load import require_input
from grr_coca.infer.on_ray import Machines
from grr_coca.model.checkpoint_files import DEFAULT

if TYPE_CHECKING:
    from grr_coca_search.index import Index
    from grr_coca_search.update import UpdateResult

_MIN_SECONDS_BETWEEN_SCANS = 2.0
_PAUSE_PER_SCAN = 10
"""Minimum pause between scans while watching, as a multiple of the duration of a scan."""


def run(
    out: Annotated[str, tyro.conf.arg(metavar="INDEX")],
    images: ImageArguments = (),
    checkpoint: OptionalCheckpointFlag = None,
    forget: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH")] = (),
    exclude: ExcludeFlag = (),
    watch: Flag = False,
    check: Flag = False,
    batch_size: int = 32,
    on: Annotated[Machines, tyro.conf.arg(metavar="this|ray")] = "this",
    engine: EngineFlag = "auto",
) -> int:
    """Index images for search, or update an index. Each image is captioned and embedded in one pass.

    Indexed images are read again only if their size, modification time, XMP file or table row has changed. After an
    interruption, run the same command again to continue. Images that cannot be read are listed at the end; the exit
    code is 1 only if no image could be read.

    Args:
        out: folder of the index, or http://HOST:PORT/NAME of a Milvus server.
        images: image files, folders, patterns, .tar shards, or tables of images; if none are given, those from which
            the index was created.
        checkpoint: folder, name of a model (see `grr-coca models`), or OWNER/NAME on the Hugging Face hub; if
            not given, the model of the index, or for a new index the bundled model.
        forget: remove the images of this argument, or below this folder, from the index. Without images and --watch,
            nothing else is done.
        exclude: exclude files that match this .gitignore pattern, such as "raw/" or "*.gif". The index stores its
            patterns until other patterns are given; "" removes them.
        watch: keep the index up to date until Ctrl-C.
        check: only check the index: read all of it, and compare it with its checksums.
        batch_size: images per batch.
        on: this machine, or the Ray cluster at RAY_ADDRESS, whose machines must see the same files.
        engine: onnx (on a CPU) or torch; auto chooses by a fixed rule.
    """
    require_batch_size(batch_size)
    if check:
        if images or forget or exclude or watch:
            raise UserError(
                "--check cannot be combined with images, --forget, --exclude or --watch; pass only --out INDEX"
            )
        _check(out)
        return 0
    if exclude and forget and not images and not watch:
        raise UserError(
            "--forget without images cannot be combined with --exclude, which would have no effect; pass images, too"
        )
    if on == "ray":
        require_extra("ray", "--on ray")
    with _open(out, images, checkpoint, batch_size, engine) as index:
        if forget:
            print(f"{index.store.location}: {count_of(index.forget(forget), 'image')} forgotten", flush=True)
            if not images and not watch:
                return 0

        arguments = images or index.store.roots()
        require_input(index.model.folder, arguments)
        began = time.monotonic()
        with late_bar("indexed") as on_progress:
            update = index.add(arguments, on_progress, on, exclude or None)
        from grr_coca.cli.image_work import report_excluded, report_first_frames  # lazy import: NumPy and Pillow

        report_excluded(update.left_out)
        report_first_frames(update.first_frames)
        if update.unfamiliar:
            from grr_coca.infer.image_text_model import warn_if_unfamiliar

            warn_if_unfamiliar(update.unfamiliar)
        _report(update, index, time.monotonic() - began)
        while watch:
            time.sleep(max(_MIN_SECONDS_BETWEEN_SCANS, _PAUSE_PER_SCAN * update.scan_seconds))
            began = time.monotonic()
            update = index.add(_arguments_to_scan(index, images), on=on)
            if update.new or update.changed or update.moved or update.removed or update.noted:
                _report(update, index, time.monotonic() - began)
    return 1 if update.failures and len(update.failures) >= update.found else 0


def _check(location: str) -> None:
    from grr_coca_search.store import open_store  # lazy import: NumPy and Pillow

    with open_store(location) as store:
        found = store.check()
    print(f"{location}: {count_of(found.images, 'image')} checked; no errors found")
    if found.without_checksum:
        have = "has" if found.without_checksum == 1 else "have"
        print(
            f"{count_of(found.without_checksum, 'embedding')} from an older version {have} no checksum; to add the "
            f"missing checksums, run: grr-coca index --out {location}"
        )


def _open(out: str, images: Sequence[str], checkpoint: str | None, batch_size: int, engine: str) -> "Index":
    from grr_coca_search.index import Index
    from grr_coca_search.store import find_store
    from grr_coca_search.update import require_arguments

    store = find_store(out)
    if store is None:
        if not images:
            raise UserError(f"{out}: no index exists here yet; pass the images to index")
        require_arguments(images)  # before a model is loaded or a file is written
    else:
        store.close()
    model = checkpoint or (DEFAULT if store is None else None)
    index = Index.open(out, model, create=True, batch_size=batch_size, engine=engine)
    if store is None:
        index.model.loaded.open_ahead()  # while images are being searched for
    return index


def _arguments_to_scan(index: "Index", images: Sequence[str]) -> Sequence[str]:
    """Return the arguments to scan while watching.

    If `images` is empty, these are all arguments through which the images of the index were found. Otherwise, they are
    `images`, except arguments that no longer exist and of which the index has no images.
    """
    from grr_coca_search.update import absolute_arguments, argument_exists

    roots = index.store.roots()
    if not images:
        return roots
    return [image for image in images if argument_exists(image) or absolute_arguments([image])[0] in roots]


def _report(update: "UpdateResult", index: "Index", seconds: float) -> None:
    counts = ((name, getattr(update, name)) for name in ("new", "changed", "moved", "removed"))
    parts = [f"{count:,} {name}" for name, count in counts if count]
    parts += [f"metadata of {update.noted:,} read"] if update.noted else []
    changes = ", ".join(parts) or "nothing new"
    print(f"{index.store.location}: {count_of(len(index), 'image')} ({changes}) in {seconds:.1f} s", flush=True)
    if update.failures:
        print(f"{len(update.failures):,} of {count_of(update.found, 'image')} cannot be read:", file=sys.stderr)
        print_first(failure_lines(failure.message for failure in update.failures))
