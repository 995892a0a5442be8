"""`grr-coca adapt`: adapt a model to the user's pairs in closed form, with a report."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from grr_coca.cli.flags import CheckpointFlag, Flag
from grr_coca.cli.output import print_first, print_line
from grr_coca.cli.progress import bars
from grr_coca.common.errors import UserError, count_of
from grr_coca.infer.load import locate_checkpoint
from grr_coca.model.checkpoint_files import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from grr_coca.adapt.adapt_model import AdaptationResult
    from grr_coca.data.sources.base import PairSource


def run(
    pairs: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PAIRS")],
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")],
    checkpoint: CheckpointFlag = DEFAULT,
    val: Annotated[str | None, tyro.conf.arg(metavar="PAIRS")] = None,
    encoder: Annotated[str | None, tyro.conf.arg(metavar="ENCODER|FEATURES")] = None,
    json: Flag = False,
) -> int:
    """Adapt a model to your own pairs. This takes seconds, and needs neither a GPU nor PyTorch.

    `caption`, `embed`, `index`, `search` and `serve` then accept the model as -c FOLDER. Its report shows its accuracy
    on held-out pairs, and whether more pairs or training would help. FOLDER/report.html shows it with images. The same
    command with more pairs reads only the new images.

    Args:
        pairs: any kind that `data check` reads, at most 50,000 pairs.
        out: new folder for the model, or the folder of an earlier adaptation.
        checkpoint: base model: checkpoint or run folder, name of a model (see `grr-coca models`), or OWNER/NAME on
            the Hugging Face hub.
        val: held-out pairs for choosing hyperparameters and for all measurements. If not given, PAIRS are divided into
            folds; for a run that was trained on PAIRS, the held-out pairs of its training are used.
        encoder: an additional image encoder next to the base model: timm:NAME, hf:NAME or onnx:FILE (see
            docs/encoders.md), or a folder that `data features` wrote.
        json: print JSON.
    """
    # checked before anything is read, so that a wrong name is reported immediately
    folder = locate_checkpoint(checkpoint)
    from grr_coca.adapt.adapt_model import estimate_cost  # lazy import, because it imports NumPy
    from grr_coca.adapt.read_pairs import MAX_PAIRS
    from grr_coca.adapt.report import as_json, report_text
    from grr_coca.data.sources.open import open_source

    source = open_source(pairs)
    if len(source) <= MAX_PAIRS:  # more pairs are rejected anyway
        seconds, gigabytes = estimate_cost(len(source))
        more = "" if encoder is None else " plus the time to encode each new image,"
        print(f"adapting takes about {seconds:.0f} s{more} and {gigabytes:.1f} GB of memory", file=sys.stderr)
    held, is_tuned = select_unseen_pairs(folder, source, pairs, None if val is None else open_source(val))
    adapted = adapt_with_report(source, pairs, checkpoint, out, held, is_tuned=is_tuned, encoder=encoder)
    print_line(as_json(adapted) if json else report_text(adapted, out))
    return 0


def adapt_with_report(
    source: "PairSource",
    name: str,
    base: str,
    out: Path,
    val: "PairSource | None",
    *,
    is_tuned: bool,
    encoder: str | None = None,
) -> "AdaptationResult":
    """Adapt a model with a progress bar, and write a report into its folder.

    Pairs that cannot be used are listed on standard error. The arguments and errors are those of `adapt_model`.
    """
    from grr_coca.adapt.adapt_model import REPORT, adapt_model
    from grr_coca.adapt.report import report_page

    def write_report(folder: Path, adapted: "AdaptationResult") -> None:
        (folder / REPORT).write_bytes(report_page(adapted, out).encode())

    with bars({"adapt": 100}) as shown:

        def watch(part: str, done: int, total: int) -> None:
            step = 30 * done / total if total else 30 + 10 * done
            shown.update("adapt", round(step), part)

        adapted = adapt_model(
            source,
            name,
            base,
            out,
            val=val,
            is_tuned=is_tuned,
            encoder=encoder,
            watch=watch,
            write_more=write_report,
        )
        shown.update("adapt", 100, "")
    if adapted.images.bad:
        print(f"skipped {count_of(len(adapted.images.bad), 'pair')} that cannot be used:", file=sys.stderr)
        print_first(adapted.images.bad)
    return adapted


_MAX_COMPARED = 50_000
"""Maximum number of a run's training pairs, evenly spaced, that are compared with the pairs to adapt to."""


def select_unseen_pairs(
    folder: Path, pairs: "PairSource", name: str, val: "PairSource | None"
) -> "tuple[PairSource | None, bool]":
    """Return pairs to measure on, and whether the base is a run that was trained on some of the given pairs.

    Such a base fits its training pairs too well for choosing hyperparameters or measuring with them. The result is then
    `val` without the run's training pairs or, if `val` is not given, the held-out pairs of the run. For any other base,
    the result is `val`, even if it is None.

    Args:
        folder: Checkpoint of the base.
        pairs: Pairs to adapt to.
        name: Name of the pairs in messages.
        val: Pairs that the user passed for measurements.

    Raises:
        UserError: If the run was trained on all of `val`, or its training pairs are unknown and `val` is None.
    """
    recipe = folder.parent.parent / "recipe.yaml"
    if folder.parent.name != "checkpoints" or not recipe.is_file():
        return val, False
    from grr_coca.data.sources.views import Subset  # lazy imports, here and below: NumPy and PyTorch
    from grr_coca.train.recipe import load_recipe
    from grr_coca.train.setup import training_sources

    try:
        train, held = training_sources(load_recipe(recipe))
    except UserError as error:
        if val is not None:
            return val, False
        raise UserError(
            f"{recipe}: the pairs of this run cannot be read ({error}), so it is unknown whether the run was trained "
            f"on {name}; pass other pairs to --val"
        ) from error
    seen = {digest for _, digest in _image_digests(train, -(-len(train) // _MAX_COMPARED))}
    if not any(digest in seen for _, digest in _image_digests(pairs)):
        return val, False
    print(f"{folder}: was trained on some of these pairs, so it is measured on held-out pairs", file=sys.stderr)
    if val is None:
        return held, True
    unseen = [place for place, digest in _image_digests(val) if digest not in seen]
    if not unseen:
        raise UserError("--val: the run was trained on all of these pairs; pass other pairs, or omit --val")
    return Subset(val, unseen), True


def _image_digests(pairs: "PairSource", step: int = 1) -> "Iterator[tuple[int, bytes]]":
    """Yield the index and digest of every `step`-th image that can be read."""
    from grr_coca.data.sources.base import BadSample
    from grr_coca.infer.adapted.adaptation import file_digest

    for place in range(0, len(pairs), step):
        try:
            yield place, file_digest(pairs[place].image)
        except BadSample:
            continue
