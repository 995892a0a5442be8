"""Zero-shot classifier, which assigns an image to the class whose name is nearest in the joint embedding (arXiv
2103.00020, section 3.1).

Shapes: N images, C classes, E embedding width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from grr_coca.common.shapes import Float
from grr_coca.infer.class_names import check_class_names, fill_templates

EmbedTexts = Callable[[list[str]], np.ndarray]
"""Function that takes N texts and returns their unit-length embeddings as an array of shape N E."""


@dataclass(frozen=True)
class ZeroShotClassifier:
    """Classifier that compares images with class names. The model does not need to be trained on these classes.

    Attributes:
        embedding: Unit-length embedding of each class.
    """

    class_names: tuple[str, ...]
    embedding: Float[np.ndarray, "C E"]

    def probabilities(self, images: Float[np.ndarray, "N E"], scale: float) -> Float[np.ndarray, "N C"]:
        """Return the softmax over classes of `scale` × cosine, where `scale` is the model's inverse temperature."""
        logits = scale * (images @ self.embedding.T)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)


def make_classifier(embed: EmbedTexts, class_names: Sequence[str], templates: Sequence[str]) -> ZeroShotClassifier:
    """Build a classifier. The embedding of a class is the mean over all templates, scaled to unit length.

    Args:
        embed: Function that embeds sentences.
        class_names: Two or more different names.
        templates: Sentences in which `{}` stands for the class name.

    Raises:
        UserError: If `check_class_names` rejects the names, no template is given, or a template has no `{}`.
    """
    names = check_class_names(class_names, "labels")
    embedded = embed(fill_templates(names, templates))
    mean = embedded.reshape(len(names), len(templates), embedded.shape[1]).mean(axis=1)
    length = np.linalg.norm(mean, axis=1, keepdims=True)
    return ZeroShotClassifier(names, mean / np.maximum(length, 1e-12))
