"""Checkpoints by their name on the Hugging Face hub."""

import re
from pathlib import Path

from grr_coca.checkpoint_files import FILES
from grr_coca.errors import UserError
from grr_coca.extras import require_extra

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
