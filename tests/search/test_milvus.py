"""Behaviour of an index on a Milvus server only. `make test-milvus` runs these tests on a server."""

import itertools
import multiprocessing
import os
import random
import time

import numpy as np
import pytest
from library import HEADER, fill, make_entry, make_vectors

from grr_coca.common.errors import UserError
from grr_coca_search.entry import Failure, Stamp
from grr_coca_search.filters import parse_filter
from grr_coca_search.milvus.notes import Reads
from grr_coca_search.milvus.rows import as_utf8, from_record, from_utf8, to_expression, to_record
from grr_coca_search.store import Changes, ImageState, find_store, make_store, open_store

needs_server = pytest.mark.skipif("GRR_COCA_TEST_MILVUS" not in os.environ, reason="runs by `make test-milvus`")


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("folder = 'logos' and width > 64", '((folder == "logos") and (width > 64))'),
        ("not path like '/a_b/%'", '(not (name >= "/a_b/" and name < "/a_b/\U0010ffff"))'),
        ("price like '1%'",
         '(kinds["price"] == "text" and fields["price"] >= "1" and fields["price"] < "1\U0010ffff")'),
        ("size > 10.5", "(size > 10)"),
        ("size < 10.5", "(size < 11)"),
        ("size = 10.5 or size != 10.5", "((id < 0) or (id >= 0))"),
        ("size = 10.0", "(size == 10)"),
        ("price in (1, 2.5)", '((kinds["price"] == "number" and fields["price"] == 1) or '
         '(kinds["price"] == "number" and fields["price"] == 2.5))'),
        ("folder = 'a\" or id >= 0 or folder == \"b'", '(folder == "a\\" or id >= 0 or folder == \\"b")'),
        ("folder = 'back\\slash'", '(folder == "back\\\\slash")'),
        ("keywords = 'cat'", '(kinds["keywords"] == "text" and (fields["keywords"] == "cat" or '
         '((not json_contains(kinds[""]["columns"], "keywords")) and '
         'json_contains(kinds[""]["photo"]["keywords"], "cat"))))'),
        ("tags = 'cat'", '(kinds["tags"] == "text" and (fields["tags"] == "cat" or '
         '((not json_contains(kinds[""]["columns"], "tags")) and '
         'json_contains(kinds[""]["tags"], "cat"))))'),
    ],
)  # fmt: skip
def test_filter_expression_escapes_values(text, expression):
    assert to_expression(parse_filter(text, ["price"])) == expression


@pytest.mark.parametrize("text", ["keywords like 'c%'", "not tags like 'c%'", "keywords > 'c'", "tags != 'c'"])
def test_unsupported_test_of_several_values_raises(text):
    with pytest.raises(UserError, match=r"on Milvus, '(keywords|tags)' can only be compared with = and in"):
        to_expression(parse_filter(text))


class Client:
    """Answers nothing, and keeps what was asked for."""

    def __init__(self):
        self.asked = []

    def query(self, name, consistency_level):
        self.asked.append((name, consistency_level))
        return []

    search = query


def test_first_read_of_a_snapshot_waits_for_writes():
    client = Client()
    reads = Reads(client)
    reads.query("a")
    reads.search("a")
    reads.query("b")
    reads.forget()
    reads.query("a")
    Reads(client).query("a")
    assert client.asked == [("a", "Strong"), ("a", "Eventually"), ("b", "Strong"), ("a", "Strong"), ("a", "Strong")]


def test_file_name_of_any_bytes_is_sent_as_utf8_and_comes_back():
    made = random.Random(0)
    for length in [*range(20)] * 20:
        text = os.fsdecode(made.randbytes(length))
        as_utf8(text).encode()
        assert from_utf8(as_utf8(text)) == text


@pytest.mark.parametrize("offset", [None, 0, 512])
def test_row_names_the_image_and_its_location(offset):
    name = os.fsdecode(b"/p/\xe9.tar: x/a: b.png")
    entry = make_entry(1, name=name, file=os.fsdecode(b"/p/\xe9.tar"), offset=offset)
    record = to_record(entry, make_vectors(1)[0])
    assert from_record(record) == entry


@needs_server
def test_index_without_full_text_search_is_reported(store):
    (entry, *_), _ = fill(store, 3)
    assert store.word_matches(entry.caption, 3) == []


@needs_server
def test_unreachable_server_is_named():
    with pytest.raises(
        UserError, match=r"http://127\.0\.0\.1:1/index: the Milvus server does not answer, or rejects the request"
    ):
        open_store("http://127.0.0.1:1/index")


