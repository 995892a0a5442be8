"""Operations of every store: exact search, filters, changes. `make test-milvus` runs these tests on a server."""

from collections import Counter

import numpy as np
import pytest
from library import fill, make_entry, make_vectors, photo_of

from grr_coca_search.entry import Failure, Stamp
from grr_coca_search.filters import parse_filter
from grr_coca_search.store import SAMPLE_CAPTIONS, Changes, ImageState, StampUpdate, facet_fields, facets, facets_of

TIE = 1e-5
FILTERS = {
    "folder = 'logos'": lambda e: e.folder == "logos",
    "folder != 'logos'": lambda e: e.folder != "logos",
    "folder = 'logos' and width > 64": lambda e: e.folder == "logos" and e.width > 64,
    "width <= 32 or width >= 144 and not folder = 'icons'": (
        lambda e: e.width <= 32 or (e.width >= 144 and e.folder != "icons")
    ),
    "(width <= 32 or width >= 144) and not folder = 'icons'": (
        lambda e: (e.width <= 32 or e.width >= 144) and e.folder != "icons"
    ),
    "folder in ('logos', 'photos')": lambda e: e.folder in ("logos", "photos"),
    "width not in (16, 32)": lambda e: e.width not in (16, 32),
    "path like '/pictures/ph%'": lambda e: e.name.startswith("/pictures/ph"),
    "path not like '/pictures/ph%'": lambda e: not e.name.startswith("/pictures/ph"),
    "date >= '2023-12-01' and date < '2024-01-01'": lambda e: "2023-12-01" <= e.date < "2024-01-01",
    "size > 1100.5": lambda e: e.stamp.size > 1100.5,
    "title = '00007'": lambda e: e.title == "00007",
    "caption = 'red thing number0'": lambda e: e.caption == "red thing number0",
    "price > 40": lambda e: e.fields.get("price", -1) > 40,
    "price < 40.5": lambda e: e.fields.get("price", 99) < 40.5,
    "price = 7": lambda e: e.fields.get("price") == 7,
    "price != 7": lambda e: e.fields.get("price", 7) != 7,
    "not price = 7": lambda e: e.fields.get("price") != 7,
    "price in (1, 3, 49)": lambda e: e.fields.get("price") in (1, 3, 49),
    "brand = 'maker 3'": lambda e: e.fields.get("brand") == "maker 3",
    "brand like 'maker%'": lambda e: "brand" in e.fields,
    "price like '4%'": lambda e: False,
    "price not like '4%'": lambda e: True,
    "brand > 5": lambda e: False,
    "price = '7'": lambda e: False,
}
"""Each filter and what it means in Python: a comparison with what is not there, or of another kind, is false."""


def expected(entries, vectors, query, count, keep=lambda e: True):
    """The names and scores of the nearest by NumPy."""
    return nearest_of(entries, vectors @ query, np.array([keep(entry) for entry in entries]), count)


def nearest_of(entries, scores, is_kept, count):
    scores = np.where(is_kept, scores, -np.inf)
    order = np.argsort(-scores, kind="stable")[:count]
    return [(entries[place].name, scores[place]) for place in order if np.isfinite(scores[place])]


def found(store, query, count, where=None):
    with store.snapshot():
        matches = store.nearest(query, count, where)
        entries = store.entries([match.id for match in matches])
        return [(entry.name, match.score) for entry, match in zip(entries, matches, strict=True)]


def same_hits(ours, theirs):
    """Equal scores, and equal names wherever a score is no tie."""
    assert len(ours) == len(theirs)
    np.testing.assert_allclose([s for _, s in ours], [s for _, s in theirs], atol=TIE)
    for place, ((name, score), (other, _)) in enumerate(zip(ours, theirs, strict=True)):
        tied = [n for n, s in theirs if abs(s - score) <= 2 * TIE]
        assert name == other or name in tied or place == len(ours) - 1, place


