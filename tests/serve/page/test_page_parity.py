"""The page computes the same as Python: tokens, pixels, stems, captions, rankings."""

import base64
import io
import random
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from browsing import hosted, static
from picture_kinds import write_pictures
from PIL import Image
from support import DATASETS

import grr_coca
from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.data.isolated import decode_image
from grr_coca.data.preprocess import EncoderPreprocess, Framing, Preprocess
from grr_coca.data.tokenizer import Tokenizer, clip_bpe, words_of
from grr_coca.infer.calibration import compute_interior_stats, read_calibration, statistics
from grr_coca.model.checkpoint_files import bundled_folder
from grr_coca_search.embedded.embedded_store import CAPTION_WEIGHT, TITLE_WEIGHT
from grr_coca_search.filters import parse_filter
from grr_coca_search.index import Index
from grr_coca_search.query import NameQuery, has_words, query_terms, split_identifier
from grr_coca_serve.page import FILES
from grr_coca_serve.site import find_runtime, graphs_of, write_site

ICONS = bundled_folder("icons")
PICTURES = Path(__file__).parents[2] / "core" / "data" / "pictures"


@pytest.fixture(scope="module")
def modules():
    """The address of an empty page beside our modules."""
    with hosted(static(FILES)) as address:
        yield f"{address}blank.html"


def random_texts(count: int) -> list[str]:
    """Texts of all kinds of letters, spaces and signs, with and without sense."""
    rng = random.Random(0)
    words = [
        "red heart", "Don't", "it's 2,500 km", "ΌΣΟΣ", "İstanbul", "cafe\u0301", "北京 大学", "[EOS]",
        "a\u00a0b\u2003c\u0085d", "<|endoftext|>", "“quoted” ‘word’", "naïve—dash…", "👩‍👩‍👧", "x" * 60, "\ufeffmark",
        "  two  spaces ", "١٢٣", "½ ²",
    ]  # fmt: skip
    alphabet = "abcXYZ 019'\t.,-éßŁжש한ﬁ😀\u200d\u0301"
    return words + ["".join(rng.choices(alphabet, k=rng.randrange(1, 24))) for _ in range(count)]


@pytest.mark.parametrize("name", ["icons", "clip"])
def test_texts_become_the_same_tokens_and_tokens_the_same_texts(name, modules, tab):
    if name == "clip":
        tokenizer = clip_bpe()
    else:
        tokenizer = Tokenizer.from_json((ICONS / "tokenizer.json").read_text(encoding="utf-8"))
    texts = random_texts(400)
    found = tab(modules).page.evaluate(
        """async ([file, texts]) => {
            const { Tokenizer } = await import("./tokenizer.js");
            const tokenizer = new Tokenizer(JSON.parse(file));
            return texts.map((text) => [tokenizer.encode(text), tokenizer.decode(tokenizer.encode(text))]);
        }""",
        [tokenizer.to_json(), texts],
    )
    for text, (ids, back) in zip(texts, found, strict=True):
        assert ids == tokenizer.encode(text), text
        assert back == tokenizer.decode(ids), text


