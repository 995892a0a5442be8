"""The folder of a checkpoint: find it and its files, and read its config, without importing torch.

A checkpoint is a folder with `FILES`. It may hold ONNX graphs too, which read the same weights. A model in int8 has
graphs and weights of their own, and is no checkpoint: ONNX Runtime alone can run it.
"""

import copy
import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from grr_coca.common import plugins
from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.errors import UserError, nearest
from grr_coca.common.files import MANIFEST, file_sha256, listed_files
from grr_coca.model.config import OWN, CoCaConfig, find_architecture

WEIGHTS = "model.safetensors"
FILES = (WEIGHTS, "config.json", "tokenizer.json", "preprocess.json")
GraphName = Literal["image", "text", "step"]
GRAPHS: tuple[GraphName, ...] = get_args(GraphName)
GRAPH_FILES = tuple(f"{name}.onnx" for name in GRAPHS)
QUANTIZED_WEIGHTS = "weights.safetensors"
CONFIDENCE = "confidence.json"
PHOTOGRAPHS = "photographs.json"
RELEVANCE = "relevance.json"
MATCHING = "match.json"
TAGS = "tags.json"
FITTED_FILES = (CONFIDENCE, PHOTOGRAPHS, RELEVANCE, MATCHING, TAGS)
"""What the model knows of its captions, of photographs, of its hits, its matches and its tags, if that was fitted; see
`grr_coca.infer.calibration`, `grr_coca.infer.photographs`, `grr_coca_search.relevance`,
`grr_coca_icons.match.match_numbers`, `grr_coca.infer.tags`.
"""
MODEL_FILES = (*FILES, QUANTIZED_WEIGHTS, *GRAPH_FILES, *FITTED_FILES)
"""All files that a model may be loaded from. A checkpoint of a run has others, to continue training."""
_QUANTIZED_FILES = (QUANTIZED_WEIGHTS, *FILES[1:], *GRAPH_FILES)
_STEP_FOLDER = re.compile(r"step-([0-9]+)")


def checkpoints_by_step(folder: Path) -> dict[int, Path]:
    """The folders `step-N` of a run's `checkpoints`, in the order of their steps.

    A folder of another name, such as a copy `step-000000100-backup`, is not one of the run's checkpoints.

    Raises:
        UserError: the folder exists and cannot be listed. That must not be taken for a run without checkpoints.
    """
    try:
        names = os.listdir(folder)  # noqa: PTH208 (not `glob`, which hides errors)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror or error})") from error
    named = [(_STEP_FOLDER.fullmatch(name), folder / name) for name in names]
    return dict(sorted((int(match[1]), path) for match, path in named if match))


