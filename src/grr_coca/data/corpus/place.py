"""The folder of a corpus that is built on the user's machine."""

import json
from pathlib import Path

from grr_coca.errors import UserError
from grr_coca.files import require_own_name


def is_built(folder: Path, name: str) -> bool:
    """Whether the corpus of that name is there. If not, it can be built there.

    Raises:
        UserError: there is something else, or the current folder, which cannot be replaced.
    """
    require_own_name(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a new folder")
    if not folder.exists() or not any(folder.iterdir()):
        if folder.exists() and folder.samefile(Path.cwd()):
            raise UserError(f"{folder}: is the current folder, which cannot be replaced; give a new folder")
        return False
    if _name_in(folder / "card.json") != name:
        raise UserError(f"{folder}: holds something else; give a new folder")
    return True


def _name_in(card: Path) -> object:
    """The name of the corpus of a card; None if that cannot be read."""
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content.get("name") if isinstance(content, dict) else None
