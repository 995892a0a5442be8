"""The whole model against a second one, written here from the papers' formulas alone.

The reference reads nothing but the state dict and the config. It takes one pair at a time, its caption unpadded,
loops over heads, positions and patches, and computes in fp64. No module of torch, no fused attention, no batch.
"""

import math
from collections.abc import Sequence

import pytest
import torch
from support import by_caption
from torch import Tensor

from grr_coca.model.build import build
from grr_coca.model.coca import CoCa
from grr_coca.model.config import CoCaConfig, TransformerConfig

Weights = dict[str, Tensor]


# --- Layers ---


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def standardized(kind: str, x: Tensor) -> Tensor:
    if kind != "rms":
        x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + (1e-5 if kind == "layer_1e-5" else 1e-6)).sqrt()


def norm(w: Weights, name: str, kind: str, x: Tensor) -> Tensor:
    y = standardized(kind, x) * w[f"{name}.weight"]
    return y if kind == "rms" else y + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def feed_forward(w: Weights, name: str, kind: str, x: Tensor) -> Tensor:
    up = linear(w, f"{name}.up_proj", x)
    hidden = gelu(linear(w, f"{name}.gate_proj", x)) * up if kind == "geglu" else gelu(up)
    return linear(w, f"{name}.down_proj", hidden)


def attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int, causal: bool = False, hidden: Sequence[int] = ()) -> Tensor:
    """q: T D; k and v: S D; `hidden`: keys that no query sees."""
    width = q.shape[1] // num_heads
    heads = []
    for h in range(num_heads):
        channels = slice(h * width, (h + 1) * width)
        mixed = []
        for t in range(len(q)):
            visible = [s for s in range(t + 1 if causal else len(k)) if s not in hidden]
            scores = (k[visible, channels] @ q[t, channels] / math.sqrt(width)).exp()
            mixed.append(scores / scores.sum() @ v[visible, channels])
        heads.append(torch.stack(mixed))
    return torch.cat(heads, dim=1)


def turn(x: Tensor, num_heads: int, position: str, grid_size: int) -> Tensor:
    """RoPE on x, T D: every pair of neighbouring channels of every head, one by one."""
    if position == "learned":
        return x
    y = x.clone()
    width = x.shape[1] // num_heads
    for t in range(len(x)):
        for c in range(width // 2):
            if position == "rope_1d":
                angle = t / 10_000 ** (2 * c / width)
            else:
                quarter = width // 4
                along = t // grid_size if c < quarter else t % grid_size
                angle = along / 100 ** ((c % quarter) / quarter)
            for h in range(num_heads):
                even, odd = h * width + 2 * c, h * width + 2 * c + 1
                y[t, even] = x[t, even] * math.cos(angle) - x[t, odd] * math.sin(angle)
                y[t, odd] = x[t, even] * math.sin(angle) + x[t, odd] * math.cos(angle)
    return y


def self_attention(
    w: Weights, name: str, t: TransformerConfig, x: Tensor, causal: bool, grid_size: int = 0, hidden: Sequence[int] = ()
) -> Tensor:
    q, k, v = linear(w, f"{name}.qkv_proj", x).split(t.embed_dim, dim=1)
    q, k = (turn(projected, t.num_heads, t.position, grid_size) for projected in (q, k))
    return linear(w, f"{name}.out_proj", attend(q, k, v, t.num_heads, causal, hidden))


def cross_attention(w: Weights, name: str, num_heads: int, x: Tensor, context: Tensor) -> Tensor:
    if f"{name}.context_affine.weight" in w:
        context = context * w[f"{name}.context_affine.weight"] + w[f"{name}.context_affine.bias"]
    k, v = linear(w, f"{name}.kv_proj", context).split(x.shape[1], dim=1)
    return linear(w, f"{name}.out_proj", attend(linear(w, f"{name}.q_proj", x), k, v, num_heads))


# --- CoCa ---


def encode_patches(w: Weights, config: CoCaConfig, image: Tensor) -> Tensor:
    t, p, grid_size = config.image_encoder.transformer, config.image_encoder.patch_size, config.image_encoder.grid_size
    x = torch.stack(
        [
            image[:, r * p : (r + 1) * p, c * p : (c + 1) * p].reshape(-1)
            for r in range(grid_size)
            for c in range(grid_size)
        ]
    )
    x = linear(w, "image_encoder.patch_embed", x)
    if t.position == "learned":
        x = x + w["image_encoder.position.embedding"]
    if config.architecture == "open_clip":
        token = w["image_encoder.class_token.embedding"] + w["image_encoder.class_token.position"]
        x = torch.cat([x, token[None]])
    if config.architecture == "open_clip":
        x = norm(w, "image_encoder.pre_norm", t.norm, x)
    for i in range(t.num_layers):
        name = f"image_encoder.blocks.{i}"
        h = norm(w, f"{name}.attn_norm", t.norm, x)
        x = x + self_attention(w, f"{name}.attn", t, h, causal=False, grid_size=grid_size)
        h = norm(w, f"{name}.ffn_norm", t.norm, x)
        x = x + feed_forward(w, f"{name}.feed_forward", t.feed_forward, h)
    return norm(w, "image_encoder.norm", t.norm, x)


def pool(w: Weights, config: CoCaConfig, name: str, context: Tensor) -> Tensor:
    queries = w[f"{name}.queries"]
    if config.architecture == "open_clip":
        queries = norm(w, f"{name}.query_norm", config.poolers.norm, queries)
    pooled = cross_attention(w, f"{name}.attn", config.poolers.num_heads, queries, context)
    return norm(w, f"{name}.norm", config.poolers.norm, pooled)


def unit(x: Tensor) -> Tensor:
    return x / x.pow(2).sum().sqrt()


def reference(w: Weights, config: CoCaConfig, image: Tensor, caption: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Image embedding, text embedding, and the logits of one pair; `caption` is [BOS] words [EOS], without [CLS]."""
    patches = encode_patches(w, config, image)
    tokens = patches if config.poolers.num_queries is None else pool(w, config, "captioning_pooler", patches)
    if config.poolers.arrangement == "shared":
        contrastive, tokens = tokens[0], tokens[1:]
    else:
        source = tokens if config.poolers.arrangement == "cascade" else patches
        contrastive = pool(w, config, "contrastive_pooler", source)[0]
    image_embedding = unit(linear(w, "image_proj", contrastive))

    t, num_tokens, context_length = config.text_decoder.transformer, len(caption), config.text_decoder.context_length
    positions, hidden = [*range(num_tokens + 1)], []
    if config.architecture == "open_clip":
        # Padding is 0, all of the context is there, and what follows a 0 is hidden.
        caption = caption + [0] * (context_length - 1 - num_tokens)
        positions, hidden = [*range(context_length)], [i + 1 for i, token in enumerate(caption) if token == 0]
    words = [w["text_decoder.tok_embeddings.weight"][i] for i in caption]
    x = torch.stack([*words, w["text_decoder.cls_embedding"]])
    if t.position == "learned":
        x = x + w["text_decoder.position.embedding"][positions]
    for i in range(t.num_layers):
        name = f"text_decoder.blocks.{i}"
        h = norm(w, f"{name}.attn_norm", t.norm, x)
        x = x + self_attention(w, f"{name}.attn", t, h, causal=True, hidden=hidden)
        x = x + feed_forward(w, f"{name}.feed_forward", t.feed_forward, norm(w, f"{name}.ffn_norm", t.norm, x))
    text_embedding = unit(linear(w, "text_proj", norm(w, "text_decoder.cls_norm", t.norm, x[-1])))

    t = config.multimodal_decoder.transformer
    x = x[: num_tokens - 1]
    if config.architecture == "open_clip":
        tokens = standardized("layer_1e-5", tokens)
    for i in range(t.num_layers):
        name = f"multimodal_decoder.blocks.{i}"
        first = f"{name}.block" if config.architecture == "open_clip" else name
        x = x + self_attention(w, f"{first}.attn", t, norm(w, f"{first}.attn_norm", t.norm, x), causal=True)
        if config.architecture == "open_clip":
            x = x + feed_forward(w, f"{first}.feed_forward", t.feed_forward, norm(w, f"{first}.ffn_norm", t.norm, x))
        h = norm(w, f"{name}.cross_attn_norm", t.norm, x)
        x = x + cross_attention(w, f"{name}.cross_attn", t.num_heads, h, tokens)
        x = x + feed_forward(w, f"{name}.feed_forward", t.feed_forward, norm(w, f"{name}.ffn_norm", t.norm, x))
    logits = linear(w, "multimodal_decoder.lm_head", norm(w, "multimodal_decoder.norm", t.norm, x))
    return image_embedding, text_embedding, logits


# --- The comparison ---


def _with_every_parameter_moved(config: CoCaConfig) -> CoCa:
    """So that no bias is zero, no norm's weight one, and no embedding small enough to hide a mistake."""
    model = build(config, seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize(
    ("preset", "poolers"),
    [
        ("grr_coca", {}),
        ("baseline_coca", {}),
        ("coca", {}),
        ("grr_coca_rope_1d", {}),
        ("grr_coca", {"arrangement": "parallel"}),
        ("coca", {"arrangement": "parallel"}),
        ("grr_coca", {"num_queries": None}),
        ("open_clip_coca", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(f"{k}={v}" for k, v in value.items()) or "default",
)
def test_model_equals_the_naive_reference(tiny_config, make_batch, preset, poolers):
    config = tiny_config(preset, **poolers)
    model, batch = _with_every_parameter_moved(config), make_batch(config, num_words=(3, 9, 1))
    with torch.no_grad():
        output = model(batch.images, batch.token_ids, batch.lengths)
    weights = {name: weight.double() for name, weight in model.state_dict().items()}
    for i, length in enumerate(batch.lengths.tolist()):
        caption = batch.token_ids[i, : length - 1].tolist()
        image_embedding, text_embedding, logits = reference(weights, config, batch.images[i].double(), caption)
        torch.testing.assert_close(output.image_embedding[i].double(), image_embedding, rtol=0, atol=2e-6)
        torch.testing.assert_close(output.text_embedding[i].double(), text_embedding, rtol=0, atol=2e-6)
        assert logits.abs().max() > 0.5
        torch.testing.assert_close(by_caption(model, output, batch.lengths)[i].double(), logits, rtol=1e-5, atol=1e-5)