def find_model(path: Path) -> Path:
    """The newest checkpoint in `path/checkpoints/`, or, without that, the folder itself, which may be a model in int8.

    Raises:
        UserError: there is no checkpoint; the message says what is missing.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; a checkpoint is a folder that holds {', '.join(FILES)}")
    steps = list(checkpoints_by_step(path / "checkpoints").values())
    folder = steps[-1] if steps else path
    is_int8 = is_quantized(folder)
    missing = ", ".join(_missing(folder, _QUANTIZED_FILES if is_int8 else FILES))
    if missing and is_int8:
        raise UserError(f"{folder}: a model in int8 without {missing}; write it again: grr-coca export onnx")
    if missing:
        raise UserError(f"{folder}: not a checkpoint: {missing} missing")
    return folder


def find_checkpoint(path: Path) -> Path:
    """As `find_model`, for what needs the weights in PyTorch.

    Raises:
        UserError: there is no checkpoint, or it is a model in int8.
    """
    folder = find_model(path)
    if is_quantized(folder):
        raise UserError(
            f"{folder}: a model in int8, which runs in ONNX Runtime alone; give the checkpoint that it was made from"
        )
    return folder


def is_quantized(folder: Path) -> bool:
    """True for a model in int8, complete or not."""
    if (folder / WEIGHTS).is_file():
        return False
    try:
        listed = listed_files(folder)
    except UserError:  # it has no manifest, or that of something else
        listed = {}
    return QUANTIZED_WEIGHTS in listed or (folder / QUANTIZED_WEIGHTS).is_file()


def has_graphs(folder: Path) -> bool:
    """True if a checkpoint or a model in int8 holds its ONNX graphs."""
    return not _missing(folder, GRAPH_FILES)


def _missing(folder: Path, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if not (folder / name).is_file()]


def fingerprint(folder: Path) -> str:
    """A hash that identifies a model: equal for a checkpoint with and without graphs, and another one for int8.

    It is computed from the hashes in the manifest, as far as there are any.

    Raises:
        UserError: a file cannot be read, or the manifest is damaged.
    """
    listed = listed_files(folder) if (folder / MANIFEST).is_file() else {}
    digest = hashlib.sha256()
    for name in _QUANTIZED_FILES if is_quantized(folder) else FILES:
        try:
            content = listed[name][1] if name in listed else file_sha256(folder / name)
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be read ({error.strerror or error})") from error
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()[:32]


# --- The config of a model in `config.json`

FIXED_KEYS = {
    ("image_encoder", "transformer", "attention_bias"): "none",
    ("image_encoder", "class_token"): "none",
    ("image_encoder", "pre_norm"): "none",
    ("text_decoder", "transformer", "attention_bias"): "none",
    ("text_decoder", "cls"): "after_caption",
    ("multimodal_decoder", "transformer", "attention_bias"): "none",
    ("multimodal_decoder", "layer"): "one_feed_forward",
    ("multimodal_decoder", "image_tokens"): "as_given",
    ("poolers", "queries"): "free",
    ("poolers", "attention_bias"): "none",
}
"""Keys of `config.json` that together hold `CoCaConfig.architecture`: the value of each for CoCa's own. Another
architecture has other values, see `Architecture.keys`."""


def saved_config(config: CoCaConfig) -> dict[str, object]:
    """The config of a model as `config.json` holds it."""
    saved = to_dict(config)
    image_encoder = _section(saved, ("image_encoder", "stem"))
    if image_encoder["stem"] == "patchify":  # older files do not have the key, and must keep their hash
        del image_encoder["stem"]
    name = str(saved.pop("architecture"))
    for path, value in (FIXED_KEYS if name == OWN else find_architecture(name).keys).items():
        _section(saved, path)[path[-1]] = value
    return saved


def read_config(saved: Mapping[str, object], where: str) -> CoCaConfig:
    """The config of a model from the content of `config.json`. `where`: name of the file in messages.

    Raises:
        UserError: a key is unknown or missing, a value is not a choice, or the values do not fit one another.
    """
    names = {field.name for field in dataclasses.fields(CoCaConfig)} - {"architecture"}
    for name in saved:
        if name not in names:
            raise UserError(f"{where}: unknown key '{name}'; {nearest(str(name), names)}")
    config = copy.deepcopy(dict(saved))
    # Older files do not have all keys.
    values = {path: _section(config, path).pop(path[-1], value) for path, value in FIXED_KEYS.items()}
    config["architecture"] = OWN if values == FIXED_KEYS else _architecture_of(values, where)
    return from_dict(CoCaConfig, config, where)


def _architecture_of(values: Mapping[tuple[str, ...], object], where: str) -> str:
    """The name of the architecture that has these values of `FIXED_KEYS`, which are not all those of CoCa's own."""
    installed = {**plugins.others("grr_coca.architectures"), **plugins.own("grr_coca.architectures")}
    for name, architecture in installed.items():
        if values == architecture.keys:
            return name
    for path, value in values.items():
        choices = {FIXED_KEYS[path], *(architecture.keys[path] for architecture in installed.values())}
        if value not in choices:
            raise UserError(f"{where}: {'.'.join(path)}: {value!r} is not a choice; use {_quoted(choices)}")
    other, own = (
        next(".".join(path) for path, value in values.items() if (value == FIXED_KEYS[path]) is is_own)
        for is_own in (False, True)
    )
    raise UserError(
        f"{where}: {own} has the value of CoCa's own architecture, but {other} has not; a model has all parts of one "
        f"architecture; installed are {_quoted([OWN, *installed])}"
    )


def _quoted(names: Iterable[str]) -> str:
    return " or ".join(f"'{name}'" for name in sorted(names))


def _section(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The mapping that holds the last key of a path; empty if there is none, which `from_dict` then reports."""
    for name in path[:-1]:
        config = config.get(name, {})
        if not isinstance(config, dict):
            return {}
    return config
