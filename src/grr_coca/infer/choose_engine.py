"""Which engine computes a model, and on which device. The rule is fixed: it does not measure anything.

ONNX Runtime computes a model that has graphs, on the CPU, if it was never behind PyTorch on a CPU for models of this
width (`docs/deploy.md` has the table), or if PyTorch is not installed. A GPU does not change that unless it is named: a
small model gives the same results with and without one. PyTorch computes everything else.
"""

import platform
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from grr_coca.common.errors import UserError, nearest
from grr_coca.common.extras import require_extra
from grr_coca.common.files import MANIFEST, read_json
from grr_coca.model.checkpoint_folder import find_checkpoint, fingerprint, has_graphs, is_quantized
from grr_coca.model.config import CoCaConfig

if TYPE_CHECKING:
    import torch

    from grr_coca.infer.engine.base import EngineName

EngineChoice = Literal["auto", "onnx", "torch"]
"""An engine, or the one that the rule chooses."""
ENGINE_TITLES = {"onnx": "ONNX Runtime", "torch": "PyTorch"}
MAX_ONNX_WIDTH = 128
"""Widest transformer for which ONNX Runtime was never behind PyTorch on a CPU, at any batch size
(`benchmarks/results/engines.json`)."""


def choose_engine(
    folder: Path, config: CoCaConfig, engine: str = "auto", device: "str | torch.device | None" = None
) -> "EngineName":
    """The engine that computes the model in a folder.

    Args:
        folder: a checkpoint, with or without ONNX graphs, or a model in int8.
        config: its config.
        engine: an `EngineChoice`.
        device: where to run; None: the CPU for ONNX Runtime; for PyTorch CUDA, else Apple's MPS, else the CPU.

    Raises:
        UserError: the engine does not exist, cannot compute this model, or does not run on this device, or PyTorch is
            needed and not installed.
    """
    if engine not in get_args(EngineChoice):
        raise UserError(f"engine '{engine}' does not exist; {nearest(engine, get_args(EngineChoice))}")
    if engine == "torch":
        return _torch(folder, "the engine 'torch'")
    if engine == "onnx" or is_quantized(folder):
        _require_cpu(folder, device)
        return _onnx(folder)
    if device is not None and str(device) != "cpu":
        return _torch(folder, f"the device '{device}'")
    if not has_graphs(folder):
        return _torch(folder, f"{folder}: has no ONNX graphs (grr-coca export onnx writes them), so it")
    if find_spec("torch") is None:
        return _onnx(folder)
    parts = (config.image_encoder, config.text_decoder, config.multimodal_decoder)
    is_narrow = max(part.transformer.embed_dim for part in parts) <= MAX_ONNX_WIDTH
    return _onnx(folder) if is_narrow else "torch"


def choose_device(device: "str | torch.device | None") -> "torch.device":
    """The named device of PyTorch. None: CUDA if available, else Apple's MPS, else the CPU.

    Raises:
        UserError: there is no such device.
    """
    import torch  # late: ONNX Runtime does without it

    if device is None:
        return torch.device(best_device())
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()  # fails for "meta", which holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(
            f"device '{device}' cannot be used here; the best available one is '{best_device()}'"
        ) from error
    return chosen


def best_device() -> str:
    """The best device of PyTorch. PyTorch is imported only if this machine may have a GPU: that takes seconds."""
    if not (sys.modules.get("torch") or _may_have_gpu()):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _may_have_gpu() -> bool:
    """False if no driver of a GPU that PyTorch can use is there. Drivers of CUDA and ROCm show as devices on Linux."""
    if sys.platform == "linux":
        return any(Path("/dev", name).exists() for name in ("nvidiactl", "dxg", "kfd"))
    return sys.platform != "darwin" or platform.machine() == "arm64"


def _onnx(folder: Path) -> "EngineName":
    if find_spec("onnxruntime") is None:
        raise UserError("onnxruntime is not installed, and comes with grr-coca; pip install onnxruntime")
    if not has_graphs(folder):
        raise UserError(f"{folder}: has no ONNX graphs; write them: grr-coca export onnx -c {folder} --out FOLDER")
    # Those in int8 name the checkpoint that they were made from, which is not there.
    if not is_quantized(folder) and read_json(folder / MANIFEST).get("checkpoint") != fingerprint(folder):
        raise UserError(
            f"{folder}: the ONNX graphs are those of another checkpoint; write them again: grr-coca export onnx "
            f"-c {folder} --out FOLDER"
        )
    return "onnx"


def _torch(folder: Path, what: str) -> "EngineName":
    require_extra("torch", what)
    find_checkpoint(folder)
    return "torch"


def _require_cpu(folder: Path, device: "str | torch.device | None") -> None:
    if device is not None and str(device) != "cpu":
        model = "a model in int8" if is_quantized(folder) else "the engine 'onnx'"
        raise UserError(f"device '{device}': {model} runs on the CPU alone; leave the device out")
