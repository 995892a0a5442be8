"""`grr-coca adapt`: a model of one's own pairs in closed form, with a report."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from grr_coca.cli.flags import CheckpointFlag, Flag
from grr_coca.cli.output import print_first, say
from grr_coca.cli.progress import bars
from grr_coca.infer.load import locate_checkpoint
from grr_coca.model.checkpoint_files import DEFAULT

if TYPE_CHECKING:
    from grr_coca.adapt.adapt_model import Adapted


def run(
    pairs: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PAIRS")],
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")],
    checkpoint: CheckpointFlag = DEFAULT,
    json: Flag = False,
) -> int:
    """Adapt a model to your own pairs. This takes seconds, and needs neither a GPU nor PyTorch.

    FOLDER is then a model that `caption`, `embed`, `index`, `search` and `serve` take by -c FOLDER. Its report says how
    good it is on pairs that it did not see, and whether more pairs or training would help. FOLDER/report.html shows
    it with images. The same command with more pairs reads only the new images.

    Args:
        pairs: any kind that `data check` reads, at most 50,000 pairs.
        out: new folder for the model, or that of an earlier adaptation.
        checkpoint: base model: checkpoint or run folder, name of a model (see `grr-coca models`), or OWNER/NAME on
            the Hugging Face hub.
        json: print JSON.
    """
    locate_checkpoint(checkpoint)  # before anything is read, so that a wrong name costs no time
    from grr_coca.adapt.adapt_model import REPORT, adapt_model, estimate_cost  # lazy import: NumPy
    from grr_coca.adapt.report import as_json, report_page, report_text
    from grr_coca.data.sources.open import open_source

    seconds, gigabytes = estimate_cost(len(open_source(pairs)))
    print(f"about {seconds:.0f} s and {gigabytes:.1f} GB of memory", file=sys.stderr)

    def write_report(folder: Path, adapted: "Adapted") -> None:
        (folder / REPORT).write_bytes(report_page(adapted, out).encode())

    with bars({"adapt": 100}) as shown:

        def watch(part: str, done: int, total: int) -> None:
            step = 30 * done / total if total else 30 + 10 * done
            shown.update("adapt", round(step), part)

        adapted = adapt_model(pairs, checkpoint, out, watch, write_report)
        shown.update("adapt", 100, "")
    if adapted.images.bad:
        print(f"{len(adapted.images.bad):,} pairs cannot be used, and are skipped:", file=sys.stderr)
        print_first(adapted.images.bad)
    say(as_json(adapted) if json else report_text(adapted, out))
    return 0
