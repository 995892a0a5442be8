"""Choice of the device that a model runs on."""

import torch

from grr_coca.errors import UserError


def choose_device(device: str | torch.device | None) -> torch.device:
    """The named device; None: the best device of this machine (CUDA, else Apple's MPS, else the CPU).

    Raises:
        UserError: there is no such device.
    """
    if device is None:
        return torch.device(_best())
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()  # a number comes back: "meta" holds none
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(f"device '{device}' cannot be used here; the best one that can is '{_best()}'") from error
    return chosen


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
