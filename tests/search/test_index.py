"""`Index.open`: the model of an index, and the store that it fits."""

import pytest
from library import HEADER, paint

from grr_coca.common.errors import UserError
from grr_coca.infer.load import load
from grr_coca.model.checkpoint_files import FILES
from grr_coca_search.entry import Header
from grr_coca_search.index import Index, IndexModel
from grr_coca_search.store import make_store


@pytest.fixture
def loads(monkeypatch):
    """The folders of the models that were loaded."""
    folders = []
    monkeypatch.setattr(
        "grr_coca.infer.load.load",
        lambda folder, **options: folders.append(folder) or load(folder, **options),
    )
    return folders


def test_new_index_loads_its_model_once(location, loads):
    with Index.open(location, create=True, batch_size=4) as index:
        index.model.embed_texts(["a cat"])
        assert index.model.batch_size == 4
    assert len(loads) == 1


def test_existing_index_loads_its_model_lazily(location, loads):
    Index.open(location, create=True).close()
    with Index.open(location, create=True) as index:
        assert len(loads) == 1
        index.model.embed_texts(["a cat"])
    assert len(loads) == 2


def test_rejects_a_concurrent_index_of_another_model(location, monkeypatch):
    monkeypatch.setattr("grr_coca_search.index.make_store", lambda where, _: make_store(where, HEADER))
    with pytest.raises(UserError, match=r"an index of the model 'pictograms' \(ffffffff\), not of"):
        Index.open(location, create=True)


@pytest.mark.parametrize(("name", "end"), [("icons", ""), ("pictograms", " -c pictograms")])
def test_other_model_version_error_names_the_rebuild(name, end):
    """As after an upgrade with a new model of the same name: there is no "own model" to search it with."""
    with pytest.raises(UserError) as refused:
        IndexModel(name).require(Header(name, "f" * 32, 128), "x.index")
    message = str(refused.value)
    assert f"x.index: created with another version of the model '{name}' (ffffffff, now " in message
    assert message.endswith(f"delete the index, and rebuild it with `grr-coca index IMAGES --out x.index{end}`")


def test_index_of_a_run_keeps_its_checkpoint(tmp_path):
    """The run goes on to others, whose embeddings mean something else."""
    for step in ("step-000000100", "step-000000200"):
        folder = tmp_path / "run" / "checkpoints" / step
        folder.mkdir(parents=True)
        for name in FILES:
            (folder / name).touch()
    assert IndexModel(str(tmp_path / "run")).name == str(folder)
    assert IndexModel("pictograms").name == "pictograms"


@pytest.mark.parametrize("batch_size", [0, -1])
def test_rejects_batch_sizes_below_one(location, batch_size):
    with pytest.raises(UserError, match=f"^batch_size must be at least 1, got {batch_size}$"):
        Index.open(location, create=True, batch_size=batch_size)


def test_one_pattern_can_be_passed_without_a_list(location, tmp_path):
    for name in ("a.png", "b.png"):
        paint(tmp_path / "photos" / name, "red")
    with Index.open(location, create=True) as index:
        assert index.add(tmp_path / "photos", exclude="b.*").new == 1
        assert index.store.excluded() == ("b.*",)
