"""Find the files of a checkpoint, and read and write its config, tokenizer and preprocessing, without PyTorch.

A checkpoint is a folder with `FILES`. It may also contain ONNX graphs, which read the same weights. An int8 model has
graphs with separate weights, and is not a checkpoint, because only ONNX Runtime can run it. `grr_coca.model.checkpoint`
loads the weights as a PyTorch model, and `grr_coca.infer.engine` opens the ONNX graphs.

Bundled models are in `weights/NAME/`: a checkpoint in half precision with a manifest, `card.json` for programs, and
`card.md` for readers. `scripts/ship.py` writes them.
"""

import copy
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from grr_coca.common import plugins
from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.errors import NOTES, UserError, suggest_name
from grr_coca.common.files import MANIFEST, file_sha256, models_cache, read_json, read_manifest, verify_folder
from grr_coca.model.config import OWN_ARCHITECTURE, CoCaConfig, find_architecture

if TYPE_CHECKING:
    from grr_coca.data.features import EncoderInfo
    from grr_coca.data.preprocess import Preprocess
    from grr_coca.data.tokenizer import Tokenizer

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
TAGS, TAG_VECTORS = "tags.json", "tags.safetensors"
THESAURUS = "thesaurus.txt"
FITTED_FILES = (CONFIDENCE, PHOTOGRAPHS, RELEVANCE, MATCHING, TAGS, TAG_VECTORS, THESAURUS)
"""Files with parameters that were fitted to a model, for caption confidence, photographs, search hits, matches, tags
(parameters and word vectors) and related words. See `grr_coca.infer.calibration`, `grr_coca.infer.photographs`,
`grr_coca_search.relevance`, `grr_coca_icons.match.match_numbers`, `grr_coca.infer.tags` and `grr_coca_search.query`.
"""
BEST_FILE = "best.json"
"""File that names the step of the best checkpoint. It is next to the checkpoints of a run with `keep_best`."""
START_FILE = "start.json"
"""File in the folder of a fine-tuned run. It contains the folder and the fingerprint of the run's start checkpoint."""
ADAPTED = "adapted.json"
ADAPTED_FILES = (ADAPTED, "adapted.safetensors", "features.safetensors")
"""Files that `grr-coca adapt` adds to the files of its base; see `grr_coca.infer.adapted`."""
ENCODER_FILES = ("encoder.json", "encoder.safetensors", "encoder.onnx")
"""Files of an additional image encoder next to the base of an adapted model; see `grr_coca.infer.adapted.beside`."""
START_MODEL = "start"
START_MODEL_FILES = tuple(f"{START_MODEL}/{name}" for name in (*FILES, *GRAPH_FILES, MANIFEST))
"""Files of the copy of a fine-tuned base's start model in the folder of an adapted model; see
`grr_coca.infer.adapted.beside`."""
FROZEN_FILES = ("frozen.json", "frozen.onnx")
"""Files of the frozen encoder whose features a model takes; see `grr_coca.infer.engine.frozen`."""
MODEL_FILES = (
    *FILES,
    QUANTIZED_WEIGHTS,
    *GRAPH_FILES,
    *FITTED_FILES,
    *ADAPTED_FILES,
    *ENCODER_FILES,
    *START_MODEL_FILES,
    *FROZEN_FILES,
)
"""All files that may be read when a model is loaded. A run's checkpoint has additional files, for continuing the
training."""
_QUANTIZED_FILES = (QUANTIZED_WEIGHTS, *FILES[1:], *GRAPH_FILES)
_STEP_FOLDER = re.compile(r"step-([0-9]+)")


def checkpoints_by_step(folder: Path) -> dict[int, Path]:
    """Return the folders `step-N` in a run's `checkpoints`, in the order of their steps.

    A folder with another name, such as a copy `step-000000100-backup`, does not count as a checkpoint of the run.

    Raises:
        UserError: If the folder exists but cannot be listed, which must not be mistaken for a run without checkpoints.
    """
    try:
        names = os.listdir(folder)  # noqa: PTH208 (not `glob`, which hides errors)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror or error}); make this folder readable") from error
    named = [(_STEP_FOLDER.fullmatch(name), folder / name) for name in names]
    return dict(sorted((int(match[1]), path) for match, path in named if match))


