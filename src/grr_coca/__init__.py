"""GRR-CoCa: a compact model that captions and searches images.

import grr_coca

model = grr_coca.load("icons")
model.caption("cat.png")
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from grr_coca.infer import ImageTextModel
    from grr_coca.search import Index

__all__ = ["Index", "__version__", "load"]
__version__ = "0.1.0"

_OPEN_CLIP = "open_clip"
"""Prefix of the names of open_clip's checkpoints: `open_clip:PATH`."""


def load(name: str | Path, device: "str | torch.device | None" = None, engine: str = "auto") -> "ImageTextModel":
    """Load a model to caption, embed, classify and compare images with; see `grr_coca.infer`.

    Args:
        name: a checkpoint or run folder, a folder of ONNX graphs, the name of a shipped model such as `icons`, or
            `owner/name` or `owner/name@revision` on the Hugging Face hub; `open_clip:PATH` is a CoCa checkpoint of
            open_clip, see `grr_coca.model.open_clip_checkpoints`.
        device: where to run; None: CUDA, else Apple's MPS, else the CPU.
        engine: what computes the model: `onnx` (ONNX Runtime, on a CPU) or `torch`; `auto` takes the faster one, by a
            fixed rule.

    Raises:
        UserError: there is no such model, a file is missing or damaged, there is no such device, or the engine cannot
            compute this model here.
    """
    scheme, _, path = str(name).partition(":")
    if scheme == _OPEN_CLIP:
        return _load_open_clip(Path(path), device, engine)
    from grr_coca.infer.image_text_model import load as load_model  # late: `import grr_coca` stays fast

    return load_model(name, device, engine)


def _load_open_clip(path: Path, device: "str | torch.device | None", engine: str) -> "ImageTextModel":
    from grr_coca.common.errors import UserError
    from grr_coca.common.extras import require_extra
    from grr_coca.common.threads import wait_passively

    if engine not in ("auto", "torch"):
        raise UserError(f"{_OPEN_CLIP}:{path}: engine '{engine}' cannot compute it; leave the engine out, or import it")
    require_extra("open-clip", f"{_OPEN_CLIP}:{path}")
    wait_passively()
    from grr_coca.infer.choose_engine import choose_device
    from grr_coca.infer.image_text_model import ImageTextModel
    from grr_coca.model.open_clip_checkpoints.read import read_open_clip

    return ImageTextModel(read_open_clip(path, device=choose_device(device)))


def __getattr__(name: str) -> object:
    """`Index`, imported when it is first used."""
    if name != "Index":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from grr_coca.search.index import Index as Opened

    return Opened
