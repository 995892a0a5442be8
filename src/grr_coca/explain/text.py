"""Heat map of a text: the share of each patch in the similarity of image and text.

Shapes: P patches, G patches along a side, Q pooled tokens, D width, E joint embedding width, S image size.

Between the patch tokens and the image embedding lie attentional poolers and projections alone. With the attention
weights and the norms' statistics held as they are, that path is linear in the patches' values, so the cosine of image
and text is a sum over patches: each patch's share is its value, weighted by the attention that it gets, compared with
the text (values weighted by attention: Kobayashi et al., arXiv 2004.10102; CLIP's score as a sum over patches:
Gandelsman et al., arXiv 2310.05916). Below zero, a patch speaks against the text.

What it cannot tell: how a patch changes the attention that others get, and what the image encoder moved between
patches before.
"""

from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.checkpoint import Checkpoint
from grr_coca.data.rows import pad_rows
from grr_coca.data.text import clean_caption
from grr_coca.explain.attention import Attended, attention_weights, mix_values
from grr_coca.layers.norm import RMSNorm
from grr_coca.layers.pooler import AttentionalPooler
from grr_coca.layers.precision import at_least_fp32
from grr_coca.model import CoCa
from grr_coca.model.mode import evaluating


class TextMap(NamedTuple):
    """The share of each patch in the similarity of image and text.

    The shares sum to the cosine `similarity`; with LayerNorm less what its biases alone give, whatever the image, and
    with a class token less its share.
    """

    heat: Float[Tensor, "G G"]
    similarity: float


def text_map(checkpoint: Checkpoint, pixels: Float[Tensor, "3 S S"], text: str) -> TextMap:
    """The map of an image, as the model sees it, and a text.

    Raises:
        UserError: the text is empty.
    """
    model, side = checkpoint.model, checkpoint.config.image_encoder.grid_size
    row = checkpoint.tokenizer.encode_row(clean_caption(text, "text"), checkpoint.config.text_decoder.context_length)
    token_ids, lengths = (tensor.to(model.logit_scale.device) for tensor in pad_rows([row]))
    with evaluating(model), torch.no_grad():
        wanted = model.encode_text(token_ids, lengths)
        patches = model.image_encoder(pixels[None].to(model.logit_scale.device))
        similarity = (_embed(model, patches) * wanted).sum().item()
    shares = patch_shares(model, patches, wanted)[: side**2]
    return TextMap(shares.unflatten(0, (side, side)).float().cpu(), similarity)


def patch_shares(model: CoCa, patches: Float[Tensor, "1 P D"], wanted: Float[Tensor, "1 E"]) -> Float[Tensor, " P"]:
    """Each patch's summand of the image embedding's product with `wanted`; a class token behind them has one too."""
    with torch.enable_grad():
        patches = patches.detach().requires_grad_()
        score = (_embed(model, patches) * wanted.detach()).sum()
        # Of a sum that is linear in its inputs, input times gradient is the share of each.
        (gradient,) = torch.autograd.grad(score, patches)
    return (gradient * patches.detach()).sum(dim=-1)[0]


def _embed(model: CoCa, patches: Float[Tensor, "1 P D"]) -> Float[Tensor, "1 E"]:
    """`CoCa.encode_image` from the patches on; its gradient takes attention and norms for constants."""
    captioning, contrastive = (partial(_pool, pooler) for pooler in (model.captioning_pooler, model.contrastive_pooler))
    embedding = at_least_fp32(model.image_proj(model.arrange(captioning, contrastive, patches).contrastive[:, 0]))
    return embedding / embedding.detach().norm(dim=-1, keepdim=True)


def _pool(pooler: nn.Module, context: Float[Tensor, "1 S C"]) -> Float[Tensor, "1 Q D"]:
    if not isinstance(pooler, AttentionalPooler):  # there is none, and the tokens stay as they are
        return context
    weights, values = attention_weights(pooler.attn, pooler.query_norm(pooler.queries)[None], context)
    return _norm(pooler.norm, pooler.attn.out_proj(mix_values(Attended(weights.detach(), values))))


def _norm(norm: nn.Module, x: Float[Tensor, "1 Q D"]) -> Float[Tensor, "1 Q D"]:
    """The norm with its statistics held as they are."""
    if isinstance(norm, RMSNorm):
        return x * (x.detach().square().mean(dim=-1, keepdim=True) + norm.eps).rsqrt() * norm.weight
    assert isinstance(norm, nn.LayerNorm)
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.detach().square().mean(dim=-1, keepdim=True)
    return centred * (variance + norm.eps).rsqrt() * norm.weight + norm.bias
