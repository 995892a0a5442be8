"""Fit what a bundled model knows of its own answers, and measure it: `grr_coca.infer.calibration` explains the numbers.

    python scripts/fit_confidence.py NAME [--photographs DIR]

writes `confidence.json` into `src/grr_coca/model/weights/NAME/`, and figures into its card. `scripts/cards/NAME.yaml`
names the images under `confidence`: those of training, whose statistics are familiar; those of the fit, which training
never saw; and those of the measurement, which no fit saw (`related`: of the model's own kind of drawing). Splits that
are only measured, and are not on this machine, are left out, with a line.

`scripts/photographs.txt` names photographs, and how DIR holds them: by default, `photographs` in the user's cache.
Without them, their figures stay as they are. `scripts/fit_photographs.py` fits by which numbers they are known, before.
For a model with a page, a picture of the reliability and of the captions that are kept is drawn too.

Shapes: N images, S image size in pixels.
"""

import itertools
import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import binomtest

from fitting import (
    BINS,
    calibration_error,
    card_text,
    exactly,
    folder_of,
    logistic,
    parser_of,
    read_card,
    table,
    write_fitted,
)
from grr_coca.cli import exit_code
from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import CACHE_PREFIX, expand_cache_prefix, user_cache
from grr_coca.data.sources.open import open_source, require_exists
from grr_coca.data.tokenizer import clean_caption
from grr_coca.evaluate.caption_split import pairs_by_image
from grr_coca.infer.calibration import Calibration, read_photographs, statistics
from grr_coca.infer.generate import GREEDY, generate
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.infer.load import load
from grr_coca.model.checkpoint_files import CONFIDENCE, Figure

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS = ROOT / "scripts" / "photographs.txt"
PICTURE = ROOT / "docs" / "{name}-confidence.webp"
MAX_IMAGES = 2000
"""Most images of a split."""
FAMILIAR = 0.98
"""Share of the images of the fit that count as familiar."""
RIDGE = 1e-3
"""Added to the covariance, as a few training images are uniform in a statistic."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Answers:
    """Images of a split, N S S 3, the log-probabilities of the model's captions, and which of these are right."""

    pixels: np.ndarray
    log_probs: np.ndarray
    right: np.ndarray


def main() -> None:
    """Fit a bundled model."""
    parser = parser_of(__doc__)
    parser.add_argument("--photographs", type=Path, metavar="DIR", help="folder with the photographs")
    options = parser.parse_args()
    folder, text = folder_of(options.name), card_text(options.name)
    photographs = options.photographs or user_cache() / "photographs"
    if options.photographs is None and not photographs.is_dir():
        print(f"photographs: left out: {photographs} is not there")
        photographs = None
    fit_and_measure(folder, text, photographs)


def fit_and_measure(folder: Path, text: dict, photographs: Path | None = None) -> None:
    """Write `confidence.json` and the figures of the card into the folder of a bundled model."""
    named = text["confidence"]
    training, held_out = (_there(named[part], named[part]) for part in ("training", "fit"))
    to_measure = _there(named["measure"], named["related"])
    photographs_of = {} if photographs is None else listed_photographs(photographs)
    model = load(folder, engine="onnx")
    of_captions = fit(training_pixels(model, training), {name: answers(model, path) for name, path in held_out.items()})
    fitted = replace(of_captions, photographs=read_photographs(folder))
    measured = {name: answers(model, path) for name, path in to_measure.items()}
    figures = {name: split_figures(fitted, found) for name, found in measured.items()}
    related = [measured[name] for name in named["related"]]
    confidence = np.concatenate([confidences(fitted, found) for found in related])
    right = np.concatenate([found.right for found in related])
    figures["confidence"] = reliability(confidence, right)
    figures |= {name: photograph_figures(fitted, model, files) for name, files in photographs_of.items()}
    numbers = to_dict(of_captions)
    del numbers["photographs"]  # they have a file of their own
    everything = {**read_card(folder).figures, **figures}  # also those of photographs that are not measured now
    write_fitted(folder, CONFIDENCE, numbers, figures, confidence_section(everything), NEXT)
    if named.get("picture"):
        draw(confidence, right, figures["confidence"], Path(str(PICTURE).format(name=folder.name)))


# --- Images and captions


