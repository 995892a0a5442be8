"""CoCa: one model, trained at once to tell pairs apart and to caption (arXiv 2205.01917, figure 2).

Shapes: B pairs, P patch tokens, T text positions, Q captioning tokens, D width, E joint embedding width, V vocabulary,
N tokens of all captions without padding, M of them that have a next token to predict: M = N - 2 B.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from grr_coca.config import Arrangement, Contrastive
from grr_coca.layers.layout import pack_lengths
from grr_coca.layers.precision import at_least_fp32
from grr_coca.model.image_encoder import ImageEncoder
from grr_coca.model.multimodal_decoder import MultimodalDecoder
from grr_coca.model.text_decoder import TextDecoder

MAX_LOGIT_SCALE = math.log(100.0)
"""CLIP's bound on the inverse temperature (arXiv 2103.00020): past it, training is no longer stable."""


class EncodedImage(NamedTuple):
    """`tokens`: what captions attend to; `embedding`: of unit length, what texts are compared with."""

    tokens: Float[Tensor, "B Q D"]
    embedding: Float[Tensor, "B E"]


class EncodedText(NamedTuple):
    """`tokens`: what the multimodal decoder goes on from, caption after caption; `embedding`: of unit length."""

    tokens: Float[Tensor, "1 N D"]
    embedding: Float[Tensor, "B E"]


class CoCaOutput(NamedTuple):
    """What the losses need. `states`: what the head predicts from, at every position that has a next token, caption
    after caption: the order of the labels that are not ignored."""

    image_embedding: Float[Tensor, "B E"]
    text_embedding: Float[Tensor, "B E"]
    states: Float[Tensor, "M D"]
    lm_head: nn.Linear

    @property
    def logits(self) -> Float[Tensor, "M V"]:
        """Of the next tokens. Large: the losses do without."""
        return self.lm_head(self.states)


class CoCa(nn.Module):
    """The composed model; its parts are chosen in `build`."""

    def __init__(
        self,
        image_encoder: ImageEncoder,
        captioning_pooler: nn.Module,
        contrastive_pooler: nn.Module,
        arrangement: Arrangement,
        image_proj: nn.Linear,
        text_decoder: TextDecoder,
        text_proj: nn.Linear,
        multimodal_decoder: MultimodalDecoder,
        contrastive: Contrastive,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.captioning_pooler = captioning_pooler
        self.contrastive_pooler = contrastive_pooler
        self.arrangement = arrangement
        self.image_proj = image_proj
        self.text_decoder = text_decoder
        self.text_proj = text_proj
        self.multimodal_decoder = multimodal_decoder
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.logit_bias = nn.Parameter(torch.zeros(())) if contrastive == "sigmoid" else None

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        token_ids: Int[Tensor, "B T"],
        lengths: Int[Tensor, " B"],
        kept_patches: Int[Tensor, "B K"] | None = None,
    ) -> CoCaOutput:
        """Both embeddings, and what captions are predicted from, in one pass; see `Batch` for the layout of text."""
        image = self.encode_image(images, kept_patches)
        text = self.encode_text(token_ids, lengths)
        # The last two positions of each caption, [EOS] and [CLS], have no token left to predict.
        packing = pack_lengths(lengths - 2, token_ids.shape[1] - 2)
        predicting = pack_lengths(lengths, token_ids.shape[1]).pad(text.tokens)[:, :-2]
        states = self.multimodal_decoder.states(packing.pack(predicting), image.tokens, packing)
        return CoCaOutput(image.embedding, text.embedding, states, self.multimodal_decoder.lm_head)

    def encode_image(
        self, images: Float[Tensor, "B 3 H W"], kept_patches: Int[Tensor, "B K"] | None = None
    ) -> EncodedImage:
        """Pixels, of all patches or of those that are kept, to captioning tokens and image embedding."""
        patches = self.image_encoder(images, kept_patches)
        tokens = self.captioning_pooler(patches)
        pooled = self.contrastive_pooler(tokens if self.arrangement == "cascade" else patches)[:, 0]
        return EncodedImage(tokens, F.normalize(at_least_fp32(self.image_proj(pooled)), dim=-1))

    def encode_text(self, token_ids: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> EncodedText:
        """Padded captions to unimodal tokens, without the padding, and text embedding."""
        tokens, cls = self.text_decoder(token_ids, lengths)
        return EncodedText(tokens, F.normalize(at_least_fp32(self.text_proj(cls)), dim=-1))

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Bound the learned temperature; the training step calls it after each update."""
        self.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)