def find_model(path: Path) -> Path:
    """Return the checkpoint to use from a run folder, or the folder itself if it is not a run.

    For a run whose recipe has `keep_best`, this is the best checkpoint, as recorded in `BEST_FILE`. For any other run,
    it is the newest checkpoint. A folder that is not a run may be an int8 model.

    Raises:
        UserError: If no checkpoint exists (the message names the missing part), `BEST_FILE` is corrupt, or the
            checkpoints cannot be listed.
    """
    if not path.is_dir():
        raise UserError(
            f"{path}: no such folder; pass the folder of a run, or a folder that contains {', '.join(FILES)}"
        )
    steps = checkpoints_by_step(path / "checkpoints")
    folder = _used_checkpoint(path, steps) if steps else path
    is_int8 = is_quantized(folder)
    missing = ", ".join(_missing_files(folder, _QUANTIZED_FILES if is_int8 else FILES))
    if missing and is_int8:
        raise UserError(f"{folder}: this int8 model has no {missing}; run `grr-coca export onnx` again")
    if missing:
        raise UserError(f"{folder}: not a checkpoint (it has no {missing}); pass the folder of a checkpoint or run")
    return folder


def _used_checkpoint(run: Path, steps: Mapping[int, Path]) -> Path:
    """Return the best checkpoint of a run with `keep_best`, or the newest checkpoint of any other run.

    If the run records a best checkpoint, a note to the user states which step is used.

    Args:
        run: Folder of the run.
        steps: Checkpoints of the run by step, at least one.

    Raises:
        UserError: If the file that names the best checkpoint is corrupt.
    """
    newest, path = max(steps), run / "checkpoints" / BEST_FILE
    if not path.exists():
        return steps[newest]
    best = from_dict(_Best, read_json(path), str(path)).step
    if best not in steps:
        NOTES.warning("%s: names step %d, which does not exist; using step %d, the newest", path, best, newest)
        return steps[newest]
    NOTES.info(
        "%s: using step %d, which is best on val%s",
        run,
        best,
        "" if best == newest else f"; the newest is step {newest}",
    )
    return steps[best]


@dataclass(frozen=True)
class _Best:
    """Content of `BEST_FILE`."""

    step: int


def start_of_run(run: Path) -> Path | None:
    """Return the checkpoint that a fine-tuned run started from, or None if that checkpoint is unknown, missing or
    changed.

    A bundled model with the recorded fingerprint also counts, because its folder may have moved.

    Raises:
        UserError: If the file that names the checkpoint, or the manifest of the checkpoint, is corrupt.
    """
    path = run / START_FILE
    if not path.is_file():
        return None
    origin = read_json(path)
    named = Path(str(origin.get("checkpoint")))
    for folder in (named, *(FOLDER / name for name in bundled_names())):
        if not _missing_files(folder, FILES) and fingerprint(folder) == origin.get("fingerprint"):
            return folder
    return None


def find_checkpoint(path: Path) -> Path:
    """Find a checkpoint as `find_model` does, for uses that need the weights in PyTorch.

    Raises:
        UserError: If `find_model` raises it, or the folder is an int8 model.
    """
    folder = find_model(path)
    if is_quantized(folder):
        raise UserError(f"{folder}: an int8 model, which runs only in ONNX Runtime; pass its source checkpoint")
    return folder


def is_quantized(folder: Path) -> bool:
    """Return whether a folder contains an int8 model, whether complete or not."""
    if (folder / WEIGHTS).is_file():
        return False
    try:
        listed = read_manifest(folder)
    except UserError:  # the folder has no manifest, or a manifest of another kind
        listed = {}
    return QUANTIZED_WEIGHTS in listed or (folder / QUANTIZED_WEIGHTS).is_file()


def is_adapted(folder: Path) -> bool:
    """Return whether a folder contains a model that `grr-coca adapt` created."""
    return (folder / ADAPTED).is_file()


def require_not_adapted(folder: Path, what: str) -> None:
    """Check that a model is not adapted, before work that needs a model with its own weights.

    Args:
        folder: Folder of the model.
        what: Name of the work in messages, such as "match".

    Raises:
        UserError: If the model is adapted. The message names its base.
    """
    if is_adapted(folder):
        base = read_json(folder / ADAPTED).get("base")
        raise UserError(f"{folder}: {what} does not support adapted models; use the base of this model, {base}")


def has_graphs(folder: Path) -> bool:
    """Return whether a checkpoint or an int8 model contains its ONNX graphs."""
    return not _missing_files(folder, GRAPH_FILES)


def _missing_files(folder: Path, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if not (folder / name).is_file()]


