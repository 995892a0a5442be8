"""Report of an adapted model's accuracy, with advice for the next step, as text, as JSON and as a page with images.

All metrics are measured on held-out images.
"""

import base64
import html
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from grr_coca.adapt.adapt_model import REPORT, AdaptationResult
from grr_coca.adapt.fit import DIRECTIONS, RECALLS, AnswerRanks, flat_figures
from grr_coca.adapt.read_pairs import read_pixels
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources.folder import read_image_file
from grr_coca.evaluate.intervals import LEVEL, RESAMPLES, Interval, Measure, draw_resamples, sum_by_image

_METHODS = ("chance", "as shipped", "centred", "nearest neighbour", "adapted")
_TITLES = {
    "chance": "a random order",
    "as shipped": "the base model",
    "centred": "the base model, minus the mean embedding of your images",
    "nearest neighbour": "the captions of the most similar image",
    "adapted": "this model",
}
_KINDS = {"known": "captions that the fit has seen, of other images", "new": "captions that the fit has not seen"}
_NUM_WORST, _NUM_SAMPLES, _SIDE = 12, 12, 96
_MIN_GAIN = 0.02
"""Minimum gain in recall that justifies collecting more pairs."""
_TRAINING = (
    "Fine-tuning, which takes minutes, would gain little: with 1,000 pairs of three domains, it raised R@1 from 37 to "
    "40% (by domain, by -1 to +7 points), and R@10 by 0 to 2 points (docs/training.md). To measure the gain for your "
    "pairs, hold some of them out for grr-coca compare, and run grr-coca finetune on the others."
)
_TRAINING_MANY = (
    "With this many pairs, training is more accurate: with 10,000 icons, R@10 was 31% after fine-tuning for minutes, "
    "and 29% with adapt; with 238,391 icons, it was 76% after training for hours (docs/training.md). Run grr-coca "
    "finetune, or pretrain."
)
_MIN_TRAINING = 10_000
"""Number of images from which training was measured to be better than adapting. Nothing has been measured between 3,000
and 10,000 images."""
_MIN_IMAGES_PER_CLASS = 5
"""Minimum number of images per distinct caption for treating captions as classes."""


