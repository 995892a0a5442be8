"""What an index on a Milvus server does that one in a folder does not. `make test-milvus` runs these on a server."""

import multiprocessing
import os
import time

import numpy as np
import pytest
from library import fill, make_picture, make_vectors

from grr_coca.errors import UserError
from grr_coca.search.filters.parse import parse_filter
from grr_coca.search.locate import open_store
from grr_coca.search.milvus.expression import to_expression
from grr_coca.search.store import Changes

needs_server = pytest.mark.skipif("GRR_COCA_TEST_MILVUS" not in os.environ, reason="runs by `make test-milvus`")


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("folder = 'logos' and width > 64", '((folder == "logos") and (width > 64))'),
        ("not path like '/a/%'", '(not (name like "/a/%"))'),
        ("size > 10.5", "(size > 10)"),
        ("size < 10.5", "(size < 11)"),
        ("size = 10.5 or size != 10.5", "((id < 0) or (id >= 0))"),
        ("size = 10.0", "(size == 10)"),
        ("price in (1, 2.5)", '((kinds["price"] == "number" and fields["price"] == 1) or '
         '(kinds["price"] == "number" and fields["price"] == 2.5))'),
        ("folder = 'a\" or id >= 0 or folder == \"b'", '(folder == "a\\" or id >= 0 or folder == \\"b")'),
        ("folder = 'back\\slash'", '(folder == "back\\\\slash")'),
    ],
)  # fmt: skip
def test_a_filter_becomes_an_expression_in_which_values_stay_values(text, expression):
    assert to_expression(parse_filter(text, ["price"])) == expression


@needs_server
def test_full_text_search_is_told_to_be_missing(store):
    with pytest.raises(UserError, match="--hybrid needs a full-text index, and an index on Milvus has none"):
        store.word_matches("word", 3)


@needs_server
def test_a_server_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:1/index: the Milvus server is gone, or refuses"):
        open_store("http://127.0.0.1:1/index")


@needs_server
def test_a_name_that_is_no_index_is_named(location):
    with pytest.raises(UserError, match="no index of this name; make one by grr-coca index"):
        open_store(location)
    with pytest.raises(UserError, match="is no name of a collection"):
        open_store(f"{location}-with-dashes")


@needs_server
def test_a_server_that_goes_in_the_middle_of_an_insert_is_told_and_nothing_is_lost(store, reopened, monkeypatch):
    from pymilvus.exceptions import MilvusException

    fill(store, 5)
    more = list(zip([make_picture(number) for number in range(5, 9)], make_vectors(4), strict=True))

    def gone(*_args, **_kwargs):
        raise MilvusException(message="connection refused")

    monkeypatch.setattr(store._client, "upsert", gone)
    with pytest.raises(UserError, match="the Milvus server is gone, or refuses"):
        store.commit(Changes(added=more))
    again = reopened()
    assert len(again) == 5
    again.commit(Changes(added=more))
    assert len(again) == 9


def insert_until_killed(location: str, count: int) -> None:
    store = open_store(location)
    for number in range(0, count, 10):
        added = [make_picture(n) for n in range(number, number + 10)]
        store.commit(Changes(added=list(zip(added, make_vectors(10, seed=number), strict=True))))


@needs_server
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_an_insert_that_is_killed_is_gone_on_with_nothing_lost_and_nothing_twice(store, reopened, kills):
    store.close()
    context = multiprocessing.get_context("spawn")
    random = np.random.default_rng(0)
    before = 0
    for _ in range(kills):
        process = context.Process(target=insert_until_killed, args=(store.location, 400))
        process.start()
        time.sleep(4 + 4 * random.random())
        process.kill()
        process.join()
        reader = reopened()
        names = [entry.name for entry, _ in reader.everything()]
        assert len(names) == len(set(names)) == len(reader)
        assert len(names) >= before, "what was committed stays"
        before = len(names)
    insert = reopened()
    added = [make_picture(number) for number in range(400)]
    insert.commit(Changes(added=list(zip(added, make_vectors(400), strict=True))))
    names = [entry.name for entry, _ in insert.everything()]
    assert sorted(names) == sorted(entry.name for entry in added)
