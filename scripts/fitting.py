"""What the scripts share that fit numbers to a model that ships: its name, statistics, and sections of its card.

`card.json` holds the figures of a model, and `card.md` is what people read.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.errors import UserError, suggest_name
from grr_coca.common.files import edit_folder_atomic, read_json
from grr_coca.model.checkpoint_files import Figure, ModelCard, bundled_folder, bundled_names

CARDS = Path(__file__).with_name("cards")
BINS = 10


# --- The model


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return the arguments of a script that fits numbers to a model: its name."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the bundled model")
    return parser


def folder_of(name: str) -> Path:
    """Return the folder of a model that ships.

    Raises:
        UserError: there is no such model; the message names the nearest.
    """
    folder = bundled_folder(name)
    if folder is None:
        raise UserError(f"{name}: no model of this name ships; {suggest_name(name, bundled_names())}")
    return folder


def card_text(name: str) -> dict:
    """Return the words of a model's card, and what is fitted to it.

    Raises:
        UserError: there are none; the message names the nearest.
    """
    path = CARDS / f"{name}.yaml"
    if not path.is_file():
        known = sorted(other.stem for other in CARDS.glob("*.yaml"))
        raise UserError(f"{path}: no such file; it holds the text of the card; {suggest_name(name, known)}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# --- Statistics


def logistic(
    columns: np.ndarray, is_right: np.ndarray, weights: np.ndarray | float = 1.0, ridge: np.ndarray | float = 0.0
) -> np.ndarray:
    """Return the coefficients of a logistic regression, K, by Newton's method.

    Args:
        columns: N K. One of ones gives an offset.
        is_right: 0 or 1, N.
        weights: of each row, N, or of all.
        ridge: penalty of each coefficient, K, or of all: half of it times the square.
    """
    found = np.zeros(columns.shape[1])
    penalty = np.broadcast_to(ridge, found.shape)
    for _ in range(50):
        shares = 1 / (1 + np.exp(-columns @ found))
        gradient = columns.T @ (weights * (is_right - shares)) - penalty * found
        curvature = (columns.T * (weights * shares * (1 - shares))) @ columns + np.diag(penalty)
        found = found + np.linalg.solve(curvature, gradient)
    return found


def calibration_error(probabilities: np.ndarray, is_right: np.ndarray) -> float:
    """The expected calibration error: the mean distance of probability and share of right ones, over bins of equal
    width."""
    number = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    away = np.bincount(number, probabilities, BINS) - np.bincount(number, is_right, BINS)
    return float(np.abs(away).sum() / len(probabilities))


def exactly(value: float) -> Figure:
    """Return a figure without an interval."""
    return Figure(value, value, value)


# --- The card


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    head = f"| {' | '.join(heads)} |".replace("|  |", "| |")
    return [head, "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def read_card(folder: Path) -> ModelCard:
    """Return the card in the folder of a model."""
    return from_dict(ModelCard, read_json(folder / "card.json"), str(folder / "card.json"))


def write_fitted(
    folder: Path,
    file: str,
    numbers: object,
    figures: Mapping[str, Mapping[str, Figure]],
    section: Sequence[str],
    before: str,
) -> None:
    """Write what was fitted into the folder of a model, with figures and a section of its card.

    Args:
        folder: of the model.
        file: name of the JSON file.
        numbers: its content, a dataclass or what JSON can hold.
        figures: by split and name. Other figures stay.
        section: its lines; the first one is the title.
        before: the title of the section that it stands before, where the page does not have it yet.
    """
    card = read_card(folder)
    merged = {split: {**card.figures.get(split, {}), **found} for split, found in figures.items()}
    changed = replace(card, figures={**card.figures, **merged})
    page = (folder / "card.md").read_text(encoding="utf-8")
    with edit_folder_atomic(folder) as partial:
        for name, content in ((file, numbers), ("card.json", changed)):
            plain = to_dict(content) if is_dataclass(content) else content
            (partial / name).write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        (partial / "card.md").write_text(with_section(page, section, before), encoding="utf-8")


def with_section(page: str, section: Sequence[str], before: str) -> str:
    """A page with a section, in place of the one of this title, or before another one. An empty line follows it."""
    title = section[0]
    start, end = page.find(f"{title}\n"), page.find(f"{before}\n")
    if start >= 0:
        end = page.find("\n## ", start) + 1
    else:
        start = end
    return page[:start] + "\n".join([*section, "", ""]) + page[end:]
