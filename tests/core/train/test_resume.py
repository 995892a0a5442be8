"""A run that was ended, however and whenever, goes on as if it had not been: the same bytes at its end."""

import os
import random
import shutil
import signal
import time
from dataclasses import replace
from functools import partial

import drivers
import pytest
import torch
import torch.nn.functional as F
from jobs import INTERVAL, STEPS, Job, differing_files, small_recipe
from safetensors.torch import load
from support import (
    ALONE,
    Run,
    finished_run,
    pretrain,
    real_pairs,
    silent,
    tiny_recipe,
    warnings_of,
    with_caption,
    with_key,
    write_shard,
)

from grr_coca.common.errors import UserError
from grr_coca.common.files import MANIFEST
from grr_coca.common.ranks import StopSignals
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.train.loop import train
from grr_coca.train.recipe import CheckpointRecipe, TeacherRecipe
from grr_coca.train.run_checkpoints import resume_point
from grr_coca.train.setup import training_sources
from grr_coca_icons.teacher import training_captions, write_teacher

ONE, DDP, FSDP = (1, "ddp"), (2, "ddp"), (2, "fsdp")


@pytest.fixture(scope="module")
def make_job(tmp_path_factory):
    """A job of so many ranks and a parallelism, with changes to its recipe."""
    data = tmp_path_factory.mktemp("data")

    def make(kind, **changes):
        ranks, parallelism = kind
        return Job(small_recipe(data, parallelism=parallelism, **changes), tmp_path_factory.mktemp("job"), ranks)

    return make


@pytest.fixture(scope="module")
def undisturbed(make_job):
    """What a run leaves that nothing happened to, how many moments it has, and its job; by kind, made when first asked
    for."""
    made = {}

    def get(kind):
        if kind not in made:
            job = make_job(kind)
            job.start(partial(drivers.at_moment, 0, 0.0, job.folder / "moments")).finish()
            made[kind] = job.state(), int((job.folder / "moments").read_text()), job
        return made[kind]

    return get


def killed_at_random(job, moments, rng):
    """Start or go on, and end all ranks at a random moment, if they have not come to their end by then."""
    moment, seconds = rng.randint(1, moments), rng.uniform(0, 0.02)
    launched = job.start(partial(drivers.at_moment, moment, seconds, job.folder / "moments"))
    launched.processes[0].join(120)
    launched.kill()
    return launched.processes[0].exitcode


# --- Killed


@pytest.mark.ci
def test_repeatedly_killed_run_ends_in_the_same_bytes(make_job, undisturbed):
    whole, moments, _ = undisturbed(ONE)
    job = make_job(ONE)
    job.start(partial(drivers.die_before, "micro-batch", 2)).wait()
    assert job.steps() == [], "killed in the middle of the first step"
    job.start(partial(drivers.die_before, "micro-batch", 3 * INTERVAL + 2)).wait()
    assert job.steps() == [INTERVAL], "killed in the middle of an accumulation"
    job.start(partial(drivers.die_before, "sync", 8)).wait()
    assert list(job.out.glob("checkpoints/.step-*.partial")), "killed in the middle of a save"
    killed_at_random(job, moments // 4, random.Random(0))
    assert differing_files(job.finish(), whole) == []


def mixed(recipe, folder):
    more = write_shard(folder / "more.tar", real_pairs(50)[40:])
    return replace(recipe, data=replace(recipe.data, mix={str(more): 0.3}))


def taught(recipe, folder):
    captions = training_captions(training_sources(recipe)[0])
    rows = torch.randn(len(captions), 12, generator=torch.Generator().manual_seed(0))
    write_teacher(folder / "teacher", captions, F.normalize(rows, dim=1))
    return replace(recipe, teacher=TeacherRecipe(path=str(folder / "teacher"), words=0))


def with_siblings(recipe, folder):
    return replace(recipe, data=replace(recipe.data, siblings=0.5), losses=replace(recipe.losses, sibling_weight=0.5))


@pytest.mark.ci
@pytest.mark.parametrize("change", [mixed, taught, with_siblings])
def test_killed_run_with_extra_inputs_ends_in_the_same_bytes(make_job, tmp_path, change):
    job, other = make_job(ONE), make_job(ONE)
    for each in (job, other):
        each.recipe = change(each.recipe, tmp_path)
    job.start(partial(drivers.die_before, "micro-batch", 3 * INTERVAL + 2)).wait()
    assert job.steps() != []
    assert differing_files(job.finish(), other.finish()) == []


@pytest.mark.parametrize(
    "kind",
    [pytest.param(DDP, marks=pytest.mark.slow), pytest.param(FSDP, marks=pytest.mark.ci)],
    ids=["ddp", "fsdp"],
)
def test_two_ranks_that_are_killed_end_in_the_same_bytes(make_job, undisturbed, kind):
    job = make_job(kind)
    launched = job.start()
    launched.wait_until(lambda: job.steps() != [])
    launched.kill()
    assert job.steps()[-1] < STEPS
    assert differing_files(job.finish(), undisturbed(kind)[0]) == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "times"), [(ONE, 20), (DDP, 10), (FSDP, 10)], ids=["alone", "ddp", "fsdp"])
