"""The pictures of a study's showcase, beside its ledger: a report shows them with what each model says."""

from pathlib import Path

SHOWCASE_FOLDER = "showcase"
"""Holds a small WebP of each image that is captioned to be shown, as `STAGE/KEY.webp`."""


def picture_path(folder: Path, stage: str, key: str) -> Path:
    """Where the picture of an image lies.

    Args:
        folder: of the study.
        stage: whose showcase it is in.
        key: of the pair, which may be a path.
    """
    return folder / SHOWCASE_FOLDER / stage / f"{key.replace('/', '_')}.webp"
