"""open_clip's CoCa, with all differences from the paper's CoCa, so that its checkpoints can be read.

    images ─ image_encoder (class token, norm before the blocks) ─ one pooler ─┬─ first query ── image embedding
                                                                               └─ other queries ─ image tokens

All attention layers have biases. [CLS] is at the last position of the context. A multimodal layer is a complete block,
followed by cross-attention and a second feed-forward.

Shapes: B batch, R rows of a decoder, T tokens, S context tokens, D width, C context width, P patch tokens, K patches
that patch dropout keeps, Q queries.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from grr_coca.infer.fast.layers import FAST_LAYERS, PROJECTIONS, AbsorbedCrossAttention, FastLayer
from grr_coca.model.attention import (
    PLAIN,
    CrossAttention,
    KeyValues,
    Layout,
    LayoutOf,
    LearnedPosition,
    SelfAttention,
    pack_lengths,
)
from grr_coca.model.blocks import MLP, AttentionalPooler, Block, NoPooler, Patchify, Pooler, PoolerOutput
from grr_coca.model.coca import PADDING, CoCa, ImageEncoder, MultimodalDecoder, PackedText, TextDecoder
from grr_coca.model.config import CoCaConfig, TransformerConfig


def build_open_clip(config: CoCaConfig) -> CoCa:
    """Build the model of a config whose architecture is `open_clip`, without the weights of a checkpoint."""
    image, text = config.own_image_encoder.transformer, config.text_decoder.transformer
    multimodal, poolers = config.multimodal_decoder.transformer, config.poolers
    stem, context_length = Patchify(config.own_image_encoder.patch_size), config.text_decoder.context_length
    assert poolers.num_queries is not None, "the config refuses this"
    return CoCa(
        image_encoder=OpenClipImageEncoder(
            stem=stem,
            patch_embed=nn.Linear(stem.num_features, image.embed_dim),
            position=LearnedPosition(config.own_image_encoder.num_patches, image.embed_dim),
            class_token=ClassToken(image.embed_dim),
            pre_norm=_norm(image.embed_dim),
            blocks=_blocks(image),
            norm=_norm(image.embed_dim),
        ),
        captioning_pooler=NormalizedQueriesPooler(
            poolers.num_queries,
            text.embed_dim,
            attn=CrossAttention(text.embed_dim, image.embed_dim, poolers.num_heads, bias=True),
            norm=_norm(text.embed_dim),
            query_norm=_norm(text.embed_dim),
        ),
        contrastive_pooler=NoPooler(),
        arrange=shared,
        image_proj=nn.Linear(text.embed_dim, config.embed_dim, bias=False),
        text_decoder=ClsLastTextDecoder(
            context_length=context_length,
            tok_embeddings=nn.Embedding(config.text_decoder.vocab_size, text.embed_dim),
            position=LearnedPosition(context_length, text.embed_dim),
            blocks=_blocks(text),
            cls_norm=_norm(text.embed_dim),
        ),
        text_proj=nn.Linear(text.embed_dim, config.embed_dim, bias=False),
        multimodal_decoder=OpenClipMultimodalDecoder(
            blocks=nn.ModuleList(_cross_block(multimodal) for _ in range(multimodal.num_layers)),
            norm=_norm(multimodal.embed_dim),
            lm_head=nn.Linear(multimodal.embed_dim, config.text_decoder.vocab_size, bias=False),
        ),
        contrastive=config.contrastive,
    )


def _norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-5)


def _blocks(t: TransformerConfig) -> nn.ModuleList:
    return nn.ModuleList(_block(t) for _ in range(t.num_layers))


def _block(t: TransformerConfig) -> Block:
    return Block(
        attn_norm=_norm(t.embed_dim),
        attn=SelfAttention(t.embed_dim, t.num_heads, rotary=None, bias=True),
        ffn_norm=_norm(t.embed_dim),
        feed_forward=MLP(t.embed_dim, t.hidden_dim),
    )


def _cross_block(t: TransformerConfig) -> "TwoStepCrossBlock":
    return TwoStepCrossBlock(
        block=_block(t),
        cross_attn_norm=_norm(t.embed_dim),
        cross_attn=AffineCrossAttention(t.embed_dim, t.embed_dim, t.num_heads, bias=True),
        ffn_norm=_norm(t.embed_dim),
        feed_forward=MLP(t.embed_dim, t.hidden_dim),
    )


# --- Images


class OpenClipImageEncoder(ImageEncoder):
    """Vision transformer with a norm before the blocks, and a class token, which the pooler reads together with the
    patches."""

    def __init__(self, *, class_token: "ClassToken", pre_norm: nn.Module, **parts: object) -> None:
        super().__init__(num_registers=0, **parts)  # type: ignore[arg-type]
        self.class_token = class_token
        self.pre_norm = pre_norm

    def forward(
        self, images: Float[Tensor, "B 3 H W"], kept_patches: Int[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B P D"]:
        """Encode images as `ImageEncoder` does. The class token follows the patch tokens."""
        patches = self.patch_embed(self.stem(images)).type_as(images)
        x = self.position(patches, PLAIN.positions)
        if kept_patches is not None:
            x = x.take_along_dim(kept_patches[..., None], dim=1)  # B K D
        x = self.pre_norm(self.class_token(x))  # B K+1 D
        for block in self.blocks:
            x = block(x, PLAIN)
        return self.norm(x)


class ClassToken(nn.Module):
    """Layer that appends a class token (arXiv 2010.11929), which is a learned vector with a learned position."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(embed_dim))
        self.position = nn.Parameter(torch.zeros(embed_dim))

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T+1 D"]:
        """Append the class token to the tokens `x`."""
        token = (self.embedding + self.position).to(x.dtype)
        return torch.cat([x, token.expand(x.shape[0], 1, -1)], dim=1)


