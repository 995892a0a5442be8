"""Evaluation tasks: retrieval, captioning, zero-shot classification and linear probes.

The function for each task returns metrics with confidence intervals, and the settings on which the metrics depend.

Shapes: N images, E embedding width.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from grr_coca.common.errors import UserError, require_extra
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.views import every_caption
from grr_coca.data.tokenizer import caption_id, clean_caption
from grr_coca.evaluate.caption_split import CaptionedSplit, pairs_by_image
from grr_coca.evaluate.checkpoint_metrics import retrieval_measures
from grr_coca.evaluate.intervals import Interval, Measure
from grr_coca.evaluate.labelled import LabelledImages
from grr_coca.evaluate.split import RECALLS, Gallery, RightAnswers, gallery_of, pair_results, retrieve
from grr_coca.evaluate.zeroshot import classifier_of, classify_labelled, embed_labelled
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class Report:
    """Metrics of one task on one split.

    Attributes:
        task: Name of the task.
        depends_on: Settings that must be equal for results to be comparable.
        metrics: Metrics with their 95 % intervals.
        plain: Metrics without an interval.
    """

    task: str
    depends_on: Mapping[str, int | str]
    metrics: Mapping[str, Interval]
    plain: Mapping[str, float]


def split_gallery(checkpoint: Checkpoint | ImageTextModel, source: PairSource, batch_size: int) -> Gallery:
    """Embed a split, and return it as a gallery for retrieval.

    Raises:
        UserError: If the split is empty, or a pair is invalid.
    """
    if not len(source):
        raise UserError("the split is empty: no image to search; add images")
    if isinstance(checkpoint, Checkpoint):
        return gallery_of(pair_results(checkpoint, every_caption(source), batch_size))
    return embed_gallery(checkpoint, source, batch_size)


def measure_retrieval(
    checkpoint: Checkpoint | ImageTextModel, source: PairSource, batch_size: int, right: RightAnswers
) -> Report:
    """Report the recalls, the median rank and the recalls expected by chance, in both directions.

    Raises:
        UserError: If the split is empty, or a pair is invalid.
    """
    gallery = split_gallery(checkpoint, source, batch_size)
    found = retrieve(gallery, right)
    directions = {"text_to_image": found.text_to_image, "image_to_text": found.image_to_text}
    return Report(
        task="retrieval",
        depends_on={
            "images": len(gallery.image),
            "captions": len(gallery.text),
            "right answers": "an image's own captions" + (" and equal ones" if right == "equal" else " alone"),
        },
        metrics=intervals(retrieval_measures(found)),
        plain={f"{name}/median_rank": ranks.median() for name, ranks in directions.items()}
        | {f"{name}/chance/R@{k}": ranks.chance(k) for name, ranks in directions.items() for k in RECALLS},
    )


def measure_captions(captioned: CaptionedSplit) -> Report:
    """Report CIDEr, CIDEr-D, BLEU and ROUGE-L for the captions of a split."""
    return Report(
        task="captioning",
        depends_on={
            "images": len(captioned.names),
            "references": sum(map(len, captioned.references)),
            "decoding": "greedy",
            "note": "CIDEr-D is what the literature calls CIDEr; both depend on the set of images",
        },
        metrics=intervals(captioned.scores().measures()),
        plain={},
    )


def measure_zeroshot(
    checkpoint: Checkpoint | ImageTextModel, images: LabelledImages, templates: Sequence[str], batch_size: int
) -> Report:
    """Report zero-shot accuracies: top-1, top-5 if there are more than five classes, and the mean over classes.

    Raises:
        UserError: If an image cannot be read, no template is given, or a template has no `{}`.
    """
    if isinstance(checkpoint, Checkpoint):
        classifier = classifier_of(checkpoint, images.class_names, templates)
        embeddings = embed_labelled(checkpoint, images, batch_size)
    else:
        classifier = checkpoint.classifier(images.class_names, templates)
        embeddings = embed_images(checkpoint, map(images.read, range(len(images))), batch_size)
    found = classify_labelled(classifier, embeddings, images.targets)
    return Report(
        task="zeroshot",
        depends_on={"images": len(images), "classes": len(images.class_names), "templates": len(templates)},
        metrics=intervals(found.measures()),
        plain={"chance": 1 / len(images.class_names)},
    )


def measure_probe(checkpoint: Checkpoint, train: LabelledImages, test: LabelledImages, batch_size: int) -> Report:
    """Report the accuracy of a linear probe on image embeddings.

    Args:
        checkpoint: The model whose embeddings are probed.
        train: Images to which the probe is fitted.
        test: Images on which the accuracy is measured. Their `class_names` must be those of `train`.
        batch_size: Number of images per batch.

    Raises:
        UserError: If an image cannot be read, scikit-learn is not installed, the training images have fewer than two
            classes, or no class has five training images.
    """
    targets, expected = np.array(train.targets), np.array(test.targets)
    features = [embed_labelled(checkpoint, images, batch_size).numpy() for images in (train, test)]
    linear = linear_probe(features[0], targets, features[1])
    most_frequent = np.bincount(targets).argmax()
    return Report(
        task="probe",
        depends_on={
            "images": len(test),
            "training images": len(train),
            "classes": len(train.class_names),
            "linear probe": f"image embedding, C {linear.strength:g} of a validation fifth",
        },
        metrics=intervals({"linear probe": Measure.mean(linear.predicted == expected)}),
        plain={"most frequent class": float((expected == most_frequent).mean())},
    )


def intervals(measures: Mapping[str, Measure]) -> dict[str, Interval]:
    """Return each metric with its 95 % interval."""
    return {name: measure.interval() for name, measure in measures.items()}


# --- Embeddings of an `ImageTextModel`, such as an adapted model, without losses


def embed_gallery(model: ImageTextModel, source: PairSource, batch_size: int) -> Gallery:
    """Embed each image and each caption of a split, and return them as a gallery for retrieval.

    Args:
        model: The model.
        source: The split.
        batch_size: Number of images or captions per batch.

    Raises:
        UserError: If a pair is invalid.
    """
    images = pairs_by_image(source)
    files = (source[pairs[0]] for pairs in images)
    texts, owners, ids = split_captions(source, images)
    return Gallery(
        embed_images(model, ((file.image, file.name) for file in files), batch_size),
        torch.from_numpy(model.embed_texts(texts, batch_size=batch_size)),
        torch.tensor(owners),
        torch.tensor(ids),
    )


def split_captions(source: PairSource, images: Sequence[Sequence[int]]) -> tuple[list[str], list[int], list[int]]:
    """Return all captions of the given images, the index of each caption's image, and ids that equal captions share.

    Args:
        source: The split.
        images: Indices of the pairs of each image, from `pairs_by_image`.

    Raises:
        UserError: If a caption is empty.
    """
    texts, owners = [], []
    for image, pairs in enumerate(images):
        own = [clean_caption(text, source.name(index)) for index in pairs for text in source.captions(index)]
        texts += own
        owners += [image] * len(own)
    return texts, owners, [caption_id(text) for text in texts]


def _require_decoded(square: Image.Image | UserError) -> Image.Image:
    """Return a decoded image, or raise the error that prevented decoding."""
    if isinstance(square, UserError):
        raise square
    return square


def embed_images(model: ImageTextModel, files: Iterable[tuple[bytes, str]], batch_size: int) -> Float[Tensor, "N E"]:
    """Embed one or more image files, each given as its content and name.

    Raises:
        UserError: If an image cannot be decoded.
    """
    parts: list[np.ndarray] = []

    def decoded() -> Iterator[list[np.ndarray]]:
        rest = iter(files)
        while batch := list(islice(rest, batch_size)):
            yield [np.asarray(square) for square in map(_require_decoded, model.preprocess.decode_squares(batch))]

    model.map_batches(decoded(), lambda pixels: model.engine.encode_images(np.stack(pixels)).embedding, parts.append)
    return torch.from_numpy(np.concatenate(parts))


# --- Linear probe: logistic regression on the image embeddings of a frozen model (arXiv 2103.00020, section 3.2)

STRENGTHS = tuple(float(c) for c in np.logspace(-4, 6, 11))
"""Candidate values of the inverse regularization strength."""
MAX_ITERATIONS = 1000
HELD_OUT_ONE_IN = 5


class LinearProbe(NamedTuple):
    """Predicted classes of the test images, N, and the inverse regularization strength that was best in validation."""

    predicted: np.ndarray
    strength: float


def linear_probe(train: np.ndarray, targets: np.ndarray, test: np.ndarray, seed: int = 0) -> LinearProbe:
    """Fit logistic regression to the features of training images, and predict the classes of test images.

    Held-out training images select the regularization strength. The probe is then fitted to all training images.

    Args:
        train: Features of the training images, one row per image, with E columns.
        targets: Class of each training image, as an integer.
        test: Features of the test images, N × E.
        seed: Seed for selecting the held-out images.

    Raises:
        UserError: If scikit-learn is not installed, the training images have fewer than two classes, or no class has
            five training images.
    """
    require_extra("probe", "a linear probe")
    if len(np.unique(targets)) < 2:
        raise UserError("a probe needs training images of at least two classes; add images of another class")
    fit, held_out = split_for_validation(targets, seed)
    from sklearn.linear_model import LogisticRegression  # lazy import, because it takes seconds

    scores = {}
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS).fit(train[fit], targets[fit])
        scores[strength] = float((model.predict(train[held_out]) == targets[held_out]).mean())
    best = max(STRENGTHS, key=lambda strength: (scores[strength], -strength))
    model = LogisticRegression(C=best, max_iter=MAX_ITERATIONS).fit(train, targets)
    return LinearProbe(model.predict(test), best)


def split_for_validation(targets: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the images for fitting and of the images for validation, both in ascending order.

    A random fifth of every class, rounded down, is used for validation. All images of a class with fewer than five
    images are thus used for fitting.

    Raises:
        UserError: If no class has five images, so that no image remains for validation.
    """
    rng = np.random.default_rng(seed)
    held_out = []
    for target in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == target))
        held_out.append(members[: len(members) // HELD_OUT_ONE_IN])
    validation = np.sort(np.concatenate(held_out))
    if not len(validation):
        raise UserError(
            f"no class has {HELD_OUT_ONE_IN} or more training images, so none can be held out for "
            "validation; add images"
        )
    return np.setdiff1d(np.arange(len(targets)), validation), validation
