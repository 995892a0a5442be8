"""The checkpoint that a run of fine-tuning began from. A resumed run takes its weights from its own checkpoints, and
would not notice another one."""

import json
from dataclasses import dataclass
from pathlib import Path

from grr_coca.checkpoint_files import fingerprint, read_json
from grr_coca.errors import UserError
from grr_coca.files import write_whole
from grr_coca.structure import from_dict, to_dict

ORIGIN_NAME = "start.json"


@dataclass(frozen=True)
class Origin:
    """The folder of a checkpoint, and the `fingerprint` of its files."""

    checkpoint: str
    fingerprint: str


def origin_of(checkpoint: Path) -> Origin:
    """What a run that begins from a checkpoint writes down.

    Args:
        checkpoint: the folder of its files.

    Raises:
        UserError: a file cannot be read, or its manifest is damaged.
    """
    return Origin(str(checkpoint.absolute()), fingerprint(checkpoint))


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
    if before.fingerprint != origin.fingerprint:
        raise UserError(
            f"{path}: the run there began from {before.checkpoint} as it was then, which {origin.checkpoint} is not; "
            f"to go on with it, give the same --checkpoint (if that is gone, delete {ORIGIN_NAME}), to start another, "
            "give another --out"
        )
