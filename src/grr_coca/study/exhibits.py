"""What a demo shows of its models besides their rows: heat maps of captions, and searches."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from grr_coca.common.files import write_whole
from grr_coca.data.images import decode_image
from grr_coca.data.loader import make_loader
from grr_coca.data.order import EvaluationOrder
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.checkpoint_metrics import as_dataset
from grr_coca.infer.engine.torch import TorchEngine
from grr_coca.infer.explain import WordMap, caption_maps, caption_picture
from grr_coca.infer.generate import generate
from grr_coca.model.checkpoint import Checkpoint, from_pretrained
from grr_coca.model.coca import evaluating
from grr_coca.study.running.measured import drawn_examples
from grr_coca.study.thumbnails import EXHIBITS, LISTING, as_webp, thumbnail

_BATCH_SIZE = 64
_NUM_EXPLAINED = 4
_HEAT_MAP_DPI = 70


@dataclass(frozen=True)
class SearchHits:
    """A query and the indices of the most similar images, best first."""

    query: str
    indices: list[int]


@dataclass(frozen=True)
class ExplainedImage:
    """The index of an image in its split, and for each word of the model's caption a heat map of the patches by row."""

    index: int
    words: list[str]
    heat: list[list[list[float]]]


@dataclass(frozen=True)
class Exhibits:
    """What a report shows of a model besides its rows: heat maps, and the images found for each query."""

    heat_maps: list[ExplainedImage]
    searches: list[SearchHits]


def make_exhibits(run: Path, showcase: str, queries: tuple[str, ...], num_hits: int) -> Exhibits:
    """Compute the exhibits of a pretrained model.

    Args:
        run: folder of its run.
        showcase: the split, as for `open_source`.
        queries: texts to search for.
        num_hits: number of images for each query.
    """
    checkpoint, source = from_pretrained(run), open_source(showcase)
    return Exhibits(_explain_some(checkpoint, source, _NUM_EXPLAINED), search(checkpoint, source, queries, num_hits))


@torch.inference_mode()
def search(checkpoint: Checkpoint, source: PairSource, queries: Sequence[str], count: int) -> list[SearchHits]:
    """The `count` most similar images of a split for each query."""
    model = checkpoint.model
    dataset = as_dataset(checkpoint, source)
    loader = make_loader(dataset, EvaluationOrder(len(dataset), _BATCH_SIZE), num_workers=0)
    token_ids, lengths = checkpoint.tokenize(queries)
    with evaluating(model):
        images = torch.cat([model.encode_image(batch.images.to(model.device)).embedding for batch in loader])
        texts = model.encode_text(token_ids, lengths)
    best = (texts @ images.T).topk(min(count, len(images)), dim=1).indices.tolist()
    return [SearchHits(query, indices) for query, indices in zip(queries, best, strict=True)]


def _explain_some(checkpoint: Checkpoint, source: PairSource, count: int) -> list[ExplainedImage]:
    """Heat maps for the captions of `count` images that the report captions too."""
    drawn = drawn_examples(source, count)
    decode = checkpoint.preprocess.decode
    images = [decode(source[index].image, source.name(index)) for index in drawn]
    pixels = np.stack([checkpoint.preprocess(image) for image in images])
    generated = generate(TorchEngine(checkpoint.model, checkpoint.preprocess), checkpoint.tokenizer, pixels)
    explained: list[ExplainedImage] = []
    for index, image, (caption, *_) in zip(drawn, images, generated.captions, strict=True):
        maps = caption_maps(checkpoint, checkpoint.pixels(image), caption.token_ids)
        heat = [word_map.heat.tolist() for word_map in maps]
        explained.append(ExplainedImage(index, [word_map.word for word_map in maps], heat))
    return explained


# --- Pictures of them, in the folder of a demo


def write_exhibits(out: Path, showcase: str, shown: Mapping[str, Exhibits]) -> None:
    """Write the exhibits of some models as small pictures with their captions, from which a report shows them.

    Args:
        out: folder of the demo.
        showcase: the split, as for `open_source`.
        shown: exhibits by the name of an arm, all of the same images and queries.

    Raises:
        OSError: the folder cannot be written to.
    """
    source, pictures = open_source(showcase), out / EXHIBITS
    pictures.mkdir(exist_ok=True)
    listed: dict[str, object] = {}
    for arm, exhibits in shown.items():
        maps, searches = [], []
        for number, explained in enumerate(exhibits.heat_maps):
            name = f"{arm}-{number}.webp"
            write_whole(pictures / name, _heat_picture(source, explained))
            maps.append(
                {
                    "truth": source.caption(explained.index),
                    "words": explained.words,
                    "heat": explained.heat,
                    "picture": name,
                }
            )
        for hits in exhibits.searches:
            found = []
            for index in hits.indices:
                write_whole(pictures / f"{index}.webp", thumbnail(source[index]))
                found.append({"caption": source.caption(index), "picture": f"{index}.webp"})
            searches.append({"query": hits.query, "hits": found})
        listed[arm] = {"heat_maps": maps, "searches": searches}
    content = json.dumps(listed, indent=1, ensure_ascii=False)
    write_whole(pictures / LISTING, content.encode("utf-8", "backslashreplace"))


def _heat_picture(source: PairSource, explained: ExplainedImage) -> bytes:
    pair = source[explained.index]
    words = zip(explained.words, explained.heat, strict=True)
    maps = [WordMap(word, torch.tensor(heat)) for word, heat in words]
    png = caption_picture(decode_image(pair.image, pair.name), maps, _HEAT_MAP_DPI)
    return as_webp(Image.open(io.BytesIO(png)).convert("RGB"))
