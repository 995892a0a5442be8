"""What fine-tuning gains from where it starts: a model that ships, or nothing.

    python scripts/finetuning_table.py RUNS.jsonl icons pictograms --seeds 0 1 2 3

fine-tunes each model by the recipes of the three domains, and trains the first model's size from scratch on the same
pairs, for FROM_SCRATCH times as many steps. It appends a line a run to RUNS.jsonl, does only what is not there yet, and
prints a table: means over seeds with 95 % t intervals. To choose a start, read the column of `val`.

A line names its start alone: when a model has new weights, remove its lines, or give another file.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from grr_coca.cli import exit_code
from grr_coca.common.ranks import Ranks
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import every_caption
from grr_coca.evaluate.checkpoint_metrics import pair_results
from grr_coca.evaluate.split import aggregate, scaling_of
from grr_coca.infer.locate import locate_checkpoint
from grr_coca.model.checkpoint import Checkpoint, from_pretrained
from grr_coca.model.losses import LossWeights
from grr_coca.train.loop import train
from grr_coca.train.recipe import Recipe, load_recipe
from grr_coca.train.setup import new_checkpoint

RECIPES = Path(__file__).parents[1] / "recipes"
DOMAINS = ("health", "clipart", "glyphs")
SCRATCH = "scratch"
FROM_SCRATCH = 5
"""From scratch, a domain's recipe has so many times its steps, and twice its learning rate."""

METRICS = {"R@1": "R@1, text to image", "contrastive_loss": "contrastive loss", "nats": "nats a caption"}
"""Nats a caption, and not perplexity: that is per token, and each start has a vocabulary of its own."""

BATCH_SIZE = 32
"""Pairs of a contrastive loss, as in the recipes."""

Row = dict[str, str | int | float]


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="file of the runs")
    parser.add_argument("models", nargs="+", help="names or folders to start from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    options = parser.parse_args()
    rows = read_rows(options.rows)
    done = {(row["domain"], row["start"], row["seed"]) for row in rows}
    for seed in options.seeds:
        for domain in DOMAINS:
            for start in (*options.models, SCRATCH):
                if (domain, start, seed) in done:
                    continue
                rows.append(run(domain, start, seed, size_of=options.models[0]))
                with options.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print("\n".join(table(rows, (*options.models, SCRATCH))))


def read_rows(path: Path) -> list[Row]:
    """The runs that are done."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def run(domain: str, start: str, seed: int, size_of: str) -> Row:
    """Train once, and measure `val` and `test`."""
    recipe = replace(load_recipe(RECIPES / f"{domain}.yaml"), seed=seed)
    if start == SCRATCH:
        recipe = from_scratch(recipe, size_of)
        checkpoint = new_checkpoint(recipe, Ranks.here(torch.device("cpu")))
    else:
        checkpoint = from_pretrained(locate_checkpoint(start))
    with tempfile.TemporaryDirectory() as folder:
        trained = train(recipe, checkpoint, Path(folder) / "run", Ranks.here(torch.device("cpu")), lambda *_: None)
    splits = {"val": str(recipe.data.val), "test": recipe.data.test["test"]}
    return {"domain": domain, "start": start, "seed": seed} | {
        f"{split} {name}": value for split, path in splits.items() for name, value in measure(trained, path).items()
    }


def from_scratch(recipe: Recipe, size_of: str) -> Recipe:
    """A domain's recipe, for a model that begins with random weights and makes its own vocabulary."""
    own = Path(size_of) / "recipe.yaml"  # of a run's folder
    first = load_recipe(own if own.is_file() else RECIPES / "weights" / f"{size_of}.yaml")
    optimizer = replace(recipe.optimizer, lr=2 * recipe.optimizer.lr)
    schedule = replace(recipe.schedule, steps=FROM_SCRATCH * recipe.schedule.steps)
    return replace(recipe, model=first.model, tokenizer=first.tokenizer, optimizer=optimizer, schedule=schedule)


def measure(checkpoint: Checkpoint, path: str) -> dict[str, float]:
    """The metrics of one split."""
    results = pair_results(checkpoint, every_caption(open_source(path)), BATCH_SIZE)
    found = aggregate(results, scaling_of(checkpoint.model), BATCH_SIZE, LossWeights())
    nats = results.nll.mean().item()
    return {"R@1": found.text_to_image["R@1"], "contrastive_loss": found.contrastive_loss, "nats": nats}


def table(rows: Sequence[Row], starts: Sequence[str]) -> list[str]:
    """A line for each domain and start."""
    heads = [f"{title}, {split}" for split in ("val", "test") for title in METRICS.values()]
    lines = [f"| domain | start | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
    for domain in DOMAINS:
        for start in starts:
            mine = [row for row in rows if (row["domain"], row["start"]) == (domain, start)]
            cells = [
                cell([float(row[f"{s} {m}"]) for row in mine], "R@1" in m) for s in ("val", "test") for m in METRICS
            ]
            lines.append(f"| {domain} | {start} | {' | '.join(cells)} |")
    return lines


def cell(numbers: Sequence[float], is_share: bool) -> str:
    """A mean and half of its 95 % t interval."""
    values = np.array(numbers) * (100 if is_share else 1)
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return f"{values.mean():.1f} ± {half:.1f} %" if is_share else f"{values.mean():.2f} ± {half:.2f}"


if __name__ == "__main__":
    sys.exit(exit_code(main))
