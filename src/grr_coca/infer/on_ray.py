"""Run work on the machines of a Ray cluster, with Ray Data (the extra `ray`).

Each machine reads the images itself, so paths must be the same on all machines. Relative paths are resolved against the
caller's working directory. If a worker dies, another worker repeats its batch; each result is returned exactly once.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from grr_coca.common.errors import UserError, require_extra

Item = TypeVar("Item")
Result = TypeVar("Result")
Machines = Literal["this", "ray"]
"""Machines on which to run: this machine, or a Ray cluster."""
_MAX_BATCHES = 512
"""Maximum number of batches that are submitted to Ray at a time. Without this limit, Ray's lists would grow with the
number of images.
"""


def map_on_ray(
    items: Iterable[Item],
    name_of: Callable[[Item], str],
    make_work: Callable[[], Callable[[Sequence[Item]], Sequence[Result]]],
    batch_size: int,
) -> Iterator[list[Result]]:
    """Run work on all machines of a Ray cluster, and yield the results batch by batch, in order.

    If this process is not connected to Ray yet, it connects when the first result is requested, and disconnects at the
    end.

    Args:
        items: Items to process, which are read as they are needed.
        name_of: Function that returns the name of an item. The name begins with a path; a relative path is resolved
            against the working directory of this process.
        make_work: Called once in each worker to load the model. It returns the function that processes a batch.
        batch_size: Number of items per batch.

    Raises:
        UserError: If Ray is not installed, the cluster cannot be reached, or the work raised a UserError.
    """
    require_extra("ray", "--on ray")
    # otherwise, Ray would log each restart of a worker as an error
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data  # after `import ray`, which sets the level of Ray's log

    was_initialized = ray.is_initialized()
    if not was_initialized:
        try:
            ray.init(log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"--on ray: the cluster cannot be reached ({error}); check RAY_ADDRESS") from error
    # The command line shows its own progress.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    source = iter(items)
    try:
        while batches := list(islice(_batches(source, batch_size), _MAX_BATCHES)):
            yield from _map_batches(batches, name_of, make_work)
    finally:
        if not was_initialized:
            ray.shutdown()


def _map_batches(
    batches: list[list[Any]], name_of: Callable[[Any], str], make_work: Callable[[], Any]
) -> Iterator[list[Any]]:
    import ray

    count, needs = plan_workers(ray.cluster_resources())
    rows = [{"batch": _Envelope(batch)} for batch in batches]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    pool = ray.data.ActorPoolStrategy(size=min(count, len(batches)))
    mapped = dataset.map(_Worker, fn_constructor_args=(name_of, make_work, Path.cwd()), compute=pool, **needs)
    for row in mapped.iter_rows():
        results = row["results"].items
        if isinstance(results, UserError):
            raise results
        yield results


def plan_workers(resources: Mapping[str, float]) -> tuple[int, dict[str, int]]:
    """Return the number of workers that a cluster can run, and the resources that each worker requests.

    A worker requests one GPU if the cluster has GPUs, because workers can use only the GPUs that they request.
    Otherwise, it requests one core.
    """
    if num_gpus := int(resources.get("GPU", 0)):
        return num_gpus, {"num_gpus": 1}
    return max(1, int(resources.get("CPU", 1))), {"num_cpus": 1}


@dataclass(frozen=True)
class _Envelope:
    """Wrapper around a list or an error, which makes Ray Data pass the content on unchanged.

    Ray Data would convert a list to a column, and a raised error into its own error with a traceback.
    """

    items: Any


class _Worker:
    """Worker process of the cluster.

    Relative paths are resolved against `folder`. A machine without this folder can still process absolute paths.
    """

    def __init__(
        self,
        name_of: Callable[[Any], str],
        make_work: Callable[[], Callable[[Sequence[Any]], Sequence[Any]]],
        folder: Path,
    ) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # each core has one worker; both engines respect this
        self._name_of = name_of
        self._make_work = make_work
        self._work: Callable[[Sequence[Any]], Sequence[Any]] | None = None
        self._folder_error: UserError | None = None
        try:
            os.chdir(folder)
        except OSError as error:
            self._folder_error = UserError(
                f"--on ray: {folder}: relative paths start in this folder, which a machine of the cluster cannot open "
                f"({error.strerror}); use absolute paths that exist on all machines"
            )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the results of one batch, or the UserError that prevented them."""
        items = row["batch"].items
        try:
            if self._folder_error is not None and not all(Path(self._name_of(item)).is_absolute() for item in items):
                raise self._folder_error
            self._work = self._work or self._make_work()
            return {"results": _Envelope(list(self._work(items)))}
        except UserError as error:
            return {"results": _Envelope(error)}


def _batches(source: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while batch := list(islice(source, size)):
        yield batch
