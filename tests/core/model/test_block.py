"""Blocks against PyTorch's own pre-norm transformer layers with the same weights, in fp64."""

import torch
from torch import Tensor, nn

from grr_coca.model.attention import PLAIN, CrossAttention, SelfAttention
from grr_coca.model.blocks import MLP, Block, CrossBlock
from grr_coca_open_clip.model import TwoStepCrossBlock

OF_TORCH = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True, "dtype": torch.float64}


def _x(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _norm(seed: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(16).double()
    with torch.no_grad():
        norm.weight.copy_(_x(16, seed=seed))
        norm.bias.copy_(_x(16, seed=seed + 1))
    return norm


@torch.no_grad()
def _copy_feed_forward(layer: nn.Module, mlp: MLP) -> None:
    layer.linear1.load_state_dict(mlp.up_proj.state_dict())
    layer.linear2.load_state_dict(mlp.down_proj.state_dict())


@torch.no_grad()
def _copy_attention(reference: nn.MultiheadAttention, projected: Tensor, out: nn.Linear) -> None:
    """Torch's biases, which ours has not, become zero."""
    reference.in_proj_weight.copy_(projected)
    reference.out_proj.weight.copy_(out.weight)
    nn.init.zeros_(reference.in_proj_bias)
    nn.init.zeros_(reference.out_proj.bias)


def _encoder_layer(block: Block) -> nn.TransformerEncoderLayer:
    """Torch's layer with the weights of a block."""
    reference = nn.TransformerEncoderLayer(16, 2, 32, **OF_TORCH)
    _copy_attention(reference.self_attn, block.attn.qkv_proj.weight, block.attn.out_proj)
    _copy_feed_forward(reference, block.feed_forward)
    reference.norm1.load_state_dict(block.attn_norm.state_dict())
    reference.norm2.load_state_dict(block.ffn_norm.state_dict())
    return reference


def _decoder_layer(block: CrossBlock | TwoStepCrossBlock) -> nn.TransformerDecoderLayer:
    """Torch's layer with the weights of a block, but for its self-attention, which adds nothing."""
    reference = nn.TransformerDecoderLayer(16, 2, 32, **OF_TORCH)
    cross = block.cross_attn
    _copy_attention(reference.multihead_attn, torch.cat([cross.q_proj.weight, cross.kv_proj.weight]), cross.out_proj)
    _copy_feed_forward(reference, block.feed_forward)
    reference.norm2.load_state_dict(block.cross_attn_norm.state_dict())
    reference.norm3.load_state_dict(block.ffn_norm.state_dict())
    nn.init.zeros_(reference.self_attn.out_proj.weight)
    nn.init.zeros_(reference.self_attn.out_proj.bias)
    return reference


def _block(seed: int) -> Block:
    return Block(_norm(seed), SelfAttention(16, 2, None), _norm(seed + 2), MLP(16, 32)).double()


def test_a_block_is_torchs_pre_norm_encoder_layer():
    block, x = _block(1), _x(2, 5, 16)
    torch.testing.assert_close(block(x, PLAIN), _encoder_layer(block)(x), rtol=1e-12, atol=1e-12)


def test_a_cross_block_is_torchs_pre_norm_decoder_layer():
    block = CrossBlock(
        attn_norm=_norm(1),
        attn=SelfAttention(16, 2, None),
        cross_attn_norm=_norm(3),
        cross_attn=CrossAttention(16, 16, 2),
        ffn_norm=_norm(5),
        feed_forward=MLP(16, 32),
    ).double()
    reference = _decoder_layer(block)
    _copy_attention(reference.self_attn, block.attn.qkv_proj.weight, block.attn.out_proj)
    reference.norm1.load_state_dict(block.attn_norm.state_dict())
    x, context = _x(2, 5, 16), _x(2, 7, 16, seed=9)
    torch.testing.assert_close(block(x, context, PLAIN), reference(x, context), rtol=1e-12, atol=1e-12)


def test_a_two_step_cross_block_is_torchs_encoder_layer_and_then_a_decoder_layer_without_self_attention():
    block = TwoStepCrossBlock(
        block=_block(1),
        cross_attn_norm=_norm(5),
        cross_attn=CrossAttention(16, 16, 2),
        ffn_norm=_norm(7),
        feed_forward=MLP(16, 32),
    ).double()
    x, context = _x(2, 5, 16), _x(2, 7, 16, seed=9)
    expected = _decoder_layer(block)(_encoder_layer(block.block)(x), context)
    torch.testing.assert_close(block(x, context, PLAIN), expected, rtol=1e-12, atol=1e-12)
