"""A whole study, small enough for a test."""

from dataclasses import replace

import pytest
import yaml

from grr_coca.train.recipe import save_recipe
from support import finetuning, real_pairs, tiny_recipe, write_shard

DOMAINS = ("health", "glyphs")
SHOWCASE = "test_style"


@pytest.fixture
def write_recipes(tmp_path):
    """Lay out shards and recipes of few steps, pretraining and two fine-tunings."""

    def shard(corpus: str, split: str, count: int):
        return str(write_shard(tmp_path / "data" / f"{corpus}-{split}.tar", real_pairs(count, corpus, split)))

    def recipe_of(corpus: str, tests: tuple[str, ...], steps: int):
        recipe = tiny_recipe(shard(corpus, "train", 24), steps)
        return replace(recipe, data=replace(recipe.data, test={name: shard(corpus, name, 16) for name in tests}))

    def write():
        save_recipe(recipe_of("pictograms", ("test", SHOWCASE), 6), tmp_path / "pictograms.yaml")
        for domain in DOMAINS:
            save_recipe(finetuning(recipe_of(domain, ("test",), 3)), tmp_path / f"{domain}.yaml")

    return write


@pytest.fixture
def write_study(write_recipes, tmp_path):
    """Lay out a study of two arms; returns the path of its plan."""

    def write(**changes):
        write_recipes()
        plan = {
            "arms": ["baseline_coca", "grr_coca"],
            "baseline": "baseline_coca",
            "seeds": [0, 1],
            "pretrain": "pictograms.yaml",
            "finetune": [f"{domain}.yaml" for domain in DOMAINS],
            "endpoints": {"primary": ["pretraining/coca_loss", "finetuning/coca_loss"]},
            "showcase": SHOWCASE,
            "precision": "fp32",
            "muon_precision": "fp32",
            **changes,
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(plan))
        return path

    return write


@pytest.fixture
def write_plan(write_recipes, tmp_path):
    """Lay out a demo; returns the path of its plan."""

    def write(**changes):
        write_recipes()
        plan = {
            "arms": ["grr_coca", "baseline_coca"],
            "baseline": "baseline_coca",
            "seeds": [0],
            "pretrain": "pictograms.yaml",
            "finetune": [f"{domain}.yaml" for domain in DOMAINS],
            "endpoints": {"primary": ["pretraining/coca_loss"]},
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
