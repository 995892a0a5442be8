"""What a study found, for people and programs."""

from pathlib import Path

from grr_coca.cli.output import say
from grr_coca.errors import UserError
from grr_coca.extras import require_extra
from grr_coca.study.plan import compared_with, plan_of_folder, report_folder


def report_on(folder: Path, out: Path | None, over: str | None) -> int:
    """Write the report of the study in `folder` to `out`, or to where it belongs, and print its answer."""
    require_extra("study", "a study's report")
    own = report_folder(folder)  # no study, or no such arm: known before anything is written
    out = out or (own if over is None else own / f"over-{over}")
    compared_with(plan_of_folder(folder), over)
    from grr_coca.study.report.page import PAGE_FILE, write_study_report  # late: matplotlib and scipy come with it

    try:
        out.mkdir(parents=True, exist_ok=True)
        said = write_study_report(folder, out, over)
    except OSError as error:
        raise UserError(f"{out}: cannot be written to ({error.strerror or error}); give another --out") from error
    say(said)
    say(f"report: {out / PAGE_FILE}")
    return 0
