"""Losses and retrieval metrics of a model on one split.

They are computed in three steps: the results of each pair, the rank of each query's first correct answer, and the
metrics of the split. Ranks are computed in blocks that fit into memory.

Shapes: N pairs, or N queries and M candidates, E embedding width; I images, C captions, B images in a block, Q queries.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from grr_coca.common.errors import UserError
from grr_coca.common.ranks import Ranks
from grr_coca.data.batch import Batch, FeatureTokens
from grr_coca.data.dataset import FrozenInput, PairDataset, make_loader
from grr_coca.data.features import EncoderInfo
from grr_coca.data.order import SINGLE_PROCESS, EvaluationOrder, RankShare
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.views import every_caption
from grr_coca.infer.encoder import VisionEncoder, open_encoder_from_info
from grr_coca.model.attention import at_least_fp32
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.model.checkpoint_files import CheckpointFiles
from grr_coca.model.coca import CoCa, fast_products
from grr_coca.model.losses import EmbeddedPairs, LossWeights, coca_loss, contrastive_loss, token_losses

RECALLS = (1, 5, 10)
MAX_LOG_PERPLEXITY = 700.0
"""Bound that keeps the perplexity of a diverged model finite. The largest double is about e⁷⁰⁹."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of pairs, with the ids of their captions and images.

    Pairs with equal captions have the same caption id, and pairs of the same image have the same image id.
    """

    image: Float[Tensor, "N E"]
    text: Float[Tensor, "N E"]
    caption_ids: Int[Tensor, " N"]
    image_ids: Int[Tensor, " N"]

    def pairs(self, rows: Int[Tensor, " B"]) -> EmbeddedPairs:
        """Return the pairs in the given rows, for the contrastive loss."""
        return EmbeddedPairs(self.image[rows], self.text[rows], self.caption_ids[rows], self.image_ids[rows])


class Scaling(NamedTuple):
    """Parameters that convert similarities to logits.

    Attributes:
        logit_scale: Logarithm of the inverse temperature.
        logit_bias: Bias of the sigmoid loss. None for the softmax loss.
    """

    logit_scale: Float[Tensor, ""]
    logit_bias: Float[Tensor, ""] | None = None


def scaling_of(model: CoCa) -> Scaling:
    """Return the scaling of a model, on the CPU and at least in fp32."""
    bias = None if model.logit_bias is None else at_least_fp32(model.logit_bias.detach()).cpu()
    return Scaling(at_least_fp32(model.logit_scale.detach()).cpu(), bias)


@dataclass(frozen=True)
class PairResults:
    """Embeddings and losses of each pair, before aggregation.

    `concatenate` joins the results for parts of a split, such as the parts of several processes.

    Attributes:
        embeddings: Embeddings and ids of the pairs.
        nll: Captioning loss of each pair, summed over the predicted tokens of the caption, in nats.
        num_tokens: Number of predicted tokens of each caption.
    """

    embeddings: Embeddings
    nll: Float[Tensor, " N"]
    num_tokens: Int[Tensor, " N"]


@torch.inference_mode()
def run_pairs(model: CoCa, batches: Iterable[Batch]) -> list[PairResults]:
    """Run a model in eval mode on each batch, and return one `PairResults` per batch, on the CPU.

    An image that several pairs in a batch share is encoded only once.
    """
    parts = []
    with eval_mode(model):
        for batch in batches:
            first, image_of = (rows.to(model.device) for rows in first_rows(batch.image_ids))
            batch = batch.to(model.device)
            images = batch.images[first].to(model.logit_scale.dtype)
            features = None if batch.features is None else batch.features.map_tensors(lambda tensor: tensor[first])  # noqa: B023
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
    columns = [(*vars(part.embeddings).values(), part.nll, part.num_tokens) for part in parts]
    *embeddings, nll, num_tokens = (torch.cat(column) for column in zip(*columns, strict=True))
    return PairResults(Embeddings(*embeddings), nll, num_tokens)


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

    Returns:
        The results of all pairs in order, on the CPU. Every rank returns the results of all ranks.

    Raises:
        UserError: If a pair is invalid, or the features of an image are missing and their encoder cannot be opened.
    """
    dataset = as_dataset(checkpoint, pairs)
    share = SINGLE_PROCESS if ranks is None else RankShare(ranks.rank, ranks.size)
    order = EvaluationOrder(len(dataset), batch_size, share)
    batches = make_loader(dataset, order, num_workers, warns=warns)
    mine = run_pairs(checkpoint.model, with_computed_features(batches, checkpoint))
    if ranks is None:
        return concatenate(mine)
    in_turn = [part for turn in zip(*ranks.gather_objects(mine), strict=True) for part in turn]
    return concatenate(in_turn[: order.num_batches])


