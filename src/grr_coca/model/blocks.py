"""Parts of a transformer except attention: stems, norm, feed-forward layers, blocks and poolers.

These parts can be used in any model.

A stem turns the pixels of an image into one feature vector per patch, in raster order. A linear map, `patch_embed`,
then maps these vectors to the width of the encoder. After `Patchify`, this map is the patch embedding of ViT; after
`ConvStem`, it is the 1x1 convolution that ends a convolutional stem. Blocks are pre-norm. Poolers attend to a sequence
of any length with learned queries; `cascade` and `parallel` are two ways to arrange two poolers.

Shapes: B batch, T tokens, D width. Stem: images of S pixels per side, C input and O output channels, H height, W width,
P patches of K features. Blocks and poolers: R rows of a decoder, S context tokens of width C, Q queries.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from grr_coca.model.attention import CrossAttention, KeyValues, Layout, SelfAttention, TokenMask, at_least_fp32


class Patchify(nn.Module):
    """Stem that cuts images into square patches. The features of a patch are its pixels: K = 3 · patch_size²."""

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.num_features = 3 * patch_size**2

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B P K"]:
        """Return the pixels of each patch, in the order channel, row, column."""
        rows = images.unflatten(3, (-1, self.patch_size)).unflatten(2, (-1, self.patch_size))  # B 3 Gh p Gw p
        return rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class ConvStem(nn.Module):
    """Stem of convolutions that halve height and width until each patch is one position (arXiv 2106.14881).

    Each convolution is followed by a norm and ReLU. The features of a patch also depend on some pixels of neighbouring
    patches. The number of channels doubles from each convolution to the next, up to the width of the encoder: K =
    embed_dim.

    The paper uses BatchNorm, which averages over the images of a batch, so losses and gradients would depend on the
    sizes of micro-batches and the number of processes. The encoder's norm is used instead: it averages over the
    channels of each position.
    """

    def __init__(self, patch_size: int, embed_dim: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.num_features = embed_dim
        halvings = patch_size.bit_length() - 1
        assert patch_size == 2**halvings, "the config rejects this"
        channels = [3, *(max(1, embed_dim >> halving) for halving in reversed(range(halvings)))]
        self.stages = nn.ModuleList(
            ConvStage(Convolution(before, after), norm(after)) for before, after in pairwise(channels)
        )

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B P K"]:
        """Return the features of each patch."""
        # Each norm reads all channels of a position, so this layout makes them contiguous.
        x = images.contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            x = stage(x)
        return x.flatten(2).mT


class ConvStage(nn.Module):
    """Convolution that halves height and width, followed by a norm over the channels of each position, and ReLU."""

    def __init__(self, conv: "Convolution", norm: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O H/2 W/2"]:
        """Apply convolution, norm and ReLU to maps of even height and width."""
        return F.relu(self.norm(self.conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Convolution(nn.Linear):
    """3x3 convolution with stride 2, padded with zeros.

    Its weight is the matrix (O, 9 · C) that multiplies the 3 x 3 x C inputs of each output, in the order channel, row,
    column. The weight is therefore initialized, decayed and updated like all other matrices. Muon's author flattens
    convolutions in the same way (kellerjordan.github.io/posts/muon).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(9 * in_channels, out_channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O H/2 W/2"]:
        """Convolve images of even height and width."""
        return F.conv2d(x, self.weight.unflatten(1, (-1, 3, 3)), self.bias, stride=2, padding=1)


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last dimension (Zhang and Sennrich, arXiv 1910.07467).

    The mean of squares is computed in fp32 or better, because a sum in bf16 has only eight bits of precision.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Normalize each vector along the last dimension. Shape and dtype stay the same."""
        precise, weight = at_least_fp32(x), at_least_fp32(self.weight)
        return F.rms_norm(precise, weight.shape, weight, self.eps).type_as(x)


class GEGLU(nn.Module):
    """`down_proj(gelu(gate_proj(x)) * up_proj(x))`, without biases (Shazeer, arXiv 2002.05202)."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(embed_dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(embed_dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, embed_dim, bias=False)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Apply the feed-forward layer to every token separately."""
        return self.down_proj(F.gelu(self.gate_proj(x)) * self.up_proj(x))


class MLP(nn.Module):
    """`down_proj(gelu(up_proj(x)))` with biases: ViT's original feed-forward (arXiv 2010.11929)."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(embed_dim, hidden_dim)
        self.down_proj = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Apply the feed-forward layer to every token separately."""
        return self.down_proj(F.gelu(self.up_proj(x)))


class Block(nn.Module):
    """Block of self-attention and a feed-forward layer. Each part reads normalized tokens, and adds its result to the
    tokens."""

    def __init__(self, attn_norm: nn.Module, attn: SelfAttention, ffn_norm: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attn_norm = attn_norm
        self.attn = attn
        self.ffn_norm = ffn_norm
        self.feed_forward = feed_forward

    @property
    def branches(self) -> tuple[nn.Module, ...]:
        """Layers whose results are added to the tokens. The last matrix of each layer gets smaller initial values."""
        return self.attn, self.feed_forward

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T D"]:
        """Run the block. `layout` defines the sequences of tokens, and the tokens that each token attends to."""
        x = x + self.attn(self.attn_norm(x), layout)
        return x + self.feed_forward(self.ffn_norm(x))


class CrossBlock(nn.Module):
    """Block of self-attention, cross-attention to a context, and a feed-forward layer."""

    def __init__(
        self,
        *,
        attn_norm: nn.Module,
        attn: SelfAttention,
        cross_attn_norm: nn.Module,
        cross_attn: CrossAttention,
        ffn_norm: nn.Module,
        feed_forward: nn.Module,
    ) -> None:
        super().__init__()
        self.attn_norm = attn_norm
        self.attn = attn
        self.cross_attn_norm = cross_attn_norm
        self.cross_attn = cross_attn
        self.ffn_norm = ffn_norm
        self.feed_forward = feed_forward

    @property
    def branches(self) -> tuple[nn.Module, ...]:
        """Branches; see `Block`."""
        return self.attn, self.cross_attn, self.feed_forward

    def forward(
        self,
        x: Float[Tensor, "R T D"],
        context: Float[Tensor, "B S C"] | KeyValues,
        layout: Layout,
        mask: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "R T D"]:
        """Run the block. The context must already be normalized. `mask` is True for context tokens that are not
        padding."""
        x = x + self.attn(self.attn_norm(x), layout)
        x = x + self.cross_attn(self.cross_attn_norm(x), context, layout, mask)
        return x + self.feed_forward(self.ffn_norm(x))


class AttentionalPooler(nn.Module):
    """Multi-head attention with learned queries (CoCa, arXiv 2205.01917, section 3.2).

    The output has the shape B Q D for any number of queries, including 1.
    """

    def __init__(self, num_queries: int, embed_dim: int, attn: CrossAttention, norm: nn.Module) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(num_queries, embed_dim))
        self.attn = attn
        self.norm = norm

    def forward(
        self, context: Float[Tensor, "B S C"], mask: Bool[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B Q D"]:
        """Pool the context into Q normalized tokens. `mask` is True for context tokens that are not padding."""
        queries = self.attending_queries().expand(context.shape[0], -1, -1)  # B Q D
        return self.norm(self.attn(queries, context, mask=mask))

    def attending_queries(self) -> Float[Tensor, "Q D"]:
        """Return the queries that attend to the context. A subclass can normalize them."""
        return self.queries


class NoPooler(nn.Module):
    """Placeholder in models without a pooler. It leaves the tokens unchanged."""

    def forward(self, context: Float[Tensor, "B S C"], _: Bool[Tensor, "B S"] | None = None) -> Float[Tensor, "B S C"]:
        """Return the context."""
        return context


Pooler = Callable[[Tensor, TokenMask], Tensor]
"""Function that converts an image's tokens, with a mask of the tokens that are not padding, to one token per query."""


class PoolerOutput(NamedTuple):
    """Output of both poolers.

    Attributes:
        tokens: The image tokens that captions attend to.
        contrastive: The token that becomes the image embedding.
        mask: Mask of the image tokens that are not padding. None if no token is padding.
    """

    tokens: Float[Tensor, "B Q D"]
    contrastive: Float[Tensor, "B 1 D"]
    mask: Bool[Tensor, "B Q"] | None = None


Arrange = Callable[[Pooler, Pooler, Tensor, TokenMask], PoolerOutput]
"""Function that applies a captioning and a contrastive pooler to all patches, or to those that a mask selects."""


def cascade(
    captioning_pooler: Pooler,
    contrastive_pooler: Pooler,
    patches: Float[Tensor, "B P C"],
    mask: Bool[Tensor, "B P"] | None = None,
) -> PoolerOutput:
    """Let the contrastive pooler read the captioning pooler's tokens (CoCa)."""
    tokens = captioning_pooler(patches, mask)
    mask = _mask_of(tokens, patches, mask)
    return PoolerOutput(tokens, contrastive_pooler(tokens, mask), mask)


def parallel(
    captioning_pooler: Pooler,
    contrastive_pooler: Pooler,
    patches: Float[Tensor, "B P C"],
    mask: Bool[Tensor, "B P"] | None = None,
) -> PoolerOutput:
    """Let both poolers read the patches."""
    tokens = captioning_pooler(patches, mask)
    return PoolerOutput(tokens, contrastive_pooler(patches, mask), _mask_of(tokens, patches, mask))


def _mask_of(tokens: Tensor, patches: Tensor, mask: TokenMask) -> TokenMask:
    """Return the mask of the image tokens.

    Without a pooler, it is the mask of the patches. With a pooler, it is None, because no query's token is padding.
    """
    return mask if tokens is patches else None
