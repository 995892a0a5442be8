"""Configs from plain mappings: every wrong key and value is an error that names the key and the way out."""

import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
import yaml

from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.errors import UserError
from grr_coca.model.config import (
    CoCaConfig,
    ImageEncoderConfig,
    MultimodalDecoderConfig,
    TextDecoderConfig,
    TransformerConfig,
)
from grr_coca.model.presets import PRESETS, SIZES, get_preset
from grr_coca.train.recipe import OptimizerRecipe, Recipe


@dataclass(frozen=True)
class Leaf:
    width: int
    kind: Literal["round", "square"] = "round"
    ratio: float = 0.5
    on: bool = False


@dataclass(frozen=True)
class Tree:
    leaf: Leaf
    name: str
    limit: int | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    parts: tuple[Literal["a", "b"], ...] = ()
    paths: dict[str, str] = field(default_factory=dict)


def _tree(leaf: dict[str, object] | None = None, **keys: object) -> dict[str, object]:
    return {"leaf": {"width": 3, **(leaf or {})}, "name": "oak", **keys}


def _message(data: object, cls: type = Tree) -> str:
    with pytest.raises(UserError) as error:
        from_dict(cls, data, "tree.yaml")
    return str(error.value)


def test_from_dict_fills_children_and_defaults():
    tree = from_dict(Tree, _tree({"kind": "square"}, parts=["a", "b"], betas=[0.5, 1], paths={"x": "y"}, limit=4))
    assert tree == Tree(Leaf(3, "square"), "oak", 4, (0.5, 1.0), ("a", "b"), {"x": "y"})
    assert from_dict(Tree, _tree()) == Tree(Leaf(3), "oak")


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (_tree(width=3), ["tree.yaml", "unknown key 'width'", "did you mean 'leaf.width'?"]),
        (_tree(nmae="x"), ["tree.yaml", "unknown key 'nmae'", "did you mean 'name'?"]),
        (_tree({"widht": 3}), ["tree.yaml: leaf", "unknown key 'widht'", "did you mean 'width'?"]),
        (_tree({"qqqqq": 3}), ["tree.yaml: leaf", "'qqqqq'", "valid names: kind, on, ratio, width"]),
        (_tree({7: 3}), ["tree.yaml: leaf", "unknown key '7'"]),
        ({"name": "oak"}, ["tree.yaml", "key 'leaf' is missing"]),
        ({"name": "oak", "leaf": {}}, ["tree.yaml: leaf", "key 'width' is missing"]),
        (_tree({"width": "3"}), ["tree.yaml: leaf: width", "expected int", "'3'"]),
        (_tree({"width": 3.0}), ["tree.yaml: leaf: width", "expected int", "3.0"]),
        (_tree({"width": True}), ["tree.yaml: leaf: width", "expected int", "True"]),
        (_tree({"width": None}), ["tree.yaml: leaf: width", "expected int", "None"]),
        (_tree({"ratio": True}), ["tree.yaml: leaf: ratio", "expected float", "True"]),
        (_tree({"ratio": "much"}), ["tree.yaml: leaf: ratio", "expected float", "'much'"]),
        (_tree({"on": 1}), ["tree.yaml: leaf: on", "expected bool", "1"]),
        (_tree(name=5), ["tree.yaml: name", "expected str", "5"]),
        (_tree(limit="many"), ["tree.yaml: limit", "expected int", "'many'"]),
        (_tree({"kind": "sqare"}), ["tree.yaml: leaf: kind", "invalid value 'sqare'", "did you mean 'square'?"]),
        (_tree({"kind": ["round"]}), ["tree.yaml: leaf: kind", "invalid value"]),
        (_tree(parts=["a", "c"]), ["tree.yaml: parts", "invalid value 'c'", "valid names: a, b"]),
        (_tree(parts="a"), ["tree.yaml: parts", "expected a list", "'a'"]),
        (_tree(betas=[0.9]), ["tree.yaml: betas", "expected 2 values, found 1"]),
        (_tree(betas=[0.9, "x"]), ["tree.yaml: betas", "expected float", "'x'"]),
        (_tree(paths=["x"]), ["tree.yaml: paths", "expected a mapping"]),
        (_tree(paths={"x": 3}), ["tree.yaml: paths: x", "expected str", "3"]),
        (_tree(paths={1: "y"}), ["tree.yaml: paths: key 1", "expected str", "1"]),
        (_tree({"ratio": 10**400}), ["tree.yaml: leaf: ratio", "expected float", "100"]),
        ({"name": "oak", "leaf": 3}, ["tree.yaml: leaf", "expected a mapping", "3"]),
        ([1, 2], ["tree.yaml", "expected a mapping"]),
        (None, ["tree.yaml", "expected a mapping"]),
    ],
    ids=str,
)
def test_wrong_key_or_value_is_named_with_its_path(data, parts):
    message = _message(data)
    for part in parts:
        assert part in message


