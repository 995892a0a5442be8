"""The log of a run in Weights & Biases (offline) and MLflow (files): all numbers, and none twice."""

import json
import sys
import threading
import time

import pytest
from support import finished_run, tiny_recipe

from grr_coca.common.errors import UserError
from grr_coca.train.recipe import EvaluationRecipe, save_recipe
from grr_coca.train.trackers import send_log


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    evaluation = EvaluationRecipe(interval=6, batch_size=8)
    return finished_run(tmp_path_factory.mktemp("tracked"), steps=12, evaluation=evaluation).folder


@pytest.fixture
def run(finished, tmp_path):
    for name in ("metrics.jsonl", "recipe.yaml"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_bytes((finished / name).read_bytes())
    return tmp_path / "run"


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """What the file store of MLflow has: step and value of each metric, and the parameters."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")

    def stored():
        from mlflow import MlflowClient

        client = MlflowClient()
        experiment = client.get_experiment_by_name("grr-coca")
        (one,) = client.search_runs([experiment.experiment_id])
        metrics = {
            name: [(point.step, point.value) for point in client.get_metric_history(one.info.run_id, name)]
            for name in one.data.metrics
        }
        return metrics, one.data.params, one.info.status

    return stored


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.ci
@pytest.mark.filterwarnings("default")
def test_mlflow_has_all_metrics_of_the_log(run, mlflow):
    assert send_log(run, "mlflow", "grr-coca") == len(rows_of(run)) > 3
    metrics, parameters, status = mlflow()
    assert status == "FINISHED"
    assert parameters["model.preset"] == "grr_coca"
    assert parameters["schedule.steps"] == "12"
    expected = [(row["step"], row["text_to_image/R@1"]) for row in rows_of(run) if row["split"] == "val"]
    assert metrics["val/text_to_image/R_1"] == expected
    assert len(expected) == 2
    assert send_log(run, "mlflow", "grr-coca") == 0
    assert mlflow()[0] == metrics


@pytest.mark.ci
@pytest.mark.filterwarnings("default")
def test_log_is_followed_through_a_stop_to_its_end(run, mlflow):
    log = run / "metrics.jsonl"
    whole = log.read_bytes()
    lines = whole.splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:2]) + lines[2][:10])
    sent = []
    following = threading.Thread(
        target=lambda: sent.append(send_log(run, "mlflow", "grr-coca", follow=True, seconds=0.05))
    )
    following.start()
    time.sleep(1)
    log.write_bytes(lines[0])  # as a resumed run does, which then writes the same lines again
    time.sleep(0.3)
    log.write_bytes(whole)
    following.join(60)
    assert sent == [len(lines)]
    assert all(len({step for step, _ in points}) == len(points) for points in mlflow()[0].values())


@pytest.mark.ci
@pytest.mark.filterwarnings("default")
def test_wandb_has_all_metrics_of_the_log_offline(run, tmp_path, monkeypatch):
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_DIR", str(tmp_path)), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert send_log(run, "wandb", "grr-coca") == len(rows_of(run))
    first = json.loads((run / "wandb.json").read_text())
    assert send_log(run, "wandb", "grr-coca") == 0
    assert json.loads((run / "wandb.json").read_text()) == first
    (stored, *_) = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{first['id']}.wandb"))
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) >= 1
    content = stored.read_bytes()
    for name in ("val/coca_loss", "train/coca", "val/text_to_image/R@1"):
        assert name.encode() in content
    last = [row for row in rows_of(run) if row["split"] == "val"][-1]
    assert repr(last["coca_loss"])[:12].encode() in content


def test_folder_without_a_run_raises(tmp_path, refused):
    assert "not a run folder" in refused("track", tmp_path, "--to", "mlflow")


MLFLOW = """
class MlflowClient:
    def get_experiment_by_name(self, name):
        raise RuntimeError("The server is full.\\nMore about that")
"""


def test_error_of_a_service_is_one_line(tmp_path, monkeypatch):
    """In place of mlflow, which takes five seconds to import, there is a package that fails."""
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "__init__.py").write_text(MLFLOW)
    (tmp_path / "mlflow" / "entities.py").write_text("Metric = Param = None")
    for name in [name for name in sys.modules if name.split(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    save_recipe(tiny_recipe(tmp_path / "pairs.tar"), tmp_path / "recipe.yaml")
    with pytest.raises(UserError, match=r"^mlflow did not accept the log \(The server is full\.\); check its address"):
        send_log(tmp_path, "mlflow", "grr-coca")
    for name in ("mlflow", "mlflow.entities"):
        del sys.modules[name]
