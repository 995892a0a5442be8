"""Write one of our checkpoints in open_clip's format. The model must have the parts of the preset `open_clip_coca`."""

import json
import logging
from pathlib import Path

from grr_coca.common.dict_to_dataclass import differences
from grr_coca.common.errors import UserError
from grr_coca.common.files import atomic_folder
from grr_coca.common.outputs import disk_errors
from grr_coca.data.tokenizer import clip_bpe
from grr_coca.model.checkpoint import Checkpoint, save_tensors
from grr_coca.model.presets import get_preset
from grr_coca_open_clip.checkpoints import SETTINGS, WEIGHTS
from grr_coca_open_clip.checkpoints.names import to_theirs
from grr_coca_open_clip.checkpoints.settings import make_model_cfg

log = logging.getLogger(__name__)

_SIZES = frozenset(
    f"{stack}.transformer.{key}"
    for stack in ("image_encoder", "text_decoder", "multimodal_decoder")
    for key in ("num_layers", "embed_dim", "num_heads", "hidden_dim")
) | {
    "embed_dim",
    "image_encoder.image_size",
    "image_encoder.patch_size",
    "text_decoder.vocab_size",
    "text_decoder.context_length",
    "poolers.num_queries",
    "poolers.num_heads",
}
"""Config keys whose values may differ from those of the published models."""


def write_open_clip(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a folder that open_clip loads as `local-dir:FOLDER`.

    Raises:
        UserError: If open_clip does not support the model's parts or vocabulary, or the disk cannot be written to.
    """
    _require_supported(checkpoint)
    pre = checkpoint.preprocess
    if pre.order != "resize_then_crop":
        log.warning(
            "open_clip always resizes images before cropping, but this model was trained with the order %s, so its "
            "embeddings in open_clip differ slightly",
            pre.order,
        )
    settings = {
        "model_cfg": make_model_cfg(checkpoint.config),
        "preprocess_cfg": {"mean": list(pre.mean), "std": list(pre.std)},
    }
    tensors = to_theirs(checkpoint.model.state_dict(), checkpoint.config)
    with disk_errors(folder), atomic_folder(folder) as partial:
        save_tensors({name: tensor.clone() for name, tensor in tensors.items()}, partial / WEIGHTS[0])
        (partial / SETTINGS).write_bytes(json.dumps(settings, indent=2).encode())


def _require_supported(checkpoint: Checkpoint) -> None:
    reference = get_preset("open_clip_coca", "b32")
    for key, value, expected in differences(checkpoint.config, reference):
        if key not in _SIZES:
            raise UserError(
                f"open_clip does not support this '{checkpoint.preset}': {key} must be {expected}, got {value}; "
                "only models imported from open_clip, or trained as open_clip_coca, can be exported"
            )
    if not checkpoint.tokenizer.has_vocabulary_of(clip_bpe()):
        raise UserError(
            "open_clip uses CLIP's vocabulary, but this model has another one; only models imported from open_clip, or "
            "trained with the tokenizer kind clip, can be exported"
        )
