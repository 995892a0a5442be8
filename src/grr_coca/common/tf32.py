"""Products in fp32 on CUDA: exact in training, and with inputs rounded to TF32 in evaluation and use.

TF32 keeps 10 of the 23 bits of a fraction, and sums in fp32; an H100 multiplies 7 times as fast in it. That rounding,
imitated on a CPU for all products of `icons` and `pictograms`, changed embeddings by 2e-4 at most, the losses of a
validation split by 6e-5, and no recall. In training it would add up, and bf16 is as fast there.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_depth = 0
_before = (False, False)


def require_exact_products() -> None:
    """Compute all products in fp32 exactly from now on. By default PyTorch rounds the inputs of convolutions."""
    _set(matmul=False, convolutions=False)


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Context in which CUDA may use TF32. Other devices do not change.

    The setting is one of the process, so it lasts until the last thread leaves the context.
    """
    global _depth, _before
    if device.type != "cuda":
        yield
        return
    with _lock:
        if not _depth:
            _before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
            _set(matmul=True, convolutions=True)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if not _depth:
                _set(*_before)


def _set(matmul: bool, convolutions: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolutions
