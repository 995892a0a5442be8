"""Small CoCa models of open_clip, their weights and their inputs, drawn alike wherever they are drawn.

numpy's `RandomState` gives the same numbers for ever, so no weights need to be recorded.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def _case(
    image_dim: int, *, layers: int, patch_size: int, heads: tuple[int, int], queries: int, context: int = 9
) -> dict[str, Any]:
    text = {"context_length": context, "vocab_size": 40, "width": 16, "heads": heads[1], "layers": layers}
    vision = {"image_size": 16, "layers": layers, "width": image_dim, "head_width": image_dim // heads[0]}
    pooler = {"attentional_pool": True, "attn_pooler_queries": queries, "attn_pooler_heads": heads[1]}
    return {
        "embed_dim": 16,
        "vision_cfg": {**vision, **pooler, "patch_size": patch_size, "output_tokens": True},
        "text_cfg": {**text, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": text,
    }


CASES = {
    "one width": _case(16, layers=2, patch_size=4, heads=(2, 2), queries=6),
    "two widths": _case(24, layers=2, patch_size=4, heads=(3, 2), queries=5),
    "one layer": _case(24, layers=1, patch_size=8, heads=(2, 4), queries=9, context=6),
}
"""What `open_clip.coca_model.CoCa` takes. In the first, query, key and value of the pooler are one tensor."""
GRADIENTS_OF = "two widths"


def _drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(np.asarray(values))


def draw_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights in fp64: no norm is 1, no bias 0."""
    drawn = {}
    for name, shape in shapes.items():
        values = _drawn(name, tuple(shape))
        if name == "logit_scale":
            drawn[name] = 2 + 0 * values
        elif len(shape) == 1 and name.endswith("weight"):
            drawn[name] = 1 + 0.3 * values
        elif len(shape) == 1 or "embedding" in name:
            drawn[name] = 0.3 * values
        elif name.endswith("query"):
            drawn[name] = 2 * values
        else:
            drawn[name] = values * values[0].numel() ** -0.5
    return drawn


def draw_images(case: dict[str, Any]) -> Tensor:
    """One for each caption of `draw_captions`."""
    side = case["vision_cfg"]["image_size"]
    return _drawn("images", (len(draw_captions(case)), 3, side, side))


def draw_captions(case: dict[str, Any]) -> list[list[int]]:
    """Captions from none to as many words as there is place for, with their begin and end, and one with a word 0."""
    vocab_size, longest = case["text_cfg"]["vocab_size"], case["text_cfg"]["context_length"] - 2
    begin, end = vocab_size - 2, vocab_size - 1
    words = np.random.RandomState(0).randint(1, begin, (longest + 1, longest)).tolist()
    captions = [[begin, *row[:count], end] for count, row in enumerate(words)]
    return [*captions, [begin, 5, 0, 7, 9, end][: longest + 2]]


def coefficients(name: str, like: Tensor) -> Tensor:
    """What an output is multiplied by in the sum whose gradients are compared."""
    return _drawn(f"coefficients of {name}", tuple(like.shape))


SHAPES_OF_IMAGES = ((32, 32), (50, 40), (40, 75), (200, 33), (33, 97))
"""Width and height."""
TEXTS = (
    "a photo of a cat",
    "",
    "A &amp; B &amp;amp; C &lt;b&gt;",
    "cafÃ© au lait",
    "ﬁne ﬂags",
    "wow!♥ 100% naïve “quotes” and ‘these’",
    "don't STOP\tnow\n東京 🎉🎉",
    "ＦＵＬＬ ｗｉｄｔｈ",
    " ".join(["word"] * 90),
)


def noise_image(size: tuple[int, int]) -> Image.Image:
    """Smooth and rough parts, in RGB."""
    width, height = size
    rng = np.random.RandomState(width * height)
    noise = rng.randint(0, 256, (height, width, 3))
    slope = np.linspace(0, 255, width)[None, :, None]
    return Image.fromarray(np.where(np.arange(height)[:, None, None] % 2, noise, slope).astype(np.uint8))
