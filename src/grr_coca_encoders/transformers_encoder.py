"""Image encoders from transformers: DINOv2, DINOv3, and the image encoders of SigLIP, SigLIP 2 and CLIP."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.common.errors import UserError, first_line
from grr_coca.common.files import is_offline
from grr_coca.data.preprocess import EncoderPreprocess
from grr_coca.infer.encoder import UNKNOWN_LICENCE
from grr_coca_encoders.hub_preprocess import FILE, read_hub_preprocess
from grr_coca_encoders.names import RANDOM, EncoderName
from grr_coca_encoders.torch_encoder import TorchEncoder, fixed_seed, silence, without_prefix

_CLASSES = {
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
}
"""Class for each `model_type`. SigLIP 2's files for images of a fixed size have SigLIP's format."""


class TransformersTokens(nn.Module):
    """Module that returns the normalized tokens of a transformers model, without class token and registers.

    Args:
        model: Model of a class in `_CLASSES`, for images of one size.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        patch = model.config.patch_size
        self.patch_size = int(patch[0] if isinstance(patch, (list, tuple)) else patch)
        # CLIP itself applies this norm only to the class token, although no other layer followed the image tokens in
        # training.
        is_clip = model.config.model_type == "clip_vision_model"
        self.norm: nn.Module = model.post_layernorm if is_clip else nn.Identity()

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B N D"]:
        """Encode normalized images."""
        tokens = self.norm(self.model(pixel_values=images).last_hidden_state)
        return without_prefix(tokens, (images.shape[2] // self.patch_size) ** 2)


def load_transformers(name: EncoderName, device: str | None) -> TorchEncoder:
    """Load a transformers encoder.

    For another image size, the position embeddings are interpolated once, when the encoder is loaded.

    Args:
        name: Folder, or OWNER/NAME on the Hugging Face hub.
        device: Device to run on. By default, CUDA if available, else Apple's MPS, else the CPU.

    Raises:
        UserError: If the model is unknown or cannot be downloaded, its family or preprocessing is not supported, or its
            weights are not in safetensors.
    """
    if name.weights not in (None, RANDOM):
        raise UserError(f"{name.text}: weights must be in a folder, with config.json; use hf:FOLDER")
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": is_offline()}
    with silence("transformers"), silence("huggingface_hub"), _hide_progress_bars():
        config = _load_or_raise(name, lambda: transformers.AutoConfig.from_pretrained(name.model, **options))
        kind = str(config.model_type)
        if kind not in _CLASSES:
            raise UserError(f"{name.text}: unsupported model_type '{kind}'; use one of {', '.join(_CLASSES)}")
        model_class = getattr(transformers, _CLASSES[kind])
        if name.weights == RANDOM:
            with fixed_seed():
                model = _load_or_raise(name, lambda: model_class(getattr(config, "vision_config", config)))
        else:
            model = _load_or_raise(
                name, lambda: model_class.from_pretrained(name.model, use_safetensors=True, dtype="float32", **options)
            )
    preprocess = _preprocess(name, int(model.config.image_size))
    with torch.no_grad():
        _interpolate_positions(model, preprocess.image_size)
    return TorchEncoder(name.text, TransformersTokens(model.eval()), preprocess, _licence(name), device)


@contextmanager
def _hide_progress_bars() -> Iterator[None]:
    is_enabled = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if is_enabled:
            transformers.utils.logging.enable_progress_bar()


def _load_or_raise(name: EncoderName, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise UserError(f"{name.text}: cannot be loaded ({first_line(error)[:200]})") from error


def _preprocess(name: EncoderName, image_size: int) -> EncoderPreprocess:
    path = Path(name.model) / FILE
    if not path.parent.is_dir():
        path = _load_or_raise(name, lambda: Path(hf_hub_download(name.model, FILE, local_files_only=is_offline())))
    elif name.weights == RANDOM and not path.exists():
        return EncoderPreprocess(image_size=name.size or image_size)
    return read_hub_preprocess(path, name.size)


def _interpolate_positions(model: Any, side: int) -> None:
    """Interpolate a model's learned positions to another image size in place, as the model itself does for each image.

    Without this function, exported graphs would contain the interpolation.
    """
    embeddings = model.embeddings
    if side == model.config.image_size or not hasattr(embeddings, "interpolate_pos_encoding"):
        return  # DINOv3 uses rotary positions, and accepts every size
    has_class = model.config.model_type != "siglip_vision_model"
    patch = model.config.patch_size
    count = (side // int(patch[0] if isinstance(patch, (list, tuple)) else patch)) ** 2
    like = torch.zeros(1, count + has_class, model.config.hidden_size)
    table = embeddings.interpolate_pos_encoding(like, side, side)
    if hasattr(embeddings, "position_embedding"):
        embeddings.position_embedding = nn.Embedding.from_pretrained(table[0])
        embeddings.position_ids = torch.arange(table.shape[1])[None]
        embeddings.image_size = side
    else:
        embeddings.position_embeddings = nn.Parameter(table)
        # If the number of patches matches the image size, the model adds the table directly.
        embeddings.patch_embeddings.num_patches = count
    model.config.image_size = side


def _licence(name: EncoderName) -> str:
    """Return the licence in the model card, or `UNKNOWN_LICENCE` for random weights or if no model card can be read."""
    if name.weights == RANDOM:
        return UNKNOWN_LICENCE
    try:
        path = Path(name.model) / "README.md"
        if not path.parent.is_dir():
            path = Path(hf_hub_download(name.model, "README.md", local_files_only=is_offline()))
        data = ModelCard.load(path).data
        return str(data.get("license_name") or data.get("license") or UNKNOWN_LICENCE)
    except (
        OSError, ValueError, EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    ):  # fmt: skip
        return UNKNOWN_LICENCE
