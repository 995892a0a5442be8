"""What training does to the blocks of a model, which know nothing of it. Names of parameters stay as they are."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from os import environ
from typing import Any

import torch
import torch._functorch.config
from torch import nn
from torch.utils.checkpoint import checkpoint

from grr_coca.errors import UserError
from grr_coca.model import CoCa

RECOMPILE_LIMIT = 32
"""Blocks of all stacks share their code, and the compiler counts by that: three stacks, each in training, in
evaluation, with fewer patches, and with the smaller batch at the end of a split. Past torch's 8 it would go on, slowly
and silently, without compiling."""

CPP_COMPILERS = ("g++", "clang++", "c++")


def checkpoint_blocks(model: CoCa) -> None:
    """Keep but the inputs of blocks for the backward pass, and compute their insides again there.

    Comes before blocks are sharded. Compiled blocks do it by themselves, see `compile_blocks`.
    """
    for block in _blocks(model):
        block.forward = _checkpointed(block.forward)  # type: ignore[method-assign]


def compile_blocks(model: CoCa, recomputed: float = 0.0) -> None:
    """Compile each block in place, when it first runs. Comes before blocks are sharded.

    Lengths of captions change from batch to batch, so those of the text decoders are compiled for any shape.

    Args:
        model: changed in place.
        recomputed: how much of what a block would keep for the backward pass is computed again there: 1 is all but its
            inputs, less is what the compiler finds cheapest.

    Raises:
        UserError: the model is on a CPU, and there is no C++ compiler.
    """
    if next(model.parameters()).device.type == "cpu":
        _require_compiler()
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
    # Read at the first steps, so it is set for good. The public way, a context within the forward pass, came with 2.13.
    torch._functorch.config.activation_memory_budget = 1 - recomputed
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
