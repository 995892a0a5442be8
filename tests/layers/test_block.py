"""A block is pre-norm: each part sees the normalized stream and its result is added to the stream."""

import torch
from torch import Tensor, nn

from grr_coca.layers.attention import CrossAttention, SelfAttention
from grr_coca.layers.block import Block, CrossBlock, TwoStepCrossBlock
from grr_coca.layers.feed_forward import MLP
from grr_coca.layers.layout import PLAIN


def _x(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_block_adds_attention_then_feed_forward() -> None:
    block = Block(nn.LayerNorm(16), SelfAttention(16, 2, None), nn.LayerNorm(16), MLP(16, 32))
    x = _x(2, 5, 16)
    middle = x + block.attn(block.attn_norm(x), PLAIN)
    assert torch.equal(block(x, PLAIN), middle + block.feed_forward(block.ffn_norm(middle)))
    assert not torch.allclose(block(x, PLAIN), block.attn_norm(block(x, PLAIN)), atol=1e-2)


def test_cross_block_reads_the_context_between_attention_and_feed_forward() -> None:
    norms = [nn.LayerNorm(16) for _ in range(3)]
    block = CrossBlock(
        attn_norm=norms[0],
        attn=SelfAttention(16, 2, None),
        cross_attn_norm=norms[1],
        cross_attn=CrossAttention(16, 12, 2),
        ffn_norm=norms[2],
        feed_forward=MLP(16, 32),
    )
    x, context = _x(2, 5, 16), _x(2, 7, 12)
    x1 = x + block.attn(norms[0](x), PLAIN)
    x2 = x1 + block.cross_attn(norms[1](x1), context)
    assert torch.equal(block(x, context, PLAIN), x2 + block.feed_forward(norms[2](x2)))


def test_two_step_cross_block_is_a_whole_block_and_then_reads_the_context() -> None:
    norms = [nn.LayerNorm(16) for _ in range(4)]
    block = TwoStepCrossBlock(
        block=Block(norms[0], SelfAttention(16, 2, None), norms[1], MLP(16, 32)),
        cross_attn_norm=norms[2],
        cross_attn=CrossAttention(16, 12, 2),
        ffn_norm=norms[3],
        feed_forward=MLP(16, 32),
    )
    x, context = _x(2, 5, 16), _x(2, 7, 12)
    x1 = block.block(x, PLAIN)
    x2 = x1 + block.cross_attn(norms[2](x1), context)
    assert torch.equal(block(x, context, PLAIN), x2 + block.feed_forward(norms[3](x2)))
