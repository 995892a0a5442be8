"""What a newcomer gets on this machine: `python benchmarks/first_minutes.py NAME DEMO --try-seconds S --demo-minutes M
--test-minutes M`.

DEMO is the folder of a demo that has ended; S and M are what `make try`, `make demo` and `make test` took in a fresh
clone, as `time` told it. Steps and R@1 are read from the demo; the captions of its whole showcase and a caption from a
cold start are measured here, in a minute. Writes the entry NAME of `results/demo.json`.

A processor that has more can be held to AVX2 by `ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2
MKL_ENABLE_INSTRUCTIONS=AVX2`, here and for the three commands.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from machine import machine, parse, parser_of

from grr_coca.cli import exit_code
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.caption_split import caption_split
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.study.demo.plan import demo_recipes
from grr_coca.study.ledger import PLAN_FILE
from grr_coca.study.plan import DemoPlan, read_plan

DRAWING = Path(__file__).parents[1] / "docs" / "drawings" / "guitar.webp"
GRR_COCA = [sys.executable, "-m", "grr_coca"]
COLD_STARTS = 5


def main() -> None:
    """Measure and write."""
    parser = parser_of(__doc__)
    parser.add_argument("name", nargs="?", help="of this machine in the results: fast, ordinary")
    parser.add_argument("demo", type=Path, nargs="?", help="folder of a demo that has ended")
    parser.add_argument("--try-seconds", type=float)
    parser.add_argument("--demo-minutes", type=float)
    parser.add_argument("--test-minutes", type=float)
    options = parse(parser)
    if options.smoke:
        options.name, options.demo = "smoke", options.smoke / "demo"
        subprocess.run([*GRR_COCA, "demo", "--steps", "1", "--out", str(options.demo)], check=True)
    elif None in [options.demo, options.try_seconds, options.demo_minutes, options.test_minutes]:
        parser.error("give NAME, DEMO, and what the three commands took")
    torch.set_num_threads(1)
    plan = read_plan(options.demo / PLAN_FILE, DemoPlan)
    results = json.loads((options.demo / "results.json").read_text(encoding="utf-8"))
    entry = {
        "machine": machine(),
        "try_seconds": options.try_seconds,
        "cold_caption_seconds": cold_caption_seconds(1 if options.smoke else COLD_STARTS),
        "steps": plan.steps,
        "minutes": options.demo_minutes,
        "precision": plan.precision,
        "muon_precision": plan.muon_precision,
        "models": {arm["preset"]: figures(options.demo, plan, arm) for arm in results},
        "test_minutes": options.test_minutes,
    }
    path = options.out / "demo.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**known, options.name: entry}, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(entry, indent=2))


def figures(demo: Path, plan: DemoPlan, arm: dict) -> dict[str, float]:
    """R@1 on the showcase, and the share of its captions that are exactly right."""
    stage, recipe = next(iter(demo_recipes(plan).items()))
    source = open_source(recipe.data.test[plan.showcase])
    captioned = caption_split(from_pretrained(demo / arm["preset"] / stage), source)
    right = [said in truths for said, truths in zip(captioned.hypotheses, captioned.references, strict=True)]
    evaluation = arm["evaluations"][f"{stage}/{plan.showcase}"]
    return {"r_at_1": evaluation["R@1"], "exact_captions": sum(right) / len(right)}


def cold_caption_seconds(cold_starts: int) -> float:
    """One caption from a cold start: the median of several."""
    seconds = []
    for _ in range(cold_starts):
        began = time.perf_counter()
        subprocess.run([*GRR_COCA, "caption", str(DRAWING)], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[cold_starts // 2]


if __name__ == "__main__":
    sys.exit(exit_code(main))
