"""Command line: the commands, and their execution. A command's module is imported when the command is called.

The core's commands are in `CORE`. Other packages add commands through entry points of the group `grr_coca.commands`,
each of which names a table like `CORE`.
"""

import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

import grr_coca
from grr_coca.common import plugins
from grr_coca.common.errors import (
    Interruption,
    UserError,
    make_printable,
    pip_install_command,
    print_warnings,
    suggest_name,
)
from grr_coca.common.threads import multiply_on_one_thread, set_passive_wait_policy


class Command(NamedTuple):
    """A command. Its name has one or two words, such as `caption` or `export onnx`.

    Attributes:
        function: Module and function, such as `grr_coca.cli.caption:run`.
        summary: Description of the command in one line.
        decoder: Module that decodes images in subprocesses. The first subprocess is started early, and imports its
            packages while this process imports its own. Empty if the command needs no early start.
    """

    function: str
    summary: str
    decoder: str = ""

    def load(self) -> Callable[..., int | None]:
        """Import the function that runs the command."""
        module, _, name = self.function.partition(":")
        function: Callable[..., int | None] = getattr(importlib.import_module(module), name)
        return function


CORE = {
    "adapt": Command("grr_coca.cli.adapt:run", "adapt a model to your own pairs in seconds, without training"),
    "pretrain": Command("grr_coca.cli.training:pretrain", "train a new model on image-text pairs"),
    "finetune": Command("grr_coca.cli.training:finetune", "train a checkpoint further on pairs of another domain"),
    "evaluate": Command(
        "grr_coca.cli.evaluate:evaluate_splits",
        "measure losses, retrieval, captions, zero-shot accuracy or probes of a checkpoint",
    ),
    "compare": Command("grr_coca.cli.compare:compare_checkpoints", "compare two checkpoints on the same splits"),
    "caption": Command("grr_coca.cli.caption:run", "caption images with a checkpoint", "grr_coca.data.decoding"),
    "embed": Command(
        "grr_coca.cli.embed:run", "embed images or texts as vectors that can be compared", "grr_coca.data.decoding"
    ),
    "classify": Command("grr_coca.cli.classify:run", "find the best matching labels of images"),
    "explain": Command("grr_coca.cli.explain:run", "draw heat maps of a model's attention for each word of a caption"),
    "doctor": Command("grr_coca.cli.doctor:run", "show the installation, and check that its files are intact"),
    "models": Command("grr_coca.cli.info:list_models", "list the models that can be used by name"),
    "data": Command("grr_coca.cli.data:run", "check, count, convert or index image-text pairs, or compute features"),
    "info": Command(
        "grr_coca.cli.info:describe_preset",
        "show the parts, parameters and FLOPs of a preset, or the differences of two presets",
    ),
    "track": Command("grr_coca.cli.track:run", "send the log of a run to Weights & Biases or MLflow"),
    "export onnx": Command(
        "grr_coca.cli.exchange:export_onnx", "write a checkpoint as ONNX graphs, which need no PyTorch"
    ),
    "push": Command("grr_coca.cli.exchange:push", "upload a checkpoint to the Hugging Face hub, with a model card"),
}


def all_commands() -> dict[str, Command]:
    """Return all commands by name: of the core, of this distribution's other packages, and of other distributions.

    If several owners define the same name, the core comes first, then the packages of this distribution.
    """
    commands = dict(CORE)
    for table in plugins.values("grr_coca.commands"):
        commands |= {name: command for name, command in table.items() if name not in commands}
    return commands


def _find_command(name: str) -> Command | None:
    """Return the command with a given name, reading only as many tables as needed, in the order of their owners."""
    for table in chain([CORE], plugins.values("grr_coca.commands")):
        if name in table:
            return table[name]
    return None


_OFFLINE = "--offline"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit code.

    The exit code is 0 on success; 1 if a command for many files could read none of them, or `data check`, `lint` or
    `match --check` found a problem; 2 for invalid use, or a file or service that cannot be used, with one message and
    no traceback; 128 + the signal number if a signal stopped a run, which is saved.

    Args:
        argv: Words after the name of the program. By default, those of `sys.argv`.

    Raises:
        SystemExit: For `--help`, for invalid flags, and if the reader has closed the output.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    print_warnings()
    set_passive_wait_policy()
    multiply_on_one_thread()
    if _OFFLINE in argv:
        argv = [word for word in argv if word != _OFFLINE]
        os.environ["HF_HUB_OFFLINE"] = "1"  # `huggingface_hub` reads this variable, too
    return exit_code(lambda: _dispatch(argv))


