"""Runs of the command line in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from grr_coca.cli import main

DRAWINGS = Path(__file__).parents[2] / "docs" / "drawings"


class CommandResult(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def grr_coca(capsys) -> Callable[..., CommandResult]:
    """Run `grr-coca ARGUMENTS`."""

    def run(*arguments: object) -> CommandResult:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # wrong flags, and --help
            code = stop.code
        return CommandResult(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(grr_coca) -> Callable[..., str]:
    """Run a command that must fail with one message, and return the message."""

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

    from support import finished_run

    model = replace(run.recipe.model, preset="baseline_coca")
    return finished_run(tmp_path_factory.mktemp("baseline"), steps=3, model=model)


@pytest.fixture(scope="session")
def drawings(tmp_path_factory):
    """An index of six drawings and two smaller copies, by a model that ships and names all of them right."""
    folder = tmp_path_factory.mktemp("search")
    for path in DRAWINGS.glob("*.webp"):
        (folder / "drawings" / path.name).parent.mkdir(exist_ok=True)
        (folder / "drawings" / path.name).write_bytes(path.read_bytes())
    for name in ("guitar", "snowman"):
        with Image.open(DRAWINGS / f"{name}.webp") as image:
            image.convert("RGB").resize((48, 48)).save(folder / "drawings" / f"{name}-small.png")
    (folder / "drawings" / "broken.png").write_bytes(b"no picture")
    assert main(["index", str(folder / "drawings"), "-c", "pictograms", "--out", str(folder / "index")]) == 0
    return folder


@pytest.fixture
def image_files(tmp_path):
    """Three image files in a folder of their own."""
    from support import real_pairs  # late: it imports training

    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / f"{number}.webp" for number in range(3)]
    for path, pair in zip(paths, real_pairs(3), strict=True):
        path.write_bytes(pair.image)
    return paths
