"""Programs that are asked a question a line and answer a line, as JSON: one at work at a time, on one machine."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Answer = dict[str, Any]
SHOWN = 2_000
"""Characters of what a program that failed wrote to standard error."""


class WorkerError(Exception):
    """A program ended, or took too long, where an answer was expected."""


class TooLongError(WorkerError):
    """A program took too long, and was stopped."""


class Worker:
    """A script of this folder in a process of its own, perhaps with another interpreter.

    It is given its setup as JSON, says what it is (`about`), and then answers questions. What it writes to standard
    error is kept, to be shown if it fails.
    """

    def __init__(
        self,
        name: str,
        script: str,
        setup: Mapping[str, Any],
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        limit: float = 600,
    ) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        try:
            self._process = subprocess.Popen(
                [python, str(HERE / script), json.dumps(setup)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env={**os.environ, **(environment or {})},
            )
        except OSError as error:
            raise WorkerError(f"{name}: {python} cannot be run ({error.strerror}); see `make bench`") from error
        self.about = self._read(limit)

    def ask(self, limit: float, **question: Any) -> Answer:
        """The answer to a question.

        Raises:
            TooLongError: the program did not answer within `limit` seconds, and was stopped.
            WorkerError: it ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # reading tells why
        return self._read(limit)

    def _read(self, limit: float) -> Answer:
        assert self._process.stdout is not None
        too_long = threading.Event()
        timer = threading.Timer(limit, lambda: (too_long.set(), self._process.kill()))
        timer.daemon = True
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if line:
            return json.loads(line)
        if too_long.is_set():
            raise TooLongError(f"{self.name}: no answer within {limit:.0f} s")
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()[-SHOWN:]
        raise WorkerError(f"{self.name} ended with code {code}\n{said}")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(make: Callable[[Answer], Any], questions: tuple[str, ...]) -> None:
    """Be a worker: make something of the setup, then answer a question by its method of that name.

    The first answer is its attribute `about`. What libraries print goes to standard error. An error ends the process
    with its traceback there.
    """
    out, sys.stdout = sys.stdout, sys.stderr

    def answer(found: Answer) -> None:
        print(json.dumps(found), file=out, flush=True)

    contestant = make(json.loads(sys.argv[1]))
    answer(contestant.about)
    for line in sys.stdin:
        question = json.loads(line)
        what = question.pop("what")
        assert what in questions, what
        answer(getattr(contestant, what)(**question))
