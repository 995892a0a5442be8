"""Fit the captioning settings, confidences and inverse temperature of an adapted model on held-out images.

Shapes: N images, S samples, F features of a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from grr_coca.adapt.fit import FitMetrics, FitResult
from grr_coca.adapt.read_pairs import ImageSet, read_pixels
from grr_coca.adapt.ridge import logistic_weights, rows_of
from grr_coca.common import plugins
from grr_coca.common.shapes import Bool, Float, Int
from grr_coca.data.sources.base import PairSource
from grr_coca.evaluate.caption_metrics import score_captions
from grr_coca.evaluate.intervals import Interval, Measure
from grr_coca.infer.adapted.adaptation import Adaptation, Captioning, Confidence
from grr_coca.infer.adapted.captioner import (
    MAX_BEAMS,
    Candidates,
    beam_captions,
    collect_candidates,
    confidence_features,
    make_shortlist,
    rank_candidates,
    select_enabled,
    sum_log_probs,
)
from grr_coca.infer.image_text_model import ImageTextModel

MAX_DECODED = 300
"""Maximum number of held-out images that are captioned."""
_MAX_COMPARED = 96
"""Maximum number of images for comparing the captioning modes. The decoder scores their shortlisted candidates."""
_MAX_SCALED = 250
"""Maximum number of images per fold for fitting the inverse temperature."""
_BATCH = 32
_LOG_PROB_WEIGHT = 0.05
_MIN_LIBRARY = 20
_MIN_RIGHT = 5
"""Minimum number of correct captions, and of incorrect captions, for fitting the confidence."""
_MODES = tuple(
    Captioning(composed=composed, beams=beams, log_prob_weight=weight, confidence=None)
    for composed in (False, True)
    for beams, weight in ((0, 0.0), (MAX_BEAMS, _LOG_PROB_WEIGHT))
)


@dataclass(frozen=True)
class CaptionFigures:
    """Captioning settings, with captions of held-out images and their accuracy.

    Attributes:
        captioning: Settings for choosing captions.
        cider: CIDEr of the captions, by mode: "decoder alone" (only if the base processes images), "nearest image" and
            "adapted".
        exact: Fraction of captions that equal a reference caption except for case, by mode.
        cider_gain: CIDEr of the adapted captions minus that of the decoder's captions, with a paired 95 % interval over
            images. None if the base does not process images, or no image was captioned.
        samples: Index, caption and confidence of each captioned image. The confidence is None if it could not be
            fitted.
    """

    captioning: Captioning
    cider: dict[str, float]
    exact: dict[str, float]
    cider_gain: Interval | None
    samples: list[tuple[int, str, float | None]]


def fit_captions(
    images: ImageSet,
    fitted: FitResult,
    measured: FitMetrics,
    adaptation: Adaptation,
    source: PairSource,
    model: ImageTextModel,
) -> CaptionFigures:
    """Choose the captioning settings, and fit the probability that a caption is exactly right.

    At most `MAX_DECODED` held-out images are captioned, with captions of images in other folds.

    Args:
        images: Images of the fit.
        fitted: Model fitted to the images.
        measured: Measurements of the fit, which include the vectors of held-out images.
        adaptation: The fit as an adaptation of the base model.
        source: The pairs.
        model: The base model.
    """
    random = np.random.default_rng(0)
    unseen = np.flatnonzero(fitted.folds.any_caption >= 0)
    chosen = np.sort(random.permutation(unseen)[:MAX_DECODED])
    allowed = _captions_of_other_folds(images, fitted, chosen)
    kept = [row for row, numbers in enumerate(allowed) if len(numbers)]
    chosen, allowed = chosen[kept], [allowed[row] for row in kept]
    nearest = _nearest_images(images, adaptation, fitted.folds.any_caption, chosen)
    references = [images.captions.texts_of(image) for image in chosen.tolist()]

    def read_by_decoder(pixels: np.ndarray, found: Sequence[Candidates]) -> list[dict[str, float]]:
        """Return the summed log-probability of each shortlisted caption, for each image.

        One shortlist includes joined captions, and another does not; the captions of both are scored.
        """
        texts = [
            list(dict.fromkeys(make_shortlist(own).texts + make_shortlist(select_enabled(own, _MODES[1])).texts))
            for own in found
        ]
        return sum_log_probs(model.engine, model.tokenizer, model.engine.encode_images(pixels), texts)

    def collect(rows: slice, captioning: Captioning) -> tuple[list[Candidates], list[dict[str, float]], list[str]]:
        """Return caption candidates for some of the chosen images, their log-probabilities, and the decoder's captions.

        If the settings use no decoder, there are no log-probabilities, and the decoder's captions are empty.
        """
        candidates: list[Candidates] = []
        log_probs: list[dict[str, float]] = []
        alone: list[str] = []

        def work(part: np.ndarray) -> tuple[list[Candidates], list[dict[str, float]], list[list[str]]]:
            beams: list[list[str]] = [[] for _ in part]
            pixels = np.zeros(0)
            if captioning.beams:
                pixels = np.stack(
                    [read_pixels(source, images.pair_ids[image], model) for image in chosen[part].tolist()]
                )
                beams = beam_captions(model.engine, model.tokenizer, pixels, captioning.beams)
            own = [allowed[row] for row in part.tolist()]
            found = collect_candidates(adaptation, measured.held_out[chosen[part]], captioning, beams, own)
            read = read_by_decoder(pixels, found) if captioning.log_prob_weight else [{}] * len(found)
            return found, read, beams

        def take(done: tuple[list[Candidates], list[dict[str, float]], list[list[str]]]) -> None:
            candidates.extend(done[0])
            log_probs.extend(done[1])
            alone.extend(own[0] if own else "" for own in done[2])

        numbers = np.arange(len(chosen))[rows]
        model.map_batches((numbers[start : start + _BATCH] for start in range(0, len(numbers), _BATCH)), work, take)
        return candidates, log_probs, alone

    first = slice(0, _MAX_COMPARED)
    modes = [mode for mode in _MODES if images.is_seen_by_base or not mode.beams]  # the decoder needs images
    candidates, log_probs, alone = collect(first, modes[-1])
    captioning = _best_mode(candidates, log_probs, references[first], modes)
    more, more_log_probs, _ = collect(slice(_MAX_COMPARED, None), captioning)
    picked, evidence = [], []
    for row, (own, scores_of) in enumerate(zip(candidates + more, log_probs + more_log_probs, strict=True)):
        texts, scores = rank_candidates(own, captioning, scores_of)
        picked.append(texts[0])
        evidence.append(confidence_features(scores, float(nearest.values[row])))
    is_right = np.array([_is_exact(text, own) for text, own in zip(picked, references, strict=True)])
    confidence = fit_logistic(np.array(evidence), is_right)
    captioning = replace(captioning, confidence=confidence)
    compared = references[first]
    by_mode = {"nearest image": nearest.captions[first], "adapted": picked[first]}
    if images.is_seen_by_base:
        by_mode = {"decoder alone": alone, **by_mode}
    gain = None
    if compared and images.is_seen_by_base:
        adapted_cider, base_cider = (score_captions(texts, compared).cider for texts in (by_mode["adapted"], alone))
        gain = Measure.mean(adapted_cider - base_cider).interval()
    sure = [None] * len(picked) if confidence is None else confidence.probabilities(np.array(evidence)).tolist()
    return CaptionFigures(
        captioning,
        {mode: _cider(texts, compared) for mode, texts in by_mode.items()},
        {
            mode: float(np.mean([_is_exact(*pair) for pair in zip(texts, compared, strict=True)]))
            for mode, texts in by_mode.items()
        },
        gain,
        [(int(image), text, one) for image, text, one in zip(chosen, picked, sure, strict=True)],
    )


@dataclass(frozen=True)
class _NearestImages:
    """Kernel value and first caption of each sample's nearest image in the other folds."""

    values: Float[np.ndarray, " S"]
    captions: list[str]


