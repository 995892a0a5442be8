"""Recipes: strict about every key and value, with messages that name file, key and way out."""

import json
import re
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest
import yaml
from support import refusals, tiny_recipe

from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.errors import UserError
from grr_coca.data.augmentation import Augmentation
from grr_coca.data.preprocess import Framing, Preprocess
from grr_coca.data.sources.open import open_source, require_exists
from grr_coca.model.presets import PRESETS, SIZES, get_preset
from grr_coca.train.recipe import DataRecipe, ModelRecipe, OptimizerRecipe, Recipe, load_recipe, save_recipe

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))
MINIMAL = """\
data:
  train: pairs.tar
schedule:
  steps: 6
  warmup_steps: 1
"""


@pytest.fixture
def load(tmp_path):
    """Load a recipe of a given text."""

    def from_text(text: str) -> Recipe:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path)

    return from_text


def changed(*path: str, value: object) -> str:
    """The minimal recipe with one key set."""
    recipe = yaml.safe_load(MINIMAL)
    parent = recipe
    for key in path[:-1]:
        parent = parent.setdefault(key, {})
    parent[path[-1]] = value
    return yaml.safe_dump(recipe)


# --- Files


def test_saved_recipe_equals_the_loaded_one(tmp_path):
    recipe = replace(
        tiny_recipe(tmp_path / "a.tar"),
        data=DataRecipe(
            train=str(tmp_path / "ä.tar"),
            test={"test": str(tmp_path / "t.tar")},
            augmentation=Augmentation(scale=(0.8, 1.2), rotate=5.0),
        ),
        optimizer=OptimizerRecipe("muon", lr=3e-5),
        freeze=("image_encoder",),
        seed=7,
    )
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_saved_recipe_contains_every_setting_including_defaults(tmp_path, load):
    save_recipe(load(MINIMAL), tmp_path / "recipe.yaml")
    written = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert written["optimizer"] == to_dict(OptimizerRecipe())
    assert written.keys() == to_dict(load(MINIMAL)).keys()


def test_data_paths_are_relative_to_the_recipes_folder(load, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    data = "{train: sub/a-*.tar, mix: {sub/b-*.tar: 0.25}, val: ../v.tar, test: {t: t.tar}}"
    recipe = load(f"data: {data}\nschedule: {{steps: 1, warmup_steps: 0}}")
    assert recipe.data.mix == {str(tmp_path / "sub/b-*.tar"): 0.25}
    assert Path(recipe.data.train) == tmp_path / "sub/a-*.tar"
    assert Path(recipe.data.val).resolve() == tmp_path.parent / "v.tar"
    assert Path(recipe.data.test["t"]) == tmp_path / "t.tar"


def test_path_in_the_cache_is_in_the_corpus_folder(load, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    recipe = load(changed("data", "train", value="cache:icons/train-*.tar"))
    assert recipe.data.train == "/somewhere/grr-coca/icons/train-*.tar"
    with pytest.raises(UserError, match=r"`python scripts/build_datasets icons` builds it"):
        require_exists(recipe.data.train)
    with pytest.raises(UserError, match=r"no such file or folder.*`python scripts/build_datasets icons`"):
        open_source("cache:icons/val-*.tar")


@pytest.mark.parametrize("path", [p for p in RECIPES if "demo" not in p.name], ids=lambda path: path.stem)
def test_every_recipe_that_comes_with_the_code_loads(path):
    recipe = load_recipe(path)
    assert recipe.schedule.steps > 0


def test_missing_file_lists_the_recipes_next_to_it(tmp_path):
    (tmp_path / "health.yaml").write_text(MINIMAL)
    (tmp_path / "glyphs.yml").write_text(MINIMAL)
    with pytest.raises(UserError, match=r"helth\.yaml: no such recipe; its folder has glyphs\.yml, health\.yaml"):
        load_recipe(tmp_path / "helth.yaml")


@pytest.mark.parametrize(
    "content",
    [
        b"data: [unclosed",
        b"a: b: c",
        b"\xff\xfe\xfa",
        b"data: !!python/object:os.system x",
        b"seed: 2024-13-45",
        b"seed: 0x_",
        b"seed: !!int foo",
        b"seed: !!bool foo",
        b"seed: " + b"9" * 5000,
        b"[" * 500,
    ],
    ids=lambda content: content[:20].decode("latin-1"),
)
def test_invalid_yaml_raises_with_the_file(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"mine\.yaml: not a readable YAML file"):
        load_recipe(path)


def test_folder_in_place_of_a_recipe_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        load_recipe(tmp_path)


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b"])
def test_file_without_keys_is_an_error_that_names_it(load, text):
    with pytest.raises(UserError, match=r"mine\.yaml: expected a mapping"):
        load(text)


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        (MINIMAL + "optimizer: {lr: 1}\nseed: 1\noptimizer: {name: muon}\n", 8, "optimizer"),
        (MINIMAL + "  'steps': 7\n", 6, "steps"),
    ],
)
def test_duplicate_key_is_an_error_with_its_line(load, text, line, key):
    with pytest.raises(UserError, match=rf"mine\.yaml: line {line}: duplicate key '{key}'"):
        load(text)


