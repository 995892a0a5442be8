"""Find checkpoints and their files, without importing torch. `grr_coca.checkpoint` loads them."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from grr_coca.errors import UserError
from grr_coca.files import MANIFEST, file_sha256, listed_files

FILES = ("model.safetensors", "config.json", "tokenizer.json", "preprocess.json")
_STEP_FOLDER = re.compile(r"step-([0-9]+)")


def checkpoints_by_step(folder: Path) -> dict[int, Path]:
    """The folders `step-N` of a run's `checkpoints`, in the order of their steps.

    A folder of another name, such as a copy `step-000000100-backup`, is not one of the run's checkpoints.

    Raises:
        UserError: the folder exists and cannot be listed. That must not be taken for a run without checkpoints.
    """
    try:
        names = os.listdir(folder)  # noqa: PTH208 (not `glob`, which hides errors)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror or error})") from error
    named = [(_STEP_FOLDER.fullmatch(name), folder / name) for name in names]
    return dict(sorted((int(match[1]), path) for match, path in named if match))


def find_checkpoint(path: Path) -> Path:
    """The newest checkpoint in `path/checkpoints/`, or, without that, the folder itself.

    Raises:
        UserError: there is no checkpoint; the message says what is missing.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; a checkpoint is a folder that holds {', '.join(FILES)}")
    steps = list(checkpoints_by_step(path / "checkpoints").values())
    folder = steps[-1] if steps else path
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: not a checkpoint: {', '.join(missing)} missing")
    return folder


def fingerprint(folder: Path) -> str:
    """A hash that identifies a checkpoint. It is computed from the hashes in the manifest, as far as there are any.

    Raises:
        UserError: a file cannot be read, or the manifest is damaged.
    """
    listed = listed_files(folder) if (folder / MANIFEST).is_file() else {}
    digest = hashlib.sha256()
    for name in FILES:
        try:
            content = listed[name][1] if name in listed else file_sha256(folder / name)
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be read ({error.strerror or error})") from error
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()[:32]


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        UserError: the file is missing, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file that can be read ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, found {content!r}")
    return content