def answers(model: ImageTextModel, path: str) -> Answers:
    """Return the greedy captions of a split, of at most `MAX_IMAGES` images."""
    source = open_source(path)
    images = pairs_by_image(source)
    chosen = [images[number] for number in _spread(len(images))]
    pixels, log_probs, right = [], [], []
    for start in range(0, len(chosen), 64):
        pairs = [source[found[0]] for found in chosen[start : start + 64]]
        decode = model.preprocess.decode
        batch = np.stack([model.preprocess(decode(pair.image, pair.name)) for pair in pairs])
        for found, (best, *_) in zip(
            chosen[start : start + 64], generate(model.engine, model.tokenizer, batch, GREEDY).captions, strict=True
        ):
            truths = {clean_caption(caption, source.name(pair)) for pair in found for caption in source.captions(pair)}
            log_probs.append(math.fsum(best.log_probs))
            right.append(best.text in truths)
        pixels.append(batch)
    return Answers(np.concatenate(pixels), np.array(log_probs), np.array(right, float))


def training_pixels(model: ImageTextModel, paths: dict[str, str]) -> np.ndarray:
    """Images of the training splits, as many of each, N S S 3."""
    pixels = []
    for path in paths.values():
        source = open_source(path)
        for number in _spread(len(source)):
            pair = source[number]
            pixels.append(model.preprocess(model.preprocess.decode(pair.image, pair.name)))
    return np.stack(pixels)


