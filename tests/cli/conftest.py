"""Runs of the command line in this process."""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from grr_coca.cli import main
from support import finished_run, real_pairs


class Said(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str


@pytest.fixture
def grr_coca(capsys) -> Callable[..., Said]:
    """Run `grr-coca ARGUMENTS`."""

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # wrong flags, and --help
            code = stop.code
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(grr_coca) -> Callable[..., str]:
    """Run a command that must be refused with one message; returns the message."""

    def run(*arguments: object) -> str:
        said = grr_coca(*arguments)
        assert said.code == 2
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1, "one line"
        return said.err

    return run


@pytest.fixture(scope="session")
def baseline(tmp_path_factory, run):
    """A run of the baseline on the same pairs."""
    from dataclasses import replace

    model = replace(run.recipe.model, preset="baseline_coca")
    return finished_run(tmp_path_factory.mktemp("baseline"), steps=3, model=model)


@pytest.fixture
def image_files(tmp_path):
    """Three image files in a folder of their own."""
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / f"{number}.webp" for number in range(3)]
    for path, pair in zip(paths, real_pairs(3), strict=True):
        path.write_bytes(pair.image)
    return paths
