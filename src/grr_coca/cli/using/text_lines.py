"""Text files with one text a line."""

from pathlib import Path

from grr_coca.errors import UserError
from grr_coca.files import read_whole


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file that are not empty, with single spaces.

    Raises:
        UserError: it cannot be read, is not UTF-8, or holds no text.
    """
    try:
        text = read_whole(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from error
    lines = [" ".join(line.split()) for line in text.splitlines()]
    if not any(lines):
        raise UserError(f"{path}: holds no text; expected one a line")
    return [line for line in lines if line]
