"""`grr-coca explain`: heat maps of a model's attention."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

import grr_coca
from grr_coca.cli.flags import CheckpointFlag
from grr_coca.common.errors import require_extra
from grr_coca.common.files import read_file_bytes
from grr_coca.common.outputs import require_not_an_input, require_suffix, require_writable, write_output
from grr_coca.infer.load import locate_checkpoint
from grr_coca.model.checkpoint_files import DEFAULT, is_adapted


def run(
    image: Annotated[Path, tyro.conf.Positional],
    checkpoint: CheckpointFlag = DEFAULT,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> None:
    """Draw heat maps of a model's attention: one for each word of its caption.

    Args:
        image: image file.
        checkpoint: folder, name of a model (see `grr-coca models`), or OWNER/NAME on the Hugging Face hub.
        out: .png file to write; if not given, NAME-explained.png in the current folder.
    """
    out = out or Path(f"{image.stem}-explained.png")
    require_suffix(out, (".png",))
    require_not_an_input(out, [image])
    require_extra("torch", "computing heat maps")
    require_extra("report", "drawing heat maps")
    data = read_file_bytes(image)
    folder = locate_checkpoint(checkpoint)
    require_writable(out)

    from grr_coca.infer.explain import caption_maps, caption_picture  # lazy import, because it imports torch

    model = grr_coca.load(folder, engine="torch")
    preprocess = model.checkpoint.preprocess  # an adapted model may caption the image differently from its base
    opened = preprocess.decode(data, str(image), for_display=True)
    pixels = model.checkpoint.pixels(opened)
    (described,) = model.describe_many([opened])
    caption = described.captions[0]
    png = caption_picture(preprocess.cut(opened), caption_maps(model.checkpoint, pixels, caption.token_ids))
    if is_adapted(folder):
        print(f"{folder}: an adapted model, so the heat maps show its base model", file=sys.stderr)
    write_output(out, lambda file: file.write(png))
    print(f"caption: {caption.text}\nheat maps are in {out}")
