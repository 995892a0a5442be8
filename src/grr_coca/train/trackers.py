"""Send the log of a run to Weights & Biases or MLflow.

This module reads `metrics.jsonl`, so training does not depend on these services.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.errors import UserError, first_line, require_extra
from grr_coca.common.files import read_json, write_bytes_atomic
from grr_coca.train.logs import LOG_FILE
from grr_coca.train.recipe import Recipe, load_recipe

TrackerName = Literal["wandb", "mlflow"]

_REJECTED_CHARACTERS = re.compile(r"[^\w\-./ ]")
"""Characters that MLflow rejects in names."""

_MAX_PARAMETER_LENGTH = 500
_MAX_PARAMETERS = 100
"""Maximum number of parameters in an MLflow request."""


@runtime_checkable
class Tracker(Protocol):
    """Run in a tracking service. `id` identifies the run when more of the log is sent later."""

    id: str

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a step. Steps must not decrease from call to call."""
        ...

    def finish(self) -> None:
        """Send all remaining metrics, and end the connection to the run."""
        ...


class _Wandb:
    def __init__(self, project: str, name: str, recipe: Mapping[str, object], id: str | None) -> None:
        import wandb

        self._run = wandb.init(project=project, name=name, config=dict(recipe), id=id, resume="allow")
        self.id = str(self._run.id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, project: str, name: str, recipe: Mapping[str, object], id: str | None) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._client, self._metric = MlflowClient(), Metric
        if id is not None:
            self.id = id
            self._client.update_run(id, "RUNNING")
            return
        experiment = self._client.get_experiment_by_name(project)
        experiment_id = self._client.create_experiment(project) if experiment is None else experiment.experiment_id
        self.id = self._client.create_run(experiment_id, run_name=name).info.run_id
        parameters = [Param(key, str(value)[:_MAX_PARAMETER_LENGTH]) for key, value in _flatten(recipe)]
        for first in range(0, len(parameters), _MAX_PARAMETERS):
            self._client.log_batch(self.id, params=parameters[first : first + _MAX_PARAMETERS])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        values = [
            self._metric(_REJECTED_CHARACTERS.sub("_", name), value, now, step) for name, value in metrics.items()
        ]
        self._client.log_batch(self.id, metrics=values)

    def finish(self) -> None:
        self._client.set_terminated(self.id)


_TRACKERS: dict[TrackerName, Callable[[str, str, Mapping[str, object], str | None], Tracker]] = {
    "wandb": _Wandb,
    "mlflow": _Mlflow,
}


def send_log(folder: Path, to: TrackerName, project: str, *, follow: bool = False, seconds: float = 10.0) -> int:
    """Send the new lines of a run's log that contain numbers, and return how many lines were sent.

    The folder then contains `TO.json`, with the id of the run in the service, and the last step that was sent for each
    split. If a resumed run repeats lines, they are not sent again.

    Args:
        folder: Run folder.
        to: The service, whose environment variables define the address and the credentials.
        project: Name of the project or experiment in the service.
        follow: Whether to wait for more lines until the run has ended.
        seconds: Pause before the log is read again.

    Raises:
        UserError: If the folder has no run, the package of the service is missing, or the service reports an error.
    """
    recipe = load_recipe(folder / "recipe.yaml")
    require_extra(to, f"sending a log to {to}")
    path = folder / f"{to}.json"
    state = read_json(path) if path.exists() else {"id": None, "sent": {}}
    sent: dict[str, int] = state["sent"]
    number = 0
    try:
        tracker = _TRACKERS[to](project, folder.resolve().name, to_dict(recipe), state["id"])
        try:
            for row in _read_rows(folder / LOG_FILE, recipe, follow, seconds):
                step, split = int(row["step"]), str(row["split"])
                metrics = {
                    f"{split}/{name}": float(value)
                    for name, value in row.items()
                    if name not in ("step", "split") and isinstance(value, int | float)
                }
                if step <= sent.get(split, -1) or not metrics:
                    continue
                tracker.log(step, metrics)
                sent[split], number = step, number + 1
        finally:
            write_bytes_atomic(path, json.dumps({"id": tracker.id, "sent": sent}, indent=2).encode())
            tracker.finish()
    except UserError:
        raise
    except Exception as error:  # the service's package may raise errors of any type
        raise UserError(
            f"{to} did not accept the log ({first_line(error)}); check its address and credentials, and run the same "
            "command again"
        ) from error
    return number


def _read_rows(path: Path, recipe: Recipe, follow: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield the complete lines of a log. With `follow`, also yield lines that are written later, up to the last
    validation.

    If a resumed run has truncated the file, it is read again from its beginning.
    """
    offset = 0
    while True:
        with path.open("rb") as file:
            if file.seek(0, 2) < offset:
                offset = 0
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                offset += len(line)
                row = json.loads(line)
                yield row
                if row["split"] == "val" and row["step"] >= recipe.schedule.steps:
                    follow = False
        if not follow:
            return
        time.sleep(seconds)


def _flatten(value: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, inner in value.items():
        name = f"{prefix}{_REJECTED_CHARACTERS.sub('_', str(key))}"
        if isinstance(inner, Mapping):
            yield from _flatten(inner, f"{name}.")
        else:
            yield name, inner
