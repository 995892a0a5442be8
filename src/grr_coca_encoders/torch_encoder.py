"""Image encoder in PyTorch, and functions that the loaders of its models share.

Shapes: B images, S image size in pixels, N tokens, D width, h × w grid, C channels of a map.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from grr_coca.common.errors import UserError, require_extra
from grr_coca.data.features import EncoderInfo
from grr_coca.data.preprocess import EncoderPreprocess
from grr_coca.infer.encoder import ImageTokens
from grr_coca.infer.load import best_device
from grr_coca_encoders.onnx_encoder import require_same_tokens


class PixelsToTokens(nn.Module):
    """Module that computes tokens from pixels, in the form that graph export needs.

    Args:
        model: Model that computes tokens from normalized images (B 3 S S).
        preprocess: Preprocessing, whose pixel mean and standard deviation are used.
    """

    mean: Float[Tensor, "3 1 1"]
    std: Float[Tensor, "3 1 1"]

    def __init__(self, model: nn.Module, preprocess: EncoderPreprocess) -> None:
        super().__init__()
        self.model = model
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(preprocess, name))[:, None, None], persistent=False)

    def forward(self, pixels: UInt8[Tensor, "B S S 3"]) -> Float[Tensor, "B N D"]:
        """Encode images as tokens."""
        images = pixels.permute(0, 3, 1, 2).to(self.mean.dtype) / 255
        return self.model((images - self.mean) / self.std)


class TorchEncoder:
    """`grr_coca.infer.encoder.VisionEncoder` in PyTorch.

    Args:
        name: Name of the encoder.
        model: Model that computes tokens (B N D) from normalized images (B 3 S S). It is moved to the device and
            frozen.
        preprocess: Preprocessing of the encoder.
        licence: Licence of the weights.
        device: Device to run on. If None, CUDA if available, else Apple's MPS, else the CPU.

    Raises:
        UserError: If the model cannot encode images of the size in `preprocess`.
    """

    def __init__(
        self, name: str, model: nn.Module, preprocess: EncoderPreprocess, licence: str, device: str | None
    ) -> None:
        # In eval mode, batch norms do not change. Because the weights do not require gradients, optimizers do not train
        # them.
        self.module = PixelsToTokens(model, preprocess).eval().requires_grad_(False)
        self.device = torch.device(device or best_device())
        side = preprocess.image_size
        try:
            with torch.inference_mode():
                tokens = self.module(torch.zeros(1, side, side, 3, dtype=torch.uint8))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(f"{name}: cannot encode images of {side} pixels ({_short(error)})") from error
        self.info = EncoderInfo(
            name=name,
            weights=hash_weights(model.state_dict()),
            licence=licence,
            preprocess=preprocess,
            embed_dim=tokens.shape[2],
            num_tokens=tokens.shape[1],
        )
        self.module.to(self.device)

    def encode(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> ImageTokens:
        """Encode images; see `VisionEncoder`."""
        with torch.inference_mode():
            tokens = self.module(torch.from_numpy(pixels).to(self.device)).float().cpu().numpy()
        mask: Bool[np.ndarray, "B N"] = np.ones(tokens.shape[:2], bool)
        return ImageTokens(tokens, mask)

    def write_graph(self, path: Path) -> None:
        """Write a graph that takes uint8 pixels and computes the same tokens; see `VisionEncoder`."""
        require_extra("export", f"{self.info.name} as an ONNX graph")
        from grr_coca.infer.export.graphs import OPSET  # lazy import: onnxscript
        from grr_coca.infer.export.quantize import suppress_messages

        side = self.info.preprocess.image_size
        pixels = torch.zeros(2, side, side, 3, dtype=torch.uint8, device=self.device)
        try:
            with torch.no_grad(), suppress_messages():
                exported = torch.onnx.export(
                    self.module,
                    (pixels,),
                    dynamo=True,
                    dynamic_shapes=({0: torch.export.Dim("B")},),
                    input_names=["pixels"],
                    output_names=["last_hidden_state"],
                    opset_version=OPSET,
                    verbose=False,
                )
            assert exported is not None
            exported.save(path, external_data=False)
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
            raise UserError(f"{self.info.name}: cannot be written as a graph ({_short(error)})") from error
        require_same_tokens(path, self)


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors, which does not depend on their file."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def without_prefix(tokens: Float[Tensor, "B T D"], num_patches: int) -> Float[Tensor, "B N D"]:
    """Return the last `num_patches` tokens. Class token and registers, which precede the patch tokens, are dropped."""
    return tokens[:, tokens.shape[1] - num_patches :]


def map_to_tokens(features: Tensor, is_channels_last: bool) -> Float[Tensor, "B N D"]:
    """Flatten a feature map in raster order.

    Args:
        features: Feature map, B C h w or B h w C.
        is_channels_last: Whether channels are last, B h w C.
    """
    return features.flatten(1, 2) if is_channels_last else features.flatten(2).mT


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Make models in this context start with the same random weights every time.

    PyTorch's random state is restored afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@contextmanager
def silence(name: str) -> Iterator[None]:
    """Hide a library's log messages, except errors, within this context.

    Args:
        name: Name of the library's logger.
    """
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