def test_nearest_equal_those_of_numpy(store):
    entries, vectors = fill(store, 700)
    for query in make_vectors(100, seed=1):
        same_hits(found(store, query, 12), expected(entries, vectors, query, 12))


@pytest.mark.parametrize("text", FILTERS)
def test_filters_agree_with_python(filled, text):
    store, entries, vectors = filled
    tree, query = parse_filter(text, store.columns()), make_vectors(1, seed=2)[0]
    same_hits(found(store, query, 20, tree), expected(entries, vectors, query, 20, FILTERS[text]))
    assert sorted(e.name for e in store.matching(tree)) == sorted(e.name for e in entries if FILTERS[text](e))


def test_prefix_is_a_text_and_no_pattern(store):
    titles = ["a_b", "a_c", "a-b", "aXb", "a", "ab", "a\\b", "A_b", "ünï"]
    entries = [
        make_entry(n, name=f"/{title}.png", file=f"/{title}.png", fields={"brand": title})
        for n, title in enumerate(titles)
    ]
    store.commit(Changes(added=list(zip(entries, make_vectors(len(titles)), strict=True))))
    for field in ("title", "brand"):
        for prefix in ("a_", "a_b", "a", "", "a\\", "ün"):
            found = store.matching(parse_filter(f"{field} like '{prefix}%'", ["brand"]))
            assert sorted(entry.title for entry in found) == sorted(t for t in titles if t.startswith(prefix)), prefix


def test_values_of_a_filter_are_never_parsed_as_syntax(store):
    odd = ["it's", 'a "quote"', "back\\slash", "%", "'; DROP TABLE pictures; --", "ünï"]
    entries = [make_entry(number, fields={"brand": text}) for number, text in enumerate(odd)]
    store.commit(Changes(added=list(zip(entries, make_vectors(len(odd)), strict=True))))
    for number, text in enumerate(odd):
        written = text.replace("'", "''")
        tree = parse_filter(f"brand = '{written}'", store.columns())
        assert [entry.name for entry in store.matching(tree)] == [entries[number].name]
    assert len(store) == len(odd)


def test_empty_index_has_no_results(store):
    assert len(store) == 0
    assert found(store, make_vectors(1)[0], 5) == []
    assert store.sample().vectors.shape[0] == 0
    assert store.failures() == [] == store.roots()


def test_entries_come_back_as_they_were(store, reopened):
    entries, vectors = fill(store, 20)
    again = reopened()
    assert again.header == store.header
    kept = sorted(again.everything(), key=lambda pair: pair[0].name)
    assert [entry for entry, _ in kept] == sorted(entries, key=lambda entry: entry.name)
    by_name = {entry.name: vector for entry, vector in zip(entries, vectors, strict=True)}
    assert all(np.array_equal(np.float32(vector), by_name[entry.name]) for entry, vector in kept)
    assert again.columns() == {"price", "brand"}


def test_image_replaces_an_earlier_one_of_the_same_name(store):
    fill(store, 10)
    (vector,) = make_vectors(1, seed=5)
    store.commit(Changes(added=[(make_entry(3, caption="a new one"), vector)]))
    assert len(store) == 10
    (name, score), *_ = found(store, vector, 1)
    assert name == make_entry(3).name
    assert score == pytest.approx(1, abs=1e-3)
    with store.snapshot():
        (match,) = store.nearest(vector, 1)
        assert store.entries([match.id])[0].caption == "a new one"


def test_removed_images_are_found_no_more(store):
    entries, vectors = fill(store, 60)
    gone = [entry.name for entry in entries[::3]]
    store.commit(Changes(removed=gone))
    kept = [place for place in range(60) if place % 3]
    assert len(store) == 40
    query = make_vectors(1, seed=3)[0]
    same_hits(found(store, query, 60), expected([entries[k] for k in kept], vectors[kept], query, 60))
    assert store.known(gone) == {}


