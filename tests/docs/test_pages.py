"""What the pages say of the code is true of it: commands, files, figures and recipes."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import grr_coca
from grr_coca.structure import from_dict, to_dict
from grr_coca.train.recipe import Recipe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SRC = ROOT / "src" / "grr_coca"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]


def words(text: str) -> list[str]:
    """A text without what a terminal's width changes."""
    return [word for word in text.split() if not re.fullmatch("[-─│╭╮╰╯]+", word)]


@pytest.fixture
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.mark.usefixtures("_scripts")
def test_the_page_of_commands_is_their_help() -> None:
    from cli_page import PAGE, page

    assert words(PAGE.read_text(encoding="utf-8")) == words(page()), "run `python docs/cli_page.py`"


@pytest.mark.usefixtures("_scripts")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_tables_and_figures_are_the_newest(path: Path) -> None:
    from publish import FIGURE, TABLE, published

    text = path.read_text(encoding="utf-8")
    places = len(FIGURE.findall(text)) + len(TABLE.findall(text))
    assert places == text.count("<!-- figure ") + text.count("<!-- measured "), "a place is cut by the end of a line"
    assert published(text) == text, "run `make bench-docs`"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_line_begins_with_a_figure(path: Path) -> None:
    """Markdown takes a comment at a line's beginning for a block of its own, and breaks the sentence there."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.lstrip().startswith("<!-- figure")] == []


@pytest.mark.usefixtures("_scripts")
def test_a_figure_is_written_as_its_place_asks() -> None:
    from publish import published

    place = "<!-- figure training.json rows:full-bf16:ratios:speed {} -->?<!-- end -->"
    assert published(place.format(".2f")) == place.format(".2f").replace("?", "2.19")
    assert published(place.format(".0%")) == place.format(".0%").replace("?", "219 %")
    picked = "<!-- figure captioning.json cells:method=beam,batch=8,tokens=20:ratio .1f -->?<!-- end -->"
    assert published(picked) == picked.replace("?", "30.4")


WALK = re.compile(r"^### From (?P<title>.+)\n\n(?P<steps>(?:\d+\. .+\n(?: .+\n)*)+)", re.MULTILINE)
STEP = re.compile(r"^\d+\. `(?P<file>[\w/]+\.py)`: (?P<sentence>(?:[^.]|\.\b)+\.)$", re.MULTILINE)
MAX_FILES = {"a pair to its loss": 12, "an image to its caption": 12, "a query to its hits": 10}


def walks() -> dict[str, list[str]]:
    """The files of each walk through the code, in order."""
    page = (DOCS / "how-it-works.md").read_text(encoding="utf-8")
    found = {}
    for walk in WALK.finditer(page):
        steps = re.sub(r"\n +", " ", walk["steps"])
        found[walk["title"]] = [step["file"] for step in STEP.finditer(steps)]
        assert len(found[walk["title"]]) == len(steps.splitlines()), "a file and one sentence each"
    return found


def _imports(file: str) -> set[str]:
    source = (SRC / file).read_text(encoding="utf-8")
    return {f"{module.replace('.', '/')}.py" for module in re.findall(r"from grr_coca\.([\w.]+) import", source)}


def test_the_walks_are_short() -> None:
    assert {title: len(walk) <= MAX_FILES.get(title, 0) for title, walk in walks().items()} == dict.fromkeys(
        MAX_FILES, True
    )


@pytest.mark.parametrize("title", MAX_FILES)
def test_each_file_of_a_walk_is_imported_by_another_or_imports_it(title: str) -> None:
    walk = walks()[title]
    assert len(set(walk)) == len(walk)
    imports = {file: _imports(file) & set(walk) - {file} for file in walk}
    assert [file for file in walk if not imports[file] and not any(file in other for other in imports.values())] == []


def test_the_walk_to_the_loss_leaves_out_no_box_of_the_figure() -> None:
    walk = walks()["a pair to its loss"]
    boxes = {name for file in walk for name in _imports(file) if re.fullmatch(r"model/\w+\.py|losses\.py", name)}
    assert boxes - set(walk) == set()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_paths_between_backticks_exist(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = re.findall(r"`((?:src|tests|docs|benchmarks|recipes|scripts|datasets)/[\w./-]+|[\w/]+/\w+\.py)`", text)
    added = {"src/grr_coca/layers/sine.py", "tests/layers/test_sine.py"} if path.name == "adding-a-part.md" else set()
    missing = {name for name in named if not (ROOT / name).exists() and not (SRC / name).exists()}
    assert missing <= added


def test_the_recipe_of_the_training_page_is_one() -> None:
    page = (DOCS / "training.md").read_text(encoding="utf-8")
    whole, *parts = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    recipe = from_dict(Recipe, whole, "training.md")
    assert asdict(recipe)["model"]["preset"] == "grr_coca"
    for part in parts:
        from_dict(Recipe, {**to_dict(recipe), **part}, "training.md")


def test_the_training_loop_of_the_training_page_works(make_batch, tmp_path: Path) -> None:
    page = (DOCS / "training.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    before = grr_coca.load("icons").checkpoint
    batches = [make_batch(before.config, num_words=[1, 3], seed=seed) for seed in range(2)]
    names["train"](batches, tmp_path / "trained")
    after = grr_coca.load(tmp_path / "trained").checkpoint
    assert after.step == before.step + 2
    weights = (checkpoint.model.image_proj.weight for checkpoint in (before, after))
    assert not torch.equal(*weights)


def test_the_glossary_has_the_names_that_a_reader_meets_first() -> None:
    terms = set(re.findall(r"^(.+)\n: ", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"caption", "`Batch`", "`Checkpoint`", "`Recipe`", "split", "contrastive loss", "R@k, recall at k"} <= terms