def test_kills_at_random_moments_keep_the_same_bytes(make_job, undisturbed, kind, times):
    rng = random.Random(1)
    whole, moments, _ = undisturbed(kind)
    equal, seen = 0, []
    for _ in range(times):
        job = make_job(kind)
        code = killed_at_random(job, moments, rng)
        seen.append((code, job.steps()[-1:], [path.name for path in job.out.glob("checkpoints/.*")]))
        equal += differing_files(job.finish(), whole) == []
    print(f"{kind}: {equal} of {times}; exit code, newest checkpoint and leftovers at each kill: {seen}")
    assert equal == times


@pytest.mark.ci
@pytest.mark.parametrize("kind", [ONE, pytest.param(FSDP, marks=pytest.mark.ci)], ids=["alone", "fsdp"])
def test_checkpoint_of_an_averaged_run_has_the_average(undisturbed, kind):
    files = undisturbed(kind)[0]
    kept, weights, average = (
        load(files[f"{name}.safetensors"]) for name in ("model", "training/weights", "training/ema")
    )
    assert all(torch.equal(kept[name], average[name]) for name in kept)
    assert len([name for name in kept if not torch.equal(kept[name], weights[name])]) > len(kept) - 3


# --- Stopped


def stopped(job, number, step, group=False):
    """Send a signal while a step is computed; the exit code and what was result."""
    for name in ("paused", "go"):
        (job.folder / name).unlink(missing_ok=True)
    launched = job.start(partial(drivers.pause, step, job.folder))
    launched.wait_until((job.folder / "paused").exists)
    pid = launched.processes[0].pid
    os.killpg(pid, number) if group else os.kill(pid, number)
    (job.folder / "go").touch()
    return launched.wait()[0], launched.text()


@pytest.mark.ci
def test_signals_save_and_exit_with_a_clear_message(make_job, undisturbed):
    job = make_job(ONE, checkpoints=CheckpointRecipe(interval=100))
    for step, number in ((2, signal.SIGTERM), (8, signal.SIGINT)):
        code, result = stopped(job, number, step)
        assert code == 128 + number
        assert result == (
            f"{number.name}: stopped after step {step + 2} of {STEPS}, and saved; continue with --resume\n"
        ), "a signal during a step, counted from 0, is heard of before the next"
        assert job.steps()[-1] == step + 2
    assert differing_files(job.finish(), undisturbed(ONE)[0]) == []


@pytest.mark.ci
def test_group_signal_does_not_stop_loader_workers(make_job, undisturbed):
    job = make_job(ONE, checkpoints=CheckpointRecipe(interval=100))
    job.recipe = replace(job.recipe, data=replace(job.recipe.data, num_workers=2))
    for step, number in ((2, signal.SIGTERM), (6, signal.SIGINT)):
        code, result = stopped(job, number, step, group=True)
        assert code == 128 + number, result
        assert job.steps()[-1] == step + 2
    assert differing_files(job.finish(), undisturbed(ONE)[0]) == []


@pytest.mark.ci
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_repeated_signal_does_not_prevent_saving(make_job, number):
    job = make_job(ONE, checkpoints=CheckpointRecipe(interval=100))
    launched = job.start(partial(drivers.pause_under_torchrun, 3, job.folder))
    launched.wait_until((job.folder / "paused").exists)
    for _ in range(2):
        launched.signal(number)
        time.sleep(0.2)
    (job.folder / "go").touch()
    assert launched.wait() == [128 + number], launched.text()
    assert job.steps() == [5]


@pytest.mark.parametrize(
    ("run_id", "number", "acts"),
    [
        (None, signal.SIGTERM, 2),
        ("mine", signal.SIGTERM, 3),
        ("mine", signal.SIGUSR1, 3),
        ("mine", signal.SIGINT, 2),
    ],
)
def test_signal_that_is_sent_again_and_again_acts_immediately(monkeypatch, run_id, number, acts):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if run_id is not None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
    heard = []
    before = signal.signal(number, lambda number, _: heard.append(number))
    try:
        with StopSignals():
            for _ in range(acts - 1):
                signal.raise_signal(number)
            assert heard == []
            signal.raise_signal(number)
            assert heard == [number]
    finally:
        signal.signal(number, before)


@pytest.mark.ci
def test_second_interrupt_acts_immediately(make_job):
    job = make_job(ONE)
    launched = job.start(partial(drivers.pause, 3, job.folder))
    launched.wait_until((job.folder / "paused").exists)
    launched.signal(signal.SIGINT)
    time.sleep(0.2)
    assert launched.processes[0].is_alive()
    launched.signal(signal.SIGINT)
    assert launched.wait(20) == [130]
    assert launched.text() == "interrupted\n"
    assert job.steps() == [INTERVAL]


# --- Resuming what, and by what


