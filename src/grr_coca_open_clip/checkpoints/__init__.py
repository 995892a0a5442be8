"""Convert open_clip's CoCa checkpoints to our format and back. `docs/open-clip.md` lists the differences.

This module finds the files of a checkpoint, without importing torch.
"""

from pathlib import Path

from grr_coca.common.errors import UserError

SETTINGS = "open_clip_config.json"
"""File with the architecture and preprocessing, next to the weights."""

WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
"""File names of weights in a folder of the hub, in order of preference."""
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def find_weights(path: Path) -> Path:
    """Return the weights file at a path.

    Args:
        path: Weights file, or a folder. In a folder, the first existing file in `WEIGHTS` is used or, if none exists,
            the only weights file.

    Raises:
        UserError: If no weights are found, the file has an unsupported suffix, or the folder has several weights files
            but none with a name in `WEIGHTS`.
    """
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise UserError(f"{path}: not a weights file; pass one of {', '.join(_SUFFIXES)}, or a folder with one")
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    if len(files) != 1:
        what = f"{len(files)} files of weights, none of them with a usual name" if files else "no file of weights"
        raise UserError(f"{path}: {what}; expected {WEIGHTS[0]} or {WEIGHTS[2]}")
    return files[0]
