"""What a training step should take: worked out by hand, and held against what a real pass keeps."""

from dataclasses import replace

import pytest
import torch

from grr_coca.model import build
from grr_coca.presets import get_preset
from grr_coca.study import forecast as module
from grr_coca.study.anatomy import count_parameters, flops_per_pair, saved_bytes_per_pair
from grr_coca.study.forecast import MFU, Forecast, Share, forecast, matmul_rate, memory, training_flops


def test_a_forecast_worked_out_by_hand():
    # 1,200 GFLOP at 200 GFLOP/s take 6 s; at half of that rate 12 s, at a quarter 24 s, at three quarters 8 s.
    step = Forecast(flops=1_200 * 10**9, rate=200e9, share=Share(0.25, 0.5, 0.75), batch=36)
    assert step.seconds == pytest.approx(12)
    assert step.range == pytest.approx((8, 24))
    assert step.images_per_second == pytest.approx(3)


def test_a_step_costs_three_forward_passes_of_every_pair():
    config = get_preset("grr_coca", "tiny")
    assert training_flops(config, 10) == 3 * 10 * flops_per_pair(config)
    assert training_flops(config, 10, text_length=8) == 3 * 10 * flops_per_pair(config, 8)
    assert forecast(config, 10, 1e9, "fp32", 8).flops == training_flops(config, 10, 8)


def test_narrow_models_are_expected_to_reach_less():
    tiny, small = get_preset("grr_coca", "tiny"), get_preset("grr_coca", "small")
    for precision in ("fp32", "bf16"):
        assert forecast(tiny, 1, 1e9, precision).share == MFU[precision, True]
        assert forecast(small, 1, 1e9, precision).share == MFU[precision, False]
        assert MFU[precision, True].assumed < MFU[precision, False].assumed


def test_what_is_assumed_lies_within_its_range():
    for share in MFU.values():
        assert 0 < share.low < share.assumed < share.high < 1


def test_memory_is_sixteen_bytes_a_parameter_and_activations_by_the_pair():
    config = get_preset("grr_coca", "tiny")
    parameters = count_parameters(build(config))
    held = memory(config, 8, "fp32")
    activations = held.pop("activations")
    assert held == {"parameters": 4 * parameters, "gradients": 4 * parameters, "optimizer": 8 * parameters}
    assert activations == 8 * saved_bytes_per_pair(config)
    assert activations / 2 < memory(config, 8, "bf16")["activations"] < activations


def test_a_layer_more_keeps_as_much_as_any_other():
    def deep(num_layers):
        config = get_preset("grr_coca", "tiny")
        image = config.image_encoder
        transformer = replace(image.transformer, num_layers=num_layers)
        return saved_bytes_per_pair(replace(config, image_encoder=replace(image, transformer=transformer)))

    assert deep(4) - deep(3) == deep(3) - deep(2) > 0


def test_the_estimate_is_near_what_a_real_pass_keeps(tiny_config, make_batch):
    config = tiny_config()
    length = config.text_decoder.context_length

    def kept(num_pairs):
        batch, storages = make_batch(config, [length - 3] * num_pairs), {}

        def keep(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = build(config)(batch.images, batch.token_ids, batch.lengths)
        return sum(storage.nbytes() for storage in storages.values()) + 2 * output.logits.numel() * 4

    assert saved_bytes_per_pair(config, length) == pytest.approx(kept(3) - kept(2), rel=0.35)


def test_a_rate_is_two_flops_per_multiplication_over_the_best_time(monkeypatch):
    times = iter([9.0, 0.5, 0.25])  # the first one does not count
    monkeypatch.setattr(module, "_timed", lambda a, b: next(times))
    monkeypatch.setitem(module.PROBE_SIZE, "cpu", 100)
    assert matmul_rate("bf16", torch.device("cpu")) == 2 * 100**3 / 0.25


def test_this_machine_has_a_rate(monkeypatch):
    monkeypatch.setitem(module.PROBE_SIZE, "cpu", 64)
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.0)
    assert matmul_rate("fp32", torch.device("cpu")) > 0