def as_dataset(checkpoint: Checkpoint, source: PairSource) -> PairDataset:
    """Return a dataset that converts pairs to inputs of the checkpoint's model, without augmentation."""
    context_length = checkpoint.config.text_decoder.context_length
    return PairDataset(
        source, checkpoint.tokenizer, checkpoint.preprocess, context_length, frozen=frozen_input(checkpoint)
    )


def require_pairs(source: PairSource, batch_size: int) -> None:
    """Check that a split has enough pairs for one contrastive batch, where each caption of an image counts as a pair.

    Raises:
        UserError: If the split has too few pairs, or `batch_size` is below 1.
    """
    if batch_size < 1:
        raise UserError(f"evaluation batch size must be at least 1, got {batch_size}")
    # If there are enough images, it is not necessary to read their captions.
    count = len(source) if len(source) >= batch_size else len(every_caption(source))
    if count < batch_size:
        if not count:
            raise UserError(
                f"the split is empty, but a contrastive loss at batch size {batch_size} needs at least that many "
                "pairs; add pairs"
            )
        where = f"{source.name(0)} and the pairs next to it"
        raise UserError(
            f"{where}: a contrastive loss at batch size {batch_size} needs at least that many pairs, got {count}; "
            f"add pairs, or set the batch size (--batch-size; in a recipe, evaluation: batch_size) to {count} or less"
        )


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode within a `with` block, and allow TF32 on CUDA.

    Afterwards, each module returns to its previous mode, even after an exception.
    """
    # A model in use is already in eval mode, and setting the mode of all modules would take a third of a query's time.
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with fast_products(next(model.parameters()).device):
            yield
    finally:
        for module in training:
            module.training = True


# --- Features of a frozen encoder


def frozen_input(files: CheckpointFiles) -> FrozenInput | None:
    """Return the settings of the frozen encoder that a dataset needs, or None if the model takes no features."""
    if files.encoder is None:
        return None
    return FrozenInput(files.encoder.preprocess, files.config.image_encoder is not None)


@lru_cache(maxsize=1)
def _open_cached(info: EncoderInfo, device: str | None = None) -> VisionEncoder:
    """Open the encoder with the given description. The most recent encoder stays cached for the next validation.

    Raises:
        UserError: If the encoder cannot be opened, or differs from its description.
    """
    return open_encoder_from_info(info, device)


def with_computed_features(batches: Iterable[Batch], files: CheckpointFiles) -> Iterator[Batch]:
    """Yield batches with the features of their images, computing the features that the source does not store.

    Batches of a model that takes no features are unchanged.

    Args:
        batches: Batches from a dataset that was opened for the model.
        files: The model, or all of its files except the weights.

    Raises:
        UserError: If features are missing, and the encoder cannot be opened.
    """
    for batch in batches:
        if batch.encoder_pixels is not None:
            assert files.encoder is not None, "only its dataset makes these pixels"
            assert files.config.feature_encoder is not None
            encoded = _open_cached(files.encoder).encode(batch.encoder_pixels.numpy())
            found = encoded.select(files.config.feature_encoder.keep)
            mask = None if found.mask.all() else torch.from_numpy(found.mask)
            batch = replace(batch, features=FeatureTokens(torch.from_numpy(found.tokens), mask), encoder_pixels=None)
        yield batch


# --- Retrieval


def rank_of_first_hit(
    similarity: Float[Tensor, "N M"], relevant: Bool[Tensor, "N M"], tie: float = 0.0
) -> Int[Tensor, " N"]:
    """Count, for each query, the wrong candidates that rank above the best correct candidate or tie with it.

    A candidate ties if its similarity is lower by at most `tie`. A query may have several correct answers: equal
    captions, or several captions of one image. A tie counts against the correct answer, so a collapsed model, which
    assigns the same similarity to all candidates, scores zero.
    """
    best = similarity.masked_fill(~relevant, float("-inf")).amax(dim=1, keepdim=True)
    # `similarity >= best` would be false for NaN, so the correct answers of a diverged model would rank first.
    return (~(similarity < best - tie) & ~relevant).sum(dim=1)


RightAnswers = Literal["own", "equal"]
"""`own`: the correct answers are the image's own captions, as in the literature. `equal`: captions with the same text
are also correct."""

SIMILARITIES_AT_ONCE = 2_000_000
TIE = 1e-6
"""Difference of similarities below which candidates tie. Rounding errors depend on the block, so they must not
determine a rank."""


@dataclass(frozen=True)
class Gallery:
    """A split prepared for retrieval: every image once, in the order of the images' first pairs, and every caption.

    Attributes:
        image: Embeddings of the images.
        text: Embeddings of the captions.
        image_of: Index of each caption's image.
        caption_ids: Ids of the captions. Equal captions have the same id.
    """

    image: Float[Tensor, "I E"]
    text: Float[Tensor, "C E"]
    image_of: Int[Tensor, " C"]
    caption_ids: Int[Tensor, " C"]


class QueryRanks(NamedTuple):
    """Ranks of the first correct answers to Q queries in one direction.

    Attributes:
        rank: Number of wrong candidates that rank above each query's first correct answer or tie with it.
        num_right: Number of correct answers to each query.
        num_candidates: Number of candidates, which is the same for all queries.
    """

    rank: Int[Tensor, " Q"]
    num_right: Int[Tensor, " Q"]
    num_candidates: int

    def recall(self, k: int) -> float:
        """Return the fraction of queries with a correct answer among their k best candidates."""
        return (self.rank < k).double().mean().item()

    def chance(self, k: int) -> float:
        """Return the recall at k that is expected if the candidates are in random order."""
        wrong = self.num_candidates - self.num_right.double()
        missed = torch.ones_like(wrong)
        for drawn in range(min(k, self.num_candidates)):
            missed *= (wrong - drawn).clamp(min=0) / (self.num_candidates - drawn)
        return (1 - missed).mean().item()

    def median(self) -> float:
        """Return the median rank of the first correct answer, counted from 1."""
        return self.rank.double().quantile(0.5).item() + 1


class Retrieval(NamedTuple):
    """Ranks in both directions. `image_of` contains the index of each text query's image."""

    text_to_image: QueryRanks
    image_to_text: QueryRanks
    image_of: Int[Tensor, " C"]


