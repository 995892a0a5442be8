"""Features in place of images: a folder of them is adapted to, measured, captioned, indexed and searched."""

import csv
import hashlib
import io
import json
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from encoder_graphs import write_graph
from PIL import Image
from serving import serving
from support import real_pairs, write_shard

from grr_coca import load
from grr_coca.adapt import calibrate
from grr_coca.cli import main
from grr_coca.data.feature_image import (
    encoder_of_image,
    enlarge_square,
    feature_image,
    feature_side,
    features_of_pixels,
)
from grr_coca.data.image_files import find_images
from grr_coca.data.sources.base import BadSample
from grr_coca.data.sources.feature_pairs import PAIRS, FeaturePairs
from grr_coca.data.sources.open import open_source
from grr_coca_search import Index
from grr_coca_serve import site
from grr_coca_serve.npm import NpmPackage

WORDS = ("adenoma", "carcinoma", "colon", "breast", "liver", "inflammation", "necrosis", "benign", "grade two")
WIDTH, NUM_PAIRS, NUM_NEW = 64, 60, 20
DIGEST = "0123456789abcdef" * 2


@pytest.fixture(scope="module", autouse=True)
def _few_beams():
    before, calibrate._MAX_COMPARED = calibrate._MAX_COMPARED, 8
    yield
    calibrate._MAX_COMPARED = before


