"""The pace of a machine, measured by training."""

from support import ALONE, CPU, real_pairs, tiny_recipe, write_shard

from grr_coca.train.setup import new_checkpoint
from grr_coca_study.running import pace as pace_module
from grr_coca_study.running.pace import MIN_STEPS, WARM_UP, measure_pace


def test_pace_is_measured_by_training_and_evaluating(tmp_path, monkeypatch):
    monkeypatch.setattr(pace_module, "SECONDS", 0.2)
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", real_pairs(24)))
    calls = []
    pace = measure_pace(recipe, new_checkpoint(recipe, ALONE), CPU, lambda: calls.append(None))
    assert 0 < pace.step < 10
    assert 0 <= pace.reading < 1
    assert 0 < pace.evaluation < 1
    assert len(calls) > WARM_UP + MIN_STEPS