def test_key_overrides_a_merged_key(load):
    recipe = load("data: {train: a.tar}\nschedule: {<<: &base {steps: 6, warmup_steps: 1}, steps: 7}\n")
    assert (recipe.schedule.steps, recipe.schedule.warmup_steps) == (7, 1)


# --- Keys and values


# How a mapping becomes a recipe, and what is said of unknown and missing keys and of values of the wrong kind, is in
# `common/test_dict_to_dataclass`.


@pytest.mark.parametrize(("setting", "message"), refusals(Path(__file__).with_name("recipe_refusals.txt")))
def test_invalid_value_is_an_error_with_file_and_key(load, tmp_path, setting, message):
    path, _, value = setting.partition(": ")
    with pytest.raises(UserError, match=f"^{re.escape(f'{tmp_path}/{message}')}$"):
        load(changed(*path.split("."), value=json.loads(value)))


def test_missing_key_is_an_error_that_names_it(load):
    with pytest.raises(UserError, match=r"mine\.yaml: schedule: key 'steps' is missing"):
        load("data: {train: pairs.tar}\nschedule: {warmup_steps: 1}\n")


@pytest.mark.parametrize(
    ("batch_size", "num_processes", "fitting"), [(10, 4, "8 or 12"), (3, 4, "4"), (7, 2, "6 or 8"), (1, 8, "8")]
)
def test_indivisible_batch_raises_with_valid_sizes(batch_size, num_processes, fitting):
    recipe = tiny_recipe(Path("pairs.tar"))
    recipe = replace(recipe, data=replace(recipe.data, batch_size=batch_size))
    with pytest.raises(UserError, match=rf"batch_size {batch_size} cannot be .* {num_processes} .*use {fitting}$"):
        recipe.require_even_shares(num_processes)
    recipe.require_even_shares(batch_size)


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        *(("optimizer.lr", text, float(text)) for text in ("1e-3", "3E-4", "1", "0.5")),  # YAML reads two as strings
        ("optimizer.clip_norm", ".inf", float("inf")),
        ("gradient_checkpointing", "1", 1.0),
        ("data.train", "/data/a.tar", "/data/a.tar"),
        ("data.mix", "{/a.tar: 0.0011, /b.tar: 0.9977}", {"/a.tar": 0.0011, "/b.tar": 0.9977}),
    ],
)
def test_value_is_read_in_every_notation_and_comes_back(load, tmp_path, key, written, value):
    recipe = load(changed(*key.split("."), value=yaml.safe_load(written)))
    assert reduce(getattr, key.split("."), recipe) == value
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


# --- The model that a recipe asks for


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_takes_the_recipes_sizes(name):
    config = ModelRecipe(name, "tiny", image_size=32, context_length=12).config(vocab_size=300)
    assert config.image_encoder.image_size == 32
    assert config.text_decoder.context_length == 12
    assert config.text_decoder.vocab_size == 300


def test_missing_keys_keep_values_of_the_size():
    config = ModelRecipe("grr_coca", "tiny").config(vocab_size=300)
    assert (config.image_encoder.image_size, config.text_decoder.context_length) == (64, 48)


def test_recipe_switches_the_models_options_on_and_off():
    everything = ModelRecipe("grr_coca", "tiny", num_registers=2, qk_norm="rms", contrastive="sigmoid").config(300)
    stacks = (everything.image_encoder, everything.text_decoder, everything.multimodal_decoder)
    assert [stack.transformer.qk_norm for stack in stacks] == ["rms"] * 3
    assert (everything.image_encoder.num_registers, everything.contrastive) == (2, "sigmoid")
    plain = get_preset("grr_coca", "tiny")
    off = {"num_registers": 0, "qk_norm": "none", "contrastive": "softmax"}
    assert ModelRecipe("grr_coca", "tiny", **off).config(plain.text_decoder.vocab_size) == plain