def test_float_accepts_text_in_scientific_notation():
    assert from_dict(Leaf, {"width": 1, "ratio": "1e-3"}).ratio == 0.001
    ratio = from_dict(Leaf, {"width": 1, "ratio": 2}).ratio
    assert (ratio, type(ratio)) == (2.0, float)


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_round_trips_through_dict(preset):
    config = get_preset(preset, "tiny")
    assert from_dict(CoCaConfig, yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


def test_dict_has_only_plain_values():
    plain = to_dict(Tree(Leaf(3), "oak", parts=("a",), paths={"x": "y"}))
    assert plain["leaf"] == {"width": 3, "kind": "round", "ratio": 0.5, "on": False}
    assert (plain["parts"], plain["betas"], plain["paths"], plain["limit"]) == (["a"], [0.9, 0.98], {"x": "y"}, None)


# --- Values that fit their types and not each other ---

IMAGE = get_preset("grr_coca", "tiny").image_encoder
TEXT = get_preset("grr_coca", "tiny").text_decoder


def _transformer(**keys: Any) -> TransformerConfig:
    return replace(TEXT.transformer, **keys)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _transformer(num_heads=3), "embed_dim 128 must be divisible by num_heads 3"),
        (lambda: _transformer(embed_dim=12, num_heads=4), "divisible by 2, not 3"),
        (lambda: _transformer(embed_dim=8, num_heads=4, position="rope_2d"), "divisible by 4, not 2"),
        (lambda: ImageEncoderConfig(65, 8, IMAGE.transformer), "patch_size 8; use 64 or 72$"),
        (lambda: ImageEncoderConfig(5, 8, IMAGE.transformer), "patch_size 8; use 8$"),
        (lambda: replace(IMAGE, num_registers=-1), "num_registers must be at least 0, got -1"),
        (lambda: SIZES["tiny"].with_sizes(text_dim=20), "width of an attention head; use 32$"),
        (lambda: replace(get_preset("grr_coca", "tiny"), embed_dim=-1), "embed_dim must be at least 1, got -1"),
        (lambda: replace(TEXT, vocab_size=0), "vocab_size must be at least 1, got 0"),
        (lambda: TextDecoderConfig(100, 3, TEXT.transformer), "context_length 3 leaves no room for a word"),
        (lambda: TextDecoderConfig(100, 40, _transformer(position="rope_2d")), "position 'rope_2d' is not for text"),
        (lambda: MultimodalDecoderConfig(_transformer(position="none")), "position 'none' is not for text; use"),
        (
            lambda: replace(
                get_preset("grr_coca", "tiny"), multimodal_decoder=MultimodalDecoderConfig(_transformer(embed_dim=64))
            ),
            "multimodal_decoder embed_dim 64 must equal text_decoder embed_dim 128",
        ),
        (
            lambda: replace(
                get_preset("grr_coca", "tiny"), poolers=replace(get_preset("grr_coca", "tiny").poolers, num_heads=5)
            ),
            "poolers num_heads 5 must divide the text width 128",
        ),
    ],
)
def test_widths_that_do_not_fit_are_named(make, message):
    with pytest.raises(UserError, match=re.escape(message).replace(r"\$", "$")):
        make()


def test_older_config_without_options_is_read():
    config = get_preset("grr_coca", "tiny")
    data = to_dict(config)
    del data["contrastive"], data["image_encoder"]["num_registers"]
    for part in ("image_encoder", "text_decoder", "multimodal_decoder"):
        del data[part]["transformer"]["qk_norm"]
    assert from_dict(CoCaConfig, data) == config


def test_huge_value_is_abbreviated_in_messages():
    many: object = "x"
    for _ in range(12):
        many = [many] * 10
    with pytest.raises(UserError, match=r"found \[\[\[") as caught:
        from_dict(Recipe, {"data": {"train": many}}, "a recipe")
    assert len(str(caught.value)) < 1000
    with pytest.raises(UserError, match="invalid value") as caught:
        from_dict(OptimizerRecipe, {"name": many}, "an optimizer")
    assert len(str(caught.value)) < 1000
