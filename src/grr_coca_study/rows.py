"""Rows of a study, with one file for each finished stage: `rows/ARM-POINT-SEED-STAGE-DIGEST.json`.

Rows are written atomically, and never overwrite each other. Any number of processes, even on several machines, can
therefore write to the same folder, and the rows of machines without a shared folder can be merged by copying.
"""

import hashlib
import json
import math
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import read_file_bytes, replace_file, sync_folder, write_bytes_atomic
from grr_coca.common.outputs import disk_errors

ROWS_FOLDER = "rows"

Kind = Literal["run", "diverged"]


@dataclass(frozen=True)
class CurvePoint:
    """Point of a learning curve, after `step` steps.

    `train` contains the mean losses over the steps since the previous point, and `val` the validation losses and R@1.
    """

    step: int
    train: dict[str, float]
    val: dict[str, float]


@dataclass(frozen=True)
class CaptionedExample:
    """Key of an image in the showcase, its reference captions, and the model's caption."""

    image: str
    references: tuple[str, ...]
    caption: str


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """Finished stage: its settings, its machine, and all numbers that a report needs.

    Attributes:
        kind: Kind of run. A `diverged` run has no metrics, because its loss became infinite or NaN.
        stage: Name of the stage, which is the name of its recipe file without the suffix, such as `health`.
        recipe_digest, data_digest: Digests of all inputs of the run. Rows whose digests differ from the plan's do not
            count.
        start_data_digest: Digest of the pretraining data of a fine-tuning.
        commit: Commit of the code, followed by `+` if files have been changed since this commit.
        precision: Precision of forward and backward passes, and of Muon's products if it differs.
        settings: Point of the grid, by recipe key. Empty if the arm has no grid for the stage.
        seconds: Duration of training and evaluation, over all processes that worked on the run.
        flops_per_pair: FLOPs of one forward pass with a caption of maximum length.
        training_flops: FLOPs of all steps of the run; see `run_flops`. None if the run diverged.
        initial_weights: For a run that starts from new weights, a hash of each parameter before the first step, by name
            and shape, such as `image_encoder.patch_embed.weight [128, 768]`.
        data_order: Hash of the order of the training pairs. Together with `initial_weights`, it shows whether two runs
            are paired.
        curve: One point per validation.
        metrics: Metrics by split (`val` and, unless the run is a trial, the test splits): `contrastive_loss`,
            `contrastive_loss_refitted` (with the best temperature on `val`), `captioning_loss`, `perplexity`,
            `coca_loss`, `R@1`, `R@5` and `R@10` from text to image, `image_to_text/R@1` …, `chance/R@1` …, `num_pairs`;
            and the caption scores `CIDEr`, `CIDEr-D`, `BLEU-4`, `ROUGE-L`. NaN and infinite numbers are omitted.
        values: Values by test split, from which intervals over images are computed: `contrastive_batches` and
            `contrastive_batches_refitted`, the loss of each batch; `nll` and `tokens` of each caption; `rank` of each
            text query, the number of incorrect images before the first correct one; `image`, the index of the image of
            each caption, if an image has several; `cider_d` of each image.
        captions: Captions of a few images, which are the same for every arm and seed, if the stage has the showcase.
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


def without_nan(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers that are neither NaN nor infinite."""
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


# --- Files

_MAX_NAME = 180
"""Maximum number of bytes of a name before its digest. Most file systems allow 255 bytes in total, and the names of
claims and unfinished files are longer."""


def row_name(arm: str, point: str, seed: int, stage: str, digests: tuple[str | None, ...]) -> str:
    """Return the name of a row's file, without its suffix. Digests make the name unique; its other parts make it
    readable.

    Args:
        arm: Name of the arm.
        point: Title of the point of the grid.
        seed: Seed of the run.
        stage: Stage of the run.
        digests: Digests of all inputs of the run. A changed plan yields a new row name, and the old row is kept.
    """
    point_name = re.sub(r"[^\w.,=+-]+", "_", point.replace(", ", ",").replace(" ", "="))
    own = hashlib.sha256(json.dumps([arm, point, seed, stage, *digests]).encode()).hexdigest()[:8]
    named = "-".join(filter(None, (arm, point_name, str(seed), stage)))
    return f"{named.encode()[:_MAX_NAME].decode(errors='ignore')}-{own}"


class RowFolder:
    """Rows of a study on disk. Each row is read only once, because a file never changes.

    Args:
        out: Folder of the study.

    Attributes:
        path: Folder of the rows.
        notes: One sentence for each file that is not a row, by file name.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / ROWS_FOLDER
        self.notes: dict[str, str] = {}
        self._read: set[str] = set()

    def new_rows(self) -> list[LedgerRow]:
        """Return the rows that have not been read before, in the order of their names."""
        found = []
        for path in sorted(self.path.glob("[!.]*.json")):
            if path.name not in self._read and (row := self._row(path)) is not None:
                self._read.add(path.name)
                found.append(row)
        return found

    def publish(self, name: str, row: LedgerRow) -> LedgerRow:
        """Write a row, unless it already exists. In that case, the first row is kept.

        Returns:
            The row that is kept under this name.

        Raises:
            UserError: If the disk is full or cannot be written to. No partial row remains.
        """
        path, partial = self.path / f"{name}.json", self.path / f".{name}.{uuid.uuid4().hex[:8]}.json"
        text = json.dumps(to_dict(row), ensure_ascii=False, separators=(",", ":"))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # A file name that is not UTF-8 contains lone surrogates, which are written as JSON escapes.
            write_bytes_atomic(partial, text.encode("utf-8", "backslashreplace") + b"\n")
            try:
                os.link(partial, path)  # a rename would replace an existing row
            except OSError:  # the row exists, perhaps as an incomplete copy, or the disk does not support links
                if self._row(path) is None:
                    replace_file(partial, path)
            finally:
                partial.unlink(missing_ok=True)
            sync_folder(self.path)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror or error}); free some space, and run the same command "
                "again to continue the run, which is saved"
            ) from error
        return self._row(path) or row

    def _row(self, path: Path) -> LedgerRow | None:
        try:
            row = from_dict(LedgerRow, json.loads(read_file_bytes(path)), path.name)
        except (ValueError, RecursionError) as error:  # not JSON, or not a row
            self.notes[path.name] = f"{path.name}: is not a row and does not count ({error})"
            return None
        self.notes.pop(path.name, None)
        return row


def write_to_study(path: Path, content: bytes) -> None:
    """Write a file to a study's folder, atomically. Missing folders are created.

    Raises:
        UserError: If the folder cannot be written to.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, content)