@pytest.mark.ci
def test_finished_run_is_unchanged(undisturbed):
    first, _, job = undisturbed(ONE)
    before = {path.name: path.stat().st_mtime_ns for path in job.out.glob("checkpoints/*/*")}
    assert differing_files(job.finish(), first) == []
    assert {path.name: path.stat().st_mtime_ns for path in job.out.glob("checkpoints/*/*")} == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("finished"), steps=2, num_pairs=16)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 3),
        ("losses.z_loss_weight", 1e-4),
        ("evaluation.interval", 7),
        ("checkpoints.keep_best", "coca_loss"),
        ("ema", 0.9),
        ("temperature", "refitted"),
        ("freeze", ["text_decoder"]),
        ("model.image_positions", "sine_cosine"),
        ("data.batch_size", 4),
        ("data.train", "/elsewhere.tar"),
        ("data.patch_dropout", 0.5),
    ],
)
def test_rejects_another_recipe_and_names_the_key(finished, key, value):
    with pytest.raises(UserError, match=rf"recipe\.yaml: this run has {key} "):
        resume_point(finished.folder, with_key(finished.recipe, key, value))


def test_rejects_another_rate_of_a_part(finished):
    recipe = with_key(finished.recipe, "optimizer.learning_rates", {"text_decoder": 0.0})
    with pytest.raises(UserError, match=r"has optimizer\.learning_rates\.text_decoder None, not 0\.0"):
        resume_point(finished.folder, recipe)


def go_on(run):
    return train(run.recipe, from_pretrained(run.checkpoint), run.folder, ALONE, silent, run.checkpoint)


def test_rejects_other_pairs_at_the_same_path(tmp_path):
    run = finished_run(tmp_path, steps=2, num_pairs=16)
    write_shard(run.shard, real_pairs(17))
    result = (
        rf"{run.shard}: data: train of the run: it has 17 pairs now, but had 16 when "
        rf"{run.checkpoint} was written; restore the old data, or start another run with another --out"
    )
    with pytest.raises(UserError, match=result):
        go_on(run)
    write_shard(run.shard, [with_caption(pair, "long " * 1000) for pair in real_pairs(16)])
    with pytest.raises(UserError, match=rf"{run.shard}: data: train of the run: the names or sizes of its files, or"):
        go_on(run)
    write_shard(run.shard, real_pairs(16))
    assert go_on(run).step == 2


@pytest.mark.parametrize("key", ["val", "mix"])
def test_rejects_other_validation_pairs_or_mixture_sources(tmp_path, key):
    shard = write_shard(tmp_path / "pairs.tar", real_pairs(16))
    other = write_shard(tmp_path / "other.tar", real_pairs(8, "health"))
    recipe = with_key(tiny_recipe(shard, steps=1), f"data.{key}", str(other) if key == "val" else {str(other): 0.5})
    pretrain(recipe, tmp_path / "run")
    write_shard(other, real_pairs(9, "health"))
    name = "val" if key == "val" else "mix 1"
    with pytest.raises(UserError, match=rf"{other}: data: {name} of the run: it has 9 pairs now, but had 8"):
        go_on(Run(tmp_path / "run", recipe, shard))


def test_resumes_a_checkpoint_without_a_digest_of_pairs(finished, tmp_path):
    run = replace(finished, folder=shutil.copytree(finished.folder, tmp_path / "run"))
    for name in ("training/data.json", MANIFEST):
        (run.checkpoint / name).unlink()
    assert go_on(run).step == 2


def test_distribution_and_storage_settings_may_change(finished):
    recipe = finished.recipe
    changed = replace(
        recipe,
        data=replace(recipe.data, num_workers=3, micro_batch_size=2),
        parallelism="fsdp",
        checkpoints=CheckpointRecipe(interval=1, minutes=5, keep_last=7),
        health=replace(recipe.health, max_skipped=3),
    )
    assert resume_point(finished.folder, changed) == finished.checkpoint


def test_unreadable_checkpoints_do_not_restart_a_run(finished, tmp_path):
    out = shutil.copytree(finished.folder, tmp_path / "run")
    weights = out / "checkpoints" / finished.checkpoint.name / "model.safetensors"
    weights.write_bytes(b"torn")
    result = rf"{out}/checkpoints: none of its checkpoints can be read \(1 found, .*to restart this run, delete"
    with warnings_of("grr_coca.train.run_checkpoints"), pytest.raises(UserError, match=result):
        resume_point(out, finished.recipe)
    shutil.rmtree(out / "checkpoints")
    assert resume_point(out, finished.recipe) is None


def test_unlistable_checkpoints_do_not_restart_a_run(finished, tmp_path):
    (tmp_path / "checkpoints").write_bytes(b"in place of the folder")
    with pytest.raises(UserError, match=rf"{tmp_path}/checkpoints: cannot be listed \(Not a directory\)"):
        resume_point(tmp_path, finished.recipe)


@pytest.mark.ci
def test_run_that_began_in_another_spread_continues(make_job, undisturbed):
    job = make_job(ONE)
    job.start(partial(drivers.die_before, "micro-batch", 20)).wait()
    other = replace(job.recipe, data=replace(job.recipe.data, micro_batch_size=None, num_workers=1))
    job.start(recipe=other).finish()
    assert job.steps()[-1] == STEPS
    whole = undisturbed(ONE)[0]
    assert job.state()["tokenizer.json"] == whole["tokenizer.json"]
