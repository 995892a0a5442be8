"""Where the weights of an open_clip checkpoint lie. This needs no torch."""

from pathlib import Path

from grr_coca.errors import UserError

SETTINGS = "open_clip_config.json"
"""Tells the architecture and the preprocessing, beside the weights."""

NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
"""Names of the weights in a folder of the hub, the best first."""
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def find_weights(path: Path) -> Path:
    """The file itself, or the one in a folder; safetensors before all else.

    Raises:
        UserError: there is none, or several and none of a usual name.
    """
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise UserError(f"{path}: not a file of weights; give one of {', '.join(SUFFIXES)}, or a folder with one")
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if len(files) != 1:
        what = f"{len(files)} files of weights, of which none is of a usual name" if files else "no file of weights"
        raise UserError(f"{path}: {what}; expected {NAMES[0]} or {NAMES[2]}")
    return files[0]