def test_stores_images_and_failures(store):
    entries, _ = fill(store, 5)
    failure = Failure("/pictures/bad.png", "/pictures", Stamp(7, 8), "/pictures/bad.png: not an image")
    vanished = Failure("/other/gone.png", "/other", None, "/other/gone.png: no such file")
    store.commit(Changes(failed=[failure, vanished]))
    assert store.failures() == [vanished, failure]
    names = [entries[1].name, failure.name, vanished.name, "/pictures/unknown.png"]
    assert store.known(names) == {
        entries[1].name: ImageState(entries[1].stamp, entries[1].digest, entries[1].fields),
        failure.name: ImageState(failure.stamp, ""),
    }
    assert store.roots() == ["/other", "/pictures"]
    assert sorted(store.locations("/pictures")) == sorted(
        (name, name) for name in (failure.name, *(e.name for e in entries))
    )
    store.commit(Changes(added=[(make_entry(9, name=failure.name), make_vectors(1)[0])], removed=[vanished.name]))
    assert store.failures() == []
    assert len(store) == 6


def test_members_of_a_shard_with_unusual_names_stay_inside_it(store):
    shard = "/pictures/old.tar: kept/some.tar"
    one = make_entry(0, name=f"{shard}: x/a.tar: b: c.png", file=shard, offset=512)
    failures = [
        Failure(name, "/pictures", None, "broken") for name in ("/pictures/s.TAR: x/a: b.png", "/pictures/d.png")
    ]
    store.commit(Changes(added=[(one, make_vectors(1)[0])], failed=failures))
    assert (one.folder, one.title) == ("x", "a.tar: b: c")
    assert set(store.locations("/pictures")) == {
        (one.name, shard),
        ("/pictures/s.TAR: x/a: b.png", "/pictures/s.TAR"),
        ("/pictures/d.png", "/pictures/d.png"),
    }


def test_touched_image_keeps_all_but_its_stamp(store):
    fill(store, 3)
    store.commit(Changes(touched=[StampUpdate(make_entry(1).name, Stamp(5, 86_400 * 10**9), None)]))
    (entry,) = (entry for entry, _ in store.everything() if entry.name == make_entry(1).name)
    assert entry == make_entry(1, stamp=Stamp(5, 86_400 * 10**9))
    tree = parse_filter("date = '1970-01-02T00:00:00'")
    assert [found.name for found in store.matching(tree)] == [entry.name]


def test_filter_may_list_thousands_of_values_of_both_kinds(store):
    fill(store, 30)
    names = [f"/pictures/{number}.png" for number in range(3000)]
    listed = ", ".join(f"'{name}'" for name in [*names, make_entry(7).name, make_entry(8).name])
    found = store.matching(parse_filter(f"path in ({listed})"))
    assert {entry.name for entry in found} == {make_entry(7).name, make_entry(8).name}
    found = store.matching(
        parse_filter("price in (1, 'x', 3) or brand in ('maker 1', 5)", frozenset({"price", "brand"}))
    )
    picked = [number for number in range(30) if number % 2 and (number in (1, 3) or number % 4 == 1)]
    assert sorted(entry.name for entry in found) == sorted(make_entry(number).name for number in picked)


def test_filter_finds_names_that_are_not_utf8(store):
    odd = make_entry(1, name="/pictures/caf\udce9.png", file="/pictures/caf\udce9.png")
    store.commit(Changes(added=[(odd, make_vectors(1)[0])]))
    for text in ("path = '/pictures/caf\udce9.png'", "title in ('x', 'caf\udce9')", "path like '/pictures/caf\udce9%'"):
        assert list(store.matching(parse_filter(text))) == [odd], text


