"""The loss that CoCa is trained on (arXiv 2205.01917, section 3.1): L = λ_con · L_con + λ_cap · L_cap.

Shapes: D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from jaxtyping import Float
from torch import Tensor

from grr_coca.batch import IGNORE_INDEX, Batch, CoCaOutput
from grr_coca.losses.captioning import captioning_loss
from grr_coca.losses.contrastive import EmbeddedPairs, contrastive_loss, same_pair

Scalar = TypeVar("Scalar", float, Tensor)


@dataclass(frozen=True)
class LossWeights:
    """λ_con, λ_cap and the weight of the z-loss (see `captioning_loss`). The defaults are the paper's. A z-loss needs a
    captioning weight above 0."""

    contrastive: float = 1.0
    captioning: float = 2.0
    z: float = 0.0

    @property
    def z_per_captioning(self) -> float:
        """The weight of the z-loss, relative to that of the captioning loss."""
        return self.z and self.z / self.captioning


class Losses(NamedTuple):
    """The losses of one batch, in nats. Differentiate `trained`, which is `coca` plus the weighted z-loss. The others
    are for the log."""

    trained: Float[Tensor, ""]
    contrastive: Float[Tensor, ""]
    captioning: Float[Tensor, ""]
    coca: Float[Tensor, ""]
    z: Float[Tensor, ""]


def batch_loss(
    output: CoCaOutput,
    batch: Batch,
    lm_head: Float[Tensor, "V D"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""] | None,
    weights: LossWeights = LossWeights(),
) -> Losses:
    """CoCa's loss of one batch, in one piece and on one process.

    Training computes the same loss in pieces and on many processes (`grr_coca.train.step.gradients`).

    Args:
        output: the model's output for the batch.
        batch: the pairs.
        lm_head: the weight of the model's head.
        logit_scale: logarithm of the inverse temperature.
        logit_bias: bias of the sigmoid loss; None: the softmax loss.
        weights: weights of the parts.
    """
    pairs = EmbeddedPairs(output.image_embedding, output.text_embedding)
    same = same_pair(batch.caption_ids, batch.image_ids)
    contrastive = contrastive_loss(pairs, pairs, logit_scale, logit_bias, same, first_row=0)

    labels = batch.labels[batch.labels != IGNORE_INDEX]
    captions = captioning_loss(output.states, lm_head, labels, z_weight=weights.z_per_captioning)

    trained = coca_loss(contrastive, captions.trained, weights)
    coca = coca_loss(contrastive, captions.captioning, weights)
    return Losses(trained, contrastive.detach(), captions.captioning, coca.detach(), captions.z)


def coca_loss(contrastive: Scalar, captioning: Scalar, weights: LossWeights) -> Scalar:
    """The weighted sum. A part with weight zero stays in the graph, so every parameter always has a gradient."""
    return weights.contrastive * contrastive + weights.captioning * captioning
