"""The page of a search result: one HTML file with the images of the hits inside."""

import base64
import html
from collections.abc import Iterator
from string import Template
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from grr_coca.common.errors import UserError
from grr_coca.data.images import decode_image, encoded
from grr_coca_search.answer import Hit, Query, SearchResult

if TYPE_CHECKING:
    from grr_coca_search.index_model import IndexModel

_SIDE = 192
"""Longest side of a thumbnail, in pixels."""
_OPACITY = 0.6
_FOR, _AGAINST = (200, 30, 40), (40, 80, 200)
"""Colours of parts that speak for the query and against it."""

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; }
p { margin: 0 0 1.5rem; opacity: .75; }
ol { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax($width, 1fr)); }
ol { list-style: none; padding: 0; }
li { min-width: 0; }
.images { display: flex; gap: .4rem; }
img, .gone { background: #fff; border: 1px solid #8884; border-radius: 6px; height: 12rem; width: 12rem; }
img { object-fit: contain; }
.gone { align-items: center; color: #666; display: flex; justify-content: center; }
b { font-variant-numeric: tabular-nums; }
small { display: block; opacity: .65; overflow-wrap: anywhere; }
</style>
<h1>$title</h1>
<p>$summary</p>
<ol>
$items
</ol>
</html>
""")


def answer_page(answer: SearchResult, query: Query, model: "IndexModel | None" = None) -> str:
    """The page of a search result, as HTML.

    Args:
        answer: the hits.
        query: the query, for the title.
        model: if given, a second image beside each hit shows which parts speak for the query (red) and against it
            (blue).
    """
    summary = f"{len(answer):,} of {answer.searched:,} images."
    if answer.opening:
        why, nearest = (part[0].upper() + part[1:] for part in answer.opening.split("; "))
        summary = f"{why}. {nearest}: {summary}"
    if model is not None:
        summary += " Red parts speak for the query, blue ones against it."
    items = "\n".join(_items(answer, model))
    width = f"{12 if model is None else 25}rem"
    return _PAGE.substitute(title=html.escape(_title(query)), summary=summary, items=items, width=width)


def _title(query: Query) -> str:
    asked = [*query.texts, *(f"like {image}" for image in query.images if not isinstance(image, Image.Image))]
    return ", ".join(asked) + "".join(f", without {text}" for text in query.without)


def _items(answer: SearchResult, model: "IndexModel | None") -> Iterator[str]:
    for rank, hit in enumerate(answer, 1):
        copies = f" · {len(hit.copies)} more that look the same" if hit.copies else ""
        path = html.escape(hit.path)
        yield (
            f'<li><div class="images">{_images(hit, answer.vector, model)}</div>'
            f"{rank}. <b>{answer.shown_relevance(hit)}</b> {html.escape(hit.caption)}{copies}<small>{path}</small></li>"
        )


def _images(hit: Hit, vector: np.ndarray, model: "IndexModel | None") -> str:
    try:
        image = decode_image(hit.entry.span.read(), hit.path, to_srgb=True)
    except UserError:
        return '<div class="gone">gone since it was indexed</div>'
    name = html.escape(hit.caption)
    shown = image.copy()
    shown.thumbnail((_SIDE, _SIDE))
    images = f'<img alt="{name}" src="{_data(shown)}">'
    if model is not None:
        images += f'<img alt="why {name}" src="{_data(_why(hit, vector, model))}">'
    return images


def _why(hit: Hit, vector: np.ndarray, model: "IndexModel") -> Image.Image:
    """The image as the model sees it, in grey, with the contribution of each patch to the score as a colour over it."""
    import torch

    from grr_coca.infer.explain.text import embedding_map  # late, like torch

    checkpoint = model.checkpoint
    image = checkpoint.preprocess.decode(hit.entry.span.read(), hit.path)
    heat = embedding_map(checkpoint, checkpoint.pixels(image), torch.from_numpy(vector)).heat.numpy()
    strength = heat / max(float(np.abs(heat).max()), 1e-12)
    colours = np.where(strength[..., None] > 0, np.array(_FOR), np.array(_AGAINST)).astype(np.uint8)
    alpha = (np.abs(strength) * _OPACITY * 255).astype(np.uint8)
    grey = checkpoint.preprocess.square(image).convert("L").convert("RGBA").resize((_SIDE, _SIDE))
    layer = Image.fromarray(np.dstack([colours, alpha]), "RGBA")
    # Patches are drawn as squares, not blurred, because nothing finer is known.
    layer = layer.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    return Image.alpha_composite(grey, layer).convert("RGB")


def _data(image: Image.Image) -> str:
    return f"data:image/webp;base64,{base64.b64encode(encoded(image, 'WEBP', quality=90)).decode()}"
