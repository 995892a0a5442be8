"""What happens on one rank, and what all of them make of it."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import drivers
import pytest
import torch
from jobs import STEPS, Job, differing_files, small_recipe
from processes import cli, launch
from safetensors.torch import load_file
from support import disk_of, pretrain
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from grr_coca.common.files import verify_folder
from grr_coca.model.presets import SIZES
from grr_coca.train import logs as progress
from grr_coca.train.logs import SPIKE_MEMORY, Progress, read_metrics
from grr_coca.train.recipe import CheckpointRecipe, FailureLimits, ScheduleRecipe, save_recipe
from grr_coca.train.step import Trainer


@pytest.fixture(scope="module")
def make_job(tmp_path_factory):
    """A job of two ranks, with changes to its recipe."""
    data = tmp_path_factory.mktemp("data")

    def make(ranks=2, **changes):
        return Job(small_recipe(data, **changes), tmp_path_factory.mktemp("job"), ranks)

    return make


@pytest.fixture(scope="module")
def undisturbed(make_job):
    """What a run on two ranks leaves that nothing happened to."""
    return make_job().finish()


# --- Signals


@pytest.mark.ci
def test_signal_to_one_rank_stops_both_after_the_same_step(make_job, undisturbed):
    job = make_job(checkpoints=CheckpointRecipe(interval=100))
    launched = job.start(partial(drivers.pause, 4, job.folder))
    launched.wait_until((job.folder / "paused").exists)
    launched.signal(signal.SIGTERM, rank=1)
    (job.folder / "go").touch()
    began = time.monotonic()
    assert launched.wait(30) == [143, 143]
    print(f"both ranks left {time.monotonic() - began:.1f} s after the signal")
    result = f"SIGTERM: stopped after step 6 of {STEPS}, and saved; continue with --resume\n"
    assert [launched.text(rank) for rank in range(2)] == [result, result]
    assert job.steps() == [6]
    assert differing_files(job.finish(), undisturbed) == []


# --- What all ranks refuse


@pytest.mark.ci
def test_both_ranks_reject_an_indivisible_batch_first(make_job):
    job = make_job()
    uneven = replace(job.recipe, data=replace(job.recipe.data, batch_size=7))
    launched = job.start(partial(drivers.record_keys, job.folder), uneven)
    assert launched.wait(60) == [2, 2]
    for rank in range(2):
        refused = r"error: data: batch_size 7 cannot be shared evenly among 2 processes; use 6 or 8\n"
        assert re.fullmatch(refused, launched.text(rank))
    assert not job.out.exists()


# --- Numbers that are none


@pytest.mark.ci
@pytest.mark.parametrize(
    ("kind", "gradient"), [("ddp", 6), pytest.param("fsdp", None, marks=pytest.mark.slow)], ids=["ddp", "fsdp"]
)
def test_nan_on_one_rank_changes_no_weights(make_job, kind, gradient):
    spoiled = {1, 3, *([] if gradient is None else [gradient])}
    job = make_job(
        parallelism=kind,
        schedule=ScheduleRecipe(8, 1, final_lr_ratio=0.1),
        checkpoints=CheckpointRecipe(interval=1, keep_last=99),
    )
    drive = partial(drivers.spoil, sample=1, loss=3, gradient=gradient)
    record = partial(drivers.record_keys, job.folder)
    launched = job.start(partial(drivers.together, drive, record))
    launched.finish()
    assert "FSDP" not in launched.text(), "it warns of an output that is a view"

    states = {}
    for step in job.steps():
        folder = job.out / "checkpoints" / f"step-{step:09d}"
        states[step] = {path.name: load_file(path) for path in folder.rglob("*.safetensors")}
        assert all(tensor.isfinite().all() for tensors in states[step].values() for tensor in tensors.values())
    for step in range(2, 9):  # the step that was counted from 0 as `step - 1`
        first, second = states[step - 1]["weights.safetensors"], states[step]["weights.safetensors"]
        assert all(torch.equal(first[name], second[name]) for name in first) == (step - 1 in spoiled)
        if step - 1 in spoiled:
            pairs = [(states[step - 1][name], states[step][name]) for name in states[step]]
            assert all(torch.equal(a[key], b[key]) for a, b in pairs for key in a), "optimizer and average too"

    events = read_metrics(job.out, "events")
    assert [(row["step"], row["event"]) for row in events] == [(step + 1, "not finite") for step in sorted(spoiled)]
    assert [row["keys"] for row in events] == [keys for step, keys in global_order(job) if step in spoiled]
    assert all(set(row) > {"contrastive", "captioning", "grad_norm"} for row in events)
    assert read_metrics(job.out, "train")[-1]["skipped"] == len(spoiled)


@pytest.mark.ci
def test_repeated_steps_that_are_not_finite_stop_all_ranks(make_job):
    job = make_job(health=FailureLimits(max_skipped=2))
    launched = job.start(partial(drivers.spoil, sample=4, loss=5, gradient=None))
    assert launched.wait(60) == [2, 2]
    warnings = r"WARNING: step 5: skipped, .*\nWARNING: step 6: skipped, .*\n"  # to people, so by the first rank alone
    for rank, warned in enumerate([warnings, ""]):
        error = r"error: .*step 6: .* for 2 steps in a row \(health: max_skipped\).*\n"
        assert re.fullmatch(warned + error, launched.text(rank))
    assert [row["step"] for row in read_metrics(job.out, "events")] == [5, 6]


def test_spike_of_the_loss_is_seen():
    def steady(step):
        return {"coca": 4.0 + 0.01 * (step % 7)}

    counted = Progress()
    assert [counted.add(steady(step)) for step in range(SPIKE_MEMORY)] == [None] * SPIKE_MEMORY
    assert counted.add({"coca": 5.0}) == "spike"
    assert counted.add(steady(0)) is None
    assert counted.add({"coca": float("inf")}) == "not finite"


@pytest.mark.ci
def test_spike_is_reported_with_the_keys_of_its_batch(make_job, tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", drivers.WEE)
    monkeypatch.setattr(progress, "SPIKE_MEMORY", 3)
    take_step = Trainer.step

    def step(trainer, micro_batches, num_tokens, number):
        metrics = take_step(trainer, micro_batches, num_tokens, number)
        return {**metrics, "coca": 1e6} if number == 4 else metrics

    monkeypatch.setattr(Trainer, "step", step)
    pretrain(make_job().recipe, tmp_path / "run")
    (event,) = read_metrics(tmp_path / "run", "events")
    assert (event["step"], event["event"], event["coca"], len(event["keys"])) == (5, "spike", 1e6, 8)


# --- A rank that dies, a disk that is full


def torchrun(folder: Path, *arguments: object) -> None:
    """What torchrun does with two ranks and one restart; its ranks are forked, and need to import nothing."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=1,
        monitor_interval=0.1,
        start_method="fork",
    )
    elastic_launch(config, rank_that_dies_once)(folder, *arguments)


