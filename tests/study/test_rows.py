"""Rows on disk: each is whole, is written once, and stays."""

import errno
import json
import os
from dataclasses import replace

import pytest
from support import syncs_and_renames
from synthetic_study import plain_row

from grr_coca.common.errors import UserError
from grr_coca_study.rows import CaptionedExample, CurvePoint, LedgerRow, RowFolder, row_name, write_to_study


def a_row(**changes: object) -> LedgerRow:
    row = plain_row(
        settings={"optimizer.lr": 0.003, "optimizer.name": "muon"},
        curve=(CurvePoint(3, {"contrastive": 2.0}, {"coca_loss": 4.0}),),
        metrics={"test": {"coca_loss": 2.5, "R@1": 0.5}},
        values={"test": {"nll": [1.5, 2.25], "rank": [0, 3]}},
        captions=(CaptionedExample("grin", ("grinning face", "smile"), "smiling face ☺"),),
    )
    return replace(row, **changes)


@pytest.fixture
def files(tmp_path):
    return RowFolder(tmp_path)


def test_row_survives_a_round_trip_and_is_read_once(files):
    other = a_row(captions=(CaptionedExample("not UTF-8 \udce9", ("a cup",), "a cup"),))
    assert files.publish("a", a_row()) == a_row()
    assert files.new_rows() == [a_row()]
    files.publish("b", other)
    assert files.new_rows() == [other]
    assert [path.name for path in sorted(files.path.iterdir())] == ["a.json", "b.json"], "nothing else is left"
    keys = ["arm", "seed", "stage", "recipe_digest", "data_digest", "steps", "seconds", "machine", "precision"]
    assert {*keys, "settings", "metrics"} <= json.loads((files.path / "a.json").read_text()).keys()


@pytest.mark.parametrize("has_links", [True, False])
def test_first_row_is_kept(files, monkeypatch, has_links):
    def refuse(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr("grr_coca_study.rows.os.link", refuse)
    first, late = a_row(commit="first"), a_row(commit="late")
    assert files.publish("a", first) == first
    before = (files.path / "a.json").stat()
    assert RowFolder(files.path.parent).publish("a", late) == first
    assert RowFolder(files.path.parent).new_rows() == [first]
    assert (files.path / "a.json").stat() == before
    assert len(list(files.path.iterdir())) == 1


def test_row_is_on_the_disk_before_it_has_its_name(files, monkeypatch):
    done = syncs_and_renames(monkeypatch)
    linked = []
    real = os.link
    monkeypatch.setattr("grr_coca_study.rows.os.link", lambda *names: (linked.append(len(done)), real(*names)))
    files.publish("a", a_row())
    kinds = [kind for kind, _ in done]
    assert "sync" in kinds[: linked[0]], "the content"
    assert "sync" in kinds[linked[0] :], "the folder"


def test_incomplete_row_is_named_and_replaced(files):
    """As a copy that was interrupted leaves it. A row that is complete later counts then."""
    files.publish("a", a_row())
    content = (files.path / "a.json").read_bytes()
    (files.path / "b.json").write_bytes(content[:-20])
    assert files.new_rows() == [a_row()]
    assert files.notes["b.json"].startswith("b.json: is not a row and does not count")
    files.publish("b", a_row(seed=1))
    assert [row.seed for row in files.new_rows()] == [1]
    assert files.notes == {}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"arm": "grr_coca"}', '{"flavour": 1}', "[" * 100_000], ids=lambda text: text[:20]
)
def test_file_that_is_not_a_row_is_named(files, text):
    files.publish("a", a_row())
    (files.path / "note.json").write_text(text)
    assert len(files.new_rows()) == 1
    assert "note.json: is not a row" in files.notes["note.json"]


def test_unwritable_folder_raises(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/showcase/a\.webp: cannot be written \(Not a directory\)"):
        write_to_study(tmp_path / "file" / "showcase" / "a.webp", b"")


def test_names_identify_different_runs():
    requested = ("grr_coca", "lr 0.003, betas [0.9, 0.95]", 0, "emoji", ("r", "d", None))
    name = row_name(*requested)
    assert name.startswith("grr_coca-lr=0.003,betas=_0.9,0.95_-0-emoji-")
    assert len({name, row_name(*requested[:-1], ("r2", "d", None)), row_name(*requested[:2], 1, *requested[3:])}) == 3
    assert row_name("a-0", "", 0, "b", ("r",)) != row_name("a", "0", 0, "b", ("r",))
    assert len(row_name("arm", "key " + "9" * 500, 0, "b", ("r",))) < 200


def test_long_name_is_truncated_before_its_digest(files):
    names = [row_name("ä" * 120, "", seed, "health", ("r", "d")) for seed in (0, 1)]
    for seed, name in enumerate(names):
        files.publish(name, a_row(seed=seed))
    assert [row.seed for row in sorted(files.new_rows(), key=lambda row: row.seed)] == [0, 1]
