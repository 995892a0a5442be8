"""Files that earlier commits wrote still open: recipes, runs, checkpoints, teachers, indexes, their exports, a study.

They are in `earlier/COMMIT`, written by the code of that commit. Each run was stopped some steps before its end.
`last.json` is the last row of its log after that code had continued it, and `expected.json` what that code computed
with its models.
"""

import io
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from support import ALONE, silent, snapshot

import grr_coca
from grr_coca import Index
from grr_coca.cli import main
from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.split import aggregate, pair_results, scaling_of
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.model.losses import LossWeights
from grr_coca.train.logs import read_metrics
from grr_coca.train.loop import train
from grr_coca.train.recipe import load_recipe
from grr_coca_search.portable import import_parquet
from grr_coca_search.store import open_store
from grr_coca_study.stages import data_digest, recipe_digest

EARLIER = Path(__file__).parent / "earlier"
WRITTEN_IN = "/mnt"
"""The folder in which these files were written; recipes and indexes have its path."""
CAMERAS = {"f3ecb185": "Nikon D90", "997d95f4": "FUJIFILM X100V"}
"""What wrote the only photograph of each index."""
KEYWORDS = {"f3ecb185": "boats", "997d95f4": "zebra"}
"""A keyword of that photograph."""
NEWEST = "997d95f4"
"""The commit of which more was kept: models of other architectures, what they compute, and a study."""


@dataclass(frozen=True)
class State:
    """A copy of the files of a commit, to be written to. Paths in the recipes lead there."""

    commit: str
    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def point(self) -> Path:
        """The only checkpoint of the run."""
        (found,) = (self.run / "checkpoints").iterdir()
        return found

    def read(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


def copied(commit: str, tmp_path: Path) -> State:
    folder = shutil.copytree(EARLIER / commit, tmp_path / "earlier")
    for recipe in (folder / "run" / "recipe.yaml", folder / "pictograms.yaml"):
        if recipe.exists():
            recipe.write_text(recipe.read_text().replace(f"{WRITTEN_IN}/", f"{folder}/"))
    return State(commit, folder)


@pytest.fixture(params=sorted(path.name for path in EARLIER.iterdir()))
def earlier(request, tmp_path):
    return copied(request.param, tmp_path)


@pytest.fixture
def newest(tmp_path):
    return copied(NEWEST, tmp_path)


def test_recipe_has_its_values(earlier):
    written = yaml.safe_load((earlier.run / "recipe.yaml").read_text())
    found = to_dict(load_recipe(earlier.run / "recipe.yaml"))

    def has(found, recorded):
        return all(
            has(found[key], value) if isinstance(value, dict) else found[key] == value
            for key, value in recorded.items()
        )

    assert has(found, written)
    assert written["teacher"]["words"] == 0


def test_checkpoint_has_the_numbers_of_its_validation(earlier):
    checkpoint = from_pretrained(earlier.point)
    results = pair_results(checkpoint, open_source(str(earlier.folder / "pairs.tar")), 6, ALONE)
    found = aggregate(results, scaling_of(checkpoint.model), 6, LossWeights()).flat()
    (row,) = read_metrics(earlier.run, "val")
    assert {name: row[name] for name in found} == pytest.approx(found, rel=1e-4)


def test_run_continues_identically(earlier):
    recipe, run, point = load_recipe(earlier.run / "recipe.yaml"), earlier.run, earlier.point
    train(recipe, from_pretrained(point), run, ALONE, silent, point)
    last, recorded = read_metrics(run, "train")[-1], earlier.read("last.json")
    assert {name: last[name] for name in recorded if name != "split"} == pytest.approx(
        {name: value for name, value in recorded.items() if name != "split"}, rel=1e-3
    )


def test_index_gives_its_hits_and_can_be_written_to(earlier):
    recorded = {hit["path"]: (hit["caption"], hit["score"]) for hit in earlier.read("hits.json")}
    camera = f"camera = '{CAMERAS[earlier.commit]}'"
    with Index.open(earlier.folder / "index", earlier.point) as index:
        found = {hit.path: (hit.caption, hit.score) for hit in index.search("a small boat")}
        assert found.keys() == recorded.keys()
        for path, (caption, score) in recorded.items():
            assert found[path] == (caption, pytest.approx(score, abs=1e-3))
        photo = f"{WRITTEN_IN}/pictures/harbour.jpg"
        assert [hit.path for hit in index.search("harbour", where=camera)] == [photo]
        assert index.search(KEYWORDS[earlier.commit]).hits[0].path == photo
        assert index.delete(where=camera) == 1
    with Index.open(earlier.folder / "index", earlier.point) as index:
        assert {hit.path for hit in index.search("a small boat")} == recorded.keys() - {photo}


def test_export_makes_the_same_index(earlier):
    assert import_parquet(earlier.folder / "index.parquet", str(earlier.folder / "imported")) == 7
    with (
        open_store(str(earlier.folder / "index")) as first,
        open_store(str(earlier.folder / "imported")) as second,
    ):
        assert first.header.fingerprint == second.header.fingerprint
        for store in (first, second):
            assert len(store) == 7
        rows = [{entry.name: entry for entry, _ in store.everything()} for store in (first, second)]
        assert rows[0] == rows[1]


@pytest.mark.parametrize("name", ["run", "baseline_coca", "open_clip", "graphs"])
def test_models_compute_recorded_results(newest, name):
    recorded = newest.read("expected.json")
    shard = open_source(str(newest.folder / "pairs.tar"))
    images = [Image.open(io.BytesIO(shard[number].image)) for number in range(6)]
    folder = newest.point if name == "run" else newest.folder / name
    model, expected = grr_coca.load(folder, "cpu", "onnx" if name == "graphs" else "torch"), recorded["models"][name]
    assert model.fingerprint == expected["fingerprint"]
    assert model.caption(images) == expected["captions"]
    np.testing.assert_allclose(model.embed_images(images), expected["images"], atol=1e-4)
    np.testing.assert_allclose(model.embed_texts(recorded["texts"]), expected["texts"], atol=1e-4)


def test_digests_of_recipe_and_data_equal_recorded_ones(newest):
    recipe, recorded = load_recipe(newest.run / "recipe.yaml"), newest.read("expected.json")
    where_it_was = replace(recipe, teacher=replace(recipe.teacher, path=f"{WRITTEN_IN}/teacher"))
    assert recipe_digest(where_it_was, None) == recorded["recipe_digest"]
    assert data_digest(recipe) == recorded["data_digest"]


def test_finished_study_has_nothing_to_do(newest, capsys):
    """Rows that did not count any more would be run again."""
    before = snapshot(newest.folder / "study")
    assert main(["study", "run", str(newest.folder / "study.yaml")]) == 0
    assert capsys.readouterr().err == "nothing to do\n"
    assert snapshot(newest.folder / "study") == before
