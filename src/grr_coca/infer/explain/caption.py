"""Heat maps of a caption: the patches to which a model attends for each word.

Shapes: T caption tokens, P patches, G patches along a side, S image size in pixels. Attention: B batch, R rows, T
queries of width D, S context tokens of width C, H heads of width Dh.

Words attend to image tokens, and image tokens attend to patches. The relevance of a patch to a word is the attention to
the patch, times the gradient of the word's logit with respect to that attention. Negative products count as 0, and
the products are summed over heads and queries. (Chefer et al., arXiv 2103.15679, equation 5, instead take the mean over
heads.)
The gradient flows from the word back through the cross-attention of every layer.

Two other maps were tried (`studies/LOG.md`). The product of attention matrices (rollout, Abnar and Zuidema, arXiv
2005.00928) is nearly the same for all words of a caption, and hiding its most relevant patches lowers a word's
probability less. Using the gradient of the log-probability instead of the logit fails if the model is sure of the
word.

Limits: the gradient is only a first-order approximation. In the image encoder, each patch token has already attended to
other patches, so the map describes tokens rather than pixels.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.common.torch_private import copy_modules
from grr_coca.data.tokenizer import CLS_SLOT, Tokenizer
from grr_coca.model.attention import PLAIN, CrossAttention, Layout
from grr_coca.model.blocks import AttentionalPooler
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.model.coca import CoCa


class WordMap(NamedTuple):
    """A word, and the relevance of each patch to it.

    Values are not negative, and sum to 1 (or 0 if no patch is relevant).
    """

    word: str
    heat: Float[Tensor, "G G"]


def caption_maps(checkpoint: Checkpoint, pixels: Float[Tensor, "3 S S"], token_ids: Sequence[int]) -> list[WordMap]:
    """Return one map for each word of a caption, in the order of the words.

    The map of a word with several tokens is the mean of the tokens' maps. A caption without words has no maps.

    Args:
        checkpoint: The model.
        pixels: The preprocessed image.
        token_ids: The caption without its begin token. The end token and all following tokens are ignored.

    Raises:
        UserError: If the model takes features of a frozen encoder.
    """
    eos = checkpoint.tokenizer.eos_id
    words = list(token_ids[: list(token_ids).index(eos)] if eos in token_ids else token_ids)
    if not words:
        return []
    relevance = patch_relevance(checkpoint.model, pixels, [checkpoint.tokenizer.bos_id, *words])
    side = checkpoint.config.own_image_encoder.grid_size
    heat = relevance.unflatten(1, (side, side))
    return [WordMap(word, heat[tokens].mean(dim=0)) for word, tokens in group_words(checkpoint.tokenizer, words)]


@torch.inference_mode(False)  # gradients are needed, regardless of the caller's mode
def patch_relevance(model: CoCa, pixels: Float[Tensor, "3 S S"], token_ids: Sequence[int]) -> Float[Tensor, "T P"]:
    """Return the relevance of each patch to each token except the first, the begin token, on the CPU.

    The relevances of the patches to a token sum to 1, or to 0 if no patch is relevant. The model is not changed.
    """
    model = copy_modules(model).eval()  # hooks change the attention of this copy, which must not affect other threads
    ids = torch.tensor([[*token_ids, CLS_SLOT]], device=model.device)
    # The last caption token takes the place of the end token, from which nothing is predicted.
    text = model.text_decoder.pack(ids, torch.tensor([ids.shape[1]]))
    layers = _patch_attention_layers(model)
    with torch.no_grad():
        patches = model.own_image_encoder(pixels[None].to(model.device, model.logit_scale.dtype))
        text_tokens = model.text_decoder(text).tokens
    with torch.enable_grad(), record_attention(layers) as recorded:
        patches.requires_grad_()  # makes gradients available even if parameters are frozen
        image_tokens = model.arrange(model.captioning_pooler, model.contrastive_pooler, patches, None).tokens
        states = model.multimodal_decoder(text_tokens, image_tokens, text.predicting_layout)
        logits = model.multimodal_decoder.lm_head(states)
        logits = logits.gather(1, ids[0, 1:-1, None])[:, 0]  # T: logit of each caption token
    weights = [recorded[layer].weights for layer in layers]
    rows = []
    for logit in logits:
        gradients = torch.autograd.grad(logit, weights, retain_graph=True)
        shares = [(w * g).clamp(min=0).sum(dim=(0, 1, 2)) for w, g in zip(weights, gradients, strict=True)]
        rows.append(torch.stack(shares).sum(dim=0))
    # a class token may follow the patches
    num_patches = (pixels.shape[-1] // model.own_image_encoder.stem.patch_size) ** 2
    relevance = torch.stack(rows)[:, :num_patches].detach().float().cpu()
    return relevance / relevance.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def _patch_attention_layers(model: CoCa) -> list[CrossAttention]:
    """Return the attention layers that attend to patches: the layer of the captioning pooler or, if the model has no
    such pooler, the cross-attention layers of the decoder.
    """
    if isinstance(model.captioning_pooler, AttentionalPooler):
        return [model.captioning_pooler.attn]
    return [block.cross_attn for block in model.multimodal_decoder.blocks]  # type: ignore[misc]


def group_words(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Return the words of a caption, each with the positions of its tokens.

    A token begins a new word if adding it to the decoded text adds a word. This works for every vocabulary, no
    matter how it marks spaces.
    """
    words: list[list[int]] = []
    for position in range(len(token_ids)):
        count = len(tokenizer.decode(token_ids[: position + 1]).split())
        if count > len(words) or not words:
            words.append([])
        words[-1].append(position)
    texts = tokenizer.decode(token_ids).split()
    return list(zip(texts, words, strict=False))


