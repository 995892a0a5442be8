"""The study for a GPU, tried dry on the CPU: with a smaller model."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from grr_coca.cli import main
from grr_coca.model.anatomy import flops_of_pairs, num_parameters
from grr_coca.study.plan import Plan, read_plan
from grr_coca.study.running import pace
from grr_coca.study.stages import check_recipes, require_precisions
from grr_coca.train.forecast import TRAINING_PASSES
from grr_coca.train.recipe import load_recipe

GPU = Path(__file__).parents[2] / "studies" / "gpu"


@pytest.fixture
def small(tmp_path) -> Path:
    """The plan with a model for a CPU, and as little of it as can be. Without bf16, a CPU is very slow in it."""
    recipe = yaml.safe_load((GPU / "pictograms.yaml").read_text())
    recipe["model"] |= {"size": "tiny", "image_size": 16}
    recipe["precision"] = "fp32"
    recipe["schedule"] = {"steps": 2, "warmup_steps": 1}
    data = recipe["data"] | {"batch_size": 8, "num_workers": 0}
    tests = {name: str((GPU / path).resolve()) for name, path in data["test"].items()}
    recipe["data"] = data | {name: str((GPU / data[name]).resolve()) for name in ("train", "val")} | {"test": tests}
    (tmp_path / "pictograms.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "plan.yaml").write_text((GPU / "plan.yaml").read_text())
    return tmp_path / "plan.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "runs"),
    [([], {"baseline_coca": 6, "grr_coca": 6}), (["--only", "grr_coca"], {"grr_coca": 6})],
    ids=str,
)
def test_the_plan_is_tried_dry(small, capsys, monkeypatch, flags, runs):
    monkeypatch.setattr(pace, "SECONDS", 0.1)
    assert main(["study", "run", str(small), "--dry-run", *flags]) == 0
    found = dict(re.findall(r"^([\w.]+) +0 +(\d+) +\d", capsys.readouterr().out, re.MULTILINE))
    assert {arm: int(count) for arm, count in found.items()} == runs


def test_the_plan_is_whole_as_it_comes():
    plan = read_plan(GPU / "plan.yaml", Plan)
    check_recipes(plan, GPU / "plan.yaml")
    require_precisions(plan, GPU / "plan.yaml")


def test_the_header_says_what_counting_finds():
    recipe, header = load_recipe(GPU / "pictograms.yaml"), (GPU / "plan.yaml").read_text()
    config = recipe.model.config(recipe.tokenizer.vocab_size)
    assert config.image_encoder.num_patches == 256
    flops = flops_of_pairs(config, torch.full((16,), 10), torch.arange(128)) / 16
    (said,) = re.findall(r"\((\d\.\d) GFLOP a pair", header)
    assert float(said) == pytest.approx(flops / 1e9, abs=0.05)
    assert f"models of {num_parameters(config) / 1e6:.0f} million" in header
    run = TRAINING_PASSES * recipe.data.batch_size * recipe.schedule.steps * float(said) * 1e9
    assert f" {run / 1e15:.0f} PFLOP a run" in header
    for share, minutes in ((0.25, 17), (0.13, 26)):
        assert f"{share:.0%}".replace("%", " %") in header
        assert f"{minutes} minutes" in header
        assert 12 * (run / (share * 989e12) + 35) / 60 == pytest.approx(minutes, abs=0.5)
