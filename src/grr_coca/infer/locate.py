"""Find a model by name: a folder, a shipped or published model, or one on the Hugging Face hub. This needs no torch."""

import logging
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

from grr_coca.common import plugins
from grr_coca.common.errors import UserError, first_line, nearest
from grr_coca.common.extras import require_extra
from grr_coca.common.files import MANIFEST
from grr_coca.model.checkpoint_folder import MODEL_FILES, find_model
from grr_coca.model.shipped_models import HUB_ID, shipped_folder, shipped_names

log = logging.getLogger(__name__)


class ModelProvider(Protocol):
    """Models that a package beside the core knows by name, registered in `grr_coca.models`."""

    @property
    def names(self) -> Collection[str]:
        """Names of the models, for messages."""
        ...

    @property
    def heading(self) -> str:
        """A line above the models, where they are listed."""
        ...

    def owns(self, name: str) -> bool:
        """Return whether this is the name of one of its models, perhaps with `@revision`."""
        ...

    def locate(self, name: str) -> Path:
        """Return the checkpoint folder of a model. It is fetched at first use.

        Raises:
            UserError: It cannot be fetched, or is corrupt.
        """
        ...

    def listed(self, engine_of: Callable[[Path], str]) -> Mapping[str, tuple[Mapping[str, object], str]]:
        """Describe the models by name: each as an object for JSON, and in lines of text. Nothing is fetched.

        Args:
            engine_of: Name of the engine that computes the model of a folder here.
        """
        ...


_HUB_NAME = re.compile(rf"(?P<id>{HUB_ID.pattern})(?:@(?P<revision>[\w][\w./-]*))?", re.ASCII)
"""`owner/name`, or `owner/name@revision`: a branch, a tag or a commit."""


def locate_checkpoint(named: str | Path) -> Path:
    """The folder with the files of a checkpoint. No weights are loaded.

    A folder with a checkpoint is preferred to a shipped or published model of the same name, with a warning. These are
    preferred to models on the Hugging Face hub. A published model is fetched and imported at first use.

    Args:
        named: a checkpoint or run folder, a folder of ONNX graphs, the name of a shipped or published model, or
            `owner/name` on the Hugging Face hub; the last two also with `@revision`.

    Raises:
        UserError: there is no such checkpoint; the message says what is missing, or names the nearest.
    """
    path, name = Path(named), str(named)
    scheme, colon, _ = name.partition(":")
    if colon and not path.exists() and plugins.named("grr_coca.loaders", scheme) is not None:
        raise UserError(f"{name}: first convert it: grr-coca import {name.replace(':', ' ', 1)} --out DIR")
    shipped = shipped_folder(name)
    provider = _provider_of(name) if shipped is None else None
    if shipped is not None or provider is not None:
        if not _holds_checkpoint(path):
            return shipped if provider is None else provider.locate(name)  # type: ignore[return-value]
        kind = "shipped" if shipped is not None else "published"
        log.warning("%s: this folder is used, not the %s model of the same name", path, kind)
    if path.exists() or len(Path(name.partition("@")[0]).parts) > 2:
        return find_model(path)
    if _HUB_NAME.fullmatch(name):
        return find_model(_fetch(name))
    published = [known for provider in plugins.values("grr_coca.models") for known in provider.names]
    raise UserError(
        f"{name}: no such folder, and no model of this name; {nearest(name, [*shipped_names(), *published])}"
    )


def is_on_hub(name: str) -> bool:
    """True if `locate_checkpoint` would look for this name on the Hugging Face hub."""
    is_known = shipped_folder(name) is not None or _provider_of(name) is not None
    return not is_known and not Path(name).exists() and _HUB_NAME.fullmatch(name) is not None


def _provider_of(name: str) -> ModelProvider | None:
    return next((provider for provider in plugins.values("grr_coca.models") if provider.owns(name)), None)


def _fetch(hub_id: str) -> Path:
    """Download a checkpoint from the hub by its `_HUB_NAME`, and return its local folder.

    Only the files of a model are downloaded: safetensors, JSON and ONNX graphs, which cannot run code.

    Raises:
        UserError: the repository cannot be downloaded.
    """
    require_extra("hub", f"{hub_id}: no such folder, and downloading it from the Hugging Face hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    repository, _, at = hub_id.partition("@")
    revision = at or None
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[*MODEL_FILES, MANIFEST]))
    except HFValidationError as error:
        raise UserError(f"{hub_id}: no such folder, and not a name that the Hugging Face hub accepts") from error
    except Exception as error:  # without a connection, its type depends on the version of the client
        cause = first_line(error)
        raise UserError(f"{hub_id}: no such folder, and no download from the Hugging Face hub ({cause})") from error


def _holds_checkpoint(path: Path) -> bool:
    try:
        find_model(path)
    except UserError:
        return False
    return True