def exit_code(work: Callable[[], int | None]) -> int:
    """Do some work, and return its exit code, with None as 0.

    A `UserError`, or an `OSError` that names a file, prints one message without a traceback, and returns 2. An
    `Interruption` returns 128 + the signal number. The scripts and benchmarks in the repository also use this function.
    """
    try:
        return work() or 0
    except UserError as error:
        print(make_printable(f"error: {error}"), file=sys.stderr)
        return 2
    except OSError as error:
        message = _file_error_message(error)
        if message is None:
            raise
        print(make_printable(f"error: {message}"), file=sys.stderr)
        return 2
    except Interruption as stopped:
        name = signal.Signals(stopped.number).name
        print(f"{name}: {stopped}; continue with --resume", file=sys.stderr)
        return 128 + stopped.number


def _file_error_message(error: OSError) -> str | None:
    """Return the message for an unhandled error, or None if it concerns neither a file nor the current folder."""
    if error.errno == errno.ENAMETOOLONG:
        return f"{str(error.filename or error)[:80]}…: too long for a file name"
    if error.filename is None and not _current_folder_exists():
        return "the current folder no longer exists; change to another folder"
    if not isinstance(error.filename, str | bytes):
        return None
    return f"{os.fsdecode(error.filename)}: cannot be read or written ({error.strerror or error})"


def _current_folder_exists() -> bool:
    """Return whether the current folder still exists."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return False
    return True


def _dispatch(argv: list[str]) -> int:
    if argv[:1] == ["help"]:  # as in other programs: `help caption` is `caption --help`
        argv = [*argv[1:], "--help"]
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] in ("--version", "version"):
        print(grr_coca.__version__)
        return 0
    name, rest = _split_command(argv)
    command = _find_command(name)
    if command is None:  # the argument is the first of two words
        print(_usage(name))
        return 0 if rest else 2
    if command.decoder and not {"-h", "--help"} & set(rest):
        from grr_coca.data.isolated import helpers

        helpers.start(command.decoder)
    if os.environ.get("NO_COLOR") or not sys.stderr.isatty():
        # The import of tyro reads this; tyro ignores NO_COLOR and does not check for a terminal.
        os.environ.setdefault("PYTHON_TYRO_ANSI_CODES", "False")
    import tyro
    import tyro._resolver

    # tyro checks defaults with typeguard, whose import is as slow as NumPy's. mypy checks them.
    tyro._resolver.is_instance = lambda typ, value: True  # noqa: ARG005
    code: int | None = tyro.cli(command.load(), args=rest, prog=f"grr-coca {name}", description=command.summary)
    return code or 0


def _split_command(argv: list[str]) -> tuple[str, list[str]]:
    """Split the arguments into the command's name and its arguments.

    If the second word of a command is missing, only the first word is returned.

    Raises:
        UserError: If the command does not exist. The message names the most similar command, or all commands.
    """
    first, *rest = argv
    if _find_command(first) is not None:
        return first, rest
    if rest and _find_command(f"{first} {rest[0]}") is not None:
        return f"{first} {rest[0]}", rest[1:]
    commands = all_commands()
    kinds = [name for name in commands if name.startswith(f"{first} ")]
    if not kinds:
        command = pip_install_command("-e", ".")
        again = "" if plugins.is_installed() else f"; only the core is installed; run in the clone: {command}"
        raise UserError(f"unknown command '{first}'; {suggest_name(first, commands)}{again}")
    if rest and rest[0] not in ("-h", "--help"):
        name = f"{first} {rest[0]}"
        raise UserError(f"unknown command '{name}'; {suggest_name(name, kinds)}")
    return first, rest


def _usage(first: str = "") -> str:
    """Return the help that lists all commands, or those that begin with the word `first`."""
    commands = all_commands()
    shown = {name: one.summary for name, one in commands.items() if not first or name.startswith(f"{first} ")}
    width = max(map(len, shown))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in shown.items()]
    usage = "usage: grr-coca COMMAND [options]    (grr-coca COMMAND --help lists its options)"
    return "\n".join(
        [usage, "", *lines, "", f"With any command, {_OFFLINE} uses only models and icon sets on this machine."]
    )
