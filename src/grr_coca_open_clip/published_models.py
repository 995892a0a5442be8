"""Published CoCa models of open_clip for photographs, by name. Each is downloaded once, imported and cached.

`huggingface_hub` downloads a model to its own cache. The model is then converted, with its ONNX graphs, to
`~/.cache/grr-coca/models/NAME`. Later loads read that folder, without a network and without PyTorch. Next to this
folder, `NAME.json` records the downloaded revision and the SHA-256 of the weights.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.errors import NOTES, UserError, first_line, install_command, require_extra
from grr_coca.common.files import (
    MANIFEST,
    atomic_folder,
    file_sha256,
    is_offline,
    models_cache,
    read_json,
    write_bytes_atomic,
)
from grr_coca.common.outputs import disk_errors
from grr_coca.infer.load import ENGINE_TITLES
from grr_coca_open_clip.checkpoints import SETTINGS, WEIGHTS


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """Model of open_clip on the Hugging Face hub.

    Attributes:
        name: Name in this package.
        repository: Repository on the hub, OWNER/NAME.
        parameters: Number of parameters.
        imagenet: Zero-shot accuracy on ImageNet, from 0 to 1.
        good_for: Recommended use.
        data: Training data.
        licence: Licence of the weights.
    """

    name: str
    repository: str
    parameters: int
    imagenet: float
    good_for: str
    data: str
    licence: str = "MIT"

    @property
    def bytes(self) -> int:
        """Size in bytes of the download and of the imported model, whose weights are in fp32."""
        return 4 * self.parameters


_LAION = "LAION-2B, pairs of the web: 13 billion samples in batches of 90,000"
_B32, _L14 = 253_560_000, 638_450_000
_ALL_USES = "search, labels, fine-tuning"
_MODELS = tuple(
    PublishedModel(
        name=name,
        repository=f"laion/{repository}-laion2B-s13B-b90k",
        parameters=parameters,
        imagenet=imagenet,
        good_for=good_for,
        data=f"{_LAION}; then COCO's captions" if repository.startswith("mscoco") else _LAION,
    )
    for name, repository, parameters, imagenet, good_for in (
        ("coca-b32", "CoCa-ViT-B-32", _B32, 0.6359, _ALL_USES),
        ("coca-l14", "CoCa-ViT-L-14", _L14, 0.7564, _ALL_USES),
        ("coca-b32-captions", "mscoco_finetuned_CoCa-ViT-B-32", _B32, 0.0091, "only captions"),
        ("coca-l14-captions", "mscoco_finetuned_CoCa-ViT-L-14", _L14, 0.7210, "captions; search, too"),
    )
)
PUBLISHED = {model.name: model for model in _MODELS}
"""Published models, by name. The facts come from these sources:

| fact | source |
|---|---|
| repositories; data, from their names | `open_clip/pretrained.py` of open_clip_torch 3.3.0 on PyPI |
| names of files (`WEIGHTS`, `SETTINGS`) | `open_clip/constants.py` of the same package |
| parameters | `docs/model_profile.csv` of github.com/mlfoundations/open_clip, commit 3b37473 |
| size | the parameters, 4 bytes each |
| ImageNet | `docs/openclip_results.csv` in the same repository, commit 0a1cc15 |
| licence | the model cards on the hub |
"""

_REVISION = re.compile(r"\w[\w./-]*", re.ASCII)
_FORM = 1
"""Format version of cached folders. A folder with another version is imported again, from the recorded revision."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class _Origin:
    """Record of a model's first download. `revision` is the commit."""

    repository: str
    revision: str
    file: str
    bytes: int
    sha256: str


def find_published(name: str) -> PublishedModel | None:
    """Return the model for a name or `name@revision`, or None if the name is unknown or the revision is malformed.

    Whether the revision exists is not checked.
    """
    plain, at, revision = name.partition("@")
    return PUBLISHED.get(plain) if not at or _REVISION.fullmatch(revision) else None


