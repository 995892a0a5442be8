"""What the row of a stage says of its splits: metrics, and the values that intervals over images are made of."""

import numpy as np

from grr_coca.checkpoint import Checkpoint
from grr_coca.data.sources.pairs import PairSource
from grr_coca.data.sources.views import Subset, every_caption
from grr_coca.evaluate.captioning.caption_split import caption_split, images_of
from grr_coca.evaluate.checkpoint import gallery_of, pair_results, require_pairs
from grr_coca.evaluate.refit import refit_scaling
from grr_coca.evaluate.retrieval import retrieve
from grr_coca.evaluate.split import (
    Evaluation,
    PairResults,
    Scaling,
    aggregate,
    batch_contrastive_losses,
    scaling_of,
)
from grr_coca.study.ledger import CaptionedExample, finite
from grr_coca.train.recipe import CAPTION_SCORES, Recipe

SEED = 0
"""Seed of the draw of examples: the same images for every model, so that they can be shown side by side."""

Numbers = dict[str, float]
Values = dict[str, list]


def row_metrics(evaluation: Evaluation) -> Numbers:
    """The numbers of a split under the names of the ledger. From text to image is what a recall means by itself."""
    numbers = {name.removeprefix("text_to_image/"): value for name, value in evaluation.flat().items()}
    return finite({name: value for name, value in numbers.items() if not name.startswith("median_rank")})


def measure_validation(checkpoint: Checkpoint, val: PairSource, recipe: Recipe) -> tuple[Numbers, Scaling]:
    """Metrics of the validation split, and the scaling that is best on it. In `val`, each caption is a pair."""
    results = _results(checkpoint, val, recipe)
    refitted = refit_scaling(results.embeddings, scaling_of(checkpoint.model), recipe.evaluation.batch_size)
    return _metrics(checkpoint, results, recipe, refitted), refitted


def measure_test(
    checkpoint: Checkpoint, test: PairSource, recipe: Recipe, refitted: Scaling, scores_captions: bool
) -> tuple[Numbers, Values]:
    """Metrics and values of a test split.

    Args:
        checkpoint: the model.
        test: the split.
        recipe: for its batch size and loss weights.
        refitted: the scaling that was found on the validation split.
        scores_captions: caption all images, and score the captions.
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
    if len(found.image_of) > found.text_to_image.num_candidates:  # captions of one image are not drawn one by one
        values["image"] = found.image_of.tolist()
    if scores_captions:
        scores = caption_split(checkpoint, test).scores()
        metrics |= {name: score for name, score in scores.corpus().items() if name in CAPTION_SCORES}
        values["cider_d"] = _rounded(scores.cider_d, 3)
    return metrics, values


def examples(checkpoint: Checkpoint, source: PairSource, count: int) -> tuple[CaptionedExample, ...]:
    """What the model says of some images of a split, always the same ones."""
    drawn = drawn_examples(source, count)
    if not drawn:
        return ()
    said = caption_split(checkpoint, Subset(source, drawn)).hypotheses
    images = dict.fromkeys(source.image_name(index) for index in drawn)  # each once, in the order of the captions
    captions = dict(zip(images, said, strict=True))
    return tuple(
        CaptionedExample(source[index].key, source.captions(index), captions[source.image_name(index)])
        for index in drawn
    )


def drawn_examples(source: PairSource, count: int) -> list[int]:
    """The indices of the images that `examples` takes."""
    return np.random.default_rng(SEED).permutation(len(source))[:count].tolist()


def without_words(source: PairSource, words: tuple[str, ...]) -> Subset:
    """The pairs of images of which no caption holds one of some words."""
    captions = {tuple(pairs): [text for i in pairs for text in source.captions(i)] for pairs in images_of(source)}
    kept = [pairs for pairs, texts in captions.items() if not any(word in text for word in words for text in texts)]
    return Subset(source, sorted(i for pairs in kept for i in pairs))


def _results(checkpoint: Checkpoint, pairs: PairSource, recipe: Recipe) -> PairResults:
    require_pairs(pairs, recipe.evaluation.batch_size)
    return pair_results(checkpoint, pairs, recipe.evaluation.batch_size)


def _metrics(checkpoint: Checkpoint, results: PairResults, recipe: Recipe, refitted: Scaling) -> Numbers:
    settings = (recipe.evaluation.batch_size, recipe.losses.weights)
    evaluation = aggregate(results, scaling_of(checkpoint.model), *settings)
    with_refitted = np.mean(_batches(results, refitted, recipe, digits=12))
    return row_metrics(evaluation) | finite({"contrastive_loss_refitted": float(with_refitted)})


def _batches(results: PairResults, scaling: Scaling, recipe: Recipe, digits: int = 5) -> list[float]:
    losses = batch_contrastive_losses(results.embeddings, scaling, recipe.evaluation.batch_size)
    return _rounded(np.array([loss.item() for loss in losses]), digits)


def _rounded(numbers: np.ndarray, digits: int) -> list[float]:
    """As many digits as intervals need: a ledger is to stay small."""
    return [round(float(number), digits) for number in numbers]
