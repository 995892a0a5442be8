"""CoCa: one model, trained at once to tell pairs apart and to caption (arXiv 2205.01917, figure 2).

Shapes: B pairs, P patch tokens, T text positions, Q captioning tokens, D width, E joint embedding width, V vocabulary.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from grr_coca.config import Arrangement, Contrastive
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
    """`tokens`: what the multimodal decoder goes on from; `embedding`: of unit length."""

    tokens: Float[Tensor, "B T D"]
    embedding: Float[Tensor, "B E"]


class CoCaOutput(NamedTuple):
    """What the losses need. `logits[:, t]` predicts the token after position t."""

    image_embedding: Float[Tensor, "B E"]
    text_embedding: Float[Tensor, "B E"]
    logits: Float[Tensor, "B T-2 V"]


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
        """Both embeddings and the caption's logits in one pass. See `Batch` for the layout of the text."""
        image = self.encode_image(images, kept_patches)
        text = self.encode_text(token_ids, lengths)
        # Even in the longest caption, the last two positions ([EOS] and [CLS]) have no token left to predict.
        logits = self.multimodal_decoder(text.tokens[:, :-2], image.tokens)
        return CoCaOutput(image.embedding, text.embedding, logits)

    def encode_image(
        self, images: Float[Tensor, "B 3 H W"], kept_patches: Int[Tensor, "B K"] | None = None
    ) -> EncodedImage:
        """Pixels, of all patches or of those that are kept, to captioning tokens and image embedding."""
        patches = self.image_encoder(images, kept_patches)
        tokens = self.captioning_pooler(patches)
        pooled = self.contrastive_pooler(tokens if self.arrangement == "cascade" else patches)[:, 0]
        return EncodedImage(tokens, F.normalize(at_least_fp32(self.image_proj(pooled)), dim=-1))

    def encode_text(self, token_ids: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> EncodedText:
        """Padded captions to unimodal tokens and text embedding."""
        tokens, cls = self.text_decoder(token_ids, lengths)
        return EncodedText(tokens, F.normalize(at_least_fp32(self.text_proj(cls)), dim=-1))

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Bound the learned temperature; the training step calls it after each update."""
        self.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)
