"""Metadata from cameras and users in an index: fields, filters, words, older indexes, changed XMP files."""

import json
import os
import shutil
import sqlite3
from importlib.util import find_spec
from pathlib import Path

import pytest
from library import COLOURS, HEADER, ColourModel, exported, make_vectors, photo_of
from library import make_entry as some_entry
from PIL import ExifTags, Image
from support import snapshot

from grr_coca.common.errors import UserError
from grr_coca_search.entry import Entry, Photo
from grr_coca_search.filters import parse_filter
from grr_coca_search.milvus.rows import from_record, to_record
from grr_coca_search.portable import import_parquet
from grr_coca_search.store import Changes, PhotoUpdate, facets, make_store, open_store
from grr_coca_search.update import update_store

needs_xml = pytest.mark.skipif(find_spec("defusedxml") is None, reason="XMP needs defusedxml")
needs_words = pytest.mark.skipif("GRR_COCA_TEST_MILVUS" in os.environ, reason="a server has no full-text index")

XMP = (
    "<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>"
    "<rdf:Description rdf:about='' xmlns:dc='http://purl.org/dc/elements/1.1/'><dc:subject><rdf:Bag>"
    "<rdf:li>KEYWORD</rdf:li></rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>"
)


def take(path: Path, colour: str, taken: str, camera: str = "Canon EOS R5", xmp: str = "") -> Path:
    """A photograph of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = camera
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = taken
    place = {ExifTags.GPS.GPSLatitude: (48, 8, 14), ExifTags.GPS.GPSLatitudeRef: "N"}
    place |= {ExifTags.GPS.GPSLongitude: (11, 34, 32), ExifTags.GPS.GPSLongitudeRef: "E"}
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(place)
    options = {"xmp": XMP.replace("KEYWORD", xmp).encode()} if xmp else {}
    Image.new("RGB", (16, 16), COLOURS[colour]).save(path, "JPEG", exif=exif, **options)
    return path


@pytest.fixture
def photos(tmp_path):
    """Three photographs."""
    take(tmp_path / "photos" / "a.jpg", "red", "2023:05:01 12:00:00", xmp="aardvark")
    take(tmp_path / "photos" / "b.jpg", "green", "2024:05:01 12:00:00", xmp="aardvark")
    take(tmp_path / "photos" / "c.jpg", "blue", "2024:06:01 12:00:00", camera="X100V")
    return tmp_path / "photos"


@pytest.fixture
def model():
    return ColourModel()


def update(store, model, *arguments):
    return update_store(store, list(map(str, arguments)), lambda: model)


def matching(store, text):
    return sorted(entry.title for entry in store.matching(parse_filter(text, store.columns())))


def in_order(store):
    return sorted((entry for entry, _ in store.everything()), key=lambda entry: entry.name)


def with_words(store, text):
    return sorted(entry.title for entry in store.entries([match.id for match in store.word_matches(text, 9)]))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("taken > '2024'", ["b", "c"]),
        ("taken like '2024-05%'", ["b"]),
        ("camera = 'X100V'", ["c"]),
        ("camera in ('X100V', 'Canon EOS R5') and taken < '2024'", ["a"]),
        ("lat > 48 and lat < 49 and lon > 11.5", ["a", "b", "c"]),
        ("not lat > 0", []),
        ("lens = 'none'", []),
        ("date > '2024' and taken < '2024'", ["a"]),
    ],
)
def test_filters_support_time_camera_and_place(store, model, photos, text, found):
    update(store, model, photos)
    assert matching(store, text) == found


def test_empty_index_rejects_a_filter_of_the_wrong_type():
    assert parse_filter("taken > '2024' and lat > 1")
    for text in ("taken > 2024", "lat = 'north'"):
        with pytest.raises(UserError, match=r"is a (text|number)"):
            parse_filter(text)


def test_column_of_a_table_counts_more_and_may_hold_anything(store):
    photo = photo_of(lat=48.0, lon=11.0)
    rows = [some_entry(0, fields={"lat": "north"}, photo=photo), some_entry(1, fields={}, photo=photo)]
    store.commit(Changes(added=list(zip(rows, make_vectors(2), strict=True))))
    assert matching(store, "lat = 'north'") == ["00000"]
    assert matching(store, "lat = 48") == ["00001"]
    assert {entry.title: entry.all_fields["lat"] for entry, _ in store.everything()} == {
        "00000": "north",
        "00001": 48.0,
    }


def test_fields_are_summarized_like_table_columns(store, model, photos):
    update(store, model, photos)
    assert store.summaries(["camera"], 5)["camera"].values == [("Canon EOS R5", 2), ("X100V", 1)]
    assert store.summaries(["lens"], 5)["lens"].values == []
    assert store.summaries(["lat"], 5)["lat"].low == pytest.approx(48.137222)


@needs_xml
@needs_words
def test_keywords_are_found_as_words(store, model, photos):
    update(store, model, photos)
    assert with_words(store, "aardvarks") == ["a", "b"]
    (photos / "a.jpg").unlink()
    update(store, model, photos)
    assert with_words(store, "aardvark") == ["b"]


@needs_xml
@needs_words
def test_changed_xmp_file_is_read_without_the_model(store, photos, model):
    update(store, model, photos)
    assert update(store, model, photos).noted == 0
    for content, found in (("zebra", ["c"]), ("giraffe", []), (None, [])):
        if content is None:
            (photos / "c.jpg.xmp").unlink()
        else:
            (photos / "c.jpg.xmp").write_text(XMP.replace("KEYWORD", content) + " " * len(found))
        done = update(store, model, photos)
        assert (done.noted, done.unchanged, done.changed) == (1, 3, 0)
        assert with_words(store, "zebra") == found
    assert model.described == 3


def test_changed_time_keeps_the_caption_and_rereads_metadata(store, model, photos):
    update(store, model, photos)
    store.commit(Changes(noted=[PhotoUpdate(str(photos / "a.jpg"), photo_of(camera="wrong"))]))
    (photos / "a.jpg").touch()
    assert update(store, model, photos).unchanged == 3
    assert model.described == 3
    assert matching(store, "camera = 'wrong'") == []


def test_index_changes_no_file_of_the_library(store, model, photos):
    (photos / "a.jpg.xmp").write_text("broken")
    before = {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in photos.iterdir()}, snapshot(photos)
    update(store, model, photos)
    update(store, model, photos)
    assert before == (
        {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in photos.iterdir()},
        snapshot(photos),
    )


def test_parquet_keeps_everything_and_has_plain_columns(store, model, photos, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    update(store, model, photos)
    store.commit(Changes(added=[(some_entry(1), make_vectors(1)[0])]))
    path = exported(store, tmp_path / "a.parquet")
    rows = {Path(row["name"]).stem: row for row in parquet.read_table(path).to_pylist()}
    assert {stem: row["taken"] for stem, row in rows.items()} == {
        "a": "2023-05-01T12:00:00",
        "b": "2024-05-01T12:00:00",
        "c": "2024-06-01T12:00:00",
        "00001": None,
    }
    assert rows["a"]["lat"] == pytest.approx(48.137222)
    import_parquet(path, str(tmp_path / "other"))
    with open_store(str(tmp_path / "other")) as other:
        assert in_order(other) == in_order(store)


def test_parquet_file_of_an_older_version_is_imported(store, model, photos, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    update(store, model, photos)
    path = exported(store, tmp_path / "a.parquet")
    older = parquet.read_table(path).drop(["look"])
    metadata = json.loads(older.schema.metadata[b"grr_coca.index"])
    del metadata["exclude"]
    parquet.write_table(older.replace_schema_metadata({b"grr_coca.index": json.dumps(metadata)}), path)
    assert import_parquet(path, str(tmp_path / "other")) == 3
    with open_store(str(tmp_path / "other")) as other:
        assert [entry.pixel_signature for entry in content(other)] == [b""] * 3
        assert other.excluded() == ()


@pytest.mark.parametrize("photo", [None, Photo(), photo_of(taken="2024", lat=1.5, keywords=("ä", "b"), sidecars=2**55)])
@pytest.mark.parametrize("fields", [{}, {"price": 5, "taken": "by hand"}])
@pytest.mark.parametrize("tags", [(), ("cat", "pet")])
def test_row_on_a_server_holds_everything(photo, fields, tags):
    entry = some_entry(0, photo=photo, fields=fields, tags=tags)
    record = to_record(entry, make_vectors(1)[0])
    assert from_record(json.loads(json.dumps(record))) == entry
    if photo is not None and "lat" in photo.fields:
        assert record["fields"]["lat"] == 1.5
        assert record["kinds"]["taken"] == "text"
    assert from_record({**record, "kinds": {}, "fields": fields, "photo": None}).fields == fields


# --- Indexes of an older version

OLDER = """
ALTER TABLE pictures DROP COLUMN look;
UPDATE pictures SET photo = json_set(photo, '$.sidecars', 0);
"""
"""Turns a new index into one of a version that kept no small copies of images."""


@pytest.fixture
def old(tmp_path, model, photos):
    """The folder of an index of an older version."""
    store = make_store(str(tmp_path / "old"), HEADER)
    update(store, model, photos)
    store.close()
    database = sqlite3.connect(tmp_path / "old" / "index.sqlite")
    database.executescript(OLDER)
    database.close()
    return tmp_path / "old"


def content(store) -> list[Entry]:
    return [entry for entry, _ in store.everything()]


@pytest.mark.parametrize("is_writable", [True, False])
def test_older_index_is_searched_as_it_is(old, is_writable):
    before = snapshot(old)
    if not is_writable:
        old.chmod(0o500)
    try:
        store = open_store(str(old))
        assert [entry.pixel_signature for entry in content(store)] == [b""] * 3
        assert with_words(store, "red") == ["a"]
        assert matching(store, "caption = 'a red square'") == ["a"]
        assert matching(store, "taken > '2024'") == ["b", "c"]
        assert len(store.nearest(make_vectors(1)[0], 5)) == 3
        store.close()
    finally:
        old.chmod(0o700)
    assert snapshot(old)["index.sqlite"] == before["index.sqlite"]


def test_older_index_gains_thumbnails_without_captioning(old, model, photos):
    reader, store = open_store(str(old)), open_store(str(old))
    captions, described = [entry.caption for entry in content(store)], model.described
    done = update(store, model, photos)
    assert (done.noted, done.unchanged, done.new) == (3, 3, 0)
    assert model.described == described
    assert [entry.caption for entry in content(store)] == captions
    for one in (store, reader, open_store(str(old))):
        assert [len(entry.pixel_signature) for entry in content(one)] == [384] * 3
        assert matching(one, "taken > '2024'") == ["b", "c"]
        assert with_words(one, "green") == ["b"]
        one.close()


def test_images_of_shards_have_photos(store, model, photos, tmp_path):
    from support import write_tar

    members = {path.name: path.read_bytes() for path in sorted(photos.iterdir())}
    update(store, model, write_tar(tmp_path / "a.tar", members))
    assert matching(store, "taken > '2024'") == ["b", "c"]


def test_moved_image_keeps_its_written_data(store, model, photos, tmp_path):
    update(store, model, photos)
    shutil.move(photos / "c.jpg", photos / "d.jpg")
    assert update(store, model, photos).moved == 1
    assert matching(store, "camera = 'X100V'") == ["d"]


@pytest.fixture
def filled_with(tmp_path):
    """A function that makes an index in a folder of these entries, and returns it and what finds their numbers."""
    with make_store(str(tmp_path / "index"), HEADER) as store:

        def fill(entries):
            store.commit(Changes(added=list(zip(entries, make_vectors(len(entries)), strict=True))))
            return store, lambda where: [int(title) for title in matching(store, where)]

        yield fill


def test_keywords_tags_and_titles_are_fields(filled_with):
    """Each keyword counts by itself; a column of a table that is called so counts instead."""
    written = (
        {"photo": photo_of(headline="Harbour", keywords=("cat", "sea")), "tags": ("cat", "pet")},
        {"photo": photo_of(keywords=("cat", "cathedral")), "fields": {"tags": "pet"}, "tags": ("dog",)},
        {"photo": Photo()},
        {"fields": {"keywords": "cat"}, "photo": photo_of(keywords=("dog",))},
    )
    entries = [some_entry(number, **{"fields": {}, "tags": (), **change}) for number, change in enumerate(written)]
    store, found = filled_with(entries)
    assert found("keywords = 'cat'") == [0, 1, 3]
    assert found("keywords in ('sea', 'dog')") == [0]
    assert found("keywords like 'cath%'") == [1]
    assert found("not keywords = 'cat'") == [2]
    assert found("headline = 'Harbour'") == [0]
    assert found("tags = 'pet'") == [0, 1]
    assert found("tags in ('cat', 'dog')") == [0]
    tags = next(facet for facet in facets(store) if facet["field"] == "tags")
    assert tags["values"] == [["pet", 2], ["cat", 1]]
    assert (entries[0].shown_fields["tags"], entries[0].all_fields["tags"]) == (["cat", "pet"], "cat, pet")
    assert sorted(entry.tags for entry, _ in store.everything()) == [(), (), ("cat", "pet"), ("dog",)]
    keywords = next(facet for facet in facets(store) if facet["field"] == "keywords")
    assert keywords["values"] == [["cat", 3], ["cathedral", 1], ["sea", 1]]
    assert entries[0].shown_fields["keywords"] == ["cat", "sea"]


def test_column_of_numbers_counts_instead_of_keywords_and_tags(filled_with):
    of_picture = {"photo": photo_of(keywords=("bird",)), "tags": ("bird",)}
    columns = ({"keywords": 3, "tags": 2.5}, {"keywords": 1, "tags": 1.5}, {})
    store, found = filled_with(
        [some_entry(number, fields=fields, **of_picture) for number, fields in enumerate(columns)]
    )
    assert found("keywords = 3") == found("tags >= 2") == found("tags in ('x', 2.5)") == [0]
    assert found("keywords > 0") == [0, 1]
    assert found("tags = 'bird'") == found("keywords like 'b%'") == found("keywords > 'a'") == [2]
    assert store.summaries(["tags"], 9)["tags"].values == [(1.5, 1), (2.5, 1), ("bird", 1)]
