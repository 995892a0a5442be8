"""Plug-ins that the core finds through entry points. Importing this module is cheap, because PyTorch is imported
later."""

from pathlib import Path
from typing import TYPE_CHECKING

from grr_coca.common.errors import require_extra
from grr_coca.common.threads import set_passive_wait_policy
from grr_coca_encoders.names import parse_name

if TYPE_CHECKING:
    from grr_coca.infer.encoder import VisionEncoder


def open_timm(rest: str, device: str | None) -> "VisionEncoder":
    """Open a timm encoder; see `grr_coca.infer.encoder.EncoderOpener`."""
    name = parse_name("timm", rest)
    require_extra("timm", name.text)
    set_passive_wait_policy()
    from grr_coca_encoders.timm_encoder import load_timm  # lazy import: PyTorch

    return load_timm(name, device)


def open_transformers(rest: str, device: str | None) -> "VisionEncoder":
    """Open a transformers encoder; see `grr_coca.infer.encoder.EncoderOpener`."""
    name = parse_name("hf", rest)
    require_extra("transformers", name.text)
    set_passive_wait_policy()
    from grr_coca_encoders.transformers_encoder import load_transformers  # lazy import: PyTorch

    return load_transformers(name, device)


def open_own(rest: str, device: str | None) -> "VisionEncoder":
    """Open the image encoder of a model of this package; see `grr_coca.infer.encoder.EncoderOpener`."""
    require_extra("torch", f"coca:{rest}")
    from grr_coca_encoders.own_encoder import load_own  # lazy import: PyTorch

    return load_own(rest, device)


def open_onnx(rest: str, device: str | None) -> "VisionEncoder":  # noqa: ARG001 (ONNX Runtime uses the CPU)
    """Open an ONNX graph; see `grr_coca.infer.encoder.EncoderOpener`."""
    from grr_coca_encoders.onnx_encoder import OnnxEncoder  # lazy import: NumPy

    path, has_tensor, tensor = rest.partition(".onnx#")
    return OnnxEncoder(Path(f"{path}.onnx"), tensor) if has_tensor else OnnxEncoder(Path(rest))
