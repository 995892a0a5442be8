"""`grr-coca index`, killed at random moments, loses and duplicates no image."""

import shutil
import signal
import time
from functools import partial
from pathlib import Path

import drivers
import numpy as np
import pytest
from PIL import Image
from processes import Launch, cli, launch

from grr_coca_search.store import find_store, open_store

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
    for k in range(len(there) // 20):
        draw(there[next(some)], random)
        there[next(some)].rename(folder / f"moved-{number}-{k}.png")
        shutil.copy(there[next(some)], folder / f"copied-{number}-{k}.png")
    for _ in range(len(there) // 4):
        there[next(some)].unlink()
    for k in range(count):
        draw(folder / f"{number}-{k}.png", random)
    (folder / f"broken-{number}.png").write_bytes(BROKEN)


def start(folder: Path, location: str, driver=None) -> Launch:
    command = partial(cli, driver=driver)
    return launch(folder.with_name("said"), command, "index", folder, "--out", location, "--batch-size", 4)


def run_to_the_end(folder: Path, location: str) -> float:
    """Index a folder undisturbed; the seconds that it took."""
    began = time.monotonic()
    start(folder, location).finish()
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
    store = find_store(location)
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
    ("kills", "count"),
    [
        pytest.param(3, 40, marks=pytest.mark.ci),
        pytest.param(20, 400, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_killed_index_command_loses_and_duplicates_nothing(location, tmp_path, kills, count):
    random, images = np.random.default_rng(0), tmp_path / "pictures"
    stir(images, random, 0, count)
    launch(tmp_path / "said", cli, "--help").finish()  # the first process waits for what all are forked from
    life = run_to_the_end(images, f"{location}_undisturbed")
    entries: dict = {}
    killed = interrupted = number = 0
    while killed < kills:
        # Most runs commit often, so that many are killed between two commits.
        process = start(images, location, None if number % 4 == 3 else drivers.commit_often)
        time.sleep(life * random.random())
        process.kill()
        (code,) = process.wait()
        assert code in (0, -signal.SIGKILL), process.text()
        killed += code == -signal.SIGKILL
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
