"""Class names and templates, which are sentences with a placeholder for the name of a class."""

from collections.abc import Sequence
from pathlib import Path

from grr_coca.common.errors import UserError, suggest_name
from grr_coca.common.files import read_lines

PLACEHOLDER = "{}"
BARE_NAME = (PLACEHOLDER,)
"""Templates for a model whose captions are class names. They consist of only the bare name."""
TEMPLATES = (
    "{}",
    "a picture of a {}.",
    "a photo of a {}.",
    "a drawing of a {}.",
    "an icon of a {}.",
    "a small image of the {}.",
    "one {} in the middle.",
)
"""Templates for class names. The embedding of a class is the mean embedding of its sentences (arXiv 2103.00020, section
3.1.4)."""


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read class names, one per line.

    Raises:
        UserError: If the file cannot be read, or `check_class_names` rejects the names.
    """
    return check_class_names(list(read_lines(path).values()), str(path))


def check_class_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Check that there are at least two class names and that all of them differ, and return them unchanged.

    Args:
        names: Names of the classes.
        where: Origin of the names, with which error messages begin.

    Raises:
        UserError: If there are fewer than two names, an empty name, a name that UTF-8 cannot encode, or two names that
            are equal apart from case and spaces, or if a text is given in place of a list.
    """
    if isinstance(names, str):
        raise UserError(f"{where}: expected a list of texts, got the text '{names}'")
    if len(names) < 2:
        raise UserError(f"{where}: classification needs at least two labels, got {len(names)}; add labels")
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(names, start=1):
        numbers.setdefault(" ".join(name.split()).lower(), []).append(number)
    if "" in numbers:
        raise UserError(f"{where}: label {numbers[''][0]} is empty; remove it")
    unwritable = next((name for name in names if not _is_utf8(name)), None)
    if unwritable is not None:  # from a folder name, or from a lone surrogate in JSON
        raise UserError(f"{where}: the label {unwritable!a} is not UTF-8 text; rename it")
    repeated = {name: at for name, at in numbers.items() if len(at) > 1}
    if repeated:
        listed = ", ".join(f"'{name}' (labels {' and '.join(map(str, at))})" for name, at in repeated.items())
        raise UserError(
            f"{where}: labels must differ in more than case and spaces: {listed}; keep one of them, or rename them"
        )
    return tuple(names)


def read_templates(path: Path) -> tuple[str, ...]:
    """Read templates, one per line.

    Raises:
        UserError: If the file cannot be read or has no text, or if a template has no placeholder. In the last case, the
            message gives the line number.
    """
    lines = read_lines(path)
    for number, template in lines.items():
        _require_placeholder(template, f"{path}, line {number}: ")
    return tuple(lines.values())


def fill_templates(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Insert every name into every template. All sentences of the first name come first, then those of the second, and
    so on.

    Raises:
        UserError: If no template is given, a text is given in place of a list, or a template has no placeholder.
    """
    if isinstance(templates, str):
        raise UserError(f"templates must be a list of texts, got the text '{templates}'")
    if not templates:
        raise UserError(f"no template given; pass '{PLACEHOLDER}' to use the bare labels")
    for template in templates:
        _require_placeholder(template, "")
    # Not `str.format`, because names and templates may contain other braces.
    return [template.replace(PLACEHOLDER, name) for name in names for template in templates]


def filled_length(names: Sequence[str], templates: Sequence[str]) -> int:
    """Return the total number of characters in the sentences that `fill_templates` returns, without creating them."""
    counts = [template.count(PLACEHOLDER) for template in templates]
    fixed = sum(map(len, templates)) - len(PLACEHOLDER) * sum(counts)
    return len(names) * fixed + sum(map(len, names)) * sum(counts)


def find_class(name: str, index: dict[str, int], where: str) -> int:
    """Return the index of a class by its name.

    Args:
        name: Name of a class.
        index: Index of each class, by name.
        where: Name by which the error message identifies the image.

    Raises:
        UserError: If no class has this name.
    """
    if name not in index:
        hint = suggest_name(name, index)
        hint = hint if len(hint) < 200 else f"they are '{next(iter(index))}' and others"
        raise UserError(f"{where}: unknown label '{name}' ({len(index)} classes are known); {hint}")
    return index[name]


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _require_placeholder(template: str, where: str) -> None:
    if PLACEHOLDER not in template:
        raise UserError(
            f"{where}template '{template}' has no {PLACEHOLDER}; write it where the label goes, as in "
            f"'a photo of a {PLACEHOLDER}'"
        )
