"""`grr-coca import open_clip` and `export open_clip`: convert checkpoints from and for open_clip."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.cli.flags import CheckpointFlag, Flag
from grr_coca.cli.output import require_new_folder
from grr_coca.common.errors import require_extra
from grr_coca.infer.load import locate_checkpoint
from grr_coca.model.checkpoint_files import require_not_adapted
from grr_coca_open_clip.checkpoints import find_weights


def import_open_clip(
    path: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    model: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    as_stored: Flag = False,
) -> None:
    """Convert an open_clip CoCa checkpoint to a checkpoint that every command accepts.

    Args:
        path: folder in the hub's layout, or a weights file (.safetensors or .bin). No code in it is run.
        out: new folder for the checkpoint.
        model: open_clip's name of the architecture, such as coca_ViT-B-32; if not given, read from
            open_clip_config.json or from the shapes of the weights.
        as_stored: open images as open_clip does: ignore EXIF rotation and transparency.
    """
    find_weights(path)
    require_new_folder(out)
    require_extra("open-clip", "converting a checkpoint of open_clip")

    from grr_coca.model.checkpoint import save_checkpoint  # lazy import: PyTorch
    from grr_coca_open_clip.checkpoints.read import read_open_clip

    checkpoint = read_open_clip(path, model)
    if as_stored:
        checkpoint = replace(checkpoint, preprocess=replace(checkpoint.preprocess, opening="as_stored"))
    save_checkpoint(checkpoint, out)
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    print(
        f"open_clip's CoCa of {parameters / 1e6:.1f} M parameters, {checkpoint.preprocess.image_size} px, is in {out}"
    )
    if checkpoint.caution:
        print(f"warning: {checkpoint.caution}")


def export_open_clip(checkpoint: CheckpointFlag, out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]) -> None:
    """Write a checkpoint that open_clip loads. The model must have open_clip's architecture.

    Args:
        checkpoint: folder, or OWNER/NAME on the Hugging Face hub.
        out: new folder for open_clip_model.safetensors and open_clip_config.json.
    """
    folder = locate_checkpoint(checkpoint)
    require_not_adapted(folder, "export open_clip")
    require_new_folder(out)
    require_extra("torch", "exporting to open_clip")

    from grr_coca.model.checkpoint import from_pretrained  # lazy import: PyTorch
    from grr_coca_open_clip.checkpoints.write import write_open_clip

    write_open_clip(from_pretrained(folder), out)
    print(f"written to {out}; load it with open_clip.create_model_and_transforms('local-dir:{out}')")
