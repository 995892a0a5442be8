"""GRR-CoCa: a compact model that captions and searches images.

import grr_coca

model = grr_coca.load("icons")
model.caption("cat.png")
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from grr_coca.inference import ImageTextModel
    from grr_coca.search import Index

__all__ = ["Index", "__version__", "load"]
__version__ = "0.1.0"

_OPEN_CLIP = "open_clip"
"""Prefix of the names of open_clip's checkpoints: `open_clip:PATH`."""


def load(name: str | Path, device: "str | torch.device | None" = None) -> "ImageTextModel":
    """Load a checkpoint to caption, embed, classify and compare images with; see `grr_coca.inference`.

    Args:
        name: a checkpoint or run folder, the name of a shipped model such as `icons`, or `owner/name` on the
            Hugging Face hub, or `owner/name@revision`; `open_clip:PATH` is a CoCa checkpoint of open_clip, see
            `grr_coca.interop.open_clip`.
        device: where to run; None: CUDA, else Apple's MPS, else the CPU.

    Raises:
        UserError: there is no such checkpoint, a file is missing or damaged, or there is no such device.
    """
    from grr_coca.inference.model import ImageTextModel  # late: `import grr_coca` stays fast
    from grr_coca.inference.model import load as load_model

    scheme, _, path = str(name).partition(":")
    if scheme != _OPEN_CLIP:
        return load_model(name, device)
    from grr_coca.inference.model import choose_device
    from grr_coca.interop.open_clip.read import read_open_clip

    return ImageTextModel(read_open_clip(Path(path), device=choose_device(device)))


def __getattr__(name: str) -> object:
    """`Index`, imported when it is first used."""
    if name != "Index":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from grr_coca.search.index import Index as Opened

    return Opened
