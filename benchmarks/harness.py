"""What all benchmarks share: their arguments, sides that take turns, programs that answer, and how results are kept.

A *side* is one of the things that are compared, such as our engine and a peer's. Sides take turns in one run, so that
whatever else the machine does hits all of them. What is compared are medians.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PEERS = HERE.parent / ".venv-peers" / "bin" / "python"

# --- Arguments


def parser_of(description: str | None, *, peers: bool = False, only: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the arguments that all benchmarks take.

    Args:
        description: the docstring of the benchmark.
        peers: take the interpreter of what ours is compared with, too.
        only: the parts that can be measured alone.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    smoke = "run the smallest form, which shows that everything still works, and write its meaningless numbers there"
    parser.add_argument("--smoke", type=Path, metavar="FOLDER", help=smoke)
    if peers:
        parser.add_argument("--peer-python", default=str(PEERS), help="interpreter that has the peers")
    if only:

        def parts(text: str) -> list[str]:
            if unknown := set(text.split(",")) - {*only}:
                raise argparse.ArgumentTypeError(f"no {', '.join(sorted(unknown))}; there are {', '.join(only)}")
            return text.split(",")

        told = f"what to measure, such as {','.join(only[:2])}"
        parser.add_argument("--only", type=parts, default=list(only), metavar="PARTS", help=told)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the arguments of this process. With `--smoke`, `peer_python` is None where the peers are not installed."""
    options = parser.parse_args()
    if options.smoke is not None:
        options.out = options.smoke
        if "peer_python" in options and not _has_peers(options.peer_python):
            options.peer_python = None
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def _has_peers(python: str) -> bool:
    try:
        subprocess.run([python, "-c", "import open_clip"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        print(f"peers are not measured: {python} has no open_clip; `make bench` installs them", file=sys.stderr)
        return False
    return True


# --- Results


def machine() -> dict[str, str | int | None]:
    """Return the machine, without its name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return {
        "processor": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def report(name: str, rows: list[dict[str, object]], out: Path) -> None:
    """Print a table and write it to `NAME.json` in the folder `out`."""
    where = machine()
    print(f"{name}: {where['processor']}, {where['cores']} cores, torch {where['torch']}, Python {where['python']}")
    width = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    for row in [dict(zip(width, width, strict=True)), *rows]:
        print("  ".join(f"{row[key]!s:<{width[key]}}" for key in width))
    write(name, {"machine": where, "rows": rows}, out)


def write(name: str, results: dict[str, Any], out: Path) -> None:
    """Write results to `NAME.json` in the folder `out`."""
    (out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


# --- Turns


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long some work takes, by a clock; `time.process_time` counts less of what other programs do."""
    began = clock()
    work()
    return clock() - began


def in_turn(
    sides: Mapping[str, Callable[[], float]], most: int, fewest: int | None = None, within: float = 0.0
) -> dict[str, list[float]]:
    """What each side measures, round after round, all sides in turn.

    Args:
        sides: each runs once when it is called, and returns its seconds.
        most: rounds.
        fewest: so many rounds at least, and then up to `most` while no more than `within` seconds have passed; None:
            always `most`.
        within: see above.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    began = time.perf_counter()
    for number in range(most):
        if fewest is not None and number >= fewest and time.perf_counter() - began > within:
            break
        for name, side in sides.items():
            found[name].append(side())
    return found


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return how many times as fast: the median of the ratios of each round, whose sides had the same neighbours."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def pictures() -> Iterator[bytes]:
    """Pictures of the corpora that come with the code, as files."""
    from grr_coca.data.image_files import find_images  # not where the peers are

    return (image.read() for image in find_images(sorted(map(str, HERE.parent.glob("datasets/*/*.tar")))))


# --- Programs that are asked a question a line and answer a line, as JSON

Answer = dict[str, Any]
SHOWN = 2_000
"""Characters of what a program that failed wrote to standard error."""
LIMIT = 3600.0
"""Seconds after which a program is given up."""


class WorkerError(Exception):
    """A program ended, or took too long, where an answer was expected."""


class Worker:
    """A script of this folder in a process of its own, perhaps with another interpreter.

    It is given its setup as JSON, says what it is (`about`), and then answers questions. What it writes to standard
    error is kept, to be shown if it fails.

    Args:
        script: its file.
        setup: `name`, `threads`, and what else the script takes.
        python: the interpreter.
        environment: variables beside those of this process.

    Raises:
        WorkerError: it cannot be run, or lacks a package.
    """

    def __init__(
        self,
        script: str,
        setup: Mapping[str, Any],
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = setup["name"]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        threads = {"OMP_NUM_THREADS": str(setup["threads"]), "TOKENIZERS_PARALLELISM": "false"}
        try:
            self._process = subprocess.Popen(
                [python, str(HERE / script), json.dumps(setup)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env={**os.environ, **threads, **(environment or {})},
            )
        except OSError as error:
            raise WorkerError(f"{self.name}: {python} cannot be run ({error.strerror}); see `make bench`") from error
        self.about = self._read()

    def ask(self, what: str, **question: Any) -> Answer:
        """Return the answer to a question, which is the name of a method and its arguments.

        Raises:
            WorkerError: the program ended, or did not answer within `LIMIT` and was stopped.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"what": what, **question}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # reading tells why
        return self._read()

    def _read(self) -> Answer:
        assert self._process.stdout is not None
        timer = threading.Timer(LIMIT, self._process.kill)
        timer.daemon = True
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()[-SHOWN:]
        raise WorkerError(f"{self.name} ended with code {code}, or was stopped after {LIMIT:.0f} s\n{said}")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()  # closes its pipes
        self._errors.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(make: Callable[[Answer], Any], questions: Sequence[str]) -> None:
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
