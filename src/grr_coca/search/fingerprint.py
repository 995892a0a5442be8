"""Tells checkpoints apart. This needs no torch."""

import hashlib
from pathlib import Path

from grr_coca.checkpoint_files import FILES, read_json
from grr_coca.errors import UserError
from grr_coca.files import MANIFEST, file_sha256


def fingerprint(folder: Path) -> str:
    """A digest of the files of a checkpoint. Files whose digests are in its manifest are not read.

    Raises:
        UserError: a file cannot be read.
    """
    manifest = folder / MANIFEST
    known = read_json(manifest).get("files", {}) if manifest.is_file() else {}
    digest = hashlib.sha256()
    for name in FILES:
        entry = known.get(name) if isinstance(known, dict) else None
        try:
            content = entry["sha256"] if isinstance(entry, dict) else file_sha256(folder / name)
        except (OSError, KeyError) as error:
            raise UserError(f"{folder / name}: cannot be read, or its manifest is damaged ({error})") from error
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()[:32]
