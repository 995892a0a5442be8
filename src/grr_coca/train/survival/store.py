"""The checkpoints of a run: writing them, removing old ones, and finding the one that a resumed run continues from."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from grr_coca.checkpoint_files import checkpoints_by_step
from grr_coca.errors import DiskError, UserError
from grr_coca.files import verify_folder, whole_folder, write_whole

log = logging.getLogger(__name__)

BEST_FILE = "best.json"


class CheckpointStore:
    """The folder `checkpoints` of a run. It holds a folder `step-N` for each checkpoint."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder = folder
        self._keep_last = keep_last

    def save(self, step: int, fill: Callable[[Path], None], best_step: int | None) -> None:
        """Write a checkpoint completely or not at all. Only after that, remove those that need not be kept.

        Raises:
            DiskError: the disk is full or cannot be written to. The checkpoints that were there are still there.
        """
        folder = self.folder / f"step-{step:09d}"
        try:
            with whole_folder(folder) as partial:
                fill(partial)
            if best_step is not None:
                write_whole(self.folder / BEST_FILE, f'{{"step": {best_step}}}\n'.encode())
            self._tidy(step, best_step)
        except OSError as error:
            raise DiskError(f"{folder}: the checkpoint could not be written ({error.strerror or error})") from error

    def newest(self) -> Path | None:
        """The newest checkpoint whose files match their manifest. A damaged one is skipped with a warning."""
        for folder in reversed(checkpoints_by_step(self.folder).values()):
            try:
                verify_folder(folder)
            except UserError as error:
                log.warning("%s; going back to the checkpoint before it", error)
            else:
                return folder
        return None

    def _tidy(self, step: int, best_step: int | None) -> None:
        """Remove checkpoints that need not be kept: old ones, and those of later steps. A run that went back behind a
        damaged checkpoint leaves it as a later step, where it would be counted among the newest."""
        folders = checkpoints_by_step(self.folder)
        kept = {*sorted(number for number in folders if number <= step)[-self._keep_last :], best_step}
        for number, folder in folders.items():
            if number not in kept:
                folder.rename(folder.with_name(f".{folder.name}.old"))  # a half-removed one must not look whole
        for leftover in self.folder.glob(".*"):  # from this save, or from one that was killed
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
