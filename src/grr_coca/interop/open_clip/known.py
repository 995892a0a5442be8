"""What is known of open_clip's CoCa: the published models, and which keys of their settings say what."""

from typing import Any

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's mean and deviation of the pixels (arXiv 2103.00020), open_clip's where a checkpoint names none."""

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
MODELS = {"coca_ViT-B-32": _B32, "coca_ViT-L-14": _L14}
"""The published models by open_clip's names."""
REFUSED_MODELS = {
    "coca_base": "it has no pooler",
    "coca_roberta-ViT-B-32": "its text tower is one of Hugging Face",
}

SHAPES = {
    "vision_cfg": {"image_size", "layers", "width", "patch_size", "mlp_ratio", "attn_pooler_queries"},
    "text_cfg": {"context_length", "vocab_size", "width", "layers", "mlp_ratio"},
    "multimodal_cfg": {"context_length", "vocab_size", "width", "layers"},
}
"""Keys that the shapes of tensors tell too."""
HEADS = {
    "vision_cfg": {"head_width", "attn_pooler_heads"},
    "text_cfg": {"heads"},
    "multimodal_cfg": {"heads"},
}
DEFAULTS: dict[str, dict[str, int]] = {
    "vision_cfg": {"width": 768, "head_width": 64},
    "text_cfg": {"heads": 8},
    "multimodal_cfg": {"heads": 8},
}
"""What open_clip takes, whatever the tensors are, for numbers of heads that are not said."""
_COMMON: dict[str, Any] = {
    "ls_init_value": None,
    "act_kwargs": None,
    "norm_kwargs": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
FIXED: dict[str, dict[str, Any]] = {
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
        "no_causal_mask": False,
        "correct_cls_mask": False,
        "proj_type": "linear",
        "proj_bias": False,
        "hf_model_name": None,
        "hf_tokenizer_name": None,
        "tokenizer_kwargs": None,
        "tokenizer_mode": None,
    },
    "multimodal_cfg": {"ls_init_value": None},
    "model_cfg": {"quick_gelu": False, "init_logit_bias": None, "pad_id": 0},
}
"""Keys that may have one value alone: with another, the model would be another."""
WITHOUT_EFFECT = {
    "vision_cfg": {
        "patch_dropout",
        "final_ln_after_pool",
        "timm_model_pretrained",
        "timm_pool",
        "timm_proj",
        "timm_proj_bias",
        "timm_drop",
        "timm_drop_path",
    },
    "text_cfg": {
        "eos_id",
        "use_pad_mask",
        "final_ln_after_pool",
        "pool_type",
        "hf_model_pretrained",
        "hf_proj_type",
        "hf_pooler_type",
    },
    "multimodal_cfg": {
        *_COMMON,
        "attn_pooler_heads",
        "n_queries",
        "dim_head",
        "mlp_ratio",
        "embed_cls",
        "output_tokens",
        "pad_id",
        "eos_id",
    },
    "model_cfg": {
        "embed_dim",
        "vision_cfg",
        "text_cfg",
        "multimodal_cfg",
        "custom_text",
        "init_logit_scale",
        "nonscalar_logit_scale",
        "cast_dtype",
    },
}
"""Keys that CoCa ignores, or that matter in training alone, and those that are looked at elsewhere."""
