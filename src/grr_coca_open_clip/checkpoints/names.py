"""Convert tensors between open_clip's CoCa and our own, in both directions.

The import is lossless: tensors that are exported again are bit-identical. On export, the bias of our patch embedding,
which open_clip does not have, is added to the positions. In an imported model, this bias is 0.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from grr_coca.model.config import CoCaConfig

Tensors = Mapping[str, Tensor]
Convert = Callable[..., tuple[Tensor, ...]]


class Link(NamedTuple):
    """Corresponding tensors of both models, and their conversion in both directions."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    to_ours: Convert
    to_theirs: Convert


def links(config: CoCaConfig) -> list[Link]:
    """Return the links of a model. Each tensor of the model is in exactly one link."""
    return [*_image_encoder(config), *_pooler(config), *_text_decoder(config), *_multimodal_decoder(config)]


def to_ours(theirs: Tensors, config: CoCaConfig) -> dict[str, Tensor]:
    """Convert open_clip's weights to ours. `theirs` must contain exactly the tensors in `links`."""
    return {
        name: tensor
        for link in links(config)
        for name, tensor in zip(link.ours, link.to_ours(*(theirs[name] for name in link.theirs)), strict=True)
    }


def to_theirs(ours: Tensors, config: CoCaConfig) -> dict[str, Tensor]:
    """Convert our weights to open_clip's. `ours` must contain exactly the tensors in `links`."""
    return {
        name: tensor
        for link in links(config)
        for name, tensor in zip(link.theirs, link.to_theirs(*(ours[name] for name in link.ours)), strict=True)
    }


