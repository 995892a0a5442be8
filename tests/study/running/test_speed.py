"""The speed of a machine, measured by training."""

from support import ALONE, CPU, real_pairs, tiny_recipe, write_shard

from grr_coca.train.setup import new_checkpoint
from grr_coca_study.running import speed as speed_module
from grr_coca_study.running.speed import MIN_STEPS, WARM_UP, measure_speed


def test_speed_is_measured_by_training_and_evaluating(tmp_path, monkeypatch):
    monkeypatch.setattr(speed_module, "SECONDS", 0.2)
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", real_pairs(24)))
    calls = []
    speed = measure_speed(recipe, new_checkpoint(recipe, ALONE), CPU, lambda: calls.append(None))
    assert 0 < speed.step < 10
    assert 0 <= speed.reading < 1
    assert 0 < speed.evaluation < 1
    assert len(calls) > WARM_UP + MIN_STEPS
