"""Heat map of a text: the contribution of each patch to the similarity of image and text.

Shapes: P patches, G patches along a side, S image size in pixels, Q pooled tokens, D width, E joint embedding width.
A pooler reads a context of S tokens of width C: patches or image tokens.

Only attentional poolers and projections are between the patch tokens and the image embedding. With attention weights
and statistics of norms held constant, this path is linear in the patch tokens, so the cosine of image and text is a sum
over patches. The contribution of a patch is the product of its attention-weighted value and the text embedding
(values weighted by attention: Kobayashi et al., arXiv 2004.10102; CLIP's score as a sum over patches: Gandelsman et
al., arXiv 2310.05916). A patch with a negative contribution contradicts the text.

Limits: the map does not show how a patch changes the attention to other patches, nor the information that the image
encoder has moved between patches.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.data.tokenizer import clean_query
from grr_coca.infer.explain.attention import AttentionRecord, attention_weights, mix_values
from grr_coca.infer.generate.next_token import require_finite
from grr_coca.model.attention import at_least_fp32
from grr_coca.model.blocks import AttentionalPooler, RMSNorm
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.model.coca import CoCa, evaluating


class TextMap(NamedTuple):
    """Contribution of each patch to the cosine similarity of image and text.

    The contributions sum to `similarity`, minus two parts that belong to no patch: those of the biases of LayerNorms
    and of a class token.
    """

    heat: Float[Tensor, "G G"]
    similarity: float


@torch.inference_mode(False)  # gradients are needed, regardless of the caller's mode
def text_map(checkpoint: Checkpoint, pixels: Float[Tensor, "3 S S"], text: str) -> TextMap:
    """Return the heat map of a preprocessed image for a text.

    Raises:
        UserError: If the text is empty, or the model computes NaN.
    """
    model, side = checkpoint.model, checkpoint.config.own_image_encoder.grid_size
    token_ids, lengths = checkpoint.tokenize([clean_query(text, "the text")])
    with evaluating(model), torch.no_grad():
        text_vector = model.encode_text(token_ids, lengths)
        patches = model.own_image_encoder(pixels[None].to(model.device, model.logit_scale.dtype))
        similarity = (_embed(model, patches) * text_vector).sum().item()
    require_finite(np.array(similarity))
    shares = patch_shares(model, patches, text_vector)[: side**2]
    return TextMap(shares.unflatten(0, (side, side)).float().cpu(), similarity)


def patch_shares(
    model: CoCa, patches: Float[Tensor, "1 P D"], text_vector: Float[Tensor, "1 E"]
) -> Float[Tensor, " P"]:
    """Return the contribution of each patch to the dot product of image embedding and `text_vector`; a class token is
    last.
    """
    with torch.enable_grad():
        patches = patches.detach().requires_grad_()
        score = (_embed(model, patches) * text_vector.detach()).sum()
        # The score is linear in the patches, so the contribution of a patch is patch times gradient.
        (gradient,) = torch.autograd.grad(score, patches)
    return (gradient * patches.detach()).sum(dim=-1)[0]


def _embed(model: CoCa, patches: Float[Tensor, "1 P D"]) -> Float[Tensor, "1 E"]:
    """Compute the image embedding from patches, so that gradients treat attention weights and norm statistics as
    constants."""
    captioning, contrastive = (partial(_pool, pooler) for pooler in (model.captioning_pooler, model.contrastive_pooler))
    embedding = at_least_fp32(model.image_proj(model.arrange(captioning, contrastive, patches, None).contrastive[:, 0]))
    return embedding / embedding.detach().norm(dim=-1, keepdim=True)


def _pool(pooler: nn.Module, context: Float[Tensor, "1 S C"], _: None) -> Float[Tensor, "1 Q D"]:
    if not isinstance(pooler, AttentionalPooler):  # no pooler: the tokens stay unchanged
        return context
    weights, values = attention_weights(pooler.attn, pooler.attending_queries()[None], context)
    return _norm(pooler.norm, pooler.attn.out_proj(mix_values(AttentionRecord(weights.detach(), values))))


def _norm(norm: nn.Module, x: Float[Tensor, "1 Q D"]) -> Float[Tensor, "1 Q D"]:
    """Return the norm with constant statistics: linear in `x`, except for the bias."""
    if isinstance(norm, RMSNorm):
        return x * (x.detach().square().mean(dim=-1, keepdim=True) + norm.eps).rsqrt() * norm.weight
    if isinstance(norm, nn.LayerNorm):
        centred = x - x.mean(dim=-1, keepdim=True)
        variance = centred.detach().square().mean(dim=-1, keepdim=True)
        return centred * (variance + norm.eps).rsqrt() * norm.weight + norm.bias
    raise NotImplementedError(f"no heat map of a text for the norm {type(norm).__name__}: add it to {__name__}._norm")
