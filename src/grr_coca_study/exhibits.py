"""Heat maps and searches of a model, which a demo shows besides its rows."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import grr_coca
from grr_coca.common.files import write_whole
from grr_coca.data.isolated import decode_image
from grr_coca.data.sources.open import open_source
from grr_coca.infer.explain import caption_maps, caption_picture
from grr_coca_study.running.measured import drawn_examples
from grr_coca_study.thumbnails import as_webp, thumbnail

_NUM_EXPLAINED = 4
_HEAT_MAP_DPI = 70


def write_exhibits(
    arm: str, run: Path, showcase: str, queries: Sequence[str], num_hits: int, folder: Path
) -> dict[str, list[dict[str, object]]]:
    """Write the pictures of a pretrained model as WebP files, and return what a report shows of it.

    Args:
        arm: Name of its arm.
        run: Folder of its run.
        showcase: The split, as for `open_source`.
        queries: Texts to search for.
        num_hits: Number of images for each query.
        folder: For the pictures; several models may write to it at a time.

    Returns:
        `heat_maps`: for each of some images that the report captions too, its caption (`truth`), the `words` of the
        model's caption, the `heat` of each word on the patches by row, and the name of the `picture`. `searches`: each
        `query` with its `hits`, best first, of a `caption` and the name of a `picture`.

    Raises:
        OSError: If the folder cannot be written to.
    """
    model, source = grr_coca.load(run, engine="torch"), open_source(showcase)
    folder.mkdir(exist_ok=True)
    images = [model.preprocess.decode(source[index].image, source.name(index)) for index in range(len(source))]
    heat_maps: list[dict[str, object]] = []
    drawn = drawn_examples(source, _NUM_EXPLAINED)
    for index, described in zip(drawn, model.describe_many([images[index] for index in drawn]), strict=True):
        pixels, name = model.checkpoint.pixels(images[index]), f"{arm}-{len(heat_maps)}.webp"
        maps = caption_maps(model.checkpoint, pixels, described.captions[0].token_ids)
        words, heat = [word_map.word for word_map in maps], [word_map.heat.tolist() for word_map in maps]
        heat_maps.append({"truth": source.caption(index), "words": words, "heat": heat, "picture": name})
        picture = decode_image(source[index].image, source.name(index))  # in full size, also of an SVG file
        png = caption_picture(picture, maps, _HEAT_MAP_DPI)
        write_whole(folder / name, as_webp(Image.open(io.BytesIO(png)).convert("RGB")))
    searches: list[dict[str, object]] = []
    best = (-model.similarity(images, queries)).argsort(axis=0, kind="stable")[:num_hits].T.tolist()
    for query, indices in zip(queries, best, strict=True):
        hits = [{"caption": source.caption(index), "picture": f"{index}.webp"} for index in indices]
        searches.append({"query": query, "hits": hits})
        for index in indices:
            write_whole(folder / f"{index}.webp", thumbnail(source[index]))
    return {"heat_maps": heat_maps, "searches": searches}
