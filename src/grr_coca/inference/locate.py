"""Finds a checkpoint by its name: in a folder, in this package or on the hub. This module does not import torch.

Checkpoints by their name on the Hugging Face hub.
"""

import logging
import re
from pathlib import Path

from grr_coca.checkpoint_files import FILES, find_checkpoint
from grr_coca.errors import UserError, nearest
from grr_coca.extras import require_extra
from grr_coca.registry import shipped_folder, shipped_models

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
"""`owner/name`."""
HUB_NAME = re.compile(rf"(?P<id>{HUB_ID.pattern})(?:@(?P<revision>[\w][\w./-]*))?", re.ASCII)
"""`owner/name`, or `owner/name@revision`: a branch, a tag or a commit."""


def fetch(hub_id: str) -> Path:
    """Fetch a checkpoint from the hub by its `HUB_NAME`, and return the folder with the copy.

    Only the files of a checkpoint are fetched. They are safetensors and JSON, so nothing in them can run code.

    Raises:
        UserError: the repository cannot be fetched.
    """
    require_extra("hub", f"{hub_id}: no such folder, and fetching it from the Hugging Face hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repository, _, at = hub_id.partition("@")
    revision = at or None
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    except HFValidationError as error:
        raise UserError(f"{hub_id}: no such folder, and not a name that the Hugging Face hub takes") from error
    except (HfHubHTTPError, OSError) as error:
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{hub_id}: no such folder, and nothing came from the Hugging Face hub ({cause[0]})") from error


log = logging.getLogger(__name__)


def locate_checkpoint(named: str | Path) -> Path:
    """The folder with the files of a checkpoint. No weights are loaded.

    If a folder that holds a checkpoint has the name of a shipped model, the folder is taken, and a warning says so. A
    shipped model is taken before one of the Hugging Face hub.

    Args:
        named: a checkpoint or run folder, the name of a shipped model, or `owner/name` or `owner/name@revision` on the
            Hugging Face hub.

    Raises:
        UserError: there is no such checkpoint; the message says what is missing, or gives the nearest name.
    """
    path, name = Path(named), str(named)
    if name.startswith("open_clip:") and not path.exists():
        raise UserError(f"{name}: first make a checkpoint of it: grr-coca import {name.replace(':', ' ', 1)} --out DIR")
    shipped = shipped_folder(name)
    if shipped is not None and not _holds_checkpoint(path):
        return shipped
    if shipped is not None:
        log.warning("%s: this folder is used, not the model of the same name that comes with the code", path)
    if path.exists() or len(Path(name.partition("@")[0]).parts) > 2:
        return find_checkpoint(path)
    if HUB_NAME.fullmatch(name):
        return find_checkpoint(fetch(name))
    raise UserError(f"{name}: no such folder, and no model of this name; {nearest(name, shipped_models())}")


def _holds_checkpoint(path: Path) -> bool:
    try:
        find_checkpoint(path)
    except UserError:
        return False
    return True
