"""Image encoders from timm."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import timm
from jaxtyping import Float
from safetensors import SafetensorError
from timm.data import resolve_data_config
from torch import Tensor, nn

from grr_coca.common.errors import UserError, first_line, suggest_name
from grr_coca.common.files import is_offline
from grr_coca.data.preprocess import EncoderPreprocess, Fit, Interpolation
from grr_coca.infer.encoder import UNKNOWN_LICENCE
from grr_coca_encoders.names import RANDOM, EncoderName
from grr_coca_encoders.torch_encoder import TorchEncoder, fixed_seed, map_to_tokens, silence, without_prefix

_FITS = {"center": "crop", "squash": "squash"}
_INTERPOLATIONS = {"random": "bicubic"}


class TimmTokens(nn.Module):
    """Module that returns the tokens of a timm model: the result of `forward_features` without class token and
    registers.

    Args:
        model: The timm model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.num_prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.is_channels_last = str(getattr(model, "output_fmt", "NCHW")) == "NHWC"

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B N D"]:
        """Encode normalized images."""
        features = cast("Any", self.model).forward_features(images)
        if features.ndim == 4:
            return map_to_tokens(features, self.is_channels_last)
        return without_prefix(features, features.shape[1] - self.num_prefix)


def load_timm(name: EncoderName, device: str | None) -> TorchEncoder:
    """Load a timm encoder.

    For another image size, the position embeddings are interpolated once, when the encoder is loaded.

    Args:
        name: Name of the model.
        device: Device to run on. By default, CUDA if available, else Apple's MPS, else the CPU.

    Raises:
        UserError: If timm does not have the model, its preprocessing is not supported, or its weights do not match it
            or are not available as safetensors.
    """
    architecture = name.model.partition(".")[0]
    if not timm.is_model(architecture):
        raise UserError(f"{name.text}: timm has no such model; {suggest_name(architecture, timm.list_models())}")
    model = _create_model(name)
    config = resolve_data_config({}, model=model)
    fit = _FITS.get(str(config["crop_mode"]))
    if fit is None:
        raise UserError(
            f"{name.text}: unsupported preprocessing, which pads images ({config['crop_mode']}); use another model"
        )
    interpolation = str(config["interpolation"])
    preprocess = EncoderPreprocess(
        image_size=name.size or int(config["input_size"][1]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        order="resize_then_crop",
        fit=cast("Fit", fit),
        crop=float(config["crop_pct"]) if fit == "crop" else 1.0,
        interpolation=cast("Interpolation", _INTERPOLATIONS.get(interpolation, interpolation)),
    )
    licence = str(getattr(model, "pretrained_cfg", {}).get("license") or UNKNOWN_LICENCE)
    licence = UNKNOWN_LICENCE if name.weights is not None else licence
    return TorchEncoder(name.text, TimmTokens(model), preprocess, licence, device)


def _create_model(name: EncoderName) -> nn.Module:
    changes: dict[str, Any] = {"num_classes": 0}
    if name.size is not None:
        changes["img_size"] = name.size
    if name.weights != RANDOM:
        changes |= {"pretrained": True, "pretrained_cfg_overlay": {"file": _weights_file(name), "custom_load": False}}
    log = _LoadingLog()
    try:
        with fixed_seed(), log.attach():
            try:
                model = timm.create_model(name.model, **changes)
            except TypeError:  # convolutional networks have no `img_size`, because they accept every size
                changes.pop("img_size", None)
                model = timm.create_model(name.model, **changes)
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError, SafetensorError) as error:
        raise UserError(f"{name.text}: cannot be loaded ({first_line(error)[:200]})") from error
    if log.missing:
        raise UserError(
            f"{name.text}: cannot be loaded (the weights belong to another model: {log.missing[:150]}); pass the "
            f"weights of {name.model}"
        )
    return model


class _LoadingLog(logging.Handler):
    """Handler that captures and silences timm's log while weights are loaded.

    If a model is loaded without a classifier, timm leaves missing tensors random, and reports this only in the log.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.missing = ""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Missing keys"):
            self.missing = message

    @contextmanager
    def attach(self) -> Iterator[None]:
        logger = logging.getLogger("timm.models")
        before = logger.level, logger.propagate
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.setLevel(before[0])
            logger.propagate = before[1]


def _weights_file(name: EncoderName) -> str:
    """Return the safetensors file of the weights, which is downloaded if necessary.

    The file is chosen here, because timm would also accept files that can run code.

    Raises:
        UserError: If the model has no weights on the Hugging Face hub, or they cannot be downloaded.
    """
    if name.weights is not None:
        return name.weights
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    config = timm.get_pretrained_cfg(name.model)
    hub_id = getattr(config, "hf_hub_id", None)
    if not hub_id:
        raise UserError(
            f"{name.text}: timm has no weights for this model on the Hugging Face hub; use {name.text}=FILE.safetensors"
        )
    try:
        with silence("huggingface_hub"):
            return hf_hub_download(hub_id, "model.safetensors", local_files_only=is_offline())
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{name.text}: model.safetensors of {hub_id} cannot be downloaded ({first_line(error)[:200]}); "
            f"use {name.text}=FILE.safetensors, or {name.text}={RANDOM}"
        ) from error
