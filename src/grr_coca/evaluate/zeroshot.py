"""Zero-shot classification: an image is of the class whose name is nearest to it (arXiv 2103.00020, section 3.1).

Shapes: N images, C classes, E embedding width, K templates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from grr_coca.checkpoint import Checkpoint
from grr_coca.data.dataset import pad_rows
from grr_coca.evaluate.bootstrap import Measure
from grr_coca.evaluate.labelled import LabelledImages
from grr_coca.evaluate.labels import PLACE
from grr_coca.evaluate.metrics import rank_of_first_hit
from grr_coca.model.mode import evaluating

TEXTS_AT_ONCE = 512


@dataclass(frozen=True)
class Classification:
    """How many wrong classes come before the right one, or level with it, for every image; and its class."""

    rank: Int[Tensor, " N"]
    target: Int[Tensor, " N"]
    num_classes: int

    def measures(self) -> dict[str, Measure]:
        """Accuracies by name. `mean_per_class` counts every class that occurs alike, however many images it has."""
        right = (self.rank < 1).double()
        hits = {f"top-{k}": Measure.mean((self.rank < k).double().numpy()) for k in (1, 5) if k < self.num_classes}
        share = F.one_hot(self.target, self.num_classes).double()
        statistics = torch.cat([share * right[:, None], share], dim=1).numpy()
        return {**hits, "mean_per_class": Measure(statistics, _mean_per_class)}


@torch.inference_mode()
def embed_classes(checkpoint: Checkpoint, classes: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "C E"]:
    """The embedding of each class: the mean over templates of unit vectors, of unit length again."""
    sentences = [template.replace(PLACE, label) for label in classes for template in templates]
    embedded = embed_texts(checkpoint, sentences).unflatten(0, (len(classes), len(templates)))
    return F.normalize(embedded.mean(dim=1), dim=-1)


@torch.inference_mode()
def embed_texts(checkpoint: Checkpoint, texts: Sequence[str]) -> Float[Tensor, "N E"]:
    """The embeddings of texts, on the CPU."""
    device = next(checkpoint.model.parameters()).device
    context_length = checkpoint.config.text_decoder.context_length
    parts = []
    with evaluating(checkpoint.model):
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            rows = [
                checkpoint.tokenizer.encode_row(text, context_length) for text in texts[start : start + TEXTS_AT_ONCE]
            ]
            token_ids, lengths = pad_rows(rows)
            parts.append(checkpoint.model.encode_text(token_ids.to(device), lengths.to(device)).cpu())
    return torch.cat(parts)


@torch.inference_mode()
def embed_labelled(checkpoint: Checkpoint, images: LabelledImages, batch_size: int) -> Float[Tensor, "N E"]:
    """The embeddings of images, on the CPU."""
    device = next(checkpoint.model.parameters()).device
    with evaluating(checkpoint.model):
        batches = images.batches(checkpoint, batch_size)
        return torch.cat([checkpoint.model.encode_image(batch.to(device)).embedding.cpu() for batch in batches])


def classify(images: Float[Tensor, "N E"], classes: Float[Tensor, "C E"], targets: Sequence[int]) -> Classification:
    """Classify embedded images; a tie counts against the right class."""
    target = torch.tensor(targets)
    rank = rank_of_first_hit(images @ classes.T, F.one_hot(target, len(classes)).bool())
    return Classification(rank, target, len(classes))


def _mean_per_class(summed: np.ndarray) -> np.ndarray:
    hits, counts = np.split(summed, 2, axis=-1)
    return (hits / np.maximum(counts, 1)).sum(axis=-1) / (counts > 0).sum(axis=-1)
