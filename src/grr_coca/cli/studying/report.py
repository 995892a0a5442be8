"""What a study found, for people and programs."""

from pathlib import Path

from grr_coca.cli.output.say import say
from grr_coca.errors import UserError
from grr_coca.extras import require_extra


def report_on(folder: Path, out: Path) -> int:
    """Write the report of the study in `folder` to `out`, and print its answer."""
    require_extra("study", "a study's report")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that `grr-coca study run` writes to")
    from grr_coca.study.report.write import PAGE_FILE, write_study_report  # late: matplotlib and scipy come with it

    out.mkdir(parents=True, exist_ok=True)
    say(write_study_report(folder, out))
    say(f"report: {out / PAGE_FILE}")
    return 0
