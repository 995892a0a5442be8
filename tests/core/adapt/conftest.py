"""An adapted model, and images that it has not seen."""

import pytest
from adapted import unseen_pairs, write_adapted

from grr_coca import load
from grr_coca.adapt import calibrate


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
