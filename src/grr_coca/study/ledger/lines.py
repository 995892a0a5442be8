"""The lines of a ledger as they lie on the disk: the last one may be torn."""

import json
from pathlib import Path


def is_object(line: bytes) -> bool:
    """Whether a line is a whole JSON object, which no beginning of one is."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def told_torn(path: Path) -> str:
    """What is said of a torn last line."""
    return f"{path.name}: the last line is torn, as a kill leaves it; it is dropped, and its run done again"
