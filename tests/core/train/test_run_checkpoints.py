"""The checkpoints of a run, whatever happens while one is written, and to one that was."""

import errno
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
from support import disk_of, snapshot, syncs_and_renames, warnings_of

from grr_coca.common.errors import UserError
from grr_coca.common.files import verify_folder
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.model.checkpoint_files import BEST_FILE, FILES, find_checkpoint
from grr_coca.train.logs import Progress
from grr_coca.train.recipe import Score
from grr_coca.train.run_checkpoints import CheckpointStore

TOUCHES_DISK = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")


def fill(folder: Path, content: str) -> None:
    """Something in the place of a checkpoint."""
    for name in FILES:
        (folder / name).write_text(content)
    (folder / "training").mkdir()
    (folder / "training" / "progress.json").write_text(content)


def save(store: CheckpointStore, step: int, best_step: int | None = None) -> None:
    store.save(step, partial(fill, content=f"of step {step}"), best_step)


def steps(store: CheckpointStore) -> list[int]:
    return sorted(int(path.name[5:]) for path in store.folder.glob("step-*"))


def folder_of(store: CheckpointStore, step: int) -> Path:
    return store.folder / f"step-{step:09d}"


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


# --- Killed while saving


def is_killed_at(number: int, act) -> bool:
    """Do something in a process that is killed before it touches the disk for the so-manyth time, from 1."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    calls = 0

    def counted(function, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    for name in TOUCHES_DISK:
        setattr(os, name, partial(counted, getattr(os, name)))
    try:
        act()
    finally:
        os._exit(0)


def killed_at_each_stage(make_store, act):
    """The store as each kill leaves it, until none is left."""
    number = 1
    while True:
        store = make_store()
        if not is_killed_at(number, partial(act, store)):
            break
        yield store
        number += 1
    assert number > 15, "a save touches the disk more often than that"


@pytest.fixture
def make_store(tmp_path):
    """A store with three checkpoints, the same each time."""
    filled = CheckpointStore(tmp_path / "filled", keep_last=2)
    for step in (1, 2, 3):
        save(filled, step, best_step=1)

    def make() -> CheckpointStore:
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        return CheckpointStore(shutil.copytree(filled.folder, tmp_path / "checkpoints"), keep_last=2)

    return make


@pytest.mark.ci
def test_kill_during_a_save_leaves_a_valid_checkpoint(make_store, tmp_path):
    found = set()
    for store in killed_at_each_stage(make_store, lambda store: save(store, 4, best_step=1)):
        newest = store.newest()
        assert find_checkpoint(tmp_path) == folder_of(store, 1), "the best is used"
        assert (newest / "model.safetensors").read_text() == f"of step {int(newest.name[5:])}"
        assert {1, 3} <= set(steps(store)), "the best, and one before the newest"
        for step in steps(store):
            verify_folder(folder_of(store, step))
        found.add(newest.name)
        save(store, 5, best_step=1)
        assert not list(store.folder.glob(".*")), "leftovers are removed by the next save"
    assert found == {"step-000000003", "step-000000004"}


@pytest.mark.ci
def test_kill_during_replacement_leaves_a_valid_checkpoint(make_store):
    def make_damaged():
        store = make_store()
        flip(folder_of(store, 3) / "config.json", 0)
        return store

    for store in killed_at_each_stage(make_damaged, lambda store: save(store, 3, best_step=1)):
        with warnings_of("grr_coca.train.run_checkpoints"):
            assert store.newest() in (folder_of(store, 2), folder_of(store, 3))


def test_files_are_flushed_before_the_checkpoint_is_renamed(make_store, monkeypatch):
    store, done = make_store(), syncs_and_renames(monkeypatch)
    save(store, 4)
    placed = done.index(("rename", str(folder_of(store, 4))))
    partial_folder = store.folder / ".step-000000004.partial"
    files = [path.relative_to(folder_of(store, 4)) for path in folder_of(store, 4).rglob("*")]
    assert {path for what, path in done[:placed]} == {str(partial_folder), *(str(partial_folder / f) for f in files)}
    assert done[placed + 1] == ("sync", str(store.folder))
    assert done[placed + 2 :], "and only then are older ones renamed away"


# --- A full disk


def test_full_disk_raises_and_keeps_earlier_checkpoints(tmp_path):
    with disk_of(2_000_000, tmp_path / "disk") as disk:
        store = CheckpointStore(disk / "checkpoints", keep_last=2)
        save(store, 1)
        before = snapshot(store.folder)
        with pytest.raises(UserError, match=r"step-000000002: the checkpoint cannot be written \(No space left"):
            store.save(2, lambda folder: (folder / "model.safetensors").write_bytes(bytes(3_000_000)) and None, None)
        assert snapshot(store.folder) == before
        assert [path.name for path in store.folder.iterdir()] == ["step-000000001"]
        save(store, 3)
        assert store.newest() == folder_of(store, 3)


# --- Damage


def test_flipped_bit_falls_back_with_a_warning(averaged_run):
    run = averaged_run
    store = CheckpointStore(run.folder / "checkpoints", keep_last=2)
    files = sorted(path for path in run.checkpoint.rglob("*") if path.is_file())
    assert len(files) == 11
    for path in files:
        bit = 8 * (path.stat().st_size // 2)
        flip(path, bit)
        with warnings_of("grr_coca.train.run_checkpoints") as warned:
            assert store.newest() == folder_of(store, 1)
        assert len(warned) == 1
        assert str(run.checkpoint) in warned[0]
        assert warned[0].endswith("trying an earlier checkpoint")
        with pytest.raises(UserError):
            from_pretrained(run.folder)
        flip(path, bit)
    assert store.newest() == run.checkpoint


def test_read_error_counts_as_corruption(make_store, monkeypatch):
    store = make_store()
    bad, whole_open = folder_of(store, 3) / "model.safetensors", Path.open

    def fail(path, *args, **kwargs):
        if path == bad:
            raise OSError(errno.EIO, "Input/output error")
        return whole_open(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail)
    with warnings_of("grr_coca.train.run_checkpoints") as warned:
        assert store.newest() == folder_of(store, 2)
    assert "Input/output error" in warned[0]


def test_no_checkpoint_is_found_if_all_are_corrupt(make_store):
    store = make_store()
    for step in steps(store):
        flip(folder_of(store, step) / "config.json", 3)
    with warnings_of("grr_coca.train.run_checkpoints") as warned:
        assert store.newest() is None
    assert len(warned) == len(steps(store))


# --- Which are kept


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [5]), (2, [4, 5]), (9, [1, 2, 3, 4, 5])])
def test_newest_checkpoints_are_kept(tmp_path, keep_last, kept):
    store = CheckpointStore(tmp_path / "checkpoints", keep_last)
    for step in range(1, 6):
        save(store, step)
    assert steps(store) == kept
    assert not (store.folder / BEST_FILE).exists()


def test_best_checkpoint_is_kept_and_recorded(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=1)
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2)):
        save(store, step, best)
    assert steps(store) == [2, 4]
    assert (store.folder / BEST_FILE).read_text() == '{"step": 2}\n'


def test_later_corrupt_checkpoint_does_not_replace_a_valid_one(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=1)
    for step in (10, 20):
        save(store, step, best_step=10)
    flip(folder_of(store, 20) / "config.json", 0)
    save(store, 15, best_step=10)
    assert steps(store) == [10, 15]
    assert store.newest() == folder_of(store, 15)


def test_copied_folder_is_ignored_and_kept(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=1)
    save(store, 1)
    copy = shutil.copytree(folder_of(store, 1), store.folder / "step-000000001-backup")
    save(store, 2)
    later = shutil.copytree(folder_of(store, 2), store.folder / "step-000000002 (copy)")
    assert store.newest() == find_checkpoint(tmp_path) == folder_of(store, 2)
    assert {path.name for path in store.folder.iterdir()} == {"step-000000002", copy.name, later.name}


RECALLS = {f"{way}/R@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)}
HIGHER_IS_BETTER = RECALLS | {"mean_recall", "CIDEr", "CIDEr-D", "BLEU-4", "ROUGE-L"}


@pytest.mark.parametrize("score", get_args(Score))
def test_lower_is_better_for_losses_and_higher_for_other_metrics(score):
    progress, sign = Progress(), 1 if score in HIGHER_IS_BETTER else -1
    found = [progress.record_if_best(score, sign * value, step) for step, value in enumerate([1.0, 2.0, 2.0, 1.5, 3.0])]
    assert found == [True, True, False, False, True]
    assert not progress.record_if_best(score, float("nan"), 9)
    assert (progress.best, progress.best_step) == (sign * 3.0, 4)
