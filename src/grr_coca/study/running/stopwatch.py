"""The seconds that a run has taken, over all processes that worked on it."""

import json
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from grr_coca.checkpoint_files import read_json
from grr_coca.files import write_whole

SECONDS_FILE = "seconds.json"
SECONDS_BETWEEN_NOTES = 60.0
"""What a kill may leave uncounted."""


class Stopwatch:
    """Within this context time counts. It is noted in the run's folder now and then, and at the end."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / SECONDS_FILE
        self._before = float(read_json(self._path)["seconds"]) if self._path.exists() else 0.0
        self._began = self._noted = time.monotonic()

    @property
    def seconds(self) -> float:
        """Of this process and all before it."""
        return self._before + time.monotonic() - self._began

    def tick(self) -> None:
        """To be called often."""
        if time.monotonic() - self._noted > SECONDS_BETWEEN_NOTES:
            self._note()

    def __enter__(self) -> "Stopwatch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._note()

    def _note(self) -> None:
        self._noted = time.monotonic()
        if self._path.parent.is_dir():
            with suppress(OSError):  # a full disk is reported by what matters more
                write_whole(self._path, json.dumps({"seconds": self.seconds}).encode())
