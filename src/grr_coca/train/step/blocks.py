"""Blocks that are computed again in the backward pass, and blocks that are compiled.

The model knows of neither. Names of parameters stay as they are.
"""

import shutil
import warnings
from collections.abc import Callable, Iterator
from os import environ
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from grr_coca.errors import UserError
from grr_coca.model import CoCa
from grr_coca.torch_private import allow_recompiles, keep_for_backward

RECOMPILE_LIMIT = 32
"""Kinds of inputs that one function is compiled for. All blocks share their code: they stand in three stacks, which run
in training, in evaluation, with fewer patches, and with the smaller batch at the end of a split. Past torch's own
limit of 8, the compiler would silently go on without compiling."""

CPP_COMPILERS = ("g++", "clang++", "c++")


def checkpoint_blocks(model: CoCa) -> None:
    """Keep only the inputs of blocks for the backward pass, and compute the rest again there.

    Call it before the model is sharded. For compiled blocks use `compile_blocks` alone.
    """
    for block in _blocks(model):
        block.forward = _checkpointed(block.forward)  # type: ignore[method-assign]


def compile_blocks(model: CoCa, recomputed: float = 0.0) -> None:
    """Have each block compiled when it first runs. Call it before the model is sharded.

    Lengths of captions change from batch to batch, so blocks of the text decoders are compiled for any shape.

    Args:
        model: changed in place.
        recomputed: how much of what a block would keep for the backward pass is computed again there: 1 is all but its
            inputs, less is what the compiler finds cheapest.

    Raises:
        UserError: the model is on a CPU, and there is no C++ compiler.
    """
    if next(model.parameters()).device.type == "cpu":
        _require_compiler()
    allow_recompiles(RECOMPILE_LIMIT)
    keep_for_backward(1 - recomputed)
    # The rotary embedding's product stays as it is, which is meant: the rest is where compiling gains.
    warnings.filterwarnings("ignore", message="Torchinductor does not support code generation for complex operators")
    for block in model.image_encoder.blocks:
        block.compile()
    for decoder in (model.text_decoder, model.multimodal_decoder):
        for block in decoder.blocks:
            block.compile(dynamic=True)


def _blocks(model: CoCa) -> Iterator[nn.Module]:
    for stack in (model.image_encoder, model.text_decoder, model.multimodal_decoder):
        yield from stack.blocks


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # No block draws random numbers, so there is no random state to keep.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return recomputed


def _require_compiler() -> None:
    names = [environ["CXX"]] if "CXX" in environ else CPP_COMPILERS
    if not any(map(shutil.which, names)):
        raise UserError(f"compile: no C++ compiler found ({', '.join(names)}); install one, or set compile: false")
