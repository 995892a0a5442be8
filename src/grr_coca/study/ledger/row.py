"""The rows of a ledger."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["run", "trial", "choice", "diverged"]


@dataclass(frozen=True)
class CurvePoint:
    """The losses of a run after `step` steps: `train`, means over the steps since the point before, and `val`."""

    step: int
    train: dict[str, float]
    val: dict[str, float]


@dataclass(frozen=True)
class CaptionedExample:
    """An image of the showcase by its key, what people say of it, and what the model says."""

    image: str
    references: tuple[str, ...]
    caption: str


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """A stage that has ended: what was run, where, and every number that a report needs of it.

    `kind`: a `run` counts for the study; a `trial` is one point of an arm's tuning grid, measured on `val` alone; a
    `choice` is the best of these trials; `diverged` is a run whose loss stopped being a number: it has no metrics.
    `seed`, `stage`: the stage is named by its recipe's file, such as `health`.
    `recipe_digest`, `data_digest`: of all that the run depends on; rows with other digests than the plan's are not
    counted. `start_data_digest`: of a fine-tuning, that of the data of the pretraining that it goes on from; None in
    rows of versions that did not note it.
    `commit`: of the code, with a `+` behind it if files had been changed since.
    `precision`: of forward and backward passes, and of Muon's products if that is another one.
    `settings`: the tuned keys of the recipe with their values.
    `seconds`: of training and evaluation, over all lives of the run.
    `flops_per_pair`: of one forward pass, with captions as long as they can be.
    `training_flops`: of all steps of the run, see `run_flops`; None in rows of versions that did not count them.
    `initial_weights`: of a run that begins with new weights, a hash of each parameter before the first step, by name
    and shape, such as `image_encoder.patch_embed.weight [128, 768]`. `data_order`: a hash of the order in which the
    training pairs are visited (see `running.beginning`). Empty and None in rows of versions that did not note them.
    `curve`: a point for each validation.
    `metrics`: by split, `val` and the test splits: `contrastive_loss`, `contrastive_loss_refitted` (with the
    temperature that is best on `val`), `captioning_loss`, `perplexity`, `coca_loss`, `R@1`, `R@5` and `R@10` from text
    to image, `image_to_text/R@1` …, `chance/R@1` …, `num_pairs`; and of captions `CIDEr`, `CIDEr-D`, `BLEU-4`,
    `ROUGE-L`. A number that is not finite is left out.
    `values`: by test split, what intervals over images are made of: `contrastive_batches` and
    `contrastive_batches_refitted`, the loss of each batch; `nll` and `tokens`, of each caption; `rank`, of each text
    query: wrong images before the first right one; `image`, the number of the image of each caption, where some image
    has several; `cider_d`, of each image.
    `captions`: the same few images for every arm and seed, where the stage has the showcase.
    """

    kind: Kind = "run"
    arm: str
    seed: int
    stage: str
    recipe_digest: str
    data_digest: str
    start_data_digest: str | None = None
    commit: str
    machine: str
    precision: str
    settings: dict[str, object] = field(default_factory=dict)
    steps: int
    seconds: float
    parameters: int
    image_encoder_parameters: int
    flops_per_pair: int
    training_flops: int | None = None
    initial_weights: dict[str, str] = field(default_factory=dict)
    data_order: str | None = None
    curve: tuple[CurvePoint, ...] = ()
    metrics: dict[str, dict[str, float]]
    values: dict[str, dict[str, list]] = field(default_factory=dict)
    captions: tuple[CaptionedExample, ...] = ()


def finite(numbers: Mapping[str, float]) -> dict[str, float]:
    """The numbers that are any."""
    return {name: number for name, number in numbers.items() if math.isfinite(number)}