@needs_server
def test_name_without_an_index_is_named(location):
    with pytest.raises(UserError, match="no index has this name; create an index with grr-coca index"):
        open_store(location)
    with pytest.raises(UserError, match="is invalid for a collection"):
        open_store(f"{location}-with-dashes")


@needs_server
def test_lost_server_during_an_insert_loses_nothing(store, reopened, monkeypatch):
    from pymilvus.exceptions import MilvusException

    fill(store, 5)
    more = list(zip([make_entry(number) for number in range(5, 9)], make_vectors(4), strict=True))

    def gone(*_args, **_kwargs):
        raise MilvusException(message="connection refused")

    monkeypatch.setattr(store._client, "upsert", gone)
    with pytest.raises(UserError, match="the Milvus server does not answer, or rejects the request"):
        store.commit(Changes(added=more))
    again = reopened()
    assert len(again) == 5
    again.commit(Changes(added=more))
    assert len(again) == 9


def insert_for_ever(location: str, has_begun) -> None:
    """Insert and replace images, ten at a time, each time with another caption."""
    store = open_store(location)
    has_begun.set()
    for number in itertools.count():
        first = number * 10 % 400
        added = [make_entry(n, caption=f"turn {number}") for n in range(first, first + 10)]
        store.commit(Changes(added=list(zip(added, make_vectors(10, seed=first), strict=True))))


@needs_server
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_insert_continues_without_loss_or_duplicates(store, reopened, kills):
    context = multiprocessing.get_context("spawn")
    moments = np.random.default_rng(0)
    before = set()
    for _ in range(kills):
        has_begun = context.Event()
        process = context.Process(target=insert_for_ever, args=(store.location, has_begun))
        process.start()
        has_begun.wait()
        time.sleep(1.5 * moments.random())
        process.kill()
        process.join()
        reader = reopened()
        names = [entry.name for entry, _ in reader.everything()]
        assert len(names) == len(set(names)) == len(reader)
        assert before <= set(names), "what was committed stays"
        assert reader.columns() >= {name for entry, _ in reader.everything() for name in entry.fields}
        before = set(names)
    assert before, "something was inserted before a kill"
    added = [make_entry(number) for number in range(400)]
    reopened().commit(Changes(added=list(zip(added, make_vectors(400), strict=True))))
    assert sorted(names_of(reopened())) == sorted(entry.name for entry in added)


def names_of(store) -> list[str]:
    return [entry.name for entry, _ in store.everything()]


@needs_server
def test_killed_creation_is_started_again(store, location, reopened):
    client, name = store._client, store._name
    fill(store, 3)
    client.delete(f"{name}_notes", filter='key == "header:"')
    with pytest.raises(UserError, match="no index has this name"):
        open_store(location)
    assert find_store(location) is None
    make_store(location, HEADER).close()
    assert len(reopened()) == 0
    client.drop_collection(f"{name}_notes")
    assert find_store(location) is None
    make_store(location, HEADER).close()
    assert len(reopened()) == 0


@needs_server
def test_collection_of_something_else_is_unchanged(store, location):
    name = "customers_" + store._name
    store._client.create_collection(name, dimension=4)
    store._client.insert(name, [{"id": 1, "vector": [0.0, 1.0, 0.0, 0.0]}])
    other = location.replace(store._name, name)
    for attempt in (lambda: find_store(other), lambda: make_store(other, HEADER)):
        with pytest.raises(UserError, match=f"the collection '{name}' is not part of an index; pass another name"):
            attempt()
    assert store._client.query(name, filter="id == 1", output_fields=["id"], consistency_level="Strong")


@needs_server
def test_interrupted_insert_is_completed_by_the_next(store, reopened, monkeypatch):
    failure = Failure("/pictures/x.png", "/pictures", Stamp(1, 2), "broken")
    entry = make_entry(1, name=failure.name)
    store.commit(Changes(failed=[failure]))
    change = Changes(added=[(entry, make_vectors(1)[0])])
    steps = [(store._notes, "add_columns"), (store._notes, "remove_failures"), (store._client, "upsert")]
    for place, step in steps:
        with monkeypatch.context() as patched:
            patched.setattr(place, step, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                store.commit(change)
        known = reopened().known([failure.name])
        assert known.get(failure.name, ImageState(failure.stamp, "")) == ImageState(failure.stamp, ""), (
            "not taken for done"
        )
    reopened().commit(change)
    assert reopened().known([failure.name]) == {failure.name: ImageState(entry.stamp, entry.digest, entry.fields)}
    assert reopened().failures() == []
    assert reopened().columns() == set(entry.fields)
