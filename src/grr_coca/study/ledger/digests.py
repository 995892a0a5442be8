"""What the rows of a study must be made of to count."""

import json
from dataclasses import dataclass
from pathlib import Path

from grr_coca.checkpoint_files import read_json
from grr_coca.errors import UserError
from grr_coca.structure import from_dict, to_dict
from grr_coca.study.ledger.files import DIGESTS_FILE, write_beside_ledger
from grr_coca.study.ledger.row import LedgerRow


@dataclass(frozen=True)
class Digests:
    """What rows must be made of: the digest of each arm's recipe by stage, and of each stage's data, pretraining first.
    An arm whose tuning has not ended is not among the recipes.

    `trials`: by arm and stage, the recipes of all trials; a stage is missing as long as the model that they start from
    has not been chosen. None: written by a version that did not know them. `tuning_seed`: that of all trials.
    """

    recipes: dict[str, dict[str, str]]
    data: dict[str, str]
    trials: dict[str, dict[str, tuple[str, ...]]] | None = None
    tuning_seed: int | None = None

    def fault(self, row: LedgerRow) -> str | None:
        """Why a run does not count; None if it does."""
        recipe = self.recipes.get(row.arm, {}).get(row.stage)
        if recipe is None:
            return "the plan has no such run"
        if row.recipe_digest != recipe:
            return f"another recipe ({row.recipe_digest}, not {recipe})"
        return self.data_fault(row)

    def trial_fault(self, row: LedgerRow) -> str | None:
        """Why a trial does not count, or the choice of one; None if it does, or if nobody can tell yet."""
        if row.stage not in self.data:
            return "the plan has no such stage"
        fault = self.data_fault(row)
        if fault is not None or self.trials is None:
            return fault
        if row.arm not in self.trials:
            return "the plan has no such arm"
        if row.seed != self.tuning_seed:
            return f"another seed than that of tuning ({row.seed}, not {self.tuning_seed})"
        known = self.trials[row.arm].get(row.stage)
        if known is not None and row.recipe_digest not in known:
            return f"another recipe ({row.recipe_digest}, none of the {len(known)} that the plan tries)"
        return None

    def data_fault(self, row: LedgerRow) -> str | None:
        """Whether a row of a stage that is there is of other data; None if it is of these."""
        if row.stage not in self.data:
            return f"{DIGESTS_FILE} says nothing of its data; `grr-coca study run` writes it anew"
        if row.data_digest != self.data[row.stage]:
            return f"other data ({row.data_digest}, not {self.data[row.stage]})"
        pretraining = next(iter(self.data.values()))
        if row.start_data_digest not in (None, pretraining):
            return f"other data of pretraining ({row.start_data_digest}, not {pretraining})"
        return None


def read_digests(folder: Path) -> Digests:
    """What the rows of a study must be made of.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / DIGESTS_FILE
    if not path.exists():
        raise UserError(f"{path}: is missing; `grr-coca study run` writes it anew")
    return from_dict(Digests, read_json(path), str(path))


def write_digests(folder: Path, digests: Digests) -> None:
    """Write them, whole or not at all.

    Raises:
        UserError: the folder cannot be written to.
    """
    write_beside_ledger(folder / DIGESTS_FILE, json.dumps(to_dict(digests), indent=2) + "\n")