def test_images_are_found_by_their_digest(store):
    entries, vectors = fill(store, 5)
    twins = store.find_by_digest([entries[2].digest, "0" * 31 + "f"])
    assert twins.keys() == {entries[2].digest}
    twin = twins[entries[2].digest]
    assert (twin.caption, twin.caption_confidence) == (entries[2].caption, entries[2].caption_confidence)
    assert np.array_equal(np.float32(twin.embedding), vectors[2])


def test_hashes_and_vectors_go_together(store):
    entries, vectors = fill(store, 30)
    with store.snapshot():
        hashed = store.hashes()
        ids = hashed["id"]
        kept = store.entries(ids.tolist())
        order = {entry.name: place for place, entry in enumerate(entries)}
        assert [entry.phash for entry in kept] == hashed["phash"].tolist()
        assert [entry.digest.encode() for entry in kept] == hashed["digest"].tolist()
        assert np.array_equal(store.vectors(ids.tolist()), vectors[[order[entry.name] for entry in kept]])


def test_sample_is_the_same_in_every_process(store, reopened):
    fill(store, 200)
    ours, theirs = store.sample(), reopened().sample()
    assert len(ours.vectors) == 200
    assert len(ours.captions) == SAMPLE_CAPTIONS
    assert sorted(map(tuple, ours.vectors.tolist())) == sorted(map(tuple, theirs.vectors.tolist()))
    assert sorted(ours.captions) == sorted(theirs.captions)


def test_sample_covers_all_images(store, monkeypatch):
    for module in ("embedded.vectors", "milvus.milvus_store"):
        monkeypatch.setattr(f"grr_coca_search.{module}.SAMPLE", 50, raising=False)
    _, vectors = fill(store, 500)
    drawn = store.sample().vectors
    places = [int((vectors @ vector).argmax()) for vector in drawn]
    assert len(set(places)) == 50
    assert max(places) >= 250 > min(places)


@pytest.mark.slow
@pytest.mark.timeout(0)  # on a busy machine or server it takes as long as it takes
def test_ten_thousand_queries_with_filters_and_deletes(store):
    entries, vectors = fill(store, 3000)
    store.commit(Changes(removed=[entry.name for entry in entries[::5]]))
    kept = [place for place in range(3000) if place % 5]
    entries, vectors = [entries[place] for place in kept], vectors[kept]
    # Filters are read once: on a server, asking for the columns takes a hundred times as long as a query.
    # The truth about each filter is found once, too.
    cases = [(None, np.ones(len(entries), bool))]
    for text in list(FILTERS)[:6]:
        cases.append((parse_filter(text, store.columns()), np.array([FILTERS[text](entry) for entry in entries])))
    with store.snapshot():
        for number, query in enumerate(make_vectors(10_000, seed=4)):
            tree, is_kept = cases[number % len(cases)]
            same_hits(found(store, query, 10, tree), nearest_of(entries, vectors @ query, is_kept, 10))


# --- Browsing


def test_images_are_found_by_the_hash_of_their_name(filled):
    store, entries, _ = filled
    with store.snapshot():
        ids = store.ids_of([entry.name_hash for entry in entries[:7]] + [12345])
        assert ids.keys() == {entry.name_hash for entry in entries[:7]}
        assert store.entries([ids[entry.name_hash] for entry in entries[:7]]) == entries[:7]
        assert store.ids_of([]) == {}


@pytest.mark.parametrize("text", [None, "folder = 'logos'", "price > 40", "width > 9999"])
def test_newest_images_come_first_and_equal_dates_by_name(filled, text):
    store, entries, _ = filled
    kept = [entry for entry in entries if text is None or FILTERS.get(text, lambda _: False)(entry)]
    expected_names = [entry.name for entry in sorted(kept, key=lambda e: (-e.stamp.mtime_ns, e.name))]
    with store.snapshot():
        where = None if text is None else parse_filter(text, store.columns())
        ids = store.newest_first(where).tolist()
        assert [entry.name for entry in store.entries(ids)] == expected_names


