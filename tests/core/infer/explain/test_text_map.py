"""Maps of a text: the shares are those of a sum."""

import copy
from dataclasses import replace
from itertools import product

import pytest
import torch
from scene_pairs import COLOURS, SIDE, scene

from grr_coca.common.errors import UserError
from grr_coca.infer.explain import text_map
from grr_coca.infer.explain.text import _embed, patch_shares
from grr_coca.model.build import build


@pytest.mark.parametrize(
    ("preset", "arrangement", "num_queries"),
    [*product(["grr_coca", "coca"], ["cascade", "parallel"], [5, None]), ("open_clip_coca", "shared", 5)],
)
def test_shares_sum_to_the_product_with_the_embedding(tiny_config, make_batch, preset, arrangement, num_queries):
    config = tiny_config(preset, arrangement=arrangement, num_queries=num_queries)
    model = build(config).double()
    wanted = torch.randn(1, config.embed_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    image = make_batch(config).images[:1].double()
    with torch.no_grad():
        expected = model.encode_image(image).embedding
        patches = model.image_encoder(image)
        torch.testing.assert_close(_embed(model, patches), expected, atol=1e-6, rtol=1e-5)
    shares = patch_shares(model, patches, wanted)
    # The norms' biases are still zero in a model that has not been trained.
    assert shares.sum().item() == pytest.approx((expected * wanted).sum().item(), abs=1e-5)


def test_unknown_norm_error_names_where_to_add_its_map(tiny_config, make_batch):
    model = build(tiny_config())
    model.contrastive_pooler.norm = torch.nn.Identity()
    patches = model.image_encoder(make_batch(tiny_config()).images[:1])
    with pytest.raises(NotImplementedError, match=r"norm Identity: add it to grr_coca.infer.explain.text"):
        patch_shares(model, patches, torch.zeros(1, 24))


def test_share_of_a_patch_is_linear_in_its_values(tiny_config, make_batch):
    """With attention and norms held, a patch that is twice as long would count twice: so says an explicit sum."""
    config = tiny_config(num_queries=None)
    model = build(config).double()
    wanted = torch.randn(1, config.embed_dim, dtype=torch.float64)
    patches = model.image_encoder(make_batch(config).images[:1].double()).detach()
    pooler = model.contrastive_pooler
    attn, dim = pooler.attn, pooler.attn.q_proj.weight.shape[0]
    head = dim // attn.num_heads
    keys, values = attn.kv_proj(patches[0]).split(dim, dim=-1)
    query = attn.q_proj(pooler.queries)[0]
    summands = torch.zeros(len(values), dim, dtype=torch.float64)
    for h in range(attn.num_heads):
        part = slice(h * head, (h + 1) * head)
        weights = (keys[:, part] @ query[part] / head**0.5).softmax(dim=0)
        summands[:, part] = weights[:, None] * values[:, part]
    mixed = summands @ attn.out_proj.weight.T
    rms = (mixed.sum(dim=0).square().mean() + pooler.norm.eps).sqrt()
    embedded = (mixed / rms * pooler.norm.weight) @ model.image_proj.weight.T
    expected = embedded @ wanted[0] / embedded.sum(dim=0).norm()
    torch.testing.assert_close(patch_shares(model, patches, wanted), expected.detach(), atol=1e-6, rtol=1e-5)


def test_spot_speaks_most_for_the_text_that_names_it(finder):
    places = [(place, colour) for place in range(SIDE**2) for colour in COLOURS]
    found = [
        int(text_map(finder.checkpoint, scene(place, colour), finder.captions[colour]).heat.argmax()) == place
        for place, colour in places
    ]
    assert sum(found) >= 0.95 * len(found)


def test_map_tells_the_similarity_of_the_model(finder):
    checkpoint = finder.checkpoint
    found = text_map(checkpoint, scene(5, "green"), "a green spot")
    wrong = text_map(checkpoint, scene(5, "green"), "a blue spot")
    assert found.heat.sum().item() == pytest.approx(found.similarity, abs=1e-5)
    assert found.similarity > wrong.similarity
    assert found.heat.shape == (SIDE, SIDE)


def test_frozen_weights_and_half_precision_are_mapped(finder):
    image, text = scene(5, "green"), "a green spot"
    expected = text_map(finder.checkpoint, image, text)
    model = copy.deepcopy(finder.checkpoint.model).bfloat16().requires_grad_(False)
    found = text_map(replace(finder.checkpoint, model=model), image, text)
    assert found.similarity == pytest.approx(expected.similarity, abs=0.02)
    torch.testing.assert_close(found.heat, expected.heat, atol=0.02, rtol=0)


def test_rejects_an_empty_text(finder):
    with pytest.raises(UserError, match=r"the text is empty; add a word$"):
        text_map(finder.checkpoint, scene(0, "red"), " ")


def test_model_that_computes_nan_has_no_map(finder):
    broken = replace(finder.checkpoint, model=copy.deepcopy(finder.checkpoint.model))
    broken.model.image_proj.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="computes NaN"):
        text_map(broken, scene(0, "red"), "a red spot")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_texts_are_mapped_within_every_mode_of_gradients(finder, mode):
    image, text = scene(5, "green"), "a green spot"
    expected = text_map(finder.checkpoint, image, text).heat
    with mode():
        assert torch.equal(text_map(finder.checkpoint, image.clone(), text).heat, expected)
