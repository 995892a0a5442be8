"""Runs verbs of the command line in a process that is like one on Windows.

It reads as JSON what to do, and prints as JSON what became of it.
"""

import windows_like  # noqa: F401, I001 (before anything else)

import contextlib
import io
import json
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Any

ENCODING = "cp1252"
"""Of the console: it has no → and no 猫."""


def run(arguments: list[str]) -> dict[str, Any]:
    """Exit code, output and messages of a verb."""
    from grr_coca.cli import main

    out, err = (io.TextIOWrapper(io.BytesIO(), ENCODING, errors="replace") for _ in range(2))
    code: object
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as end:  # wrong flags
            code = end.code
    for stream in (out, err):
        stream.flush()
    return {"code": code, "out": out.buffer.getvalue().decode("utf-8", "replace"), "err": _text(err)}


def run_and_stop(arguments: list[str], step: int) -> dict[str, Any]:
    """A training that gets Ctrl-C before a step."""
    from grr_coca.train.step import Trainer

    train = Trainer.step

    def interrupted(trainer: Trainer, micro_batches: Any, num_tokens: int, number: int) -> Any:
        if number == step:
            signal.raise_signal(signal.SIGINT)
        return train(trainer, micro_batches, num_tokens, number)

    Trainer.step = interrupted  # type: ignore[method-assign]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests themselves may run with it ignored
    try:
        return run(arguments)
    finally:
        Trainer.step = train  # type: ignore[method-assign]


def serve(arguments: list[str], requests: dict[str, Any]) -> dict[str, Any]:
    """A server, what it answers at some paths, and its end by Ctrl-C. `requests`: what is posted at a path, or null."""
    output = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    answers: dict[str, Any] = {}

    def ask() -> None:
        try:
            address = _address(output)
            _wait_until_ready(address)
            for path, posted in requests.items():
                data = None if posted is None else json.dumps(posted).encode()
                request = urllib.request.Request(address + path, data, {"content-type": "application/json"})
                with urllib.request.urlopen(request, timeout=120) as answer:
                    content = answer.read()
                    is_json = answer.headers.get_content_type() == "application/json"
                    answers[path] = [answer.status, json.loads(content) if is_json else len(content)]
        except urllib.error.HTTPError as error:
            answers["error"] = error.read().decode()
        except Exception as error:
            answers["error"] = repr(error)
        finally:
            signal.raise_signal(signal.SIGINT)

    from grr_coca.cli import main

    client = threading.Thread(target=ask, daemon=True)
    with contextlib.redirect_stdout(output):
        client.start()
        code = main(["serve", "--port", "0", *arguments])
    client.join(60)
    return {"code": code, "answers": answers, "out": _text(output)}


def _address(output: io.TextIOWrapper) -> str:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        text = _text(output)
        if " at http" in text:
            return text.partition(" at ")[2].split("/ ")[0] + "/"
        time.sleep(0.05)
    raise TimeoutError(f"no server: {_text(output)}")


def _wait_until_ready(address: str) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{address}ready", timeout=120).close()
            return
        except urllib.error.HTTPError:
            time.sleep(0.05)


def _text(stream: io.TextIOWrapper) -> str:
    return stream.buffer.getvalue().decode(stream.encoding, "replace")  # type: ignore[attr-defined]


FUNCTIONS = {"run": run, "run_and_stop": run_and_stop, "serve": serve}

if __name__ == "__main__":
    stdout = sys.stdout
    for name, *given in json.load(sys.stdin):
        print(json.dumps(FUNCTIONS[name](*given)), file=stdout, flush=True)
