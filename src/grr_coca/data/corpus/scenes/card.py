"""The two cards of the corpus: `card.json` for programs, `card.md` for people."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from grr_coca.data.corpus.scenes.scene import COLOURS, RELATIONS, SHAPES, Scene

ABOUT = (
    "Drawings of two shapes on white, 64 × 64 pixels, with captions that say where one stands from the other: "
    '"a blue square above and left of a red circle". Sizes, distances and the place of both in the picture are random. '
    "Made to see whether a model knows where things stand: nothing else tells the scenes of the same two things apart."
)

SPLIT_RULE = (
    "No two things are together in more than one split, so no caption and no picture is either. The thing that comes "
    "first in the alphabet is named first: a scene has one caption. `val` and `test` have one picture of each scene."
)

BATCH = 128
"""Pairs of a batch in which contrastive losses are measured, as `studies/position` does."""


def write_scene_cards(folder: Path, splits: Mapping[str, Mapping], scenes: Mapping[str, Sequence[Scene]]) -> None:
    """Write both cards.

    Args:
        folder: the corpus.
        splits: count and checksums of each split's shards.
        scenes: those of each split.
    """
    without = without_positions(scenes["test"])
    card = {"name": "scenes", "description": ABOUT, "splits": splits, "test_without_positions": without}
    (folder / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "card.md").write_text(_page(splits, scenes, without), encoding="utf-8")


def without_positions(scenes: Sequence[Scene]) -> dict[str, float]:
    """What a model can reach on a split at best if it knows the things of every picture and not where they stand.

    Returns:
        `captions`: how many there are; `differ_only_in_position`: how many of them have another one that names the same
        things; `chance_R@1`, `best_R@1`; `least_nats_a_caption`; `least_contrastive_loss` in random batches of
        `contrastive_batch` pairs. All scenes of the same things look alike to such a model, so that it has to guess.
    """
    groups = Counter(scene.things for scene in scenes)
    guesses = [math.log(groups[scene.things]) for scene in scenes]
    batch = min(BATCH, len(scenes))
    losses = [_guess_in_batch(groups[scene.things] - 1, len(scenes) - 1, batch - 1) for scene in scenes]
    return {
        "captions": len(scenes),
        "differ_only_in_position": sum(groups[scene.things] > 1 for scene in scenes),
        "chance_R@1": round(1 / len(scenes), 6),
        "best_R@1": round(len(groups) / len(scenes), 6),
        "least_nats_a_caption": round(sum(guesses) / len(scenes), 4),
        "contrastive_batch": batch,
        "least_contrastive_loss": round(sum(losses) / len(scenes), 4),
    }


def _guess_in_batch(alike: int, others: int, drawn: int) -> float:
    """Mean logarithm of how many one has to guess among: oneself, and those of `alike` that are drawn with others.

    `drawn` of all `others` are drawn, so that their number is hypergeometric.
    """
    ways = math.comb(others, drawn)
    return sum(
        math.comb(alike, found) * math.comb(others - alike, drawn - found) / ways * math.log(1 + found)
        for found in range(min(alike, drawn) + 1)
    )


def _page(splits: Mapping[str, Mapping], scenes: Mapping[str, Sequence[Scene]], without: Mapping[str, float]) -> str:
    batch = without["contrastive_batch"]
    lines = [
        "# Scenes",
        "",
        ABOUT,
        "",
        "## Splits",
        "",
        SPLIT_RULE,
        "",
        "| split | pictures | scenes |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {split['count']:,} | {len(scenes[name]):,} |" for name, split in splits.items()]
    lines += ["", f"{len(COLOURS)} colours × {len(SHAPES)} shapes; where the first stands: {', '.join(RELATIONS)}."]
    lines += ["", "## Without positions", ""]
    lines += [
        f"{without['differ_only_in_position']:,} of the {without['captions']:,} captions of `test` differ from another "
        "one there in nothing but position. Worked out for a model that knows both things of every picture, but not "
        "where they stand:",
        "",
        "| on `test` | chance | at best without positions |",
        "|---|---|---|",
        f"| R@1 | {100 * without['chance_R@1']:.2f} % | {100 * without['best_R@1']:.1f} % |",
        f"| nats a caption | – | {without['least_nats_a_caption']:.3f} |",
        f"| contrastive loss, batches of {batch} | {math.log(batch):.3f} | {without['least_contrastive_loss']:.3f} |",
        "",
        "## Ten captions",
        "",
        *(f"- {scene.caption}" for scene in scenes["train"][:: len(scenes["train"]) // 10 + 1][:10]),
        "",
        "## Known faults",
        "",
        "- Two shapes on white are far from photographs. Whoever tells them apart need not tell anything else apart.",
        "- The place of one thing hints at that of the other: nothing is right of a thing at the right edge.",
        "",
        "Drawn by `src/grr_coca/data/corpus/scenes`; nothing in it is anybody else's work.",
        "",
    ]
    return "\n".join(lines)
