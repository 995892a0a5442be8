"""Names of classes, and templates that make sentences of them."""

from collections.abc import Sequence
from pathlib import Path

from grr_coca.errors import UserError, nearest

PLACE = "{}"
TEMPLATES = (
    "{}",
    "a picture of a {}.",
    "a photo of a {}.",
    "a drawing of a {}.",
    "an icon of a {}.",
    "a small image of the {}.",
    "one {} in the middle.",
)
"""Sentences in which a class is looked for, all of them averaged (arXiv 2103.00020, section 3.1.4)."""


def read_labels(path: Path) -> tuple[str, ...]:
    """Names of classes, one a line.

    Raises:
        UserError: no such file, no name in it, or a name twice.
    """
    return check_labels([line for _, line in _lines(path)], str(path))


def check_labels(labels: Sequence[str], where: str) -> tuple[str, ...]:
    """Names of classes, of which none may come twice and two at least must come.

    Raises:
        UserError: they do not.
    """
    seen: dict[str, int] = {}
    for number, label in enumerate(labels, start=1):
        if label in seen:
            raise UserError(
                f"{where}: the label '{label}' comes twice, as number {seen[label]} and {number}; remove one"
            )
        seen[label] = number
    if len(seen) < 2:
        raise UserError(f"{where}: {len(seen)} labels; classification needs two or more, one a line")
    return tuple(labels)


def read_templates(path: Path) -> tuple[str, ...]:
    """Sentences with a place for the class, one a line.

    Raises:
        UserError: no such file, none in it, or one without the place.
    """
    lines = _lines(path)
    for number, line in lines:
        if line.count(PLACE) != 1:
            raise UserError(f"{path}, line {number}: '{line}' has no single {PLACE}, the place of the label")
    if not lines:
        raise UserError(f"{path}: no template; give sentences such as 'a photo of a {PLACE}.', one a line")
    return tuple(line for _, line in lines)


def label_index(labels: Sequence[str]) -> dict[str, int]:
    """The number of each label."""
    return {label: number for number, label in enumerate(labels)}


def find_label(label: str, index: dict[str, int], where: str) -> int:
    """The number of a label.

    Raises:
        UserError: it is none of the classes.
    """
    if label not in index:
        raise UserError(f"{where}: the label '{label}' is none of the {len(index)} classes; {_hint(label, index)}")
    return index[label]


def _hint(label: str, index: dict[str, int]) -> str:
    hint = nearest(label, index)
    return hint if len(hint) < 200 else f"they are '{next(iter(index))}' and others"


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a UTF-8 text file that can be read ({error})") from error
    lines = [(number, " ".join(line.split())) for number, line in enumerate(text.splitlines(), start=1)]
    return [(number, line) for number, line in lines if line]
