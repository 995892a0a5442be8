"""`grr-coca adapt --encoder`: an image encoder of others beside the base."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from encoder_graphs import write_graph
from support import hide_packages, real_pairs, snapshot, write_shard

from grr_coca import load
from grr_coca.adapt import calibrate
from grr_coca.cli import main
from grr_coca.common.errors import UserError
from grr_coca.data.sources.open import open_source
from grr_coca.infer.adapted.adaptation import read_features
from grr_coca.infer.adapted.adapted_model import AdaptedModel
from grr_coca.infer.adapted.descriptors import NUM_DESCRIPTORS
from grr_coca.infer.encoder import open_encoder, with_framing
from grr_coca.model.checkpoint_files import ENCODER_FILES, fingerprint

NUM_PAIRS = 60


@pytest.fixture(scope="module", autouse=True)
def _few_beams():
    """Beams take most of the time of a small fit."""
    before, calibrate._MAX_COMPARED = calibrate._MAX_COMPARED, 8
    yield
    calibrate._MAX_COMPARED = before


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pairs, a graph, its features of framed drawings, and a model that was adapted with the encoder."""
    folder = tmp_path_factory.mktemp("beside")
    pairs = real_pairs(NUM_PAIRS, "glyphs")
    write_shard(folder / "pairs.tar", pairs)
    (folder / "images").mkdir()
    for pair in pairs[:8]:
        (folder / "images" / f"{pair.key}.webp").write_bytes(pair.image)
    (folder / "graph").mkdir()
    name = f"onnx:{write_graph(folder / 'graph')}"
    arguments = [str(folder / "pairs.tar"), str(folder / "features"), "--encoder", name, "--frame"]
    assert main(["data", "features", *arguments]) == 0
    assert main(["adapt", str(folder / "pairs.tar"), "--out", str(folder / "mine"), "--encoder", name]) == 0
    return folder


@pytest.fixture(scope="module")
def images(root):
    return sorted((root / "images").iterdir())


@pytest.fixture(scope="module")
def model(root):
    return load(root / "mine")


def adapt(grr_coca, root, out, *more, pairs="pairs.tar"):
    return grr_coca("adapt", root / pairs, "--out", root / out, "--json", *more)


@pytest.mark.ci
def test_folder_carries_the_encoder(root, model, images):
    moved = root / "elsewhere"
    shutil.copytree(root / "mine", moved)
    assert {path.name for path in moved.iterdir()} >= set(ENCODER_FILES)
    graph = root / "graph" / "encoder.onnx"
    hidden = graph.rename(root / "hidden.onnx")
    vectors = load(moved).embed_images(images)
    hidden.rename(graph)
    np.testing.assert_array_equal(vectors, model.embed_images(images))


@pytest.mark.ci
def test_features_contain_the_centred_mean_token(root, model):
    source = open_source(str(root / "pairs.tar"))
    pixels = np.stack([model.preprocess(model.preprocess.decode(one.image, one.name)) for one in source])
    assert model.preprocess.framing == load("icons", engine="onnx").preprocess.framing
    found = open_encoder(f"onnx:{root / 'graph' / 'encoder.onnx'}").encode(pixels).tokens.mean(axis=1)
    expected = found - found.mean(axis=0)
    expected *= 1.5 / np.linalg.norm(expected, axis=1, keepdims=True)
    stored = list(read_features(root / "mine").values())
    width = 128 + NUM_DESCRIPTORS
    assert {row.shape for row in stored} == {(width + 5,)}
    ours = np.array(sorted(row[width:].tolist() for row in stored))
    np.testing.assert_allclose(ours, sorted(expected.tolist()), atol=5e-3)


def test_vectors_depend_on_the_encoder(root, images):
    model = load(root / "mine")
    assert isinstance(model, AdaptedModel)
    before = model.embed_images(images)
    np.testing.assert_allclose(np.linalg.norm(before, axis=1), 1, atol=1e-5)
    assert model.engine.descriptor is not None
    model.engine.descriptor.mean = -model.engine.descriptor.mean
    assert np.abs(model.embed_images(images) - before).max() > 0.01


def test_index_and_search_use_the_encoder(grr_coca, root, images):
    assert grr_coca("index", root / "images", "--out", root / "index", "-c", root / "mine").code == 0
    found = grr_coca("search", root / "index", "--image", images[3], "--json", "-n", 1)
    assert json.loads(found.out)[0]["path"] == str(images[3])


@pytest.mark.ci
def test_captions_of_both_engines_are_equal(root, model, images):
    captions = model.caption(images)
    assert all(captions)
    assert load(root / "mine", engine="torch").caption(images) == captions


@pytest.mark.ci
def test_features_give_the_model_of_their_encoder(grr_coca, root):
    assert adapt(grr_coca, root, "cached", "--encoder", root / "features").code == 0
    cached, direct = (read_features(root / name) for name in ("cached", "mine"))
    assert cached.keys() == direct.keys()
    for digest, row in cached.items():
        np.testing.assert_allclose(row, direct[digest], atol=5e-3)


@pytest.mark.ci
def test_features_are_used_in_place_of_the_encoder(grr_coca, root):
    shutil.copytree(root / "features", root / "changed")
    path = root / "changed" / "00000.npy"
    rows = np.load(path)
    np.save(path, np.roll(rows, 1, axis=0))
    assert adapt(grr_coca, root, "rolled", "--encoder", root / "changed").code == 0
    rolled, direct = (read_features(root / name) for name in ("rolled", "mine"))
    assert all(np.abs(rolled[digest] - direct[digest]).max() > 0.01 for digest in rolled)


