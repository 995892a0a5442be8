"""`--on ray` with two workers, one of which is killed. `make test-ray` runs these tests."""

import csv
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import grr_coca
from grr_coca.cli import main
from grr_coca.common.errors import UserError
from grr_coca.infer.on_ray import _Envelope, _Worker, plan_workers

needs_cluster = pytest.mark.skipif("GRR_COCA_TEST_RAY" not in os.environ, reason="runs by `make test-ray`")
WORKER = b"MapWorker"
COUNT = 200
KILLS_A_RUN = 4


@pytest.fixture(scope="module")
def cluster():
    """Two workers on this machine."""
    import ray

    ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        Image.new("RGB", (40, 40), (number % 256, number * 7 % 256, 255 - number % 256)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def workers() -> list[int]:
    """Processes of the cluster of this process that describe images."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if WORKER in (process / "cmdline").read_bytes() and os.getpid() in ancestors(int(process.name)):
                found.append(int(process.name))
    return sorted(found)


def ancestors(process: int) -> set[int]:
    found = set()
    while process > 1:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        found.add(process)
    return found


class Killer:
    """Ends workers one after the other, as the kernel does when memory is short: each after so many images."""

    def __init__(self, moments: list[int]) -> None:
        self.moments, self.done, self.killed, self.is_over = moments, 0, [], threading.Event()
        self.random = np.random.default_rng(sum(moments))
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        for moment in self.moments:
            while not self.is_over.is_set() and (self.done < moment or not set(workers()) - set(self.killed)):
                time.sleep(0.05)
            self.is_over.wait(self.random.random())
            while not self.is_over.is_set() and not self.kill_one():
                time.sleep(0.05)  # the worker that was seen was one of an earlier run, and is gone

    def kill_one(self) -> bool:
        for worker in self.random.permutation(sorted(set(workers()) - set(self.killed))).tolist()[:1]:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
                self.killed.append(worker)
                return True
        return False

    def on_progress(self, done: int, total: int, failed: int) -> None:
        self.done = done

    def __enter__(self) -> "Killer":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self.thread.join()


def test_worker_requests_a_gpu_if_one_is_available():
    assert plan_workers({"CPU": 16.0, "GPU": 2.0}) == (2, {"num_gpus": 1})
    assert plan_workers({"CPU": 16.0}) == (16, {"num_cpus": 1})
    assert plan_workers({}) == (1, {"num_cpus": 1})


def test_machine_without_the_folder_needs_absolute_paths(tmp_path):
    worker = _Worker(str, lambda: list, tmp_path / "elsewhere")
    absolute, relative = (worker({"batch": _Envelope([name])})["results"].items for name in ("/one.png", "one.png"))
    assert absolute == ["/one.png"]
    with pytest.raises(UserError, match=r"elsewhere: relative paths start in this folder, .* cannot open .* absolute"):
        raise relative


@needs_cluster
def test_relative_paths_and_mistakes_are_as_on_this_machine(cluster, images, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()  # the cluster was started in another folder
    Image.new("RGB", (40, 40), (9, 90, 200)).save(tmp_path / "here" / "one.png")
    monkeypatch.chdir(tmp_path)
    assert main(["embed", "here", "--out", "one.npy", "--on", "ray"]) == 0
    assert Path("one.keys.txt").read_text() == f"here{os.sep}one.png\n"
    capsys.readouterr()
    mistakes = []
    for machines in ("this", "ray"):
        assert main(["caption", "here", "--prompt", "many " * 500, "--on", machines]) == 2
        mistakes.append(capsys.readouterr().err.splitlines()[-1])
    assert mistakes[0].startswith("error: the prompt has 1000 tokens")
    assert mistakes[0] == mistakes[1]


@needs_cluster
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_each_image_is_indexed_once_though_workers_are_killed(cluster, images, tmp_path, kills):
    random, done, number = np.random.default_rng(0), 0, 0
    while done < kills:
        number += 1
        moments = sorted(random.integers(0, COUNT - 40, min(KILLS_A_RUN, kills - done)).tolist())
        with (
            Killer(moments) as killer,
            grr_coca.Index.open(tmp_path / f"index-{number}", create=True, batch_size=8) as index,
        ):
            update = index.add(images, killer.on_progress, on="ray")
            names = [entry.name for entry, _ in index.store.everything()]
            assert sorted(names) == sorted(str(path) for path in images.glob("[0-9]*.png"))
            assert len(index) == update.new == COUNT
            assert [failure.name for failure in update.failures] == [str(images / "broken.png")]
            (hit,) = index.search(image=str(images / "0.png"), n=1, fold=False)
            assert hit.score > 0.99
        done += len(killer.killed)
        print(f"run {number}: {len(killer.killed)} workers killed, after {moments} of {COUNT} images", flush=True)


@needs_cluster
@pytest.mark.parametrize("verb", ["embed", pytest.param("caption", marks=pytest.mark.slow)])
def test_killed_worker_keeps_order_and_completeness(cluster, images, tmp_path, verb):
    suffix = {"embed": "npy", "caption": "csv"}[verb]
    places = [str(tmp_path / f"{machines}.{suffix}") for machines in ("this", "ray")]
    arguments = [verb, str(images), "--batch-size", "8"]
    assert main([*arguments, "--out", places[0]]) == 0
    with Killer([0]) as killer:
        assert main([*arguments, "--out", places[1], "--on", "ray"]) == 0
    assert len(killer.killed) == 1
    if verb == "embed":
        ours, theirs = map(np.load, places)
        assert ours.shape[0] == COUNT
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        ours, theirs = (Path(place).with_suffix(".keys.txt").read_text() for place in places)
        assert ours == theirs
    else:
        ours, theirs = (list(csv.reader(Path(place).read_text().splitlines())) for place in places)
        assert len(ours) == COUNT + 1
        assert ours == theirs