def _image_encoder(config: CoCaConfig) -> Iterator[Link]:
    patch_size, grid_size = config.own_image_encoder.patch_size, config.own_image_encoder.grid_size

    def from_open_clip(conv: Tensor, token: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        return conv.flatten(1), conv.new_zeros(len(conv)), positions[1:], token, positions[0]

    def to_open_clip(weight: Tensor, bias: Tensor, patches: Tensor, token: Tensor, first: Tensor) -> tuple[Tensor, ...]:
        conv = weight.unflatten(1, (3, patch_size, patch_size))
        patches = torch.where(bias == 0, patches, patches + bias)  # -0 + 0 would be 0
        return conv, token, torch.cat([first[None], patches]).view(grid_size**2 + 1, -1)

    yield Link(
        ("visual.conv1.weight", "visual.class_embedding", "visual.positional_embedding"),
        (
            "image_encoder.patch_embed.weight",
            "image_encoder.patch_embed.bias",
            "image_encoder.position.embedding",
            "image_encoder.class_token.embedding",
            "image_encoder.class_token.position",
        ),
        from_open_clip,
        to_open_clip,
    )
    yield from _affine("visual.ln_pre", "image_encoder.pre_norm")
    for i in range(config.own_image_encoder.transformer.num_layers):
        yield from _block(f"visual.transformer.resblocks.{i}", f"image_encoder.blocks.{i}")
    # open_clip's pooler normalizes its input, which no other part reads. In our model, its norm is the last norm of the
    # encoder.
    yield from _affine("visual.attn_pool.ln_k", "image_encoder.norm")


def _pooler(config: CoCaConfig) -> Iterator[Link]:
    theirs, ours = "visual.attn_pool", "captioning_pooler"
    yield _same(f"{theirs}.query", f"{ours}.queries")
    yield from _affine(f"{theirs}.ln_q", f"{ours}.query_norm")
    if config.own_image_encoder.transformer.embed_dim == config.text_decoder.transformer.embed_dim:
        yield _fused_projection(f"{theirs}.attn.in_proj_weight", f"{ours}.attn", "weight")
    else:
        yield _separate_projections(f"{theirs}.attn", f"{ours}.attn")
    yield _fused_projection(f"{theirs}.attn.in_proj_bias", f"{ours}.attn", "bias")
    yield from _affine(f"{theirs}.attn.out_proj", f"{ours}.attn.out_proj")
    yield from _affine("visual.ln_post", f"{ours}.norm")
    yield _transposed("visual.proj", "image_proj.weight")


def _text_decoder(config: CoCaConfig) -> Iterator[Link]:
    yield _same("text.token_embedding.weight", "text_decoder.tok_embeddings.weight")
    yield _same("text.cls_emb", "text_decoder.cls_embedding")
    yield _same("text.positional_embedding", "text_decoder.position.embedding")
    for i in range(config.text_decoder.transformer.num_layers):
        yield from _block(f"text.transformer.resblocks.{i}", f"text_decoder.blocks.{i}")
    yield from _affine("text.ln_final", "text_decoder.cls_norm")
    yield _transposed("text.text_projection", "text_proj.weight")


def _multimodal_decoder(config: CoCaConfig) -> Iterator[Link]:
    for i in range(config.multimodal_decoder.transformer.num_layers):
        ours = f"multimodal_decoder.blocks.{i}"
        yield from _block(f"text_decoder.resblocks.{i}", f"{ours}.block")
        yield from _cross_block(f"text_decoder.cross_attn.{i}", ours)
    yield from _affine("text_decoder.ln_final", "multimodal_decoder.norm")
    yield _transposed("text_decoder.text_projection", "multimodal_decoder.lm_head.weight")
    yield _same("logit_scale", "logit_scale")


def _block(theirs: str, ours: str) -> Iterator[Link]:
    yield from _affine(f"{theirs}.ln_1", f"{ours}.attn_norm")
    yield _same(f"{theirs}.attn.in_proj_weight", f"{ours}.attn.qkv_proj.weight")
    yield _same(f"{theirs}.attn.in_proj_bias", f"{ours}.attn.qkv_proj.bias")
    yield from _affine(f"{theirs}.attn.out_proj", f"{ours}.attn.out_proj")
    yield from _mlp(theirs, ours)


def _cross_block(theirs: str, ours: str) -> Iterator[Link]:
    yield from _affine(f"{theirs}.ln_1", f"{ours}.cross_attn_norm")
    yield from _affine(f"{theirs}.ln_1_kv", f"{ours}.cross_attn.context_affine")
    yield _fused_projection(f"{theirs}.attn.in_proj_weight", f"{ours}.cross_attn", "weight")
    yield _fused_projection(f"{theirs}.attn.in_proj_bias", f"{ours}.cross_attn", "bias")
    yield from _affine(f"{theirs}.attn.out_proj", f"{ours}.cross_attn.out_proj")
    yield from _mlp(theirs, ours)


def _mlp(theirs: str, ours: str) -> Iterator[Link]:
    yield from _affine(f"{theirs}.ln_2", f"{ours}.ffn_norm")
    yield from _affine(f"{theirs}.mlp.c_fc", f"{ours}.feed_forward.up_proj")
    yield from _affine(f"{theirs}.mlp.c_proj", f"{ours}.feed_forward.down_proj")


def _affine(theirs: str, ours: str) -> Iterator[Link]:
    """Yield the links of the weight and bias of a linear layer or a norm."""
    yield _same(f"{theirs}.weight", f"{ours}.weight")
    yield _same(f"{theirs}.bias", f"{ours}.bias")


def _same(theirs: str, ours: str) -> Link:
    return Link((theirs,), (ours,), lambda tensor: (tensor,), lambda tensor: (tensor,))


def _transposed(theirs: str, ours: str) -> Link:
    return Link((theirs,), (ours,), lambda tensor: (tensor.T,), lambda tensor: (tensor.T,))


def _fused_projection(theirs: str, ours: str, kind: str) -> Link:
    """Return the link of an attention projection that open_clip stores as one tensor and we store as two, q and kv."""

    def split(tensor: Tensor) -> tuple[Tensor, ...]:
        return tensor.tensor_split([len(tensor) // 3])

    def join(q: Tensor, kv: Tensor) -> tuple[Tensor, ...]:
        return (torch.cat([q, kv]),)

    return Link((theirs,), (f"{ours}.q_proj.{kind}", f"{ours}.kv_proj.{kind}"), split, join)


def _separate_projections(theirs: str, ours: str) -> Link:
    """Return the link of an attention projection that open_clip stores as q, k and v, and we store as q and kv."""

    def join(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return q, torch.cat([k, v])

    def split(q: Tensor, kv: Tensor) -> tuple[Tensor, ...]:
        return q, *kv.chunk(2)

    names = tuple(f"{theirs}.{name}_proj_weight" for name in "qkv")
    return Link(names, (f"{ours}.q_proj.weight", f"{ours}.kv_proj.weight"), join, split)
