"""Read all of a checkpoint but its weights: config, tokenizer and preprocessing. This needs no PyTorch.

`grr_coca.checkpoint` adds the weights as a PyTorch model, `grr_coca.engine` as ONNX graphs.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grr_coca.checkpoint_files import read_json
from grr_coca.config import CoCaConfig
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.tokenizer import Cleaning, Tokenizer
from grr_coca.errors import UserError
from grr_coca.files import MANIFEST, verify_folder
from grr_coca.structure import from_dict, to_dict


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles:
    """All that is needed to use a model, except its weights.

    `caution`: why its embeddings may be unfit for search and zero-shot classification; empty if no reason is known.
    """

    config: CoCaConfig
    preset: str
    tokenizer: Tokenizer
    preprocess: Preprocess
    step: int
    caution: str = ""


@dataclass(frozen=True)
class _Header:
    """The content of `config.json`."""

    preset: str
    step: int
    model: dict[str, object]
    text_cleaning: Cleaning = "none"
    caution: str = ""


def read_files(folder: Path) -> CheckpointFiles:
    """Read a checkpoint folder, or a folder of ONNX graphs. All files are compared with its manifest, if it has one.

    Raises:
        UserError: a file is missing or damaged, or the files do not fit one another.
    """
    if (folder / MANIFEST).exists():  # a checkpoint that was put together by hand may have none
        verify_folder(folder)
    header = from_dict(_Header, read_json(folder / "config.json"), str(folder / "config.json"))
    config = read_config(header.model, f"{folder / 'config.json'}: model")
    return CheckpointFiles(
        config=config,
        preset=header.preset,
        tokenizer=_read_tokenizer(folder / "tokenizer.json", header.text_cleaning, config.text_decoder.vocab_size),
        preprocess=_read_preprocess(folder / "preprocess.json", config.image_encoder.image_size),
        step=header.step,
        caution=header.caution,
    )


def write_beside_weights(files: CheckpointFiles, folder: Path) -> None:
    """Write config, tokenizer and preprocessing into a folder.

    Raises:
        OSError: the disk is full or cannot be written to.
    """
    header = _Header(files.preset, files.step, saved_config(files.config), files.tokenizer.cleaning, files.caution)
    (folder / "config.json").write_text(json.dumps(to_dict(header), indent=2), encoding="utf-8")
    (folder / "tokenizer.json").write_text(files.tokenizer.to_json(), encoding="utf-8")
    (folder / "preprocess.json").write_text(json.dumps(to_dict(files.preprocess), indent=2), encoding="utf-8")


def _read_tokenizer(path: Path, cleaning: Cleaning, known: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_json(path.read_text(encoding="utf-8"), cleaning)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the tokenizer is damaged ({error})") from error
    if tokenizer.largest_id >= known:
        raise UserError(f"{path}: has the id {tokenizer.largest_id:,}, but the ids of the model are below {known:,}")
    return tokenizer


def _read_preprocess(path: Path, side: int) -> Preprocess:
    preprocess = from_dict(Preprocess, read_json(path), str(path))
    if preprocess.image_size != side:
        raise UserError(f"{path}: image_size is {preprocess.image_size}, but the model takes images of {side} pixels")
    return preprocess


_OPEN_CLIP_KEYS = {
    ("image_encoder", "transformer", "attention_bias"): ("none", "all"),
    ("image_encoder", "class_token"): ("none", "kept"),
    ("image_encoder", "pre_norm"): ("none", "before_blocks"),
    ("text_decoder", "transformer", "attention_bias"): ("none", "all"),
    ("text_decoder", "cls"): ("after_caption", "last_position"),
    ("multimodal_decoder", "transformer", "attention_bias"): ("none", "all"),
    ("multimodal_decoder", "layer"): ("one_feed_forward", "two_feed_forwards"),
    ("multimodal_decoder", "image_tokens"): ("as_given", "normalized"),
    ("poolers", "queries"): ("free", "normalized"),
    ("poolers", "attention_bias"): ("none", "all"),
}
"""Keys of `config.json` that together hold `CoCaConfig.architecture`: the value of each for `coca` and for
`open_clip`."""


def saved_config(config: CoCaConfig) -> dict[str, object]:
    """The config of a model as `config.json` holds it."""
    saved = to_dict(config)
    is_open_clip = saved.pop("architecture") == "open_clip"
    for path, values in _OPEN_CLIP_KEYS.items():
        _section(saved, path)[path[-1]] = values[is_open_clip]
    return saved


def read_config(saved: Mapping[str, object], where: str) -> CoCaConfig:
    """The config of a model from the content of `config.json`. `where`: name of the file in messages.

    Raises:
        UserError: a key is unknown or missing, a value is not a choice, or the values do not fit one another.
    """
    if "architecture" in saved:
        raise UserError(f"{where}: unknown key 'architecture'")
    config = copy.deepcopy(dict(saved))
    is_open_clip = {}
    for path, (ours, theirs) in _OPEN_CLIP_KEYS.items():
        key, value = ".".join(path), _section(config, path).pop(path[-1], ours)  # older files do not have the key
        if value not in (ours, theirs):
            raise UserError(f"{where}: {key}: {value!r} is not a choice; use '{ours}' or '{theirs}'")
        is_open_clip[key] = value == theirs
    if len(set(is_open_clip.values())) > 1:
        theirs, ours = (next(key for key, found in is_open_clip.items() if found is wanted) for wanted in (True, False))
        raise UserError(
            f"{where}: {theirs} has open_clip's value, but {ours} has not; a model has all parts of open_clip's CoCa, "
            "or none"
        )
    config["architecture"] = "open_clip" if any(is_open_clip.values()) else "coca"
    return from_dict(CoCaConfig, config, where)


def _section(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The mapping that holds the last key of a path; empty if there is none, which `from_dict` then reports."""
    for name in path[:-1]:
        config = config.get(name, {})
        if not isinstance(config, dict):
            return {}
    return config
