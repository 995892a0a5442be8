"""`grr-coca explain`."""

from pathlib import Path
from typing import Annotated

import tyro

import grr_coca
from grr_coca.cli.output import require_other, require_suffix, require_writable, write_output
from grr_coca.extras import require_extra
from grr_coca.files import read_whole
from grr_coca.inference.locate import locate_checkpoint
from grr_coca.registry import DEFAULT


def run(
    image: Annotated[Path, tyro.conf.Positional],
    checkpoint: Annotated[str, tyro.conf.arg(aliases=["-c"], metavar="NAME|DIR")] = DEFAULT,
    text: Annotated[str | None, tyro.conf.arg(metavar="QUERY")] = None,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> None:
    """Draw where a model looks: a heat map for each word of its caption, or one for a text.

    Args:
        image: image file.
        checkpoint: folder, name of a model (see `grr-coca models`), or OWNER/NAME on the Hugging Face hub.
        text: instead of the caption's words, show which patches support this text (red) or speak against it (blue).
        out: .png file to write; if not given, NAME-explained.png in the current folder.
    """
    out = out or Path(f"{image.stem}-explained.png")
    require_suffix(out, (".png",))
    require_other(out, [image])
    require_extra("report", "drawing heat maps")
    data = read_whole(image)
    folder = locate_checkpoint(checkpoint)
    require_writable(out)

    from grr_coca.explain import caption_maps, caption_picture, text_map, text_picture  # late: torch comes with it

    model = grr_coca.load(folder)
    picture = model.checkpoint.preprocess.decode(data, str(image))
    pixels = model.checkpoint.preprocess(picture)
    if text is None:
        (described,) = model.describe_many([picture])
        caption = described.captions[0]
        said = f"caption: {caption.text}"
        png = caption_picture(picture, caption_maps(model.checkpoint, pixels, caption.token_ids))
    else:
        found = text_map(model.checkpoint, pixels, text)
        said = f"cosine with '{text}': {found.similarity:.3f}"
        png = text_picture(picture, text, found)
    write_output(out, lambda file: file.write(png))
    print(f"{said}\nheat maps are in {out}")
