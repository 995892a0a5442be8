"""The ledger of a study: one row for each stage that has ended, in files that are only ever appended to.

| file | holds |
|---|---|
| `runs.jsonl` | the rows, a JSON object a line; `runs-I-of-N.jsonl` those of a shard |
| `plan.yaml` | the plan of the study |
| `digests.json` | what a row must be made of to count: recipes by arm and stage, of runs and trials; data by stage |

A report reads these three, the pictures in `showcase/`, and nothing else.
"""

from grr_coca.study.ledger.digests import Digests, read_digests, write_digests
from grr_coca.study.ledger.files import (
    DIGESTS_FILE,
    LEDGER_FILE,
    PLAN_FILE,
    SHARD_FILE,
    ledger_files,
    write_beside_ledger,
)
from grr_coca.study.ledger.read import Ledger, read_ledger, read_rows
from grr_coca.study.ledger.row import CaptionedExample, CurvePoint, Kind, LedgerRow, finite
from grr_coca.study.ledger.write import LedgerWriter, is_locked

__all__ = [
    "DIGESTS_FILE",
    "LEDGER_FILE",
    "PLAN_FILE",
    "SHARD_FILE",
    "CaptionedExample",
    "CurvePoint",
    "Digests",
    "Kind",
    "Ledger",
    "LedgerRow",
    "LedgerWriter",
    "finite",
    "is_locked",
    "ledger_files",
    "read_digests",
    "read_ledger",
    "read_rows",
    "write_beside_ledger",
    "write_digests",
]
