"""Read and write `open_clip_config.json`, and check that our model supports its settings.

Every key in the file must be known to this module. Its value is compared with the tensors, must be a fixed value, or
has no effect.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grr_coca.common.errors import UserError, suggest_name
from grr_coca.common.files import read_json
from grr_coca.data.preprocess import Preprocess
from grr_coca.model.config import CoCaConfig, TransformerConfig
from grr_coca_open_clip.checkpoints.architecture import Heads

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's pixel mean and standard deviation (arXiv 2103.00020), which are open_clip's defaults."""

_B32: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {
        "image_size": 224,
        "layers": 12,
        "width": 768,
        "patch_size": 32,
        "attentional_pool": True,
        "attn_pooler_heads": 8,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 76,
        "vocab_size": 49408,
        "width": 512,
        "heads": 8,
        "layers": 12,
        "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {"context_length": 76, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
_L14: dict[str, Any] = {
    "embed_dim": 768,
    "vision_cfg": {**_B32["vision_cfg"], "layers": 24, "width": 1024, "patch_size": 14},
    "text_cfg": {**_B32["text_cfg"], "width": 768, "heads": 12},
    "multimodal_cfg": {**_B32["multimodal_cfg"], "width": 768, "heads": 12},
}
_MODELS = {"coca_ViT-B-32": _B32, "coca_ViT-L-14": _L14}
"""Published models, by open_clip's names."""
_UNSUPPORTED_MODELS = {
    "coca_base": "it has no pooler",
    "coca_roberta-ViT-B-32": "its text tower is one of Hugging Face",
}

_SWITCHES = {"vision_cfg": ("attentional_pool", "pooler"), "text_cfg": ("embed_cls", "class token")}
"""Required keys, and the part of a CoCa that each of them defines."""
_SHAPES = {
    "vision_cfg": {"image_size", "layers", "width", "patch_size", "mlp_ratio", "attn_pooler_queries"},
    "text_cfg": {"context_length", "vocab_size", "width", "layers", "mlp_ratio"},
    "multimodal_cfg": {"context_length", "vocab_size", "width", "layers"},
}
"""Keys whose values can also be inferred from tensor shapes."""
_HEADS = {"vision_cfg": {"head_width", "attn_pooler_heads"}, "text_cfg": {"heads"}, "multimodal_cfg": {"heads"}}
_DEFAULTS: dict[str, dict[str, int]] = {
    "vision_cfg": {"width": 768, "head_width": 64},
    "text_cfg": {"heads": 8},
    "multimodal_cfg": {"heads": 8},
}
"""open_clip's defaults for keys that define numbers of heads."""
_COMMON: dict[str, Any] = {
    **dict.fromkeys(("ls_init_value", "act_kwargs", "norm_kwargs", "block_type")),
    **dict.fromkeys(
        ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), False
    ),
}
_FIXED: dict[str, dict[str, Any]] = {
    "vision_cfg": {
        **_COMMON,
        "attentional_pool": True,
        "output_tokens": True,
        "no_ln_pre": False,
        "pos_embed_type": "learnable",
        "pool_type": "tok",
        "timm_model_name": None,
    },
    "text_cfg": {
        **_COMMON,
        "embed_cls": True,
        "output_tokens": True,
        "pad_id": 0,
        "proj_type": "linear",
        **dict.fromkeys(("no_causal_mask", "correct_cls_mask", "proj_bias"), False),
        **dict.fromkeys(("hf_model_name", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode")),
    },
    "multimodal_cfg": {"ls_init_value": None},
    "model_cfg": {"quick_gelu": False, "init_logit_bias": None, "pad_id": 0},
}
"""Keys, each with the only value that our model supports."""
_VISION_WITHOUT_EFFECT = """
patch_dropout final_ln_after_pool timm_model_pretrained timm_pool timm_proj timm_proj_bias timm_drop timm_drop_path
"""
_TEXT_WITHOUT_EFFECT = """
eos_id use_pad_mask final_ln_after_pool pool_type hf_model_pretrained hf_proj_type hf_pooler_type
"""
_MULTIMODAL_WITHOUT_EFFECT = "attn_pooler_heads n_queries dim_head mlp_ratio embed_cls output_tokens pad_id eos_id"
_MODEL_WITHOUT_EFFECT = """
embed_dim vision_cfg text_cfg multimodal_cfg custom_text init_logit_scale nonscalar_logit_scale cast_dtype
"""
_WITHOUT_EFFECT = {
    "vision_cfg": set(_VISION_WITHOUT_EFFECT.split()),
    "text_cfg": set(_TEXT_WITHOUT_EFFECT.split()),
    "multimodal_cfg": {*_COMMON, *_MULTIMODAL_WITHOUT_EFFECT.split()},
    "model_cfg": set(_MODEL_WITHOUT_EFFECT.split()),
}
"""Keys that CoCa ignores, that only matter in training, or that are read elsewhere."""


@dataclass(frozen=True)
class Settings:
    """Settings of an open_clip checkpoint.

    Attributes:
        where: Their source, for messages.
        model: `model_cfg` of the checkpoint. Empty if it is unknown.
        preprocess: `preprocess_cfg` of the checkpoint. Missing keys have open_clip's defaults.
    """

    where: str
    model: Mapping[str, Any]
    preprocess: Mapping[str, Any]

    @property
    def heads(self) -> Heads:
        """Numbers of attention heads."""
        vision, text, multimodal = (self._part(name) for name in ("vision_cfg", "text_cfg", "multimodal_cfg"))
        image = None if "width" not in vision else int(vision["width"]) // int(vision.get("head_width", 64))
        return Heads(image, text.get("heads"), multimodal.get("heads"), vision.get("attn_pooler_heads", 8))

    def check(self, config: CoCaConfig) -> None:
        """Compare the settings with the config that was inferred from the tensors.

        Raises:
            UserError: If a key contradicts the tensors.
        """
        for part, found in _shape_values(config).items():
            specified = self.model if part == "model_cfg" else self._part(part)
            for key, value in found.items():
                if key in specified and not _is_consistent(key, specified[key], found):
                    raise UserError(
                        f"{self.where}: {part}: {key} is {specified[key]}, but the tensors have {value}; "
                        "the weights belong to another model"
                    )

    def make_preprocess(self, image_size: int) -> Preprocess:
        """Create the preprocessing of images from the settings.

        Raises:
            UserError: If the preprocessing is not supported.
        """
        specified = dict(self.preprocess)
        for key, only in (("mode", "RGB"), ("interpolation", "bicubic"), ("resize_mode", "shortest")):
            if specified.get(key, only) != only:
                raise UserError(f"{self.where}: preprocess_cfg: {key} must be '{only}', got '{specified[key]}'")
        size = specified.get("size", image_size)
        if size not in (image_size, [image_size, image_size]):
            raise UserError(
                f"{self.where}: preprocess_cfg: size is {size}, but the model takes {image_size} pixels; correct it"
            )
        mean, std = (self._channels(key, specified.get(key, usual)) for key, usual in (("mean", MEAN), ("std", STD)))
        if min(std) <= 0:
            raise UserError(f"{self.where}: preprocess_cfg: std must be above 0, got {specified['std']!r}")
        return Preprocess(image_size, mean, std, order="resize_then_crop")

    def _channels(self, key: str, values: Any) -> tuple[float, float, float]:
        try:
            red, green, blue = map(float, values if isinstance(values, (list, tuple)) else (values,) * 3)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{self.where}: preprocess_cfg: {key} must be one number or three, got {values!r}"
            ) from error
        if not all(map(math.isfinite, (red, green, blue))):
            raise UserError(f"{self.where}: preprocess_cfg: {key} must be finite, got {values!r}")
        return red, green, blue

    def _part(self, name: str) -> Mapping[str, Any]:
        return self.model.get(name, {})


NO_SETTINGS = Settings("", {}, {})


def published_settings(name: str) -> Settings:
    """Return the settings of a published model, given open_clip's name. They have no preprocessing.

    Raises:
        UserError: If the model is unknown or unsupported.
    """
    if name in _UNSUPPORTED_MODELS:
        raise UserError(f"--model {name}: unsupported: {_UNSUPPORTED_MODELS[name]}")
    if name not in _MODELS:
        raise UserError(f"--model {name}: unknown open_clip CoCa; {suggest_name(name, _MODELS)}")
    return Settings(f"--model {name}", _MODELS[name], {})


def read_settings(path: Path) -> Settings:
    """Read the settings from a file.

    Raises:
        UserError: If the file cannot be read, or has an unsupported key or value.
    """
    content = read_json(path)
    model = content.get("model_cfg", content)
    if not isinstance(model, dict) or "embed_dim" not in model:
        raise UserError(f"{path}: 'model_cfg' is missing; use the file that open_clip writes")
    preprocess = content.get("preprocess_cfg") or {}
    if not isinstance(preprocess, dict):
        raise UserError(f"{path}: preprocess_cfg must be a mapping of keys to values, got {preprocess!r}")
    if "multimodal_cfg" not in model:
        raise UserError(f"{path}: 'multimodal_cfg' is missing, so this is a CLIP; pass a CoCa")
    _require_supported(path, "model_cfg", model)
    for part in ("vision_cfg", "text_cfg", "multimodal_cfg"):
        if not isinstance(model.get(part), dict):
            raise UserError(f"{path}: {part} must be a mapping of keys to values, got {model.get(part)!r}")
        _require_supported(path, part, model[part])
    with_defaults = {part: {**defaults, **model[part]} for part, defaults in _DEFAULTS.items()}
    return Settings(str(path), {**model, **with_defaults}, preprocess)


def _require_supported(path: Path, part: str, specified: Mapping[str, Any]) -> None:
    key, what = _SWITCHES.get(part, ("", ""))
    if key and not any(specified.get(given) for given in (key, "timm_model_name", "hf_model_name")):
        raise UserError(f"{path}: {part}: {key} is not set; a CoCa without its {what} is not supported")
    fixed, heads = _FIXED[part], _HEADS.get(part, set())
    shapes = _SHAPES.get(part, set()) | heads
    for key, value in specified.items():
        if key in heads and not (isinstance(value, int) and value > 0):
            raise UserError(f"{path}: {part}: {key} must be an integer above 0, got {value!r}")
        if key in fixed and value != fixed[key] and not (value in (None, {}) and not fixed[key]):
            raise UserError(f"{path}: {part}: {key} must be {fixed[key]!r}, got {value!r}")
        if key not in fixed and key not in shapes and key not in _WITHOUT_EFFECT[part]:
            raise UserError(f"{path}: {part}: unknown key {key}; remove it")


def _is_consistent(key: str, specified: object, found: Mapping[str, Any]) -> bool:
    if key == "mlp_ratio" and isinstance(specified, int | float):  # several ratios lead to the same width
        hidden_dim = _hidden_dim(found["width"], found[key])
        return hidden_dim <= found["width"] * specified < hidden_dim + 1
    return bool(specified == found[key])


def _mlp_ratio(transformer: TransformerConfig) -> float:
    """Return a ratio from which open_clip computes exactly the hidden width of the model."""
    ratio = transformer.hidden_dim / transformer.embed_dim
    is_right = _hidden_dim(transformer.embed_dim, ratio) == transformer.hidden_dim
    return ratio if is_right else math.nextafter(ratio, math.inf)


def _hidden_dim(width: int, mlp_ratio: float) -> int:
    """Return the hidden width that open_clip computes from a width and a ratio."""
    return int(width * mlp_ratio)


def _shape_values(config: CoCaConfig) -> dict[str, dict[str, Any]]:
    """Return the values of the keys in `_SHAPES`, taken from a config."""
    image, text, multimodal = config.own_image_encoder, config.text_decoder, config.multimodal_decoder
    return {
        "model_cfg": {"embed_dim": config.embed_dim},
        "vision_cfg": {
            "image_size": image.image_size,
            "patch_size": image.patch_size,
            "layers": image.transformer.num_layers,
            "width": image.transformer.embed_dim,
            "mlp_ratio": _mlp_ratio(image.transformer),
            "attn_pooler_queries": config.poolers.num_queries,
        },
        "text_cfg": {
            "context_length": text.context_length - 1,
            "vocab_size": text.vocab_size,
            "layers": text.transformer.num_layers,
            "width": text.transformer.embed_dim,
            "mlp_ratio": _mlp_ratio(text.transformer),
        },
        "multimodal_cfg": {
            "context_length": text.context_length - 1,
            "layers": multimodal.transformer.num_layers,
            "width": multimodal.transformer.embed_dim,
        },
    }


def make_model_cfg(config: CoCaConfig) -> dict[str, Any]:
    """Create open_clip's `model_cfg` for a config with the architecture `open_clip`."""
    specified = _shape_values(config)
    image = config.own_image_encoder.transformer
    return {
        **specified["model_cfg"],
        "vision_cfg": {
            **specified["vision_cfg"],
            "head_width": image.head_dim,
            "attentional_pool": True,
            "attn_pooler_heads": config.poolers.num_heads,
            "output_tokens": True,
        },
        "text_cfg": {
            **specified["text_cfg"],
            "heads": config.text_decoder.transformer.num_heads,
            "embed_cls": True,
            "output_tokens": True,
        },
        "multimodal_cfg": {
            **specified["multimodal_cfg"],
            "vocab_size": config.text_decoder.vocab_size,
            "heads": config.multimodal_decoder.transformer.num_heads,
        },
        "custom_text": True,
    }
