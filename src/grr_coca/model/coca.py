"""CoCa, a model that matches images with texts and captions images (arXiv 2205.01917, figure 2).

    images ─ image_encoder ─ captioning_pooler ─┬─ contrastive_pooler ─ image_proj ─ image embedding
                                                │
    text ──── text_decoder ─────────────────────│───────────────────── text_proj ── text embedding
                    │                           │
                    └──────────────────── multimodal_decoder ─ states ─ lm_head ─── next tokens

The image encoder is a vision transformer (arXiv 2010.11929). The text decoder has a unimodal half, which reads only the
caption, and a multimodal half, which continues from the tokens of the unimodal half and attends to the image.
Both halves process the captions of a batch without padding.

Shapes: B pairs, I images, P patch tokens in raster order, K patches kept by patch dropout, R registers; T positions of
the longest caption, N tokens of all captions, M tokens that have a next token (all except [EOS] and [CLS]), L = M
rounded up in the same way as N (`grr_coca.model.attention.PackedLayout`); Q captioning tokens of width C, D width, E
width of the joint embedding, V size of the vocabulary. In `decode_step`: R captions in progress; each image has R / B
adjacent captions. In `FeatureEncoder`: N tokens of width X, which are included in P after the encoder.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from grr_coca.common.errors import UserError
from grr_coca.data.batch import FeatureTokens
from grr_coca.model.attention import (
    PLAIN,
    CachedLayout,
    KeyValues,
    LayoutOf,
    PackedLayout,
    PlainLayout,
    TokenMask,
    at_least_fp32,
    pack_lengths,
    to_attention_mask,
)
from grr_coca.model.blocks import Arrange, ConvStem, Patchify
from grr_coca.model.config import Contrastive


class ImageEncoder(nn.Module):
    """Encoder that converts pixels to patch tokens: stem, patch embedding, positions (unless RoPE), blocks, final norm.

    Registers (arXiv 2309.16588) are learned tokens without a position. They pass through the blocks together with the
    patches, and are dropped after the last block.
    """

    def __init__(
        self,
        *,
        stem: Patchify | ConvStem,
        patch_embed: nn.Linear,
        position: nn.Module,
        num_registers: int,
        blocks: nn.ModuleList,
        norm: nn.Module,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.patch_embed = patch_embed
        self.position = position
        self.registers = nn.Parameter(torch.zeros(num_registers, patch_embed.out_features)) if num_registers else None
        self.blocks = blocks
        self.norm = norm
        self.width = patch_embed.out_features

    def forward(
        self, images: Float[Tensor, "B 3 H W"], kept_patches: Int[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B P D"]:
        """Encode images of the configured size.

        With `kept_patches`, only these K patches of each image are encoded (FLIP, arXiv 2212.00794).
        """
        # Under autocast, the patch embedding is in bf16. Adding learned positions in fp32 would convert it to fp32, but
        # RoPE adds nothing. With this cast, the residual stream of every model is in fp32.
        patches = self.patch_embed(self.stem(images)).type_as(images)
        x = self.position(patches, PLAIN.positions)  # B P D
        if kept_patches is not None:
            x = x.take_along_dim(kept_patches[..., None], dim=1)  # B K D
        num_patches = x.shape[1]
        if self.registers is not None:
            x = torch.cat([x, self.registers.expand(x.shape[0], -1, -1)], dim=1)  # B P+R D
        layout = PLAIN
        if kept_patches is not None:
            # Registers have no position, so they get index P, where the angles in RoPE's table are 0.
            num_registers = x.shape[1] - num_patches
            layout = PlainLayout(F.pad(kept_patches, (0, num_registers), value=patches.shape[1]))  # B K+R
        for block in self.blocks:
            x = block(x, layout)
        return self.norm(x[:, :num_patches])


class FeatureEncoder(nn.Module):
    """Encoder that converts features (tokens of a frozen third-party encoder) to image tokens.

    The encoder standardizes the channels, and applies a linear map, blocks and a final norm. The features already
    include positions. `mean` and `deviation` are the mean and standard deviation of each channel over training images
    (see `grr_coca.train.features.standardize`).
    """

    mean: Float[Tensor, " X"]
    deviation: Float[Tensor, " X"]

    def __init__(self, feature_proj: nn.Linear, blocks: nn.ModuleList, norm: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(feature_proj.in_features))
        self.register_buffer("deviation", torch.ones(feature_proj.in_features))
        self.feature_proj = feature_proj
        self.blocks = blocks
        self.norm = norm
        self.width = feature_proj.out_features

    def forward(self, features: FeatureTokens) -> Float[Tensor, "B N D"]:
        """Encode the features of images. Padding keeps its place, and no token attends to it."""
        tokens = (features.tokens - self.mean) / self.deviation
        x = self.feature_proj(tokens).type_as(tokens)
        layout = PlainLayout(slice(None), to_attention_mask(features.mask))
        for block in self.blocks:
            x = block(x, layout)
        return self.norm(x)


PADDING = 0
"""Token id of padding and of the [CLS] slot. In CLIP's vocabulary, 0 is also the id of a "!" within a word."""


