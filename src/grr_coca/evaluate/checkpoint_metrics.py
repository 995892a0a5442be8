"""Evaluate a checkpoint on a source of pairs: losses and retrieval, with confidence intervals over images."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from grr_coca.common.errors import UserError
from grr_coca.common.ranks import Ranks
from grr_coca.data.dataset import PairDataset, make_loader
from grr_coca.data.order import ALL, EvaluationOrder, Share
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.views import every_caption
from grr_coca.evaluate.intervals import Measure, by_image
from grr_coca.evaluate.retrieval import Gallery, Retrieval, make_gallery, retrieve
from grr_coca.evaluate.split import (
    MAX_LOG_PERPLEXITY,
    RECALLS,
    Evaluation,
    PairResults,
    Scaling,
    aggregate,
    concatenate,
    contrastive_batches,
    run_pairs,
    scaling_of,
)
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.model.losses import LossWeights, contrastive_loss


def loss_measures(
    results: PairResults,
    scaling: Scaling,
    contrastive_batch_size: int,
    weights: LossWeights,
) -> dict[str, Measure]:
    """The losses of a split, each as a `Measure`. Names and values are those of `Evaluation`."""
    contrastive, visits = _contrastive_per_pair(results, scaling, contrastive_batch_size)
    columns = (contrastive, visits, results.nll, results.num_tokens)
    rows = torch.stack([column.double() for column in columns], dim=1).numpy()
    statistics = by_image(rows, results.embeddings.image_ids.numpy())
    return {
        "contrastive_loss": Measure(statistics, _contrastive),
        "perplexity": Measure(statistics, _perplexity),
        "coca_loss": Measure(statistics, partial(_coca, weights)),
    }


def retrieval_measures(found: Retrieval) -> dict[str, Measure]:
    """Recalls by name, such as `text_to_image/R@1`. Only the queries are resampled; the candidates stay the same."""
    image_of = found.image_of.numpy()
    measures = {}
    for k in RECALLS:
        hits = (found.text_to_image.rank < k).double().numpy()
        sums = by_image(np.stack([hits, np.ones_like(hits)], axis=1), image_of)
        measures[f"text_to_image/R@{k}"] = Measure.ratio(sums[:, 0], sums[:, 1])
    for k in RECALLS:
        measures[f"image_to_text/R@{k}"] = Measure.mean((found.image_to_text.rank < k).double().numpy())
    return measures


def _contrastive_per_pair(results: PairResults, scaling: Scaling, batch_size: int) -> tuple[Tensor, Tensor]:
    # For each pair: its loss, summed over its batches, and the number of its batches. Most pairs are in one batch; the
    # pairs that fill up the last batch are in two.
    e = results.embeddings
    losses, visits = torch.zeros(len(e.image)), torch.zeros(len(e.image))
    for rows in contrastive_batches(len(e.image), batch_size):
        pairs = e.pairs(rows)
        for i, row in enumerate(rows.tolist()):
            losses[row] += len(rows) * contrastive_loss(e.pairs(rows[i : i + 1]), pairs, *scaling, first_row=i)
        visits[rows] += 1
    return losses, visits


def _contrastive(summed: np.ndarray) -> np.ndarray:
    return summed[..., 0] / summed[..., 1]


def _captioning(summed: np.ndarray) -> np.ndarray:
    return summed[..., 2] / summed[..., 3]


def _perplexity(summed: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(_captioning(summed), MAX_LOG_PERPLEXITY))


def _coca(weights: LossWeights, summed: np.ndarray) -> np.ndarray:
    return weights.contrastive * _contrastive(summed) + weights.captioning * _captioning(summed)


@dataclass(frozen=True)
class SplitMeasures:
    """The metrics of a split, as plain numbers and as `Measure` objects, which give intervals and paired differences.

    `num_tokens`: the tokens of all captions that were predicted; a caption is cut to the context of the model.
    """

    evaluation: Evaluation
    measures: dict[str, Measure]
    num_tokens: int


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    source: PairSource,
    batch_size: int,
    weights: LossWeights,
) -> Evaluation:
    """Losses and retrieval on a split, with the checkpoint's own tokenizer and preprocessing.

    Args:
        checkpoint: the model. Its training mode is restored.
        source: the split.
        batch_size: pairs per contrastive batch. The contrastive loss depends on it.
        weights: weights of the parts of `coca_loss`.

    Raises:
        UserError: a pair is broken, or the split has fewer pairs than `batch_size`.
    """
    require_pairs(source, batch_size)
    results = pair_results(checkpoint, every_caption(source), batch_size)
    return aggregate(results, scaling_of(checkpoint.model), batch_size, weights)


def measure_checkpoint(
    checkpoint: Checkpoint,
    source: PairSource,
    batch_size: int,
    weights: LossWeights,
) -> SplitMeasures:
    """Evaluate like `evaluate_checkpoint`, and return each metric also as a `Measure`, for intervals."""
    require_pairs(source, batch_size)
    results = pair_results(checkpoint, every_caption(source), batch_size)
    settings = (scaling_of(checkpoint.model), batch_size, weights)
    found = retrieve(gallery_of(results), "equal")
    measures = {**loss_measures(results, *settings), **retrieval_measures(found)}
    return SplitMeasures(aggregate(results, *settings), measures, int(results.num_tokens.sum()))


def pair_results(
    checkpoint: Checkpoint,
    pairs: PairSource,
    batch_size: int,
    ranks: Ranks | None = None,
    num_workers: int = 0,
    *,
    warns: bool = True,
) -> PairResults:
    """Run a checkpoint's model on all pairs.

    Args:
        checkpoint: the model. Its training mode is restored.
        pairs: pairs with one caption each, from `every_caption`. That reads all captions, so a run calls it once, and
            not at each validation.
        batch_size: pairs at a time.
        ranks: ranks that share the work.
        num_workers: processes that read the pairs; 0: this one does.
        warns: report captions that are longer than the context. A run does so at its first validation.
    """
    dataset = as_dataset(checkpoint, pairs)
    share = ALL if ranks is None else Share(ranks.rank, ranks.size)
    order = EvaluationOrder(len(dataset), batch_size, share)
    mine = run_pairs(checkpoint.model, make_loader(dataset, order, num_workers, warns=warns))
    if ranks is None:
        return concatenate(mine)
    in_turn = [part for turn in zip(*ranks.gather_objects(mine), strict=True) for part in turn]
    return concatenate(in_turn[: order.num_batches])


def gallery_of(results: PairResults) -> Gallery:
    """A split as a gallery to search, with each image once."""
    e = results.embeddings
    return make_gallery(e.image, e.text, e.caption_ids, e.image_ids)


def as_dataset(checkpoint: Checkpoint, source: PairSource) -> PairDataset:
    """The pairs as inputs of the checkpoint's model, without augmentation."""
    context_length = checkpoint.config.text_decoder.context_length
    return PairDataset(source, checkpoint.tokenizer, checkpoint.preprocess, context_length)


def require_pairs(source: PairSource, batch_size: int) -> None:
    """Raise an error if a split has too few pairs for one contrastive batch. Each caption of an image is a pair.

    Raises:
        UserError: it has too few pairs.
    """
    if batch_size < 1:
        raise UserError(f"evaluation batch size {batch_size}: give 1 or more")
    # If there are enough images, their captions need not be read.
    count = len(source) if len(source) >= batch_size else len(every_caption(source))
    if count < batch_size:
        if not count:
            raise UserError(f"an empty split: a contrastive loss at batch size {batch_size} needs as many pairs")
        where = f"{source.name(0)} and the pairs beside it"
        raise UserError(
            f"{where}: a contrastive loss at batch size {batch_size} needs as many pairs, and there are {count}; "
            f"give more pairs, or a batch size (in a recipe evaluation: batch_size) of {count} or less"
        )
