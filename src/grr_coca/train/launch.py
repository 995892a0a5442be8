"""The place of this process in a launch by `torchrun`, read from the environment variables that it sets.

The precisions of a run: what `auto` means on this machine, decided once and kept for the whole run.

Signals that ask a run to stop. The run saves before it stops.
"""

import os
import signal
import threading
import time
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from types import FrameType, TracebackType

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from grr_coca.errors import Stopped, UserError
from grr_coca.model import CoCa
from grr_coca.ranks import Ranks
from grr_coca.train.muon import faster_precision
from grr_coca.train.optimizer import parameter_kinds
from grr_coca.train.recipe import Precision, Recipe

PROBE_TOKENS = 1024
GAIN = 1.5
"""How many times as fast products in bf16 must be for autocast to pay. Casts and copies around them use up small
gains."""


@dataclass(frozen=True)
class Numerics:
    """`precision` of forward and backward passes, and `muon_precision` of Muon's orthogonalization: `fp32` or `bf16`.

    With AdamW `muon_precision` stays `auto`, because there is nothing to decide.
    """

    precision: Precision
    muon_precision: Precision

    def for_autos_of(self, recipe: Recipe) -> Recipe:
        """The recipe with these precisions instead of `auto`. A precision that the recipe names stays."""
        optimizer = recipe.optimizer
        if optimizer.muon_precision == "auto":
            recipe = replace(recipe, optimizer=replace(optimizer, muon_precision=self.muon_precision))
        return replace(recipe, precision=self.precision) if recipe.precision == "auto" else recipe


def decide(recipe: Recipe, model: CoCa, device: torch.device) -> Numerics:
    """The precisions of a recipe. For `auto`, both precisions are timed now, and the faster one is taken.

    Args:
        recipe: the recipe of the run.
        model: the model of the run, for the shapes of its matrices.
        device: the device of the run.
    """
    precision, muon_precision = recipe.precision, recipe.optimizer.muon_precision
    if precision == "auto":
        precision = faster_for_passes(model.image_encoder.patch_embed.out_features, device)
    if muon_precision == "auto" and recipe.optimizer.name == "muon":
        muon_precision = faster_precision(parameter_kinds(model).hidden, device)
    return Numerics(precision, muon_precision)


def faster_for_passes(width: int, device: torch.device) -> Precision:
    """bf16 if it makes forward and backward passes faster, else fp32.

    A CUDA card gains if it has products in bf16; older ones (V100, T4) imitate them. A CPU gains if a feed-forward
    product of the model's width gains.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _bf16_is_faster(width) else "fp32"


def _bf16_is_faster(width: int) -> bool:
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.randn(PROBE_TOKENS, width, dtype=dtype), torch.randn(4 * width, width, dtype=dtype)
        seconds[dtype] = min(timeit.repeat(partial(F.linear, x, weight), number=1, repeat=5))
    return seconds[torch.bfloat16] < seconds[torch.float32] / GAIN


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals that schedulers and people send: to end a run, to interrupt it, and to warn it of SLURM's time limit."""


class StopSignals:
    """Within this context, a signal is only remembered, and a second one of the same kind acts at once.

    Under torchrun, a third one does: schedulers send SIGTERM and SIGUSR1 to all processes, and torchrun then sends its
    own what it got.
    """

    def __init__(self) -> None:
        self.counts = [0] * len(SIGNALS)
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # the parent process may want it ignored
                    self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        sent = signal.Signals(number)
        self.counts[SIGNALS.index(sent)] += 1
        if self.counts[SIGNALS.index(sent)] == _num_remembered(sent):
            signal.signal(number, self._before[sent])  # type: ignore[arg-type]


def _num_remembered(sent: signal.Signals) -> int:
    return 2 if "TORCHELASTIC_RUN_ID" in os.environ and sent != signal.SIGINT else 1


TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others. If a rank dies, its connection by gloo breaks, so the others notice that at
once. With NCCL they do not; torchrun and `srun --kill-on-bad-exit` end them."""
PATIENCE = timedelta(days=1)
"""How long the ranks wait for what the first one does alone. It may read the captions of millions of pairs to train a
tokenizer, or caption a validation split."""


@contextmanager
def launched() -> Iterator[Ranks]:
    """Join the other processes of the launch. A process that was started without `torchrun` is alone."""
    device = device_of_process()
    if "RANK" not in os.environ:
        yield Ranks.here(device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _join("nccl" if device.type == "cuda" else "gloo")
    try:
        ranks = Ranks.here(device, dist.new_group(timeout=PATIENCE))
        ranks.on_first(lambda: None)  # connects the group now: ranks wait for its connection only as long as elsewhere
        yield ranks
    except Stopped:  # raised on all ranks, after the same step
        _leave()
        raise
    _leave()  # not after other errors: another rank may never get here


def device_of_process() -> torch.device:
    """The GPU of this process, or the CPU if the machine has none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, num_gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if num_gpus == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        number = 0  # a scheduler may show each of its processes one GPU
    if number >= num_gpus:
        raise UserError(
            f"more processes were started than this machine has GPUs; give torchrun --nproc-per-node {num_gpus}"
        )
    return torch.device("cuda", number)


def _leave() -> None:
    # gloo's threads may still wait for the interpreter, to drop the tensors of the last exchange. Whoever then destroys
    # the group with the interpreter in hand waits for them, and they for it. Asleep, this thread lets them finish.
    time.sleep(0.2)
    dist.destroy_process_group()


def _join(backend: str) -> None:
    """Join the other ranks in a process group.

    torchrun keeps one store for all its restarts. The addresses of dead processes are still in it, so each restart uses
    another prefix, under which they are not found. Nodes do not agree on the number of restarts, so with several nodes
    there is no prefix: torchrun makes a new store for each restart if TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is set.
    """
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        store = PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
