"""Losses and recalls as measures, which can be resampled over images."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from grr_coca.evaluate.bootstrap import Measure, by_image
from grr_coca.evaluate.retrieval import Retrieval
from grr_coca.evaluate.split import MAX_LOG_PERPLEXITY, RECALLS, PairResults, Scaling, contrastive_batches
from grr_coca.losses import EmbeddedPairs, LossWeights, contrastive_loss, same_pair


def loss_measures(
    results: PairResults,
    scaling: Scaling,
    contrastive_batch_size: int,
    weights: LossWeights,
) -> dict[str, Measure]:
    """The losses as measures. Names and values are those of `Evaluation`."""
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
    # For each pair, its loss summed over its batches, and the number of its batches. Most pairs are in one batch; the
    # pairs that fill up the last batch are in two.
    e = results.embeddings
    losses, visits = torch.zeros(len(e.image)), torch.zeros(len(e.image))
    for rows in contrastive_batches(len(e.image), batch_size):
        same = same_pair(e.caption_ids[rows], e.image_ids[rows])
        pairs = EmbeddedPairs(e.image[rows], e.text[rows])
        for i, row in enumerate(rows.tolist()):
            one = EmbeddedPairs(pairs.image[i : i + 1], pairs.text[i : i + 1])
            losses[row] += len(rows) * contrastive_loss(one, pairs, *scaling, same[i : i + 1], i)
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
