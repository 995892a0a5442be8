"""CoCa's losses (arXiv 2205.01917, section 3), and what a text teacher adds to them. `batch_loss` puts them together.

Shapes: B pairs of the global batch, b pairs of this rank, E embedding width; C texts of the global batch, c texts of
this rank, W words, K width of the teacher's embeddings; M tokens to predict, m tokens of a chunk of them, D width of
the states that predict them, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grr_coca.data.batch import Batch
from grr_coca.model.coca import CoCa
from grr_coca.model.layers.norm import at_least_fp32

Scalar = TypeVar("Scalar", float, Tensor)


# --- Contrastive: which text belongs to which image


class PairEmbeddings(NamedTuple):
    """Embeddings of unit length. Text i belongs to image i."""

    image: Float[Tensor, "B E"]
    text: Float[Tensor, "B E"]


def same_pair(
    caption_ids: Int[Tensor, " b"],
    image_ids: Int[Tensor, " b"],
    columns: tuple[Int[Tensor, " B"], Int[Tensor, " B"]] | None = None,
) -> Bool[Tensor, "b B"]:
    """True where two pairs have the same caption or the same image. Such pairs are not negatives of each other.

    `columns`: caption and image ids of the whole batch; None: the batch is the rows themselves.
    """
    all_caption_ids, all_image_ids = columns or (caption_ids, image_ids)
    return (caption_ids[:, None] == all_caption_ids) | (image_ids[:, None] == all_image_ids)


def contrastive_loss(
    rows: PairEmbeddings,
    columns: PairEmbeddings,
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""] | None,
    same: Bool[Tensor, "b B"],
    first_row: int,
    targets: Float[Tensor, "b B"] | None = None,
) -> Float[Tensor, ""]:
    """The part of b pairs in the mean contrastive loss over a batch of B pairs, in nats. The parts add up to that mean.

    Without a bias this is CLIP's loss: the mean of the cross-entropy of each image over all texts and of each text over
    all images. With a bias it is SigLIP's (arXiv 2303.15343): for every image and every text, a binary classification
    of whether they match, summed over texts and averaged over images.

    Args:
        rows: the pairs whose share is computed.
        columns: all pairs of the batch. The rows are compared with them.
        logit_scale: logarithm of the inverse temperature.
        logit_bias: bias of the sigmoid loss; None: the softmax loss.
        same: pairs with the same caption or image, see `same_pair`. They are left out of the comparison.
        first_row: index of the first row among the columns.
        targets: how much each text belongs to each image, see `soft_targets`; None: text i belongs to image i alone.
            Its lowest value is then not 0, but the entropy of the targets.
    """
    B = same.shape[1]
    target = torch.arange(first_row, first_row + same.shape[0], device=same.device)
    itself = target[:, None] == torch.arange(B, device=same.device)
    others = same & ~itself
    # bf16 would round a similarity of 1 at temperature 0.01 by half a nat.
    with torch.autocast(same.device.type, enabled=False):
        by_image = logit_scale.exp() * rows.image @ columns.text.T  # b B
        if logit_bias is not None and targets is not None:
            nlls = F.binary_cross_entropy_with_logits(by_image + logit_bias, targets, reduction="none")
            return nlls.masked_fill(others, 0.0).sum() / B
        if logit_bias is not None:
            logits = torch.where(itself, 1, -1) * (by_image + logit_bias)
            return -F.logsigmoid(logits).masked_fill(others, 0.0).sum() / B
        by_text = rows.text @ (logit_scale.exp() * columns.image).T  # b B
        if targets is not None:
            log_probs = [x.masked_fill(others, -torch.inf).log_softmax(1) for x in (by_image, by_text)]
            return -(targets * (log_probs[0] + log_probs[1]).masked_fill(others, 0.0)).sum() / (2 * B)
    nll = [F.cross_entropy(x.masked_fill(others, -torch.inf), target, reduction="sum") for x in (by_image, by_text)]
    return (nll[0] + nll[1]) / (2 * B)


# --- Text teacher: which texts mean nearly the same


@dataclass(frozen=True)
class TeacherOptions:
    """How the losses use the embeddings of a text teacher.

    - `weight`: weight of `teacher_loss`
    - `soft_targets`: share of the contrastive targets that follows the teacher, see `soft_targets`
    - `temperature`: both divide the teacher's cosines by it
    """

    weight: float = 1.0
    soft_targets: float = 0.0
    temperature: float = 0.1


def teacher_loss(
    rows: Float[Tensor, "c E"],
    columns: Float[Tensor, "C E"],
    teacher_rows: Float[Tensor, "c K"],
    teacher_columns: Float[Tensor, "C K"],
    same: Bool[Tensor, "c C"],
    temperature: float,
) -> Float[Tensor, ""]:
    """The part of c texts in the mean teacher loss over C texts, in nats. The parts add up to that mean.

    For each text, the softmax over its similarities to all other texts is to be that of the teacher: the loss is the
    Kullback-Leibler divergence of ours from the teacher's, 0 if both agree (relational distillation, arXiv 1904.05068;
    as a softmax, arXiv 2101.04731). The teacher may have any width.

    Args:
        rows: our embeddings of the texts whose share is computed, of unit length.
        columns: those of all texts. The rows are compared with them.
        teacher_rows: the teacher's embeddings of the rows, of unit length.
        teacher_columns: those of the columns.
        same: pairs of equal texts, each text with itself included. They are left out of the comparison.
        temperature: the similarities of both are divided by it.
    """
    with torch.autocast(same.device.type, enabled=False):
        ours = _log_softmax_over_others(rows @ columns.T, same, temperature)
        wanted = _log_softmax_over_others(teacher_rows @ teacher_columns.T, same, temperature)
    return F.kl_div(ours, wanted, reduction="sum", log_target=True) / same.shape[1]


def _log_softmax_over_others(
    similarity: Float[Tensor, "c C"], same: Bool[Tensor, "c C"], temperature: float
) -> Float[Tensor, "c C"]:
    # A finite number instead of -inf: a text that has no others gets a uniform softmax on both sides, so a loss of 0.
    return (similarity / temperature).masked_fill(same, -1e4).log_softmax(1)


def soft_targets(
    teacher_rows: Float[Tensor, "b K"],
    teacher_columns: Float[Tensor, "B K"],
    same: Bool[Tensor, "b B"],
    first_row: int,
    teaching: TeacherOptions,
) -> Float[Tensor, "b B"]:
    """Contrastive targets: the text of an image, and to a share also texts that mean nearly the same.

    The share `teaching.soft_targets` goes to all texts by the softmax of the teacher's similarities, in which the text
    of the image has the largest part; the rest goes to that text too. The rows sum to 1. Arguments: see
    `contrastive_loss` and `teacher_loss`.
    """
    b, B = same.shape
    itself = torch.arange(first_row, first_row + b, device=same.device)[:, None] == torch.arange(B, device=same.device)
    with torch.autocast(same.device.type, enabled=False):
        similarity = (teacher_rows @ teacher_columns.T) / teaching.temperature
    near = similarity.masked_fill(same & ~itself, -torch.inf).softmax(1)
    return torch.lerp(itself.type_as(near), near, teaching.soft_targets)


# --- Captioning: the next token, the end token included


class CaptioningLoss(NamedTuple):
    """Means over the tokens of the whole batch, in nats. Differentiate `total`, which is `captioning` + z_weight · `z`.
    The other two are for the log."""

    total: Float[Tensor, ""]
    captioning: Float[Tensor, ""]
    z: Float[Tensor, ""]


def captioning_loss(
    states: Float[Tensor, "M D"],
    lm_head: Float[Tensor, "V D"],
    labels: Int[Tensor, " M"],
    num_tokens: Int[Tensor, ""] | int | None = None,
    z_weight: float = 0.0,
) -> CaptioningLoss:
    """Mean cross-entropy of tokens, predicted with the logits `states @ lm_head.T`.

    Args:
        states: the states that predict the tokens.
        lm_head: weight of the head.
        labels: ids of the tokens, end tokens included.
        num_tokens: number of tokens to divide the sum by; None: the number of these. With the number of a larger
            batch, the result is the share of these tokens in its loss: all shares add up to the loss.
        z_weight: weight of the z-loss, the mean of log² Z, where Z is the denominator of the softmax. It keeps logits
            from drifting (PaLM, arXiv 2204.02311, section 5).

    Raises:
        ValueError: the numbers of states and labels differ.
    """
    if states.shape[0] != labels.shape[0]:
        raise ValueError(
            f"{states.shape[0]} states and {labels.shape[0]} labels: every token of a caption needs its label"
        )
    sums = _LinearCrossEntropy.apply(states, lm_head, labels, z_weight)
    return CaptioningLoss(*(part / (labels.shape[0] if num_tokens is None else num_tokens) for part in sums))


@torch.no_grad()
def token_losses(
    states: Float[Tensor, "M D"], lm_head: Float[Tensor, "V D"], labels: Int[Tensor, " M"]
) -> Float[Tensor, " M"]:
    """Cross-entropy of each token, in nats, without a gradient. `captioning_loss` is its mean."""
    size = _chunk_size(lm_head)
    parts = [
        F.cross_entropy(at_least_fp32(F.linear(x, lm_head)), label, reduction="none")
        for x, label in zip(states.split(size), labels.split(size), strict=True)
    ]
    return torch.cat(parts)


MAX_LOGITS = 2**25
"""Maximum number of logits in memory at the same time: 128 MB in fp32. With CLIP's vocabulary, a chunk has 679 tokens,
which is enough for full speed."""


def _chunk_size(lm_head: Float[Tensor, "V D"]) -> int:
    return max(1, MAX_LOGITS // lm_head.shape[0])


class _LinearCrossEntropy(torch.autograd.Function):
    """The output layer (a linear map) and the cross-entropy of its logits, in one function.

    The result is three sums over tokens: nll + `z_weight` · log² Z, nll, and log² Z. Only the first has a gradient.

    The forward pass processes one chunk of tokens after the other. For each, it computes the gradients too, in the
    memory of the chunk's logits. So the logits of all tokens are never in memory together, and none is computed twice.
    The result can be differentiated only once.

    PyTorch's own `linear_cross_entropy` (2.13) either computes all logits at once, or takes six times as long on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, lm_head: Tensor, labels: Tensor, z_weight: float) -> tuple[Tensor, ...]:
        """Compute the sums over tokens, and the gradients for `backward`. Shapes: `states` M D, `lm_head` V D, `labels`
        M."""
        size = _chunk_size(lm_head)
        by_state, by_head = torch.empty_like(states), torch.zeros_like(lm_head)
        nll = z = at_least_fp32(states.new_zeros(()))
        for x, label, by_x in zip(*(t.split(size) for t in (states, labels[:, None], by_state)), strict=True):
            logits = at_least_fp32(F.linear(x, lm_head))  # m V
            log_probs = logits.log_softmax(-1)
            nll_x = -log_probs.gather(1, label)  # m 1
            log_z = logits.gather(1, label) + nll_x  # m 1
            nll, z = nll + nll_x.sum(), z + log_z.square().sum()
            if any(ctx.needs_input_grad):
                gradient = log_probs.exp_()  # of nll: the probabilities, minus 1 at the label
                if z_weight:
                    gradient *= 1 + 2 * z_weight * log_z
                gradient.scatter_add_(1, label, torch.full_like(nll_x, -1.0))
                by_x.copy_(gradient.type_as(x) @ lm_head)
                by_head += gradient.type_as(x).T @ x
        ctx.save_for_backward(by_state, by_head)
        ctx.mark_non_differentiable(nll, z)
        return nll + z_weight * z, nll, z

    @staticmethod
    def backward(ctx: Any, by_sum: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Scale the gradients that `forward` has computed.

        Raises:
            RuntimeError: second derivatives are asked for. They would silently be zero.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("the captioning loss can be differentiated only once, so not with create_graph=True")
        by_state, by_head = ctx.saved_tensors
        return by_sum * by_state, by_sum * by_head, None, None


# --- CoCa: the weighted sum


@dataclass(frozen=True)
class LossWeights:
    """λ_con, λ_cap and the weight of the z-loss (see `captioning_loss`). The defaults are the paper's. A z-loss needs a
    captioning weight above 0. `teaching`: how a text teacher is used; None: there is no teacher."""

    contrastive: float = 1.0
    captioning: float = 2.0
    z: float = 0.0
    teaching: TeacherOptions | None = None

    @property
    def z_per_captioning(self) -> float:
        """The weight of the z-loss, relative to that of the captioning loss."""
        return self.z and self.z / self.captioning


# --- The losses that compare: each pair and each text with all others of the global batch


class BatchEmbeddings(NamedTuple):
    """Our embeddings of a batch, of unit length. W is 0 if the batch has no words."""

    image: Float[Tensor, "B E"]
    text: Float[Tensor, "B E"]
    words: Float[Tensor, "W E"]

    @property
    def pairs(self) -> PairEmbeddings:
        """Images and captions."""
        return PairEmbeddings(self.image, self.text)

    @property
    def texts(self) -> Float[Tensor, "C E"]:
        """Captions and words."""
        return torch.cat([self.text, self.words])


class Labels(NamedTuple):
    """What the losses that compare aim at: the ids of the pairs and words of a batch, and the teacher's embeddings.

    K is 0 without a teacher.
    """

    caption_ids: Int[Tensor, " B"]
    image_ids: Int[Tensor, " B"]
    word_ids: Int[Tensor, " W"]
    text: Float[Tensor, "B K"]
    words: Float[Tensor, "W K"]

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> "Labels":
        """Of some batches together."""
        caption_ids, image_ids = (
            torch.cat([getattr(b, name) for b in batches]) for name in ("caption_ids", "image_ids")
        )
        words = [batch.words for batch in batches if batch.words is not None]
        taught = [batch.teacher for batch in batches if batch.teacher is not None]
        text = torch.cat(taught) if taught else torch.zeros(len(caption_ids), 0, device=caption_ids.device)
        return cls(
            caption_ids=caption_ids,
            image_ids=image_ids,
            word_ids=torch.cat([caption_ids[:0], *(w.ids for w in words)]),
            text=text,
            words=torch.cat([text[:0], *(w.teacher for w in words)]),
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> "Labels":
        """The same with a function of each tensor."""
        return Labels(*map(function, self))


class ComparisonLosses(NamedTuple):
    """The losses of `compared_losses`, in nats. `teacher` is 0 without a teacher."""

    contrastive: Float[Tensor, ""]
    teacher: Float[Tensor, ""]


Compare = Callable[[BatchEmbeddings], ComparisonLosses]
"""The losses that compare, as a function of the embeddings of one batch."""


def compared_losses(
    model: CoCa,
    rows: BatchEmbeddings,
    columns: BatchEmbeddings,
    row_labels: Labels,
    column_labels: Labels,
    first_row: int,
    teaching: TeacherOptions | None,
) -> ComparisonLosses:
    """The parts of some pairs and words in the contrastive loss and in the teacher loss of the global batch.

    Args:
        model: for its temperature, and for the bias of the sigmoid loss.
        rows: our embeddings of the pairs and words whose part is computed.
        columns: our embeddings of the global batch.
        row_labels: of the rows.
        column_labels: of the global batch.
        first_row: index of the first pair of the rows in the global batch.
        teaching: how the teacher is used; None: there is none.
    """
    all_ids = column_labels.caption_ids, column_labels.image_ids
    same = same_pair(row_labels.caption_ids, row_labels.image_ids, columns=all_ids)
    targets = None
    if teaching is not None and teaching.soft_targets:
        targets = soft_targets(row_labels.text, column_labels.text, same, first_row, teaching).type_as(rows.image)
    contrastive = contrastive_loss(
        rows.pairs, columns.pairs, model.logit_scale, model.logit_bias, same, first_row, targets
    )
    if teaching is None:
        return ComparisonLosses(contrastive, torch.zeros_like(contrastive))
    both = row_labels, column_labels
    row_ids, column_ids = (torch.cat([labels.caption_ids, labels.word_ids]) for labels in both)
    taught, all_taught = (torch.cat([labels.text, labels.words]).type_as(rows.text) for labels in both)
    same_text = row_ids[:, None] == column_ids
    return ComparisonLosses(
        contrastive, teacher_loss(rows.texts, columns.texts, taught, all_taught, same_text, teaching.temperature)
    )


# --- All of them


class Losses(NamedTuple):
    """The losses of one batch, in nats. Differentiate `total`, which is `coca` plus the weighted losses `z` and
    `teacher`. The others are for the log. `teacher` is 0 without a teacher."""

    total: Float[Tensor, ""]
    contrastive: Float[Tensor, ""]
    captioning: Float[Tensor, ""]
    coca: Float[Tensor, ""]
    z: Float[Tensor, ""]
    teacher: Float[Tensor, ""]


def batch_loss(
    model: CoCa,
    batch: Batch,
    weights: LossWeights = LossWeights(),
    *,
    num_tokens: Int[Tensor, ""] | None = None,
    compare: Compare | None = None,
) -> Losses:
    """CoCa's loss of one batch: L = λ_con · L_con + λ_cap · L_cap. Differentiate its `total`.

    Training calls it for each micro-batch of each rank (`grr_coca.train.step`). With `num_tokens` and
    `compare`, the result is the share of a micro-batch. The shares add up to the losses of the global batch.

    Args:
        model: the model in training mode.
        batch: pairs on the model's device.
        weights: weights of the parts.
        num_tokens: tokens to predict in the global batch; None: the tokens of this batch.
        compare: the losses of the global batch that compare, as a function of these embeddings; None: this batch is
            the global one.
    """
    output = model(batch.images, batch.token_ids, batch.lengths, batch.kept_patches)
    embedded = BatchEmbeddings(output.image_embedding, output.text_embedding, embed_words(model, batch))

    contrastive, teacher = (compare or _compare_within(model, batch, weights))(embedded)
    lm_head = model.multimodal_decoder.lm_head.weight
    captions = captioning_loss(output.states, lm_head, batch.next_tokens, num_tokens, weights.z_per_captioning)

    total = coca_loss(contrastive, captions.total, weights)
    if weights.teaching is not None:
        total = total + weights.teaching.weight * teacher
    coca = coca_loss(contrastive.detach(), captions.captioning, weights)
    return Losses(total, contrastive.detach(), captions.captioning, coca, captions.z, teacher.detach())


def embed_words(model: CoCa, batch: Batch) -> Float[Tensor, "W E"]:
    """Our embeddings of the words of a batch, of unit length."""
    if batch.words is None:
        return batch.images.new_zeros(0, model.text_proj.out_features)
    return model.encode_text(batch.words.token_ids, batch.words.lengths)


def coca_loss(contrastive: Scalar, captioning: Scalar, weights: LossWeights) -> Scalar:
    """The weighted sum. A part with weight zero stays in the graph, so every parameter always has a gradient."""
    return weights.contrastive * contrastive + weights.captioning * captioning


def _compare_within(model: CoCa, batch: Batch, weights: LossWeights) -> Compare:
    labels = Labels.of([batch])
    return lambda embedded: compared_losses(model, embedded, embedded, labels, labels, 0, weights.teaching)
