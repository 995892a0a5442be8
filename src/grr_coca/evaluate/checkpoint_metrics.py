"""Evaluate a checkpoint on a source of pairs: losses and retrieval metrics, with confidence intervals over images.

The temperature can be refitted to a validation split. A better temperature lowers the contrastive loss without
improving the embeddings. If each model gets its own refitted temperature, the remaining difference is due to the
embeddings.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.views import every_caption
from grr_coca.evaluate.intervals import Measure, sum_by_image
from grr_coca.evaluate.split import (
    MAX_LOG_PERPLEXITY,
    RECALLS,
    Embeddings,
    Evaluation,
    PairResults,
    Retrieval,
    Scaling,
    aggregate,
    batch_contrastive_losses,
    contrastive_batches,
    gallery_of,
    pair_results,
    require_pairs,
    retrieve,
    scaling_of,
)
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.model.coca import MAX_LOGIT_SCALE
from grr_coca.model.losses import LossWeights, contrastive_loss


def loss_measures(
    results: PairResults, scaling: Scaling, contrastive_batch_size: int, weights: LossWeights
) -> dict[str, Measure]:
    """Return the contrastive loss, the perplexity and the CoCa loss of a split, as measures.

    Names and values are those of `Evaluation`.
    """
    contrastive, visits = _contrastive_per_pair(results, scaling, contrastive_batch_size)
    columns = (contrastive, visits, results.nll, results.num_tokens)
    rows = torch.stack([column.double() for column in columns], dim=1).numpy()
    statistics = sum_by_image(rows, results.embeddings.image_ids.numpy())
    by_pair, by_token = partial(_mean_loss, 0), partial(_mean_loss, 2)
    return {
        "contrastive_loss": Measure(statistics, by_pair),
        "perplexity": Measure(statistics, lambda summed: np.exp(np.minimum(by_token(summed), MAX_LOG_PERPLEXITY))),
        "coca_loss": Measure(
            statistics, lambda summed: weights.contrastive * by_pair(summed) + weights.captioning * by_token(summed)
        ),
    }


def retrieval_measures(found: Retrieval) -> dict[str, Measure]:
    """Return the recalls in both directions by name, such as `text_to_image/R@1`.

    To compute intervals, only the queries are resampled; the candidates stay the same. All captions of an image are
    resampled together.
    """
    image_of = found.image_of.numpy()
    measures = {}
    for k in RECALLS:
        hits = (found.text_to_image.rank < k).double().numpy()
        sums = sum_by_image(np.stack([hits, np.ones_like(hits)], axis=1), image_of)
        measures[f"text_to_image/R@{k}"] = Measure.ratio(sums[:, 0], sums[:, 1])
    for k in RECALLS:
        measures[f"image_to_text/R@{k}"] = Measure.mean((found.image_to_text.rank < k).double().numpy())
    return measures


def _contrastive_per_pair(results: PairResults, scaling: Scaling, batch_size: int) -> tuple[Tensor, Tensor]:
    # For each pair: its loss, summed over the batches that contain it, and the number of these batches. Most pairs are
    # in one batch; the pairs that fill up the last batch are in two.
    e = results.embeddings
    losses, visits = torch.zeros(len(e.image)), torch.zeros(len(e.image))
    for rows in contrastive_batches(len(e.image), batch_size):
        pairs = e.pairs(rows)
        for i, row in enumerate(rows.tolist()):
            losses[row] += len(rows) * contrastive_loss(e.pairs(rows[i : i + 1]), pairs, *scaling, first_row=i)
        visits[rows] += 1
    return losses, visits


def _mean_loss(column: int, summed: np.ndarray) -> np.ndarray:
    """Divide the sum of a loss, in the given column, by the number of its terms, in the next column."""
    return summed[..., column] / summed[..., column + 1]


@dataclass(frozen=True)
class SplitMeasures:
    """Metrics of a split, as plain numbers and as `Measure` objects, which provide intervals and paired differences.

    Attributes:
        evaluation: All metrics as plain numbers.
        measures: Contrastive loss, perplexity, CoCa loss and recalls by name, such as `text_to_image/R@1`.
        num_tokens: Number of predicted tokens in all captions, which are truncated to the model's context length.
    """

    evaluation: Evaluation
    measures: dict[str, Measure]
    num_tokens: int


def evaluate_checkpoint(
    checkpoint: Checkpoint, source: PairSource, batch_size: int, weights: LossWeights
) -> Evaluation:
    """Return the losses and retrieval metrics on a split, with the checkpoint's own tokenizer and preprocessing.

    Args:
        checkpoint: The model. Its training mode is restored.
        source: The split. Each caption of an image counts as a pair.
        batch_size: Number of pairs per contrastive batch. The contrastive loss depends on this number.
        weights: Weights of the parts of `coca_loss`.

    Raises:
        UserError: If a pair is invalid, `batch_size` is below 1, the split has fewer pairs than `batch_size`, or the
            features of an image are missing and their encoder cannot be opened.
    """
    require_pairs(source, batch_size)
    results = pair_results(checkpoint, every_caption(source), batch_size)
    return aggregate(results, scaling_of(checkpoint.model), batch_size, weights)


def measure_checkpoint(
    checkpoint: Checkpoint, source: PairSource, batch_size: int, weights: LossWeights
) -> SplitMeasures:
    """Evaluate as `evaluate_checkpoint` does, and also return losses and recalls as measures with intervals.

    Args:
        checkpoint: The model. Its training mode is restored.
        source: The split. Each caption of an image counts as a pair.
        batch_size: Number of pairs per contrastive batch. The contrastive loss depends on this number.
        weights: Weights of the parts of `coca_loss`.

    Raises:
        UserError: As in `evaluate_checkpoint`.
    """
    require_pairs(source, batch_size)
    results = pair_results(checkpoint, every_caption(source), batch_size)
    settings = (scaling_of(checkpoint.model), batch_size, weights)
    found = retrieve(gallery_of(results), "equal")
    measures = {**loss_measures(results, *settings), **retrieval_measures(found)}
    return SplitMeasures(aggregate(results, *settings, found), measures, int(results.num_tokens.sum()))


# --- The refitted temperature

MAX_ITERATIONS = 100


def refit_scaling(embeddings: Embeddings, scaling: Scaling, batch_size: int) -> Scaling:
    """Return the temperature, and with a sigmoid loss also the bias, that minimize the contrastive loss on a split.

    The loss is convex in the inverse temperature and in the bias, so it has a single minimum. The inverse temperature
    is at least 1, and has the same upper bound as in training.

    Args:
        embeddings: Embeddings of a validation split with at least `batch_size` pairs.
        scaling: The model's own scaling, at which the search begins. It is not changed.
        batch_size: Number of pairs per contrastive batch.
    """
    in_double = replace(embeddings, image=embeddings.image.double(), text=embeddings.text.double())
    scale = scaling.logit_scale.double().clone()
    bias = None if scaling.logit_bias is None else scaling.logit_bias.double().clone()
    _minimize_contrastive_loss(in_double, Scaling(scale, bias), [scale] if bias is None else [scale, bias], batch_size)
    bounded = scale.clamp(0.0, MAX_LOGIT_SCALE)
    if bias is not None and bounded != scale:  # the bias was fitted to another scale
        _minimize_contrastive_loss(in_double, Scaling(bounded, bias), [bias], batch_size)
    dtype = scaling.logit_scale.dtype
    return Scaling(bounded.to(dtype), None if bias is None else bias.to(dtype))


def _minimize_contrastive_loss(embeddings: Embeddings, scaling: Scaling, free: list[Tensor], batch_size: int) -> None:
    """Minimize the contrastive loss over the tensors `free` of `scaling`, which are changed in place."""
    optimizer = torch.optim.LBFGS(
        free, max_iter=MAX_ITERATIONS, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = torch.stack(list(batch_contrastive_losses(embeddings, scaling, batch_size))).mean()
        total.backward()
        return total

    for number in free:
        number.requires_grad_()
    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[arg-type]
    for number in free:
        number.requires_grad_(False)