def _spread(count: int) -> list[int]:
    most = min(count, MAX_IMAGES)
    return [number * count // most for number in range(most)]


def _there(paths: dict[str, str], needed: Collection[str]) -> dict[str, str]:
    """Return the splits that are on this machine.

    Raises:
        UserError: one that is needed is not.
    """
    found = {}
    for name, path in paths.items():
        place = expand_cache_prefix(path) if path.startswith(CACHE_PREFIX) else str(ROOT / path)
        if name in needed:
            require_exists(place)
        if any(Path(place).parent.glob(Path(place).name)):
            found[name] = place
        else:
            print(f"{name}: left out: {place} is not there")
    return found


# --- The fit


def fit(training: np.ndarray, held_out: dict[str, Answers]) -> Calibration:
    """Fit the statistics of training images, the limit of familiar ones, and the curve of the confidence.

    Each held-out split has the same weight.
    """
    found = statistics(training)
    precision = np.linalg.inv(np.cov(found.T) + RIDGE * np.eye(found.shape[1]))
    log_probs, right, weights = (
        np.concatenate(parts)
        for parts in zip(
            *((one.log_probs, one.right, np.full(len(one.right), 1 / len(one.right))) for one in held_out.values()),
            strict=True,
        )
    )
    slope, offset = logistic(np.stack([log_probs, np.ones_like(log_probs)], axis=1), right, weights)
    fitted = Calibration(
        slope=float(slope),
        offset=float(offset),
        mean=tuple(found.mean(axis=0).tolist()),
        precision=tuple(map(tuple, precision.tolist())),
        max_distance=math.inf,
        fitted_on=", ".join(f"{len(one.right):,} images of {name}" for name, one in held_out.items()),
    )
    limits = [np.quantile(fitted.distances(one.pixels), FAMILIAR) for one in held_out.values()]
    return replace(fitted, max_distance=float(np.mean(limits)))


# --- What is measured


def confidences(fitted: Calibration, found: Answers) -> np.ndarray:
    """Return the confidence of each caption."""
    return np.array([fitted.confidence([log_prob]) for log_prob in found.log_probs])


def split_figures(fitted: Calibration, found: Answers) -> dict[str, Figure]:
    """Calibration error, and the share of images that are called unfamiliar."""
    confidence, rng = confidences(fitted, found), np.random.default_rng(0)
    drawn = rng.integers(len(confidence), size=(RESAMPLES, len(confidence)))
    errors = [calibration_error(confidence[rows], found.right[rows]) for rows in drawn]
    low, high = np.quantile(errors, [0.025, 0.975])
    error = Figure(calibration_error(confidence, found.right), float(low), float(high))
    return {"calibration_error": error, "unfamiliar": share(np.array(fitted.are_unfamiliar(found.pixels)))}


def share(flags: np.ndarray) -> Figure:
    """Return a share with its 95 % interval (Wilson, 1927)."""
    interval = binomtest(int(flags.sum()), len(flags)).proportion_ci(method="wilson")
    return Figure(float(flags.mean()), interval.low, interval.high)


def reliability(confidence: np.ndarray, right: np.ndarray) -> dict[str, Figure]:
    """Return the share of right captions in each bin of confidence, and the calibration error."""
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    figures = {"calibration_error": exactly(calibration_error(confidence, right)), "captions": exactly(len(right))}
    for one in range(BINS):
        if (number == one).any():
            figures[f"{one * 100 // BINS} to {(one + 1) * 100 // BINS} %"] = share(right[number == one])
    for kept in (0.1, 0.25, 0.5):
        best = np.argsort(-confidence, kind="stable")[: max(1, round(kept * len(right)))]
        figures[f"surest {kept:.0%}".replace("%", " %")] = share(right[best])
    return figures


def photograph_figures(fitted: Calibration, model: ImageTextModel, files: list[Path]) -> dict[str, Figure]:
    """Return the share of photographs that are called unfamiliar."""
    pixels = np.stack([model.preprocess(model.preprocess.decode(path.read_bytes(), path.name)) for path in files])
    return {"unfamiliar": share(np.array(fitted.are_unfamiliar(pixels))), "images": exactly(len(files))}


def listed_photographs(folder: Path) -> dict[str, list[Path]]:
    """Return the photographs of each list.

    Raises:
        UserError: one is not there.
    """
    lists = _listed(folder)
    for path in itertools.chain(*lists.values()):
        if not path.is_file():
            raise UserError(f"{path}: no such photograph; {PHOTOGRAPHS} says where they come from")
    return lists


def _listed(folder: Path) -> dict[str, list[Path]]:
    lists: dict[str, list[Path]] = {}
    for line in PHOTOGRAPHS.read_text(encoding="utf-8").splitlines():
        if line.startswith(("# photographs", "# cut-outs")):
            found = lists.setdefault(line.removeprefix("# ").partition(":")[0], [])
        elif not line.startswith("#"):
            found.append(folder / line)
    return lists


# --- The card

TITLE, NEXT = "## Confidence and unfamiliar images", "## Training"


def _percent(figure: Figure) -> str:
    return f"{100 * figure.value:.1f} % ({100 * figure.low:.1f} to {100 * figure.high:.1f})"


_WHOLE = (
    "(expected calibration error, ten bins). An image is *unfamiliar* if it is unlike the training images. The fit",
    "used no photographs. `photographs, other` were first measured after all choices had been made.",
)
_CUT_OUTS = (
    "(expected calibration error, ten bins). An image is *unfamiliar* if it looks like a photograph, or if it is",
    "unlike the training images and has shading or texture inside. The fit used `photographs`, whole and cut out by",
    "outlines of drawings, but not `photographs, other` and `cut-outs` (animals and food from another package).",
)


def confidence_section(figures: Mapping[str, Mapping[str, Figure]]) -> list[str]:
    """Return the section of the card about confidence and unfamiliar images."""
    bins = figures["confidence"]
    rows = {split: found for split, found in figures.items() if "unfamiliar" in found}
    of_splits = []
    for split, found in rows.items():
        count = f"{found['images'].value:.0f}" if "images" in found else ""
        error = found.get("calibration_error")
        shown = "" if error is None else f"{error.value:.3f} ({error.low:.3f} to {error.high:.3f})"
        of_splits.append((split, count, _percent(found["unfamiliar"]), shown))
    return [
        TITLE,
        "",
        "*Confidence* is the probability that a caption is exactly right. For drawings that were used neither in",
        f"training nor in the fit ({bins['captions'].value:,.0f} of them), it is off by "
        f"{bins['calibration_error'].value:.3f} on average",
        *(_CUT_OUTS if "cut-outs" in figures else _WHOLE),
        "",
        *table(
            ("confidence", "exactly right"),
            [(name.replace("surest", "most confident"), _percent(bins[name])) for name in bins if "%" in name],
        ),
        "",
        *table(("", "images", "flagged as unfamiliar", "calibration error"), of_splits),
    ]


# --- The picture


def draw(confidence: np.ndarray, right: np.ndarray, bins: dict[str, Figure], path: Path) -> None:
    """Draw how often captions of a confidence are right, and how many are right among those that are kept."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, other) = pyplot.subplots(1, 2, figsize=(8, 3.2), dpi=110)
    rows = [(one, bins[name]) for one in range(BINS) if (name := f"{one * 10} to {one * 10 + 10} %") in bins]
    middles = [(one + 0.5) / BINS for one, _ in rows]
    spread = [[f.value - f.low for _, f in rows], [f.high - f.value for _, f in rows]]
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    left.errorbar(middles, [f.value for _, f in rows], spread, fmt="o", color="tab:blue", capsize=3)
    left.set(xlabel="confidence", ylabel="exactly right", xlim=(0, 1), ylim=(0, 1))
    order = np.argsort(-confidence, kind="stable")
    kept = np.arange(1, len(order) + 1)
    start = max(10, len(order) // 100)
    other.plot(kept[start:] / len(order), (right[order].cumsum() / kept)[start:], color="tab:blue")
    other.set(xlabel="captions, most confident first", ylabel="exactly right among them", xlim=(0, 1), ylim=(0, 1))
    for axes in (left, other):
        axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.canvas.draw()
    Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB").save(path, quality=80, method=6)


if __name__ == "__main__":
    sys.exit(exit_code(main))
