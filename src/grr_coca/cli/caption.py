"""`grr-coca caption`."""

from pathlib import Path
from typing import Annotated

import torch
import tyro

from grr_coca.cli.splits import load
from grr_coca.data.images import decode_image
from grr_coca.errors import UserError
from grr_coca.generate import caption_images

BATCH_SIZE = 64


def run(
    checkpoint: Annotated[Path, tyro.conf.arg(aliases=["-c"])],
    images: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
) -> None:
    """Caption images, one line each.

    Args:
        checkpoint: checkpoint or run folder.
        images: image files.
    """
    if not images:
        raise UserError("no image to caption; give one or more image files")
    model = load(checkpoint)
    for start in range(0, len(images), BATCH_SIZE):
        paths = images[start : start + BATCH_SIZE]
        pixels = torch.stack([model.preprocess(decode_image(read_file(path), str(path))) for path in paths])
        for path, caption in zip(paths, caption_images(model, pixels), strict=True):
            print(f"{path}\t{caption}")


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        UserError: it is not there, or not a file that can be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
