"""Checkpoints by the name that they have on the Hugging Face hub."""

import re
from pathlib import Path

from grr_coca.checkpoint_files import FILES, find_checkpoint
from grr_coca.errors import UserError
from grr_coca.extras import require_extra

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
"""`owner/name`."""


def locate_checkpoint(path_or_hub_id: str | Path) -> Path:
    """The folder with the files of a checkpoint, see `local_folder` and `find_checkpoint`. Nothing is loaded.

    Raises:
        UserError: there is none.
    """
    return find_checkpoint(local_folder(path_or_hub_id))


def local_folder(path_or_hub_id: str | Path) -> Path:
    """The folder of a checkpoint: the one that is named, or, where none is, a copy of the hub's.

    Of the hub's files only those of a checkpoint are fetched: safetensors and JSON, nothing that could run code.

    Raises:
        UserError: no such folder, and no such repository that can be fetched.
    """
    path = Path(path_or_hub_id)
    if path.exists() or not HUB_ID.fullmatch(str(path_or_hub_id)):
        return path
    return _fetch(str(path_or_hub_id))


def _fetch(hub_id: str) -> Path:
    require_extra("hub", f"{hub_id}: no such folder, and fetching it from the Hugging Face hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(FILES)))
    except HFValidationError as error:
        raise UserError(f"{hub_id}: no such folder, and not a name that the Hugging Face hub takes") from error
    except (HfHubHTTPError, OSError) as error:
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{hub_id}: no such folder, and nothing came from the Hugging Face hub ({cause[0]})") from error
