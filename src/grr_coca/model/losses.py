"""Losses of CoCa (arXiv 2205.01917, section 3), of a text teacher, and of siblings. `batch_loss` combines all losses.

Shapes: B pairs of the global batch, b pairs of this rank, E embedding width, K width of the teacher's embeddings; M
tokens to predict, m tokens in a chunk, D width of the states that predict tokens, V size of the vocabulary.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grr_coca.common.ranks import Ranks
from grr_coca.data.batch import Batch
from grr_coca.model.attention import at_least_fp32
from grr_coca.model.coca import CoCa

Scalar = TypeVar("Scalar", float, Tensor)


# --- Contrastive loss: which text belongs to which image


class EmbeddedPairs(NamedTuple):
    """Embedded image-text pairs. Text i belongs to image i.

    Pairs with equal `caption_ids`, `image_ids` or `concept_ids` are not negatives of each other.

    Attributes:
        image: Image embeddings of unit length.
        text: Text embeddings of unit length.
        caption_ids: Equal for pairs with equal captions.
        image_ids: Equal for pairs with the same image.
        teacher: A text teacher's embeddings of the captions, of unit length. None if no teacher is used.
        concept_ids: Equal for pairs whose images show the same concept. None if the sibling loss is not used.
    """

    image: Float[Tensor, "B E"]
    text: Float[Tensor, "B E"]
    caption_ids: Int[Tensor, " B"]
    image_ids: Int[Tensor, " B"]
    teacher: Float[Tensor, "B K"] | None = None
    concept_ids: Int[Tensor, " B"] | None = None

    def gather_from_ranks(self, ranks: Ranks) -> "EmbeddedPairs":
        """Return the pairs of all ranks, in the order of the ranks. Gradients flow back to the rank of each pair.

        All ranks must call this method, with the same number of pairs.
        """
        return EmbeddedPairs(*(None if column is None else ranks.gather(column) for column in self))  # type: ignore[arg-type]


def contrastive_loss(
    rows: EmbeddedPairs,
    columns: EmbeddedPairs,
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""] | None = None,
    first_row: int = 0,
) -> Float[Tensor, ""]:
    """Return the part that b pairs contribute to the mean contrastive loss over a batch of B pairs, in nats.

    The parts of all pairs add up to that mean.

    Without a bias, this is CLIP's loss: the mean cross-entropy of each image over all texts and of each text over all
    images. With a bias, it is SigLIP's loss (arXiv 2303.15343): a binary classification of whether an image and a text
    match, for every image and every text, summed over texts and averaged over images.

    Args:
        rows: The pairs whose part is computed.
        columns: All pairs of the batch, with which the rows are compared.
        logit_scale: Logarithm of the inverse temperature.
        logit_bias: Bias of the sigmoid loss. None for the softmax loss.
        first_row: Index of the first row among the columns.
    """
    b, B = len(rows.image), len(columns.image)
    target = torch.arange(first_row, first_row + b, device=rows.image.device)
    itself = target[:, None] == torch.arange(B, device=target.device)
    same = (rows.caption_ids[:, None] == columns.caption_ids) | (rows.image_ids[:, None] == columns.image_ids)  # b B
    if rows.concept_ids is not None and columns.concept_ids is not None:
        same |= rows.concept_ids[:, None] == columns.concept_ids
    others = same & ~itself
    # In bf16, the logit for a similarity of 1 at a temperature of 0.01 would be rounded by half a nat.
    with torch.autocast(target.device.type, enabled=False):
        by_image = logit_scale.exp() * rows.image @ columns.text.T  # b B
        if logit_bias is not None:
            logits = torch.where(itself, 1, -1) * (by_image + logit_bias)
            return -F.logsigmoid(logits).masked_fill(others, 0.0).sum() / B
        by_text = rows.text @ (logit_scale.exp() * columns.image).T  # b B
    nll = [F.cross_entropy(x.masked_fill(others, -torch.inf), target, reduction="sum") for x in (by_image, by_text)]
    return (nll[0] + nll[1]) / (2 * B)


# --- Captioning loss: the next token, including the end token


class CaptioningLoss(NamedTuple):
    """Means over the tokens of the whole batch, in nats.

    Differentiate `total`, which is `captioning` + z_weight · `z`. The other two values are only logged.
    """

    total: Float[Tensor, ""]
    captioning: Float[Tensor, ""]
    z: Float[Tensor, ""]


def captioning_loss(
    states: Float[Tensor, "M D"],
    lm_head: Float[Tensor, "V D"],
    labels: Int[Tensor, " M"],
    num_tokens: int | None = None,
    z_weight: float = 0.0,
) -> CaptioningLoss:
    """Return the mean cross-entropy of tokens, predicted with the logits `states @ lm_head.T`.

    Args:
        states: The states from which the tokens are predicted.
        lm_head: Weight of the head.
        labels: Ids of the tokens, including end tokens.
        num_tokens: Number of tokens by which the sum is divided. By default, the number of labels. With the number of
            tokens in a larger batch, the result is the part that these tokens contribute to the loss of that batch; all
            such parts add up to the loss.
        z_weight: Weight of the z-loss, the mean of log² Z, where Z is the denominator of the softmax. The z-loss keeps
            logits from drifting (PaLM, arXiv 2204.02311, section 5).

    Raises:
        ValueError: If the numbers of states and labels differ.
    """
    if states.shape[0] != labels.shape[0]:
        raise ValueError(f"{states.shape[0]} states and {labels.shape[0]} labels: the numbers must be equal")
    sums = _LinearCrossEntropy.apply(states, lm_head, labels, z_weight)
    return CaptioningLoss(*(part / (labels.shape[0] if num_tokens is None else num_tokens) for part in sums))


@torch.no_grad()
def token_losses(
    states: Float[Tensor, "M D"], lm_head: Float[Tensor, "V D"], labels: Int[Tensor, " M"]
) -> Float[Tensor, " M"]:
    """Return the cross-entropy of each token, in nats, without a gradient.

    `captioning_loss` is the mean of these values.
    """
    size = _chunk_size(lm_head)
    parts = [
        F.cross_entropy(at_least_fp32(F.linear(x, lm_head)), label, reduction="none")
        for x, label in zip(states.split(size), labels.split(size), strict=True)
    ]
    return torch.cat(parts)


# --- CoCa: weighted sum of the losses


@dataclass(frozen=True)
class LossWeights:
    """Weights λ_con and λ_cap, which are those of the paper by default, and weights of optional additional losses.

    Attributes:
        contrastive: Weight λ_con of the contrastive loss.
        captioning: Weight λ_cap of the captioning loss.
        z: Weight of the z-loss; see `captioning_loss`. A z-loss requires a captioning weight above 0.
        teacher: Weight of `teacher_loss`. 0 means no teacher.
        teacher_temperature: Divisor of the similarities, both the teacher's and the model's, in `teacher_loss`.
        sibling: Weight of `sibling_loss`. 0 means no sibling loss.
    """

    contrastive: float = 1.0
    captioning: float = 2.0
    z: float = 0.0
    teacher: float = 0.0
    teacher_temperature: float = 0.1
    _: KW_ONLY
    sibling: float = 0.0

    @property
    def z_per_captioning(self) -> float:
        """Weight of the z-loss relative to the weight of the captioning loss, or 0 without a z-loss."""
        return self.z and self.z / self.captioning


def coca_loss(contrastive: Scalar, captioning: Scalar, weights: LossWeights) -> Scalar:
    """Compute L = λ_con · L_con + λ_cap · L_cap."""
    return weights.contrastive * contrastive + weights.captioning * captioning


class ComparisonLoss(NamedTuple):
    """Losses that compare pairs with each other, in nats.

    Differentiate `total`, which is the weighted sum of the losses. The other fields, which are detached from the graph,
    are only logged. `teacher` and `sibling` are 0 if their weight is 0.
    """

    total: Float[Tensor, ""]
    contrastive: Float[Tensor, ""]
    teacher: Float[Tensor, ""]
    sibling: Float[Tensor, ""]


def comparison_loss(
    model: CoCa, pairs: EmbeddedPairs, weights: LossWeights, ranks: Ranks | None = None
) -> ComparisonLoss:
    """Compute the losses that compare each of the given pairs with all pairs of the global batch.

    On several ranks, the result is this rank's part of the losses, as in `batch_loss`, and all ranks must call this
    function.

    Args:
        model: Model that provides the temperature and, for the sigmoid loss, the bias.
        pairs: Pairs of this rank.
        weights: Weights of the parts.
        ranks: All ranks, each with the same number of pairs as this rank. None if there are no other pairs.
    """
    everyone = pairs if ranks is None else pairs.gather_from_ranks(ranks)
    first_row = 0 if ranks is None else ranks.rank * len(pairs.image)
    contrastive = contrastive_loss(pairs, everyone, model.logit_scale, model.logit_bias, first_row)
    total, teacher, sibling = weights.contrastive * contrastive, *torch.zeros_like(contrastive).expand(2)
    if weights.teacher:
        teacher = teacher_loss(pairs, everyone, weights.teacher_temperature)
        total = total + weights.teacher * teacher
    if weights.sibling:
        sibling = sibling_loss(pairs, everyone)
        total = total + weights.sibling * sibling
    return ComparisonLoss(total, contrastive.detach(), teacher.detach(), sibling.detach())


class Losses(NamedTuple):
    """Losses of one batch, in nats.

    Differentiate `total`, which is `coca` plus the weighted losses `z`, `teacher` and `sibling`. The other fields are
    only logged. `teacher` and `sibling` are 0 if their weight is 0.
    """

    total: Float[Tensor, ""]
    contrastive: Float[Tensor, ""]
    captioning: Float[Tensor, ""]
    coca: Float[Tensor, ""]
    z: Float[Tensor, ""]
    teacher: Float[Tensor, ""]
    sibling: Float[Tensor, ""]


def batch_loss(
    model: CoCa,
    batch: Batch,
    weights: LossWeights = LossWeights(),
    *,
    num_tokens: int | None = None,
    ranks: Ranks | None = None,
) -> Losses:
    """Compute the losses of one batch. Differentiate `total` of the result.

    On several ranks, the result is the part that this rank's pairs contribute to the losses of the global batch. The
    parts of all ranks add up to these losses, and so do the gradients.

    Args:
        model: The model in training mode.
        batch: Pairs on the model's device.
        weights: Weights of the parts.
        num_tokens: Number of tokens to predict in the global batch. By default, the number in this batch.
        ranks: All ranks, each with the same number of pairs as this rank. None if this batch is the global batch.
    """
    output = model(batch.images, batch.token_ids, batch.lengths, batch.kept_patches, features=batch.features)
    pairs = EmbeddedPairs(
        output.image_embedding,
        output.text_embedding,
        batch.caption_ids,
        batch.image_ids,
        batch.teacher,
        batch.concept_ids,
    )
    compared = comparison_loss(model, pairs, weights, ranks)
    lm_head = model.multimodal_decoder.lm_head.weight
    captions = captioning_loss(output.states, lm_head, batch.next_tokens, num_tokens, weights.z_per_captioning)
    return combine_losses(compared, captions, weights)


def combine_losses(compared: ComparisonLoss, captions: CaptioningLoss, weights: LossWeights) -> Losses:
    """Combine the two parts of a batch's losses. `captions.total` includes the z-loss, but not the captioning
    weight."""
    return Losses(
        # A part with weight zero stays in the graph, so that every parameter always has a gradient.
        total=compared.total + weights.captioning * captions.total,
        contrastive=compared.contrastive,
        captioning=captions.captioning,
        coca=coca_loss(compared.contrastive, captions.captioning, weights),
        z=captions.z,
        teacher=compared.teacher,
        sibling=compared.sibling,
    )


# --- Text teacher: texts with nearly the same meaning


def teacher_loss(rows: EmbeddedPairs, columns: EmbeddedPairs, temperature: float) -> Float[Tensor, ""]:
    """Return the part that b captions contribute to the mean teacher loss over B captions, in nats.

    The parts of all captions add up to that mean.

    For each caption, the softmax over its similarities to all other captions should equal the teacher's softmax. The
    loss is the Kullback-Leibler divergence of the model's softmax from the teacher's, which is 0 if both agree
    (relational distillation, arXiv 1904.05068; as a softmax, arXiv 2101.04731). The teacher's embeddings can have any
    width.

    Args:
        rows: The pairs whose part is computed.
        columns: All pairs of the batch, with which the rows are compared, except equal captions.
        temperature: Divisor of both kinds of similarities.
    """
    assert rows.teacher is not None, "the batches of a run with a teacher have its embeddings"
    assert columns.teacher is not None
    same = rows.caption_ids[:, None] == columns.caption_ids  # b B
    with torch.autocast(same.device.type, enabled=False):
        log_probs = _log_softmax_over_others(rows.text @ columns.text.T, same, temperature)
        teacher_log_probs = _log_softmax_over_others(rows.teacher @ columns.teacher.T, same, temperature)
    return F.kl_div(log_probs, teacher_log_probs, reduction="sum", log_target=True) / same.shape[1]


def _log_softmax_over_others(
    similarity: Float[Tensor, "b B"], same: Bool[Tensor, "b B"], temperature: float
) -> Float[Tensor, "b B"]:
    # Similarities to equal items become a finite number instead of -inf, so that a row without other items has a
    # uniform softmax. In the teacher loss, both sides are then uniform, and the loss of the row is 0.
    return (similarity / temperature).masked_fill(same, -1e4).log_softmax(1)


# --- Siblings: images that show the same concept

SIBLING_TEMPERATURE = 0.1
"""Divisor of image similarities, as in the paper that introduced this loss."""


def sibling_loss(rows: EmbeddedPairs, columns: EmbeddedPairs) -> Float[Tensor, ""]:
    """Return the part that b images contribute to the mean sibling loss over B images, in nats.

    The parts of all images add up to that mean.

    The loss of an image is the mean, over its siblings, of the cross-entropy of the sibling among all other images
    (supervised contrastive loss, arXiv 2004.11362, equation 2). Siblings are images with equal `concept_ids`. An image
    without siblings in the batch has a loss of 0.

    Args:
        rows: The pairs whose part is computed.
        columns: All pairs of the batch, with which the rows are compared, except equal images.
    """
    assert rows.concept_ids is not None, "the batches of a run with this loss have ids of concepts"
    assert columns.concept_ids is not None
    same = rows.image_ids[:, None] == columns.image_ids  # b B
    siblings = (rows.concept_ids[:, None] == columns.concept_ids) & ~same
    with torch.autocast(same.device.type, enabled=False):
        log_probs = _log_softmax_over_others(rows.image @ columns.image.T, same, SIBLING_TEMPERATURE)
        nll = -(log_probs * siblings).sum(1) / siblings.sum(1).clamp(min=1)
    return nll.sum() / same.shape[1]


# --- Output layer and its loss, computed for one chunk of tokens after another


MAX_LOGITS = 2**26
"""Maximum number of logits in memory at the same time: 256 MB in fp32. With CLIP's vocabulary, a chunk has 1,358
tokens. Chunks should not be small, because each chunk adds a matrix as large as the output layer to the gradient."""

_MAX_BLOCK = 2**20
"""Maximum number of logits in a block. On a CPU, softmax and gradient are computed for blocks of rows that fit into the
cache.
"""


def _chunk_size(lm_head: Float[Tensor, "V D"]) -> int:
    return max(1, MAX_LOGITS // lm_head.shape[0])


class _LinearCrossEntropy(torch.autograd.Function):
    """Output layer (a linear map) and the cross-entropy of its logits, in one function.

    The result is three sums over tokens: nll + `z_weight` · log² Z, nll, and log² Z. Only the first sum has a gradient.

    The forward pass processes one chunk of tokens after another. For each chunk, it also computes the gradients, in the
    memory and precision of the chunk's logits. The logits of all tokens are therefore never in memory together, and no
    logit is computed twice. The result can be differentiated only once.

    PyTorch's own `linear_cross_entropy` (2.13) either computes all logits at once, or takes six times as long on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, lm_head: Tensor, labels: Tensor, z_weight: float) -> tuple[Tensor, ...]:
        """Compute the sums over tokens, and the gradients for `backward`. Shapes: `states` M D, `lm_head` V D, `labels`
        M."""
        size = _chunk_size(lm_head)
        by_state, by_head = torch.empty_like(states), None
        nll = z = at_least_fp32(states.new_zeros(()))
        for x, label, by_x in zip(*(t.split(size) for t in (states, labels[:, None], by_state)), strict=True):
            logits = F.linear(x, lm_head)  # m V, in bf16 under autocast
            nll_x, log_z = _differentiate(logits, label, z_weight, needs_gradient=any(ctx.needs_input_grad))
            nll, z = nll + nll_x.sum(), z + log_z.square().sum()
            if any(ctx.needs_input_grad):
                by_x.copy_(logits @ lm_head)
                by_head_x = (logits.T @ x).type_as(lm_head)
                by_head = by_head_x if by_head is None else by_head.add_(by_head_x)
        ctx.save_for_backward(by_state, by_head)
        ctx.mark_non_differentiable(nll, z)
        return nll + z_weight * z, nll, z

    @staticmethod
    def backward(ctx: Any, by_sum: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Scale, in place, the gradients that `forward` has computed.

        Raises:
            RuntimeError: If second derivatives are requested, which would silently be zero.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("the captioning loss can be differentiated only once; do not use create_graph=True")
        by_state, by_head = ctx.saved_tensors
        return by_state.mul_(by_sum), by_head.mul_(by_sum), None, None


def _differentiate(
    logits: Float[Tensor, "m V"], labels: Int[Tensor, "m 1"], z_weight: float, *, needs_gradient: bool
) -> tuple[Float[Tensor, "m 1"], Float[Tensor, "m 1"]]:
    """Return nll and log Z of each token. If needed, replace the logits of each token by the gradient of nll +
    `z_weight` · log² Z.

    Softmax and gradient are computed in fp32 or better, one block of rows after another.
    """
    size = max(1, _MAX_BLOCK // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    nll, log_z = [], []
    for block, label in zip(logits.split(size or 1), labels.split(size or 1), strict=True):
        precise = at_least_fp32(block)
        log_probs = precise.log_softmax(-1)
        nll.append(-log_probs.gather(1, label))
        log_z.append(precise.gather(1, label) + nll[-1])
        if needs_gradient:
            gradient = log_probs.exp_()  # gradient of nll: the probabilities, minus 1 at the label
            if z_weight:
                gradient *= 1 + 2 * z_weight * log_z[-1]
            gradient.scatter_add_(1, label, torch.full_like(nll[-1], -1.0))
            block.copy_(gradient)
    return torch.cat(nll), torch.cat(log_z)
