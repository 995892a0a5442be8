"""FLOPs of a training step, counted by torch, with the attention kernel of CPUs that its counter leaves out."""

from typing import Any

from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from grr_coca.torch_private import flash_attention_of_cpu, flash_attention_of_cpu_backward


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


CPU_ATTENTION = {
    flash_attention_of_cpu(): _attention,
    flash_attention_of_cpu_backward(): _attention_backward,
}


def flop_counter() -> FlopCounterMode:
    """Counts multiplications and additions of matrix products, convolutions and attention; causal attention in full."""
    return FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
