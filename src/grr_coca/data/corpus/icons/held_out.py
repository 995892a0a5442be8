"""What is not trained on: whole design families, and the test pictures of the corpora that measure transfer.

`families.json` is what `scripts/measure_families.py` wrote: measured once, since a corpus that is the same on every
machine cannot hang on a measurement that is made anew on each.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

import numpy as np

VAL = ("bi", "iconoir")
"""Sets of `val`."""

TEST = ("tabler", "carbon", "game-icons", "flat-color-icons", "pixel", "roentgen")
"""Sets of `test_family`: thin lines, solid glyphs, game art, many colours, pixel art, signs of maps."""


@dataclass(frozen=True)
class HeldOut:
    """Families of sets (each set's family, named by its first set), and signatures that no training picture has."""

    families: Mapping[str, str]
    signatures: np.ndarray

    @classmethod
    def read(cls) -> "HeldOut":
        """What this version of the corpus holds out."""
        folder = files("grr_coca.data.corpus.icons")
        groups = json.loads((folder / "families.json").read_text(encoding="utf-8"))
        families = {prefix: group[0] for group in groups for prefix in group}
        with np.load(io.BytesIO((folder / "transfer_tests.npz").read_bytes()), allow_pickle=False) as file:
            return cls(families, file["signatures"])

    def family_of(self, prefix: str) -> str:
        """The family of a set."""
        return self.families[prefix]

    def split_of(self, prefix: str) -> str | None:
        """The split of a set: `train`, `val`, `test_family_SET`, or none if it draws like a set that is held out."""
        if prefix in VAL:
            return "val"
        if prefix in TEST:
            return f"test_family_{prefix}"
        return None if self.family_of(prefix) in self._held_out else "train"

    @cached_property
    def _held_out(self) -> set[str]:
        return {self.family_of(prefix) for prefix in (*VAL, *TEST) if prefix in self.families}
