"""What a layer computes while it is exported, in a form that ONNX has, is what it computes otherwise."""

import pytest
import torch

from grr_coca.model.build import build
from grr_coca.model.layers.layout import CachedLayout
from grr_coca.model.layers.position import Rotary, line_angles
from grr_coca.model.layers.scaled_attention import GrowingCache, KeyValueCache
from grr_coca.model.presets import PRESETS
from model_configs import SET_BY_RECIPES

NAMES = [*PRESETS, *SET_BY_RECIPES]


@pytest.fixture
def exporting(monkeypatch):
    """Calls a function as the exporter would."""

    def call(function, *arguments):
        with monkeypatch.context() as patched:
            patched.setattr(torch.compiler, "is_exporting", lambda: True)
            return function(*arguments)

    return call


def spread_out(model):
    """Weights without zeros and ones, which would hide a norm or a bias."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("positions", [slice(None), slice(2, 7), torch.tensor([[4, 0, 1], [2, 2, 8]])], ids=str)
def test_the_operator_of_onnx_rotates_alike(exporting, positions):
    rotary = Rotary(line_angles(9, 8))
    shape = positions.shape if isinstance(positions, torch.Tensor) else (2, len(range(9)[positions]))
    x = torch.randn(*shape, 2, 3, 8)
    torch.testing.assert_close(exporting(rotary, x, positions), rotary(x, positions), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_embeddings_are_the_same(exporting, tiny_config, make_batch, name):
    config = tiny_config(name)
    model, batch = spread_out(build(config)), make_batch(config, num_words=(3, 36, 37, 0))
    images, texts = (batch.images,), (batch.token_ids, batch.lengths)
    for encode, inputs in ((lambda x: model.encode_image(x).embedding, images), (model.encode_text, texts)):
        torch.testing.assert_close(exporting(encode, *inputs), encode(*inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["grr_coca", "coca", "open_clip_coca"])
@torch.no_grad()
def test_padding_changes_no_embedding(exporting, tiny_config, make_batch, name):
    """An exported model keeps the padding, and a context that is full leaves no room for a column more."""
    config = tiny_config(name)
    model, batch = spread_out(build(config)), make_batch(config, num_words=(2, 9))
    alone = exporting(model.encode_text, batch.token_ids[:1, :5], batch.lengths[:1])
    torch.testing.assert_close(
        exporting(model.encode_text, batch.token_ids, batch.lengths)[:1], alone, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("ends", [[4], [2, 3, 4], [1, 4]], ids=str)
@torch.no_grad()
def test_cached_attention_is_the_same(exporting, tiny_config, ends):
    """A cache that grows, of one operator, gives what a cache of slots gives, for any number of tokens at once."""
    block = build(tiny_config("grr_coca")).text_decoder.blocks[0].eval()
    x, slots, growing = torch.randn(2, 4, 32), KeyValueCache(4), GrowingCache(*torch.empty(2, 2, 2, 0, 16))
    start = 0
    for end in ends:
        mask = (torch.arange(end) <= torch.arange(start, end)[:, None])[None, None]
        found = exporting(block, x[:, start:end], CachedLayout(growing, slice(start, end), mask))
        wanted = block(x[:, start:end], CachedLayout(slots, slice(start, end), mask))
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
        assert growing.keys.shape == growing.values.shape == (2, 2, end, 16)
        start = end
