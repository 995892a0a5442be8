"""The composed model: what comes out in every arrangement, and what training can reach."""

from itertools import product

import pytest
import torch

from grr_coca.model.attention import Rotary
from grr_coca.model.build import build
from grr_coca.model.losses import LossWeights, batch_loss
from grr_coca.train.optimizer import freeze
from grr_coca.train.step import autocast, faster_pass_precision

ARRANGEMENTS = list(product(("cascade", "parallel"), (None, 1, 5), ((48, 32), (32, 48), (32, 32))))


@pytest.mark.parametrize(("arrangement", "num_queries", "widths"), ARRANGEMENTS, ids=str)
@pytest.mark.parametrize("preset", ["grr_coca", "coca"])
def test_shapes_are_the_same_in_every_arrangement_of_the_poolers(
    tiny_config, make_batch, preset, arrangement, num_queries, widths
):
    image_dim, text_dim = widths
    config = tiny_config(preset, image_dim, text_dim, num_queries=num_queries, arrangement=arrangement)
    model, batch = build(config), make_batch(config, num_words=(3, 7))
    output = model(batch.images, batch.token_ids, batch.lengths)
    tokens = model.encode_image(batch.images).tokens
    assert tokens.shape == ((2, 16, image_dim) if num_queries is None else (2, num_queries, text_dim))
    assert output.image_embedding.shape == output.text_embedding.shape == (2, 24)
    assert output.states.shape == (4 + 8, text_dim) == (len(batch.next_tokens), text_dim)
    for embedding in (output.image_embedding, output.text_embedding):
        torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(2))


def test_cascade_and_parallel_poolers_read_their_inputs(tiny_config):
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for arrangement, reads_caption_tokens in (("cascade", True), ("parallel", False)):
        model = build(tiny_config(arrangement=arrangement))
        model.encode_image(image).embedding.sum().backward()
        assert (model.captioning_pooler.queries.grad is not None) == reads_caption_tokens


@pytest.mark.parametrize("poolers", [{}, {"arrangement": "parallel"}, {"num_queries": None}], ids=str)
@pytest.mark.parametrize("weights", [LossWeights(0.0, 2.0), LossWeights(1.0, 0.0), LossWeights()], ids=str)
@pytest.mark.parametrize("preset", ["grr_coca", "coca"])
def test_all_parameters_have_gradients_with_zero_weights(tiny_config, make_batch, preset, weights, poolers):
    config = tiny_config(preset, **poolers)
    model = build(config)
    batch_loss(model, make_batch(config), weights).total.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("preset", ["grr_coca", "coca", "open_clip_coca"])
def test_every_parameter_moves_the_loss(tiny_config, make_batch, preset):
    """A part that is built and then bypassed has a gradient of zero."""
    config = tiny_config(preset)
    model = build(config)
    batch_loss(model, make_batch(config)).total.backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.abs().max() > 0] == []


@pytest.mark.parametrize(
    ("part", "stands", "moves"),
    [
        (
            "image_encoder",
            ["image_encoder", "captioning_pooler", "contrastive_pooler", "image_proj"],
            ["text_decoder", "text_proj", "multimodal_decoder", "logit_scale"],
        ),
        ("image_backbone", ["image_encoder"], ["captioning_pooler", "contrastive_pooler", "image_proj"]),
        ("text_decoder", ["text_decoder", "text_proj"], ["image_encoder", "multimodal_decoder"]),
        ("multimodal_decoder", ["multimodal_decoder"], ["image_encoder", "text_decoder"]),
    ],
)
def test_freezing_a_part_freezes_only_its_parameters(tiny_config, part, stands, moves):
    model = build(tiny_config())
    freeze(model, [part])
    trainable = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable.isdisjoint(stands)
    assert trainable >= set(moves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_change_of_type_leaves_every_rotary_table_exact(tiny_config, dtype):
    before, model = build(tiny_config()), build(tiny_config()).to(dtype)
    tables = [module.table for module in model.modules() if isinstance(module, Rotary)]
    expected = [module.table for module in before.modules() if isinstance(module, Rotary)]
    assert len(tables) == 3
    assert all(parameter.dtype == dtype for parameter in model.parameters())
    for table, exact in zip(tables, expected, strict=True):
        assert table.dtype == torch.complex64
        assert torch.equal(table, exact)


def test_bf16_model_stays_near_the_fp32_model(tiny_config, make_batch):
    config = tiny_config()
    batch = make_batch(config)
    exact = build(config)(batch.images, batch.token_ids, batch.lengths)
    rounded = build(config).bfloat16()(batch.images.bfloat16(), batch.token_ids, batch.lengths)
    assert rounded.image_embedding.dtype == rounded.text_embedding.dtype == torch.float32
    torch.testing.assert_close(rounded.image_embedding, exact.image_embedding, rtol=0, atol=0.05)
    torch.testing.assert_close(rounded.text_embedding, exact.text_embedding, rtol=0, atol=0.05)


@pytest.mark.parametrize("preset", ["grr_coca", "coca"])
def test_losses_under_bf16_autocast_stay_near_fp32(tiny_config, make_batch, preset):
    config = tiny_config(preset)
    model, batch, device = build(config), make_batch(config), torch.device("cpu")
    width = config.image_encoder.transformer.embed_dim
    exact = batch_loss(model, batch)
    for precision, tolerance in (("bf16", 0.02), ("fp32", 0.0), (faster_pass_precision(width, device), 0.02)):
        context = autocast(precision, device)
        for _ in range(2):  # a run enters it at every step
            with context:
                losses = batch_loss(model, batch)
            torch.testing.assert_close(losses.total.float(), exact.total, rtol=tolerance, atol=0)