def _captions_of_other_folds(
    images: ImageSet, fitted: FitResult, chosen: Int[np.ndarray, " S"]
) -> list[Int[np.ndarray, " _"]]:
    """Return, for each chosen image, the indices of all captions of images in other folds."""
    captions, folds = images.captions, fitted.folds.any_caption
    by_fold = [np.unique(captions.text_ids[folds[captions.owners] != fold]) for fold in range(int(folds.max()) + 1)]
    return [by_fold[folds[image]] for image in chosen.tolist()]


def _nearest_images(
    images: ImageSet, adaptation: Adaptation, folds: Int[np.ndarray, " N"], chosen: Int[np.ndarray, " S"]
) -> _NearestImages:
    width = len(adaptation.arrays.image_mean)
    features = adaptation.features(images.features[:, :width], images.features[:, width:])
    first = images.captions.first_of_images
    values, captions = np.zeros(len(chosen)), [""] * len(chosen)
    for fold, rows in enumerate(rows_of(folds)):
        mine = np.flatnonzero(folds[chosen] == fold)
        if not len(mine):
            continue
        others = np.setdiff1d(np.arange(len(images)), rows)
        distances = (
            np.square(features[chosen[mine]]).sum(axis=1)[:, None]
            + np.square(features[others]).sum(axis=1)
            - 2 * features[chosen[mine]] @ features[others].T
        )
        best = distances.argmin(axis=1)
        values[mine] = np.exp(-adaptation.header.values.width * distances.min(axis=1).clip(min=0))
        for row, neighbour in zip(mine.tolist(), others[best].tolist(), strict=True):
            captions[row] = images.captions.texts[first[neighbour]]
    return _NearestImages(values, captions)


