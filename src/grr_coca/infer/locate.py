"""Find a model by name: a folder, a shipped or published model, or one on the Hugging Face hub. This needs no torch."""

import logging
import re
from pathlib import Path

from grr_coca.common.errors import UserError, first_line, nearest
from grr_coca.common.extras import require_extra
from grr_coca.common.files import MANIFEST
from grr_coca.infer.published_models import PUBLISHED, find_published, published_folder
from grr_coca.model.checkpoint_folder import MODEL_FILES, find_model
from grr_coca.model.shipped_models import HUB_ID, shipped_folder, shipped_names

log = logging.getLogger(__name__)

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
    if name.startswith("open_clip:") and not path.exists():
        raise UserError(f"{name}: first convert it: grr-coca import {name.replace(':', ' ', 1)} --out DIR")
    shipped, published = shipped_folder(name), find_published(name)
    if shipped is not None or published is not None:
        if not _holds_checkpoint(path):
            return shipped or published_folder(name)
        kind = "shipped" if shipped is not None else "published"
        log.warning("%s: this folder is used, not the %s model of the same name", path, kind)
    if path.exists() or len(Path(name.partition("@")[0]).parts) > 2:
        return find_model(path)
    if _HUB_NAME.fullmatch(name):
        return find_model(_fetch(name))
    raise UserError(
        f"{name}: no such folder, and no model of this name; {nearest(name, [*shipped_names(), *PUBLISHED])}"
    )


def is_on_hub(name: str) -> bool:
    """True if `locate_checkpoint` would look for this name on the Hugging Face hub."""
    is_known = shipped_folder(name) is not None or find_published(name) is not None
    return not is_known and not Path(name).exists() and _HUB_NAME.fullmatch(name) is not None


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
