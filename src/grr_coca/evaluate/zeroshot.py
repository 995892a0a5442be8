"""Zero-shot classification: an image gets the class whose name is nearest to it (arXiv 2103.00020, section 3.1).

Shapes: N images, C classes, E embedding width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from grr_coca.checkpoint import Checkpoint
from grr_coca.evaluate.class_names import check_class_names, fill_templates
from grr_coca.evaluate.intervals import Measure
from grr_coca.evaluate.labelled import LabelledImages
from grr_coca.evaluate.retrieval import rank_of_first_hit
from grr_coca.model.coca import evaluating

TEXTS_AT_ONCE = 512

EmbedTexts = Callable[[list[str]], Tensor]
"""A function from N texts to their embeddings, N E, each of unit length."""


@dataclass(frozen=True)
class Classification:
    """For every image: its right class, and the number of wrong classes that are at least as near to the image."""

    rank: Int[Tensor, " N"]
    target: Int[Tensor, " N"]
    num_classes: int

    def measures(self) -> dict[str, Measure]:
        """Accuracies by name. In `mean_per_class`, every class that occurs has the same weight."""
        right = (self.rank < 1).double()
        hits = {f"top-{k}": Measure.mean((self.rank < k).double().numpy()) for k in (1, 5) if k < self.num_classes}
        share = F.one_hot(self.target, self.num_classes).double()
        statistics = torch.cat([share * right[:, None], share], dim=1).numpy()
        return {**hits, "mean_per_class": Measure(statistics, _mean_per_class)}


@dataclass(frozen=True)
class ZeroShotClassifier:
    """Compares images with the names of classes. The model need not have been trained on these classes.

    `embedding`: the unit-length embedding of each class.
    """

    class_names: tuple[str, ...]
    embedding: Float[Tensor, "C E"]

    def probabilities(self, images: Float[Tensor, "N E"], scale: Float[Tensor, ""]) -> Float[Tensor, "N C"]:
        """The softmax over classes of the cosines times `scale`, the model's inverse temperature."""
        return (scale * (images @ self.embedding.T)).softmax(dim=-1)

    def classify(self, images: Float[Tensor, "N E"], targets: Sequence[int]) -> Classification:
        """Classify embedded images. `targets`: the right class of each, by index. A tie counts against the right
        class."""
        target = torch.tensor(targets)
        rank = rank_of_first_hit(images @ self.embedding.T, F.one_hot(target, len(self.class_names)).bool())
        return Classification(rank, target, len(self.class_names))


def make_classifier(embed: EmbedTexts, class_names: Sequence[str], templates: Sequence[str]) -> ZeroShotClassifier:
    """Build a classifier. The embedding of a class is the mean over templates, scaled to unit length again.

    Args:
        embed: embeds sentences.
        class_names: two or more, without repetition.
        templates: sentences in which `{}` stands for the name of the class.

    Raises:
        UserError: names are repeated or too few, or a template has no `{}`.
    """
    names = check_class_names(class_names, "labels")
    embedded = embed(fill_templates(names, templates)).unflatten(0, (len(names), len(templates)))
    return ZeroShotClassifier(names, F.normalize(embedded.mean(dim=1), dim=-1))


@torch.inference_mode()
def embed_texts(checkpoint: Checkpoint, texts: Sequence[str]) -> Float[Tensor, "N E"]:
    """The embeddings of texts, on the CPU."""
    parts = []
    with evaluating(checkpoint.model):
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            token_ids, lengths = checkpoint.tokenize(texts[start : start + TEXTS_AT_ONCE])
            parts.append(checkpoint.model.encode_text(token_ids, lengths).cpu())
    return torch.cat(parts)


@torch.inference_mode()
def embed_labelled(checkpoint: Checkpoint, images: LabelledImages, batch_size: int) -> Float[Tensor, "N E"]:
    """The embeddings of images, on the CPU."""
    model = checkpoint.model
    with evaluating(model):
        batches = images.batches(checkpoint, batch_size)
        return torch.cat([model.encode_image(batch).embedding.cpu() for batch in batches])


def _mean_per_class(summed: np.ndarray) -> np.ndarray:
    hits, counts = np.split(summed, 2, axis=-1)
    return (hits / np.maximum(counts, 1)).sum(axis=-1) / (counts > 0).sum(axis=-1)