def published_folder(name: str) -> Path:
    """Return the checkpoint folder of a published model in the cache.

    When it is first used, the model is downloaded and imported. Concurrent processes wait for the first process.

    Args:
        name: Name of the model, or `name@revision` with a branch, tag or commit of its repository.

    Raises:
        UserError: If the extra `photos` is not installed, the model cannot be downloaded or is corrupt, or the disk is
            full or cannot be written to.
    """
    model = find_published(name)
    assert model is not None
    folder = _cache_folder(name)
    if _is_imported(folder):
        return folder
    require_extra("photos", f"{name}: fetching it, once,", unneeded=("pillow_heif",))
    with _import_lock(folder, name):
        if not _is_imported(folder):  # another process has imported the model while this process waited
            _import(model, name, folder)
    return folder


def is_cached(name: str) -> bool:
    """Return whether a published model has already been imported on this machine."""
    return _is_imported(_cache_folder(name))


def _cache_folder(name: str) -> Path:
    return models_cache() / name.replace("/", "--")


def _is_imported(folder: Path) -> bool:
    try:
        return read_json(folder / MANIFEST).get("form") == _FORM
    except UserError:
        return False


@contextmanager
def _import_lock(folder: Path, name: str) -> Iterator[None]:
    """Lock the import of a model, so that only one process imports it. If another process has the lock, wait for it."""
    from filelock import FileLock, Timeout

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            NOTES.info("%s: another process is importing this model; waiting", name)
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"{folder.parent}: cannot be written ({error.strerror or error}); set XDG_CACHE_HOME to another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _import(model: PublishedModel, name: str, folder: Path) -> None:
    record = folder.with_name(f"{folder.name}.json")
    known = from_dict(_Origin, read_json(record), str(record)) if record.exists() else None
    weights = _fetch(model, name, known.revision if known else name.partition("@")[2] or None)
    with disk_errors(folder):
        origin = _checked_origin(model, weights)
        if known is not None and origin != known:
            raise UserError(
                f"{weights}: the weights differ from the first download (SHA-256 {known.sha256}, was {origin.sha256}); "
                f"to accept them, delete {record}"
            )
        _require_space(folder, origin.bytes)
        write_bytes_atomic(record, json.dumps(to_dict(origin), indent=2).encode())
        NOTES.info("%s: importing this model, which is needed only once", name)
        _convert(weights, origin, folder)
    NOTES.info("%s: imported to %s", name, folder)


def _convert(weights: Path, origin: _Origin, folder: Path) -> None:
    """Write the checkpoint and its ONNX graphs atomically."""
    from grr_coca.infer.export.write import manifest_facts, write_graphs
    from grr_coca.model.checkpoint import write_files  # lazy imports: PyTorch
    from grr_coca_open_clip.checkpoints.read import read_open_clip

    checkpoint = read_open_clip(weights)
    facts: dict[str, object] = {"form": _FORM, "source": to_dict(origin)}
    with atomic_folder(folder, facts) as partial:
        write_files(checkpoint, checkpoint.model.state_dict(), partial)
        write_graphs(checkpoint, partial)
        facts |= manifest_facts(checkpoint, partial, "fp32")