def fingerprint(folder: Path) -> str:
    """Return a hash that identifies a model, as 32 hexadecimal digits.

    The hash is the same with and without ONNX graphs, but differs for int8. The hash of an adapted model also covers
    the adaptation. If the manifest lists the hash of a file, the fingerprint is computed from this hash instead of the
    file.

    Raises:
        UserError: If a file cannot be read, or the manifest is corrupt.
    """
    encoder = tuple(name for name in ENCODER_FILES[:1] if (folder / name).is_file())
    return _fingerprint(folder, (*ADAPTED_FILES, *encoder) if is_adapted(folder) else ())


def base_fingerprint(folder: Path) -> str:
    """Return the fingerprint of an adapted model's base, or the fingerprint of a model that is not adapted.

    Raises:
        UserError: If a file cannot be read, or the manifest is corrupt.
    """
    return _fingerprint(folder, ())


def _fingerprint(folder: Path, additional: tuple[str, ...]) -> str:
    listed = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
    digest = hashlib.sha256()
    for name in (*(_QUANTIZED_FILES if is_quantized(folder) else FILES), *additional):
        try:
            content = listed[name][1] if name in listed else file_sha256(folder / name)
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be read ({error.strerror or error})") from error
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()[:32]


# --- Config of a model in `config.json`

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
"""Keys of `config.json` that together encode `CoCaConfig.architecture`, with the values of CoCa. Another architecture
has other values; see `Architecture.keys`."""


def saved_config(config: CoCaConfig) -> dict[str, object]:
    """Return a model's config in the form in which `config.json` contains it under the key `model`.

    Raises:
        UserError: If the package that provides the model's architecture is not installed.
    """
    saved = to_dict(config)
    image_encoder = _section(saved, ("image_encoder", "stem"))
    # Older files do not have these keys, and their hash must not change.
    if image_encoder.get("stem") == "patchify":
        del image_encoder["stem"]
    if saved["feature_encoder"] is None:
        del saved["feature_encoder"]
    name = str(saved.pop("architecture"))
    for path, value in (FIXED_KEYS if name == OWN_ARCHITECTURE else find_architecture(name).keys).items():
        _section(saved, path)[path[-1]] = value
    return saved


def read_config(saved: Mapping[str, object], where: str) -> CoCaConfig:
    """Convert the value of the key `model` in `config.json` to a config. Messages begin with `where`.

    Raises:
        UserError: If a key is unknown or missing, a value is not allowed, or the values contradict each other.
    """
    names = {field.name for field in dataclasses.fields(CoCaConfig)} - {"architecture"}
    for name in saved:
        if name not in names:
            raise UserError(f"{where}: unknown key '{name}'; {suggest_name(str(name), names)}")
    config = copy.deepcopy(dict(saved))
    # Older files do not have all keys.
    values = {path: _section(config, path).pop(path[-1], value) for path, value in FIXED_KEYS.items()}
    config["architecture"] = OWN_ARCHITECTURE if values == FIXED_KEYS else _architecture_of(values, where)
    return from_dict(CoCaConfig, config, where)


def _architecture_of(values: Mapping[tuple[str, ...], object], where: str) -> str:
    """Return the name of the architecture with the given values of `FIXED_KEYS`, which differ from those of CoCa.

    Raises:
        UserError: If no installed architecture has these values. The message names a key that is wrong.
    """
    installed = {**plugins.others("grr_coca.architectures"), **plugins.own("grr_coca.architectures")}
    for name, architecture in installed.items():
        if values == architecture.keys:
            return name
    for path, value in values.items():
        choices = {FIXED_KEYS[path], *(architecture.keys[path] for architecture in installed.values())}
        if value not in choices:
            raise UserError(
                f"{where}: {'.'.join(path)}: must be {_quote_names(choices)}, got {value!r}; correct it, or install "
                "the package that provides the model's architecture"
            )
    other, own = (
        next(".".join(path) for path, value in values.items() if (value == FIXED_KEYS[path]) is is_own)
        for is_own in (False, True)
    )
    raise UserError(
        f"{where}: {own} has the value of the architecture CoCa, but {other} does not; use the values of one "
        f"architecture: {_quote_names([OWN_ARCHITECTURE, *installed])}"
    )


def _quote_names(names: Iterable[str]) -> str:
    return " or ".join(f"'{name}'" for name in sorted(names))


