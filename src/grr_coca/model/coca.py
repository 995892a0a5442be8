"""CoCa: one model that matches images with texts and captions images (arXiv 2205.01917, figure 2).

    images ─ image_encoder ─ captioning_pooler ─┬─ contrastive_pooler ─ image_proj ─ image embedding
                                                │
    text ──── text_decoder ─────────────────────│───────────────────── text_proj ── text embedding
                    │                           │
                    └──────────────────── multimodal_decoder ─ states ─ lm_head ─── next tokens

Shapes: B pairs, I images, P patch tokens, T text positions, Q captioning tokens, D width, E joint embedding width, M
tokens of all captions that have a next token, L: M rounded up; R captions in progress, of which R / B neighbours share
an image, C width of image tokens.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from grr_coca.common.tf32 import fast_products
from grr_coca.data.batch import CoCaOutput
from grr_coca.model.attention import CachedLayout, KeyValues, at_least_fp32
from grr_coca.model.blocks import Arrange
from grr_coca.model.config import Contrastive
from grr_coca.model.image_encoder import ImageEncoder
from grr_coca.model.text_decoder import MultimodalDecoder, PackedText, TextDecoder

MAX_LOGIT_SCALE = math.log(100.0)
"""CLIP's bound on the inverse temperature (arXiv 2103.00020). Above it, training becomes unstable."""


class EncodedImage(NamedTuple):
    """Encoded images. `tokens`: the image tokens that captions attend to. `embedding`: of unit length, compared with
    texts."""

    tokens: Float[Tensor, "B Q D"]
    embedding: Float[Tensor, "B E"]


class CoCa(nn.Module):
    """The whole model. Its parts are chosen in `build` and passed in."""

    def __init__(
        self,
        *,
        image_encoder: ImageEncoder,
        captioning_pooler: nn.Module,
        contrastive_pooler: nn.Module,
        arrange: Arrange,
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
        self.arrange = arrange
        self.image_proj = image_proj
        self.text_decoder = text_decoder
        self.text_proj = text_proj
        self.multimodal_decoder = multimodal_decoder
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.logit_bias = nn.Parameter(torch.zeros(())) if contrastive == "sigmoid" else None

    @property
    def device(self) -> torch.device:
        """The device of the weights, and of all inputs."""
        return self.logit_scale.device

    def forward(
        self,
        images: Float[Tensor, "I 3 H W"],
        token_ids: Int[Tensor, "B T"],
        lengths: Int[Tensor, " B"],
        kept_patches: Int[Tensor, "I K"] | None = None,
        image_of: Int[Tensor, " B"] | None = None,
    ) -> CoCaOutput:
        """Embed images and texts, and compute the states that predict the next tokens. `Batch` describes the inputs.

        `image_of`: the index of each text's image, if several texts share one; None: text i belongs to image i.
        """
        patches = self.image_encoder(images, kept_patches)  # I P D
        image_tokens, pooled = self.arrange(self.captioning_pooler, self.contrastive_pooler, patches)  # I Q D, I 1 D
        image_embedding = _unit(self.image_proj(pooled[:, 0]))  # I E
        if image_of is not None:
            image_tokens, image_embedding = image_tokens[image_of], image_embedding[image_of]  # B Q D, B E

        text = self.text_decoder.pack(token_ids, lengths)
        cls, text_tokens = self.text_decoder(text)  # B D, 1 L D
        text_embedding = _unit(self.text_proj(cls))  # B E

        states = self.multimodal_decoder(text_tokens, image_tokens, text.predicting_layout)  # M D
        return CoCaOutput(image_embedding, text_embedding, states)

    def encode_image(
        self, images: Float[Tensor, "B 3 H W"], kept_patches: Int[Tensor, "B K"] | None = None
    ) -> EncodedImage:
        """Encode images alone: the tokens that captions attend to, and embeddings of unit length."""
        patches = self.image_encoder(images, kept_patches)
        tokens, pooled = self.arrange(self.captioning_pooler, self.contrastive_pooler, patches)
        return EncodedImage(tokens, _unit(self.image_proj(pooled[:, 0])))

    def encode_text(self, token_ids: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B E"]:
        """Encode texts alone: embeddings of unit length."""
        return self.embed_text(self.text_decoder.pack(token_ids, lengths))

    def embed_text(self, text: PackedText) -> Float[Tensor, "B E"]:
        """`encode_text` for texts that are packed already."""
        return _unit(self.text_proj(self.text_decoder(text).cls))

    def decode_step(
        self,
        token_ids: Int[Tensor, "R T"],
        contexts: Sequence[Float[Tensor, "B Q C"] | KeyValues],
        layouts: Sequence[CachedLayout],
    ) -> Float[Tensor, "R T D"]:
        """States that predict what follows each of the next tokens of R captions, and one more step in their caches.

        `contexts`: what the cross-attention of each multimodal block reads. `layouts`: of each block of both halves,
        with its cache of the earlier tokens.
        """
        text, multimodal = self.text_decoder, self.multimodal_decoder
        x = text.position(text.tok_embeddings(token_ids), layouts[0].positions)  # R T D
        num_text = len(text.blocks)
        for block, layout in zip(text.blocks, layouts[:num_text], strict=True):
            x = block(x, layout)
        for block, context, layout in zip(multimodal.blocks, contexts, layouts[num_text:], strict=True):
            x = block(x, context, layout)
        return multimodal.norm(x)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Bound the learned temperature. Call it after each update of the weights."""
        self.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode within a `with` block, and allow TF32 on CUDA. Afterwards each module has its mode
    again, even after an exception."""
    # A model that only answers queries is in eval mode already, and setting all modules would take a third of a query.
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with fast_products(next(model.parameters()).device):
            yield
    finally:
        for module in training:
            module.training = True


def _unit(x: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
    return F.normalize(at_least_fp32(x), dim=-1)
