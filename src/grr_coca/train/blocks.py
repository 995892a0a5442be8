"""Gradient checkpointing and compilation of blocks.

The model's code does not depend on this module, and the parameters keep their names.
"""

import shutil
from collections.abc import Callable, Iterator
from os import environ
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from grr_coca.common.errors import UserError
from grr_coca.common.torch_private import allow_recompiles, keep_for_backward
from grr_coca.model.blocks import ConvStem
from grr_coca.model.coca import CoCa

RECOMPILE_LIMIT = 32
"""Maximum number of versions into which a function is compiled, one for each kind of input. All blocks share the same
code, but their inputs differ: among the three stacks, between training and evaluation, with omitted patches, and in the
smaller last batch of a split. With torch's default limit of 8, the compiler would silently stop compiling.
"""

CPP_COMPILERS = ("g++", "clang++", "c++")


def checkpoint_blocks(model: CoCa) -> None:
    """Keep only the inputs of blocks and of a convolutional stem for the backward pass, which recomputes everything
    else.

    The model is changed in place. Call this before the model is sharded. For compiled blocks, use `compile_blocks`
    instead.
    """
    for block in (*_stem(model), *_blocks(model)):
        block.forward = _checkpointed(block.forward)  # type: ignore[method-assign]


def compile_blocks(model: CoCa, recomputed: float = 0.0) -> None:
    """Compile each block, and a convolutional stem, when it first runs. Call this before the model is sharded.

    Caption lengths change from batch to batch, so the blocks of the text decoders are compiled for any shape. The
    settings of the compiler are changed for the whole process.

    Args:
        model: Model, changed in place.
        recomputed: Fraction of a block's intermediate results that are recomputed in the backward pass instead of
            stored. With 1, only the inputs are kept. Below 1, the compiler drops the results that are cheapest to
            recompute.

    Raises:
        UserError: If the model is on a CPU, and no C++ compiler is found.
    """
    if model.device.type == "cpu":
        _require_compiler()
    allow_recompiles(RECOMPILE_LIMIT)
    keep_for_backward(1 - recomputed)
    for block in (*_stem(model), *(block for encoder in model.pooled_encoders for block in encoder.blocks)):
        block.compile()
    for decoder in (model.text_decoder, model.multimodal_decoder):
        for block in decoder.blocks:
            block.compile(dynamic=True)


def _stem(model: CoCa) -> list[nn.Module]:
    """Return a list with the convolutional stem of the image encoder, or an empty list if it has no such stem."""
    stem = None if model.image_encoder is None else model.image_encoder.stem
    return [stem] if isinstance(stem, ConvStem) else []


def _blocks(model: CoCa) -> Iterator[nn.Module]:
    for stack in model.stacks:
        yield from stack.blocks


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Blocks use no random numbers, so random states need not be preserved.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return recomputed


def _require_compiler() -> None:
    names = [environ["CXX"]] if "CXX" in environ else CPP_COMPILERS
    if not any(map(shutil.which, names)):
        raise UserError(f"compile: no C++ compiler found ({', '.join(names)}); install one, or set compile: false")
