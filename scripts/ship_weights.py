"""Make a run's last checkpoint a model that ships with the package: half precision, measured, with a card.

    python scripts/ship_weights.py RUN NAME [--average OTHER SHARE]

writes `src/grr_coca/model/weights/NAME/`. The text of the card is `scripts/cards/NAME.yaml`. Its figures are measured
here, on every split that the run's recipe names and on those that the card adds, with the weights that ship: rounded
ones. The ONNX graphs beside the weights read the same file.

What is fitted to the weights is not made here, but confidence: relevances by `python benchmarks/search_relevance.py
--fit`, matches by `python scripts/fit_match.py NAME`, tags by `python scripts/fit_tags.py NAME`, and figures on
photographs by `python scripts/fit_confidence.py NAME --photographs DIR`. What an earlier model of that name had of them
is gone.

    python scripts/ship_weights.py --graphs NAME

exports the graphs of a model that ships anew, after a change of the exporter. Nothing else in the folder changes.

    python scripts/ship_weights.py --framed NAME

makes drawings framed before a model that ships sees them (`grr_coca.data.framing`), and measures it anew.
"""

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml

from grr_coca.cli import exit_code
from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.files import CACHE, listed_files, read_json, whole_folder
from grr_coca.data.framing import Framing
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.caption_split import caption_split
from grr_coca.evaluate.checkpoint_metrics import measure_checkpoint
from grr_coca.evaluate.intervals import Measure
from grr_coca.infer.export.write import manifest_facts, write_graphs
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.model.checkpoint import Checkpoint, from_pretrained, write_files
from grr_coca.model.losses import LossWeights
from grr_coca.model.shipped_models import FOLDER, Figure, ModelCard
from grr_coca.train.recipe import Recipe, load_recipe

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
    """Write the folder of a shipped model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="run folder")
    parser.add_argument("name", help="of the shipped model")
    parser.add_argument(
        "--average",
        nargs=2,
        metavar=("OTHER", "SHARE"),
        help="ship a mean, in which the weights of OTHER have this share",
    )
    parser.add_argument("--graphs", action="store_true", help="export the graphs of this model anew")
    parser.add_argument("--framed", action="store_true", help="frame drawings before this model sees them")
    options = parser.parse_args()
    if options.graphs + options.framed + (options.run is not None) != 1:
        parser.error("give RUN NAME, --graphs NAME or --framed NAME")
    if options.graphs:
        export_again(FOLDER / options.name)
        return
    if options.framed:
        checkpoint = from_pretrained(FOLDER / options.name)
        checkpoint = replace(checkpoint, preprocess=replace(checkpoint.preprocess, framing=Framing()))
        card = from_dict(ModelCard, read_json(FOLDER / options.name / "card.json"))
        ship(checkpoint, load_recipe(ROOT / card.recipe), options.name)
        return
    checkpoint = from_pretrained(options.run)
    if options.average is not None:
        other, share = options.average
        checkpoint = average(checkpoint, from_pretrained(Path(other)), float(share))
    ship(in_half_precision(checkpoint), load_recipe(options.run / "recipe.yaml"), options.name)


def ship(checkpoint: Checkpoint, recipe: Recipe, name: str) -> None:
    """Measure a checkpoint in half precision, and write its folder and its card.

    Args:
        checkpoint: what ships.
        recipe: names its splits.
        name: of the shipped model.
    """
    text = yaml.safe_load((ROOT / "scripts" / "cards" / f"{name}.yaml").read_text(encoding="utf-8"))
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
    with whole_folder(FOLDER / name, facts) as folder:
        write_files(checkpoint, weights, folder)
        write_graphs(checkpoint, folder)
        facts |= manifest_facts(checkpoint, folder, "fp32")
        (folder / "card.json").write_text(json.dumps(to_dict(card), indent=1) + "\n", encoding="utf-8")
        (folder / "card.md").write_text(card_page(card, text), encoding="utf-8")
    if "confidence" in text:
        from fit_confidence import fit_and_measure  # late: beside this script, for the models whose card asks for it

        fit_and_measure(FOLDER / name, text)
    print(f"{FOLDER / name}: {sum(path.stat().st_size for path in (FOLDER / name).iterdir()):,} bytes")


def export_again(folder: Path) -> None:
    """Replace the graphs of a model that ships. Its weights stay, and so does its fingerprint."""
    checkpoint = from_pretrained(folder)
    with whole_folder(folder, manifest_facts(checkpoint, folder, "fp32")) as partial:
        for name in listed_files(folder):
            shutil.copyfile(folder / name, partial / name)
        write_graphs(checkpoint, partial)


def average(checkpoint: Checkpoint, other: Checkpoint, share: float) -> Checkpoint:
    """The checkpoint with a mean of both weights, in which those of the other have a share (arXiv 2203.05482)."""
    others = other.model.state_dict()
    with torch.no_grad():
        for name, parameter in checkpoint.model.named_parameters():
            parameter.lerp_(others[name], share)
    return checkpoint


def in_half_precision(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its weights rounded to fp16, which is what ships."""
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
            f"{card.summary} {card.preset}, {card.parameters:,} parameters in half precision.",
            "",
            "```python",
            "import grr_coca",
            "",
            f'model = grr_coca.load("{card.name}")',
            'model.caption("drawing.png")',
            "```",
            "",
            "## Figures",
            "",
            "With 95 % intervals, bootstraps over the images of a split (one model, so they do not tell how much",
            "training again would change). R@K, text to image: how often an image is among the first K that its",
            "caption finds in all of the split.",
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
            f"trains {card.steps:,} steps by `{card.recipe}` and writes this folder.",
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
    """A share with its interval."""
    if figure.low == figure.high == figure.value:  # chance is known exactly
        return f"{100 * figure.value:.2f} %"
    return f"{100 * figure.value:.1f} % ({100 * figure.low:.1f} to {100 * figure.high:.1f})"


def number(figure: Figure) -> str:
    """A number with its interval."""
    return f"{figure.value:.3g} ({figure.low:.3g} to {figure.high:.3g})"


def search_table(searches: dict[str, dict[str, Figure]]) -> list[str]:
    """A line for each kind of search, if the model is measured on any."""
    if not searches:
        return []
    names = list(next(iter(searches.values())))
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for title, found in searches.items():
        figures = [f"{f.value:.3f} ({f.low:.3f} to {f.high:.3f})" for f in found.values()]
        lines.append(f"| {title} | {' | '.join(figures)} |")
    return [*lines, ""]


def _path(path: str) -> str:
    """A path of a card: of the repository, or in the user's cache."""
    return path if path.startswith(CACHE) else str(ROOT / path)


SECTIONS = {
    "training": "Training",
    "cost": "Cost",
    "uses": "What it can do, and what it cannot",
    "licences": "Data and licences",
}


if __name__ == "__main__":
    sys.exit(exit_code(main))
