"""One look at each thing that people do: train, load, caption, embed, classify. `make test-oldest` runs it too."""

import json

import numpy as np
import pytest
from support import real_pairs

import grr_coca
from grr_coca.cli import main

pytestmark = pytest.mark.ci


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.webp"
    path.write_bytes(real_pairs(1)[0].image)
    return path


def test_three_steps_of_training_leave_a_checkpoint_and_a_log(run):
    losses = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert any(row["split"] == "val" and row["step"] == 3 for row in losses)
    assert any((run.folder / "tensorboard").iterdir())


def test_loaded_model_captions_embeds_and_classifies(run, image):
    model = grr_coca.load(run.folder)
    assert isinstance(model.caption(image), str)
    assert np.linalg.norm(model.embed_images(image)) == pytest.approx(1)
    shares = [share for _, share in model.classify(image, ["cat", "dog"])]
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize(
    "arguments",
    [
        "caption {image} -c {run}",
        "embed {image} -c {run} --out {folder}/vectors.npy",
        "embed {image} -c {run} --out {folder}/vectors.parquet",
        "classify {image} -c {run} --labels cat,dog",
        "explain {image} -c {run} --out {folder}/where.png",
        "evaluate {run} --data {shard} --batch-size 8",
        "data stats {shard}",
        "pretrain {run}/recipe.yaml --out {folder}/again",
    ],
    ids=lambda arguments: arguments.split()[0],
)
def test_command_line_does_the_same(run, image, tmp_path, arguments):
    places = {"run": run.folder, "image": image, "shard": run.shard, "folder": tmp_path}
    assert main([word.format(**places) for word in arguments.split()]) == 0
