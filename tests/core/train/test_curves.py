"""The picture of the learning curves that a run leaves."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import BATCH_SIZE, finished_run, hide_packages, no_space_left

from grr_coca.train import logs
from grr_coca.train.logs import CURVES_FILE, LOG_FILE, draw_curves
from grr_coca.train.recipe import CheckpointRecipe, EvaluationRecipe


@pytest.fixture(autouse=True)
def _with_curves(monkeypatch):
    monkeypatch.setattr(logs, "MIN_VALIDATIONS", 2)


def write_log(folder: Path, rows) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / LOG_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def validations(count, **more):
    return [
        {"step": 100 * n, "split": "val", "captioning_loss": 3.0 / n, "contrastive_loss": 2.0 / n,
         "text_to_image/R@1": 0.05 * n, "text_to_image/R@10": 0.2 * n, "image_to_text/R@10": 0.18 * n,
         "chance/R@10": 0.1, **more}
        for n in range(1, count + 1)
    ]  # fmt: skip


def training(count):
    return [
        {"step": 10 * n, "split": "train", "captioning": 30.0 / (n + 9), "contrastive": 20.0 / (n + 9)}
        for n in range(1, count + 1)
    ]


def colours(path) -> set[tuple[int, ...]]:
    with Image.open(path) as image:
        return {tuple(pixel) for pixel in np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()}


BLUE, ORANGE = (0x1B, 0x6C, 0xA8), (0xD1, 0x74, 0x1F)


@pytest.mark.ci
def test_run_leaves_an_image_of_its_curves(tmp_path):
    run = finished_run(
        tmp_path,
        steps=4,
        evaluation=EvaluationRecipe(interval=2, batch_size=BATCH_SIZE),
        checkpoints=CheckpointRecipe(keep_best="text_to_image/R@10"),
    )
    assert {BLUE, ORANGE} <= colours(run.folder / CURVES_FILE)


@pytest.mark.ci
def test_training_and_validation_are_drawn(tmp_path):
    folder = write_log(tmp_path / "run", [*training(40), *validations(4)])
    draw_curves(folder, best_step=300)
    assert {BLUE, ORANGE} <= colours(folder / CURVES_FILE)
    before = (folder / CURVES_FILE).read_bytes()
    write_log(folder, [*training(40), *validations(4, captioning_loss=1.0)])
    draw_curves(folder, best_step=300)
    assert (folder / CURVES_FILE).read_bytes() != before


def test_one_validation_is_not_a_curve(tmp_path):
    draw_curves(write_log(tmp_path / "run", validations(1)), None)
    assert not (tmp_path / "run" / CURVES_FILE).exists()


def test_log_without_some_losses_is_drawn(tmp_path):
    rows = [{"step": n, "split": "val", "text_to_image/R@1": 0.1 * n, "captioning_loss": float("nan")} for n in (1, 2)]
    draw_curves(write_log(tmp_path / "run", rows), None)
    assert (tmp_path / "run" / CURVES_FILE).is_file()


def test_without_matplotlib_nothing_is_drawn(tmp_path, monkeypatch):
    hide_packages(monkeypatch, "matplotlib")
    draw_curves(write_log(tmp_path / "run", validations(3)), None)
    assert not (tmp_path / "run" / CURVES_FILE).exists()


def test_full_disk_does_not_end_the_run(tmp_path, monkeypatch, caplog: pytest.LogCaptureFixture):
    folder = write_log(tmp_path / "run", validations(3))
    monkeypatch.setattr("os.fsync", no_space_left)
    with caplog.at_level(logging.WARNING):
        draw_curves(folder, None)
    assert "curves.png: cannot be written (No space left on device)" in caplog.text
    assert [path.name for path in folder.iterdir()] == [LOG_FILE]
