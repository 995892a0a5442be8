"""Training and all uses of a model on another device than the CPU, where there is no GPU: see `device.cpp`."""

import json
from functools import partial

import pytest
import torch
from drivers import stop_after, together
from elsewhere_device import COMPILER, build_device
from elsewhere_jobs import train_elsewhere, use
from jobs import STEPS, Job, small_recipe
from processes import launch
from support import finished_run, real_pairs, tiny_recipe, with_key, write_shard

from grr_coca.train.recipe import OptimizerRecipe

pytestmark = [
    pytest.mark.ci,
    pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler"),
]

ADAMW, MUON = OptimizerRecipe("adamw"), OptimizerRecipe("muon", muon_precision="fp32")
WAITS = 1
"""A training step waits for its device once, for the numbers of the log. They decide whether the step is skipped."""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("device") / "elsewhere.so"
    build_device(path)
    return path


def losses(job: Job) -> list[float]:
    """All losses of its log, of training and of validation."""
    rows = map(json.loads, (job.out / "metrics.jsonl").read_text().splitlines())
    return [row[name] for row in rows for name in ("contrastive", "captioning", "coca") if name in row]


@pytest.mark.parametrize(("optimizer", "precision", "tolerance"), [(MUON, "fp32", 1e-3), (ADAMW, "bf16", 2e-2)])
def test_run_on_another_device_has_the_losses_of_the_cpu(library, tmp_path, optimizer, precision, tolerance):
    recipe = small_recipe(tmp_path, optimizer=optimizer, precision=precision)
    here, elsewhere = Job(recipe, tmp_path / "here"), Job(recipe, tmp_path / "elsewhere")
    runs = here.start(), elsewhere.start(partial(train_elsewhere, library))
    for run in runs:
        run.finish()
    assert len(losses(here)) >= 9
    assert losses(elsewhere) == pytest.approx(losses(here), rel=tolerance)


def test_stopped_run_resumes_on_another_device(library, tmp_path):
    recipe = small_recipe(tmp_path, optimizer=MUON)
    whole, stopped = Job(recipe, tmp_path / "whole"), Job(recipe, tmp_path / "stopped")
    here = partial(train_elsewhere, library)
    first = stopped.start(partial(together, here, partial(stop_after, 7)))
    whole.start(here).finish()
    assert first.wait() != [0]
    assert stopped.steps()[-1] < STEPS
    stopped.start(here).finish()
    assert stopped.state() == whole.state()


@pytest.mark.parametrize("size", [None, 3], ids=["whole", "in micro-batches"])
def test_training_step_synchronizes_with_its_device_once(library, tmp_path, size):
    shard, waited = write_shard(tmp_path / "pairs.tar", real_pairs(24)), tmp_path / "waited"
    recipe = with_key(tiny_recipe(shard, steps=4), "data.micro_batch_size", size)
    Job(recipe, tmp_path / "job").start(partial(train_elsewhere, library, waited)).finish()
    assert waited.read_text().split()[:3] == [str(WAITS)] * 3, "validation follows the last step"


def test_all_uses_of_a_model_are_the_same_on_another_device(library, tmp_path):
    run = finished_run(tmp_path / "trained", steps=120)  # after 30, rounding decides between equally likely captions
    outs = {None: tmp_path / "here.json", library: tmp_path / "elsewhere.json"}
    for process in [launch(tmp_path, use, place, run.checkpoint, run.shard, out) for place, out in outs.items()]:
        process.finish()
    here, elsewhere = (json.loads(out.read_text()) for out in outs.values())
    for name in here.keys() - {"captions", "prompted"}:
        numbers, others = (torch.tensor(_numbers(found[name])) for found in (here, elsewhere))
        assert numbers.numel(), name
        torch.testing.assert_close(others, numbers, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    assert {name: elsewhere[name] for name in ("captions", "prompted")} == {
        name: here[name] for name in ("captions", "prompted")
    }


def _numbers(found: object) -> list[float]:
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list):
        return [number for one in found for number in _numbers(one)]
    return [found] if isinstance(found, float) else []
