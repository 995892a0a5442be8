"""`--on ray`, on a cluster of two workers of which one is killed. `make test-ray` runs these."""

import csv
import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import grr_coca
from grr_coca.cli import main

pytestmark = pytest.mark.skipif("GRR_COCA_TEST_RAY" not in os.environ, reason="runs by `make test-ray`")
WORKER = b"MapWorker"
COUNT = 200
MOST_SECONDS = 6.0
"""That a worker lives before it is killed: it takes some of them to load the model, and the rest to work."""


@pytest.fixture(scope="module")
def cluster():
    """Two workers on this machine."""
    import ray

    ray.init(
        num_cpus=2,
        log_to_driver=False,
        logging_level="ERROR",
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        Image.new("RGB", (40, 40), (number % 256, number * 7 % 256, 255 - number % 256)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def workers() -> list[int]:
    """Processes of the cluster of this process that describe pictures."""
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


@contextmanager
def a_worker_killed(seed: int):
    """End one worker at a random moment of its life, as the kernel does when memory is short; yields what was ended."""
    random, killed, is_over = np.random.default_rng(seed), [], threading.Event()

    def kill() -> None:
        while not is_over.is_set() and not workers():
            time.sleep(0.05)
        is_over.wait(MOST_SECONDS * random.random())
        for worker in random.permutation(workers()).tolist()[:1]:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
                killed.append(worker)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        is_over.set()
        killer.join()


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_each_picture_is_indexed_once_though_workers_are_killed(cluster, pictures, tmp_path, kills):
    done = number = 0
    while done < kills:
        number += 1
        with (
            a_worker_killed(number) as killed,
            grr_coca.Index.open(tmp_path / f"index-{number}", create=True, batch_size=8) as index,
        ):
            update = index.add(pictures, on="ray")
            names = [entry.name for entry, _ in index.store.everything()]
            assert sorted(names) == sorted(str(path) for path in pictures.glob("[0-9]*.png"))
            assert len(index) == update.new == COUNT
            assert [failure.name for failure in update.failures] == [str(pictures / "broken.png")]
            (hit,) = index.search(image=str(pictures / "0.png"), n=1, fold=False)
            assert hit.score > 0.99
        done += len(killed)
    print(f"{done} workers killed in {number} runs")


def test_embeddings_and_captions_come_once_and_in_order_though_a_worker_is_killed(cluster, pictures, tmp_path):
    for seed, verb in enumerate(("embed", "caption")):
        suffix = {"embed": "npy", "caption": "csv"}[verb]
        places = [str(tmp_path / f"{machines}.{suffix}") for machines in ("this", "ray")]
        arguments = [verb, str(pictures), "--batch-size", "8"]
        assert main([*arguments, "--out", places[0]]) == 0
        with a_worker_killed(seed) as killed:
            assert main([*arguments, "--out", places[1], "--on", "ray"]) == 0
        assert killed
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
