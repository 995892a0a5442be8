"""Maps of a caption's words."""

from itertools import product

import pytest
import torch
from scene_pairs import COLOURS, SIDE, scene
from support import next_token_logits

from grr_coca.data.tokenizer import clip_bpe, train_bpe
from grr_coca.infer.explain import caption_maps
from grr_coca.infer.explain.caption import (
    AttentionRecord,
    attention_weights,
    group_words,
    mix_values,
    patch_relevance,
    record_attention,
)
from grr_coca.model.attention import CrossAttention
from grr_coca.model.build import build


def colour_word(finder, place, colour):
    """The map of the word that names the colour of the one spot."""
    tokenizer = finder.checkpoint.tokenizer
    maps = caption_maps(finder.checkpoint, scene(place, colour), tokenizer.encode(finder.captions[colour]))
    assert [word for word, _ in maps] == ["a", colour, "spot"]
    return maps[1].heat


@pytest.mark.ci
def test_colour_is_searched_for_in_its_region(finder):
    colours = list(COLOURS)
    shown = [(place, colours[(place + shift) % len(colours)]) for place in range(SIDE**2) for shift in range(2)]
    found = [int(colour_word(finder, place, colour).argmax()) == place for place, colour in shown]
    assert sum(found) >= 0.95 * len(found)


def test_shares_are_not_negative_and_sum_to_one(beginner):
    heat = colour_word(beginner, 6, "red")
    assert heat.shape == (SIDE, SIDE)
    assert (heat >= 0).all()
    assert heat.sum().item() == pytest.approx(1.0)


def test_ignores_tokens_after_the_end_token(beginner):
    tokenizer, image = beginner.checkpoint.tokenizer, scene(3, "blue")
    ids = tokenizer.encode("a blue spot")
    expected = caption_maps(beginner.checkpoint, image, ids)
    ended = caption_maps(beginner.checkpoint, image, [*ids, tokenizer.eos_id, tokenizer.eos_id])
    assert [word for word, _ in ended] == [word for word, _ in expected]
    assert all(torch.equal(first.heat, second.heat) for first, second in zip(ended, expected, strict=True))
    assert caption_maps(beginner.checkpoint, image, [tokenizer.eos_id]) == []


@pytest.mark.parametrize(
    ("preset", "num_queries"),
    [*product(["grr_coca", "baseline_coca", "coca", "grr_coca_parallel"], [5, None]), ("open_clip_coca", 5)],
)
def test_every_model_can_be_explained(tiny_config, make_batch, preset, num_queries):
    config = tiny_config(preset, num_queries=num_queries)
    model = build(config)
    relevance = patch_relevance(model, make_batch(config).images[0], [1, 7, 9, 4])
    assert relevance.shape == (3, config.image_encoder.num_patches)
    torch.testing.assert_close(relevance.sum(dim=1), torch.ones(3))
    assert not relevance.requires_grad


def test_explaining_does_not_change_the_model_for_threads(tiny_config, make_batch):
    config = tiny_config()
    model, seen = build(config), []
    model.text_decoder.register_forward_hook(lambda *_: seen.append(model.training))
    model.multimodal_decoder.register_forward_hook(
        lambda *_: seen.append(len(model.captioning_pooler.attn._forward_hooks))
    )
    patch_relevance(model, make_batch(config).images[0], [1, 7, 9])
    assert seen == [True, 0]


@pytest.mark.parametrize("preset", ["grr_coca", "grr_coca_plus"])
def test_frozen_weights_and_half_precision_can_be_explained(tiny_config, make_batch, preset):
    config = tiny_config(preset)
    model, image = build(config), make_batch(config).images[0]
    expected = patch_relevance(model, image, [1, 7, 9])
    assert torch.equal(patch_relevance(model.requires_grad_(False), image, [1, 7, 9]), expected)
    torch.testing.assert_close(patch_relevance(model.bfloat16(), image, [1, 7, 9]), expected, atol=0.1, rtol=0)


def test_relevance_matches_finite_differences(tiny_config, make_batch):
    """An independent way to the gradient: nudge one weight of the pooler's attention, and see the logit."""
    config = tiny_config()
    model = build(config).double().eval()
    image, ids = make_batch(config).images[:1].double(), torch.tensor([[1, 7, 9]])
    pooler = model.captioning_pooler
    with torch.no_grad():
        patches = model.image_encoder(image)
        attended = attention_weights(pooler.attn, pooler.queries[None], patches)

        def logits(weights):
            """Of the second word, with the weights of each row."""
            count = len(weights)
            mixed = mix_values(AttentionRecord(weights, attended.values.expand(count, -1, -1, -1)))
            tokens = pooler.norm(pooler.attn.out_proj(mixed))
            return next_token_logits(model, ids[:, :-1].expand(count, -1), tokens)[:, 1, ids[0, 2]]

        count = attended.weights.numel()
        nudges = 1e-5 * torch.eye(count, dtype=torch.float64).view(count, *attended.weights.shape[1:])
        slopes = (logits(attended.weights + nudges) - logits(attended.weights - nudges)) / 2e-5
        shares = (attended.weights * slopes.view_as(attended.weights)).clamp(min=0).sum(dim=(0, 1, 2))
    relevance = patch_relevance(model, image[0], ids[0].tolist())
    torch.testing.assert_close(relevance[1].double(), shares / shares.sum(), atol=1e-4, rtol=1e-3)


# --- Words


@pytest.mark.parametrize("tokenizer", [train_bpe(["a cat and a dog"] * 3, 270), clip_bpe()], ids=["trained", "CLIP's"])
@pytest.mark.parametrize("caption", ["a cat and an extraordinary dog", "red-hot \u201ccafé\u201d 東京 ok", "cat", ""])
def test_every_token_belongs_to_the_word_that_it_is_part_of(tokenizer, caption):
    ids = tokenizer.encode(caption)
    words = group_words(tokenizer, ids)
    assert " ".join(word for word, _ in words) == tokenizer.decode(ids)
    assert [position for _, positions in words for position in positions] == list(range(len(ids)))
    for word, positions in words:
        if word.isascii():
            assert tokenizer.decode([ids[position] for position in positions]) == word


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_captions_are_explained_within_every_mode_of_gradients(tiny_config, make_batch, mode):
    config = tiny_config()
    model, image = build(config), make_batch(config).images[0]
    expected = patch_relevance(model, image, [1, 7, 9])
    with mode():
        assert torch.equal(patch_relevance(model, image.clone(), [1, 7, 9]), expected)


# --- Attention weights: those that are shown are those that the model computes with

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
    with record_attention(modules) as seen:
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
    with pytest.raises(ZeroDivisionError), record_attention([module]):
        _ = 1 / 0
    assert not module._forward_hooks
