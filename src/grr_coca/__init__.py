"""GRR-CoCa: a compact model that captions and searches images. For example:

import grr_coca

model = grr_coca.load("icons")
model.caption("cat.png")
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from grr_coca.infer import ImageTextModel
    from grr_coca_search import Index

__all__ = ["Index", "__version__", "load"]
__version__ = "0.1.0"


def load(name: str | Path, device: "str | torch.device | None" = None, engine: str = "auto") -> "ImageTextModel":
    """Load a model that captions, embeds, classifies and compares images; see `grr_coca.infer`.

    Published models and models on the hub are downloaded when they are first used.

    Args:
        name: A checkpoint or run folder, a folder of ONNX graphs, the name of a model such as `icons` (`grr-coca
            models` lists the names), or `owner/name` or `owner/name@revision` on the Hugging Face hub. `SCHEME:PATH`,
            such as `open_clip:PATH`, is a checkpoint of another project, which a plug-in of the group
            `grr_coca.loaders` reads.
        device: Device to run on. By default, ONNX Runtime uses the CPU, and PyTorch uses CUDA if available, else
            Apple's MPS, else the CPU.
        engine: Engine of the model: `onnx` (ONNX Runtime, on a CPU) or `torch`; `auto` selects the faster one by a
            fixed rule.

    Raises:
        UserError: If the model or device does not exist, a file is missing or corrupt, a download fails, a required
            package is missing, or the engine cannot run this model on this machine.
    """
    scheme, colon, path = str(name).partition(":")
    if colon and not Path(name).exists():
        from grr_coca.common import plugins  # imported in the function, as below, so that `import grr_coca` stays fast

        loader = plugins.find("grr_coca.loaders", scheme)
        if loader is not None:
            return loader(path, device, engine)
    from grr_coca.infer.load import load as load_model

    return load_model(name, device, engine)


def __getattr__(name: str) -> object:
    """Return a function or class of another package, such as `Index`, and import it when it is first used.

    Such names are registered in the entry-point group `grr_coca.functions`.

    Raises:
        AttributeError: If no installed package has registered the name.
    """
    if not name.startswith("_"):
        from grr_coca.common import plugins

        found = plugins.find("grr_coca.functions", name)
        if found is not None:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