def make_gallery(
    image: Float[Tensor, "N E"],
    text: Float[Tensor, "N E"],
    caption_ids: Int[Tensor, " N"],
    image_ids: Int[Tensor, " N"],
) -> Gallery:
    """Build a gallery from pairs. If several pairs have the same image id, only the image of the first pair is used."""
    first, image_of = first_rows(image_ids)
    return Gallery(image[first], text, image_of, caption_ids)


def first_rows(ids: Int[Tensor, " N"]) -> tuple[Int[Tensor, " I"], Int[Tensor, " N"]]:
    """Deduplicate ids.

    Returns:
        The first row of each distinct id, in ascending order of these rows, and for each row the index of its id in
        that order.
    """
    _, inverse = torch.unique(ids, return_inverse=True)
    rows = torch.arange(len(ids))
    first = torch.full((int(inverse.max()) + 1,), len(ids)).scatter_reduce(0, inverse, rows, "amin")
    order = first.argsort()
    return first[order], order.argsort()[inverse]


def retrieve(gallery: Gallery, right: RightAnswers) -> Retrieval:
    """Return the rank of the first correct answer for every caption and every image.

    Similarities that differ by at most `TIE` are ties, which count against the correct answer.
    """
    _, captions = torch.unique(gallery.caption_ids, return_inverse=True)
    num_texts = len(gallery.text)
    step = max(1, SIMILARITIES_AT_ONCE // num_texts)
    blocks = [slice(start, start + step) for start in range(0, len(gallery.image), step)]
    best = torch.full((num_texts,), float("-inf"))
    text_right = torch.zeros(num_texts, dtype=torch.long)
    image_rank, image_right = [], []
    for block in blocks:
        similarity, relevant = _block(gallery, captions, block, right)
        best = torch.maximum(best, similarity.masked_fill(~relevant, float("-inf")).amax(dim=0))
        text_right += relevant.sum(dim=0)
        image_rank.append(rank_of_first_hit(similarity, relevant, TIE))
        image_right.append(relevant.sum(dim=1))
    text_rank = torch.zeros(num_texts, dtype=torch.long)
    for block in blocks:  # a second pass, because the best correct image of each text is known only now
        similarity, relevant = _block(gallery, captions, block, right)
        text_rank += (~(similarity < best - TIE) & ~relevant).sum(dim=0)
    return Retrieval(
        QueryRanks(text_rank, text_right, len(gallery.image)),
        QueryRanks(torch.cat(image_rank), torch.cat(image_right), num_texts),
        gallery.image_of,
    )


def _block(
    gallery: Gallery, captions: Int[Tensor, " C"], block: slice, right: RightAnswers
) -> tuple[Float[Tensor, "B C"], Bool[Tensor, "B C"]]:
    similarity = gallery.image[block] @ gallery.text.T
    row = gallery.image_of - block.start
    mine = (row >= 0) & (row < len(similarity))
    if right == "own":
        relevant = torch.zeros_like(similarity, dtype=torch.bool)
        relevant[row[mine], mine.nonzero().squeeze(1)] = True
        return similarity, relevant
    says = torch.zeros(len(similarity), int(captions.max()) + 1, dtype=torch.bool)
    says[row[mine], captions[mine]] = True
    return similarity, says[:, captions]


def gallery_of(results: PairResults) -> Gallery:
    """Convert the results of a split to a gallery for retrieval, with each image once."""
    e = results.embeddings
    return make_gallery(e.image, e.text, e.caption_ids, e.image_ids)


# --- Metrics of the split


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of a split, with the names that all reports use. Losses are in nats.

    Captions with the same text are correct answers for each other's images.

    Attributes:
        num_pairs: Number of pairs in the split.
        contrastive_batch_size: Number of pairs in each batch of the contrastive loss.
        contrastive_loss: Mean over batches of exactly `contrastive_batch_size` pairs.
        captioning_loss: Loss per predicted token.
        perplexity: Exponential of `captioning_loss`.
        coca_loss: Weighted sum of the contrastive and the captioning loss.
        text_to_image: Recalls of texts as queries, by name (`R@1`, `R@5` and `R@10`), as fractions of the queries.
        image_to_text: Recalls of images as queries, with the same names.
        chance: Recalls of text queries that are expected if the images are in random order.
        median_rank: Median rank of the first correct answer, counted from 1, for `text_to_image` and `image_to_text`.
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
        """Return all metrics except `mean_recall` in a flat mapping with names such as `text_to_image/R@1`."""
        return {
            f"{name}/{key}" if key else name: float(number)
            for name, value in asdict(self).items()
            for key, number in (value.items() if isinstance(value, dict) else [("", value)])
        }


def aggregate(
    results: PairResults,
    scaling: Scaling,
    contrastive_batch_size: int,
    weights: LossWeights,
    found: Retrieval | None = None,
) -> Evaluation:
    """Compute the metrics of a split from the results of its pairs.

    Args:
        results: Results of all pairs.
        scaling: Scaling with which the contrastive loss is computed.
        contrastive_batch_size: Number of pairs per contrastive batch, at most the number of pairs.
        weights: Weights of the parts of `coca_loss`.
        found: Result of `retrieve` with equal captions as correct answers. None if it must be computed here.
    """
    embeddings = results.embeddings
    contrastive = split_contrastive_loss(embeddings, scaling, contrastive_batch_size)
    captioning = (results.nll.sum() / results.num_tokens.sum()).item()
    found = found or retrieve(gallery_of(results), "equal")
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
    """Return R@1, R@5 and R@10 by name, as fractions of the queries."""
    return {f"R@{k}": ranks.recall(k) for k in RECALLS}


def split_contrastive_loss(embeddings: Embeddings, scaling: Scaling, batch_size: int) -> float:
    """Return the mean contrastive loss over batches of exactly `batch_size` pairs, in a fixed random order.

    Every pair is included. If the last batch is too small, it is filled up with pairs from the previous batch.
    """
    losses = [loss.item() for loss in batch_contrastive_losses(embeddings, scaling, batch_size)]
    return sum(losses) / len(losses)


def batch_contrastive_losses(embeddings: Embeddings, scaling: Scaling, batch_size: int) -> Iterator[Float[Tensor, ""]]:
    """Yield the contrastive loss of each batch. `split_contrastive_loss` returns the mean of these losses."""
    for rows in contrastive_batches(len(embeddings.image), batch_size):
        pairs = embeddings.pairs(rows)
        yield contrastive_loss(pairs, pairs, *scaling)


def contrastive_batches(num_pairs: int, batch_size: int) -> list[Int[Tensor, " B"]]:
    """Return the rows of the pairs in each batch of the contrastive loss.

    Each batch has exactly `batch_size` of the `num_pairs` pairs, which must be at least that many, in a random order
    that is always the same. If the last batch is too small, it is filled up with pairs from the previous batch.
    """
    assert num_pairs >= batch_size, f"{num_pairs} pairs do not fill a batch of {batch_size}"
    order = torch.randperm(num_pairs, generator=torch.Generator().manual_seed(0))
    starts = [min(start, num_pairs - batch_size) for start in range(0, num_pairs, batch_size)]
    return [order[start : start + batch_size] for start in starts]
