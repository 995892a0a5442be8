"""Losses and retrieval metrics of a model on one split: first the results of each pair, then the metrics of the split.

The temperature can be refitted to a validation split. A better temperature lowers the contrastive loss without
improving the embeddings. If each model gets its own refitted temperature, the remaining difference is due to the
embeddings.

Shapes: N pairs, E embedding width.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grr_coca.common.errors import UserError
from grr_coca.common.ranks import Ranks
from grr_coca.data.batch import Batch
from grr_coca.data.dataset import PairDataset, make_loader
from grr_coca.data.order import ALL, EvaluationOrder, Share
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.views import every_caption
from grr_coca.evaluate.retrieval import Gallery, QueryRanks, first_rows, make_gallery, retrieve
from grr_coca.infer.batch_features import frozen_input, with_computed_features
from grr_coca.model.attention import at_least_fp32
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.model.coca import MAX_LOGIT_SCALE, CoCa, evaluating
from grr_coca.model.losses import EmbeddedPairs, LossWeights, coca_loss, contrastive_loss, token_losses

RECALLS = (1, 5, 10)
MAX_LOG_PERPLEXITY = 700.0
"""Bound that keeps the perplexity of a diverged model finite. The largest double is about e⁷⁰⁹."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a complete split, with the ids of its captions and images."""

    image: Float[Tensor, "N E"]
    text: Float[Tensor, "N E"]
    caption_ids: Int[Tensor, " N"]
    image_ids: Int[Tensor, " N"]

    def pairs(self, rows: Int[Tensor, " B"]) -> EmbeddedPairs:
        """Return the pairs in the given rows, for the contrastive loss."""
        return EmbeddedPairs(self.image[rows], self.text[rows], self.caption_ids[rows], self.image_ids[rows])


class Scaling(NamedTuple):
    """Scale and bias that convert similarities to logits. Only the sigmoid loss uses a bias."""

    logit_scale: Float[Tensor, ""]
    logit_bias: Float[Tensor, ""] | None = None


def scaling_of(model: CoCa) -> Scaling:
    """Return the scaling of a model, on the CPU."""
    bias = None if model.logit_bias is None else at_least_fp32(model.logit_bias.detach()).cpu()
    return Scaling(at_least_fp32(model.logit_scale.detach()).cpu(), bias)