@pytest.mark.parametrize("field", ["folder", "width", "date", "price", "brand", "path", "caption", "nothing"])
def test_summary_of_a_field_equals_that_of_python(filled, field):
    store, entries, _ = filled
    values = [value for entry in entries for value in entry.values_of(field)]
    counts = Counter(values)
    summary = store.summaries([field], 5)[field]
    assert summary.all_differ == (len(counts) == len(values))
    assert summary.values == sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:5]
    if values:
        assert summary.kind == ("text" if isinstance(values[0], str) else "number")
        assert (summary.low, summary.high) == (min(values), max(values))
    else:
        assert (summary.low, summary.high) == (None, None)


@pytest.mark.parametrize("text", ["width > 50", "folder != 'a' and price < 3", "width > 100000"])
@pytest.mark.parametrize("field", ["folder", "brand", "width", "keywords", "tags"])
def test_summary_of_a_field_counts_the_filtered_images(filled, field, text):
    store, _, _ = filled
    where = parse_filter(text, store.columns())
    counts = Counter(value for entry in store.matching(where) for value in entry.values_of(field))
    found = store.summaries([field], 5, where)[field].values
    assert found == sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:5]


def test_facets_are_fields_with_different_values(store):
    fields = ({"price": n / 2, "brand": f"maker {n % 2}", "code": f"x{n}", "taken": n} for n in range(4))
    photo = photo_of(taken="2024-05-01", camera="Canon EOS R5")
    names = [f"/pictures/{'ab'[n % 2]}/{n}.png" for n in range(5)]
    entries = [
        make_entry(n, name=names[n], file=names[n], stamp=Stamp(100 * n, n * 86_400 * 10**9), fields=own)
        for n, own in enumerate(fields)
    ]
    entries.append(make_entry(4, name=names[4], file=names[4], stamp=Stamp(50, 0), fields={}, photo=photo))
    store.commit(Changes(added=list(zip(entries, make_vectors(5), strict=True))))
    columns = store.columns()
    assert facets(store) == facets_of(entries, facet_fields(columns))
    found = {facet["field"]: facet for facet in facets(store)}
    assert list(found)[:3] == ["brand", "price", "folder"], "columns of tables come first"
    assert found["folder"]["values"] == [["a", 3], ["b", 2]]
    assert found["brand"]["values"] == [["maker 0", 2], ["maker 1", 2]]
    assert (found["size"]["min"], found["size"]["max"]) == (0, 300)
    assert (found["price"]["min"], found["price"]["max"]) == (0, 1.5)
    assert (found["date"]["kind"], found["date"]["max"]) == ("date", "1970-01-04T00:00:00")
    assert not {"code", "lens", "camera"} & set(found), "they differ in all images, or no image has them"
    assert "taken" not in found, "numbers of a table and times of photographs"


def test_photograph_times_are_dates_and_columns_are_not(store):
    photos = [make_entry(n, fields={}, photo=photo_of(taken=f"202{n}-05-01T00:00:00")) for n in range(3)]
    store.commit(Changes(added=list(zip(photos, make_vectors(3), strict=True))))
    assert {
        "field": "taken",
        "kind": "date",
        "min": photos[0].photo.fields["taken"],
        "max": photos[2].photo.fields["taken"],
    } in facets(store)
    tables = [make_entry(n, fields={"taken": n}) for n in range(3)]
    store.commit(Changes(added=list(zip(tables, make_vectors(3), strict=True))))
    assert {"field": "taken", "kind": "number", "min": 0, "max": 2} in facets(store)


def test_revision_changes_with_each_commit(store, reopened):
    before = store.revision()
    assert store.revision() == before
    entries, _ = fill(store, 3)
    filled = store.revision()
    assert filled != before
    store.commit(Changes(touched=[StampUpdate(entries[0].name, Stamp(1, 2), None)]))
    touched = store.revision()
    assert touched != filled, "the number of images is the same"
    assert reopened().revision() == touched
