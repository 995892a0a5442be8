"""Objects for entry points, through which the core finds this package.

Importing this module is cheap, because PyTorch is imported later.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grr_coca.common.errors import UserError, require_extra
from grr_coca.common.threads import set_passive_wait_policy
from grr_coca.model.config import CoCaConfig

if TYPE_CHECKING:
    import torch

    from grr_coca.infer.image_text_model import ImageTextModel

_PARTS: dict[str, object] = {"norm": "layer_1e-5", "feed_forward": "gelu", "position": "learned", "qk_norm": "none"}


class OpenClipArchitecture:
    """Architecture of open_clip's CoCa (`grr_coca_open_clip.model`), see `grr_coca.model.config.Architecture`."""

    keys: Mapping[tuple[str, ...], str] = {
        ("image_encoder", "transformer", "attention_bias"): "all",
        ("image_encoder", "class_token"): "kept",
        ("image_encoder", "pre_norm"): "before_blocks",
        ("text_decoder", "transformer", "attention_bias"): "all",
        ("text_decoder", "cls"): "last_position",
        ("multimodal_decoder", "transformer", "attention_bias"): "all",
        ("multimodal_decoder", "layer"): "two_feed_forwards",
        ("multimodal_decoder", "image_tokens"): "normalized",
        ("poolers", "queries"): "normalized",
        ("poolers", "attention_bias"): "all",
    }
    reserves_padding = True

    def check(self, config: CoCaConfig) -> None:
        """Check that a config has only parts that open_clip's CoCa also has.

        Raises:
            UserError: If the config has other parts. The message names the first of them.
        """
        required: list[tuple[object, dict[str, object]]] = [
            (config.own_image_encoder, {"num_registers": 0, "stem": "patchify"}),
            (config.own_image_encoder.transformer, _PARTS),
            (config.text_decoder.transformer, _PARTS),
            (config.multimodal_decoder.transformer, _PARTS),
            (config.poolers, {"norm": "layer_1e-5", "arrangement": "shared"}),
        ]
        for part, choices in required:
            for name, choice in choices.items():
                found = getattr(part, name)
                if found != choice:
                    raise UserError(f"architecture 'open_clip' needs {name} {choice!r}, got {found!r}")

    def build(self, config: CoCaConfig) -> Any:
        """Build the model that a config defines, with uninitialized weights."""
        from grr_coca_open_clip.model import build_open_clip  # lazy import: PyTorch

        return build_open_clip(config)


ARCHITECTURE = OpenClipArchitecture()


def load(path: str, device: "str | torch.device | None", engine: str) -> "ImageTextModel":
    """Load an open_clip checkpoint, as `grr_coca.load("open_clip:PATH")` does.

    Args:
        path: Folder in the hub's layout, or a weights file.
        device: Device to run on. By default, CUDA if available, else Apple's MPS, else the CPU.
        engine: `auto` or `torch`.

    Raises:
        UserError: If another engine is requested, a package is missing, or the checkpoint cannot be read.
    """
    if engine not in ("auto", "torch"):
        raise UserError(
            f"open_clip:{path}: engine '{engine}' cannot run this checkpoint; omit the engine, or "
            "import the checkpoint with `grr-coca import open_clip`"
        )
    require_extra("open-clip", f"open_clip:{path}")
    set_passive_wait_policy()
    from grr_coca.infer.image_text_model import ImageTextModel
    from grr_coca.infer.load import choose_device
    from grr_coca_open_clip.checkpoints.read import read_open_clip

    return ImageTextModel(read_open_clip(Path(path), device=choose_device(device)))