# --- Attention weights of cross-attention layers, recorded without a special mode in the model


class AttentionRecord(NamedTuple):
    """Attention weights of one forward pass (each row sums to 1), and the values that are averaged with these
    weights."""

    weights: Float[Tensor, "B H T S"]
    values: Float[Tensor, "B S H Dh"]


@contextmanager
def record_attention(modules: Iterable[CrossAttention]) -> Iterator[dict[nn.Module, AttentionRecord]]:
    """Make modules compute attention weights explicitly, and yield the weights of each module's last pass.

    Normally, modules use fused attention, which never computes the weights explicitly. Here, the outputs are the same
    up to rounding, but they are computed from the recorded weights, so gradients with respect to the weights exist.
    """
    recorded: dict[nn.Module, AttentionRecord] = {}

    def recompute(module: nn.Module, inputs: tuple, _output: Tensor) -> Tensor:
        assert isinstance(module, CrossAttention)
        x, context, layout = (*inputs, PLAIN)[:3]
        recorded[module] = attention_weights(module, x, context, layout)
        return module.out_proj(layout.unpad(mix_values(recorded[module])))

    hooks = [module.register_forward_hook(recompute) for module in modules]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


def attention_weights(
    module: CrossAttention, x: Float[Tensor, "R T D"], context: Float[Tensor, "B S C"], layout: Layout = PLAIN
) -> AttentionRecord:
    """Return the attention weights and values of a module for the given inputs.

    The padding of packed sequences also has rows of weights.
    """
    queries = layout.pad(module.q_proj(x).unflatten(-1, (module.num_heads, -1)))  # B T H Dh
    keys, values = module.project(context)  # B S H Dh
    scores = torch.einsum("bthd,bshd->bhts", queries * queries.shape[-1] ** -0.5, keys)
    return AttentionRecord(scores.softmax(dim=-1), values)


def mix_values(attended: AttentionRecord) -> Float[Tensor, "B T D"]:
    """Return the weighted sum of the values, with heads concatenated: the input of the output projection."""
    return torch.einsum("bhts,bshd->bthd", *attended).flatten(2)
