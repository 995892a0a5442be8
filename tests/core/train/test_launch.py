"""Where a process of a launch works, and what it hears of the first one's errors."""

import signal
from concurrent.futures import ThreadPoolExecutor

import drivers
import pytest
import torch
from processes import launch

from grr_coca.common.errors import UserError
from grr_coca.common.ranks import SIGNALS, StopSignals, device_of_process


@pytest.fixture
def on_gpus(monkeypatch):
    """The device of a process that sees so many GPUs, with these environment variables."""

    def device(num_gpus: int, **variables: str) -> torch.device:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
        for name in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return device_of_process()

    return device


def test_each_process_has_a_separate_gpu(on_gpus):
    assert on_gpus(8).index == 0
    assert on_gpus(8, LOCAL_RANK="3").index == 3
    assert on_gpus(8, LOCAL_RANK="3", TORCHELASTIC_RUN_ID="mine").index == 3


def test_scheduler_may_show_one_gpu_per_process(on_gpus):
    assert on_gpus(1, LOCAL_RANK="3").index == 0


def test_rejects_more_processes_than_gpus(on_gpus):
    with pytest.raises(UserError, match="--nproc-per-node 2"):
        on_gpus(2, LOCAL_RANK="2")
    with pytest.raises(UserError, match="--nproc-per-node 1"):
        on_gpus(1, LOCAL_RANK="1", TORCHELASTIC_RUN_ID="mine")


def test_signals_are_not_handled_outside_the_main_thread():
    """Python lets no other thread handle them. A notebook that trains in a thread is not told to stop by one."""
    before = [signal.getsignal(number) for number in SIGNALS]

    def run() -> list[object]:
        with StopSignals() as stop:
            return [[signal.getsignal(number) for number in SIGNALS], list(stop.counts)]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run).result() == [before, [0] * len(SIGNALS)]
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.ci
def test_every_rank_gets_the_error_of_the_first(tmp_path):
    launch(tmp_path, drivers.fail_on_first, tmp_path, ranks=2).finish()
    outcome = [(tmp_path / f"error-{rank}").read_text() for rank in range(2)]
    assert outcome == ["ZeroDivisionError: division by zero", "UserError: division by zero"]


@pytest.mark.ci  # seven seconds
def test_ranks_wait_for_the_first_without_a_limit(tmp_path):
    launch(tmp_path, drivers.wait_long_for_the_first, tmp_path, ranks=2).finish()
    assert [(tmp_path / f"result-{rank}").read_text() for rank in range(2)] == ["done", "done"]
