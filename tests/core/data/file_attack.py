"""Drawings by grammar, or pictures by mutation, one after the other: none does more than fail.

`make attack-drawings` and `make attack-pictures` run them for an hour; tests run small forms. A file depends on its
number alone, so one that went wrong can be tried again:
`tests/core/data/file_attack.py pictures --first NUMBER --count 1`.

They are decoded as everywhere, in helper programs, and a process of their own asks for that, whose end is noticed.
"""

import argparse
import random
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

SHARED = Path(__file__).parents[2] / "shared"
if str(SHARED) not in sys.path:  # as a script
    sys.path.append(str(SHARED))

import svg_grammar  # noqa: E402
from picture_grammar import picture  # noqa: E402

from grr_coca.data.isolated import decode_image, helpers  # noqa: E402
from grr_coca.data.sources.base import BadSample, Cause  # noqa: E402

MAX_MESSAGE = 1200
BATCH = 5000
"""Files of one process: what a decoder leaks shows, and a new process begins without it."""


def content(kind: str, number: int) -> bytes:
    """The file of a number."""
    return svg_grammar.drawing(number) if kind == "drawings" else picture(random.Random(number))


def outcome(kind: str, number: int) -> str:
    """What became of a file, in a word or two. What must not happen begins with "wrong"."""
    data = content(kind, number)
    try:
        decode_image(data, f"{number}", to_srgb=True)
    except BadSample as error:
        text = str(error)
        if len(text) > MAX_MESSAGE or "\n" in text:
            return f"wrong: {text!r}"
        if error.cause is Cause.UNREADABLE:
            return "wrong: late"
        if "its decoder fails" in text:
            return f"wrong: {text!r}"
        known = {
            "crashes its decoder": "crashed a helper",
            "s of processor time": "too costly",
            "more memory": "too large",
        }
        return next((word for words, word in known.items() if words in text), "refused")
    except Exception as error:
        return f"wrong: {error!r}"
    return "decoded"


def main() -> None:
    """Try files until the time is over, and print what became of them, a line for each process."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("kind", choices=("drawings", "pictures"))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=10**12)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--here", action="store_true", help="in this process")
    options = parser.parse_args()
    if options.here:
        _decode_here(options)
        return
    counts: Counter = Counter()
    wrong: list[str] = []
    slowest, most, began, number = 0.0, 0, time.monotonic(), options.first
    end = options.first + options.count
    while number < end and time.monotonic() - began < options.seconds:
        count = min(BATCH, end - number)
        command = [sys.executable, __file__, options.kind, "--here", "--first", str(number), "--count", str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                name, seconds, megabytes, what = line.rstrip("\n").split(" ", 3)
                counts[what if not what.startswith("wrong") else "wrong"] += 1
                slowest, most, number = max(slowest, float(seconds)), max(most, int(megabytes)), int(name) + 1
                if what.startswith("wrong"):
                    wrong.append(f"{name} {what}")
                if time.monotonic() - began > options.seconds:
                    process.terminate()
                    break
            else:
                if process.wait():
                    wrong.append(f"{number} ended the process: {process.returncode}")
                    number += 1
        print(
            f"{time.monotonic() - began:.0f} s, the next is {number:,}: {dict(counts)}; "
            f"slowest {slowest:.2f} s, {most} MB at most, wrong: {wrong or 'none'}",
            flush=True,
        )
    if wrong:
        sys.exit(1)


def _decode_here(options: argparse.Namespace) -> None:
    for number in range(options.first, options.first + options.count):
        began = time.perf_counter()
        what = outcome(options.kind, number)
        print(f"{number} {time.perf_counter() - began:.3f} {_peak_megabytes()} {what}", flush=True)


def _peak_megabytes() -> int:
    """The most memory that this process or a helper program has had; 0 on systems that do not tell."""
    peaks = [0]
    for pid in ("self", *(helper._process.pid for helper in helpers._all)):
        with suppress(OSError):  # it has ended, or this is another system
            status = Path(f"/proc/{pid}/status").read_text()
            peaks += [int(kilobytes) // 1024 for kilobytes in re.findall(r"VmHWM:\s+(\d+)", status)]
    return max(peaks)


if __name__ == "__main__":
    main()