def write_slides(folder, first, count):
    """Tiles of slides, N × 64, with N of each its own, and a report of the words that made them."""
    random = np.random.default_rng(first)
    words = np.random.default_rng(0).standard_normal((len(WORDS), WIDTH))
    (folder / "slides").mkdir(parents=True)
    with (folder / "reports.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["slide_id", "report", "organ", "thumbnail"])
        for number in range(first, first + count):
            chosen = random.choice(len(WORDS), 3, replace=False)
            noise = random.standard_normal((3 + number % 5, WIDTH))
            np.save(folder / "slides" / f"s{number}.npy", (words[chosen].mean(axis=0) + 0.2 * noise).astype(np.float32))
            picture = f"s{number}.png" if number == first else ""
            table.writerow(
                [f"s{number}.svs", " ".join(WORDS[i] for i in chosen), "gut" if number % 2 else "skin", picture]
            )
    Image.new("RGB", (30, 20), "pink").save(folder / f"s{first}.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Features with reports, a model that was adapted to them, and features of other slides."""
    folder = tmp_path_factory.mktemp("features")
    for name, first, count in (("old", 0, NUM_PAIRS), ("new", NUM_PAIRS, NUM_NEW)):
        write_slides(folder / name, first, count)
        given = ("--encoder", "given:virchow", "--given", str(folder / name / "slides"))
        assert (
            main(["data", "features", str(folder / name / "reports.csv"), str(folder / f"{name}-features"), *given])
            == 0
        )
    assert main(["adapt", str(folder / "old-features"), "--out", str(folder / "mine")]) == 0
    return folder


def recall(grr_coca, root, *more):
    done = grr_coca("evaluate", root / "mine", "--data", root / "new-features", "--json", *more)
    (report,) = json.loads(done.out).values()
    return report


def test_model_finds_new_slides_by_words(grr_coca, root):
    metrics = recall(grr_coca, root)["metrics"]
    assert metrics["text_to_image/R@1"]["value"] > 0.5
    assert metrics["image_to_text/R@1"]["value"] > 0.5


@pytest.mark.ci
def test_captions_come_from_similar_slides(grr_coca, root):
    done = grr_coca("caption", root / "new-features", "-c", root / "mine")
    lines = dict(line.split("\t") for line in done.out.splitlines())
    assert len(lines) == NUM_NEW
    rows = grr_coca("caption", root / "new-features", "-c", root / "mine", "--json").out.splitlines()
    assert {json.loads(row)["log_prob"] for row in rows} == {None}
    for name in ("captions.jsonl", "captions.csv", "captions.csv"):  # a table is continued, too
        command = ("caption", root / "new-features", "-c", root / "mine", "--out", root / name)
        assert grr_coca(*command).code == 0
    source = open_source(str(root / "new-features"))
    shared = [len(set(lines[source.name(i)].split()) & set(source.captions(i)[0].split())) for i in range(NUM_NEW)]
    assert np.mean(shared) > 2
    assert recall(grr_coca, root, "--task", "captioning")["metrics"]["ROUGE-L"]["value"] > 0.6


def test_compare_takes_features(grr_coca, root):
    done = grr_coca("compare", root / "mine", root / "mine", "--data", root / "new-features")
    assert done.code == 0
    assert "+0.0% [+0.0%, +0.0%]" in done.out


def test_index_has_captions_columns_and_an_image(grr_coca, root):
    assert grr_coca("index", root / "new-features", "--out", root / "index", "-c", root / "mine").code == 0
    with Index.open(root / "index") as index:
        hits = index.search("necrosis liver", NUM_NEW).hits
        assert {"necrosis", "liver"} & set(hits[0].caption.split())
        by_title = {hit.entry.title: hit.entry for hit in hits}
        assert by_title.keys() == {f"s{number}" for number in range(NUM_PAIRS, NUM_PAIRS + NUM_NEW)}
        assert {entry.fields["organ"] for entry in by_title.values()} == {"gut", "skin"}
        first = by_title[f"s{NUM_PAIRS}"]
        with Image.open(first.span.file) as picture:
            assert picture.size == (30, 20)
        assert not by_title[f"s{NUM_PAIRS + 1}"].file
    again = grr_coca("index", "--out", root / "index")
    assert "(nothing new)" in again.out
    found = grr_coca("search", root / "index", "liver", "-n", 3)
    assert "gone" not in found.out


@pytest.mark.ci
def test_page_serves_captions_and_images_of_slides(grr_coca, root):
    location = root / "served"
    assert grr_coca("index", root / "new-features", "--out", location, "-c", root / "mine").code == 0
    with serving(location) as client:
        found = client.post("/search", {"texts": ["necrosis liver"], "limit": NUM_NEW}).json()["hits"]
        assert {"necrosis", "liver"} & set(found[0]["caption"].split())
        first = next(hit for hit in found if hit["name"].endswith(f"s{NUM_PAIRS}.svs"))
        shown = [client.get(f"/image/{hit['id']}") for hit in (first, next(hit for hit in found if hit != first))]
        assert [response.headers.get("x-missing") for response in shown] == [None, "1"]


@pytest.mark.ci
def test_site_searches_slides_by_text(grr_coca, root, refused, tmp_path, monkeypatch):
    content = _archive()
    runtime = tmp_path / "runtime.tgz"
    runtime.write_bytes(content)
    monkeypatch.setattr(site, "RUNTIME", NpmPackage("runtime", "1.0.0", hashlib.sha256(content).hexdigest()))
    location = root / "exported"
    assert grr_coca("index", root / "new-features", "--out", location, "-c", root / "mine").code == 0
    done = grr_coca("export", "web", "--index", location, "--out", tmp_path / "site", "--runtime", runtime)
    assert done.code == 0, done.err
    about = json.loads((tmp_path / "site" / "site.json").read_text(encoding="utf-8"))
    assert about["can"] == ["search"]
    assert about["graphs"].keys() == {"text"}
    assert not (tmp_path / "site" / "model" / "image.onnx.gz").exists()
    message = refused("export", "web", "-c", root / "mine", "--out", tmp_path / "other", "--runtime", runtime)
    assert "a page cannot compute the image encoder given:virchow of this model; pass --index" in message


def _archive():
    """An archive in place of ONNX Runtime Web's."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
            tar.addfile(tarfile.TarInfo(f"package/dist/{name}"))
    return packed.getvalue()


def test_similar_slides_are_found_by_their_vectors(root):
    model, source = load(root / "mine"), FeaturePairs(root / "new-features")
    pixels = np.stack([np.asarray(model.preprocess.decode_square(source.image(i), "a")) for i in range(NUM_NEW)])
    vectors = model.engine.encode_images(pixels).embedding
    np.testing.assert_allclose(model.image_queries(vectors), vectors, atol=1e-5)


def test_embeddings_are_unit_vectors_of_the_mean(grr_coca, root, tmp_path):
    assert grr_coca("embed", root / "new-features", "-c", root / "mine", "--out", tmp_path / "e.npy").code == 0
    vectors = np.load(tmp_path / "e.npy")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    model, source = load(root / "mine"), FeaturePairs(root / "new-features")
    tokens = np.load(root / "new" / "slides" / f"s{NUM_PAIRS}.npy")
    mean = np.load(root / "new-features" / "00000.npy")[0]
    np.testing.assert_allclose(mean, tokens.mean(axis=0), atol=2e-3)
    square = np.asarray(model.preprocess.decode_square(source.image(0), "a"))
    np.testing.assert_array_equal(features_of_pixels(square), mean)
    np.testing.assert_allclose(model.engine.encode_images(square[None]).embedding[0], vectors[0], atol=1e-6)


def test_other_features_and_images_raise_with_both_names(grr_coca, root, refused, tmp_path):
    slides = root / "new" / "slides"
    grr_coca("data", "features", slides, tmp_path / "uni", "--encoder", "given:uni")
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    mine, uni = root / "mine", tmp_path / "uni"
    both = f"{uni}: contains features of given:uni, but {mine} takes features of given:virchow"
    assert both in refused("caption", uni, "-c", mine)
    assert both in refused("index", uni, "--out", tmp_path / "index", "-c", mine)
    assert both in refused("evaluate", mine, "--data", uni)
    assert both in refused("compare", mine, "icons", "--data", uni)
    assert both in refused("embed", uni, "-c", mine, "--out", tmp_path / "e.npy")
    assert "takes features of given:virchow" in refused("caption", tmp_path / "a.png", "-c", mine)
    assert f"{uni}: features of given:uni, but" in refused("caption", uni, "-c", "icons")
    assert f"encodes images; pass the images, or {uni / PAIRS}" in refused("evaluate", "icons", "--data", uni)
    done = grr_coca("adapt", root / "old-features", "--val", uni, "--out", tmp_path / "m")
    old = root / "old-features"
    assert f"{uni}: contains features of given:uni, but {old} takes features of given:virchow" in done.err


def test_model_of_images_rejects_an_image_of_features(root):
    image = FeaturePairs(root / "new-features").image(0)
    with pytest.raises(BadSample, match=r"^a: features of an image encoder, but this model takes images"):
        load("icons").preprocess.decode_square(image, "a")
    with pytest.raises(BadSample, match=r"^a: features of another image encoder than given:virchow"):
        load(root / "mine").preprocess.decode_square(feature_image(np.zeros(WIDTH), DIGEST), "a")


def test_options_of_the_decoder_raise(root, refused):
    assert "its decoder cannot read" in refused("caption", root / "new-features", "-c", root / "mine", "--prompt", "a")


@pytest.mark.ci
def test_report_names_the_features(grr_coca, root):
    done = grr_coca("adapt", root / "old-features", "--out", root / "again", "--val", root / "new-features")
    assert "adapted from icons to features of given:virchow" in done.out
    assert "as shipped" not in done.out
    assert "decoder alone" not in done.out
    page = (root / "again" / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") <= 2
    assert f"s{NUM_PAIRS + 1}.svs" in page
    assert (
        f"{NUM_PAIRS} images, {NUM_PAIRS} of them read before"
        in grr_coca("adapt", root / "old-features", "--out", root / "again").out
    )


@pytest.mark.ci
def test_features_of_an_encoder_take_images(grr_coca, tmp_path):
    pairs = real_pairs(40, "glyphs")
    write_shard(tmp_path / "pairs.tar", pairs)
    (tmp_path / "graph").mkdir()
    name = f"onnx:{write_graph(tmp_path / 'graph')}"
    assert grr_coca("data", "features", tmp_path / "pairs.tar", tmp_path / "features", "--encoder", name).code == 0
    assert grr_coca("adapt", tmp_path / "features", "--out", tmp_path / "mine").code == 0
    (tmp_path / "graph" / "encoder.onnx").unlink()
    model, source = load(tmp_path / "mine"), open_source(str(tmp_path / "features"))
    of_images = [np.asarray(model.preprocess.decode_square(pair.image, pair.key)) for pair in pairs]
    of_features = [np.asarray(model.preprocess.decode_square(source[i].image, "a")) for i in range(len(source))]
    first, second = (model.engine.encode_images(np.stack(pixels)).embedding for pixels in (of_images, of_features))
    np.testing.assert_allclose(first, second, atol=0.02)
    assert np.abs(first - first[::-1]).max() > 0.1


@pytest.mark.parametrize("kind", ["folder", "folder without texts", "parquet", "array"])
def test_names_and_captions_of_features(grr_coca, root, tmp_path, kind):
    tokens = [np.load(root / "new" / "slides" / f"s{number}.npy") for number in range(NUM_PAIRS, NUM_PAIRS + 4)]
    names, texts = ["a/x", "a/y", "b", "c.d"], ["one", "two\nthree", "four", "five"]
    path = tmp_path / "given"
    if kind.startswith("folder"):
        for name, own, text in zip(names, tokens, texts, strict=True):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(path / f"{name}.npy", own)
            if kind == "folder":
                (path / f"{name}.txt").write_text(text)
    elif kind == "parquet":
        path = tmp_path / "given.parquet"
        columns = {"slide": names, "features": [own.tolist() for own in tokens], "text": texts, "age": [1, 2, 3, 4]}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:
        path, names = tmp_path / "given.npy", ["0", "1", "2", "3"]
        np.save(path, np.stack([own.mean(axis=0) for own in tokens]))
    done = grr_coca("data", "features", path, tmp_path / "out", "--encoder", "given:virchow")
    assert done.code == 0, done.err
    source = FeaturePairs(tmp_path / "out")
    files = find_images([str(tmp_path / "out")])
    assert sorted(file.name for file in files) == sorted(f"{tmp_path / 'out'}/{name}" for name in names)
    found = {file.name.removeprefix(f"{tmp_path / 'out'}/"): features_of(file.read()) for file in files}
    for name, own in zip(names, tokens, strict=True):
        np.testing.assert_allclose(found[name], own.mean(axis=0), atol=2e-3)
    if kind in ("folder", "parquet"):
        captions = {source[i].key: source.captions(i) for i in range(len(source))}
        assert captions == {
            name: tuple(text.split("\n")) if kind == "folder" else (text,)
            for name, text in zip(names, texts, strict=True)
        }
    else:
        with pytest.raises(BadSample, match="the image has no caption"):
            source.captions(0)
    if kind == "parquet":
        assert [file.fields()["age"] for file in files] == [1, 2, 3, 4]


def features_of(content):
    return features_of_pixels(np.asarray(Image.open(io.BytesIO(content))))


def test_missing_files_are_named(grr_coca, root, refused, tmp_path):
    slides = root / "new" / "slides"
    grr_coca("data", "features", slides, tmp_path / "out", "--encoder", "given:virchow")
    kept = (tmp_path / "out" / PAIRS).read_bytes()
    (tmp_path / "out" / PAIRS).unlink()
    message = refused("caption", tmp_path / "out", "-c", root / "mine")
    assert f"{PAIRS} is missing; run the same `grr-coca data features` command again" in message
    assert grr_coca("data", "features", slides, tmp_path / "out", "--encoder", "given:virchow").code == 0
    assert (tmp_path / "out" / PAIRS).read_bytes() == kept


def test_encoder_of_features_cannot_encode(grr_coca, refused, root, tmp_path):
    write_shard(tmp_path / "pairs.tar", real_pairs(20, "glyphs"))
    given = ("--encoder", "given:virchow")
    assert "unsupported feature format" in refused("data", "features", tmp_path / "pairs.tar", tmp_path / "o", *given)
    slides = root / "new" / "slides"
    assert "of the encoder is missing" in refused("data", "features", slides, tmp_path / "o", "--encoder", "given:")
    assert "omit --frame" in refused("data", "features", slides, tmp_path / "o", *given, "--frame")
    assert not (tmp_path / "o").exists()
    done = grr_coca("adapt", tmp_path / "pairs.tar", "--out", tmp_path / "o", "--encoder", "given:virchow")
    assert "given:virchow: this encoder is not available here, so images cannot be encoded" in done.err


@pytest.mark.parametrize("width", [1, 5, 768, 1536, 5_000])
def test_features_round_trip_through_an_image(width):
    features = np.random.default_rng(width).standard_normal(width).astype(np.float16)
    content = feature_image(features, DIGEST)
    image = Image.open(io.BytesIO(content)).convert("RGB")
    assert image.size == (feature_side(width),) * 2
    for one in (image, enlarge_square(image, image.width + 7)):
        assert encoder_of_image(one) == DIGEST
        np.testing.assert_array_equal(features_of_pixels(np.asarray(one)), features.astype(np.float32))
    if width > 500:
        with pytest.raises(ValueError, match="do not fit"):
            enlarge_square(image, image.width - 2)


def test_other_images_contain_no_features():
    random = np.random.default_rng(0)
    for pair in real_pairs(10, "glyphs"):
        image = Image.open(io.BytesIO(pair.image)).convert("RGB")
        assert encoder_of_image(image) is None
        assert features_of_pixels(np.asarray(image)) is None
    assert encoder_of_image(Image.fromarray(random.integers(0, 255, (2, 2, 3), np.uint8))) is None
