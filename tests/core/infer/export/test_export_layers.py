"""What a layer computes in the form that ONNX has is what it computes otherwise."""

import pytest
import torch
import torch.nn.functional as F
from model_configs import SET_BY_RECIPES
from torch import nn

from grr_coca.infer.export.graphs import OPSET
from grr_coca.infer.export.layers import GrowingCache, make_exportable, pad_lengths
from grr_coca.infer.export.quantize import follows_activation, suppress_messages
from grr_coca.model.attention import CachedLayout, KeyValueCache, Rotary, line_angles
from grr_coca.model.blocks import GEGLU, MLP
from grr_coca.model.build import build
from grr_coca.model.presets import PRESETS

NAMES = [*PRESETS, *SET_BY_RECIPES]


def embed_padded(model, token_ids, lengths):
    """Texts as the exporter embeds them."""
    return make_exportable(model).embed_text(model.text_decoder.pack(token_ids, lengths, pad_lengths))


def spread_out(model):
    """Weights without zeros and ones, which would hide a norm or a bias."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("positions", [slice(None), slice(2, 7), torch.tensor([[4, 0, 1], [2, 2, 8]])], ids=str)
def test_operator_of_onnx_rotates_alike(positions):
    rotary = Rotary(line_angles(9, 8))
    shape = positions.shape if isinstance(positions, torch.Tensor) else (2, len(range(9)[positions]))
    x = torch.randn(*shape, 2, 3, 8)
    torch.testing.assert_close(make_exportable(rotary)(x, positions), rotary(x, positions), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_embeddings_are_the_same(tiny_config, make_batch, name):
    config = tiny_config(name)
    model, batch = spread_out(build(config)), make_batch(config, num_words=(3, 36, 37, 0))
    texts = batch.token_ids, batch.lengths
    image = make_exportable(model).encode_image(batch.images).embedding
    torch.testing.assert_close(image, model.encode_image(batch.images).embedding, atol=1e-5, rtol=0)
    torch.testing.assert_close(embed_padded(model, *texts), model.encode_text(*texts), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["grr_coca", "coca", "open_clip_coca"])
@torch.no_grad()
def test_padding_changes_no_embedding(tiny_config, make_batch, name):
    """An exported model keeps the padding, also that of a context that is full."""
    config = tiny_config(name)
    model, batch = spread_out(build(config)), make_batch(config, num_words=(2, 9))
    alone = embed_padded(model, batch.token_ids[:1, :5], batch.lengths[:1])
    together = embed_padded(model, batch.token_ids, batch.lengths)
    torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("ends", [[4], [2, 3, 4], [1, 4]], ids=str)
@torch.no_grad()
def test_cached_attention_is_the_same(tiny_config, ends):
    """A cache that grows, within one operator or without, gives what one of slots does, for any number of tokens."""
    block = build(tiny_config("grr_coca")).text_decoder.blocks[0].eval()
    x, slots = torch.randn(2, 4, 32), KeyValueCache(4)
    growing, appended = (GrowingCache(*torch.empty(2, 2, 2, 0, 16)) for _ in range(2))
    start = 0
    for end in ends:
        mask = (torch.arange(end) <= torch.arange(start, end)[:, None])[None, None]
        new, positions = x[:, start:end], slice(start, end)
        expected = block(new, CachedLayout(slots, positions, mask))
        for module, cache in ((make_exportable(block), growing), (block, appended)):
            found = module(new, CachedLayout(cache, positions, mask))
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        assert growing.keys.shape == growing.values.shape == (2, 2, end, 16)
        start = end


class SwiGLU(nn.Module):
    """GEGLU with SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(8, 8, bias=False) for _ in range(3))

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Written(nn.Module):
    """A layer before a product, as a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.proj = function, nn.Linear(8, 8, bias=False)

    def forward(self, x):
        return self.proj(self.function(x))


class ReluSquared(nn.Module):
    """An activation between two products that no list of operators has (arXiv 2109.08668)."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.down_proj(F.relu(self.up_proj(x)).square())


LAYERS: list[tuple[nn.Module, list[bool]]] = [
    (GEGLU(8, 8), [False, False, True]),
    (MLP(8, 8), [False, True]),
    (SwiGLU(), [False, False, True]),
    (nn.Sequential(nn.SiLU(), nn.Linear(8, 8, bias=False)), [True]),
    (nn.Sequential(nn.ReLU(), nn.Linear(8, 8)), [True]),
    (nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), [False]),
    (nn.Sequential(nn.RMSNorm(8), nn.Linear(8, 8)), [False]),
    (ReluSquared(), [False, True]),
    (Written(lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5))), [True]),
    (Written(lambda x: x * torch.tanh(F.softplus(x))), [True]),
    (Written(lambda x: x.clamp(0, 6)), [True]),
    (Written(torch.sin), [True]),
    (Written(lambda x: x.abs().sqrt().transpose(1, 2).transpose(1, 2)), [True]),
    (Written(lambda x: x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()), [False]),
    (Written(lambda x: (x + 1) * 0.5 - x), [False]),
]
"""Layers, and which of their products follow an activation."""


class Layers(nn.Module):
    """All layers side by side: one export takes as long as one of a single layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer for layer, _ in LAYERS)

    def forward(self, x):
        return [layer(x) for layer in self.layers]


@pytest.mark.ci
def test_products_behind_activations_are_found():
    with torch.no_grad(), suppress_messages():
        program = torch.export.export(Layers().eval(), (torch.randn(2, 3, 8),))
        exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    products = [node for node in exported.model.graph if node.op_type in ("MatMul", "Gemm")]
    assert list(map(follows_activation, products)) == [one for _, of_layer in LAYERS for one in of_layer]
