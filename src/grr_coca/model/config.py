"""Configuration of a model: nested frozen dataclasses, in which the kinds of each part are the values of a `Literal`.

Widths are in channels, and image sizes in pixels. A config never repeats a field of a config that it contains.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from grr_coca.common import plugins
from grr_coca.common.errors import UserError, suggest_multiples

Norm = Literal["rms", "layer", "layer_1e-5"]
FeedForward = Literal["geglu", "gelu"]
Position = Literal["rope_2d", "rope_1d", "learned"]
Arrangement = Literal["cascade", "parallel", "shared"]
Stem = Literal["patchify", "convolutional"]
QKNorm = Literal["none", "rms"]
Contrastive = Literal["softmax", "sigmoid"]
CaptionsFrom = Literal["queries", "patches"]
OWN_ARCHITECTURE = "coca"
"""Name of CoCa's own architecture."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


_MAX_SIZE = 2**24
_MAX_LAYERS = 1000
_MAX_PATCHES = 2**18
"""Maximum widths and lengths, depth, and number of patches. Building a larger model would fill the memory before its
weights are checked."""


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        largest = _MAX_LAYERS if name == "num_layers" else _MAX_SIZE
        _require(value is None or value <= largest, f"{name} must be at most {largest:,}")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Stack of pre-norm blocks: its sizes, and the three parts that GRR-CoCa changes (norm, feed-forward, positions).

    Like every config in this module, it raises a `UserError` when it is created with invalid or contradictory values.

    Attributes:
        num_layers: Number of blocks.
        embed_dim: Width of the tokens, a multiple of `num_heads`.
        num_heads: Number of attention heads.
        hidden_dim: Width of the feed-forward layers.
        norm: Kind of norm. `rms` is RMSNorm. `layer_1e-5` is a LayerNorm that adds 1e-5 to the variance; `layer` adds
            1e-6.
        feed_forward: Kind of feed-forward layer: GEGLU without biases, or `gelu`, an MLP with biases.
        qk_norm: Normalization of queries and keys in self-attention. It is a choice instead of a boolean, because the
            literature also uses LayerNorm (arXiv 2302.05442) and unit length (arXiv 2010.04245).
        position: Kind of positions: axial RoPE over the rows and columns of patches (`rope_2d`), RoPE over a sequence
            (`rope_1d`), or vectors that are added to the tokens (`learned`). `none` is only for features, whose encoder
            has already added positions.
    """

    num_layers: int
    embed_dim: int
    num_heads: int
    hidden_dim: int
    norm: Norm
    feed_forward: FeedForward
    position: Literal[Position, "none"]
    qk_norm: QKNorm = "none"

    def __post_init__(self) -> None:
        _require_positive(self, "num_layers", "embed_dim", "num_heads", "hidden_dim")
        _require(
            self.embed_dim % self.num_heads == 0,
            f"embed_dim {self.embed_dim} must be divisible by num_heads {self.num_heads}",
        )
        channels = {"rope_2d": 4, "rope_1d": 2}.get(self.position, 1)
        _require(
            self.head_dim % channels == 0,
            f"position '{self.position}' needs head_dim (embed_dim / num_heads) divisible by {channels}, "
            f"not {self.head_dim}",
        )

    @property
    def min_parameters(self) -> int:
        """Lower bound on the number of parameters in the blocks, from the matrices of attention and two matrices of
        each feed-forward layer."""
        return self.num_layers * self.embed_dim * (4 * self.embed_dim + 2 * self.hidden_dim)

    @property
    def head_dim(self) -> int:
        """Number of channels per attention head."""
        return self.embed_dim // self.num_heads


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Vision transformer, which converts pixels to patch tokens.

    Attributes:
        image_size: Side of a square image in pixels, a multiple of `patch_size`.
        patch_size: Side of a square patch in pixels.
        transformer: Blocks over the patches.
        num_registers: Number of learned tokens that pass through the blocks together with the patches, and are dropped
            after the last block.
        stem: Layers before the linear map to the width of the encoder. Either images are split into patches, or
            convolutions halve height and width until each patch has one position (arXiv 2106.14881).
    """

    image_size: int
    patch_size: int
    transformer: TransformerConfig
    num_registers: int = 0
    stem: Stem = "patchify"

    def __post_init__(self) -> None:
        _require_positive(self, "image_size", "patch_size")
        _require(
            self.transformer.position != "none",
            "position 'none' is only for a feature_encoder; use 'rope_2d', 'rope_1d' or 'learned'",
        )
        if self.stem == "convolutional":
            self._require_power_of_two()
        _require(self.num_registers >= 0, f"num_registers must be at least 0, got {self.num_registers}")
        if self.image_size % self.patch_size:
            raise UserError(
                f"image_size {self.image_size} must be divisible by patch_size {self.patch_size}; "
                f"{suggest_multiples(self.image_size, self.patch_size)}"
            )
        _require(
            self.num_patches <= _MAX_PATCHES,
            f"image_size {self.image_size} with patch_size {self.patch_size} makes {self.num_patches:,} patches; "
            f"the maximum is {_MAX_PATCHES:,}",
        )

    def _require_power_of_two(self) -> None:
        """Check that the patch size is a power of two, and at least 2, as a convolutional stem requires.

        Raises:
            UserError: If it is not.
        """
        lower = 1 << (max(2, self.patch_size).bit_length() - 1)
        nearest = f"{lower} or {2 * lower}" if self.patch_size > lower else f"{lower}"
        _require(
            self.patch_size == lower,
            f"stem 'convolutional' halves the sides of an image one or more times, so it needs a patch_size that is a "
            f"power of two, not {self.patch_size}; use {nearest}",
        )

    @property
    def grid_size(self) -> int:
        """Number of patches per side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Number of patch tokens per image."""
        return self.grid_size**2


