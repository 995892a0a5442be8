"""Work on the machines of a Ray cluster, by Ray Data (the extra `ray`).

Each machine reads its own pictures, so paths must mean the same on all of them. A batch whose worker dies is done again
by another; each result comes once.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeVar

from grr_coca.errors import UserError
from grr_coca.extras import require_extra

Item = TypeVar("Item")
Result = TypeVar("Result")
Machines = Literal["this", "ray"]
"""Where work is done: on this machine, or on the machines of a Ray cluster."""
WAVE = 512
"""Batches that Ray is given at once: its lists of them would else grow with the number of pictures."""


def map_on_ray(
    items: Iterable[Item],
    make_work: Callable[[], Callable[[Sequence[Item]], Sequence[Result]]],
    batch_size: int,
) -> Iterator[list[Result]]:
    """Do work on all machines of a cluster, and give the results batch by batch, in order.

    Args:
        items: what to work on; taken as the work goes on.
        make_work: makes the work in each worker, once: it loads the model there.
        batch_size: items at once.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """
    require_extra("ray", "--on ray")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it takes a worker's restart for worth an error
    import ray
    import ray.data  # sets the level of its log

    was_there = ray.is_initialized()
    if not was_there:
        try:
            ray.init(log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"--on ray: the cluster cannot be reached ({error}); see RAY_ADDRESS") from error
    # The command line shows the progress itself.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    source = iter(items)
    try:
        while batches := list(islice(_batches(source, batch_size), WAVE)):
            yield from _wave(batches, make_work)
    finally:
        if not was_there:
            ray.shutdown()


def _wave(batches: list[list[Any]], make_work: Callable[[], Any]) -> Iterator[list[Any]]:
    import ray

    count, needs = workers_of(ray.cluster_resources())
    rows = [{"batch": _Sealed(batch)} for batch in batches]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    pool = ray.data.ActorPoolStrategy(size=min(count, len(batches)))
    done = dataset.map(_Worker, fn_constructor_args=(make_work,), compute=pool, **needs)
    for row in done.iter_rows():
        yield row["results"].items


def workers_of(resources: Mapping[str, float]) -> tuple[int, dict[str, int]]:
    """How many workers a cluster has, and what each needs: a GPU where there are any, or else a core.

    Ray shows a worker no GPU that it did not ask for.
    """
    if num_gpus := int(resources.get("GPU", 0)):
        return num_gpus, {"num_gpus": 1}
    return max(1, int(resources.get("CPU", 1))), {"num_cpus": 1}


@dataclass(frozen=True)
class _Sealed:
    """A list that Ray Data carries as it is, and does not take for a column."""

    items: list[Any]


class _Worker:
    """Lives in a process of the cluster."""

    def __init__(self, make_work: Callable[[], Callable[[Sequence[Any]], Sequence[Any]]]) -> None:
        import torch

        torch.set_num_threads(1)  # one worker a core
        self._work = make_work()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The results of one batch."""
        return {"results": _Sealed(list(self._work(row["batch"].items)))}


def _batches(source: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while batch := list(islice(source, size)):
        yield batch
