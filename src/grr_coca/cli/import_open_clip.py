"""`grr-coca import open_clip`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.cli.output import require_free
from grr_coca.interop.open_clip.files import find_weights


def run(
    path: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    model: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    as_stored: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Make a checkpoint of one of open_clip's CoCa. Every verb takes it, as any other.

    Args:
        path: folder as the hub lays it out, or its file of weights: .safetensors, or .bin, of which nothing is run.
        out: new folder for the checkpoint.
        model: open_clip's name of the architecture, such as coca_ViT-B-32; told by open_clip_config.json, or by the
            shapes of the weights, if not given.
        as_stored: open images as open_clip does, without their EXIF turn, and with what lies under transparent pixels.
    """
    find_weights(path)
    require_free(out)

    from grr_coca.checkpoint import save_checkpoint  # late: torch comes with it
    from grr_coca.interop.open_clip.read import read_open_clip

    checkpoint = read_open_clip(path, model)
    if as_stored:
        checkpoint = replace(checkpoint, preprocess=replace(checkpoint.preprocess, opening="as_stored"))
    save_checkpoint(checkpoint, out)
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    print(
        f"open_clip's CoCa of {parameters / 1e6:.1f} M parameters, {checkpoint.preprocess.image_size} px, is in {out}"
    )
    if checkpoint.caution:
        print(f"caution: {checkpoint.caution}")
