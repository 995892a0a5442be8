"""Pages match the code: commands, files, measured numbers and recipes."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import grr_coca
from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.train.recipe import Recipe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CLI = DOCS / "cli.md"
SRC = ROOT / "src" / "grr_coca"
WRITTEN = sorted(page for page in DOCS.rglob("*.md") if DOCS / "_build" not in page.parents)  # the site has copies
PAGES = [ROOT / "README.md", *WRITTEN, *sorted((ROOT / "benchmarks").glob("*.md"))]


def words(text: str) -> list[str]:
    """Return the words of a text, without the frames that depend on the width of the terminal."""
    return [word for word in text.split() if not re.fullmatch("[-─│╭╮╰╯]+", word)]


@pytest.fixture
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.mark.usefixtures("_scripts")
def test_page_of_commands_is_their_help():
    from cli_page import PAGE, page

    assert words(PAGE.read_text(encoding="utf-8")) == words(page()), "run `python docs/cli_page.py`"


@pytest.mark.usefixtures("_scripts")
def test_tables_are_the_newest():
    from publish import TABLE, TABLED, published

    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        assert len(TABLE.findall(text)) == text.count("<!-- measured "), path
        assert path in TABLED or "<!-- measured " not in text, path
        assert published(text) == text, f"{path}: run `make bench-docs`"


@pytest.mark.usefixtures("_scripts")
def test_numbers_equal_the_measurements():
    from publish import lacking, pieces_of_pages

    pieces = pieces_of_pages()
    assert sum(piece.count("{") for each in pieces.values() for piece in each) > 100
    assert {path.name: lacking(path, each) for path, each in pieces.items() if lacking(path, each)} == {}


@pytest.mark.usefixtures("_scripts")
def test_wrong_number_is_reported(tmp_path):
    from publish import lacking

    key = "training.json rows:full-bf16:ratios:speed"
    pieces = [
        f"{{{key} .2f}} times as fast, or {{{key} .0%}}",
        "beams: {captioning.json cells:method=beam,batch=8,tokens=20:ratio .1f}",
    ]
    page = tmp_path / "page.md"
    page.write_text("It is **2.19 times** as\nfast, or [219 %](there.md).\nbeams: 30.4 times\n")
    assert lacking(page, pieces) == []
    page.write_text(page.read_text().replace("219", "218"))
    assert lacking(page, pieces) == ["2.19 times as fast, or 219 %"]


BLOCK = re.compile(r"^```(?P<kind>\w*)\n(?P<lines>.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\.venv/bin/)?grr-coca (?P<words>[^#\n]+)", re.MULTILINE)


def shell_lines(path: Path) -> str:
    """Return the shell commands of a page."""
    blocks = BLOCK.finditer(path.read_text(encoding="utf-8"))
    return "".join(block["lines"] for block in blocks if block["kind"] in ("", "bash"))


def test_commands_of_the_pages_exist():
    """Each command, and each of its options, is on the page of commands, which contains their help."""
    helps = dict(re.findall(r"^##+ ([^\n]+)\n\n```text\n(.*?)^```$", CLI.read_text(encoding="utf-8"), re.M | re.S))
    wrong = []
    for path in PAGES:
        for command in COMMAND.finditer(shell_lines(path)):
            verb = next(
                (verb for verb in sorted(helps, key=len, reverse=True) if command["words"].startswith(verb)), ""
            )
            known = helps.get(verb, "") + "--help"
            flags = re.findall(r"(?<= )-{1,2}[a-z][\w-]*", command["words"])
            if not all(re.search(rf"(?<![\w-]){flag}\b", known) for flag in flags) or not (
                verb or command["words"].startswith("COMMAND")
            ):
                wrong.append((path.name, command[0]))
    assert wrong == []


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    benchmarks = re.findall(r"\w+", re.findall(r"^BENCHMARKS := (.+)", makefile, re.MULTILINE)[0])
    targets = {
        *re.findall(r"^([\w-]+)(?: [\w-]+)*:", makefile, re.MULTILINE),
        *(f"bench-{name}" for name in benchmarks),
    }
    text = "\n".join(shell_lines(path) + path.read_text(encoding="utf-8").replace("`", "\n") for path in PAGES)
    named = set(re.findall(r"^make ([\w-]+)(?:$| {2,}#| \w+=)", text, re.MULTILINE))
    assert {"try", "demo", "test"} <= named
    assert named <= targets


WALK = re.compile(r"^### From (?P<title>.+)\n(?P<text>(?:(?!##).*\n)+)", re.MULTILINE)
TITLES = ("a pair to its loss and its gradients", "an image to its caption", "a query to its hits")


def walks() -> dict[str, list[str]]:
    """The files that each example of "How it works" names, in order."""
    page = (DOCS / "how-it-works.md").read_text(encoding="utf-8")
    named = {walk["title"]: re.findall(r"(?<!\[)`([\w/]+\.py)`", walk["text"]) for walk in WALK.finditer(page)}
    return {title: list(dict.fromkeys(files)) for title, files in named.items()}


def _imports(file: str) -> set[str]:
    folder = SRC if (SRC / file).exists() else SRC.parent
    modules = re.findall(r"from (grr_coca[\w.]*) import", (folder / file).read_text(encoding="utf-8"))
    return {f"{module.removeprefix('grr_coca.').replace('.', '/')}.py" for module in modules}


@pytest.mark.parametrize("title", TITLES)
def test_files_of_a_walk_import_each_other(title):
    walk = walks()[title]
    imports = {file: _imports(file) & set(walk) - {file} for file in walk}
    assert [file for file in walk if not imports[file] and not any(file in other for other in imports.values())] == []


def test_walk_to_the_loss_covers_all_boxes_of_the_figure():
    walk = walks()["a pair to its loss and its gradients"]
    way = walk[: walk.index("train/step.py")]
    boxes = {
        name for file in way for name in _imports(file) if re.fullmatch(r"model/(?!config|checkpoint)\w+\.py", name)
    }
    assert boxes - set(way) == set()


def test_paths_between_backticks_exist():
    missing, places = set(), (ROOT, SRC, SRC.parent)
    for path in PAGES:
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        named = re.findall(r"`((?:src|tests|docs|benchmarks|recipes|scripts|datasets)/[\w./-]+|[\w/]+/\w+\.py)`", text)
        missing |= {(path.name, name) for name in named if not any((place / name).exists() for place in places)}
    missing = {(page, name) for page, name in missing if not name.startswith("docs/_build")}  # made by `make docs`
    added = {
        "adding-a-part.md": ["src/grr_coca/model/sine.py", "tests/core/model/test_sine.py"],
        "adding.md": [
            "src/grr_coca/cli/similarity.py",
            "tests/core/cli/test_similarity.py",
            "src/grr_coca_serve/endpoints/similarity.py",
            "tests/serve/test_serve_similarity.py",
            "tests/search/test_iso.py",
        ],
    }
    assert missing == {(page, name) for page, names in added.items() for name in names}


def test_recipes_of_training_and_encoder_pages_are_valid():
    pages = "".join((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("training", "encoders"))
    whole, *parts = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", pages, re.DOTALL))
    recipe = from_dict(Recipe, whole, "training.md")
    assert asdict(recipe)["model"]["preset"] == "grr_coca"
    for part in parts:
        from_dict(Recipe, {**to_dict(recipe), **part}, "training.md")


def test_training_loop_of_the_training_page_works(make_batch, tmp_path):
    page = (DOCS / "training.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    before = grr_coca.load("icons", engine="torch").checkpoint
    batches = [make_batch(before.config, num_words=[1, 3], seed=seed) for seed in range(2)]
    names["train"](batches, tmp_path / "trained")
    after = grr_coca.load(tmp_path / "trained").checkpoint
    assert after.step == before.step + 2
    weights = (checkpoint.model.image_proj.weight for checkpoint in (before, after))
    assert not torch.equal(*weights)


def test_glossary_has_the_names_that_a_reader_meets_first():
    terms = set(re.findall(r"^(.+)\n: ", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"caption", "`Batch`", "checkpoint", "recipe", "split", "contrastive loss", "R@k, recall at k"} <= terms
