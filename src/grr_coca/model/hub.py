"""Create model cards for checkpoints, and upload checkpoints to the Hugging Face hub in one commit.

This module does not import torch.

A card is generated from the files of a checkpoint:

| content | from |
|---|---|
| architecture, step, warning | `config.json` |
| number of parameters | the header of `model.safetensors` |
| start model of a fine-tuned or adapted model, its data and licence | the record of the start, and the start's card |
| data, licence, figures | `card.json` (`grr_coca.model.checkpoint_files.ModelCard`) if it exists, else the caller |
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from grr_coca.common.dict_to_dataclass import from_dict
from grr_coca.common.errors import UserError, require_extra
from grr_coca.common.files import MANIFEST, read_json, verify_folder
from grr_coca.model.checkpoint_files import (
    ADAPTED_FILES,
    ENCODER_FILES,
    FILES,
    FITTED_FILES,
    FROZEN_FILES,
    GRAPH_FILES,
    HUB_ID,
    START_FILE,
    START_MODEL,
    START_MODEL_FILES,
    Figure,
    ModelCard,
    bundled_folder,
    bundled_names,
    find_checkpoint,
    fingerprint,
    has_graphs,
    is_adapted,
)

README = "README.md"
_CARD = "card.json"
Figures = Mapping[str, Mapping[str, Figure]]
"""Measured numbers, by split and metric."""

_KNOWN_LICENCES = {
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0",
    "etalab-2.0", "eupl-1.1", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0",
    "isc", "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by", "odbl", "openrail++", "osl-3.0", "postgresql", "ofl-1.1",
    "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr", "deepfloyd-if-license", "llama2", "gemma",
}  # fmt: skip
"""Names of licences on the hub. The hub rejects a card with any other licence, unless the licence is in
`license_name`."""


@dataclass(frozen=True)
class Start:
    """Model from which another model was fine-tuned or adapted.

    `step` is its number of training steps, or 0 if unknown. `card` is None if the model is not bundled.
    """

    name: str
    step: int = 0
    card: ModelCard | None = None


def find_start(checkpoint: Path) -> Start | None:
    """Return the model from which a checkpoint was fine-tuned or adapted, or None if no start is recorded.

    Only the last part of a local path is used as a name, because the card is public.

    Raises:
        UserError: If a file that records the start is corrupt.
    """
    path, names = checkpoint.parent.parent / START_FILE, ("checkpoint", "fingerprint")
    if is_adapted(checkpoint):
        path, names = checkpoint / ENCODER_FILES[0], ("name", "weights")
        if not (checkpoint / START_MODEL).is_dir():
            path, names = checkpoint / ADAPTED_FILES[0], ("base", "base_fingerprint")
    elif checkpoint.parent.name != "checkpoints" or not path.is_file():
        return None
    try:
        origin = read_json(path)
        folder, expected = Path(origin[names[0]]), origin[names[1]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: '{names[0]}' or '{names[1]}' is missing or invalid; copy the file again") from error
    for name in bundled_names():
        bundled = bundled_folder(name)
        if bundled is not None and fingerprint(bundled) == expected:
            return Start(name, int(read_json(bundled / "config.json")["step"]), _bundled_card(bundled))
    in_run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    cached = re.fullmatch(r"models--(.+?)--(.+)", folder.parent.parent.name)
    name = f"{cached[1]}/{cached[2]}" if cached else in_run.name
    is_there = (folder / "config.json").is_file() and fingerprint(folder) == expected
    return Start(name, int(read_json(folder / "config.json").get("step", 0)) if is_there else 0)


def read_figures(path: Path) -> Figures:
    """Read the metrics that `grr-coca evaluate --json` wrote, by split and metric.

    Each split is named by the shortest end of its path that distinguishes it from the other splits.

    Raises:
        UserError: If the file does not exist, or has other content.
    """
    found: dict[str, dict[str, Figure]] = {}
    measured = read_json(path)
    for split, report in measured.items():
        intervals = report.get("intervals") or report.get("metrics") if isinstance(report, dict) else None
        if not isinstance(intervals, dict):
            raise UserError(f"{path}: no intervals of '{split}'; pass a file from `grr-coca evaluate --json`")
        where = f"{path}: {split}"
        found[_short_name(split, measured)] = {key: from_dict(Figure, value, where) for key, value in intervals.items()}
    return found


def model_card(
    folder: Path, name: str, data: str | None = None, licence: str | None = None, figures: Figures | None = None
) -> str:
    """Create the model card of a checkpoint: a `README.md` with metadata for the hub.

    Bytes that are not UTF-8 are escaped.

    Args:
        folder: The checkpoint.
        name: `owner/name` on the hub.
        data: Training data of the model. By default, the data in the `card.json` of a bundled model.
        licence: Licence of the weights, as free text or as one of the hub's names, such as `mit`. By default, the
            licence in `card.json`.
        figures: Measured metrics. By default, those in `card.json`.

    Raises:
        UserError: If the licence is unknown and not given, a file is missing or corrupt, or the extra `hub` is not
            installed.
    """
    require_extra("hub", "a card for the Hugging Face hub")
    from huggingface_hub import ModelCardData

    config, card, start = read_json(folder / "config.json"), _bundled_card(folder), find_start(folder)
    licence = _escape_non_utf8((licence or "").strip()) or (card.licence if card else None)
    if licence is None:
        began = f" (it started from {start.name}: {start.card.licence})" if start and start.card else ""
        raise UserError(
            f"{folder}: its licence is unknown{began}; pass --licence, such as apache-2.0, mit or cc-by-4.0"
        )
    try:
        preset, step = str(config["preset"]), int(config["step"])
        own = config["model"]["image_encoder"]
        image_size = int(own["image_size"] if own else config["encoder"]["preprocess"]["image_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / 'config.json'}: {error} is missing or invalid; pass the folder of a checkpoint"
        ) from error
    is_known = licence.lower() in _KNOWN_LICENCES
    head = ModelCardData(
        library_name="grr-coca",
        pipeline_tag="image-to-text",
        license=licence.lower() if is_known else "other",
        license_name=None if is_known else licence,
        base_model=start.name if start and HUB_ID.fullmatch(start.name) else None,
        tags=["image-captioning", "zero-shot-image-classification", preset],
    )
    caution = str(config.get("caution", ""))
    text = (
        resources.files("grr_coca.model")
        .joinpath("card.md")
        .read_text("utf-8")
        .format(
            name=name,
            preset=preset,
            parameters=_count_in_header(folder / "model.safetensors"),
            image_size=image_size,
            trained=_training_text(step, start),
            data="\n".join([*_data_lines(data or (card.data if card else ""), start), *_encoder_lines(folder)]),
            figures="\n".join(_metric_table(figures or (card.figures if card else {}))),
            caution=f"- {caution[0].upper()}{caution[1:]}.\n" if caution else "",
            licence=licence,
        )
    )
    return f"---\n{head.to_yaml()}\n---\n\n{_escape_non_utf8(text)}"


def _encoder_lines(folder: Path) -> list[str]:
    """Return lines of the card about the image encoders that a model contains or needs, including its start model."""
    lines = []
    path, config = folder / ENCODER_FILES[0], folder / "config.json"
    frozen = read_json(config).get("encoder") if config.exists() else None
    for about, graph in ((read_json(path) if path.exists() else None, ENCODER_FILES[2]), (frozen, FROZEN_FILES[1])):
        if about and (folder / START_MODEL).is_dir():
            lines += ["", f"The model contains `{about.get('name')}`, from which it was fine-tuned."]
        elif about:
            kind = "contains" if (folder / graph).exists() else "needs"
            lines += [
                "",
                f"The model {kind} the image encoder `{about.get('name')}`, trained by others. The SHA-256 of its "
                f"weights is {about.get('weights')}, their licence: {about.get('licence')}.",
            ]
    return lines


def check_hub_id(hub_id: str) -> None:
    """Check that a name is a valid repository name on the hub, OWNER/NAME.

    Raises:
        UserError: If the name is invalid.
    """
    if not HUB_ID.fullmatch(hub_id):
        raise UserError(f"'{hub_id}' is not a valid name on the Hugging Face hub; use OWNER/NAME")


def files_to_push(folder: Path) -> dict[str, bytes | Path]:
    """Return the files of a checkpoint that are uploaded, by their names on the hub.

    For a run folder, these are the files of the checkpoint that `find_model` chooses. If it has ONNX graphs, they and a
    manifest of the uploaded files are included. Recipe, logs and training state are never included.

    Returns:
        The path of each file, or its content if the file differs from that in the checkpoint.

    Raises:
        UserError: If no checkpoint exists, if it is an int8 model, or if its files differ from its manifest.
    """
    checkpoint = find_checkpoint(folder)
    if (checkpoint / MANIFEST).exists():
        verify_folder(checkpoint)
    added = (*FITTED_FILES, *ADAPTED_FILES, *ENCODER_FILES, *START_MODEL_FILES, *FROZEN_FILES)
    fitted = [name for name in added if (checkpoint / name).exists()]
    if not has_graphs(checkpoint):
        return {name: checkpoint / name for name in (*FILES, *fitted)}
    names, manifest = (*FILES, *GRAPH_FILES, *fitted), read_json(checkpoint / MANIFEST)
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if name in names}
    return {**{name: checkpoint / name for name in names}, MANIFEST: json.dumps(manifest, indent=2).encode()}


def push_files(files: Mapping[str, bytes | Path], card: str, hub_id: str, *, private: bool, update: bool) -> str:
    """Upload all files in one commit to a new repository, or to an existing one.

    Args:
        files: Path or content of each file, by its name on the hub.
        card: Content of `README.md`.
        hub_id: `owner/name`.
        private: Whether to make a new repository private, and to reject an existing public one.
        update: Whether the repository may already exist. If False, an existing repository is rejected.

    Returns:
        The URL of the commit.

    Raises:
        UserError: If the hub rejects the card or the repository, permission is missing, the hub cannot be reached, or
            the extra `hub` is not installed.
    """
    require_extra("hub", "pushing to the Hugging Face hub")
    from huggingface_hub import CommitOperationAdd, HfApi

    api, additions = HfApi(), [CommitOperationAdd(name, content) for name, content in files.items()]
    additions.append(CommitOperationAdd(README, card.encode()))
    with _hub_errors(hub_id):
        _require_valid(card, hub_id)
        if private and update and api.repo_exists(hub_id) and not api.repo_info(hub_id).private:
            raise UserError(
                f"{hub_id}: this repository is public, so nothing was uploaded; make it private on the "
                "hub, or omit --private"
            )
        api.create_repo(hub_id, private=private, exist_ok=update)
    with _hub_errors(hub_id, "" if update else "; the repository now exists, and is empty: retry with --update"):
        return str(api.create_commit(hub_id, additions, commit_message="A checkpoint of grr-coca").commit_url)


def _bundled_card(folder: Path) -> ModelCard | None:
    path = folder / _CARD
    return from_dict(ModelCard, read_json(path), str(path)) if path.exists() else None


def _count_in_header(path: Path) -> int:
    """Return the number of parameters in a safetensors file, reading only its header.

    Raises:
        UserError: If the file is missing or corrupt.
    """
    try:
        with safe_open(path, framework="numpy") as weights:
            return sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: the weights are corrupt, or cannot be read ({error}); copy them again") from error


def _training_text(step: int, start: Start | None) -> str:
    if start is None:
        return f", {step:,} steps of training" if step else ""  # unknown for an imported model
    if start.step == step:
        return f", adapted in closed form from `{start.name}`"
    return f", {step - start.step:,} steps of training from `{start.name}`" if start.step else f", from `{start.name}`"


def _data_lines(data: str, start: Start | None) -> Iterator[str]:
    yield data or "Not stated."
    if start is not None:
        of_start = f", trained for {start.step:,} steps" if start.step else ""
        yield f"\nTraining started from the weights of `{start.name}`{of_start}."
        if start.card is not None:
            yield f"Its data: {start.card.data}. Its licences: {start.card.licence}."


def _short_name(split: str, splits: Iterable[str]) -> str:
    parts, others = Path(split).parts, [Path(other).parts for other in splits if other != split]
    longer = (parts[-count:] for count in range(1, len(parts)))
    shortest = next((tail for tail in longer if all(tail != other[-len(tail) :] for other in others)), parts)
    return Path(*shortest).as_posix()


def _escape_non_utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _metric_table(figures: Figures) -> Iterator[str]:
    if not figures:
        yield "No metrics were measured."
        return
    yield "With 95 % intervals: bootstraps over the images of a split, not over seeds."
    yield from ("", "| split | metric | value |", "|---|---|---|")
    for split, measured in figures.items():
        for metric, figure in measured.items():
            spread = "" if figure.low == figure.high else f" ({figure.low:.3g} to {figure.high:.3g})"
            yield f"| {_escape_cell(split)} | {_escape_cell(metric)} | {figure.value:.3g}{spread} |"


def _escape_cell(text: str) -> str:
    return text.replace("|", r"\|")


def _require_valid(card: str, hub_id: str) -> None:
    """Let the hub check a card, before a repository is created.

    Raises:
        UserError: If the hub rejects the card.
    """
    from huggingface_hub import ModelCard

    try:
        ModelCard(card).validate()
    except ValueError as error:
        raise UserError(
            f"{hub_id}: nothing was uploaded, because the Hugging Face hub rejects the card ({_one_line(error)}); "
            "check --licence"
        ) from error


@contextmanager
def _hub_errors(hub_id: str, hint: str = "") -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except UserError:
        raise
    except HFValidationError as error:
        raise UserError(
            f"'{hub_id}' is not a valid name on the Hugging Face hub ({_one_line(error)}); use OWNER/NAME"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(_http_message(hub_id, error.response.status_code, error) + hint) from error
    except Exception as error:  # without a connection, the type of the error depends on the version of huggingface_hub
        hint = hint or "; check the connection, and try again"
        raise UserError(f"{hub_id}: not uploaded to the Hugging Face hub ({_one_line(error)}){hint}") from error


def _http_message(hub_id: str, status: int, error: Exception) -> str:
    if status == 409:
        return f"{hub_id}: a repository of this name exists; pass another name, or --update to add a commit to it"
    if status in (401, 403):
        owner = hub_id.partition("/")[0]
        return (
            f"{hub_id}: no permission to write to '{owner}' on the Hugging Face hub; log in by `hf auth login`, or set "
            "HF_TOKEN to a token with write permission"
        )
    return f"{hub_id}: the Hugging Face hub rejected the request ({_one_line(error)})"


def _one_line(error: Exception) -> str:
    """Return an error's message on a single line."""
    return " ".join(str(error).split()) or type(error).__name__
