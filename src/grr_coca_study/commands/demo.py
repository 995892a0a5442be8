"""`grr-coca demo`: the whole comparison in minutes, with captions and searches by a model before and after training.

Modules of torch are imported late, so mistakes are reported at once.
"""

import json as json_format
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

import grr_coca
from grr_coca.cli.flags import Flag
from grr_coca.cli.output import program_args, report_stop
from grr_coca.common.dict_to_dataclass import read_yaml
from grr_coca.common.errors import Interruption, UserError
from grr_coca.common.extras import install_command, require_extra
from grr_coca.model.checkpoint_files import DEFAULT

if TYPE_CHECKING:
    from PIL import Image

    from grr_coca.data.sources.base import PairSource
    from grr_coca.infer.image_text_model import ImageTextModel
    from grr_coca_study.demo.plan import Schedule
    from grr_coca_study.plan import DemoPlan
    from grr_coca_study.running.workers import Workers

_DEFAULT_PLAN = Path("recipes/demo.yaml")
_NUM_CAPTIONED, _NUM_QUERIES, _NUM_OPENING_HITS = 6, 5, 3
"""Images captioned, queries and hits of each, before the training."""
_NUM_HITS = 3
"""Hits of the search after the training."""


def run(
    plan: Annotated[Path, tyro.conf.Positional] = _DEFAULT_PLAN,
    out: Path = Path("runs/demo"),
    minutes: float = 10.0,
    steps: int | None = None,
    fresh: Flag = False,
    dry_run: Flag = False,
    json: Flag = False,
) -> int:
    """Pretrain both models, fine-tune them on three domains, measure them, and write a report.

    The speed of this machine decides how long they are pretrained. The same command continues a demo that was stopped.

    Args:
        plan: YAML file that names arms, recipes and schedules.
        out: folder for runs, table and report.
        minutes: take the longest schedule of the plan that ends within this time.
        steps: pretrain for this number of steps, however long that takes.
        fresh: start again, and replace the demo in --out.
        dry_run: print the schedule that would be taken, and end.
        json: with --dry-run, print it as JSON.
    """
    began = time.monotonic()
    _check(plan, minutes, steps, dry_run, json)
    from grr_coca_study.commands.study_run import run_with_progress
    from grr_coca_study.demo.folder import DemoPlace, begin, begun_in, finish, make_folder
    from grr_coca_study.demo.plan import load_demo
    from grr_coca_study.running.workers import worker_processes

    asked = load_demo(plan)
    if not dry_run:
        make_folder(out, asked)
    begun = None if fresh or dry_run else begun_in(out, asked, steps)
    if begun is not None:
        print(f"{out} holds this demo, of {begun.steps:,} steps; it continues (--fresh starts again)")
    elif not dry_run:
        print("\n".join(opening_lines(asked)))
    try:
        with worker_processes(min(2, os.cpu_count() or 1)) as workers:
            decided = begun or _decide(asked, workers, minutes, steps, dry_run, json, began)
            if dry_run:
                return 0
            if begun is None:
                begin(decided, out)
            run_with_progress(decided, DemoPlace(out), workers, has_bar_of_each_arm=True)
            table = finish(decided, out, workers)
    except (KeyboardInterrupt, Interruption) as stop:
        return report_stop(stop)
    print(f"\n{table}\n\n{_closing_words(decided, plan, out)}\n", flush=True)
    for line in closing_lines(decided, _first_checkpoint(decided, out), out):
        print(line)
    return 0


def _check(plan: Path, minutes: float, steps: int | None, dry_run: bool, json: bool) -> None:
    if not minutes > 0:
        raise UserError(f"--minutes must be more than 0, got {minutes:g}")
    if steps is not None and steps < 1:
        raise UserError(f"--steps must be at least 1, got {steps}")
    if json and not dry_run:
        raise UserError("--json prints the result of --dry-run; pass both")
    if plan == _DEFAULT_PLAN and not plan.exists():
        raise UserError(f"{plan}: no such plan here; run the demo in a clone of the project, which has its corpora too")
    require_extra("train", "training")
    require_extra("report", "the report")
    read_yaml(plan, "plan")  # reports a wrong name before torch is imported


def _decide(
    plan: "DemoPlan", workers: "Workers", minutes: float, steps: int | None, dry_run: bool, json: bool, began: float
) -> "DemoPlan":
    """Return the plan with the number of steps and the precisions for this machine.

    `began`: when the demo was started, by the monotonic clock.
    """
    from grr_coca_study.demo.plan import arm_names, arm_pace, choose, timed_schedules, with_precisions

    if not json:
        print("Measuring the pace of this machine …", file=sys.stderr)
    (plan,) = workers.all([workers.submit(with_precisions, plan)])
    if steps is not None and not dry_run:
        return replace(plan, steps=steps)
    paces = workers.all([workers.submit(arm_pace, plan, name) for name in arm_names(plan)])  # at once, as they train
    timed = plan if steps is None else replace(plan, schedules={steps: plan.schedules.get(steps)})
    minutes = minutes if steps is None else math.inf
    schedules = timed_schedules(timed, paces, time.monotonic() - began)
    taken = choose(schedules, minutes)
    if json:
        found = {"steps": taken.steps, "minutes": round(taken.minutes, 1)}
        print(json_format.dumps({**found, "precision": plan.precision, "muon_precision": plan.muon_precision}))
    else:
        step = max(pace.step for pace in paces)
        print(f"A step takes {step:.2f} s, in {plan.precision}, with Muon in {plan.muon_precision}.")
        print(_table(schedules, taken, minutes))
    return replace(plan, steps=taken.steps)


