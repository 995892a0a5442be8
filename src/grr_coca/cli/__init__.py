"""The command line: a table of verbs. The file of a verb is imported when the verb is called."""

import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import grr_coca
from grr_coca.common.errors import Interruption, UserError, nearest, print_warnings, printable
from grr_coca.common.threads import multiply_on_one_thread, wait_passively


class Verb(NamedTuple):
    """A verb of the command line, which may have two words, such as `import open_clip`.

    `function`: its module in this package, and the function there. `summary`: what the verb does.
    """

    function: str
    summary: str

    def load(self) -> Callable[..., int | None]:
        """Import the verb's function."""
        module, _, name = self.function.partition(".")
        function: Callable[..., int | None] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        return function


VERBS = {
    "demo": Verb("demo.run", "pretrain, fine-tune and compare both models on small corpora that come with the code"),
    "study": Verb("study.run", "compare models over several seeds: run a plan, show its status, report the results"),
    "pretrain": Verb("training.pretrain", "train a new model on image-text pairs"),
    "finetune": Verb("training.finetune", "train a checkpoint further on pairs of another domain"),
    "evaluate": Verb(
        "evaluate.evaluate_splits",
        "losses, retrieval, captions, zero-shot accuracy or probes of a checkpoint on a split",
    ),
    "compare": Verb("evaluate.compare_checkpoints", "two checkpoints side by side on the same splits"),
    "caption": Verb("caption.run", "caption images with a checkpoint"),
    "embed": Verb("embed.run", "embed images or texts as vectors that can be compared"),
    "classify": Verb("classify.run", "say which of some labels fit images best"),
    "explain": Verb("explain.run", "show where a model looks for each word of a caption, or for a text"),
    "index": Verb("index.run", "index images for search, or bring an index up to date"),
    "search": Verb("search.search_index", "find images of an index by text or by image"),
    "match": Verb(
        "match.run", "find the equivalent of each picture of a library in another, such as icons of two sets"
    ),
    "lint": Verb("lint.run", "find names and alternative texts that contradict their picture"),
    "duplicates": Verb("search.list_duplicates", "list the images of an index that look the same"),
    "serve": Verb("serve.run", "serve captions, embeddings and search over HTTP, with a page to search pictures"),
    "mcp": Verb("mcp.run", "serve indexes of icons to agents by the Model Context Protocol"),
    "doctor": Verb("doctor.run", "show what is installed here, and check that it is whole"),
    "models": Verb("info.list_models", "list the models that can be used by name"),
    "data": Verb("data.run", "check image-text pairs, count them, or convert them to shards"),
    "info": Verb("info.describe_preset", "parts, parameters and FLOPs of a preset, or what two presets differ in"),
    "import open_clip": Verb("exchange.import_open_clip", "convert a CoCa checkpoint of open_clip"),
    "import index": Verb("exchange.import_index", "make an index from a Parquet file that export index wrote"),
    "export index": Verb("exchange.export_index", "write an index into a Parquet file"),
    "export open_clip": Verb("exchange.export_open_clip", "write a checkpoint that open_clip loads"),
    "export onnx": Verb("exchange.export_onnx", "write a checkpoint as ONNX graphs, which need no PyTorch"),
    "export web": Verb("exchange.export_web", "write a site that captions and searches images in the browser"),
    "push": Verb("exchange.push", "upload a checkpoint to the Hugging Face hub, with a model card"),
}


_OFFLINE = "--offline"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb, and return the exit code.

    0: success. 1: a verb for many files could read none of them, or `lint` or `match --check` found something.
    2: wrong use, with one message and no traceback.
    128 + the number of a signal: the signal stopped a run, which is saved.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    print_warnings()
    wait_passively()
    multiply_on_one_thread()
    if _OFFLINE in argv:
        argv = [word for word in argv if word != _OFFLINE]
        os.environ["HF_HUB_OFFLINE"] = "1"  # read by `huggingface_hub`, too
    return exit_code(lambda: _dispatch(argv))


def exit_code(work: Callable[[], int | None]) -> int:
    """Do some work, and return its exit code. An error of the user, or of a file, is one message and no traceback.

    The scripts and benchmarks of the repository end by it, too.
    """
    try:
        return work() or 0
    except UserError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except OSError as error:
        message = _message(error)
        if message is None:
            raise
        print(printable(f"error: {message}"), file=sys.stderr)
        return 2
    except Interruption as stopped:
        name = signal.Signals(stopped.number).name
        print(f"{name}: {stopped}; continue with --resume", file=sys.stderr)
        return 128 + stopped.number


def _message(error: OSError) -> str | None:
    """The message for an error that no verb has handled; None if it names no file."""
    if error.errno == errno.ENAMETOOLONG:
        return f"{str(error.filename or error)[:80]}…: too long for the name of a file"
    if error.filename is None and not _has_folder():
        return "the current folder does not exist any more; change to another"
    if not isinstance(error.filename, str | bytes):
        return None
    return f"{os.fsdecode(error.filename)}: cannot be read or written ({error.strerror or error})"


def _has_folder() -> bool:
    """False if the current folder was removed."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return False
    return True


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(grr_coca.__version__)
        return 0
    verb, rest = _split(argv)
    if verb not in VERBS:  # the first of two words
        print(_usage(verb))
        return 0 if rest else 2
    if os.environ.get("NO_COLOR") or not sys.stderr.isatty():
        os.environ.setdefault("PYTHON_TYRO_ANSI_CODES", "False")  # its import reads this; it knows neither
    import tyro

    code: int | None = tyro.cli(VERBS[verb].load(), args=rest, prog=f"grr-coca {verb}", description=VERBS[verb].summary)
    return code or 0


def _split(argv: list[str]) -> tuple[str, list[str]]:
    """Split arguments into a verb and its arguments. If the second word of a verb is missing: the first word alone.

    Raises:
        UserError: there is no such verb; the message names the nearest.
    """
    first, *rest = argv
    if first in VERBS:
        return first, rest
    kinds = [verb for verb in VERBS if verb.startswith(f"{first} ")]
    if not kinds:
        raise UserError(f"there is no verb '{first}'; {nearest(first, VERBS)}")
    if not rest or rest[0] in ("-h", "--help"):
        return first, rest
    verb = f"{first} {rest[0]}"
    if verb not in kinds:
        raise UserError(f"there is no '{verb}'; {nearest(verb, kinds)}")
    return verb, rest[1:]


def _usage(first: str = "") -> str:
    """Help that lists all verbs, or those that begin with the word `first`."""
    verbs = {verb: summary for verb, (_, summary) in VERBS.items() if not first or verb.startswith(f"{first} ")}
    width = max(map(len, verbs))
    lines = [f"  {verb:<{width}}  {summary}" for verb, summary in verbs.items()]
    usage = "usage: grr-coca VERB [options]    (grr-coca VERB --help lists its options)"
    return "\n".join(
        [usage, "", *lines, "", f"With any verb, {_OFFLINE} uses only models and icon sets on this machine."]
    )
