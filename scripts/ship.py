"""Make the result of a run a model that ships with the package, and measure it. This trains nothing.

    python scripts/ship.py RUN NAME

1. Writes `src/grr_coca/model/weights/NAME/`: the weights in half precision, the ONNX graphs, which read the same file,
   and the card. The weights are those of the run's last checkpoint, or, if the card says `mean_of_checkpoints`, the
   mean of all that the run keeps (arXiv 2203.05482). The text of the card is `scripts/cards/NAME.yaml`. Its figures are
   measured on every split that the run's recipe names and on those that the card adds, with the rounded weights.
   `photographs.json` depends on the preprocessing alone: it stays if that is as before.
2. Runs what the card lists under `fits`, in this order: the scripts that fit numbers to the weights (confidence,
   relevance, matches, tags), and those that draw pictures and look through the pages. Each is also run by itself, after
   a change of what it does. If one fails, the others are run, and named at the end.

For `icons`, this takes about half an hour of one core. What is left for a person: the pages that
`benchmarks/publish.py` names, `benchmarks/icons.md`, and the text of the card.

    python scripts/ship.py --fits NAME

does the second step alone, such as after a change of the preprocessing.

    python scripts/ship.py --graphs NAME

exports the graphs of a model that ships anew, after a change of the exporter. Nothing else in the folder changes.
"""

import argparse
import filecmp
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fitting import card_text
from grr_coca.cli import exit_code
from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import CACHE_PREFIX, atomic_folder, edit_folder_atomic
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.caption_split import caption_split
from grr_coca.evaluate.checkpoint_metrics import measure_checkpoint
from grr_coca.evaluate.intervals import Measure
from grr_coca.infer.export.write import manifest_facts, write_graphs
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.model.checkpoint import Checkpoint, from_pretrained, write_files
from grr_coca.model.checkpoint_files import FOLDER, PHOTOGRAPHS, Figure, ModelCard, checkpoints_by_step
from grr_coca.model.losses import LossWeights
from grr_coca.train.recipe import load_recipe

BATCH_SIZE = 32
"""Pairs of a contrastive loss, as in the recipes."""
TOP = (1, 5, 10)
CAPTIONS = {
    "exact_captions": "captions exactly right",
    "first_word": "first word right",
    "perplexity": "perplexity",
}
LOSSES = ("contrastive_loss", "perplexity", "coca_loss")
ROOT = Path(__file__).parents[1]


def main() -> None:
    """Write the folder of a bundled model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="run folder")
    parser.add_argument("name", help="of the bundled model")
    parser.add_argument("--fits", action="store_true", help="fit and measure a model that ships anew")
    parser.add_argument("--graphs", action="store_true", help="export the graphs of a model that ships anew")
    options = parser.parse_args()
    if options.fits + options.graphs + (options.run is not None) != 1:
        parser.error("give RUN NAME, --fits NAME or --graphs NAME")
    if options.graphs:
        export_again(FOLDER / options.name)
        return
    if options.run is not None:
        write_model(options.run, options.name)
    run_fits(options.name)


def write_model(run: Path, name: str) -> None:
    """Measure what a run trained, in half precision, and write its folder and its card, without what is fitted to it.

    Args:
        run: its recipe names the splits.
        name: of the bundled model.
    """
    text = card_text(name)
    *_, newest = run, *checkpoints_by_step(run / "checkpoints").values()
    trained = mean_of_checkpoints(run) if text.get("mean_of_checkpoints") else from_pretrained(newest)
    checkpoint = in_half_precision(trained)
    recipe = load_recipe(run / "recipe.yaml")
    splits = {"val": recipe.data.val or recipe.data.train, **recipe.data.test}
    splits |= {split: _path(path) for split, path in text.pop("other_splits").items()}
    found = {split: figures(checkpoint, open_source(path)) for split, path in splits.items()}
    if "search" in text:
        from icon_search import search_figures  # late: beside this script, for the models that are for search

        found |= search_figures(ImageTextModel(checkpoint), _path(text["search"]))
    card = ModelCard(
        name=name,
        preset=checkpoint.preset,
        parameters=sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        steps=checkpoint.step,
        figures=found,
        **{key: text[key] for key in ("summary", "data", "licence", "recipe")},
    )
    weights = {key: tensor.half() for key, tensor in checkpoint.model.state_dict().items()}
    facts: dict[str, object] = {}
    before = FOLDER / name
    with atomic_folder(before, facts) as folder:
        write_files(checkpoint, weights, folder)
        seen_by = [at / "preprocess.json" for at in (before, folder)]
        if (before / PHOTOGRAPHS).exists() and filecmp.cmp(*seen_by, shallow=False):
            shutil.copyfile(before / PHOTOGRAPHS, folder / PHOTOGRAPHS)
        write_graphs(checkpoint, folder)
        facts |= manifest_facts(checkpoint, folder, "fp32")
        (folder / "card.json").write_text(json.dumps(to_dict(card), indent=1) + "\n", encoding="utf-8")
        (folder / "card.md").write_text(card_page(card, text), encoding="utf-8")
    print(f"{FOLDER / name}: {sum(path.stat().st_size for path in (FOLDER / name).iterdir()):,} bytes")


def run_fits(name: str) -> None:
    """Run the scripts that the card of a model lists.

    Raises:
        UserError: some of them failed; the message names them.
    """
    failed = []
    for command in card_text(name).get("fits", ()):
        began = time.monotonic()
        code = subprocess.run([sys.executable, *command.split()], cwd=ROOT, check=False).returncode
        print(f"{command}: {time.monotonic() - began:.0f} s{', failed' if code else ''}", flush=True)
        failed += [command] if code else []
    if failed:
        raise UserError(f"failed: {'; '.join(failed)}; run them again by themselves")


def export_again(folder: Path) -> None:
    """Replace the graphs of a model that ships. Its weights stay, and so does its fingerprint."""
    checkpoint = from_pretrained(folder)
    with edit_folder_atomic(folder, manifest_facts(checkpoint, folder, "fp32")) as partial:
        write_graphs(checkpoint, partial)


def mean_of_checkpoints(run: Path) -> Checkpoint:
    """Return the last checkpoint of a run, with the mean of the weights of all that it keeps."""
    checkpoints = [from_pretrained(path) for path in checkpoints_by_step(run / "checkpoints").values() or [run]]
    checkpoint, kept = checkpoints[-1], [one.model.state_dict() for one in checkpoints]
    with torch.no_grad():
        for name, parameter in checkpoint.model.named_parameters():
            parameter.copy_(torch.stack([weights[name] for weights in kept]).mean(0))
    return checkpoint


def in_half_precision(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with its weights rounded to fp16, which is what ships."""
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            parameter.copy_(parameter.half())
    return replace(checkpoint, model=checkpoint.model.eval())


