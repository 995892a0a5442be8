"""Evaluation tasks. The function for each task returns metrics with intervals, and the settings on which they
depend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.views import every_caption
from grr_coca.evaluate.caption_split import CaptionedSplit
from grr_coca.evaluate.checkpoint_metrics import retrieval_measures
from grr_coca.evaluate.embedded import embedded_gallery, embedded_images
from grr_coca.evaluate.intervals import Interval, Measure
from grr_coca.evaluate.labelled import LabelledImages
from grr_coca.evaluate.probes import linear_probe
from grr_coca.evaluate.retrieval import Gallery, RightAnswers, retrieve
from grr_coca.evaluate.split import RECALLS, gallery_of, pair_results
from grr_coca.evaluate.zeroshot import classifier_of, classify_labelled, embed_labelled
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class Report:
    """Metrics of one task on one split.

    Attributes:
        depends_on: Settings that must be equal for results to be comparable.
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
        raise UserError("the split is empty: no image to search")
    if isinstance(checkpoint, Checkpoint):
        return gallery_of(pair_results(checkpoint, every_caption(source), batch_size))
    return embedded_gallery(checkpoint, source, batch_size)


def measure_retrieval(
    checkpoint: Checkpoint | ImageTextModel, source: PairSource, batch_size: int, right: RightAnswers
) -> Report:
    """Return recall in both directions.

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
    """Return CIDEr, CIDEr-D, BLEU and ROUGE-L for captions."""
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
    """Return the zero-shot accuracy: the fraction of images whose nearest class is correct."""
    if isinstance(checkpoint, Checkpoint):
        classifier = classifier_of(checkpoint, images.class_names, templates)
        embeddings = embed_labelled(checkpoint, images, batch_size)
    else:
        classifier = checkpoint.classifier(images.class_names, templates)
        embeddings = embedded_images(checkpoint, map(images.read, range(len(images))), batch_size)
    found = classify_labelled(classifier, embeddings, images.targets)
    return Report(
        task="zeroshot",
        depends_on={"images": len(images), "classes": len(images.class_names), "templates": len(templates)},
        metrics=intervals(found.measures()),
        plain={"chance": 1 / len(images.class_names)},
    )


def measure_probe(checkpoint: Checkpoint, train: LabelledImages, test: LabelledImages, batch_size: int) -> Report:
    """Return the accuracy of a linear probe on image embeddings.

    Raises:
        UserError: If scikit-learn is not installed, or there are too few training images.
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
    """Return each metric with its interval."""
    return {name: measure.interval() for name, measure in measures.items()}