def report_text(adapted: AdaptationResult, out: Path) -> str:
    """Return the report as text for a terminal. `out` is the folder of the adapted model."""
    lines = [_summary(adapted), ""]
    for kind, methods in adapted.measured.figures.items():
        first = next(iter(methods.values()))
        lines.append(f"{_KINDS[kind]}: {len(first.groups):,} queries, among about {_gallery_size(adapted):,} images")
        table = [["", "text to image R@1", "R@10", "image to text R@1", "R@10"]]
        table += [[_title(adapted, method), *cells] for method, cells in _recalls(methods).items()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            lines.append("  " + "  ".join(map(str.ljust, row, widths)).rstrip())
        lines.append("")
    captions = adapted.captions
    lines.append("captions, CIDEr and exactly right:")
    lines += [f"  {mode:<18} {cider:5.2f}  {captions.exact[mode]:6.1%}" for mode, cider in captions.cider.items()]
    lines += ["", f"learning curve, {_curve_text(adapted)}", "", *_advice(adapted, out)]
    lines += [adapted.graph] if adapted.graph else []
    lines.append(f"{out / REPORT} shows this with images")
    return "\n".join(lines)


def as_json(adapted: AdaptationResult) -> str:
    """Return the report as JSON."""
    fitted, measured, gains = adapted.fitted, adapted.measured, gains_over_base(adapted)
    content = {
        "images": adapted.images.num_fit,
        "held_out_images": len(adapted.images) - adapted.images.num_fit,
        "pairs": len(adapted.images.fitted_captions.text_ids),
        "different_captions": len(adapted.header.captions),
        "skipped_pairs": len(adapted.images.bad),
        "reused_images": adapted.num_reused,
        "seconds": round(adapted.seconds, 1),
        "encoder": None if adapted.encoder is None else adapted.encoder.name,
        "encoder_graph": adapted.graph or None,
        "start_model": adapted.start,
        "share_known_captions": measured.share_known,
        "values": vars(fitted.values),
        "keep_base_model": _should_keep_base(gains),
        "gains_over_base": {metric: gain._asdict() for metric, gain in gains.items()},
        "retrieval": flat_figures(measured.figures),
        "captions": {
            mode: {"CIDEr": cider, "exact": adapted.captions.exact[mode]}
            for mode, cider in adapted.captions.cider.items()
        },
        "learning_curve": {str(share): value for share, (value, _) in measured.curve.items()},
    }
    return json.dumps(content, indent=2)


def report_page(adapted: AdaptationResult, out: Path) -> str:
    """Return the report as an HTML page with embedded images. `out` is the folder of the adapted model.

    Raises:
        BadSample: If an image of an example can no longer be read.
    """
    parts = [f"<p>{html.escape(_summary(adapted))}</p>", "<h2>Next step</h2>"]
    parts += [f"<p>{html.escape(line)}</p>" for line in _advice(adapted, out)]
    for kind, methods in adapted.measured.figures.items():
        first = next(iter(methods.values()))
        parts.append(f"<h2>Search: {_KINDS[kind]}</h2>")
        parts.append(f"<p>{len(first.groups):,} queries among about {_gallery_size(adapted):,} images.</p>")
        parts.append(_table_html(adapted, methods))
    parts += ["<h2>Would more pairs help?</h2>", _curve_svg(adapted), f"<p>{_curve_text(adapted)}</p>"]
    parts.append("<h2>Captions</h2>")
    rows = [
        f"<tr><td>{mode}</td><td>{cider:.2f}</td><td>{adapted.captions.exact[mode]:.1%}</td></tr>"
        for mode, cider in adapted.captions.cider.items()
    ]
    parts.append(f"<table><tr><th></th><th>CIDEr</th><th>exactly right</th></tr>{''.join(rows)}</table>")
    sure = "" if adapted.captions.captioning.confidence is None else " its confidence,"
    parts.append(f"<p>Below each image: the caption of this model,{sure} and in bold your caption.</p>")
    parts += ["<h2>Examples</h2>", *_figures_html(adapted, _evenly_spaced_samples(adapted, _NUM_SAMPLES))]
    parts += ["<h2>Worst captions</h2>", *_figures_html(adapted, _worst_samples(adapted))]
    return _PAGE.format(title=html.escape(out.name), body="\n".join(parts))


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .2rem .8rem; text-align: left; border-bottom: 1px solid #ddd; }}
figure {{ display: inline-block; width: 11rem; margin: .5rem; vertical-align: top; font-size: 13px; }}
figure img {{ width: 96px; height: 96px; image-rendering: auto; border: 1px solid #ddd; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def _summary(adapted: AdaptationResult) -> str:
    images, reused = adapted.images, f", {adapted.num_reused:,} of them read before" if adapted.num_reused else ""
    skipped = f"; {len(images.bad):,} pairs were skipped" if images.bad else ""
    held = len(images) - images.num_fit
    measured = f"held-out images ({held:,})" if held else "images that the fit did not see"
    beside = " with" if images.is_seen_by_base else " to features of"
    beside = "" if adapted.encoder is None else f"{beside} {adapted.encoder.name}"
    beside = beside if adapted.start is None else f" and its start model {adapted.start}"
    return (
        f"{images.num_fit:,} images{reused} with {len(images.fitted_captions.text_ids):,} captions, "
        f"{len(adapted.header.captions):,} of them distinct, adapted from {adapted.header.base}{beside} in "
        f"{adapted.seconds:.0f} s{skipped}. All numbers were measured on {measured}. Brackets contain 95% "
        "intervals over images."
    )


def _gallery_size(adapted: AdaptationResult) -> int:
    folds = adapted.fitted.folds.any_caption
    return int((folds >= 0).sum()) // (int(folds.max()) + 1)


def _recalls(methods: dict[str, AnswerRanks]) -> dict[str, list[str]]:
    """Return the recalls of each method, with 95 % confidence intervals over images.

    The intervals of all methods are computed from the same resamples of the images.
    """
    first = next(iter(methods.values()))
    own = [method for method in _METHODS if method in methods]
    found: dict[str, list[str]] = {method: [] for method in ("chance", *own)}
    for direction in DIRECTIONS:
        hits = [methods[method].ranks[direction] < k for method in own for k in RECALLS]
        rows = np.stack([*hits, np.ones(len(hits[0]))], axis=1).astype(np.float64)
        sums = sum_by_image(rows, first.groups) if direction == "text_to_image" else rows
        drawn = np.concatenate([part @ sums for part in draw_resamples(len(sums), RESAMPLES, 0)])
        low, high = np.quantile(drawn[:, :-1] / drawn[:, -1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        values = sums[:, :-1].sum(axis=0) / sums[:, -1].sum()
        shown = [f"{v:.1%} [{a:.0%}, {b:.0%}]" for v, a, b in zip(values, low, high, strict=True)]
        for number, method in enumerate(own):
            found[method] += shown[number * len(RECALLS) : (number + 1) * len(RECALLS)]
        found["chance"] += [f"{share:.1%}" for share in first.chance[direction].mean(axis=0)]
    return found


def _title(adapted: AdaptationResult, method: str) -> str:
    return "fine-tuned" if method == "as shipped" and adapted.is_tuned else method


def _table_html(adapted: AdaptationResult, methods: dict[str, AnswerRanks]) -> str:
    heads = "".join(f"<th>{direction.replace('_', ' ')} R@{k}</th>" for direction in DIRECTIONS for k in RECALLS)
    rows = ""
    for method, shown in _recalls(methods).items():
        cells = "".join(f"<td>{cell}</td>" for cell in shown)
        rows += f"<tr><td title='{_TITLES[method]}'>{_title(adapted, method)}</td>{cells}</tr>"
    return f"<table><tr><th></th>{heads}</tr>{rows}</table>"


# --- Learning curve and advice


def _curve_text(adapted: AdaptationResult) -> str:
    measured = adapted.measured
    return f"R@{measured.curve_k}: " + ", ".join(
        f"{share:.0%} of the pairs {value:.1%} ± {1.96 * error:.1%}" for share, (value, error) in measured.curve.items()
    )


def recall_gain(adapted: AdaptationResult) -> tuple[float, float]:
    """Return the gain in recall from half of the pairs to all pairs, and the standard error of the recall with half."""
    half, whole = adapted.measured.curve[0.5], adapted.measured.curve[1.0]
    return whole[0] - half[0], half[1]


def gains_over_base(adapted: AdaptationResult) -> dict[str, Interval]:
    """Return metrics of the adapted model minus those of the unchanged base, with paired 95 % intervals over images.

    The metrics are the recall of all held-out queries, `text-to-image R@1` or `text-to-image R@10` as in the learning
    curve, and `CIDEr`. Metrics that were not measured are omitted. If the base does not process images, the result is
    empty.
    """
    k = adapted.measured.curve_k
    found: dict[str, Interval] = {}
    kinds = adapted.measured.figures.values()
    if kinds and adapted.images.is_seen_by_base:
        hits = [[methods[name].ranks["text_to_image"] < k for name in ("adapted", "as shipped")] for methods in kinds]
        changes = np.concatenate([own.astype(np.float64) - base for own, base in hits])
        groups = np.concatenate([methods["adapted"].groups for methods in kinds])
        sums = sum_by_image(np.stack([changes, np.ones(len(changes))], axis=1), groups)
        found[f"text-to-image R@{k}"] = Measure.ratio(sums[:, 0], sums[:, 1]).interval()
    if adapted.captions.cider_gain is not None:
        found["CIDEr"] = adapted.captions.cider_gain
    return found


def _should_keep_base(gains: dict[str, Interval]) -> bool:
    """Return whether the adapted model is significantly worse than its base in a metric, and better in none."""
    return any(gain.high < 0 for gain in gains.values()) and not any(gain.low > 0 for gain in gains.values())


def _base_advice(adapted: AdaptationResult, out: Path, gains: dict[str, Interval]) -> str:
    """Return which model to use for which purpose, if the adapted model is worse than its base in some metric."""
    base = adapted.header.base
    changes = " and ".join(
        f"{name} by {gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
        if name == "CIDEr"
        else f"{name} by {100 * gain.value:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
        for name, gain in gains.items()
    )
    changed = f"On held-out images, adapting changed {changes}."
    if _should_keep_base(gains):
        reason = "" if adapted.is_tuned else " Perhaps the base model was trained on these or very similar pairs."
        return f"Keep the base model, {base}: it is better than the adapted model. {changed}{reason}"
    searcher, captioner = (out, base) if gains["CIDEr"].high < 0 else (base, out)
    return f"Search with -c {searcher}, and write captions with -c {captioner}. {changed}"


def _more_pairs_advice(adapted: AdaptationResult) -> str:
    k = adapted.measured.curve_k
    gain, error = recall_gain(adapted)
    if gain > max(_MIN_GAIN, error):
        return f"More pairs would help: from half of them to all, R@{k} grew by {100 * gain:.0f} points."
    if error > _MIN_GAIN:
        return (
            f"With so few pairs, it is unclear whether more would help: from half of them to all, R@{k} changed by "
            f"{100 * gain:+.0f} ± {196 * error:.0f} points."
        )
    return "More pairs of this kind would help little: half of them do nearly as well."


def _advice(adapted: AdaptationResult, out: Path) -> Iterator[str]:
    """Yield advice, one paragraph at a time."""
    images, gains = adapted.images, gains_over_base(adapted)
    is_kept = _should_keep_base(gains)
    worse = {name for name, gain in gains.items() if gain.high < 0}
    if worse:
        yield _base_advice(adapted, out, gains)
    if not is_kept:
        yield _more_pairs_advice(adapted)
    num_captions = len(adapted.header.captions)
    if images.num_fit >= _MIN_IMAGES_PER_CLASS * num_captions:
        yield (
            f"The pairs have only {num_captions} distinct captions, so these are classes: `grr-coca classify` "
            "assigns them to new images. Captions that are sentences would make images searchable by more words."
        )
    if not adapted.is_tuned and images.is_seen_by_base and not is_kept:
        yield _TRAINING if images.num_fit < _MIN_TRAINING else _TRAINING_MANY
    given = "IMAGES" if images.is_seen_by_base else "FEATURES"
    model = adapted.header.base if is_kept or worse - {"CIDEr"} else out
    yield f"To search: grr-coca index {given} --out INDEX -c {model}, then grr-coca serve INDEX --open"


def _curve_svg(adapted: AdaptationResult) -> str:
    points = [(share, *found) for share, found in adapted.measured.curve.items()]
    top = max(value + 2 * error for _, value, error in points)
    positions = [
        (40 + 340 * share, 170 - 150 * value / top, 150 * 1.96 * error / top) for share, value, error in points
    ]
    line = " ".join(f"{x:.0f},{y:.0f}" for x, y, _ in positions)
    bars = "".join(
        f"<line x1='{x:.0f}' x2='{x:.0f}' y1='{y - e:.0f}' y2='{y + e:.0f}' stroke='#888'/>" for x, y, e in positions
    )
    dots = "".join(f"<circle cx='{x:.0f}' cy='{y:.0f}' r='4' fill='#1660c0'/>" for x, y, _ in positions)
    names = "".join(
        f"<text x='{x:.0f}' y='190' text-anchor='middle'>{share:.0%}</text>"
        f"<text x='{x:.0f}' y='{y - 12:.0f}' text-anchor='end'>{value:.0%}</text>"
        for (x, y, _), (share, value, _) in zip(positions, points, strict=True)
    )
    return (
        "<svg width='420' height='200' role='img' aria-label='recall by share of the pairs'>"
        "<line x1='40' x2='400' y1='170' y2='170' stroke='#000'/><line x1='40' x2='40' y1='10' y2='170' stroke='#000'/>"
        f"<polyline points='{line}' fill='none' stroke='#1660c0' stroke-width='2'/>{bars}{dots}{names}</svg>"
    )


# --- Images


def _evenly_spaced_samples(adapted: AdaptationResult, count: int) -> list[int]:
    samples = adapted.captions.samples
    return [number * len(samples) // count for number in range(min(count, len(samples)))]


def _worst_samples(adapted: AdaptationResult) -> list[int]:
    """Return the indices of the samples whose captions are least similar to the right captions, worst first.

    Captions are compared by their text vectors. A caption that is not among those of the images has no text vector, so
    the vector of its image is compared instead.
    """
    vectors = adapted.fitted.arrays.caption_vectors
    text_ids = {text: number for number, text in enumerate(adapted.images.captions.texts)}
    scores = []
    for image, text, _ in adapted.captions.samples:
        right = adapted.images.captions.text_ids[adapted.images.captions.owners == image]
        mine = adapted.measured.held_out[image] if text not in text_ids else vectors[text_ids[text]]
        scores.append(float((vectors[right] @ mine).max()))
    return np.argsort(scores, kind="stable")[:_NUM_WORST].tolist()


def _figures_html(adapted: AdaptationResult, chosen: list[int]) -> Iterator[str]:
    for number in chosen:
        image, text, confidence = adapted.captions.samples[number]
        right = adapted.images.captions.texts_of(image)
        sure = "" if confidence is None else f" ({confidence:.0%})"
        yield (
            f"<figure>{_image_html(adapted, image)}<figcaption>{html.escape(text)}{sure}<br>"
            f"<b>{html.escape(' / '.join(right))}</b></figcaption></figure>"
        )


def _image_html(adapted: AdaptationResult, image: int) -> str:
    """Return an image as HTML.

    If the pair has features in place of an image, return the image that is displayed for the features, or the pair's
    key if it has no such image.
    """
    pair_id = adapted.images.pair_ids[image]
    if adapted.images.is_seen_by_base:
        picture = Image.fromarray(read_pixels(adapted.source, pair_id, adapted.model))
    else:
        pair = adapted.source[pair_id]
        path = pair.picture
        if path is None:
            return html.escape(pair.key)
        picture = Preprocess(_SIDE).decode_square(read_image_file(path, str(path)), str(path))
    file = io.BytesIO()
    picture.resize((_SIDE, _SIDE)).save(file, "WEBP", quality=80)
    return f"<img alt='' src='data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}'>"
