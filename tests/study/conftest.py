"""A whole study, small enough for a test."""

from dataclasses import replace

import pytest
import yaml
from support import finetuning, real_pairs, tiny_recipe, write_shard

from grr_coca.train.recipe import save_recipe

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
def write_file(write_recipes, tmp_path):
    """Lay out a plan of two arms; returns its path."""

    def write(name: str, plan: dict[str, object]):
        write_recipes()
        shared = {
            "baseline": "baseline_coca",
            "pretrain": "pictograms.yaml",
            "finetune": [f"{domain}.yaml" for domain in DOMAINS],
            "showcase": SHOWCASE,
        }
        (tmp_path / name).write_text(yaml.safe_dump(shared | plan))
        return tmp_path / name

    return write


@pytest.fixture
def write_study(write_file):
    """Lay out a study; returns the path of its plan."""

    def write(**changes):
        plan = {
            "arms": ["baseline_coca", "grr_coca"],
            "seeds": [0, 1],
            "endpoints": {"primary": ["pretraining/coca_loss", "finetuning/coca_loss"]},
            "precision": "fp32",
            "muon_precision": "fp32",
        }
        return write_file("study.yaml", plan | changes)

    return write


@pytest.fixture
def write_plan(write_file):
    """Lay out a demo; returns the path of its plan."""

    def write(**changes):
        plan = {
            "arms": ["grr_coca", "baseline_coca"],
            "seeds": [0],
            "endpoints": {"primary": ["pretraining/coca_loss"]},
            "queries": ["cat", "red heart"],
            "without": ["flag", "arrow"],
            "num_captions": 6,
            "num_hits": 4,
        }
        return write_file("plan.yaml", plan | changes)

    return write