def random_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    channels = len(mode)
    coarse = rng.integers(0, 256, (max(1, height // 5), max(1, width // 5), channels), np.uint8)
    image = Image.fromarray(coarse, mode).resize((width, height), Image.Resampling.BILINEAR)
    noisy = np.asarray(image).astype(int) + rng.integers(-20, 20, (height, width, channels))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8), mode)


def png(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


PIXELS = """async ([data, preprocess]) => {
    const { pixelsOf } = await import("./picture.js");
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    return Array.from(await pixelsOf(new Blob([bytes]), preprocess));
}"""


def pixels_in_browser(page, content: bytes, preprocess: Preprocess) -> np.ndarray:
    found = page.evaluate(PIXELS, [base64.b64encode(content).decode(), to_dict(preprocess)])
    return np.array(found).reshape(preprocess.image_size, preprocess.image_size, 3)


SIZES = [(64, 64), (65, 64), (200, 133), (133, 200), (40, 31), (7, 90), (701, 640), (64, 1), (1200, 63)]


@pytest.mark.parametrize("order", ["crop_then_resize", "resize_then_crop"])
def test_pixels_equal_those_of_pillow_bitwise(order, modules, tab):
    page = tab(modules).page
    for size in SIZES:
        if order == "resize_then_crop" and size == (1200, 63):
            size = (60_000, 60)  # so wide that only the part inside the crop is resized
        content = png(random_image(*size))
        preprocess = Preprocess(64, order=order)
        expected = np.asarray(preprocess.square(decode_image(content, "image.png")))
        assert (pixels_in_browser(page, content, preprocess) == expected).all(), size


@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_pixels_of_other_encoders_equal_those_of_pillow(fit, interpolation, modules, tab):
    page = tab(modules).page
    crop = 1.0 if fit == "squash" else 0.875
    preprocess = EncoderPreprocess(
        image_size=64, order="resize_then_crop", fit=fit, crop=crop, interpolation=interpolation
    )
    # Of 7 × 90 pixels, Pillow 13 squashes the height first, and rounds in between.
    for size in [(64, 64), *SIZES[2:5], (701, 640), *([(7, 90), (60_000, 60)] if fit == "crop" else [])]:
        content = png(random_image(*size))
        expected = np.asarray(preprocess.square(decode_image(content, "image.png")))
        assert (pixels_in_browser(page, content, preprocess) == expected).all(), size


@pytest.mark.parametrize("framing", [Framing(), Framing(margin=0.2, tolerance=8, min_share=0.9, max_enlargement=1.5)])
def test_drawings_are_framed_as_in_python(framing, modules, tab, tmp_path):
    page = tab(modules).page
    preprocess = Preprocess(64, framing=framing)
    of_others = EncoderPreprocess(image_size=64, order="resize_then_crop", crop=0.875, framing=framing)
    for path in write_pictures(tmp_path):
        content = path.read_bytes()
        expected = np.asarray(preprocess.square(decode_image(content, path.name))).astype(int)
        away = np.abs(pixels_in_browser(page, content, preprocess) - expected).max()
        # Browsers round 16 bits in another way, convert CMYK by a profile of their own, and decode JPEG differently.
        allowed = {"transparent.png": 2, "grey-16-bit.png": 2, "cmyk.jpg": 60, "lossy.jpg": 4}
        assert away <= allowed.get(path.name, 0), path.name
        squares = pixels_in_browser(page, content, of_others), of_others.square(decode_image(content, path.name))
        away = np.abs(squares[0] - np.asarray(squares[1]).astype(int)).max()
        assert away <= allowed.get(path.name, 0), path.name


def test_transparent_parts_are_white_and_images_stand_upright(modules, tab):
    page = tab(modules).page
    preprocess = Preprocess(64)
    see_through = png(random_image(80, 70, "RGBA"))
    expected = np.asarray(preprocess.square(decode_image(see_through, "image.png"))).astype(int)
    # A browser multiplies colours by their opacity before it lays them over white, which may round once more.
    assert np.abs(pixels_in_browser(page, see_through, preprocess) - expected).max() <= 2
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = png(random_image(90, 70), exif=exif)
    expected = np.asarray(preprocess.square(decode_image(turned, "image.png")))
    assert (pixels_in_browser(page, turned, preprocess) == expected).all()
    stored = Preprocess(64, opening="as_stored")
    expected = np.asarray(stored.square(decode_image(turned, "image.png", "as_stored")))
    assert (pixels_in_browser(page, turned, stored) == expected).all()


@pytest.mark.parametrize("name", ["darktable-display-p3.jpg", "darktable-display-p3.png", "libwebp-adobe-rgb.webp"])
def test_colour_profiles_are_converted_as_in_python(name, modules, tab):
    content = (PICTURES / name).read_bytes()
    page, upright, stored = tab(modules).page, Preprocess(32), Preprocess(32, opening="as_stored")
    for preprocess, other in ((upright, stored), (stored, upright)):
        pixels = pixels_in_browser(page, content, preprocess).astype(int)
        assert np.abs(pixels - preprocess(preprocess.decode(content, name))).max() <= 4
        assert np.abs(pixels - other(other.decode(content, name))).max() > 10


def test_stems_equal_those_of_sqlite_full_text_search(modules, tab):
    text = (DATASETS / "pictograms" / "card.md").read_text(encoding="utf-8")
    words = sorted({word for word in text.lower().split() if word.isascii() and word.isalpha()})
    words += [
        "caresses", "ponies", "ties", "cats", "feed", "agreed", "plastered", "motoring", "hopping", "hoping", "happy",
        "sky", "relational", "conditional",
        "valency", "digitizer", "operator", "feudalism", "decisiveness", "formality", "triplicate", "formative",
        "electrical", "hopeful", "goodness",
        "revival", "allowance", "inference", "airliner", "adjustable", "defensible", "irritant", "replacement",
        "adoption", "effective", "rate", "cease",
        "controlling", "rolling", "yes", "yellow", "toys", "flying", "dying", "skies", "sunglasses", "houses",
        "running", "runner",
    ]  # fmt: skip
    database = sqlite3.connect(":memory:")
    database.execute("CREATE VIRTUAL TABLE t USING fts5(word, tokenize='porter unicode61 remove_diacritics 2')")
    database.execute("CREATE VIRTUAL TABLE v USING fts5vocab(t, instance)")
    database.executemany("INSERT INTO t (rowid, word) VALUES (?, ?)", enumerate(words, 1))
    expected = dict(database.execute("SELECT doc, term FROM v"))
    found = tab(modules).page.evaluate(
        "async (words) => { const { stemOf } = await import('./words.js'); return words.map(stemOf); }", words
    )
    assert dict(zip(words, found, strict=True)) == {word: expected[number] for number, word in enumerate(words, 1)}


def test_words_have_the_scores_of_sqlite(modules, tab):
    random = np.random.default_rng(0)
    names = ["red", "hearts", "heart", "running", "a", "b12", "Ångström", "zebra"]
    rows = [[" ".join(random.choice(names, random.integers(0, most))) for most in (3, 6)] for _ in range(60)]
    database = sqlite3.connect(":memory:")
    database.execute(
        "CREATE VIRTUAL TABLE t USING fts5(title, caption, tokenize='porter unicode61 remove_diacritics 2')"
    )
    database.executemany("INSERT INTO t VALUES (?, ?)", rows)
    weights = [TITLE_WEIGHT, CAPTION_WEIGHT]
    for words in (["heart"], ["zebra", "red"], ["angstrom", "a", "none"]):
        found = tab(modules).page.evaluate(
            """async ({ rows, weights, text }) => {
                const { WordIndex } = await import("./words.js");
                const index = new WordIndex();
                for (const texts of rows) index.add(texts.map((text, i) => [text, weights[i]]));
                return index.search(text, 100, () => true);
            }""",
            {"rows": rows, "weights": weights, "text": " ".join(words)},
        )
        scores = database.execute(
            "SELECT rowid - 1, -bm25(t, ?, ?) FROM t WHERE t MATCH ?", (*weights, " OR ".join(words))
        )
        assert dict(found) == pytest.approx(dict(scores))
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


# --- A whole site


@pytest.fixture(scope="module")
def model():
    return grr_coca.load("icons")


def fifty_drawings() -> list[tuple[str, bytes]]:
    with tarfile.open(DATASETS / "pictograms" / "test_style-00000.tar") as tar:
        members = [member for member in tar if member.name.endswith(".webp")]
        return [(member.name, tar.extractfile(member).read()) for member in members[5::17][:50]]


CAPTION = """async ([data, type]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    return (await window.backend.caption(new Blob([bytes], { type }), (text) => (window.last = text))).caption;
}"""


def captions_in_browser(address: str, tab, drawings: list[tuple[str, bytes]]) -> list[str]:
    page = tab(address).ready().page
    page.evaluate("async () => { window.backend = (await import('./app.js')).backend; }")
    return [page.evaluate(CAPTION, [base64.b64encode(data).decode(), "image/webp"]) for _, data in drawings]


def test_captions_of_fifty_drawings_equal_those_of_python(host, model, tab):
    drawings = fifty_drawings()
    expected = [model.caption(Image.open(io.BytesIO(data)).convert("RGB")) for _, data in drawings]
    assert len(set(expected)) > 40
    assert captions_in_browser(host, tab, drawings) == expected


@pytest.mark.slow
def test_nearly_all_int8_captions_equal_those_of_python(tab, tmp_path):
    command = [sys.executable, "-m", "grr_coca", "export", "onnx", "-c", "icons", "--precision", "int8"]
    subprocess.run([*command, "--out", tmp_path / "int8"], check=True)  # the tests' checks of shapes disturb tracing
    with graphs_of(tmp_path / "int8") as graphs:
        write_site(graphs, tmp_path / "site", find_runtime(), title="Captions", model="icons")
    drawings = fifty_drawings()
    small = grr_coca.load(tmp_path / "int8")
    assert small.engine.name == "onnx"
    expected = [small.caption(Image.open(io.BytesIO(data)).convert("RGB")) for _, data in drawings]
    with hosted(static(tmp_path / "site")) as address:
        found = captions_in_browser(address, tab, drawings)
    assert sum(one == other for one, other in zip(found, expected, strict=True)) >= 48


QUERY = {"texts": [], "without": [], "like": [], "unlike": [], "filters": {}, "offset": 0, "limit": 20}


def test_hits_and_relevances_equal_those_of_python(host, drawings_index, tab):
    page = tab(host).ready().page
    page.evaluate("async () => { window.backend = (await import('./app.js')).backend; }")
    with Index.open(drawings_index) as index:
        queries = ((["red heart"], []), (["cat face"], []), (["bicycle"], ["person"]), (["zzz qqq"], []))
        for texts, without in (*queries, (["fall asleep"], [])):
            found = page.evaluate("(query) => backend.search(query)", {**QUERY, "texts": texts, "without": without})
            expected = index.search(texts, n=200, without=without)
            assert found["verdict"] == expected.verdict
            assert found["can_tell"] == expected.can_tell
            names = [hit.path for hit in expected]
            assert names[0].endswith(found["hits"][0]["name"])
            # Embeddings in 8 bits may exchange hits whose scores are nearly equal.
            by_name = {hit.path: hit for hit in expected}
            for hit in found["hits"]:
                [path] = [name for name in names if name.endswith(hit["name"])]
                assert hit["score"] == pytest.approx(by_name[path].score, abs=0.01)
                assert hit["relevance"] == pytest.approx(by_name[path].relevance, abs=0.05)
                assert len(hit["copies"]) == len(by_name[path].copies)
            first = {hit["name"] for hit in found["hits"][:10]}
            assert sum(any(name.endswith(one) for one in first) for name in names[:10]) >= 9
    for kind in ("like", "unlike"):
        query = {**QUERY, "texts": ["cat face"], kind: [found["hits"][0]["id"]]}
        by_image = page.evaluate("(query) => backend.search(query)", query)
        assert by_image["can_tell"] is False
        assert {hit["relevance"] for hit in by_image["hits"]} == {None}


def test_filters_select_the_same_as_in_python(host, drawings_index, tab):
    page = tab(host).ready().page
    page.evaluate("async () => { window.backend = (await import('./app.js')).backend; }")
    cases = [
        ({"folder": {"in": ["people"]}}, "folder in ('people')"),
        ({"width": {"from": 65}}, "width >= 65"),
        ({"size": {"from": 500, "to": 1500}}, "size >= 500 and size <= 1500"),
        ({"date": {"to": "1999-01-01T23:59:59"}}, "date <= '1999-01-01T23:59:59'"),
    ]
    with Index.open(drawings_index) as index:
        for filters, where in cases:
            found = page.evaluate("(filters) => backend.pictures(filters, 0, 200)", filters)
            expected = {entry.name for entry in index.store.matching(parse_filter(where))}
            assert found["total"] == len(expected)
            assert {path.rpartition("/")[2] for path in expected} == {
                picture["name"].rpartition("/")[2] for picture in found["pictures"]
            }


def test_names_and_queries_have_the_words_of_python(modules, tab):
    texts = [
        *random_texts(200),
        *("ShoppingCart", "shopping-cart", "mdi:home", "SQLite3", "number72", "boxes of cities", "the", "x²½", "a b"),
    ]
    found = tab(modules).page.evaluate(
        """async (texts) => {
            const { askedName, askedWords, hasWords, inWords, isOf, wordsOf } = await import("./words.js");
            return texts.map((text, i) => {
                const [name, other] = [askedName(text), texts[(i * 7 + 1) % texts.length]];
                const asked = askedWords(text);
                return [wordsOf(text), inWords(text), [...asked].sort(), name.prefix, name.words, isOf(name, other),
                    hasWords(asked, [text, other])];
            });
        }""",
        texts,
    )
    for place, (text, from_page) in enumerate(zip(texts, found, strict=True)):
        name, other = NameQuery.of(text), texts[(place * 7 + 1) % len(texts)]
        asked = query_terms(text)
        expected = [words_of(text), split_identifier(text), sorted(asked), name.prefix, [*name.words]]
        assert from_page == [*expected, name.matches_name(other), has_words(asked, [text, other])], text


def test_image_is_unlike_the_training_as_in_python(modules, tab):
    rng = np.random.default_rng(0)
    flat = np.full((32, 32, 3), 250, np.uint8)
    flat[8:20, 8:20] = [200, 30, 40]
    pixels = np.stack([rng.integers(0, 256, (32, 32, 3), np.uint8), flat, np.zeros((32, 32, 3), np.uint8)])
    found = tab(modules).page.evaluate(
        """async (all) => {
            const { statistics } = await import("./familiar.js");
            return all.map((pixels) => statistics(Uint8Array.from(pixels)));
        }""",
        [image.ravel().tolist() for image in pixels],
    )
    assert np.array(found) == pytest.approx(statistics(pixels))


def test_image_looks_like_a_photograph_as_in_python(modules, tab):
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.integers(-9, 10, (64, 64, 3)), axis=1) + 120
    cut_out = np.full((64, 64, 3), [250, 250, 240], int)
    cut_out[10:50, 14:60] = smooth[10:50, 14:60] + rng.integers(0, 3, (40, 46, 3))
    drawn = np.full((64, 64, 3), 250)
    drawn[8:40, 8:40] = [200, 30, 40]
    pixels = np.stack([rng.integers(0, 256, (64, 64, 3)), cut_out, smooth, drawn]).clip(0, 255).astype(np.uint8)
    fitted = read_calibration(ICONS)
    numbers = {"mean": fitted.mean, "precision": fitted.precision, "max_distance": fitted.max_distance}
    found = tab(modules).page.evaluate(
        """async ([all, fitted]) => {
            const { lookInside } = await import("./photographs.js");
            const { isUnfamiliar } = await import("./familiar.js");
            const bytes = all.map((pixels) => Uint8Array.from(pixels));
            return bytes.map((pixels) => [lookInside(pixels).numbers, isUnfamiliar(pixels, fitted)]);
        }""",
        [[image.ravel().tolist() for image in pixels], {**numbers, "photographs": to_dict(fitted.photographs)}],
    )
    inside = compute_interior_stats(pixels)
    assert [numbers is not None for numbers, _ in found] == inside.is_judged.tolist() == [True, True, True, False]
    assert np.array([numbers for numbers, _ in found if numbers]) == pytest.approx(inside.numbers, abs=1e-4)
    assert [is_unfamiliar for _, is_unfamiliar in found] == fitted.are_unfamiliar(pixels)
