"""Tables and counts of studies that placeholders of `pages/` name: `{endpoints[adamw/best]}`."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from ledgers import rows_of

LEFT_PLATEAU = 1.5 / 8
"""R@1 above which a model has begun to learn positions: 1.5 times that of guessing among eight."""


@dataclass(frozen=True)
class Plateau:
    """Models of a study. A placeholder asks how many have left the plateau, by a pattern of arms."""

    study: str

    def __format__(self, pattern: str) -> str:
        rows = [row for (arm, _, _), row in rows_of(self.study).items() if re.search(pattern, arm)]
        return f"{sum(row['metrics']['test']['R@1'] > LEFT_PLATEAU for row in rows)} of {len(rows)}"


@dataclass(frozen=True)
class Table:
    """A table of a study, as Markdown: `{endpoints[adamw/best]}`."""

    function: Callable[[str], str]

    def __getitem__(self, study: str) -> str:
        return self.function(study)


TABLES: dict[str, Callable[[str], str]] = {}
