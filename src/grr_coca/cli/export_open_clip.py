"""`grr-coca export open_clip`."""

from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.cli.output import require_free
from grr_coca.inference.locate import locate_checkpoint


def run(
    checkpoint: Annotated[str, tyro.conf.arg(aliases=["-c"], metavar="NAME|DIR")],
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")],
) -> None:
    """Write a checkpoint that open_clip loads. The model must be one of open_clip's, fine-tuned or not.

    Args:
        checkpoint: folder, or OWNER/NAME on the Hugging Face hub.
        out: new folder for open_clip_model.safetensors and open_clip_config.json.
    """
    folder = locate_checkpoint(checkpoint)
    require_free(out)

    from grr_coca.checkpoint import from_pretrained  # late: torch comes with it
    from grr_coca.interop.open_clip.write import write_open_clip

    write_open_clip(from_pretrained(folder), out)
    print(f"open_clip loads it: open_clip.create_model_and_transforms('local-dir:{out}')")
