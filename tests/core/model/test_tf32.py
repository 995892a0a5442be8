"""TF32 is allowed within a context alone. The settings exist without a GPU, too."""

import threading

import pytest
import torch

from grr_coca.model.coca import fast_products, require_exact_products

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def settings() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def restored():
    before = settings()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_tf32_lasts_until_the_outermost_context_ends():
    require_exact_products()
    with fast_products(CUDA):
        with fast_products(CUDA):
            assert settings() == (True, True)
        assert settings() == (True, True)
    assert settings() == (False, False)


def test_earlier_setting_is_restored_after_an_error():
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    with pytest.raises(ZeroDivisionError), fast_products(CUDA):
        raise ZeroDivisionError
    assert settings() == (False, True)


def test_other_devices_change_nothing():
    require_exact_products()
    with fast_products(CPU):
        assert settings() == (False, False)


def test_last_of_two_threads_restores_it():
    require_exact_products()
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with fast_products(CUDA):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with fast_products(CUDA):
        thread.start()
        assert entered.wait(10)
    assert settings() == (True, True), "the other thread still computes"
    leave.set()
    thread.join()
    assert settings() == (False, False)
