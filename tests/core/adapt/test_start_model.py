"""An adapted model of a fine-tuned run: the embedding of its start model is one more feature."""

import json
import shutil

import jaxtyping
import numpy as np
import pytest
from PIL import Image
from support import hide_packages, real_pairs, write_shard

from grr_coca import load
from grr_coca.cli import main
from grr_coca.common.errors import UserError
from grr_coca.common.files import read_manifest
from grr_coca.infer.adapted.adaptation import file_digest, read_features
from grr_coca.infer.adapted.beside import StartEncoder, open_start, read_encoder_info
from grr_coca.infer.adapted.descriptors import NUM_DESCRIPTORS, unit
from grr_coca.infer.load import locate_checkpoint
from grr_coca.model.checkpoint_files import fingerprint, start_of_run

pytestmark = pytest.mark.ci


PAIRS = real_pairs(60, "glyphs")


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """Some of the pairs of the run."""
    return write_shard(tmp_path_factory.mktemp("some") / "pairs.tar", PAIRS)


@pytest.fixture(scope="module")
def with_start(shard, run, tmp_path_factory):
    """The run, adapted to some of its pairs with the embedding of `icons`."""
    out = tmp_path_factory.mktemp("with-start") / "mine"
    assert main(["adapt", str(shard), "-c", str(run), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def images(place):
    return sorted((place / "unseen").iterdir())[:8]


def test_start_model_is_a_feature(run, with_start, images):
    model, start, tuned = load(with_start), load("icons"), load(run)
    stored = read_features(with_start)
    kept = [pair for pair in PAIRS if file_digest(pair.image) in stored]
    rows = np.array([stored[file_digest(pair.image)] for pair in kept])
    width = tuned.engine.embed_dim
    squares = np.stack([model.preprocess(model.preprocess.decode(pair.image, pair.name)) for pair in kept])
    found = start.engine.encode_images(squares).embedding
    np.testing.assert_allclose(rows[:, width + NUM_DESCRIPTORS :], unit(found - found.mean(axis=0)), atol=5e-3)
    np.testing.assert_allclose(rows[:, :width], tuned.engine.encode_images(squares).embedding, atol=5e-3)
    before = model.embed_images(images)
    model.engine.descriptor.mean = -model.engine.descriptor.mean
    assert np.abs(model.embed_images(images) - before).max() > 0.01


def test_folder_contains_the_start_model(with_start, images, tmp_path):
    shutil.copytree(with_start, tmp_path / "moved")
    expected = load(with_start)
    model = load(tmp_path / "moved")
    np.testing.assert_array_equal(model.embed_images(images), expected.embed_images(images))
    assert model.caption(images[:2]) == expected.caption(images[:2])
    assert {"start/model.safetensors", "start/manifest.json", "encoder.json"} <= read_manifest(with_start).keys()
    (tmp_path / "moved" / "start" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"start.model\.safetensors: corrupt"):
        load(tmp_path / "moved")


def test_fingerprint_covers_the_start_model(with_start, tmp_path):
    shutil.copytree(with_start, tmp_path / "other")
    (tmp_path / "other" / "manifest.json").unlink()
    assert fingerprint(tmp_path / "other") == fingerprint(with_start)
    info = json.loads((tmp_path / "other" / "encoder.json").read_text())
    assert info["weights"] == fingerprint(locate_checkpoint("icons")) == fingerprint(with_start / "start")
    (tmp_path / "other" / "encoder.json").write_text(json.dumps({**info, "weights": "0"}))
    assert fingerprint(tmp_path / "other") != fingerprint(with_start)


def test_start_of_another_image_size_gets_scaled_pixels(with_start, images):
    start = load("icons")
    encoder = StartEncoder(with_start / "start", read_encoder_info(with_start), load)
    pixels = [np.asarray(start.preprocess.square(Image.open(path).convert("RGB"))) for path in images]
    large = np.stack(
        [np.asarray(Image.fromarray(square).resize((128, 128), Image.Resampling.BICUBIC)) for square in pixels]
    )
    own, scaled = (encoder.encode(each).mean() for each in (np.stack(pixels), large))
    assert ((own * scaled).sum(axis=1) > 0.95).all()


def test_same_command_with_a_start_model_reads_only_new_images(grr_coca, shard, run, with_start, tmp_path):
    shutil.copytree(with_start, tmp_path / "mine")
    arguments = ["adapt", shard, "-c", run, "--out", tmp_path / "mine", "--json"]
    report = json.loads(grr_coca(*arguments).out)
    assert report["reused_images"] == report["images"]
    assert report["start_model"] == "icons"


def test_changed_start_model_is_excluded(run, tmp_path, caplog):
    folder = shutil.copytree(run, tmp_path / "run")
    origin = json.loads((run / "start.json").read_text())
    (folder / "start.json").write_text(json.dumps({**origin, "fingerprint": "0" * 32}))
    assert open_start(locate_checkpoint(folder), load) is None
    assert "the start model of this run is missing or has changed; its features are not used" in caplog.text


def test_bundled_start_that_moved_is_found(run, tmp_path):
    origin = json.loads((run / "start.json").read_text())
    (tmp_path / "start.json").write_text(json.dumps({**origin, "checkpoint": str(tmp_path / "gone" / "icons")}))
    assert start_of_run(tmp_path) == locate_checkpoint("icons")


def test_card_names_the_start_model(grr_coca, with_start):
    pytest.importorskip("huggingface_hub")
    result = grr_coca("push", with_start, "someone/mine", "--licence", "mit", "--dry-run")
    assert result.code == 0, result.err
    assert "the upload includes icons, from which this model was fine-tuned" in result.err
    assert "3 steps of training from `icons`" in result.out
    assert "The model contains `icons`, from which it was fine-tuned." in result.out
    assert {f"start/{name}" for name in ("model.safetensors", "image.onnx", "manifest.json")} <= set(result.out.split())


def test_graphs_of_both_models_need_no_pytorch(with_start, images, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    from grr_coca.infer.export.write import write_onnx

    with monkeypatch.context() as patched:
        patched.setattr(jaxtyping.config, "jaxtyping_disable", True)  # checks would need sizes that are to vary
        write_onnx(with_start, tmp_path / "graphs")
    expected = load(with_start)
    hide_packages(monkeypatch, "torch")
    model = load(tmp_path / "graphs")
    assert model.engine.name == "onnx"
    np.testing.assert_allclose(model.embed_images(images), expected.embed_images(images), atol=1e-4)
    assert fingerprint(tmp_path / "graphs") == fingerprint(with_start)
