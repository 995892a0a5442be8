"""Measure a trained model for its ledger row: metrics, values per image, and captions for the showcase."""

from contextlib import suppress
from pathlib import Path

import numpy as np

from grr_coca.data.sources.base import BadSample, PairSource
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import Subset, every_caption
from grr_coca.evaluate.caption_split import caption_split, pairs_by_image
from grr_coca.evaluate.checkpoint_metrics import refit_scaling
from grr_coca.evaluate.split import (
    PairResults,
    Scaling,
    aggregate,
    batch_contrastive_losses,
    gallery_of,
    pair_results,
    require_pairs,
    retrieve,
    scaling_of,
)
from grr_coca.evaluate.table import row_metrics
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.train.recipe import CAPTION_SCORES, Recipe
from grr_coca_study.plan import Plan, showcase_of, stage_names
from grr_coca_study.rows import CaptionedExample, without_nan, write_to_study
from grr_coca_study.stages import stage_recipe
from grr_coca_study.thumbnails import thumbnail, thumbnail_path

_SEED = 0
"""Seed for sampling example images. They are the same for every model, so that a report can show captions side by
side."""

Numbers = dict[str, float]
Values = dict[str, list]


def measure_validation(checkpoint: Checkpoint, val: PairSource, recipe: Recipe) -> tuple[Numbers, Scaling]:
    """Return the metrics on the validation split, and the scaling (temperature) that fits this split best.

    Each caption counts as a pair.
    """
    results = _results(checkpoint, val, recipe)
    refitted = refit_scaling(results.embeddings, scaling_of(checkpoint.model), recipe.evaluation.batch_size)
    return _metrics(checkpoint, results, recipe, refitted), refitted


def measure_test(
    checkpoint: Checkpoint, test: PairSource, recipe: Recipe, refitted: Scaling, scores_captions: bool
) -> tuple[Numbers, Values]:
    """Return the metrics and values on a test split, as in `LedgerRow`.

    Args:
        checkpoint: Model to measure.
        test: Test split.
        recipe: Recipe with the evaluation batch size and the loss weights.
        refitted: Best scaling for the validation split, see `measure_validation`.
        scores_captions: Whether to caption all images and score the captions.
    """
    results = _results(checkpoint, every_caption(test), recipe)
    metrics = _metrics(checkpoint, results, recipe, refitted)
    found = retrieve(gallery_of(results), "equal")
    own = scaling_of(checkpoint.model)
    values: Values = {
        "contrastive_batches": _batches(results, own, recipe),
        "contrastive_batches_refitted": _batches(results, refitted, recipe),
        "nll": _rounded(results.nll.numpy(), 3),
        "tokens": results.num_tokens.tolist(),
        "rank": found.text_to_image.rank.tolist(),
    }
    # The bootstrap resamples images together with all their captions.
    if len(found.image_of) > found.text_to_image.num_candidates:
        values["image"] = found.image_of.tolist()
    if scores_captions:
        scores = caption_split(checkpoint, test).scores()
        metrics |= {name: score for name, score in scores.corpus().items() if name in CAPTION_SCORES}
        values["cider_d"] = _rounded(scores.cider_d, 3)
    return metrics, values


def examples(checkpoint: Checkpoint, source: PairSource, count: int) -> tuple[CaptionedExample, ...]:
    """Return the model's captions for `count` pairs of a split, which are the same for every model."""
    drawn = sample_examples(source, count)
    if not drawn:
        return ()
    hypotheses = caption_split(checkpoint, Subset(source, drawn)).hypotheses
    images = dict.fromkeys(source.image_name(index) for index in drawn)  # each image once, in the order of `hypotheses`
    captions = dict(zip(images, hypotheses, strict=True))
    return tuple(
        CaptionedExample(source[index].key, source.captions(index), captions[source.image_name(index)])
        for index in drawn
    )


def sample_examples(source: PairSource, count: int) -> list[int]:
    """Return the indices of the pairs that `examples` captions."""
    return np.random.default_rng(_SEED).permutation(len(source))[:count].tolist()


def without_words(source: PairSource, words: tuple[str, ...]) -> Subset:
    """Return the pairs of all images whose captions contain none of the given words, not even as a part of a word."""
    captions = {tuple(pairs): [text for i in pairs for text in source.captions(i)] for pairs in pairs_by_image(source)}
    kept = [pairs for pairs, texts in captions.items() if not any(word in text for word in words for text in texts)]
    return Subset(source, sorted(i for pairs in kept for i in pairs))


def write_showcase(plan: Plan, out: Path) -> None:
    """Write a thumbnail of each image that the report shows, next to the ledger, unless the thumbnail already exists.

    Raises:
        UserError: If the folder cannot be written to.
    """
    for stage in stage_names(plan):
        split, count = showcase_of(plan, stage)
        path = stage_recipe(plan, plan.arms[0], stage, 0, {}).data.test.get(split)
        if path is None or count == 0:
            continue
        source = open_source(path)
        for index in sample_examples(source, count):
            with suppress(BadSample):  # an invalid image has no thumbnail
                pair = source[index]
                picture = thumbnail_path(out, stage, pair.key)
                if not picture.exists():
                    write_to_study(picture, thumbnail(pair))


def _results(checkpoint: Checkpoint, pairs: PairSource, recipe: Recipe) -> PairResults:
    require_pairs(pairs, recipe.evaluation.batch_size)
    return pair_results(checkpoint, pairs, recipe.evaluation.batch_size)


def _metrics(checkpoint: Checkpoint, results: PairResults, recipe: Recipe, refitted: Scaling) -> Numbers:
    settings = (recipe.evaluation.batch_size, recipe.losses.weights)
    evaluation = aggregate(results, scaling_of(checkpoint.model), *settings)
    with_refitted = np.mean(_batches(results, refitted, recipe, digits=12))
    return row_metrics(evaluation) | without_nan({"contrastive_loss_refitted": float(with_refitted)})


def _batches(results: PairResults, scaling: Scaling, recipe: Recipe, digits: int = 5) -> list[float]:
    losses = batch_contrastive_losses(results.embeddings, scaling, recipe.evaluation.batch_size)
    return _rounded(np.array([loss.item() for loss in losses]), digits)


def _rounded(numbers: np.ndarray, digits: int) -> list[float]:
    """Round numbers to `digits` decimal places, so that the ledger stays small."""
    return [round(float(number), digits) for number in numbers]
