"""What a text position may see: itself, what stands before it, and never the padding."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import by_caption
from torch import Tensor

from grr_coca.model.build import build
from grr_coca.model.coca import CoCa
from grr_coca.model.config import CoCaConfig

BOS, EOS, CLS_SLOT = 1, 2, 0
PRESETS = ("grr_coca", "coca", "open_clip_coca")  # RoPE, learned positions, and [CLS] at the last position
words = st.lists(st.integers(3, 59), min_size=1, max_size=20)


@pytest.fixture(scope="module", params=PRESETS)
def model(request: pytest.FixtureRequest, tiny_config: Callable[..., CoCaConfig]) -> CoCa:
    model = build(tiny_config(request.param), seed=3)
    with torch.no_grad():
        # Embeddings of standard deviation 0.02 would hide a leak behind rounding.
        for name, parameter in model.text_decoder.named_parameters():
            if "embedding" in name:
                parameter.mul_(30)
    return model.requires_grad_(False)


def _padded(caption: list[int], length: int, junk: list[int] | None = None) -> tuple[Tensor, Tensor]:
    row = [BOS, *caption, EOS, CLS_SLOT]
    padding = (junk or [0] * length)[: length - len(row)]
    return torch.tensor([row + padding]), torch.tensor([len(row)])


@settings(max_examples=8)
@given(caption=words, junk=st.lists(st.integers(0, 59), min_size=40, max_size=40), length=st.integers(24, 40))
def test_text_embedding_does_not_depend_on_padding(model, caption, junk, length):
    alone = model.encode_text(*_padded(caption, len(caption) + 3))
    padded = model.encode_text(*_padded(caption, length, junk))
    torch.testing.assert_close(padded, alone, rtol=0, atol=1e-6)


@settings(max_examples=8)
@given(caption=st.lists(st.integers(3, 59), min_size=2, max_size=20), data=st.data())
def test_changing_a_token_moves_no_earlier_logits(model, caption, data):
    changed = data.draw(st.integers(0, len(caption) - 1))
    other = list(caption)
    other[changed] = 3 + (caption[changed] - 2) % 57
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    length = len(caption) + 3
    before, after = (model(image, *_padded(ids, length)) for ids in (caption, other))
    earlier, later = (model.multimodal_decoder.lm_head(output.states) for output in (before, after))
    t = 1 + changed  # [BOS] stands before the first word
    torch.testing.assert_close(later[:t], earlier[:t], rtol=0, atol=1e-6)
    assert (later[t] - earlier[t]).abs().max() > 1e-4
    assert (after.text_embedding - before.text_embedding).abs().max() > 1e-6


def test_cls_is_a_learned_vector_for_any_id_in_its_slot(model):
    token_ids, lengths = _padded([5, 6, 7], 10)
    other = token_ids.clone()
    other[0, int(lengths) - 1] = 33
    assert torch.equal(model.encode_text(token_ids, lengths), model.encode_text(other, lengths))


def test_rows_do_not_depend_on_padding(model, tiny_config, make_batch):
    batch = make_batch(tiny_config(), num_words=(2, 15, 7))
    output = model(batch.images, batch.token_ids, batch.lengths)
    for i, length in enumerate(batch.lengths.tolist()):
        alone = model(batch.images[i : i + 1], batch.token_ids[i : i + 1, :length], batch.lengths[i : i + 1])
        torch.testing.assert_close(alone.text_embedding[0], output.text_embedding[i], rtol=0, atol=1e-6)
        torch.testing.assert_close(alone.image_embedding[0], output.image_embedding[i], rtol=0, atol=1e-6)
        logits = model.multimodal_decoder.lm_head(alone.states)
        torch.testing.assert_close(logits, by_caption(model, output, batch.lengths)[i], rtol=0, atol=2e-5)