@dataclass(frozen=True, kw_only=True)
class FeatureEncoderConfig:
    """Blocks over features, which are the tokens of a frozen third-party image encoder.

    The blocks add no positions, because the features already have them.

    Attributes:
        feature_dim: Width of the frozen encoder's tokens.
        keep: Whether the features of an image are all its tokens, or only their mean.
        num_tokens: Number of feature tokens per image. None if this number differs between images.
        transformer: Blocks over the features, with position `none`.
    """

    feature_dim: int
    keep: Literal["tokens", "mean"] = "tokens"
    num_tokens: int | None
    transformer: TransformerConfig

    def __post_init__(self) -> None:
        _require_positive(self, "feature_dim", "num_tokens")
        _require((self.num_tokens or 0) <= _MAX_PATCHES, f"num_tokens must be at most {_MAX_PATCHES:,}")
        _require(
            self.keep == "tokens" or self.num_tokens == 1,
            f"num_tokens must be 1 if keep is 'mean', got {self.num_tokens}",
        )
        position = self.transformer.position
        _require(position == "none", f"position '{position}' of a feature_encoder must be 'none'")


def _require_text_position(transformer: TransformerConfig) -> None:
    position = transformer.position
    _require(position not in ("rope_2d", "none"), f"position '{position}' is not for text; use 'rope_1d' or 'learned'")


@dataclass(frozen=True)
class TextDecoderConfig:
    """Unimodal half of the text decoder.

    Attributes:
        vocab_size: Number of token ids.
        context_length: Maximum number of tokens in a caption, including [BOS], [EOS] and [CLS], at least 4.
        transformer: Blocks over the tokens of a caption.
    """

    vocab_size: int
    context_length: int
    transformer: TransformerConfig

    def __post_init__(self) -> None:
        _require_text_position(self.transformer)
        _require(
            self.context_length >= 4, f"context_length {self.context_length} leaves no room for a word; use 4 or more"
        )
        _require_positive(self, "vocab_size", "context_length")


@dataclass(frozen=True)
class MultimodalDecoderConfig:
    """Multimodal half of the text decoder. It reads the tokens of the unimodal half, so both must have the same width.

    RoPE is applied in both halves. Learned positions are added only in the unimodal half.
    """

    transformer: TransformerConfig

    def __post_init__(self) -> None:
        _require_text_position(self.transformer)


@dataclass(frozen=True, kw_only=True)
class PoolersConfig:
    """Attentional poolers, which have the width of the text decoder.

    Attributes:
        num_queries: Number of learned queries of the captioning pooler, or of the only pooler. If None, the model has
            no captioning pooler, and captions attend to the patch tokens.
        num_heads: Number of attention heads of each pooler.
        norm: Kind of norm in the poolers.
        arrangement: Way in which the poolers are combined. In a `cascade`, the contrastive pooler reads the tokens of
            the captioning pooler. With `parallel`, the contrastive pooler reads the patch tokens. With `shared`, there
            is only one pooler: its first query yields the image embedding, and its other queries yield the image
            tokens.
    """

    num_queries: int | None
    num_heads: int
    norm: Norm
    arrangement: Arrangement

    def __post_init__(self) -> None:
        _require_positive(self, "num_queries", "num_heads")
        _require(
            self.arrangement != "shared" or (self.num_queries or 0) > 1,
            f"arrangement 'shared' needs at least two queries, got {self.num_queries}",
        )