def _section(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Return the mapping that contains the last key of a path, or an empty mapping if a section is missing."""
    for name in path[:-1]:
        config = config.get(name, {})
        if not isinstance(config, dict):
            return {}
    return config


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles:
    """Everything needed to use a model, except its weights.

    Attributes:
        config: Config of the model.
        preset: Name of the preset from which the config was made.
        tokenizer: Tokenizer of the model.
        preprocess: Preprocessing of the model's own image encoder, or of `encoder` if the model has no image encoder.
        step: Number of training steps so far.
        caution: Reason why the embeddings may be unsuitable for search and zero-shot classification. Empty if none is
            known.
        encoder: The frozen encoder whose features the model takes. None if the model takes no features. If the model
            also has its own image encoder, `preprocess` is applied to the square images that the frozen encoder's
            preprocessing yields.
    """

    config: CoCaConfig
    preset: str
    tokenizer: "Tokenizer"
    preprocess: "Preprocess"
    step: int
    caution: str = ""
    encoder: "EncoderInfo | None" = None


@dataclass(frozen=True, kw_only=True)
class _Header:
    """Content of `config.json`."""

    preset: str
    step: int
    model: dict[str, object]
    text_cleaning: str = "none"
    caution: str = ""
    encoder: dict[str, object] | None = None


def read_files(folder: Path) -> CheckpointFiles:
    """Read a checkpoint folder, or a folder of ONNX graphs.

    If the folder has a manifest, its files are compared with the manifest. In a download, which lacks other files in
    the manifest, these are only the files of the model.

    Raises:
        UserError: If a file is missing or corrupt, or the files do not match.
    """
    # lazy import, as in `_read_tokenizer`, because finding a folder needs neither Pillow nor a tokenizer
    from grr_coca.data.preprocess import EncoderPreprocess, Preprocess

    if (folder / MANIFEST).exists():  # a manually assembled checkpoint may have no manifest
        _verify(folder)
    header = from_dict(_Header, read_json(folder / "config.json"), str(folder / "config.json"))
    config = read_config(header.model, f"{folder / 'config.json'}: model")
    kind = Preprocess if config.image_encoder is not None else EncoderPreprocess
    files = CheckpointFiles(
        config=config,
        preset=header.preset,
        tokenizer=_read_tokenizer(folder / "tokenizer.json", header.text_cleaning),
        preprocess=from_dict(kind, read_json(folder / "preprocess.json"), str(folder / "preprocess.json")),
        step=header.step,
        caution=header.caution,
        encoder=_read_encoder(header.encoder, f"{folder / 'config.json'}: encoder"),
    )
    require_matching_files(files, folder)
    return files


def read_encoder_in_place(folder: Path) -> "EncoderInfo | None":
    """Read the description of the frozen encoder that a checkpoint has in place of an image encoder.

    Return None if the checkpoint has no such encoder. No other files are read.

    Raises:
        UserError: If `config.json` is missing or corrupt.
    """
    header = read_json(folder / "config.json")
    model = header.get("model")
    in_place = isinstance(model, dict) and model.get("image_encoder") is None
    return _read_encoder(header.get("encoder"), f"{folder / 'config.json'}: encoder") if in_place else None


def read_keep(folder: Path) -> str | None:
    """Return the kind of features that a checkpoint takes, `tokens` or `mean`, or None if it takes no features.

    Raises:
        UserError: If `config.json` is missing or corrupt.
    """
    model = read_json(folder / "config.json").get("model")
    features = model.get("feature_encoder") if isinstance(model, dict) else None
    return features.get("keep") if isinstance(features, dict) else None


def require_matching_files(files: CheckpointFiles, folder: Path) -> None:
    """Check that the tokenizer and the preprocessing match the config. Messages name the files in `folder`.

    Raises:
        UserError: If the tokenizer or the preprocessing does not match.
    """
    known, encoder = files.config.text_decoder.vocab_size, files.encoder
    largest_id, image_size = files.tokenizer.largest_id, files.preprocess.image_size
    if largest_id >= known:
        path = folder / "tokenizer.json"
        raise UserError(
            f"{path}: contains token id {largest_id:,}, but the model's largest id is {known - 1:,}; use "
            "the model's own tokenizer"
        )
    own, features = files.config.image_encoder, files.config.feature_encoder
    if own is not None and image_size != own.image_size:
        path = folder / "preprocess.json"
        raise UserError(
            f"{path}: image_size is {image_size}, but the model uses images of {own.image_size} pixels; copy all files "
            "from the same checkpoint"
        )
    if own is None and encoder is not None and files.preprocess != encoder.preprocess:
        raise UserError(
            f"{folder / 'preprocess.json'}: differs from the preprocessing of the encoder in config.json; copy both "
            "files from the same checkpoint"
        )
    expected = None if features is None else features.feature_dim
    if (None if encoder is None else encoder.embed_dim) != expected:
        raise UserError(
            f"{folder / 'config.json'}: encoder and feature_encoder must have the same width, or both be missing; copy "
            "the file again"
        )


def write_other_files(files: CheckpointFiles, folder: Path) -> None:
    """Write the config, the tokenizer and the preprocessing to a folder.

    Raises:
        OSError: If the disk is full or cannot be written to.
        UserError: If the package that provides the model's architecture is not installed.
    """
    encoder = None if files.encoder is None else to_dict(files.encoder)
    header = to_dict(
        _Header(
            preset=files.preset,
            step=files.step,
            model=saved_config(files.config),
            text_cleaning=files.tokenizer.cleaning,
            caution=files.caution,
            encoder=encoder,
        )
    )
    if encoder is None:
        del header["encoder"]
    (folder / "config.json").write_bytes(json.dumps(header, indent=2).encode())
    (folder / "tokenizer.json").write_bytes(files.tokenizer.to_json().encode())
    preprocess = to_dict(files.preprocess)
    if files.preprocess.framing is None:  # older files do not have the key, and their hash must not change
        del preprocess["framing"]
    (folder / "preprocess.json").write_bytes(json.dumps(preprocess, indent=2).encode())


def _verify(folder: Path) -> None:
    # A download has only the files of the model, although the manifest may also list files of a run or a card.
    is_download = not any((folder / name).exists() for name in read_manifest(folder).keys() - set(MODEL_FILES))
    try:
        verify_folder(folder, MODEL_FILES if is_download else None)
    except UserError as error:
        if folder.parent == models_cache():
            raise UserError(f"{error}; delete {folder} to import it again") from error
        raise


def _read_encoder(saved: Mapping[str, object] | None, where: str) -> "EncoderInfo | None":
    if saved is None:
        return None
    from grr_coca.data.features import EncoderInfo

    return from_dict(EncoderInfo, saved, where)


def _read_tokenizer(path: Path, cleaning: str) -> "Tokenizer":
    from grr_coca.data.tokenizer import Cleaning, Tokenizer

    if cleaning not in (choices := get_args(Cleaning)):
        raise UserError(
            f"{path.with_name('config.json')}: text_cleaning: must be {_quote_names(choices)}, got {cleaning!r}"
        )
    try:
        return Tokenizer.from_json(path.read_text(encoding="utf-8"), cast("Cleaning", cleaning))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the tokenizer is corrupt, or cannot be read ({error}); copy it again") from error


# --- Bundled models

FOLDER = Path(__file__).parent / "weights"
DEFAULT = "icons"
"""Name of the default model."""
FOR_PHOTOGRAPHS = "coca-l14-captions"
"""Name of the published model for captions of photographs."""

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
"""Pattern of a model's name on the Hugging Face hub, `owner/name`."""


@dataclass(frozen=True)
class Figure:
    """Measured value with its 95 % confidence interval, from a bootstrap over the images of the split."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Description of a bundled model, its data and its metrics: the content of `card.json`.

    Attributes:
        name: Name of the model.
        summary: Description of the model in one line.
        preset: Name of the model's preset.
        parameters: Number of parameters.
        data: Training data.
        licence: Licences of the training data and the weights.
        recipe: Path of the training recipe in the repository.
        steps: Number of training steps.
        figures: Metrics by split, then by name (`perplexity`, `text_to_image/R@1`, `exact_captions` …). They include
            `chance`, whose interval has width 0.
    """

    name: str
    summary: str
    preset: str
    parameters: int
    data: str
    licence: str
    recipe: str
    steps: int
    figures: dict[str, dict[str, Figure]]


def bundled_models() -> dict[str, ModelCard]:
    """Return the cards of all bundled models, by name.

    Raises:
        UserError: If a card is corrupt.
    """
    cards = {name: FOLDER / name / "card.json" for name in bundled_names()}
    return {name: from_dict(ModelCard, read_json(path), str(path)) for name, path in cards.items()}


def bundled_names() -> list[str]:
    """Return the names of all bundled models, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob("*/card.json"))


def bundled_folder(name: str) -> Path | None:
    """Return the checkpoint folder of a bundled model, or None if no bundled model has this name."""
    return FOLDER / name if name in bundled_names() else None