def figures(checkpoint: Checkpoint, source: PairSource) -> dict[str, Figure]:
    """What the card says of a split."""
    measured = measure_checkpoint(checkpoint, source, BATCH_SIZE, LossWeights())
    captioned = caption_split(checkpoint, source)
    pairs = list(zip(captioned.hypotheses, captioned.references, strict=True))
    exact = np.array([float(said in truths) for said, truths in pairs])
    first = np.array([float(said.split()[:1] in [truth.split()[:1] for truth in truths]) for said, truths in pairs])
    measures = {name: measure for name, measure in measured.measures.items() if name in LOSSES or "/R@" in name}
    measures |= {"exact_captions": Measure.mean(exact), "first_word": Measure.mean(first)}
    found = {name: Figure(*(float(number) for number in measure.interval())) for name, measure in measures.items()}
    chance = measured.evaluation.chance["R@1"]
    return {**found, "chance R@1": Figure(chance, chance, chance)}


def card_page(card: ModelCard, text: dict[str, str]) -> str:
    """`card.md`."""
    searches = {title: found for title, found in card.figures.items() if "perplexity" not in found}
    splits = {split: found for split, found in card.figures.items() if split not in searches}
    return "\n".join(
        [
            f"# {card.name}",
            "",
            f"{card.summary} Preset `{card.preset}`, with {card.parameters:,} parameters in half precision.",
            "",
            "```python",
            "import grr_coca",
            "",
            f'model = grr_coca.load("{card.name}")',
            'model.caption("drawing.png")',
            "```",
            "",
            "## Metrics",
            "",
            "Intervals are 95 % bootstrap intervals over the images of a split. They apply to these weights, and do",
            "not show how much another training run would differ. R@K, text to image, is how often an image is among",
            "the first K images of the split that its caption finds.",
            "",
            *split_table(splits, retrieval_heads("text_to_image")),
            *split_table(splits, retrieval_heads("image_to_text")),
            *split_table(splits, CAPTIONS),
            *search_table(searches),
            *(f"## {title}\n\n{text[key].strip()}\n" for key, title in SECTIONS.items() if key in text),
            "## Reproduce",
            "",
            "```",
            text["reproduce"],
            "```",
            "",
            f"This command trains {card.steps:,} steps with `{card.recipe}`, and writes this folder.",
            "",
        ]
    )


def retrieval_heads(direction: str) -> dict[str, str]:
    """Figures of one way of searching, with the heads of their columns."""
    ways = {f"{direction}/R@{k}": f"R@{k}, {direction.replace('_', ' ')}" for k in TOP}
    return {**ways, "chance R@1": "chance, R@1"}


def split_table(splits: dict[str, dict[str, Figure]], heads: dict[str, str]) -> list[str]:
    """A line for each split, with the figures that `heads` names and says in words; all but perplexity in percent."""
    lines = [f"| split | {' | '.join(heads.values())} |", f"|---|{'---|' * len(heads)}"]
    for split, found in splits.items():
        cells = (number(found[name]) if name == "perplexity" else percent(found[name]) for name in heads)
        lines.append(f"| {split} | {' | '.join(cells)} |")
    return [*lines, ""]


def percent(figure: Figure) -> str:
    """Return a share with its interval."""
    if figure.low == figure.high == figure.value:  # chance is known exactly
        return f"{100 * figure.value:.2f} %"
    return f"{100 * figure.value:.1f} % ({100 * figure.low:.1f} to {100 * figure.high:.1f})"


def number(figure: Figure) -> str:
    """Return a number with its interval."""
    return f"{figure.value:.3g} ({figure.low:.3g} to {figure.high:.3g})"


def search_table(searches: dict[str, dict[str, Figure]]) -> list[str]:
    """Return a line for each kind of search, if the model is measured on any."""
    if not searches:
        return []
    names = list(next(iter(searches.values())))
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for title, found in searches.items():
        figures = [f"{f.value:.3f} ({f.low:.3f} to {f.high:.3f})" for f in found.values()]
        lines.append(f"| {title} | {' | '.join(figures)} |")
    return [*lines, ""]


def _path(path: str) -> str:
    """Return a path of a card: of the repository, or in the user's cache."""
    return path if path.startswith(CACHE_PREFIX) else str(ROOT / path)


SECTIONS = {
    "training": "Training",
    "cost": "Cost",
    "uses": "Uses and limits",
    "licences": "Data and licences",
}


if __name__ == "__main__":
    sys.exit(exit_code(main))
