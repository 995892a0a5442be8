"""Save and load checkpoints: folders of safetensors and JSON files.

| file | holds |
|---|---|
| `model.safetensors` | the weights, under the names of the modules |
| `config.json` | preset, step, the full model config, text cleaning, and a caution |
| `tokenizer.json` | the tokenizer, in Hugging Face's format |
| `preprocess.json` | how images are resized and normalized |
| `manifest.json` | size and SHA-256 of each file |
| `training/` | what a run needs to continue; see `grr_coca.train.checkpoints` |
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_IMODE
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from grr_coca.batch import pad_rows
from grr_coca.checkpoint_files import FILES, find_checkpoint, read_json
from grr_coca.config import CoCaConfig
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.tokenizer import Cleaning, Tokenizer
from grr_coca.errors import UserError
from grr_coca.files import MANIFEST, listed_files, verify_folder, whole_folder
from grr_coca.model import CoCa, build_without_weights
from grr_coca.structure import from_dict, to_dict
from grr_coca.torch_private import not_compiled

ChangeModel = Callable[[CoCa, CoCaConfig], None]
"""A function that replaces modules of a model, in place."""


@dataclass(frozen=True)
class _Header:
    """The content of `config.json`."""

    preset: str
    step: int
    model: dict[str, object]
    text_cleaning: Cleaning = "none"
    caution: str = ""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model with everything that is needed to use it.

    `caution`: why its embeddings may be unfit for search and zero-shot classification; empty if no reason is known.
    """

    model: CoCa
    config: CoCaConfig
    preset: str
    tokenizer: Tokenizer
    preprocess: Preprocess
    step: int
    caution: str = ""

    def tokenize(self, texts: Sequence[str]) -> tuple[Int[Tensor, "B T"], Int[Tensor, " B"]]:
        """Token ids of texts, and the length of each row, on the device of the model.

        Rows are padded to the longest (T tokens). Texts longer than the model's context are cut.
        """
        context_length = self.config.text_decoder.context_length
        token_ids, lengths = pad_rows([self.tokenizer.encode_row(text, context_length) for text in texts])
        return token_ids.to(self.model.device), lengths.to(self.model.device)


def save_checkpoint(checkpoint: Checkpoint, folder: str | Path) -> None:
    """Write a checkpoint to a folder, completely or not at all, such as at the end of your own training loop.

    A checkpoint in the folder is replaced. For a model from `torch.compile`, the original module is written.

    Raises:
        UserError: the folder holds anything but a checkpoint, the disk is full or cannot be written to, or the weights
            do not fit the checkpoint's config.
    """
    folder = Path(folder)
    _require_replaceable(folder)
    weights = not_compiled(checkpoint.model).state_dict()
    _require_weights_of(checkpoint.config, weights)
    try:
        with whole_folder(folder) as partial:
            write_files(checkpoint, weights, partial)
    except OSError as error:
        raise UserError(f"{folder}: the checkpoint could not be written ({error.strerror or error})") from error


def _require_weights_of(config: CoCaConfig, weights: Mapping[str, Tensor]) -> None:
    """Raise an error if the weights do not fit the config: they could not be loaded again."""
    wanted = {name: tuple(tensor.shape) for name, tensor in build_without_weights(config).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            shape, of_config = found.get(name, "missing"), wanted.get(name, "nothing")
            raise UserError(f"the model's {name} is {shape}, and its config expects {of_config}; nothing was written")


def _require_replaceable(folder: Path) -> None:
    """Raise an error if a folder holds anything but a checkpoint, because it would be deleted."""
    if not folder.is_dir():
        if folder.exists():
            raise UserError(f"{folder}: is a file, but a checkpoint is a folder; give another name")
        return
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    if not found:
        return
    try:
        listed = listed_files(folder)
    except UserError:
        listed = {}
    known = {MANIFEST, *listed} if listed.keys() >= set(FILES) else set()
    strange = next((name for name in found if name not in known), None)
    if strange is not None:
        raise UserError(
            f"{folder}: holds {strange}, which is not part of a checkpoint and would be deleted; give a new folder, "
            "or delete this one first"
        )


def write_files(checkpoint: Checkpoint, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write the files of a checkpoint into an empty folder, such as the one that `whole_folder` yields.

    Args:
        checkpoint: everything but the weights.
        weights: full tensors by name, which differ from those of `checkpoint.model` if it is sharded, or if a running
            average is saved.
        folder: the folder to write to.

    Raises:
        OSError: the disk is full or cannot be written to.
    """
    header = _Header(
        checkpoint.preset,
        checkpoint.step,
        saved_config(checkpoint.config),
        checkpoint.tokenizer.cleaning,
        checkpoint.caution,
    )
    save_tensors(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(to_dict(header), indent=2), encoding="utf-8")
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer.to_json(), encoding="utf-8")
    (folder / "preprocess.json").write_text(json.dumps(to_dict(checkpoint.preprocess), indent=2), encoding="utf-8")


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


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file, with the permissions of the umask.

    Raises:
        OSError: the disk is full or cannot be written to.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
        path.chmod(S_IMODE(mode))  # safetensors replaces it by a file that only the owner can read
    except SafetensorError as error:
        raise OSError(str(error)) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: it is missing, cannot be read, or is damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: the file is missing") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except SafetensorError as error:
        raise UserError(f"{path}: damaged, or not a safetensors file ({error})") from error


def from_pretrained(
    path: str | Path, device: str | torch.device = "cpu", change: ChangeModel | None = None
) -> Checkpoint:
    """Load a checkpoint folder, or the newest checkpoint of a run folder.

    Args:
        path: the folder.
        device: where the model goes.
        change: a change of modules that the checkpoint was trained with, as in some studies; applied before the
            weights are loaded.

    Raises:
        UserError: there is no checkpoint, a file is missing or damaged, or the weights do not fit the config.
    """
    folder = find_checkpoint(Path(path))
    if (folder / MANIFEST).exists():  # a checkpoint that was put together by hand may have none
        verify_folder(folder)
    header = from_dict(_Header, read_json(folder / "config.json"), str(folder / "config.json"))
    config = read_config(header.model, f"{folder / 'config.json'}: model")
    model = build_without_weights(config)
    if change is not None:
        change(model, config)
    _load_weights(model, folder / "model.safetensors")
    return Checkpoint(
        model=model.to(device).eval(),
        config=config,
        preset=header.preset,
        tokenizer=_read_tokenizer(folder / "tokenizer.json", header.text_cleaning, config.text_decoder.vocab_size),
        preprocess=_read_preprocess(folder / "preprocess.json", config.image_encoder.image_size),
        step=header.step,
        caution=header.caution,
    )


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


def _load_weights(model: CoCa, path: Path) -> None:
    weights = load_tensors(path)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{path}: the weights do not fit the model of config.json: {len(wrong)} tensors differ, the first is "
            f"'{name}' (expected {expected.get(name, 'none')}, found {found.get(name, 'none')})"
        )
    model.load_state_dict(weights)
