"""A checkpoint's way up to the Hugging Face hub: one commit of its files and its card."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from grr_coca.checkpoint_files import FILES, find_checkpoint
from grr_coca.errors import UserError
from grr_coca.extras import require_extra
from grr_coca.files import MANIFEST, verify_folder
from grr_coca.inference.hub import HUB_ID

README = "README.md"


def check_hub_id(hub_id: str) -> None:
    """Make sure that a name is one that a repository can have.

    Raises:
        UserError: it is not.
    """
    if not HUB_ID.fullmatch(hub_id):
        raise UserError(f"'{hub_id}' is no name on the Hugging Face hub; give OWNER/NAME")


def files_to_push(folder: Path) -> dict[str, Path]:
    """The files of a checkpoint, or of the newest one of a run folder, by their names on the hub.

    Nothing else of the folder goes up: no recipe with its paths, no log, no state of the training.

    Raises:
        UserError: there is no checkpoint, or its files are not what its manifest says.
    """
    checkpoint = find_checkpoint(folder)
    if (checkpoint / MANIFEST).exists():
        verify_folder(checkpoint)
    return {name: checkpoint / name for name in FILES}


def push_files(files: dict[str, Path], card: str, hub_id: str, *, private: bool, update: bool) -> str:
    """Make a repository, or go on with one, and commit all files to it at once.

    Args:
        files: by their names on the hub.
        card: content of `README.md`.
        hub_id: `owner/name`.
        private: a new repository is seen by its owner alone.
        update: there may be such a repository already.

    Returns:
        The address of the commit.

    Raises:
        UserError: the hub refuses the card, the name is taken, there is no permission, or the hub cannot be reached.
    """
    require_extra("hub", "pushing to the Hugging Face hub")
    from huggingface_hub import CommitOperationAdd, HfApi

    api, additions = HfApi(), [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    additions.append(CommitOperationAdd(README, card.encode()))
    with _hub_errors(hub_id):
        _require_valid(card, hub_id)
        api.create_repo(hub_id, private=private, exist_ok=update)
    with _hub_errors(hub_id, "" if update else "; the repository is there now, and empty: go on with --update"):
        return str(api.create_commit(hub_id, additions, commit_message="A checkpoint of grr-coca").commit_url)


def _require_valid(card: str, hub_id: str) -> None:
    """Ask the hub whether it takes a card, before there is a repository."""
    from huggingface_hub import ModelCard

    try:
        ModelCard(card).validate()
    except ValueError as error:
        raise UserError(f"{hub_id}: nothing went up: the Hugging Face hub refuses the card ({_line(error)})") from error


@contextmanager
def _hub_errors(hub_id: str, way_on: str = "") -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except UserError:
        raise
    except HFValidationError as error:
        raise UserError(f"'{hub_id}' is no name that the Hugging Face hub takes ({_line(error)})") from error
    except HfHubHTTPError as error:
        raise UserError(_told(hub_id, error.response.status_code, error) + way_on) from error
    except Exception as error:  # no way to the hub: what is raised then differs with the client's version
        raise UserError(f"{hub_id}: nothing went up to the Hugging Face hub ({_line(error)}){way_on}") from error


def _told(hub_id: str, status: int, error: Exception) -> str:
    if status == 409:
        return f"{hub_id}: there is a repository of this name; give another, or --update to add a commit to it"
    if status in (401, 403):
        owner = hub_id.partition("/")[0]
        return (
            f"{hub_id}: no permission to write to '{owner}' on the Hugging Face hub; log in by `hf auth login`, or set "
            "HF_TOKEN to a token that may write there"
        )
    return f"{hub_id}: the Hugging Face hub refused it ({_line(error)})"


def _line(error: Exception) -> str:
    """The whole message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