class NormalizedQueriesPooler(AttentionalPooler):
    """Attentional pooler that normalizes its learned queries."""

    def __init__(
        self, num_queries: int, embed_dim: int, attn: CrossAttention, norm: nn.Module, query_norm: nn.Module
    ) -> None:
        super().__init__(num_queries, embed_dim, attn, norm)
        self.query_norm = query_norm

    def attending_queries(self) -> Float[Tensor, "Q D"]:
        """Return the normalized learned queries."""
        return self.query_norm(self.queries)


def shared(
    captioning_pooler: Pooler,
    contrastive_pooler: Pooler,
    patches: Float[Tensor, "B P C"],
    mask: Bool[Tensor, "B P"] | None = None,
) -> PoolerOutput:
    """Use the captioning pooler also as the contrastive pooler, whose output comes from the first query."""
    tokens = captioning_pooler(patches, mask)
    return PoolerOutput(tokens[:, 1:], contrastive_pooler(tokens[:, :1], None))


# --- Text


class ClsLastTextDecoder(TextDecoder):
    """Unimodal decoder that was trained with captions padded to the context length, and with [CLS] at the end."""

    def pack(
        self, token_ids: Int[Tensor, "B T"], lengths: Int[Tensor, " B"], layout_of: LayoutOf = pack_lengths
    ) -> PackedText:
        """Pack padded captions, with [CLS] at the last position of the context.

        open_clip's mask is off by one: it hides every token that follows a padding token, instead of the padding
        itself. Therefore, [CLS] attends to the first padding token and not to itself, unless the caption fills the
        context. This padding token is kept here, and all other padding is dropped. A word with id 0 hides the token
        after it in the same way, as in open_clip 3.
        """
        longest = token_ids.shape[1] + 1  # in a caption that fills the context, no token attends to the last column
        device = token_ids.device
        steps, ends = torch.arange(longest, device=device), lengths.to(device, non_blocking=True)[:, None] - 1
        token_ids = F.pad(token_ids, (0, 1)).masked_fill(steps >= ends, PADDING)
        layout = layout_of((lengths + 1).clamp(max=self.context_length), longest, device)

        cls_positions = layout.positions.index_fill(0, layout.last_tokens, self.context_length - 1)
        hidden = F.pad(token_ids[:, :-1] == PADDING, (1, 0))  # B T
        past = steps <= steps[:, None]  # T T
        layout = layout._replace(positions=cls_positions, mask=past & ~hidden[:, None, None])
        return PackedText.of(token_ids, layout, layout_of(lengths - 2, longest - 2, device))


class OpenClipMultimodalDecoder(MultimodalDecoder):
    """Multimodal decoder whose layers apply LayerNorm to the image tokens.

    The normalized tokens are computed only once, and each layer then applies its own scale and shift.
    """

    def __init__(self, blocks: nn.ModuleList, norm: nn.LayerNorm, lm_head: nn.Linear) -> None:
        super().__init__(blocks, norm, lm_head)
        self.image_norm = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)

    def context(self, image_tokens: Float[Tensor, "B Q C"]) -> Float[Tensor, "B Q C"]:
        """Return the normalized image tokens."""
        return self.image_norm(image_tokens)


class TwoStepCrossBlock(nn.Module):
    """Complete `Block`, followed by cross-attention to a context and a second feed-forward."""

    def __init__(
        self,
        *,
        block: Block,
        cross_attn_norm: nn.Module,
        cross_attn: CrossAttention,
        ffn_norm: nn.Module,
        feed_forward: nn.Module,
    ) -> None:
        super().__init__()
        self.block = block
        self.cross_attn_norm = cross_attn_norm
        self.cross_attn = cross_attn
        self.ffn_norm = ffn_norm
        self.feed_forward = feed_forward

    @property
    def branches(self) -> tuple[nn.Module, ...]:
        """Branches; see `Block`."""
        return *self.block.branches, self.cross_attn, self.feed_forward

    def forward(
        self,
        x: Float[Tensor, "R T D"],
        context: Float[Tensor, "B S C"] | KeyValues,
        layout: Layout,
        mask: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "R T D"]:
        """Run the block. The context must already be normalized, and `mask` marks its valid tokens."""
        x = self.block(x, layout)
        x = x + self.cross_attn(self.cross_attn_norm(x), context, layout, mask)
        return x + self.feed_forward(self.ffn_norm(x))


class AffineCrossAttention(CrossAttention):
    """Cross-attention that scales and shifts its context before the projection.

    The context must already be normalized.
    """

    def __init__(self, embed_dim: int, context_dim: int, num_heads: int, *, bias: bool = False) -> None:
        super().__init__(embed_dim, context_dim, num_heads, bias=bias)
        self.context_affine = ChannelAffine(context_dim)

    def project(self, context: Float[Tensor, "B S C"]) -> KeyValues:
        """Project a normalized context to keys and values."""
        return super().project(self.context_affine(context))

    def projection(self) -> tuple[Float[Tensor, "O C"], Float[Tensor, " O"] | None]:
        """Return the weight and bias of the projection, into which the scale and shift of the context are folded."""
        weight, bias = super().projection()
        shift = weight @ self.context_affine.bias
        return weight * self.context_affine.weight, shift if bias is None else bias + shift


class ChannelAffine(nn.Module):
    """`x * weight + bias` for each channel: the second half of a LayerNorm, for inputs that are already normalized."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Scale and shift every channel."""
        return x * self.weight + self.bias


FAST_LAYERS[AffineCrossAttention] = FastLayer(
    AbsorbedCrossAttention, {**PROJECTIONS, "context_affine": frozenset({ChannelAffine})}
)
