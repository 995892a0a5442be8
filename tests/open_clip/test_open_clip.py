"""The parts that only open_clip's CoCa has. That they make its model together is tested in `open_clip_checkpoints/`."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from grr_coca.common.errors import UserError
from grr_coca.model.attention import CrossAttention
from grr_coca.model.blocks import AttentionalPooler, NoPooler
from grr_coca.model.presets import get_preset, with_qk_norm
from grr_coca_open_clip.model import ChannelAffine, ClassToken, NormalizedQueriesPooler, shared


def test_token_with_its_position_is_appended_to_every_sequence():
    token, x = ClassToken(3), torch.randn(2, 4, 3)
    with torch.no_grad():
        token.embedding.copy_(torch.tensor([1.0, 2.0, 3.0]))
        token.position.fill_(0.5)
    found = token(x)
    assert torch.equal(found[:, :4], x)
    assert torch.equal(found[:, 4], torch.tensor([[1.5, 2.5, 3.5]] * 2))


def test_layer_norm_splits_into_normalization_and_affine():
    norm, plain, affine = nn.LayerNorm(8), nn.LayerNorm(8, elementwise_affine=False), ChannelAffine(8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    affine.load_state_dict(norm.state_dict())
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(affine(plain(x)), norm(x))


def test_normalized_queries_are_read():
    free = AttentionalPooler(4, 32, CrossAttention(32, 20, 4), nn.Identity())
    normalized = NormalizedQueriesPooler(4, 32, CrossAttention(32, 20, 4), nn.Identity(), nn.LayerNorm(32))
    normalized.attn.load_state_dict(free.attn.state_dict())
    nn.init.normal_(normalized.queries, std=5.0)
    context = torch.randn(3, 9, 20)
    assert not torch.allclose(normalized(context), free(context))
    free.queries.data = normalized.query_norm(normalized.queries).detach()
    assert torch.equal(normalized(context), free(context))


def test_first_query_of_a_shared_pooler_is_the_image():
    patches = torch.arange(6.0).view(1, 3, 2)
    tokens, pooled, _ = shared(lambda x, _: 2 * x, NoPooler(), patches)
    assert torch.equal(torch.cat([pooled, tokens], dim=1), 2 * patches)
    assert pooled.shape == (1, 1, 2)


def test_model_has_all_open_clip_parts_or_none():
    theirs, ours = get_preset("open_clip_coca", "tiny"), get_preset("grr_coca", "tiny")
    with pytest.raises(UserError, match="architecture 'open_clip' needs norm 'layer_1e-5', got 'rms'"):
        replace(ours, architecture="open_clip")
    with pytest.raises(UserError, match="architecture 'open_clip' needs qk_norm 'none', got 'rms'"):
        with_qk_norm(theirs, "rms")
    with pytest.raises(UserError, match="architecture 'open_clip' needs num_registers 0, got 4"):
        replace(theirs, image_encoder=replace(theirs.image_encoder, num_registers=4))
    with pytest.raises(UserError, match="arrangement 'shared' needs architecture 'open_clip'"):
        replace(ours, poolers=theirs.poolers)