@dataclass(frozen=True, kw_only=True)
class CoCaConfig:
    """Complete model.

    Attributes:
        embed_dim: Width of the joint embedding space of images and texts.
        image_encoder: The model's own image encoder. None if a feature encoder replaces it.
        text_decoder: The unimodal half of the text decoder.
        multimodal_decoder: The multimodal half of the text decoder, which has the same width.
        poolers: The poolers between the image tokens and the text decoder.
        contrastive: The kind of contrastive loss: a softmax over the batch (CoCa), or a sigmoid for each pair (SigLIP).
            This choice is part of the model, because the sigmoid loss needs a learned bias and a different initial
            temperature.
        architecture: `coca`, or the name of another `Architecture`, such as `open_clip`.
        feature_encoder: The blocks over features of a frozen encoder. Their tokens follow those of the model's own
            image encoder. None if the model takes no features.
    """

    embed_dim: int
    image_encoder: ImageEncoderConfig | None
    text_decoder: TextDecoderConfig
    multimodal_decoder: MultimodalDecoderConfig
    poolers: PoolersConfig
    contrastive: Contrastive = "softmax"
    architecture: str = OWN_ARCHITECTURE
    feature_encoder: FeatureEncoderConfig | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "embed_dim")
        text, multimodal = self.text_decoder.transformer, self.multimodal_decoder.transformer
        _require(
            text.embed_dim == multimodal.embed_dim,
            f"multimodal_decoder embed_dim {multimodal.embed_dim} must equal text_decoder embed_dim {text.embed_dim}",
        )
        _require(
            text.embed_dim % self.poolers.num_heads == 0,
            f"poolers num_heads {self.poolers.num_heads} must divide the text width {text.embed_dim}",
        )
        widths = {encoder.transformer.embed_dim for encoder in self.pooled_encoders}
        _require(bool(widths), "a model needs an image_encoder or a feature_encoder; add one")
        _require(
            len(widths) == 1, f"image_encoder and feature_encoder must have the same embed_dim, got {sorted(widths)}"
        )
        _require(
            self.feature_encoder is None or self.architecture == OWN_ARCHITECTURE,
            f"architecture '{self.architecture}' takes no features; remove feature_encoder",
        )
        if self.architecture == OWN_ARCHITECTURE:
            _require(self.poolers.arrangement != "shared", "arrangement 'shared' needs architecture 'open_clip'")
        else:
            find_architecture(self.architecture).check(self)

    @property
    def own_image_encoder(self) -> ImageEncoderConfig:
        """The model's own image encoder.

        Raises:
            UserError: If the model has no image encoder.
        """
        if self.image_encoder is None:
            raise UserError("this model takes features of a frozen encoder; use a model with its own image encoder")
        return self.image_encoder

    @property
    def pooled_encoders(self) -> "tuple[ImageEncoderConfig | FeatureEncoderConfig, ...]":
        """Encoders whose tokens the poolers read, in the order of these tokens."""
        return tuple(encoder for encoder in (self.image_encoder, self.feature_encoder) if encoder is not None)

    @property
    def transformers(self) -> tuple[TransformerConfig, ...]:
        """Configs of the blocks in all stacks."""
        return tuple(part.transformer for part in (*self.pooled_encoders, self.text_decoder, self.multimodal_decoder))

    @property
    def image_dim(self) -> int:
        """Width of the tokens that the poolers read."""
        return self.pooled_encoders[0].transformer.embed_dim

    @property
    def num_image_tokens(self) -> int | None:
        """Number of tokens that the poolers read. None if this number differs between images."""
        own = 0 if self.image_encoder is None else self.image_encoder.num_patches
        if self.feature_encoder is None:
            return own
        return None if self.feature_encoder.num_tokens is None else own + self.feature_encoder.num_tokens


class Architecture(Protocol):
    """Architecture from another package, registered under its name in the entry-point group `grr_coca.architectures`.

    Its config is a `CoCaConfig`, and each of its models is a `CoCa` with other parts, so everything that works with a
    CoCa model also works with a model of this architecture.

    Attributes:
        keys: Values that `grr_coca.model.checkpoint_files.FIXED_KEYS` have in the `config.json` of this architecture.
            Its checkpoints are recognized by these values.
        reserves_padding: Whether the token id 0 is reserved for padding.
    """

    keys: Mapping[tuple[str, ...], str]
    reserves_padding: bool

    def check(self, config: CoCaConfig) -> None:
        """Check that a config has only parts of this architecture.

        Raises:
            UserError: If the config has other parts.
        """
        ...

    def build(self, config: CoCaConfig) -> Any:
        """Build the `CoCa` that a config defines, with uninitialized weights."""
        ...


def find_architecture(name: str) -> Architecture:
    """Return the architecture with the given name.

    Raises:
        UserError: If no installed package provides the architecture.
    """
    found: Architecture | None = plugins.find("grr_coca.architectures", name)
    if found is None:
        raise UserError(f"unknown architecture '{name}'; install the package that provides it")
    return found
