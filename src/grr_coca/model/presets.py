"""Presets of models, by name. A preset is a function that takes a size and returns a full config.

GRR-CoCa and Baseline CoCa differ only in three parts of the image encoder. The presets between them have one or two of
GRR-CoCa's parts, so that all eight combinations exist. Widths, depths and the kind of RoPE are our choices; see
`docs/design.md`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from grr_coca.common.errors import UserError, suggest_multiples, suggest_name
from grr_coca.model.config import (
    CaptionsFrom,
    CoCaConfig,
    ImageEncoderConfig,
    MultimodalDecoderConfig,
    PoolersConfig,
    QKNorm,
    TextDecoderConfig,
    TransformerConfig,
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Depths, widths and lengths of a model. The preset determines the model's parts.

    Attributes:
        image_size: Side of an image in pixels.
        patch_size: Side of a patch in pixels.
        image_layers: Number of layers in the image encoder.
        image_dim: Width of the image encoder.
        image_heads: Number of attention heads in the image encoder.
        text_layers: Number of layers in the unimodal half of the text decoder. The multimodal half has the same number.
        text_dim: Width of the text decoder and of the poolers.
        text_heads: Number of attention heads in the text decoder, and in the poolers of all presets except
            `open_clip_coca`.
        vocab_size: Number of token ids. The tokenizer of a new model replaces this number.
        context_length: Maximum number of tokens in a caption, including [BOS], [EOS] and [CLS]. For
            `open_clip_coca`, the number does not include [CLS].
        num_queries: Number of queries of the captioning pooler.
        embed_dim: Width of the joint embedding space.
        multimodal_mlp_ratio: Width of a GELU feed-forward layer in the multimodal decoder, in units of `text_dim`. A
            GEGLU layer has about two thirds of this width. `open_clip_coca` ignores this value.
    """

    image_size: int
    patch_size: int
    image_layers: int
    image_dim: int
    image_heads: int
    text_layers: int
    text_dim: int
    text_heads: int
    vocab_size: int
    context_length: int
    num_queries: int
    embed_dim: int
    multimodal_mlp_ratio: int = 4

    def with_sizes(
        self,
        *,
        image_layers: int | None = None,
        image_dim: int | None = None,
        text_layers: int | None = None,
        text_dim: int | None = None,
    ) -> "Size":
        """Return the size with other depths and widths. The width of attention heads stays the same, so their number
        changes.

        Raises:
            UserError: If a width is not a multiple of the width of a head.
        """
        widths = {
            "image": (image_dim, self.image_dim, self.image_heads),
            "text": (text_dim, self.text_dim, self.text_heads),
        }
        changes: dict[str, int] = {}
        for name, (dim, default, heads) in widths.items():
            if dim is not None and dim % (default // heads):
                width = default // heads
                raise UserError(
                    f"{name}_dim {dim} must be a multiple of {width}, the width of an attention head; "
                    f"{suggest_multiples(dim, width)}"
                )
            if dim is not None:
                changes |= {f"{name}_dim": dim, f"{name}_heads": dim // (default // heads)}
        layers = {"image_layers": image_layers, "text_layers": text_layers}
        return replace(self, **changes, **{name: count for name, count in layers.items() if count is not None})


SIZES = {
    # Training takes minutes on a CPU core.
    "tiny": Size(
        image_size=64, patch_size=16, image_layers=4, image_dim=128, image_heads=4,
        text_layers=2, text_dim=128, text_heads=4, vocab_size=2048, context_length=48,
        num_queries=16, embed_dim=128,
    ),
    # Training takes hours on one GPU.
    "small": Size(
        image_size=224, patch_size=16, image_layers=12, image_dim=384, image_heads=6,
        text_layers=6, text_dim=384, text_heads=6, vocab_size=16384, context_length=64,
        num_queries=64, embed_dim=384,
    ),
    # CoCa-Base: arXiv 2205.01917, table 1.
    "base": Size(
        image_size=288, patch_size=18, image_layers=12, image_dim=768, image_heads=12,
        text_layers=12, text_dim=768, text_heads=12, vocab_size=64000, context_length=64,
        num_queries=256, embed_dim=768,
    ),
    # Size of open_clip's coca_ViT-B-32. Each of its multimodal layers has two feed-forwards of 4 x width, one after
    # self-attention and one after cross-attention. Our layers have one feed-forward, which is therefore twice as wide.
    "b32": Size(
        image_size=224, patch_size=32, image_layers=12, image_dim=768, image_heads=12,
        text_layers=12, text_dim=512, text_heads=8, vocab_size=49408, context_length=76,
        num_queries=256, embed_dim=512, multimodal_mlp_ratio=8,
    ),
    # Size of open_clip's coca_ViT-L-14.
    "l14": Size(
        image_size=224, patch_size=14, image_layers=24, image_dim=1024, image_heads=16,
        text_layers=12, text_dim=768, text_heads=12, vocab_size=49408, context_length=76,
        num_queries=256, embed_dim=768, multimodal_mlp_ratio=8,
    ),
}  # fmt: skip

OPEN_CLIP_POOLER_HEADS = 8

Preset = Callable[[str | Size], CoCaConfig]
"""Function that returns a config in a named or custom size. It raises a `UserError` if the size is unknown or invalid.
"""


def _original_parts(num_layers: int, embed_dim: int, num_heads: int) -> TransformerConfig:
    return TransformerConfig(
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        hidden_dim=4 * embed_dim,
        norm="layer",
        feed_forward="gelu",
        position="learned",
    )


def geglu_hidden_dim(embed_dim: int, mlp_ratio: int = 4) -> int:
    """Return the hidden width at which GEGLU's three matrices have as many parameters as the two matrices of an MLP.

    This width is two thirds of `mlp_ratio * embed_dim` (Shazeer, arXiv 2002.05202), rounded to a multiple of 64
    channels. Below a width of 512, multiples of 64 would be too coarse, so the result is rounded to a multiple of 8.
    """
    multiple = 64 if embed_dim >= 512 else 8
    return max(multiple, round(2 * mlp_ratio * embed_dim / 3 / multiple) * multiple)


def coca(size: str | Size) -> CoCaConfig:
    """Return the config of the original CoCa: LayerNorm, GELU feed-forwards and learned positions everywhere."""
    s = size_of(size)
    image = _original_parts(s.image_layers, s.image_dim, s.image_heads)
    text = _original_parts(s.text_layers, s.text_dim, s.text_heads)
    multimodal = replace(text, hidden_dim=s.multimodal_mlp_ratio * s.text_dim)
    return CoCaConfig(
        embed_dim=s.embed_dim,
        image_encoder=ImageEncoderConfig(s.image_size, s.patch_size, image),
        text_decoder=TextDecoderConfig(s.vocab_size, s.context_length, text),
        multimodal_decoder=MultimodalDecoderConfig(multimodal),
        poolers=PoolersConfig(num_queries=s.num_queries, num_heads=s.text_heads, norm="layer", arrangement="cascade"),
    )


def baseline_coca(size: str | Size) -> CoCaConfig:
    """Return the config of baseline CoCa: text decoder and poolers of GRR-CoCa, with CoCa's original image encoder."""
    s, config = size_of(size), coca(size)
    text = replace(
        config.text_decoder.transformer,
        norm="rms",
        feed_forward="geglu",
        position="rope_1d",
        hidden_dim=geglu_hidden_dim(s.text_dim),
    )
    multimodal = replace(text, hidden_dim=geglu_hidden_dim(s.text_dim, s.multimodal_mlp_ratio))
    return replace(
        config,
        text_decoder=replace(config.text_decoder, transformer=text),
        multimodal_decoder=MultimodalDecoderConfig(multimodal),
        poolers=replace(config.poolers, norm="rms"),
    )


def baseline_geglu(size: str | Size) -> CoCaConfig:
    """Return the config of baseline CoCa with GEGLU in the image encoder, with nearly the same number of parameters."""
    config = baseline_coca(size)
    hidden_dim = geglu_hidden_dim(config.own_image_encoder.transformer.embed_dim)
    return _with_image_parts(config, feed_forward="geglu", hidden_dim=hidden_dim)


def _make_variant(preset: Preset, **parts: object) -> Preset:
    return lambda size: _with_image_parts(preset(size), **parts)


def _with_image_parts(config: CoCaConfig, **parts: object) -> CoCaConfig:
    image = config.own_image_encoder
    transformer = replace(image.transformer, **parts)  # type: ignore[arg-type]
    return replace(config, image_encoder=replace(image, transformer=transformer))


baseline_rms = _make_variant(baseline_coca, norm="rms")
baseline_geglu_4x = _make_variant(baseline_coca, feed_forward="geglu")
"""GEGLU with a hidden width of 4 x width, which gives the image encoder a third more parameters."""
baseline_rope_1d = _make_variant(baseline_coca, position="rope_1d")
"""RoPE over the patches in raster order."""
baseline_rope_2d = _make_variant(baseline_coca, position="rope_2d")
"""Axial RoPE over rows and columns of patches."""
baseline_rms_geglu = _make_variant(baseline_geglu, norm="rms")
baseline_rms_rope_2d = _make_variant(baseline_coca, norm="rms", position="rope_2d")
baseline_geglu_rope_2d = _make_variant(baseline_geglu, position="rope_2d")
grr_coca = _make_variant(baseline_geglu, norm="rms", position="rope_2d")
"""GRR-CoCa: the image encoder also has RMSNorm, axial RoPE, and GEGLU with nearly the same number of parameters."""
grr_coca_geglu_4x = _make_variant(baseline_geglu_4x, norm="rms", position="rope_2d")
grr_coca_rope_1d = _make_variant(grr_coca, position="rope_1d")


def grr_coca_parallel(size: str | Size) -> CoCaConfig:
    """Return the config of a GRR-CoCa whose contrastive pooler reads the patch tokens, in parallel with the captioning
    pooler.
    """
    config = grr_coca(size)
    return replace(config, poolers=replace(config.poolers, arrangement="parallel"))


def grr_coca_plus(size: str | Size) -> CoCaConfig:
    """Return the config of a GRR-CoCa whose captions attend to the patch tokens, as in `studies/plus/*.yaml`."""
    config = grr_coca(size)
    return replace(config, poolers=replace(config.poolers, num_queries=None))


def open_clip_coca(size: str | Size) -> CoCaConfig:
    """Return the config of open_clip's CoCa, for its checkpoints: `b32` is `coca_ViT-B-32`, `l14` is `coca_ViT-L-14`.

    See `docs/open-clip.md` for the differences from `coca`. open_clip's context does not count [CLS], so ours is one
    token longer.
    """
    s, config = size_of(size), coca(size)
    image, text = config.own_image_encoder, config.text_decoder
    text_parts = replace(text.transformer, norm="layer_1e-5")
    return replace(
        config,
        architecture="open_clip",
        image_encoder=replace(image, transformer=replace(image.transformer, norm="layer_1e-5")),
        text_decoder=replace(text, context_length=s.context_length + 1, transformer=text_parts),
        multimodal_decoder=MultimodalDecoderConfig(text_parts),
        poolers=PoolersConfig(
            num_queries=s.num_queries, num_heads=OPEN_CLIP_POOLER_HEADS, norm="layer_1e-5", arrangement="shared"
        ),
    )


PRESETS: dict[str, Preset] = {
    "grr_coca": grr_coca,
    "baseline_coca": baseline_coca,
    "coca": coca,
    "baseline_rms": baseline_rms,
    "baseline_geglu": baseline_geglu,
    "baseline_geglu_4x": baseline_geglu_4x,
    "baseline_rope_1d": baseline_rope_1d,
    "baseline_rope_2d": baseline_rope_2d,
    "baseline_rms_geglu": baseline_rms_geglu,
    "baseline_rms_rope_2d": baseline_rms_rope_2d,
    "baseline_geglu_rope_2d": baseline_geglu_rope_2d,
    "grr_coca_geglu_4x": grr_coca_geglu_4x,
    "grr_coca_rope_1d": grr_coca_rope_1d,
    "grr_coca_parallel": grr_coca_parallel,
    "grr_coca_plus": grr_coca_plus,
    "open_clip_coca": open_clip_coca,
}


def get_preset(name: str, size: str | Size) -> CoCaConfig:
    """Return the config of a preset by name, in a named or custom size.

    Raises:
        UserError: If the preset or the size does not exist. The message suggests a similar name, or lists valid names.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset '{name}'; {suggest_name(name, PRESETS)}")
    return PRESETS[name](size)


def with_qk_norm(config: CoCaConfig, qk_norm: QKNorm) -> CoCaConfig:
    """Return the config with the given normalization of queries and keys in all three stacks."""
    image, text, multimodal = config.own_image_encoder, config.text_decoder, config.multimodal_decoder
    return replace(
        config,
        image_encoder=replace(image, transformer=replace(image.transformer, qk_norm=qk_norm)),
        text_decoder=replace(text, transformer=replace(text.transformer, qk_norm=qk_norm)),
        multimodal_decoder=replace(multimodal, transformer=replace(multimodal.transformer, qk_norm=qk_norm)),
    )


def with_captions_from(config: CoCaConfig, captions_from: CaptionsFrom, size: str | Size) -> CoCaConfig:
    """Return a config whose captions attend to the captioning pooler or to the patch tokens.

    A captioning pooler has the number of queries that the size specifies.
    """
    num_queries = size_of(size).num_queries if captions_from == "queries" else None
    return replace(config, poolers=replace(config.poolers, num_queries=num_queries))


def size_of(size: str | Size) -> Size:
    """Return the size with the given name. A `Size` is returned unchanged.

    Raises:
        UserError: If no size has that name. The message suggests a similar name, or lists valid names.
    """
    if isinstance(size, Size):
        return size
    if size not in SIZES:
        raise UserError(f"unknown size '{size}'; {suggest_name(size, SIZES)}")
    return SIZES[size]
