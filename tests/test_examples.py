"""`examples/train.py` trains as the trainer does, and leaves a checkpoint that all commands read."""

import runpy
import sys
from pathlib import Path

import pytest
from support import ALONE, real_pairs, write_shard

import grr_coca
from grr_coca.data.sources.open import open_source
from grr_coca.train.recipe import (
    DataRecipe,
    EvaluationRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Recipe,
    ScheduleRecipe,
    TokenizerRecipe,
)
from grr_coca.train.setup import new_checkpoint, training_batches, training_sources
from grr_coca.train.step import build_trainer, count_tokens

EXAMPLE = Path(__file__).parents[1] / "examples" / "train.py"
STEPS = 5


@pytest.fixture
def example(monkeypatch):
    """The example's functions. Its warm-up is cut so that five steps see the cosine too, and its batches are small."""
    functions = runpy.run_path(str(EXAMPLE))
    for name, value in (("WARMUP_STEPS", 2), ("BATCH_SIZE", 6), ("VOCAB_SIZE", 320)):
        monkeypatch.setitem(functions["train"].__globals__, name, value)
    return functions


def test_losses_equal_those_of_the_trainer(example, tmp_path):
    shard = write_shard(tmp_path / "pairs.tar", real_pairs(24))
    pairs = open_source(str(shard))
    checkpoint = example["make_model"](pairs)
    batches = example["make_batches"](pairs, checkpoint, STEPS)
    found = list(example["train"](checkpoint.model, batches, STEPS))

    recipe = Recipe(
        data=DataRecipe(train=str(shard), val=str(shard), batch_size=6, num_workers=0),
        schedule=ScheduleRecipe(steps=STEPS, warmup_steps=2),
        model=ModelRecipe("grr_coca", "tiny"),
        tokenizer=TokenizerRecipe("bpe", 320),
        optimizer=OptimizerRecipe(name="adamw"),
        evaluation=EvaluationRecipe(batch_size=6),
        precision="fp32",
    )
    start = new_checkpoint(recipe, ALONE)
    source, _ = training_sources(recipe)
    trainer = build_trainer(recipe, start, ALONE)
    expected = [
        trainer.step(batches, count_tokens(batches), step)["coca"]
        for step, batches in enumerate(training_batches(recipe, start, source, ALONE))
    ]
    assert found == pytest.approx(expected, rel=1e-6)
    assert found[-1] < found[0]


def test_its_checkpoint_is_read_by_all_commands(example, tmp_path, monkeypatch, capsys):
    shard = write_shard(tmp_path / "pairs.tar", real_pairs(12))
    monkeypatch.setattr(sys, "argv", ["train.py", str(shard), str(tmp_path / "model"), "--steps", "2"])
    example["main"]()
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "model")
    assert isinstance(grr_coca.load(tmp_path / "model").caption(EXAMPLE.parents[1] / "docs/drawings/guitar.webp"), str)
