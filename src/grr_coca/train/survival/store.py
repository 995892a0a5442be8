"""The checkpoints of a run: which are written, which are kept, and which one a resumed run goes on from."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from grr_coca.errors import UserError
from grr_coca.files import verify_folder, whole_folder, write_whole

log = logging.getLogger(__name__)

BEST_FILE = "best.json"


class CheckpointStore:
    """The folder `checkpoints` of a run, with a folder `step-N` for each."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder = folder
        self._keep_last = keep_last

    def save(self, step: int, fill: Callable[[Path], None], best_step: int | None) -> None:
        """Write a checkpoint, all of it or nothing, and only then remove those that need not be kept.

        Raises:
            UserError: the disk is full or cannot be written to; the checkpoints that were there are still there.
        """
        folder = self.folder / f"step-{step:09d}"
        try:
            with whole_folder(folder) as partial:
                fill(partial)
            if best_step is not None:
                write_whole(self.folder / BEST_FILE, f'{{"step": {best_step}}}\n'.encode())
            self._tidy(step, best_step)
        except OSError as error:
            raise UserError(f"{folder}: the checkpoint could not be written ({error.strerror or error})") from error

    def newest(self) -> Path | None:
        """The newest checkpoint that is as it was written, to the bit. A damaged one is passed over with a warning."""
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            try:
                verify_folder(folder)
            except UserError as error:
                log.warning("%s; going back to the checkpoint before it", error)
            else:
                return folder
        return None

    def _tidy(self, step: int, best_step: int | None) -> None:
        """Remove what need not be kept: old checkpoints, and damaged ones of later steps, which this run went back
        from and would otherwise take the place of whole ones."""
        folders = {int(folder.name.removeprefix("step-")): folder for folder in self.folder.glob("step-*")}
        kept = {*sorted(number for number in folders if number <= step)[-self._keep_last :], best_step}
        for number, folder in folders.items():
            if number not in kept:
                folder.rename(folder.with_name(f".{folder.name}.old"))  # half a checkpoint must never look like one
        for leftover in self.folder.glob(".*"):  # of this, or of a save that was killed
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
