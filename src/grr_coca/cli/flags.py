"""Types of the flags and arguments that several commands share."""

from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from grr_coca.common.errors import UserError

T = TypeVar("T")

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""Flag that is on if present, without a `--no-…` form."""

CheckpointFlag = Annotated[str, tyro.conf.arg(aliases=["-c"], metavar="NAME|DIR")]

OptionalCheckpointFlag = Annotated[str | None, tyro.conf.arg(aliases=["-c"], metavar="NAME|DIR")]

EngineFlag = Annotated[Literal["auto", "onnx", "torch"], tyro.conf.arg(metavar="auto|onnx|torch")]
"""Engine of the model; see `grr_coca.infer.load`."""

ImageArguments = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]

ExcludeFlag = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATTERN")]

PicturesFlag = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="DIR")]
"""Folders whose images clients can see."""

IndexArgument = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]

Lists = Annotated[tuple[tuple[T, ...], ...], tyro.conf.UseAppendAction]
"""Flag with several values: all after one flag, one after each flag, or both.

The value has one list per occurrence; see `join_lists`. With a plain tuple, only the last occurrence would count.
"""


def require_batch_size(batch_size: int) -> None:
    """Check a batch size before loading anything.

    Raises:
        UserError: If the batch size is below 1.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {batch_size}")


def join_lists(lists: tuple[tuple[T, ...], ...]) -> tuple[T, ...]:
    """Return the values of a flag of type `Lists` as one tuple."""
    return tuple(chain.from_iterable(lists))
