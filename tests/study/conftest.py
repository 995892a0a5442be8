"""A whole comparison, small enough for a test."""

from dataclasses import replace

import pytest
import yaml

from grr_coca.train.recipe import save_recipe
from support import finetuning, real_pairs, tiny_recipe, write_shard

DOMAINS = ("health", "glyphs")
SHOWCASE = "test_style"


@pytest.fixture
def write_plan(tmp_path):
    """Lay out shards, recipes and a plan of few steps; returns the plan's path."""

    def shard(corpus: str, split: str, count: int):
        return str(write_shard(tmp_path / "data" / f"{corpus}-{split}.tar", real_pairs(count, corpus, split)))

    def recipe_of(corpus: str, tests: tuple[str, ...], steps: int):
        recipe = tiny_recipe(shard(corpus, "train", 24), steps)
        return replace(recipe, data=replace(recipe.data, test={name: shard(corpus, name, 16) for name in tests}))

    def write(**changes):
        save_recipe(recipe_of("pictograms", ("test", SHOWCASE), 6), tmp_path / "pictograms.yaml")
        for domain in DOMAINS:
            save_recipe(finetuning(recipe_of(domain, ("test",), 3)), tmp_path / f"{domain}.yaml")
        plan = {
            "presets": ["grr_coca", "baseline_coca"],
            "pretrain": "pictograms.yaml",
            "finetune": [f"{domain}.yaml" for domain in DOMAINS],
            "showcase": SHOWCASE,
            "queries": ["cat", "red heart"],
            "without": ["flag", "arrow"],
            "num_captions": 6,
            "num_hits": 4,
            **changes,
        }
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump(plan))
        return path

    return write
