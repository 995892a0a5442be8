"""Image encoder of a model of this package, as an external encoder for other models."""

from dataclasses import asdict

from grr_coca.common.errors import UserError
from grr_coca.data.preprocess import EncoderPreprocess, Preprocess
from grr_coca.infer.encoder import UNKNOWN_LICENCE
from grr_coca.infer.load import locate_checkpoint
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.model.checkpoint_files import bundled_names
from grr_coca_encoders.torch_encoder import TorchEncoder

_LICENCE = "apache-2.0"
"""Licence of bundled weights."""


def load_own(name: str, device: str | None) -> TorchEncoder:
    """Load the image encoder of a model.

    Args:
        name: Folder or name of the model.
        device: See `TorchEncoder`.

    Raises:
        UserError: If the model does not exist, cannot be read, or takes features of another encoder.
    """
    checkpoint = from_pretrained(locate_checkpoint(name))
    preprocess = checkpoint.preprocess
    if type(preprocess) is not Preprocess:
        raise UserError(f"coca:{name}: has no image encoder, but takes features of another encoder; use that encoder")
    return TorchEncoder(
        f"coca:{name}",
        checkpoint.model.own_image_encoder,
        EncoderPreprocess(**{**asdict(preprocess), "framing": preprocess.framing}),
        _LICENCE if name in bundled_names() else UNKNOWN_LICENCE,
        device,
    )
