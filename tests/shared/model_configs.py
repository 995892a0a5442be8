"""Configs of models by name: a preset, or a preset with a key that a recipe sets."""

from grr_coca.model.config import CoCaConfig
from grr_coca.model.presets import Size, get_preset
from grr_coca.train.recipe import ModelRecipe

SET_BY_RECIPES: dict[str, dict[str, object]] = {
    "grr_coca+registers": {"num_registers": 4},
    "grr_coca+stem": {"stem": "convolutional"},
    "grr_coca+qk_norm": {"qk_norm": "rms"},
    "grr_coca+sigmoid": {"contrastive": "sigmoid"},
}


def model_keys(name: str) -> dict[str, object]:
    """Keys of the recipe's `model` that give this model: the preset, and what is set beside it."""
    return {"preset": name.partition("+")[0], **SET_BY_RECIPES.get(name, {})}


def model_config(name: str, size: str | Size) -> CoCaConfig:
    """The config of a preset, or of one of SET_BY_RECIPES, with the preset's own vocabulary."""
    keys = model_keys(name)
    vocab_size = get_preset(str(keys["preset"]), size).text_decoder.vocab_size
    return ModelRecipe(size=size, **keys).config(vocab_size)  # type: ignore[arg-type]
