"""Build a model from its config: choose its parts, and sample its initial weights.

Another `Architecture` chooses its own parts; all models get their initial weights here.

| parameters | sampled from |
|---|---|
| matrices | N(0, 1 / fan_in) |
| matrices that end a residual branch (`out_proj`, `down_proj`) | N(0, 1 / fan_in) / sqrt(number of branches) |
| token and [CLS] embeddings | N(0, 1 / width) |
| learned queries | N(0, 1), as long as normalized tokens; shorter queries would attend to all tokens equally |
| learned positions, registers, class token | N(0, 0.02²), as in ViT; for patches, see `sine_cosine_positions` |
| biases of the patch embedding and of convolutions | N(0, 0.02²), so that blank patches do not become zero vectors |
| weights of norms; other biases | 1; 0 |
| `logit_scale`, `logit_bias` | softmax: CoCa's log(1 / 0.07), no bias; sigmoid: SigLIP's log 10 and -10 |

Random values depend only on the seed and the name of the parameter, so parts that two models have in common start with
equal weights.
"""

import hashlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from grr_coca.common.errors import UserError
from grr_coca.model.attention import (
    CrossAttention,
    LearnedPosition,
    NoPosition,
    Rotary,
    SelfAttention,
    grid_angles,
    line_angles,
)
from grr_coca.model.blocks import (
    GEGLU,
    MLP,
    AttentionalPooler,
    Block,
    ConvStem,
    CrossBlock,
    NoPooler,
    Patchify,
    RMSNorm,
    cascade,
    parallel,
)
from grr_coca.model.coca import CoCa, FeatureEncoder, ImageEncoder, MultimodalDecoder, TextDecoder
from grr_coca.model.config import (
    OWN_ARCHITECTURE,
    CoCaConfig,
    FeatureEncoderConfig,
    ImageEncoderConfig,
    MultimodalDecoderConfig,
    Norm,
    TextDecoderConfig,
    TransformerConfig,
    find_architecture,
)


def build(config: CoCaConfig, seed: int = 0) -> CoCa:
    """Build the model that a config defines. Its random weights depend only on `seed`.

    Raises:
        UserError: If the config's architecture is not installed.
    """
    model = build_without_weights(config)
    init_weights(model, seed)
    return model


def build_without_weights(config: CoCaConfig) -> CoCa:
    """Build the model that a config defines, with uninitialized weights, all of which the caller must write or load.

    Raises:
        UserError: If the config's architecture is not installed.
    """
    with _NoDefaultInit():
        if config.architecture == OWN_ARCHITECTURE:
            return _coca(config)
        model: CoCa = find_architecture(config.architecture).build(config)
        return model