@dataclass(frozen=True)
class PairResults:
    """Embeddings and losses of each pair, before aggregation. `nll` is summed over the tokens of a caption, in nats.

    `concatenate` joins the results for parts of a split, such as the parts of several processes.
    """

    embeddings: Embeddings
    nll: Float[Tensor, " N"]
    num_tokens: Int[Tensor, " N"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of a split, with the names that all reports use.

    `contrastive_loss` is the mean over batches of exactly `contrastive_batch_size` pairs. `perplexity` is the
    exponential of `captioning_loss`, the loss per token. Recalls are fractions of queries, and `chance` is the recall
    that is expected if images are in random order. Captions with the same text are correct answers for each other's
    images.
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
    median_rank: dict[str, float]

    @property
    def mean_recall(self) -> float:
        """Mean of all recalls, in both directions."""
        recalls = [*self.text_to_image.values(), *self.image_to_text.values()]
        return sum(recalls) / len(recalls)

    def flat(self) -> dict[str, float]:
        """Return all metrics in a flat mapping with names such as `text_to_image/R@1`."""
        return {
            f"{name}/{key}" if key else name: float(number)
            for name, value in asdict(self).items()
            for key, number in (value.items() if isinstance(value, dict) else [("", value)])
        }


@torch.inference_mode()
def run_pairs(model: CoCa, batches: Iterable[Batch]) -> list[PairResults]:
    """Run a model in eval mode on each batch, and return one `PairResults` per batch, on the CPU.

    An image that several pairs in a batch share is encoded only once.
    """
    parts = []
    with evaluating(model):
        for batch in batches:
            first, image_of = (rows.to(model.device) for rows in first_rows(batch.image_ids))
            batch = batch.to(model.device)
            images = batch.images[first].to(model.logit_scale.dtype)
            features = None if batch.features is None else batch.features.moved(lambda tensor: tensor[first])  # noqa: B023
            output = model(images, batch.token_ids, batch.lengths, image_of=image_of, features=features)
            lm_head = model.multimodal_decoder.lm_head.weight
            losses = token_losses(output.states, lm_head, batch.next_tokens).cpu()
            # number of predicted tokens in each caption, where neither [BOS] nor [CLS] is predicted
            num_tokens = batch.lengths - 2
            is_token = torch.arange(batch.token_ids.shape[1] - 2) < num_tokens[:, None]
            nll = torch.zeros(is_token.shape, dtype=torch.double)  # computed on the CPU, because MPS has no doubles
            nll[is_token] = losses.double()
            tensors = (output.image_embedding, output.text_embedding, batch.caption_ids, batch.image_ids)
            parts.append(PairResults(Embeddings(*(tensor.cpu() for tensor in tensors)), nll.sum(dim=1), num_tokens))
    return parts


def concatenate(parts: Sequence[PairResults]) -> PairResults:
    """Join the results of several parts of a split, in order."""
    columns = [
        (p.embeddings.image, p.embeddings.text, p.embeddings.caption_ids, p.embeddings.image_ids, p.nll, p.num_tokens)
        for p in parts
    ]
    image, text, caption_ids, image_ids, nll, num_tokens = (torch.cat(column) for column in zip(*columns, strict=True))
    return PairResults(Embeddings(image, text, caption_ids, image_ids), nll, num_tokens)


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
        checkpoint: The model. Its training mode is restored.
        pairs: Pairs with one caption each, from `every_caption`. A training run calls this function only once instead
            of at each validation, because the function reads all captions.
        batch_size: Number of pairs per batch.
        ranks: Ranks that share the work. None if this process does all of it.
        num_workers: Number of processes that read the pairs. If 0, this process reads them.
        warns: Whether to report captions that are longer than the context. A training run does this only at its first
            validation.
    """
    dataset = as_dataset(checkpoint, pairs)
    share = ALL if ranks is None else Share(ranks.rank, ranks.size)
    order = EvaluationOrder(len(dataset), batch_size, share)
    batches = make_loader(dataset, order, num_workers, warns=warns)
    mine = run_pairs(checkpoint.model, with_computed_features(batches, checkpoint))
    if ranks is None:
        return concatenate(mine)
    in_turn = [part for turn in zip(*ranks.gather_objects(mine), strict=True) for part in turn]
    return concatenate(in_turn[: order.num_batches])


def gallery_of(results: PairResults) -> Gallery:
    """Convert the results of a split to a gallery for retrieval, with each image once."""
    e = results.embeddings
    return make_gallery(e.image, e.text, e.caption_ids, e.image_ids)


def as_dataset(checkpoint: Checkpoint, source: PairSource) -> PairDataset:
    """Convert pairs to inputs of the checkpoint's model, without augmentation."""
    context_length = checkpoint.config.text_decoder.context_length
    return PairDataset(
        source, checkpoint.tokenizer, checkpoint.preprocess, context_length, frozen=frozen_input(checkpoint)
    )


def require_pairs(source: PairSource, batch_size: int) -> None:
    """Check that a split has enough pairs for one contrastive batch, where each caption of an image counts as a pair.

    Raises:
        UserError: If the split has too few pairs.
    """
    if batch_size < 1:
        raise UserError(f"evaluation batch size must be at least 1, got {batch_size}")
    # If there are enough images, it is not necessary to read their captions.
    count = len(source) if len(source) >= batch_size else len(every_caption(source))
    if count < batch_size:
        if not count:
            raise UserError(
                f"the split is empty, but a contrastive loss at batch size {batch_size} needs that many "
                "pairs; add pairs"
            )
        where = f"{source.name(0)} and the pairs next to it"
        raise UserError(
            f"{where}: a contrastive loss at batch size {batch_size} needs at least that many pairs, got {count}; "
            f"add pairs, or set the batch size (--batch-size; in a recipe, evaluation: batch_size) to {count} or less"
        )


def aggregate(results: PairResults, scaling: Scaling, contrastive_batch_size: int, weights: LossWeights) -> Evaluation:
    """Compute the metrics of a split from the results of its pairs."""
    embeddings = results.embeddings
    contrastive = split_contrastive_loss(embeddings, scaling, contrastive_batch_size)
    captioning = (results.nll.sum() / results.num_tokens.sum()).item()
    gallery = make_gallery(embeddings.image, embeddings.text, embeddings.caption_ids, embeddings.image_ids)
    found = retrieve(gallery, "equal")
    return Evaluation(
        num_pairs=len(embeddings.image),
        contrastive_batch_size=contrastive_batch_size,
        contrastive_loss=contrastive,
        captioning_loss=captioning,
        perplexity=math.exp(min(captioning, MAX_LOG_PERPLEXITY)),
        coca_loss=coca_loss(contrastive, captioning, weights),
        text_to_image=recalls(found.text_to_image),
        image_to_text=recalls(found.image_to_text),
        chance={f"R@{k}": found.text_to_image.chance(k) for k in RECALLS},
        median_rank={"text_to_image": found.text_to_image.median(), "image_to_text": found.image_to_text.median()},
    )


def recalls(ranks: QueryRanks) -> dict[str, float]:
    """Return R@1, R@5 and R@10."""
    return {f"R@{k}": ranks.recall(k) for k in RECALLS}


def split_contrastive_loss(embeddings: Embeddings, scaling: Scaling, batch_size: int) -> float:
    """Return the mean contrastive loss over batches of exactly `batch_size` pairs, in a fixed random order.

    Every pair is included. If the last batch is too small, it is filled up with pairs from the previous batch.
    """
    losses = [loss.item() for loss in batch_contrastive_losses(embeddings, scaling, batch_size)]
    return sum(losses) / len(losses)


def batch_contrastive_losses(embeddings: Embeddings, scaling: Scaling, batch_size: int) -> Iterator[Float[Tensor, ""]]:
    """Yield the contrastive loss of each batch, one at a time. `split_contrastive_loss` returns the mean of these
    losses."""
    for rows in contrastive_batches(len(embeddings.image), batch_size):
        pairs = embeddings.pairs(rows)
        yield contrastive_loss(pairs, pairs, *scaling)


def contrastive_batches(num_pairs: int, batch_size: int) -> list[Int[Tensor, " B"]]:
    """Return fixed random batches of exactly `batch_size` pairs for the contrastive loss."""
    assert num_pairs >= batch_size, f"{num_pairs} pairs do not fill a batch of {batch_size}"
    order = torch.randperm(num_pairs, generator=torch.Generator().manual_seed(0))
    starts = [min(start, num_pairs - batch_size) for start in range(0, num_pairs, batch_size)]
    return [order[start : start + batch_size] for start in starts]


# --- The refitted temperature

MAX_ITERATIONS = 100


def refit_scaling(embeddings: Embeddings, scaling: Scaling, batch_size: int) -> Scaling:
    """Return the scale, and with a sigmoid loss the bias, that minimize the contrastive loss on a split.

    The loss is convex in the inverse temperature and in the bias, so it has a single minimum. The temperature has the
    same bound as in training.

    Args:
        embeddings: Embeddings of a validation split.
        scaling: The model's own scaling, at which the search begins.
        batch_size: Number of pairs per contrastive batch.
    """
    in_double = replace(embeddings, image=embeddings.image.double(), text=embeddings.text.double())
    scale = scaling.logit_scale.double().clone()
    bias = None if scaling.logit_bias is None else scaling.logit_bias.double().clone()
    _fit(in_double, Scaling(scale, bias), [scale] if bias is None else [scale, bias], batch_size)
    bounded = scale.clamp(0.0, MAX_LOGIT_SCALE)
    if bias is not None and bounded != scale:  # the bias was fitted to another scale
        _fit(in_double, Scaling(bounded, bias), [bias], batch_size)
    dtype = scaling.logit_scale.dtype
    return Scaling(bounded.to(dtype), None if bias is None else bias.to(dtype))


def _fit(embeddings: Embeddings, scaling: Scaling, free: list[Tensor], batch_size: int) -> None:
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