def _table(schedules: Sequence["Schedule"], taken: "Schedule", minutes: float) -> str:
    """Return one line for each schedule, with its time and expected result. The one that is taken is marked."""
    lines = []
    for schedule in schedules:
        mark = "→" if schedule is taken else " "
        reached = "" if schedule.reached is None else f"   R@1 about {schedule.reached:.0%}"
        why = f"   taken: the longest within {minutes:g} minutes" if schedule is taken and minutes < math.inf else ""
        lines.append(f"{mark} {schedule.steps:>6,} steps {schedule.minutes:>6.1f} min{reached}{why}")
    return "\n".join(lines)


def _first_checkpoint(plan: "DemoPlan", out: Path) -> Path:
    from grr_coca_study.demo.plan import arm_names

    return out / arm_names(plan)[0] / Path(plan.pretrain).stem


def _closing_words(plan: "DemoPlan", path: Path, out: Path) -> str:
    """Return commands to continue with. `path`: the plan as it was given on the command line."""
    program, recipe = shlex.join(program_args()), shlex.quote(os.path.relpath(plan.pretrain))
    again = shlex.join([str(path), "--out", str(out), "--fresh", "--steps", str(plan.steps)])
    checkpoint = shlex.quote(str(_first_checkpoint(plan, out)))
    return "\n".join(
        [
            f"Images, captions and searches:   {out / 'report.html'}",
            f"The same once more:              {program} demo {again}",
            f"Caption an image of yours:       {program} caption --checkpoint {checkpoint} IMAGE.png",
            f"Train on pairs of yours:         {program} pretrain {recipe} --data FOLDER_OR_SHARDS",
        ]
    )


def opening_lines(plan: "DemoPlan") -> Iterator[str]:
    """Yield captions of some images of the plan's showcase, and some searches, by the shipped model before any
    training.
    """
    from grr_coca.data.sources.open import open_source
    from grr_coca_study.demo.plan import demo_recipes

    pretrain = next(iter(demo_recipes(plan).values()))
    source = open_source(pretrain.data.test[plan.showcase])
    model = grr_coca.load(DEFAULT, "cpu")
    yield f"The model that comes with the code, '{DEFAULT}', on drawings of {plan.showcase}, which it never saw:"
    yield from _captions(model, source)
    yield f"Searched for among all {len(source)} of them:"
    yield from _searches(model, source, plan.queries[:_NUM_QUERIES])


def _captions(model: "ImageTextModel", source: "PairSource") -> Iterator[str]:
    step = max(1, len(source) // _NUM_CAPTIONED)
    indices = range(0, len(source), step)[:_NUM_CAPTIONED]
    images = [_image(source, index) for index in indices]
    for index, said in zip(indices, model.caption(images), strict=True):
        yield f"  {_symbol(source[index].key)}  {said}"


def _searches(model: "ImageTextModel", source: "PairSource", queries: tuple[str, ...]) -> Iterator[str]:
    cosines = model.similarity([_image(source, index) for index in range(len(source))], queries)  # N M
    best = (-cosines).argsort(axis=0, kind="stable")[:_NUM_OPENING_HITS].T.tolist()
    for query, hits in zip(queries, best, strict=True):
        yield f"  {query}: {'  '.join(_symbol(source[index].key) for index in hits)}"


def _image(source: "PairSource", index: int) -> "Image.Image":
    from grr_coca.data.isolated import decode_image

    pair = source[index]
    return decode_image(pair.image, pair.name)


def _symbol(key: str) -> str:
    """Return the emoji of a key `STYLE-CODES`, if the terminal can print it; else the key itself."""
    try:
        symbol = "".join(chr(int(code, 16)) for code in key.partition("-")[2].split("-"))
        symbol.encode(sys.stdout.encoding or "ascii")
    except (ValueError, OverflowError):
        return key
    return symbol or key


def closing_lines(plan: "DemoPlan", checkpoint: Path, out: Path) -> Iterator[str]:
    """Index the showcase with the trained model, search for the plan's first query, and show the commands.

    Args:
        plan: names the showcase and the queries.
        checkpoint: run of the trained model.
        out: folder of the demo, where the index is made.
    """
    from grr_coca_search.commands.search import hit_lines
    from grr_coca_search.index import Index
    from grr_coca_study.demo.folder import INDEX_FOLDER
    from grr_coca_study.demo.plan import demo_recipes

    pretrain = next(iter(demo_recipes(plan).values()))
    images, folder, query = str(pretrain.data.test[plan.showcase]), out / INDEX_FOLDER, plan.queries[0]
    shutil.rmtree(folder, ignore_errors=True)  # an earlier demo had another model
    with Index.open(folder, checkpoint, create=True) as index:
        index.add(images)
        found = index.search(query, _NUM_HITS)
    yield shlex.join([*program_args(), "index", images, "--checkpoint", str(checkpoint), "--out", str(folder)])
    yield shlex.join([*program_args(), "search", str(folder), query, "-n", str(_NUM_HITS)])
    yield from hit_lines(found)
    serve = shlex.join([*program_args(), "serve", str(folder), "--open"])
    yield f"as a page, with {install_command('serve')}:  {serve}"