class _NoDefaultInit(TorchFunctionMode):
    """Context in which PyTorch's layers do not sample initial weights.

    `init_weights` or a checkpoint overwrites all weights anyway, and sampling 400 million numbers takes seconds.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _coca(config: CoCaConfig) -> CoCa:
    text, poolers = config.text_decoder, config.poolers
    image_dim, text_dim = config.image_dim, text.transformer.embed_dim

    captioning_pooler: nn.Module = NoPooler()
    tokens_dim = image_dim  # width of the tokens that captions attend to
    if poolers.num_queries is not None:
        captioning_pooler = _pooler(config, poolers.num_queries, context_dim=image_dim)
        tokens_dim = text_dim

    return CoCa(
        image_encoder=None if config.image_encoder is None else _image_encoder(config.image_encoder),
        feature_encoder=None if config.feature_encoder is None else _feature_encoder(config.feature_encoder),
        captioning_pooler=captioning_pooler,
        contrastive_pooler=_pooler(config, 1, tokens_dim if poolers.arrangement == "cascade" else image_dim),
        arrange=_ARRANGE[poolers.arrangement],
        image_proj=nn.Linear(text_dim, config.embed_dim, bias=False),
        text_decoder=_text_decoder(text),
        text_proj=nn.Linear(text_dim, config.embed_dim, bias=False),
        multimodal_decoder=_multimodal_decoder(config.multimodal_decoder, text, tokens_dim),
        contrastive=config.contrastive,
    )


def _image_encoder(config: ImageEncoderConfig) -> ImageEncoder:
    t, rotary, stem = config.transformer, _image_rotary(config), _stem(config)
    return ImageEncoder(
        stem=stem,
        patch_embed=nn.Linear(stem.num_features, t.embed_dim),
        position=_position(t, config.num_patches),
        num_registers=config.num_registers,
        blocks=nn.ModuleList(_block(t, rotary) for _ in range(t.num_layers)),
        norm=_norm(t.norm, t.embed_dim),
    )


def _feature_encoder(config: FeatureEncoderConfig) -> FeatureEncoder:
    t = config.transformer
    return FeatureEncoder(
        feature_proj=nn.Linear(config.feature_dim, t.embed_dim, bias=False),
        blocks=nn.ModuleList(_block(t, None) for _ in range(t.num_layers)),
        norm=_norm(t.norm, t.embed_dim),
    )


def _stem(config: ImageEncoderConfig) -> Patchify | ConvStem:
    t = config.transformer
    match config.stem:
        case "patchify":
            return Patchify(config.patch_size)
        case "convolutional":
            return ConvStem(config.patch_size, t.embed_dim, partial(_norm, t.norm))


def _text_decoder(config: TextDecoderConfig) -> TextDecoder:
    t = config.transformer
    rotary = _text_rotary(t, config.context_length)
    return TextDecoder(
        context_length=config.context_length,
        tok_embeddings=nn.Embedding(config.vocab_size, t.embed_dim),
        position=_position(t, config.context_length),
        blocks=nn.ModuleList(_block(t, rotary) for _ in range(t.num_layers)),
        cls_norm=_norm(t.norm, t.embed_dim),
    )


def _multimodal_decoder(config: MultimodalDecoderConfig, text: TextDecoderConfig, tokens_dim: int) -> MultimodalDecoder:
    t = config.transformer
    rotary = _text_rotary(t, text.context_length)
    return MultimodalDecoder(
        blocks=nn.ModuleList(_cross_block(t, tokens_dim, rotary) for _ in range(t.num_layers)),
        norm=_norm(t.norm, t.embed_dim),
        lm_head=nn.Linear(t.embed_dim, text.vocab_size, bias=False),
    )


def _pooler(config: CoCaConfig, num_queries: int, context_dim: int) -> AttentionalPooler:
    dim, poolers = config.text_decoder.transformer.embed_dim, config.poolers
    attn = CrossAttention(dim, context_dim, poolers.num_heads)
    return AttentionalPooler(num_queries, dim, attn, _norm(poolers.norm, dim))


_ARRANGE = {"cascade": cascade, "parallel": parallel}


def _block(t: TransformerConfig, rotary: Rotary | None) -> Block:
    return Block(
        attn_norm=_norm(t.norm, t.embed_dim),
        attn=_self_attention(t, rotary),
        ffn_norm=_norm(t.norm, t.embed_dim),
        feed_forward=_feed_forward(t),
    )


def _cross_block(t: TransformerConfig, context_dim: int, rotary: Rotary | None) -> CrossBlock:
    return CrossBlock(
        attn_norm=_norm(t.norm, t.embed_dim),
        attn=_self_attention(t, rotary),
        cross_attn_norm=_norm(t.norm, t.embed_dim),
        cross_attn=CrossAttention(t.embed_dim, context_dim, t.num_heads),
        ffn_norm=_norm(t.norm, t.embed_dim),
        feed_forward=_feed_forward(t),
    )


def _self_attention(t: TransformerConfig, rotary: Rotary | None) -> SelfAttention:
    # Queries and keys share the weight of one norm, because only the product of their scales matters.
    qk_norm = RMSNorm(t.head_dim) if t.qk_norm == "rms" else None
    return SelfAttention(t.embed_dim, t.num_heads, rotary, qk_norm)


def _norm(choice: Norm, dim: int) -> nn.Module:
    match choice:
        case "rms":
            return RMSNorm(dim)
        case "layer":
            return nn.LayerNorm(dim, eps=1e-6)
        case "layer_1e-5":
            return nn.LayerNorm(dim, eps=1e-5)


def _feed_forward(t: TransformerConfig) -> nn.Module:
    match t.feed_forward:
        case "geglu":
            return GEGLU(t.embed_dim, t.hidden_dim)
        case "gelu":
            return MLP(t.embed_dim, t.hidden_dim)


def _position(t: TransformerConfig, num_positions: int) -> nn.Module:
    """Return the layer that adds positions to the tokens before the first block.

    RoPE does not add positions, but rotates queries and keys.
    """
    match t.position:
        case "learned":
            return LearnedPosition(num_positions, t.embed_dim)
        case "rope_1d" | "rope_2d" | "none":
            return NoPosition()


def _image_rotary(config: ImageEncoderConfig) -> Rotary | None:
    t = config.transformer
    match t.position:
        case "rope_1d":
            angles = line_angles(config.num_patches, t.head_dim)
        case "rope_2d":
            angles = grid_angles(config.grid_size, t.head_dim)
        case _:
            return None
    return Rotary(F.pad(angles, (0, 0, 0, config.num_registers)))  # angle 0 for registers, which have no position


def _text_rotary(t: TransformerConfig, context_length: int) -> Rotary | None:
    return Rotary(line_angles(context_length, t.head_dim)) if t.position == "rope_1d" else None


POSITION_STD = 0.02
INITIAL_TEMPERATURE = {"softmax": 0.07, "sigmoid": 0.1}
INITIAL_LOGIT_BIAS = -10.0


@torch.no_grad()
def init_weights(model: CoCa, seed: int) -> None:
    """Initialize all weights of a model, in place, as the table of this module describes."""
    branches = _branch_ends(model)
    small = ("position.embedding", "registers", "patch_embed.bias", "conv.bias")
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    for name, parameter in model.named_parameters():
        if id(parameter) in matrices:
            num_branches = branches.get(id(parameter), 1)
            sample_normal(parameter, (parameter.shape[1] * num_branches) ** -0.5, name, seed)
        elif name == "logit_scale":
            parameter.fill_(-math.log(INITIAL_TEMPERATURE["softmax" if model.logit_bias is None else "sigmoid"]))
        elif name == "logit_bias":
            parameter.fill_(INITIAL_LOGIT_BIAS)
        elif name.endswith(("cls_embedding", "tok_embeddings.weight")):
            sample_normal(parameter, parameter.shape[-1] ** -0.5, name, seed)
        elif name.endswith("queries"):
            sample_normal(parameter, 1.0, name, seed)
        elif name.endswith(small) or ".class_token." in name:
            sample_normal(parameter, POSITION_STD, name, seed)
        elif name.endswith(("norm.weight", "affine.weight")):
            parameter.fill_(1.0)
        else:
            assert name.endswith("bias"), f"no rule initializes {name}"
            parameter.zero_()


@torch.no_grad()
def sine_cosine_positions(model: CoCa) -> None:
    """Initialize the learned positions of patches, in place, with the sines and cosines of their rows and columns.

    The angles are those of axial RoPE, over the full width (see `grid_angles`).

    Raises:
        UserError: If the model has no learned patch positions.
    """
    position = None if model.image_encoder is None else model.image_encoder.position
    if not isinstance(position, LearnedPosition):
        raise UserError(
            "model: image_positions 'sine_cosine' needs learned patch positions, which this preset does not have; "
            "remove image_positions"
        )
    num_positions, dim = position.embedding.shape
    angles = grid_angles(math.isqrt(num_positions), dim)
    position.embedding.copy_(torch.cat([angles.sin(), angles.cos()], dim=1))


def _branch_ends(model: CoCa) -> dict[int, int]:
    """For each matrix that ends a residual branch, return the number of branches that add to the same tokens.

    The keys are the `id`s of the matrices. Both halves of the text decoder add to the same tokens.
    """
    text = [*model.text_decoder.blocks, *model.multimodal_decoder.blocks]
    found: dict[int, int] = {}
    for blocks in (*(list(encoder.blocks) for encoder in model.pooled_encoders), text):
        ends = [_last_matrix_of(branch) for block in blocks for branch in block.branches]  # type: ignore[union-attr]
        found |= {id(end.weight): len(ends) for end in ends}
    return found


def _last_matrix_of(branch: nn.Module) -> nn.Linear:
    """Return the matrix that ends a residual branch, which is named `out_proj` or `down_proj`."""
    ends = [child for name, child in branch.named_children() if name in ("out_proj", "down_proj")]
    assert len(ends) == 1, (
        f"{type(branch).__name__} is a residual branch; name its last matrix out_proj or down_proj, so that it "
        "is initialized smaller"
    )
    return cast(nn.Linear, ends[0])


def sample_normal(parameter: Tensor, std: float, name: str, seed: int) -> None:
    """Sample a parameter from N(0, std²), in place. The values depend only on `seed`, the name and the shape."""
    # The values are sampled on the CPU, so that a seed yields the same weights on every device.
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
