"""Losses and retrieval of a model on one split."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from grr_coca.batch import IGNORE_INDEX, Batch
from grr_coca.evaluate.metrics import chance_recall_at_k, recall_at_k
from grr_coca.evaluate.mode import evaluating
from grr_coca.losses import EmbeddedPairs, contrastive_loss, same_pair
from grr_coca.model import CoCa

RECALLS = (1, 5, 10)
MAX_LOG_PERPLEXITY = 700.0
"""A model that has diverged still gets a finite perplexity: e⁷⁰⁹ is the largest double."""


@dataclass(frozen=True)
class Embeddings:
    """A whole split, embedded. N pairs, E embedding width."""

    image: Float[Tensor, "N E"]
    text: Float[Tensor, "N E"]
    caption_ids: Int[Tensor, " N"]
    image_ids: Int[Tensor, " N"]


@dataclass(frozen=True)
class Evaluation:
    """What is reported of a split, always under these names.

    `contrastive_loss` is the mean over batches of exactly `contrastive_batch_size` pairs; `perplexity` is the
    exponential of `captioning_loss`, per token; recalls are shares, `chance` that of a random order.
    """

    num_pairs: int
    contrastive_batch_size: int
    contrastive_loss: float
    captioning_loss: float
    perplexity: float
    coca_loss: float
    text_to_image: dict[str, float]
    image_to_text: dict[str, float]
    chance: dict[str, float]

    def flat(self) -> dict[str, float]:
        """All numbers under one level of names, such as `text_to_image/R@1`."""
        return {
            f"{name}/{key}" if key else name: float(number)
            for name, value in asdict(self).items()
            for key, number in (value.items() if isinstance(value, dict) else [("", value)])
        }


def evaluate_split(
    model: CoCa,
    batches: Iterable[Batch],
    contrastive_batch_size: int,
    contrastive_weight: float,
    captioning_weight: float,
) -> Evaluation:
    """Evaluate a model on the batches of a split, which has one contrastive batch of pairs at least.

    How the pairs come batched changes nothing.
    """
    embeddings, captioning = _run(model, batches)
    bias = None if model.logit_bias is None else model.logit_bias.detach().cpu()
    contrastive = split_contrastive_loss(embeddings, model.logit_scale.detach().cpu(), contrastive_batch_size, bias)
    similarity = embeddings.image @ embeddings.text.T
    relevant = same_pair(embeddings.caption_ids, embeddings.image_ids)
    return Evaluation(
        num_pairs=len(embeddings.image),
        contrastive_batch_size=contrastive_batch_size,
        contrastive_loss=contrastive,
        captioning_loss=captioning,
        perplexity=math.exp(min(captioning, MAX_LOG_PERPLEXITY)),
        coca_loss=contrastive_weight * contrastive + captioning_weight * captioning,
        text_to_image={f"R@{k}": recall_at_k(similarity.T, relevant, k) for k in RECALLS},
        image_to_text={f"R@{k}": recall_at_k(similarity, relevant, k) for k in RECALLS},
        chance={f"R@{k}": chance_recall_at_k(relevant, k) for k in RECALLS},
    )


def split_contrastive_loss(
    embeddings: Embeddings, logit_scale: Tensor, batch_size: int, logit_bias: Tensor | None = None
) -> float:
    """Mean contrastive loss over batches of exactly `batch_size` pairs in a fixed random order.

    Every pair counts: where the last batch would be short, it is filled up with pairs from the one before.
    """
    num_pairs = len(embeddings.image)
    assert num_pairs >= batch_size, f"{num_pairs} pairs do not fill a batch of {batch_size}"
    order = torch.randperm(num_pairs, generator=torch.Generator().manual_seed(0))
    starts = [min(start, num_pairs - batch_size) for start in range(0, num_pairs, batch_size)]
    losses = []
    for start in starts:
        rows = order[start : start + batch_size]
        same = same_pair(embeddings.caption_ids[rows], embeddings.image_ids[rows])
        pairs = EmbeddedPairs(embeddings.image[rows], embeddings.text[rows])
        losses.append(contrastive_loss(pairs, pairs, logit_scale, logit_bias, same, 0).item())
    return sum(losses) / len(losses)


@torch.inference_mode()
def _run(model: CoCa, batches: Iterable[Batch]) -> tuple[Embeddings, float]:
    device = next(model.parameters()).device
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    nll, num_tokens = 0.0, 0
    with evaluating(model):
        for batch in batches:
            batch = batch.to(device)
            output = model(batch.images, batch.token_ids, batch.lengths)
            logits = output.logits.flatten(0, 1).float()
            nll += F.cross_entropy(logits, batch.labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum").item()
            num_tokens += int((batch.labels != IGNORE_INDEX).sum())
            tensors = (output.image_embedding, output.text_embedding, batch.caption_ids, batch.image_ids)
            parts.append(tuple(tensor.cpu() for tensor in tensors))  # type: ignore[arg-type]
    image, text, caption_ids, image_ids = (torch.cat(column) for column in zip(*parts, strict=True))
    return Embeddings(image, text, caption_ids, image_ids), nll / num_tokens
