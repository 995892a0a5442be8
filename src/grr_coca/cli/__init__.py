"""The command line: a table of verbs. Each verb has its own file, which is imported when the verb is called."""

import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

import grr_coca
from grr_coca.errors import Stopped, UserError, nearest
from grr_coca.messages import print_warnings, printable


class Verb(NamedTuple):
    """`module`: the module with the verb's function `run`, relative to this package. `summary`: what the verb does.

    A verb may have two words, such as `import open_clip`.
    """

    module: str
    summary: str


VERBS = {
    "demo": Verb("demo", "pretrain, fine-tune and compare both models on the corpora that come with the code"),
    "study": Verb("study", "compare models over several seeds: run a plan, see what it lacks and found"),
    "pretrain": Verb("pretrain", "train a new model on image-text pairs"),
    "finetune": Verb("finetune", "train a checkpoint further on pairs of another domain"),
    "evaluate": Verb(
        "evaluate", "losses, retrieval, captions, zero-shot accuracy or probes of a checkpoint on a split"
    ),
    "compare": Verb("compare", "two checkpoints side by side on the same splits"),
    "caption": Verb("caption", "caption images with a checkpoint"),
    "embed": Verb("embed", "embed images or texts as vectors that can be compared"),
    "classify": Verb("classify", "say which of some labels fit images best"),
    "explain": Verb("explain", "show where a model looks for each word of a caption, or for a text"),
    "index": Verb("index", "make an index of pictures to search in, or bring it up to date"),
    "search": Verb("search", "find pictures of an index by words or by a picture"),
    "duplicates": Verb("duplicates", "list the pictures of an index that look the same"),
    "models": Verb("models", "list the models that come with the code"),
    "data": Verb("data", "check image-text pairs, count them, or convert them to shards"),
    "info": Verb("info", "parts, parameters and FLOPs of a preset, or what two presets differ in"),
    "import open_clip": Verb("import_open_clip", "make a checkpoint of one of open_clip's CoCa"),
    "import index": Verb("import_index", "make an index of a Parquet file that export index wrote"),
    "export index": Verb("export_index", "write an index into a Parquet file"),
    "export open_clip": Verb("export_open_clip", "write a checkpoint that open_clip loads"),
    "push": Verb("push", "put a checkpoint on the Hugging Face hub, with a model card"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb, and return the exit code. 0: success. 2: wrong use, with one message and no traceback.

    1: a verb for many files could not read any of them. 128 + the number of a signal: the signal stopped a run, which
    is saved.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    print_warnings()
    try:
        return _dispatch(argv)
    except UserError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except OSError as error:
        told = _told(error)
        if told is None:
            raise
        print(printable(f"error: {told}"), file=sys.stderr)
        return 2
    except Stopped as stopped:
        name = signal.Signals(stopped.number).name
        print(f"{name}: {stopped}; go on with --resume", file=sys.stderr)
        return 128 + stopped.number


def _told(error: OSError) -> str | None:
    """What a person is told of a file that the code had not expected to fail; None if the error names no file."""
    if error.errno == errno.ENAMETOOLONG:
        return f"{str(error.filename or error)[:80]}…: too long for the name of a file"
    if not isinstance(error.filename, str | bytes):
        return None
    return f"{os.fsdecode(error.filename)}: cannot be read or written ({error.strerror or error})"


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
    import tyro

    module, summary = VERBS[verb]
    function = importlib.import_module(f"grr_coca.cli.{module}").run
    code: int | None = tyro.cli(function, args=rest, prog=f"grr-coca {verb}", description=summary)
    return code or 0


def _split(argv: list[str]) -> tuple[str, list[str]]:
    """The verb, and what follows it. A verb whose second word is missing, or asks for help, comes as one word.

    Raises:
        UserError: there is no such verb; names the nearest.
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
    """All verbs, or those of a first word."""
    verbs = {verb: summary for verb, (_, summary) in VERBS.items() if not first or verb.startswith(f"{first} ")}
    width = max(map(len, verbs))
    lines = [f"  {verb:<{width}}  {summary}" for verb, summary in verbs.items()]
    return "\n".join(["usage: grr-coca VERB [options]    (grr-coca VERB --help lists its options)", "", *lines])