def rank_that_dies_once(folder: Path, *arguments: object) -> None:
    code = cli(*arguments, driver=partial(drivers.die_once, 16, folder))
    assert code == 0


def torchrun_of_the_shell(folder: Path, *arguments: object) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*command, "--max-restarts", "1", drivers.__file__, str(folder), *map(str, arguments)], check=True)


@pytest.mark.parametrize(
    "run",
    [pytest.param(torchrun, marks=pytest.mark.ci), pytest.param(torchrun_of_the_shell, marks=pytest.mark.slow)],
)
def test_torchrun_restarts_and_resumes_after_a_dead_rank(make_job, undisturbed, run):
    job = make_job()
    save_recipe(job.recipe, job.folder / "recipe.yaml")
    launch(job.folder, run, job.folder, "pretrain", job.folder / "recipe.yaml", "--out", job.out, "--resume").finish()
    assert differing_files(job.state(), undisturbed) == []
    died = float((job.folder / "died").read_text())
    restarted = max(float((job.folder / f"began-1-{rank}").read_text()) for rank in range(2))
    print(f"{restarted - died:.1f} s from the death of a rank to the start of the next two")
    assert 0 < restarted - died < 60


@pytest.mark.ci
def test_disk_that_is_full_is_a_clear_error_on_all_ranks(make_job, undisturbed, tmp_path):
    size = sum(map(len, undisturbed.values()))
    with disk_of(int(2.5 * size), tmp_path / "disk") as disk:
        job = make_job(checkpoints=CheckpointRecipe(interval=1))
        job.out = disk / "run"
        began = time.monotonic()
        launched = job.start()
        assert launched.wait(60) == [2, 2]
        print(f"both ranks left {time.monotonic() - began:.1f} s after the start")
        result = re.compile(
            r"error: \S+step-\d+: the checkpoint cannot be written \(.*No space left on device.*\)(; .*)?\n"
        )
        assert all(result.fullmatch(launched.text(rank)) for rank in range(2)), launched.text()
        for step in job.steps():
            verify_folder(job.out / "checkpoints" / f"step-{step:09d}")
        assert len(job.steps()) == 2


# --- The order of the data


def global_order(job):
    """The keys of each step that was done, in the order of ranks; of a step that was done again, the last time."""
    by_step = {}
    ranks = sorted(job.folder.glob("keys-*"))
    for path in ranks:
        for row in map(json.loads, path.read_text().splitlines()):
            by_step.setdefault(row["step"], {})[path.name] = row["keys"]
    return [(step, [key for name in sorted(parts) for key in parts[name]]) for step, parts in sorted(by_step.items())]


def forget_keys(job):
    for path in job.folder.glob("keys-*"):
        path.unlink()


@pytest.mark.ci
def test_order_does_not_depend_on_workers_and_ranks(make_job):
    alone = make_job(ranks=1)
    alone.start(partial(drivers.record_keys, alone.folder)).finish()
    expected = global_order(alone)
    keys = [key for _, batch in expected for key in batch]
    assert len(keys) == 8 * STEPS
    assert len(set(keys[:40])) == len(set(keys[40:80])) == 40, "each epoch has every pair once"

    job = make_job()
    seen = []
    for ranks, workers, parallelism, last in ((1, 0, "ddp", 4), (2, 2, "fsdp", 8), (1, 4, "ddp", None)):
        data = replace(job.recipe.data, num_workers=workers)
        recipe = replace(job.recipe, data=data, parallelism=parallelism)
        record = partial(drivers.record_keys, job.folder)
        stop = partial(drivers.stop_after, last)
        launched = job.start(partial(drivers.together, record, stop), recipe, ranks)
        if launched.wait_or_crash():  # it goes on from the checkpoint before, and takes these pairs again
            forget_keys(job)
            launched = job.start(partial(drivers.together, record, stop), recipe, ranks)
        assert launched.wait() == [0 if last is None else 143] * ranks, launched.text()
        seen += global_order(job)
        forget_keys(job)
    assert seen == expected
