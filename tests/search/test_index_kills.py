"""`grr-coca index`, killed at random moments of its life: nothing is lost, and nothing is there twice."""

import shutil
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grr_coca.search.index import open_store
from processes import running

PROGRAM = """if True:
    import sys
    from grr_coca.cli import main
    from grr_coca.search import update
    update.SECONDS_BETWEEN_COMMITS = float(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
"""
AS_EVER, OFTEN = "5.0", "0.1"
"""Seconds between commits. Most runs commit often, so that many are killed between two commits."""
BROKEN = b"no image"
ROUNDING = 2e-3
"""Of embeddings in half precision. Images that go through the model side by side move each other's last bits."""


def draw(path: Path, random: np.random.Generator) -> None:
    coarse = Image.fromarray(random.integers(0, 256, (3, 3, 3), np.uint8))
    coarse.resize((96, 96), Image.Resampling.BICUBIC).save(path)


def stir(folder: Path, random: np.random.Generator, number: int, count: int) -> None:
    """Change a folder of images: new ones, and of those that are there some redrawn, moved, copied and removed."""
    folder.mkdir(exist_ok=True)
    there = sorted(folder.glob("*.png"))
    some = iter(random.permutation(len(there)).tolist())
    for k in range(len(there) // 50):
        draw(there[next(some)], random)
        there[next(some)].rename(folder / f"moved-{number}-{k}.png")
        shutil.copy(there[next(some)], folder / f"copied-{number}-{k}.png")
    for _ in range(len(there) // 4):
        there[next(some)].unlink()
    for k in range(count):
        draw(folder / f"{number}-{k}.png", random)
    (folder / f"broken-{number}.png").write_bytes(BROKEN)


def indexing(folder: Path, location: str, between_commits: str = AS_EVER) -> AbstractContextManager[subprocess.Popen]:
    arguments = [between_commits, "index", str(folder), "--out", location, "--batch-size", "4"]
    return running([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def run_to_the_end(folder: Path, location: str) -> float:
    """Index a folder undisturbed; the seconds that it took."""
    began = time.monotonic()
    with indexing(folder, location) as process:
        _, said = process.communicate()
    assert process.returncode == 0, said.decode()
    return time.monotonic() - began


def kept(location: str) -> tuple[dict, dict, list]:
    """Entries and embeddings by name, and what could not be read."""
    store = open_store(location)
    try:
        everything = list(store.everything())
        entries = {entry.name: entry for entry, _ in everything}
        assert len(store) == len(everything) == len(entries), "an image is there twice"
        return entries, {entry.name: np.float32(vector) for entry, vector in everything}, store.failures()
    finally:
        store.close()


def require_whole(location: str, before: dict, images: Path) -> dict:
    """What is kept after a kill: of one image each, and all that was kept before and is still in the folder."""
    store = open_store(location, is_optional=True)
    if store is None:
        assert before == {}, "an index that was there is not any more"
        return {}
    store.close()
    entries, vectors, _ = kept(location)
    for name, vector in vectors.items():
        assert abs(np.linalg.norm(vector) - 1) < ROUNDING, name
    lost = [name for name in before if name not in entries and Path(name).exists()]
    assert lost == []
    return entries


@pytest.mark.parametrize(
    ("kills", "count"), [(3, 100), pytest.param(20, 400, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_an_index_command_that_is_killed_loses_nothing_and_has_nothing_twice(location, tmp_path, kills, count):
    random, images = np.random.default_rng(0), tmp_path / "pictures"
    stir(images, random, 0, count)
    life = run_to_the_end(images, f"{location}_undisturbed")
    entries: dict = {}
    killed = interrupted = number = 0
    while killed < kills:
        with indexing(images, location, AS_EVER if number % 4 == 3 else OFTEN) as process:
            time.sleep(life * random.random())
            process.send_signal(signal.SIGKILL)
            _, said = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), said.decode()
        killed += process.returncode == -signal.SIGKILL
        before, entries = entries, require_whole(location, entries, images)
        interrupted += 0 < sum(name not in before for name in entries) < count
        number += 1
        stir(images, random, number, count)
    print(f"{killed} kills, {interrupted} of them with a part of the images committed")
    run_to_the_end(images, location)
    run_to_the_end(images, f"{location}_new")
    ours, vectors, failures = kept(location)
    theirs, expected, expected_failures = kept(f"{location}_new")
    assert ours == theirs
    assert failures == expected_failures
    assert len(failures) == sum(path.read_bytes() == BROKEN for path in images.iterdir()) > 0
    assert max(np.abs(vectors[name] - expected[name]).max() for name in theirs) < ROUNDING
