"""Qualitative examples of a demo: heat maps of captions, and searches."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from grr_coca.common.files import write_whole
from grr_coca.data.dataset import make_loader
from grr_coca.data.isolated import decode_image
from grr_coca.data.order import EvaluationOrder
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.split import as_dataset
from grr_coca.infer.engine.torch import TorchEngine
from grr_coca.infer.explain import caption_maps, caption_picture
from grr_coca.infer.generate import generate
from grr_coca.model.checkpoint import Checkpoint, from_pretrained
from grr_coca.model.coca import evaluating
from grr_coca_study.running.measured import drawn_examples
from grr_coca_study.thumbnails import EXHIBITS, LISTING, as_webp, thumbnail

_BATCH_SIZE = 64
_NUM_EXPLAINED = 4
_HEAT_MAP_DPI = 70


@dataclass(frozen=True)
class QualitativeResults:
    """Qualitative examples of a model in a report.

    Attributes:
        heat_maps: For each of some images, its caption (`truth`), the `words` of the model's caption, the `heat` of
            each word on the patches by row, and the name of the `picture`.
        searches: Each `query` with its `hits`, best first, of a `caption` and the name of a `picture`.
        pictures: Small WebP files by name.
    """

    heat_maps: list[dict[str, object]] = field(default_factory=list)
    searches: list[dict[str, object]] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)


def make_exhibits(arm: str, run: Path, showcase: str, queries: Sequence[str], num_hits: int) -> QualitativeResults:
    """Compute the exhibits of a pretrained model.

    Args:
        arm: Name of its arm.
        run: Folder of its run.
        showcase: The split, as for `open_source`.
        queries: Texts to search for.
        num_hits: Number of images for each query.
    """
    checkpoint, source, shown = from_pretrained(run), open_source(showcase), QualitativeResults()
    _explain_some(shown, arm, checkpoint, source)
    for query, indices in zip(queries, search(checkpoint, source, queries, num_hits), strict=True):
        hits = [{"caption": source.caption(index), "picture": f"{index}.webp"} for index in indices]
        shown.searches.append({"query": query, "hits": hits})
        shown.pictures.update({f"{index}.webp": thumbnail(source[index]) for index in indices})
    return shown


def write_exhibits(out: Path, shown: Mapping[str, QualitativeResults]) -> None:
    """Write the exhibits of some models, from which a report shows them.

    Args:
        out: Folder of the demo.
        shown: Exhibits by the name of an arm, all of the same images and queries.

    Raises:
        OSError: If the folder cannot be written to.
    """
    folder = out / EXHIBITS
    folder.mkdir(exist_ok=True)
    for name, picture in {name: p for exhibits in shown.values() for name, p in exhibits.pictures.items()}.items():
        write_whole(folder / name, picture)
    listed = {arm: {"heat_maps": each.heat_maps, "searches": each.searches} for arm, each in shown.items()}
    content = json.dumps(listed, indent=1, ensure_ascii=False)
    write_whole(folder / LISTING, content.encode("utf-8", "backslashreplace"))


@torch.inference_mode()
def search(checkpoint: Checkpoint, source: PairSource, queries: Sequence[str], count: int) -> list[list[int]]:
    """Return the indices of the `count` most similar images of a split for each query, best first."""
    model = checkpoint.model
    dataset = as_dataset(checkpoint, source)
    loader = make_loader(dataset, EvaluationOrder(len(dataset), _BATCH_SIZE), num_workers=0)
    token_ids, lengths = checkpoint.tokenize(queries)
    with evaluating(model):
        images = torch.cat([model.encode_image(batch.images.to(model.device)).embedding for batch in loader])
        texts = model.encode_text(token_ids, lengths)
    return (texts @ images.T).topk(min(count, len(images)), dim=1).indices.tolist()


def _explain_some(shown: QualitativeResults, arm: str, checkpoint: Checkpoint, source: PairSource) -> None:
    """Add heat maps for the captions of some images that the report captions too."""
    drawn = drawn_examples(source, _NUM_EXPLAINED)
    images = [checkpoint.preprocess.decode(source[index].image, source.name(index)) for index in drawn]
    pixels = np.stack([checkpoint.preprocess(image) for image in images])
    generated = generate(TorchEngine(checkpoint.model, checkpoint.preprocess), checkpoint.tokenizer, pixels)
    for number, (index, image, (caption, *_)) in enumerate(zip(drawn, images, generated.captions, strict=True)):
        maps, name = caption_maps(checkpoint, checkpoint.pixels(image), caption.token_ids), f"{arm}-{number}.webp"
        words, heat = [word_map.word for word_map in maps], [word_map.heat.tolist() for word_map in maps]
        shown.heat_maps.append({"truth": source.caption(index), "words": words, "heat": heat, "picture": name})
        picture = decode_image(source[index].image, source.name(index))  # in full size, also of an SVG file
        png = caption_picture(picture, maps, _HEAT_MAP_DPI)
        shown.pictures[name] = as_webp(Image.open(io.BytesIO(png)).convert("RGB"))
