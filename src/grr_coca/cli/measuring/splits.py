"""What the evaluating verbs ask for. It needs no torch, so that what is wrong is said at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grr_coca.data.sources.open import require_there
from grr_coca.errors import UserError

Task = Literal["loss", "retrieval", "captioning", "zeroshot", "probe"]


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """The options of all tasks but `loss`.

    `folds` belongs to retrieval; `out`, a file for the captions, to captioning; `class_names` (None: those that
    occur) and `templates` to zeroshot; `train`, the images that are trained on, to probe.
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
        UserError: no path is given, or nothing is there.
    """
    if not paths:
        raise UserError("nothing to evaluate on; give --data PATH [PATH …], .tar shards or a folder")
    for path in paths:
        require_there(path)
