"""The pairs of a run, in short. Their number and names decide the order and the pairs that are kept for validation, so
a run must not go on with others."""

from dataclasses import dataclass
from pathlib import Path

from grr_coca.data.sources.pairs import PairSource
from grr_coca.data.sources.source_digest import source_digest
from grr_coca.data.sources.views import Chain
from grr_coca.errors import UserError
from grr_coca.train.recipe import Recipe


@dataclass(frozen=True)
class SourceState:
    """The number of pairs that a run takes from a source, and their `source_digest`."""

    pairs: int
    digest: str


@dataclass(frozen=True)
class DataState:
    """The state of each source: `train`, `mix 1` and so on, `val`."""

    sources: dict[str, SourceState]


def data_state(recipe: Recipe, pairs: PairSource, val: PairSource) -> DataState:
    """The state of what `training_sources` gave for a recipe."""
    parts = pairs.sources if recipe.data.mix and isinstance(pairs, Chain) else [pairs]
    named = zip(_paths(recipe), [*parts, val], strict=True)
    return DataState({name: SourceState(len(source), source_digest(source)) for name, source in named})


def require_same_data(then: DataState, now: DataState, recipe: Recipe, point: Path) -> None:
    """Make sure that a run goes on with the pairs that it began with.

    Args:
        then: the state that its checkpoint holds.
        now: the state at this start.
        recipe: the recipe of the run.
        point: the checkpoint, for the message.

    Raises:
        UserError: a source has changed; the message names the first.
    """
    for name, path in _paths(recipe).items():
        found, before = now.sources[name], then.sources.get(name)
        if before is None or found == before:
            continue
        changed = "the names or sizes of its files, or the pairs that are taken from it, have changed since"
        if found.pairs != before.pairs:
            changed = f"{found.pairs:,} pairs are taken from it now, and {before.pairs:,} were when"
        raise UserError(
            f"{path}: data: {name} of the run: {changed} {point} was written; put back what was there then, or start "
            "another run with another --out"
        )


def _paths(recipe: Recipe) -> dict[str, str]:
    """The path of each source. Without `val`, validation pairs are kept from `train`."""
    data = recipe.data
    mixed = {f"mix {number}": path for number, path in enumerate(data.mix, start=1)}
    return {"train": data.train, **mixed, "val": data.val or data.train}
