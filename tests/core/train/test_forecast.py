"""What a training step should take: worked out by hand, and held against what a real pass keeps."""

from dataclasses import replace

import pytest
import torch

from grr_coca.model.anatomy import count_parameters, flops_per_pair, saved_bytes_per_pair
from grr_coca.model.build import build
from grr_coca.model.presets import get_preset
from grr_coca.train import forecast as module
from grr_coca.train.forecast import (
    MFU_OF_NARROW,
    MFU_OF_WIDE,
    Forecast,
    Mfu,
    forecast,
    matmul_rate,
    memory,
    mfu_in_fp32,
    training_flops,
)


def test_a_forecast_in_fp32_worked_out_by_hand():
    # 1,200 GFLOP at 200 GFLOP/s take 6 s; at half of that rate 12 s, at a quarter 24 s, at three quarters 8 s.
    step = Forecast(36, flops=1_200 * 10**9, rate=200e9, fp32_rate=200e9, mfu_in_fp32=Mfu(0.25, 0.5, 0.75))
    assert step.seconds == pytest.approx(12)
    assert step.fastest_and_slowest == pytest.approx((8, 24))
    assert step.images_per_second == pytest.approx(3)
    assert step.mfu == pytest.approx(0.5)


def test_a_forecast_in_bf16_worked_out_by_hand():
    # Six seconds beside the products stay; the products take 1.5 s where they are four times as fast.
    step = Forecast(30, flops=1_200 * 10**9, rate=800e9, fp32_rate=200e9, mfu_in_fp32=Mfu(0.25, 0.5, 0.75))
    assert step.seconds == pytest.approx(7.5)
    assert step.fastest_and_slowest == pytest.approx((3.5, 19.5))
    assert step.images_per_second == pytest.approx(4)
    assert step.mfu == pytest.approx(0.2)


def test_a_step_costs_three_forward_passes_of_every_pair():
    config = get_preset("grr_coca", "tiny")
    assert training_flops(config, 10) == 3 * 10 * flops_per_pair(config)
    assert training_flops(config, 10, text_length=8) == 3 * 10 * flops_per_pair(config, 8)


def test_each_precision_has_its_own_rate():
    config = get_preset("grr_coca", "tiny")
    steps = {p: forecast(config, 10, {"fp32": 1e9, "bf16": 3e9}, p, 8) for p in ("fp32", "bf16")}
    assert {step.flops for step in steps.values()} == {training_flops(config, 10, 8)}
    assert [(step.rate, step.fp32_rate) for step in steps.values()] == [(1e9, 1e9), (3e9, 1e9)]


def test_narrow_models_are_expected_to_reach_less():
    assert mfu_in_fp32(get_preset("grr_coca", "tiny")) == MFU_OF_NARROW
    assert mfu_in_fp32(get_preset("grr_coca", "small")) == MFU_OF_WIDE
    assert MFU_OF_NARROW.assumed < MFU_OF_WIDE.assumed


def test_what_is_assumed_lies_within_its_range():
    for mfu in (MFU_OF_NARROW, MFU_OF_WIDE):
        assert 0 < mfu.low < mfu.assumed < mfu.high < 1


def test_memory_is_sixteen_bytes_a_parameter_and_activations_by_the_pair():
    config = get_preset("grr_coca", "tiny")
    parameters = count_parameters(build(config))
    held = memory(config, 8, "fp32")
    activations = held.pop("activations")
    assert held == {"parameters": 4 * parameters, "gradients": 4 * parameters, "optimizer": 8 * parameters}
    assert activations == 8 * saved_bytes_per_pair(config)
    assert activations / 2 < memory(config, 8, "bf16")["activations"] < activations


def test_longer_captions_keep_more():
    config = get_preset("grr_coca", "tiny")
    assert saved_bytes_per_pair(config, 10) < saved_bytes_per_pair(config, 20) < saved_bytes_per_pair(config)


def test_a_layer_more_keeps_as_much_as_any_other():
    def deep(num_layers):
        config = get_preset("grr_coca", "tiny")
        image = config.image_encoder
        transformer = replace(image.transformer, num_layers=num_layers)
        return saved_bytes_per_pair(replace(config, image_encoder=replace(image, transformer=transformer)))

    assert deep(4) - deep(3) == deep(3) - deep(2) > 0


def test_a_rate_is_two_flops_per_multiplication_over_the_best_time(monkeypatch):
    # Products of 9, 0.5 and 0.25 s. The first one does not count.
    clock = iter([0.0, 9.0, 10.0, 10.5, 20.0, 20.25]).__next__
    monkeypatch.setitem(module._PROBE_SIZE, "cpu", 100)
    assert matmul_rate("bf16", torch.device("cpu"), clock) == 2 * 100**3 / 0.25


def test_short_times_are_measured_until_they_add_up(monkeypatch):
    monkeypatch.setitem(module._PROBE_SIZE, "cpu", 100)
    monkeypatch.setattr(module, "_PROBE_SECONDS", 1.0)
    clock = iter([0.0, 9.0, 0.0, 0.5, 1.0, 1.25, 2.0, 2.125, 3.0, 3.25]).__next__  # the last one fills the second
    assert matmul_rate("fp32", torch.device("cpu"), clock) == 2 * 100**3 / 0.125
    with pytest.raises(StopIteration):
        clock()


def test_this_machine_has_a_rate(monkeypatch):
    monkeypatch.setitem(module._PROBE_SIZE, "cpu", 64)
    monkeypatch.setattr(module, "_PROBE_SECONDS", 0.0)
    assert matmul_rate("fp32", torch.device("cpu")) > 0