def _best_mode(
    candidates: Sequence[Candidates],
    log_probs: Sequence[dict[str, float]],
    references: Sequence[Sequence[str]],
    modes: Sequence[Captioning],
) -> Captioning:
    """Return the mode whose captions have the highest CIDEr.

    In a tie, the first mode wins, because it costs least.
    """
    best, best_score = modes[0], -1.0
    for mode in modes:
        texts = [rank_candidates(own, mode, scores)[0][0] for own, scores in zip(candidates, log_probs, strict=True)]
        score = _cider(texts, references)
        if score > best_score + 1e-9:
            best, best_score = mode, score
    return best


def _cider(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    return float(score_captions(texts, references).cider.mean()) if texts else 0.0


def _is_exact(text: str, references: Sequence[str]) -> bool:
    return text.casefold() in {reference.casefold() for reference in references}


def fit_search(
    images: ImageSet,
    fitted: FitResult,
    measured: FitMetrics,
    adaptation: Adaptation,
    captions: CaptionFigures,
    model: ImageTextModel,
) -> dict[str, float] | None:
    """Fit the probability that a search result is correct.

    All captioned images together serve as a library to search, and so does each of their folds with at least
    `_MIN_LIBRARY` images. The queries are captions of these images.

    Args:
        images: Images of the fit.
        fitted: Model fitted to the images.
        measured: Measurements of the fit, which include the vectors of held-out images.
        adaptation: The fit as an adaptation of the base model.
        captions: Captions of held-out images.
        model: The base model.

    Returns:
        Parameters of the probability, or None if the search package is not installed, or there are too few images, or
            too few correct or incorrect results.
    """
    fit_relevance = plugins.find("grr_coca.functions", "fit_relevance")
    chosen = np.array([image for image, _, _ in captions.samples], np.int64)
    if fit_relevance is None or len(chosen) < _MIN_LIBRARY:
        return None
    texts = [text for _, text, _ in captions.samples]
    vectors = adaptation.text_vectors(texts, model.embed_texts(texts, batch_size=256))
    folds = fitted.folds.any_caption[chosen]
    libraries = [np.flatnonzero(folds == fold) for fold in range(int(folds.max()) + 1)]
    libraries = [library for library in libraries if len(library) >= _MIN_LIBRARY] + [np.arange(len(chosen))]
    has: dict[int, set[int]] = {}
    for owner, text_id in zip(images.captions.owners.tolist(), images.captions.text_ids.tolist(), strict=True):
        has.setdefault(owner, set()).add(text_id)
    queries = []
    for number, library in enumerate(libraries):
        for image in chosen[library].tolist():
            text_id = min(has[image])
            is_right = np.array([text_id in has[other] for other in chosen[library].tolist()])
            queries.append((number, adaptation.arrays.caption_vectors[text_id], is_right))
    found: dict[str, float] | None = fit_relevance(measured.held_out[chosen], vectors, libraries, queries)
    return found


# --- Logistic curves


def fit_logistic(evidence: Float[np.ndarray, "S F"], is_right: Bool[np.ndarray, " S"]) -> Confidence | None:
    """Fit a logistic curve to three features.

    Args:
        evidence: Features of each sample, F = 3.
        is_right: Whether each sample is right.

    Returns:
        The curve, or None if fewer than `_MIN_RIGHT` samples are right, or fewer are wrong.
    """
    if not len(evidence) or min(is_right.sum(), (~is_right).sum()) < _MIN_RIGHT:
        return None
    *weights, offset = logistic_weights(evidence, is_right).tolist()
    first, second, third = weights
    return Confidence(weights=(first, second, third), offset=offset)


def fit_scale(images: ImageSet, fitted: FitResult, measured: FitMetrics, adaptation: Adaptation) -> float:
    """Fit the inverse temperature of similarities, and return one of 41 values from 1 to 100.

    The result maximizes the likelihood of each image's own captions among the captions of the first `_MAX_SCALED`
    images of its fold.
    """
    captions, folds = images.captions, fitted.folds.any_caption
    similarities, rights = [], []
    for rows in rows_of(folds):
        rows = rows[:_MAX_SCALED]
        is_mine = np.isin(captions.owners, rows)
        texts = np.unique(captions.text_ids[is_mine])
        found = measured.held_out[rows] @ adaptation.arrays.caption_vectors[texts].T
        number = np.full(len(images), -1)
        number[rows] = np.arange(len(rows))
        is_right = np.zeros(found.shape, bool)
        is_right[number[captions.owners[is_mine]], np.searchsorted(texts, captions.text_ids[is_mine])] = True
        similarities.append(found)
        rights.append(is_right)

    def loss(scale: float) -> float:
        total, count = 0.0, 0
        for found, is_right in zip(similarities, rights, strict=True):
            logits = scale * found.astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            shares = np.exp(logits)
            total -= np.log((shares * is_right).sum(axis=1) / shares.sum(axis=1) + 1e-12).sum()
            count += len(found)
        return total / count

    scales = np.geomspace(1, 100, 41)
    return float(scales[int(np.argmin([loss(scale) for scale in scales]))])
