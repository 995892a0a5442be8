"""The checkpoint that a run of fine-tuning began from. A resumed run takes its weights from its own checkpoints, and
would not notice another one."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from grr_coca.checkpoint_files import FILES, read_json
from grr_coca.errors import UserError
from grr_coca.files import MANIFEST, file_sha256, listed_files, write_whole
from grr_coca.structure import from_dict, to_dict

ORIGIN_NAME = "start.json"


@dataclass(frozen=True)
class Origin:
    """The folder of a checkpoint, and a digest of the files that make up its model."""

    checkpoint: str
    sha256: str


def origin_of(checkpoint: Path) -> Origin:
    """What a run that begins from a checkpoint writes down.

    Args:
        checkpoint: the folder of its files.

    Raises:
        UserError: its manifest is damaged.
    """
    if (checkpoint / MANIFEST).exists():
        listed = listed_files(checkpoint)
        hashes = [listed[name][1] if name in listed else "" for name in FILES]
    else:  # it was put together by hand
        hashes = [file_sha256(checkpoint / name) for name in FILES]
    return Origin(str(checkpoint.absolute()), hashlib.sha256("\n".join(hashes).encode()).hexdigest())


def save_origin(origin: Origin, out: Path) -> None:
    """Write down in a run folder what the run begins from."""
    write_whole(out / ORIGIN_NAME, json.dumps(to_dict(origin), indent=2).encode())


def require_same_origin(origin: Origin, out: Path) -> None:
    """Make sure that a run goes on from what it began with. Older runs did not write that down, and go on.

    Raises:
        UserError: the run began from another checkpoint, or what it wrote down is damaged.
    """
    path = out / ORIGIN_NAME
    if not path.exists():
        return
    before = from_dict(Origin, read_json(path), str(path))
    if before.sha256 != origin.sha256:
        raise UserError(
            f"{path}: the run there began from {before.checkpoint} as it was then, which {origin.checkpoint} is not; "
            f"to go on with it, give the same --checkpoint (if that is gone, delete {ORIGIN_NAME}), to start another, "
            "give another --out"
        )
