"""Options of the evaluating verbs. This module does not import torch, so that errors are reported at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grr_coca.data.sources.open import require_there
from grr_coca.errors import UserError

Task = Literal["loss", "retrieval", "captioning", "zeroshot", "probe"]


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """The options of all tasks except `loss`.

    - `folds`: for retrieval
    - `out`: for captioning, the file for the captions
    - `class_names` (None: the classes that occur) and `templates`: for zeroshot
    - `train`: for probe, the images to train on
    """

    batch_size: int
    folds: int
    out: Path | None
    class_names: tuple[str, ...] | None
    templates: tuple[str, ...]
    train: str | None


def require_paths(paths: tuple[str, ...]) -> None:
    """Make sure that there is something to evaluate on, before anything is loaded.

    Raises:
        UserError: no path is given, or there is nothing at a path.
    """
    if not paths:
        raise UserError("nothing to evaluate on; give --data PATH [PATH …]: shards, a folder or another file of pairs")
    for path in paths:
        require_there(path)
