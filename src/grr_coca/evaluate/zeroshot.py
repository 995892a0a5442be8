"""Measure the accuracy of zero-shot classification on labelled images. The classifier is in
`grr_coca.infer.classifier`.

Shapes: N images or texts, E embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from grr_coca.evaluate.intervals import Measure
from grr_coca.evaluate.labelled import LabelledImages
from grr_coca.evaluate.split import eval_mode, rank_of_first_hit
from grr_coca.infer.classifier import ZeroShotClassifier, make_classifier
from grr_coca.model.checkpoint import Checkpoint

TEXTS_AT_ONCE = 512


@dataclass(frozen=True)
class Classification:
    """Result of classifying N images.

    Attributes:
        rank: Number of wrong classes that are at least as near to each image as the correct class.
        target: Index of each image's correct class.
        num_classes: Number of classes.
    """

    rank: Int[Tensor, " N"]
    target: Int[Tensor, " N"]
    num_classes: int

    def measures(self) -> dict[str, Measure]:
        """Return the accuracies by name: `top-1`, `top-5` if there are more than five classes, and `mean_per_class`.

        In `mean_per_class`, all classes that occur have the same weight.
        """
        right = (self.rank < 1).double()
        hits = {f"top-{k}": Measure.mean((self.rank < k).double().numpy()) for k in (1, 5) if k < self.num_classes}
        share = F.one_hot(self.target, self.num_classes).double()
        statistics = torch.cat([share * right[:, None], share], dim=1).numpy()
        return {**hits, "mean_per_class": Measure(statistics, _mean_per_class)}


def classifier_of(checkpoint: Checkpoint, class_names: Sequence[str], templates: Sequence[str]) -> ZeroShotClassifier:
    """Build a zero-shot classifier from a checkpoint and class names; see `make_classifier`.

    Raises:
        UserError: If there are fewer than two names, a name is invalid or duplicate, no template is given, or a
            template has no `{}`.
    """
    return make_classifier(lambda texts: embed_texts(checkpoint, texts).numpy(), class_names, templates)


def classify_labelled(
    classifier: ZeroShotClassifier, images: Float[Tensor, "N E"], targets: Sequence[int]
) -> Classification:
    """Classify embedded images, and compare the results with their correct classes.

    `targets` contains the index of each image's correct class. A tie counts against the correct class.
    """
    target, num_classes = torch.tensor(targets), len(classifier.class_names)
    similarity = images @ torch.from_numpy(classifier.embedding).to(images.dtype).T
    rank = rank_of_first_hit(similarity, F.one_hot(target, num_classes).bool())
    return Classification(rank, target, num_classes)


@torch.inference_mode()
def embed_texts(checkpoint: Checkpoint, texts: Sequence[str]) -> Float[Tensor, "N E"]:
    """Return the unit-length embeddings of texts, on the CPU. The model's training mode is restored."""
    parts = []
    with eval_mode(checkpoint.model):
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            token_ids, lengths = checkpoint.tokenize(texts[start : start + TEXTS_AT_ONCE])
            parts.append(checkpoint.model.encode_text(token_ids, lengths).cpu())
    return torch.cat(parts)


@torch.inference_mode()
def embed_labelled(checkpoint: Checkpoint, images: LabelledImages, batch_size: int) -> Float[Tensor, "N E"]:
    """Return the unit-length embeddings of images, on the CPU. The model's training mode is restored.

    Raises:
        UserError: If an image cannot be read or decoded.
    """
    model = checkpoint.model
    with eval_mode(model):
        batches = images.batches(checkpoint, batch_size)
        return torch.cat([model.encode_image(batch).embedding.cpu() for batch in batches])


def _mean_per_class(summed: np.ndarray) -> np.ndarray:
    hits, counts = np.split(summed, 2, axis=-1)
    return (hits / np.maximum(counts, 1)).sum(axis=-1) / (counts > 0).sum(axis=-1)