class PackedText(NamedTuple):
    """The captions of a batch, concatenated into one row. Both halves of the text decoder use it.

    Attributes:
        token_ids: `[BOS] caption [EOS] [CLS]` of each caption.
        layout: The layout of these N tokens, for the unimodal half.
        cls: The index of each caption's [CLS] token among the N tokens.
        predicting: The indices of the tokens that have a next token. The multimodal half continues from these tokens.
        predicting_layout: The layout of the tokens in `predicting`.
    """

    token_ids: Int[Tensor, "1 N"]
    layout: PackedLayout
    cls: Int[Tensor, " B"]
    predicting: Int[Tensor, " L"]
    predicting_layout: PackedLayout

    @classmethod
    def of(cls, token_ids: Int[Tensor, "B T"], layout: PackedLayout, predicting_layout: PackedLayout) -> "PackedText":
        """Pack padded captions. In `layout`, [CLS] must be the last token of each caption."""
        predicting = predicting_layout.unpad(layout.pad_index[:, :-2])[0]
        return cls(layout.unpad(token_ids), layout, layout.last_tokens, predicting, predicting_layout)


class TextDecoderOutput(NamedTuple):
    """Output of the unimodal half.

    Attributes:
        cls: The normalized output at the [CLS] token of each caption.
        tokens: The residual stream of all tokens that have a next token. The multimodal half continues from it.
    """

    cls: Float[Tensor, "B D"]
    tokens: Float[Tensor, "1 L D"]


