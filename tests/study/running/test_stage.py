"""A stage is trained and measured once, and its row says what it cost."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support import ALONE, CPU, real_pairs, tiny_recipe, warnings_of, with_caption, write_shard
from synthetic_study import PRETRAINING

from grr_coca.data.sources.open import open_source
from grr_coca.model.anatomy import flops_per_pair
from grr_coca.train.setup import new_checkpoint
from grr_coca.train.step import Trainer
from grr_coca_study.running import stage as stage_module
from grr_coca_study.running.stage import caption_lengths, run_flops, run_stage, step_flops

ONE_RUN = {"seeds": [0], "finetune": [], "endpoints": PRETRAINING}


@pytest.mark.ci
def test_run_whose_steps_were_all_skipped_has_a_row(agenda_of, monkeypatch):
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda *arguments: step(*arguments) | {"contrastive": math.nan})
    (task,) = agenda_of("grr_coca", **ONE_RUN).open_tasks()
    row = run_stage(task, CPU, lambda _: None)
    assert [(point.step, point.train) for point in row.curve] == [(6, {})]


@pytest.mark.ci
def test_run_without_a_finite_loss_on_val_has_diverged(agenda_of, monkeypatch):
    def broken(recipe, start, folder, *rest):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").touch()
        for parameter in start.model.parameters():
            parameter.data.fill_(math.nan)
        return start

    monkeypatch.setattr(stage_module, "train", broken)
    agenda = agenda_of("grr_coca", seeds=[0], finetune=["health.yaml"], endpoints=PRETRAINING)
    (task,) = agenda.open_tasks()
    with warnings_of("grr_coca_study.running.stage") as warned:
        row = run_stage(task, CPU, lambda _: None)
    assert (row.kind, row.metrics, row.values) == ("diverged", {}, {})
    assert warned == ["grr_coca, pictograms, seed 0 diverged: its loss on val is not finite"]
    agenda.add(row)
    assert agenda.open_tasks() == [], "nothing is fine-tuned from it"


@pytest.mark.ci
def test_run_starts_again_and_excludes_bad_images(agenda_of, tmp_path):
    (task,) = agenda_of("grr_coca", **ONE_RUN).open_tasks()
    torn = task.folder / "checkpoints" / "step-000000003"
    torn.mkdir(parents=True)
    valid = real_pairs(16)
    val = write_shard(tmp_path / "val.tar", [*valid, replace(valid[0], key="broken", image=b"no image")])
    task = replace(task, recipe=replace(task.recipe, data=replace(task.recipe.data, val=str(val))))
    with warnings_of("grr_coca_study.running.stage") as warned, warnings_of("grr_coca.train.setup"):
        row = run_stage(task, CPU, lambda _: None)
    assert (row.steps, row.metrics["val"]["num_pairs"]) == (6, 16)
    assert "no checkpoint can be read" in warned[0]
    assert not torn.exists()


def test_run_time_is_recorded_and_continued(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(stage_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    stage_module._Stopwatch(tmp_path / "gone").note()
    assert list(tmp_path.iterdir()) == []
    watch = stage_module._Stopwatch(tmp_path)
    for seconds, record in ((59.0, None), (2.0, 61.0), (30.0, 61.0), (31.0, 122.0)):
        now[0] += seconds
        watch.tick()
        path = tmp_path / "seconds.json"
        assert (json.loads(path.read_text())["seconds"] if path.exists() else None) == record
    now[0] += 1000.0  # until the next process begins
    again = stage_module._Stopwatch(tmp_path)
    now[0] += 8.0
    assert again.seconds == 130.0


# --- Cost


def test_lengths_of_a_large_split_are_sampled(tmp_path, monkeypatch):
    pairs = [with_caption(pair, "cat " * count) for pair, count in zip(real_pairs(4), (1, 2, 9, 30), strict=True)]
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", pairs))
    start, source = new_checkpoint(recipe, ALONE), open_source(recipe.data.train)
    context = start.config.text_decoder.context_length
    lengths = [min(context, len(start.tokenizer.encode_row(source.caption(i), 1000))) for i in range(4)]
    assert context == lengths[3] > lengths[1] > lengths[0] >= 4, "the words, and three tokens more"
    assert caption_lengths(start, source).tolist() == lengths
    monkeypatch.setattr(stage_module, "_MAX_CAPTIONS", 2)
    assert caption_lengths(start, source).tolist() == [lengths[0], lengths[2]]


@pytest.mark.ci
def test_run_costs_three_passes_over_each_pair_of_each_step(tmp_path):
    pairs = [with_caption(pair, "cat") for pair in real_pairs(16)]
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", pairs), steps=5)
    recipe = replace(recipe, model=replace(recipe.model, patch_size=4))
    start = new_checkpoint(recipe, ALONE)
    source = open_source(recipe.data.train)
    lengths = caption_lengths(start, source)
    by_hand = 5 * recipe.data.batch_size * 3 * flops_per_pair(start.config, int(lengths[0]))
    assert run_flops(recipe, start, source) == by_hand
    half = replace(recipe, data=replace(recipe.data, patch_dropout=0.5))
    assert step_flops(half, start.config, lengths) < by_hand / 5
    short, long, both = (step_flops(recipe, start.config, torch.tensor(each * 16)) for each in ([5], [15], [5, 15]))
    assert both == pytest.approx((short + long) / 2, rel=0.02)
