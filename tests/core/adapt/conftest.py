"""An adapted model, and images that it has not seen."""

import pytest
from adapted import unseen_pairs, write_adapted

from grr_coca import load
from grr_coca.adapt import calibrate
from grr_coca.common.ranks import join_ranks
from grr_coca.infer.load import locate_checkpoint
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.train.loop import train
from grr_coca.train.recipe import DataRecipe, EvaluationRecipe, OptimizerRecipe, Recipe, ScheduleRecipe
from grr_coca.train.run_checkpoints import origin_of


@pytest.fixture(scope="session", autouse=True)
def _few_beams():
    """Beams take most of the time of a small fit."""
    before, calibrate._MAX_COMPARED = calibrate._MAX_COMPARED, 8
    yield
    calibrate._MAX_COMPARED = before


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """See `write_adapted`."""
    folder = tmp_path_factory.mktemp("adapt")
    write_adapted(folder)
    return folder


@pytest.fixture(scope="session")
def model(place):
    return load(place / "mine")


@pytest.fixture(scope="session")
def unseen(place):
    return unseen_pairs(place)


@pytest.fixture(scope="session")
def run(place, tmp_path_factory):
    """`icons`, fine-tuned on the pairs for three steps. Every 20th image is held out."""
    out = tmp_path_factory.mktemp("run") / "mine"
    recipe = Recipe(
        data=DataRecipe(train=str(place / "pairs.tar"), batch_size=32),
        optimizer=OptimizerRecipe("muon", lr=0.003),
        schedule=ScheduleRecipe(steps=3, warmup_steps=1),
        evaluation=EvaluationRecipe(interval=10, batch_size=4),
        precision="fp32",
    )
    with join_ranks() as ranks:
        start = locate_checkpoint("icons")
        train(recipe, from_pretrained(start), out, ranks, lambda *_: None, origin=origin_of(start))
    return out