class TextDecoder(nn.Module):
    """Unimodal half of CoCa's decoder: causal blocks over `[BOS] caption [EOS] [CLS]`.

    [CLS] is a learned vector, not a word. It comes last, so it attends to the complete caption.
    """

    def __init__(
        self,
        *,
        context_length: int,
        tok_embeddings: nn.Embedding,
        position: nn.Module,
        blocks: nn.ModuleList,
        cls_norm: nn.Module,
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.tok_embeddings = tok_embeddings
        self.cls_embedding = nn.Parameter(torch.zeros(tok_embeddings.embedding_dim))
        self.position = position
        self.blocks = blocks
        self.cls_norm = cls_norm

    def pack(
        self, token_ids: Int[Tensor, "B T"], lengths: Int[Tensor, " B"], layout_of: LayoutOf = pack_lengths
    ) -> PackedText:
        """Pack padded captions for `forward`.

        `lengths` include [BOS], [EOS] and [CLS]. If they are on the CPU, packing does not wait for another device.
        """
        longest, device = token_ids.shape[1], token_ids.device
        layout, predicting_layout = layout_of(lengths, longest, device), layout_of(lengths - 2, longest - 2, device)
        return PackedText.of(token_ids, layout, predicting_layout)

    def forward(self, text: PackedText) -> TextDecoderOutput:
        """Run the captions of a batch through all blocks."""
        x = self.tok_embeddings(text.token_ids)  # 1 N D
        x = x.index_copy(1, text.cls, self.cls_embedding.to(x.dtype).expand(1, text.cls.shape[0], -1))
        x = self.position(x, text.layout.positions)
        for block in self.blocks:
            x = block(x, text.layout)
        return TextDecoderOutput(self.cls_norm(x[0].index_select(0, text.cls)), x.index_select(1, text.predicting))


class MultimodalDecoder(nn.Module):
    """Multimodal half of CoCa's decoder: causal blocks with cross-attention to the image, a final norm, and the head.

    `forward` stops before the head. The M × V logits would be the largest tensor of a training step, so the loss
    computes them for only some tokens at a time.
    """

    def __init__(self, blocks: nn.ModuleList, norm: nn.Module, lm_head: nn.Linear) -> None:
        super().__init__()
        self.blocks = blocks
        self.norm = norm
        self.lm_head = lm_head

    def forward(
        self,
        text_tokens: Float[Tensor, "1 L D"],
        image_tokens: Float[Tensor, "B Q C"],
        layout: PackedLayout,
        mask: Bool[Tensor, "B Q"] | None = None,
    ) -> Float[Tensor, "M D"]:
        """Return the states from which `lm_head` predicts the next tokens, caption after caption.

        `mask` is False for image tokens that are padding. If it is None, no token is padding.
        """
        x, context = text_tokens, self.context(image_tokens)
        for block in self.blocks:
            x = block(x, context, layout, mask)
        return self.norm(x[0, : layout.num_tokens])

    def context(self, image_tokens: Float[Tensor, "B Q C"]) -> Float[Tensor, "B Q C"]:
        """Return the image tokens for cross-attention.

        They are unchanged here; a subclass can normalize them.
        """
        return image_tokens


MAX_LOGIT_SCALE = math.log(100.0)
"""Upper bound on the logarithm of the inverse temperature, as in CLIP (arXiv 2103.00020). Above this bound, training
becomes unstable."""


class EncodedImage(NamedTuple):
    """Encoded images.

    Attributes:
        tokens: The image tokens that captions attend to.
        embedding: The embedding of unit length, which is compared with those of texts.
        mask: Mask of the image tokens that are not padding. None if no token is padding.
    """

    tokens: Float[Tensor, "B Q D"]
    embedding: Float[Tensor, "B E"]
    mask: Bool[Tensor, "B Q"] | None = None


class CoCaOutput(NamedTuple):
    """Output of the model for a batch, in the form that the losses need.

    Shapes: B pairs, E joint embedding width, D width, M tokens of all captions that have a next token.

    Embeddings have unit length. `lm_head` predicts the `next_tokens` of the batch from `states`, in the same order.
    """

    image_embedding: Float[Tensor, "B E"]
    text_embedding: Float[Tensor, "B E"]
    states: Float[Tensor, "M D"]


class CoCa(nn.Module):
    """Complete model. `grr_coca.model.build` chooses the parts of the model.

    A model that takes features of a frozen encoder has a `feature_encoder` instead of the `image_encoder`, or in
    addition to it. In the latter case, the poolers read the tokens of both encoders.
    """

    def __init__(
        self,
        *,
        image_encoder: ImageEncoder | None,
        captioning_pooler: nn.Module,
        contrastive_pooler: nn.Module,
        arrange: Arrange,
        image_proj: nn.Linear,
        text_decoder: TextDecoder,
        text_proj: nn.Linear,
        multimodal_decoder: MultimodalDecoder,
        contrastive: Contrastive,
        feature_encoder: FeatureEncoder | None = None,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.feature_encoder = feature_encoder
        self.captioning_pooler = captioning_pooler
        self.contrastive_pooler = contrastive_pooler
        self.arrange = arrange
        self.image_proj = image_proj
        self.text_decoder = text_decoder
        self.text_proj = text_proj
        self.multimodal_decoder = multimodal_decoder
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.logit_bias = nn.Parameter(torch.zeros(())) if contrastive == "sigmoid" else None

    @property
    def pooled_encoders(self) -> tuple[ImageEncoder | FeatureEncoder, ...]:
        """The encoders whose tokens the poolers read."""
        return tuple(encoder for encoder in (self.image_encoder, self.feature_encoder) if encoder is not None)

    @property
    def stacks(self) -> tuple[ImageEncoder | FeatureEncoder | TextDecoder | MultimodalDecoder, ...]:
        """Parts of the model that have `blocks`."""
        return *self.pooled_encoders, self.text_decoder, self.multimodal_decoder

    @property
    def own_image_encoder(self) -> ImageEncoder:
        """Image encoder of a model whose poolers read only the tokens of this encoder.

        Raises:
            UserError: If the model takes features.
        """
        if self.image_encoder is None or self.feature_encoder is not None:
            raise UserError("this model takes features of a frozen encoder; use a model that takes only images")
        return self.image_encoder

    @property
    def device(self) -> torch.device:
        """Device of the weights and of all inputs."""
        return self.logit_scale.device

    def forward(
        self,
        images: Float[Tensor, "I 3 H W"] | None,
        token_ids: Int[Tensor, "B T"],
        lengths: Int[Tensor, " B"],
        kept_patches: Int[Tensor, "I K"] | None = None,
        image_of: Int[Tensor, " B"] | None = None,
        features: FeatureTokens | None = None,
    ) -> CoCaOutput:
        """Embed images and texts, and compute the states from which the next tokens are predicted.

        `grr_coca.data.batch.Batch` describes the inputs.

        `image_of` is the index of each text's image, if several texts share an image. If None, text i belongs to image
        i.
        """
        image_tokens, image_embedding, mask = self._encode_image(images, kept_patches, features)  # I Q D, I E, I Q
        if image_of is not None:
            image_tokens, image_embedding = image_tokens[image_of], image_embedding[image_of]  # B Q D, B E
            mask = None if mask is None else mask[image_of]  # B Q

        text = self.text_decoder.pack(token_ids, lengths)
        cls, text_tokens = self.text_decoder(text)  # B D, 1 L D
        text_embedding = _unit(self.text_proj(cls))  # B E

        states = self.multimodal_decoder(text_tokens, image_tokens, text.predicting_layout, mask)  # M D
        return CoCaOutput(image_embedding, text_embedding, states)

    def encode_image(
        self,
        images: Float[Tensor, "B 3 H W"] | None,
        kept_patches: Int[Tensor, "B K"] | None = None,
        features: FeatureTokens | None = None,
    ) -> EncodedImage:
        """Encode images, or features, without captions.

        Return the tokens that the multimodal decoder attends to, their mask, and embeddings of unit length.
        """
        # FSDP gathers weights around this method and around `forward`, so `forward` must call `_encode_image` instead.
        return self._encode_image(images, kept_patches, features)

    def _encode_image(
        self, images: Tensor | None, kept_patches: Tensor | None, features: FeatureTokens | None
    ) -> EncodedImage:
        patches, mask = self._read(images, kept_patches, features)  # B P D, B P
        tokens, pooled, mask = self.arrange(self.captioning_pooler, self.contrastive_pooler, patches, mask)
        return EncodedImage(tokens, _unit(self.image_proj(pooled[:, 0])), mask)  # B Q D, B E

    def _read(
        self, images: Tensor | None, kept_patches: Tensor | None, features: FeatureTokens | None
    ) -> tuple[Float[Tensor, "B P D"], TokenMask]:
        """Return the tokens that the poolers read: first the tokens of the images, then those of the features."""
        if self.feature_encoder is None:
            assert self.image_encoder is not None, "the config rejects this"
            return self.image_encoder(images, kept_patches), None
        assert features is not None, "this model takes features"
        tokens, mask = self.feature_encoder(features), features.mask
        if self.image_encoder is None:
            return tokens, mask
        own = self.image_encoder(images, kept_patches)
        mask = None if mask is None else torch.cat([mask.new_ones(own.shape[:2]), mask], dim=1)
        return torch.cat([own, tokens], dim=1), mask

    def encode_text(self, token_ids: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B E"]:
        """Encode only texts, and return embeddings of unit length."""
        return self.embed_text(self.text_decoder.pack(token_ids, lengths))

    def embed_text(self, text: PackedText) -> Float[Tensor, "B E"]:
        """Embed texts that are already packed."""
        return _unit(self.text_proj(self.text_decoder(text).cls))

    def decode_step(
        self,
        token_ids: Int[Tensor, "R T"],
        contexts: Sequence[Float[Tensor, "B Q C"] | KeyValues],
        layouts: Sequence[CachedLayout],
        mask: Bool[Tensor, "B Q"] | None = None,
    ) -> Float[Tensor, "R T D"]:
        """Return the states that predict the token after each new token of R captions, and extend the caches.

        `contexts` are the inputs of the cross-attention in each multimodal block. `layouts` contains one layout for
        each block of both halves, with the block's cache of earlier tokens. `mask` is False for image tokens that are
        padding. If it is None, no token is padding.
        """
        text, multimodal = self.text_decoder, self.multimodal_decoder
        x = text.position(text.tok_embeddings(token_ids), layouts[0].positions)  # R T D
        num_text = len(text.blocks)
        for block, layout in zip(text.blocks, layouts[:num_text], strict=True):
            x = block(x, layout)
        for block, context, layout in zip(multimodal.blocks, contexts, layouts[num_text:], strict=True):
            x = block(x, context, layout, mask)
        return multimodal.norm(x)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Clamp the learned temperature to the range from 0.01 to 1, in place. Call this after each weight update."""
        self.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)


def _unit(x: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
    return F.normalize(at_least_fp32(x), dim=-1)


# --- Products in fp32 on CUDA: exact in training, and with inputs rounded to TF32 in evaluation and inference
#
# TF32 keeps 10 of the 23 fraction bits of each factor, and sums are computed in fp32. An H100 multiplies 7 times as
# fast in TF32. When this rounding was simulated on a CPU for all products of `icons` and `pictograms`, embeddings
# changed by at most 2e-4, the losses of a validation split by 6e-5, and recall not at all. In training, the rounding
# errors would accumulate, and bf16 is as fast there.

_lock = threading.Lock()
_depth = 0
_tf32_before = (False, False)


def require_exact_products() -> None:
    """Compute all fp32 products on CUDA exactly from now on, in the whole process.

    By default, PyTorch rounds the inputs of convolutions to TF32.
    """
    _set_tf32(matmul=False, convolutions=False)


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Let CUDA round the inputs of fp32 products to TF32 within this context. Other devices are not affected.

    The setting applies to the whole process, so it lasts until the last thread leaves the context.
    """
    global _depth, _tf32_before
    if device.type != "cuda":
        yield
        return
    with _lock:
        if not _depth:
            _tf32_before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
            _set_tf32(matmul=True, convolutions=True)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if not _depth:
                _set_tf32(*_tf32_before)


def _set_tf32(matmul: bool, convolutions: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolutions
