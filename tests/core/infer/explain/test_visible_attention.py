"""The weights that are shown are those that the model computes with."""

import pytest
import torch

from grr_coca.infer.explain.caption import attention_weights, mix_values, visible_attention
from grr_coca.model.attention import CrossAttention
from grr_coca.model.build import build

PRESETS = ["grr_coca", "baseline_coca", "coca", "grr_coca_plus", "grr_coca_parallel", "open_clip_coca"]


@pytest.mark.parametrize("num_heads", [1, 4])
def test_values_mixed_by_the_weights_are_the_modules_output(num_heads):
    torch.manual_seed(0)
    module = CrossAttention(16, 24, num_heads)
    x, context = torch.randn(3, 5, 16) * 3, torch.randn(3, 7, 24)
    attended = attention_weights(module, x, context)
    assert attended.weights.shape == (3, num_heads, 5, 7)
    torch.testing.assert_close(attended.weights.sum(dim=-1), torch.ones(3, num_heads, 5))
    torch.testing.assert_close(module.out_proj(mix_values(attended)), module(x, context))


def test_weights_are_the_softmax_of_scaled_products_by_hand():
    module = CrossAttention(2, 2, 1)
    with torch.no_grad():
        module.q_proj.weight.copy_(torch.eye(2))
        module.kv_proj.weight.copy_(torch.cat([torch.eye(2), torch.eye(2)]))
    weights = attention_weights(module, torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[2.0, 5.0], [0.0, 9.0]]])).weights
    torch.testing.assert_close(weights[0, 0, 0], torch.tensor([2 / 2**0.5, 0.0]).softmax(dim=0))


@pytest.mark.parametrize("preset", PRESETS)
def test_explaining_does_not_change_the_output(tiny_config, make_batch, preset):
    poolers = {"num_queries": None} if preset == "grr_coca_plus" else {}
    config = tiny_config(preset, **poolers)
    model, batch = build(config).eval(), make_batch(config)
    modules = [module for module in model.modules() if isinstance(module, CrossAttention)]
    expected = model(batch.images, batch.token_ids, batch.lengths)
    with visible_attention(modules) as seen:
        output = model(batch.images, batch.token_ids, batch.lengths)
    torch.testing.assert_close(output.states, expected.states)
    torch.testing.assert_close(output.image_embedding, expected.image_embedding)
    assert seen.keys() == set(modules)
    for attended in seen.values():
        torch.testing.assert_close(attended.weights.sum(dim=-1), torch.ones(attended.weights.shape[:-1]))
    first = seen[model.multimodal_decoder.blocks[0].cross_attn].weights
    one_channel = output.states[..., 0].sum()  # a layer norm makes the sum of all channels a constant
    assert torch.autograd.grad(one_channel, first)[0].abs().sum() > 1e-3


def test_model_is_left_without_hooks_even_after_an_error():
    module = CrossAttention(4, 4, 1)
    with pytest.raises(ZeroDivisionError), visible_attention([module]):
        _ = 1 / 0
    assert not module._forward_hooks