def _fetch(model: PublishedModel, name: str, revision: str | None) -> Path:
    """Download the weights and settings of a model, except files that are already in the hub's cache.

    Raises:
        UserError: If the files cannot be downloaded.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    def find(file: str, at: str | None, only_here: bool) -> Path | None:
        try:
            return Path(hf_hub_download(model.repository, file, revision=at, local_files_only=only_here))
        except LocalEntryNotFoundError:
            if only_here:
                return None
            raise
        except EntryNotFoundError:
            return None

    here = (find(file, revision, only_here=True) for file in WEIGHTS)
    weights = next((path for path in here if path is not None), None)
    size = f"{model.bytes / 1e9:.2f} GB of {model.repository}"
    if weights is None and (constants.HF_HUB_OFFLINE or is_offline()):
        raise UserError(f"{name}: not on this machine; to download {size}, omit --offline or unset HF_HUB_OFFLINE")
    try:
        if weights is None:
            NOTES.info("%s: downloading %s, which is needed only once", name, size)
            there = (find(file, revision, only_here=False) for file in WEIGHTS)
            weights = next((path for path in there if path is not None), None)
            if weights is not None:
                find(SETTINGS, weights.parent.name, only_here=False)
    except HfHubHTTPError as error:
        raise UserError(
            f"{name}: the Hugging Face hub does not provide {model.repository} ({first_line(error)}); check your "
            "access and the revision"
        ) from error
    except Exception as error:  # without a connection, the type of the error depends on the client's version
        raise UserError(
            f"{name}: downloading {size} from the Hugging Face hub failed ({first_line(error)}); check the connection "
            "and the free disk space, and try again"
        ) from error
    if weights is None:
        raise UserError(
            f"{name}: {model.repository} does not contain any of {', '.join(WEIGHTS)}; use another revision"
        )
    return weights


def _checked_origin(model: PublishedModel, weights: Path) -> _Origin:
    """Return the record of a download, and compare its SHA-256 with the file name in the hub's cache.

    Raises:
        UserError: If the file is corrupt.
    """
    sha256 = file_sha256(weights)
    named = os.path.basename(os.readlink(weights)) if weights.is_symlink() else ""  # noqa: PTH115, PTH119 (one step)
    if _SHA256.fullmatch(named) and named != sha256:
        raise UserError(
            f"{weights.resolve()}: corrupt: the SHA-256 is {sha256}, but {named} on the hub; "
            "delete this file to download it again"
        )
    return _Origin(model.repository, weights.parent.name, weights.name, weights.stat().st_size, sha256)


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise UserError(
            f"{folder.parent}: {free / 1e9:.2f} GB are free, but importing needs {needed / 1e9:.2f} GB; free some "
            "space, or set XDG_CACHE_HOME to a folder on another disk"
        )


class PublishedModels:
    """Published models, as a `grr_coca.infer.load.ModelProvider` for the core."""

    names = tuple(PUBLISHED)

    @property
    def heading(self) -> str:
        """Heading of these models in lists."""
        command = install_command("photos")
        return f"for photographs, published by open_clip; downloaded at first use, which needs: {command}"

    def owns(self, name: str) -> bool:
        """Return whether `name` is the name of a published model, with or without `@revision`."""
        return find_published(name) is not None

    def locate(self, name: str) -> Path:
        """Return the folder of a model; see `published_folder`."""
        return published_folder(name)

    def listed(self, engine_of: Callable[[Path], str]) -> dict[str, tuple[dict[str, object], str]]:
        """Describe the models, as JSON objects and as lines of text."""
        folders = {name: published_folder(name) if is_cached(name) else None for name in PUBLISHED}
        engines = {name: None if folder is None else engine_of(folder) for name, folder in folders.items()}
        return {
            name: (_row(model, folders[name], engines[name]), _lines(model, engines[name]))
            for name, model in PUBLISHED.items()
        }


def _row(model: PublishedModel, folder: Path | None, engine: str | None) -> dict[str, object]:
    row = {**to_dict(model), "bytes": model.bytes, "is_here": folder is not None}
    return row if folder is None else {**row, "folder": str(folder), "engine": engine}


def _lines(model: PublishedModel, engine: str | None) -> str:
    here = "not fetched yet" if engine is None else f"on this machine; runs here in {ENGINE_TITLES[engine]}"
    return (
        f"{model.name}: {model.good_for}\n"
        f"  {model.repository}, {model.parameters / 1e6:.0f} M parameters, {model.bytes / 1e9:.2f} GB; "
        f"{model.licence}; {here}\n"
        f"  trained on {model.data}; ImageNet, zero-shot {model.imagenet:.1%}"
    )


PROVIDER = PublishedModels()
