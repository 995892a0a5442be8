"""`grr-coca demo`."""

import json
import os
import platform
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from grr_coca.cli.output.progress import bars
from grr_coca.errors import UserError
from grr_coca.extras import require_extra
from grr_coca.files import write_whole
from grr_coca.train.recipe import read_yaml

if TYPE_CHECKING:
    from grr_coca.study.plan import Plan


def run(
    plan: Annotated[Path, tyro.conf.Positional] = Path("recipes/demo.yaml"),
    out: Path = Path("runs/demo"),
) -> None:
    """Run the whole comparison: both models pretrained, fine-tuned on three domains, measured and shown.

    Args:
        plan: YAML file that names presets and recipes.
        out: folder for runs, table and report; an earlier demo in it is replaced.
    """
    require_extra("train", "training")
    require_extra("report", "the report")
    read_yaml(plan)  # a name that is wrong is told at once

    from grr_coca.study.plan import load_plan, stages, with_precision  # late: torch comes with it
    from grr_coca.study.processes import device, run_arms
    from grr_coca.study.report import comparison_rows, write_report
    from grr_coca.study.table import format_table

    resolved = with_precision(load_plan(plan), device())
    _clear(out, resolved)
    total = sum(recipe.schedule.steps for recipe in stages(resolved).values())
    with bars(dict.fromkeys(resolved.presets, total)) as shown:
        arms = run_arms(resolved, out, shown.update)
    rows = comparison_rows(resolved, arms)
    table = format_table(rows, resolved.presets)
    write_whole(out / "table.txt", f"{table}\n".encode())
    write_whole(out / "results.json", json.dumps([asdict(arm) for arm in arms], indent=2).encode())
    runs = (out / resolved.presets[0], out / resolved.presets[1])
    write_report(resolved, arms, runs, _machine(), out / "report.html")
    print(f"\n{table}\n\n{_closing_words(resolved, out)}")


def _clear(out: Path, plan: "Plan") -> None:
    known = {*plan.presets, "table.txt", "results.json", "report.html"}
    strange = sorted(entry.name for entry in out.iterdir() if entry.name not in known) if out.is_dir() else []
    if strange:
        raise UserError(f"{out}: holds {strange[0]}, which is not a demo's; give another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)


def _machine() -> str:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    return f"{platform.machine()}, {device}, torch {torch.__version__}, Python {platform.python_version()}."


def _closing_words(plan: "Plan", out: Path) -> str:
    program, recipe = sys.argv[0], os.path.relpath(plan.pretrain)
    checkpoint = out / plan.presets[0] / Path(plan.pretrain).stem
    return "\n".join(
        [
            f"Pictures, captions and searches: {out / 'report.html'}",
            f"Caption an image of yours:       {program} caption --checkpoint {checkpoint} IMAGE.png",
            f"Train on pairs of yours:         {program} pretrain {recipe} --data FOLDER_OR_SHARDS",
        ]
    )
