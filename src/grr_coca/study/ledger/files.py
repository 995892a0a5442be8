"""The files of a study's folder."""

import re
from pathlib import Path

from grr_coca.errors import UserError
from grr_coca.files import write_whole

LEDGER_FILE = "runs.jsonl"
PLAN_FILE = "plan.yaml"
DIGESTS_FILE = "digests.json"
SHARD_FILE = re.compile(r"runs-(\d+)-of-(\d+)\.jsonl")


def ledger_files(folder: Path) -> list[Path]:
    """The ledgers that are in a folder, the whole study's last: it is continued when the shards are done."""
    shards = sorted(path for path in folder.glob("runs-*.jsonl") if SHARD_FILE.fullmatch(path.name))
    whole = folder / LEDGER_FILE
    return [*shards, whole] if whole.exists() else shards


def write_beside_ledger(path: Path, text: str) -> None:
    """Write a file of a study's folder, whole or not at all.

    Raises:
        UserError: the folder cannot be written to.
    """
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