@pytest.mark.ci
def test_more_pairs_read_only_new_images(grr_coca, root):
    write_shard(root / "fewer.tar", real_pairs(40, "glyphs"))
    name = f"onnx:{root / 'graph' / 'encoder.onnx'}"
    assert json.loads(adapt(grr_coca, root, "grows", "--encoder", name, pairs="fewer.tar").out)["reused_images"] == 0
    assert json.loads(adapt(grr_coca, root, "grows", "--encoder", name).out)["reused_images"] == 40
    assert json.loads(adapt(grr_coca, root, "grows").out)["reused_images"] == 0
    assert not (root / "grows" / "encoder.onnx").exists()
    assert load(root / "grows").preprocess.image_size == 64


def test_fingerprint_covers_the_encoder(root):
    shutil.copytree(root / "mine", root / "other")
    (root / "other" / "manifest.json").unlink()
    before = fingerprint(root / "other")
    info = json.loads((root / "other" / "encoder.json").read_text())
    (root / "other" / "encoder.json").write_text(json.dumps({**info, "weights": "0" * 64}))
    assert fingerprint(root / "other") != before


@pytest.mark.ci
def test_weights_under_another_licence_are_named(grr_coca, root, model, images, caplog):
    (root / "restricted").mkdir()
    name = f"onnx:{write_graph(root / 'restricted', licence='cc-by-nc-4.0')}"
    assert adapt(grr_coca, root, "named", "--encoder", name).code == 0
    assert not (root / "named" / "encoder.onnx").exists()
    assert "its licence is cc-by-nc-4.0" in caplog.text
    vectors = load(root / "named").embed_images(images)
    np.testing.assert_allclose(vectors, model.embed_images(images), atol=1e-5)
    (root / "restricted" / "encoder.onnx").unlink()
    with pytest.raises(UserError, match="no such file"):
        load(root / "named")


def test_corrupt_encoder_raises(root):
    for name in ENCODER_FILES:
        folder = root / f"corrupt-{name}"
        shutil.copytree(root / "mine", folder)
        (folder / name).write_bytes(b"{")
        with pytest.raises(UserError, match="corrupt"):
            load(folder)
        (folder / "manifest.json").unlink()
        with pytest.raises(UserError) as raised:
            load(folder)
        assert "\n" not in str(raised.value)
        assert name in str(raised.value)


def test_unknown_encoder_writes_nothing(grr_coca, root):
    before = snapshot(root)
    done = adapt(grr_coca, root, "none", "--encoder", "onnx:none.onnx")
    assert done.code == 2
    assert done.err.splitlines()[-1] == "error: onnx:none.onnx: no such file"
    assert snapshot(root) == before


@pytest.mark.ci
def test_explain_shows_the_base_model(grr_coca, root, model, images, tmp_path):
    pytest.importorskip("matplotlib")
    done = grr_coca("explain", images[0], "-c", root / "mine", "--out", tmp_path / "maps.png")
    assert done.code == 0
    assert "the heat maps show its base model" in done.err
    assert done.out.startswith(f"caption: {model.caption(images[0])}\n")


def test_evaluate_measures_the_adapted_model(grr_coca, root):
    data = ("--data", root / "pairs.tar", "--json")
    measured, plain = (
        json.loads(grr_coca("evaluate", name, "--task", "retrieval", *data).out) for name in (root / "mine", "icons")
    )
    (measured,), (plain,) = measured.values(), plain.values()
    assert measured.keys() == plain.keys()
    assert measured != plain


@pytest.mark.ci
def test_encoder_of_timm_becomes_a_graph(grr_coca, root, images, monkeypatch):
    pytest.importorskip("timm")
    pytest.importorskip("onnxscript")
    name = "timm:vit_tiny_patch16_224@32=random"
    assert adapt(grr_coca, root, "vit", "--encoder", name).code == 0
    info = json.loads((root / "vit" / "encoder.json").read_text())
    assert info["name"] == name
    graph = open_encoder(f"onnx:{root / 'vit' / 'encoder.onnx'}")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    found, expected = (encoder.encode(pixels).tokens for encoder in (graph, open_encoder(name)))  # in int8, and in fp32
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    assert ((found * expected).sum(axis=-1) / norms).min() > 0.99
    opened = with_framing(open_encoder(name), graph.info.preprocess.framing).info
    assert graph.info == replace(opened, precision="int8")
    assert graph.info.digest == opened.digest
    hide_packages(monkeypatch, "timm")
    assert load(root / "vit").embed_images(images).shape[0] == len(images)


def test_card_names_the_encoder(grr_coca, root):
    pytest.importorskip("huggingface_hub")
    pushed = grr_coca("push", root / "mine", "me/mine", "--licence", "mit", "--data", "glyphs", "--dry-run")
    assert pushed.code == 0
    info = json.loads((root / "mine" / "encoder.json").read_text())
    assert info["name"] == "onnx:encoder.onnx"
    card = " ".join(pushed.out.split())
    assert "The model contains the image encoder `onnx:encoder.onnx`" in card
    assert f"{info['weights']}, their licence: unknown." in card
    assert str(root) not in card
    assert "the upload includes the image encoder onnx:encoder.onnx (licence of its weights: unknown)" in pushed.err


@pytest.mark.ci
def test_push_of_a_named_file_raises(grr_coca, root, tmp_path):
    pytest.importorskip("huggingface_hub")
    name = f"onnx:{write_graph(tmp_path, licence='cc-by-nc-4.0')}"
    assert adapt(grr_coca, root, "not-public", "--encoder", name).code == 0
    pushed = grr_coca("push", root / "not-public", "me/mine", "--licence", "mit", "--data", "glyphs", "--dry-run")
    assert pushed.code == 2
    assert f"cannot be pushed, because it needs the image encoder {name}, which is a file" in pushed.err