def test_depths_and_widths_may_differ_from_the_preset():
    plain = ModelRecipe("grr_coca", "tiny").config(300)
    keys = {"image_layers": 6, "image_dim": 192, "text_layers": 3, "text_dim": 96}
    config = ModelRecipe("grr_coca", "tiny", captions_from="queries", **keys).config(300)
    image, text = config.image_encoder.transformer, config.text_decoder.transformer
    assert (image.num_layers, image.embed_dim, image.num_heads, image.hidden_dim) == (6, 192, 6, 512)
    assert (text.num_layers, text.embed_dim, text.num_heads) == (3, 96, 3)
    assert config.multimodal_decoder.transformer == text
    assert (config.embed_dim, config.poolers.num_heads) == (plain.embed_dim, 3)
    assert image.head_dim == plain.image_encoder.transformer.head_dim
    as_it_is = ModelRecipe("grr_coca", "tiny", image_layers=4, image_dim=128, text_layers=2, text_dim=128)
    assert as_it_is.config(300) == plain


def test_captions_of_any_preset_can_attend_to_the_patches():
    preset = get_preset("grr_coca_plus", "tiny")
    vocab_size = preset.text_decoder.vocab_size
    assert ModelRecipe("grr_coca", "tiny", captions_from="patches").config(vocab_size) == preset
    assert ModelRecipe("baseline_coca", "tiny", captions_from="patches").config(300).poolers.num_queries is None
    assert ModelRecipe("baseline_coca", "tiny", captions_from="queries").config(300).poolers.num_queries == 16


@pytest.mark.parametrize("size", SIZES)
def test_queries_serve_captions_without_a_captioning_pooler(size):
    with_pooler = ModelRecipe("grr_coca", size).config(300)
    assert ModelRecipe("grr_coca_plus", size, captions_from="queries").config(300) == with_pooler


def test_pixels_are_scaled_by_the_recipe():
    model = ModelRecipe("grr_coca", "tiny", pixel_mean=1.0, pixel_std=0.4)
    assert model.preprocess(model.config(300)) == Preprocess(64, (1.0,) * 3, (0.4,) * 3)


def test_recipe_can_frame_drawings():
    for written, framing in (({}, Framing()), ({"margin": 0.1}, Framing(margin=0.1)), (None, None)):
        model = from_dict(ModelRecipe, {"preset": "grr_coca", "size": "tiny", "framing": written})
        assert model.preprocess(model.config(300)).framing == framing


POWER_OF_TWO = "stem 'convolutional' .* needs a patch_size that is a power of two, not"


@pytest.mark.parametrize(
    ("preset", "size", "changes", "message"),
    [
        ("open_clip_coca", "b32", {"captions_from": "patches"}, "'patches' does not match preset 'open_clip_coca'"),
        (
            "open_clip_coca",
            "b32",
            {"stem": "convolutional"},
            "architecture 'open_clip' needs stem 'patchify', got 'convolutional'",
        ),
        (
            "grr_coca",
            "tiny",
            {"image_dim": 100},
            "image_dim 100 must be a multiple of 32, .*; use 96 or 128",
        ),
        (
            "grr_coca",
            "tiny",
            {"text_dim": 130},
            "text_dim 130 must be a multiple of 32, .*; use 128 or 160",
        ),
        ("grr_coca", "tiny", {"image_size": 60}, "image_size 60 must be divisible by patch_size 16; use 48 or 64"),
        ("grr_coca", "base", {"stem": "convolutional"}, f"{POWER_OF_TWO} 18; use 16 or 32"),
        ("grr_coca", "l14", {"stem": "convolutional"}, f"{POWER_OF_TWO} 14; use 8 or 16"),
        ("grr_coca", "tiny", {"stem": "convolutional", "patch_size": 1}, f"{POWER_OF_TWO} 1; use 2$"),
        ("grr_coca", "tiny", {"stem": "convolutional", "patch_size": 3}, f"{POWER_OF_TWO} 3; use 2 or 4"),
        *(("grr_coca", "tiny", {key: value}, key) for key in ("image_size", "context_length") for value in (0, -8, 3)),
    ],
)
def test_invalid_model_raises_with_key_and_suggestion(preset, size, changes, message):
    with pytest.raises(UserError, match=message):
        ModelRecipe(preset, size, **changes).config(300)
