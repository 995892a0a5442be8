"""The comparison is what it says: models differ in the named parts, and in nothing else."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import get_args

import pytest
import torch
from model_configs import SET_BY_RECIPES, model_config

from grr_coca.common.dict_to_dataclass import differences
from grr_coca.common.errors import UserError
from grr_coca.model.build import build
from grr_coca.model.coca import CoCa
from grr_coca.model.config import Arrangement, CoCaConfig, Contrastive, FeedForward, Norm, Position, QKNorm, Stem
from grr_coca.model.presets import PRESETS, SIZES, geglu_hidden_dim, get_preset

BuildEmpty = Callable[[CoCaConfig], CoCa]


@pytest.fixture
def build_empty(monkeypatch: pytest.MonkeyPatch) -> BuildEmpty:
    """Build without memory, for counting."""
    # The package's `build` is the function, which hides the module of that name.
    monkeypatch.setattr(import_module("grr_coca.model.build"), "init_weights", lambda model, seed: None)

    def make(config: CoCaConfig) -> CoCa:
        with torch.device("meta"):
            return build(config)

    return make


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _image_parts(preset: str) -> tuple[str, str, str]:
    t = get_preset(preset, "tiny").image_encoder.transformer
    return t.norm, t.feed_forward, t.position


@pytest.mark.parametrize("size", SIZES)
def test_grr_and_baseline_differ_only_in_the_image_encoder(size, build_empty):
    grr, baseline = get_preset("grr_coca", size), get_preset("baseline_coca", size)
    assert grr.image_encoder != baseline.image_encoder
    assert replace(grr, image_encoder=baseline.image_encoder) == baseline
    for name in ("image_size", "patch_size"):
        assert getattr(grr.image_encoder, name) == getattr(baseline.image_encoder, name)

    def outside(config: CoCaConfig) -> dict[str, torch.Size]:
        weights = build_empty(config).state_dict()
        return {name: w.shape for name, w in weights.items() if not name.startswith("image_encoder.")}

    assert outside(grr) == outside(baseline)


def test_image_encoders_have_the_parts_of_their_names():
    assert {preset: _image_parts(preset) for preset in PRESETS} == {
        "grr_coca": ("rms", "geglu", "rope_2d"),
        "baseline_coca": ("layer", "gelu", "learned"),
        "coca": ("layer", "gelu", "learned"),
        "baseline_rms": ("rms", "gelu", "learned"),
        "baseline_geglu": ("layer", "geglu", "learned"),
        "baseline_geglu_4x": ("layer", "geglu", "learned"),
        "baseline_rope_1d": ("layer", "gelu", "rope_1d"),
        "baseline_rope_2d": ("layer", "gelu", "rope_2d"),
        "baseline_rms_geglu": ("rms", "geglu", "learned"),
        "baseline_rms_rope_2d": ("rms", "gelu", "rope_2d"),
        "baseline_geglu_rope_2d": ("layer", "geglu", "rope_2d"),
        "grr_coca_geglu_4x": ("rms", "geglu", "rope_2d"),
        "grr_coca_rope_1d": ("rms", "geglu", "rope_1d"),
        "grr_coca_parallel": ("rms", "geglu", "rope_2d"),
        "grr_coca_plus": ("rms", "geglu", "rope_2d"),
        "open_clip_coca": ("layer_1e-5", "gelu", "learned"),
    }


OTHER_POOLERS = ("grr_coca_parallel", "grr_coca_plus")


@pytest.mark.parametrize(
    ("preset", "differing"),
    [
        ("grr_coca+registers", {"image_encoder.num_registers": 4}),
        ("grr_coca+stem", {"image_encoder.stem": "convolutional"}),
        (
            "grr_coca+qk_norm",
            {f"{s}.transformer.qk_norm": "rms" for s in ("image_encoder", "text_decoder", "multimodal_decoder")},
        ),
        ("grr_coca+sigmoid", {"contrastive": "sigmoid"}),
        ("grr_coca_plus", {"poolers.num_queries": None}),
    ],
)
def test_each_arm_differs_from_grr_only_in_its_name(preset, differing):
    arm, grr = model_config(preset, "small"), get_preset("grr_coca", "small")
    assert {key: value for key, value, _ in differences(arm, grr)} == differing


@pytest.mark.parametrize("preset", [name for name in PRESETS if name not in ("coca", "open_clip_coca")])
def test_every_arm_has_the_text_decoders_of_grr(preset):
    grr = get_preset("grr_coca", "small")
    config = get_preset(preset, "small")
    assert replace(config, image_encoder=grr.image_encoder, poolers=grr.poolers) == grr
    assert (config.poolers == grr.poolers) == (preset not in OTHER_POOLERS)
    text = config.text_decoder.transformer
    assert (text.norm, text.feed_forward, text.position) == ("rms", "geglu", "rope_1d")


@pytest.mark.parametrize(
    ("preset", "size"),
    [(preset, "tiny") for preset in PRESETS]
    + [(preset, size) for size in SIZES if size != "tiny" for preset in ("grr_coca", "grr_coca_plus", "coca")],
)
def test_every_preset_and_every_size_builds(preset, size, build_empty):
    config = get_preset(preset, size)
    model = build_empty(config)
    assert len(model.image_encoder.blocks) == config.image_encoder.transformer.num_layers
    if config.poolers.num_queries is None:
        assert not list(model.captioning_pooler.parameters())
    else:
        assert model.captioning_pooler.queries.shape[0] == config.poolers.num_queries


@pytest.mark.parametrize("size", SIZES)
def test_grr_and_baseline_have_as_many_parameters(size, build_empty):
    grr, baseline = (build_empty(get_preset(preset, size)) for preset in ("grr_coca", "baseline_coca"))
    assert _count(grr) == pytest.approx(_count(baseline), rel=0.02)
    assert _count(grr.image_encoder) == pytest.approx(_count(baseline.image_encoder), rel=0.02)


@pytest.mark.parametrize("size", SIZES)
def test_full_width_geglu_adds_about_a_third_to_blocks(size, build_empty):
    wide, baseline = (build_empty(get_preset(p, size)) for p in ("grr_coca_geglu_4x", "baseline_coca"))
    ratio = _count(wide.image_encoder.blocks) / _count(baseline.image_encoder.blocks)
    assert ratio == pytest.approx(4 / 3, rel=0.02)


@pytest.mark.parametrize("embed_dim", [32, 64, 128, 256, 384, 512, 768, 1024])
@pytest.mark.parametrize("mlp_ratio", [4, 8])
def test_geglu_width_matches_the_parameters_of_an_mlp(embed_dim, mlp_ratio):
    hidden_dim = geglu_hidden_dim(embed_dim, mlp_ratio)
    assert hidden_dim % 8 == 0
    assert 3 * hidden_dim == pytest.approx(2 * mlp_ratio * embed_dim, rel=0.04)


def test_base_is_coca_base():
    """arXiv 2205.01917, table 1."""
    config = get_preset("coca", "base")
    image, text = config.image_encoder, config.text_decoder
    assert (image.image_size, image.patch_size, image.num_patches) == (288, 18, 256)
    for t in (image.transformer, text.transformer, config.multimodal_decoder.transformer):
        assert (t.num_layers, t.embed_dim, t.num_heads, t.hidden_dim) == (12, 768, 12, 3072)
        assert (t.norm, t.feed_forward, t.position) == ("layer", "gelu", "learned")
    assert text.vocab_size == 64_000
    assert (config.poolers.num_queries, config.poolers.arrangement) == (256, "cascade")


@pytest.mark.parametrize(("size", "millions"), [("b32", 253.56), ("l14", 638.45)])
def test_open_clips_models_have_their_numbers_of_parameters(build_empty, size, millions):
    """open_clip's docs/model_profile.csv; its patches are embedded without our bias."""
    config = get_preset("open_clip_coca", size)
    bias = config.image_encoder.transformer.embed_dim
    assert round((_count(build_empty(config)) - bias) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("choices", "used"),
    [
        (Norm, lambda c: {c.image_encoder.transformer.norm, c.text_decoder.transformer.norm, c.poolers.norm}),
        (FeedForward, lambda c: {c.image_encoder.transformer.feed_forward, c.text_decoder.transformer.feed_forward}),
        (Position, lambda c: {c.image_encoder.transformer.position, c.text_decoder.transformer.position}),
        (Arrangement, lambda c: {c.poolers.arrangement}),
        (bool, lambda c: {c.poolers.num_queries is None}),
        (bool, lambda c: {c.image_encoder.num_registers > 0}),
        (Stem, lambda c: {c.image_encoder.stem}),
        (QKNorm, lambda c: {c.image_encoder.transformer.qk_norm}),
        (Contrastive, lambda c: {c.contrastive}),
    ],
    ids=[
        "norm",
        "feed_forward",
        "position",
        "arrangement",
        "captioning pooler or none",
        "registers or none",
        "stem",
        "qk_norm",
        "contrastive",
    ],
)
def test_every_choice_is_used_by_a_preset_or_a_recipe(choices, used):
    found = set().union(*(used(model_config(name, "tiny")) for name in (*PRESETS, *SET_BY_RECIPES)))
    assert found == (set(get_args(choices)) or {True, False})


def test_unknown_name_suggests_the_nearest_name():
    with pytest.raises(UserError, match="unknown preset 'grr_cocoa'; did you mean 'grr_coca'"):
        get_preset("grr_cocoa", "tiny")
    with pytest.raises(UserError, match=r"unknown preset 'xyz'; valid names: .*baseline_coca"):
        get_preset("xyz", "tiny")
    with pytest.raises(UserError, match="unknown size 'smal'; did you mean 'small'"):
        get_preset("grr_coca", "smal")
