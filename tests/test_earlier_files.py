"""Files that an earlier commit wrote still open: a recipe, a run, its checkpoint, a teacher, an index and its export.

They lie in `earlier/COMMIT`, written by the code of that commit. The run was stopped after step 4 of 8. `step-8.json`
is the last row of its log after that code had continued it.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from grr_coca import Index
from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.checkpoint_metrics import pair_results
from grr_coca.evaluate.split import aggregate, scaling_of
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.model.losses import LossWeights
from grr_coca.search.portable import import_parquet
from grr_coca.search.stores import open_store
from grr_coca.train.logs import read_metrics
from grr_coca.train.loop import train
from grr_coca.train.recipe import load_recipe
from support import ALONE, silent

EARLIER = Path(__file__).parent / "earlier" / "f3ecb185"
WRITTEN_IN = "/mnt"
"""The folder in which these files were written; recipe and index have its path."""

POINT = "checkpoints/step-000000004"


@pytest.fixture
def earlier(tmp_path):
    """A copy of the files, to be written to. Paths in the recipe lead there."""
    folder = shutil.copytree(EARLIER, tmp_path / "earlier")
    recipe = folder / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(f"{WRITTEN_IN}/", f"{folder}/"))
    return folder


def test_the_recipe_has_its_values(earlier):
    written = yaml.safe_load((earlier / "run" / "recipe.yaml").read_text())
    found = to_dict(load_recipe(earlier / "run" / "recipe.yaml"))

    def has(found, wanted):
        return all(
            has(found[key], value) if isinstance(value, dict) else found[key] == value for key, value in wanted.items()
        )

    assert has(found, written)
    assert written["teacher"]["words"] == 0


def test_the_checkpoint_has_the_numbers_of_its_validation(earlier):
    checkpoint = from_pretrained(earlier / "run" / POINT)
    results = pair_results(checkpoint, open_source(str(earlier / "pairs.tar")), 6, ALONE)
    found = aggregate(results, scaling_of(checkpoint.model), 6, LossWeights()).flat()
    (row,) = read_metrics(earlier / "run", "val")
    assert {name: row[name] for name in found} == pytest.approx(found, rel=1e-5)


def test_the_run_goes_on_as_it_would_have(earlier):
    recipe, run = load_recipe(earlier / "run" / "recipe.yaml"), earlier / "run"
    train(recipe, from_pretrained(run / POINT), run, ALONE, silent, run / POINT)
    last, wanted = read_metrics(run, "train")[-1], json.loads((earlier / "step-8.json").read_text())
    assert {name: last[name] for name in wanted if name != "split"} == pytest.approx(
        {name: value for name, value in wanted.items() if name != "split"}, rel=1e-4
    )


def test_the_index_gives_its_hits_and_can_be_written_to(earlier):
    wanted = {hit["path"]: (hit["caption"], hit["score"]) for hit in json.loads((earlier / "hits.json").read_text())}
    checkpoint = earlier / "run" / POINT
    with Index.open(earlier / "index", checkpoint) as index:
        found = {hit.path: (hit.caption, hit.score) for hit in index.search("a small boat")}
        assert found.keys() == wanted.keys()
        for path, (caption, score) in wanted.items():
            assert found[path] == (caption, pytest.approx(score, abs=1e-3))
        photo = f"{WRITTEN_IN}/pictures/harbour.jpg"
        assert [hit.path for hit in index.search("harbour", where="camera = 'Nikon D90'")] == [photo]
        assert index.search("boats").hits[0].path == photo, "it has the keyword"
        assert index.delete(where="camera = 'Nikon D90'") == 1
    with Index.open(earlier / "index", checkpoint) as index:
        assert {hit.path for hit in index.search("a small boat")} == wanted.keys() - {photo}


def test_the_export_makes_the_same_index(earlier):
    assert import_parquet(earlier / "index.parquet", str(earlier / "imported")) == 7
    with open_store(str(earlier / "index")) as first, open_store(str(earlier / "imported")) as second:
        assert first.header.fingerprint == second.header.fingerprint
        for store in (first, second):
            assert len(store) == 7
        rows = [{entry.name: entry for entry, _ in store.everything()} for store in (first, second)]
        assert rows[0] == rows[1]
