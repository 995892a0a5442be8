"""GRR-CoCa: a compact model that captions and searches images.

import grr_coca

model = grr_coca.load("pictograms")
model.caption("cat.png")
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from grr_coca.inference import ImageTextModel

__version__ = "0.1.0"


def load(name: "str | Path", device: "str | torch.device | None" = None) -> "ImageTextModel":
    """Load a checkpoint to caption, embed, classify and compare images with; see `grr_coca.inference`.

    Args:
        name: a checkpoint or run folder, the name of a shipped model such as `pictograms`, or `owner/name` on the
            Hugging Face hub.
        device: where to run; None: CUDA, else Apple's MPS, else the CPU.

    Raises:
        UserError: there is no such checkpoint, a file is missing or damaged, or there is no such device.
    """
    from grr_coca.inference.model import load as load_model  # late: `import grr_coca` stays quick

    return load_model(name, device)
