"""A model that takes features of a frozen encoder, exported: one folder that needs neither timm nor PyTorch."""

import json
import shutil

import jaxtyping
import numpy as np
import pytest
from encoder_graphs import PREPROCESSOR, write_graph
from feature_models import write_featured_model
from support import hide_packages, real_pairs
from test_encoder_graph import write_large_graph

import grr_coca
from grr_coca.cli import main
from grr_coca.common.errors import UserError
from grr_coca.infer.encoder import open_encoder
from grr_coca.infer.export.write import write_onnx
from grr_coca.model.checkpoint_files import FROZEN_FILES

pytestmark = pytest.mark.ci
PICTURES = [pair.image for pair in real_pairs(4, "glyphs")]


@pytest.fixture(scope="module", autouse=True)
def _unchecked():
    """Exports would ask for the sizes that are to vary."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module", params=[False, True], ids=["in place", "beside"])
def named(request, tmp_path_factory):
    """A checkpoint whose encoder is a file elsewhere, and its export."""
    folder = tmp_path_factory.mktemp("named")
    (folder / "elsewhere").mkdir()
    encoder = open_encoder(f"onnx:{write_graph(folder / 'elsewhere', kind='tokens')}")
    write_featured_model(folder / "model", encoder, beside=request.param)
    assert main(["export", "onnx", "-c", str(folder / "model"), "--out", str(folder / "out")]) == 0
    return folder


def test_exported_folder_needs_no_other_file(named, tmp_path, monkeypatch):
    expected = grr_coca_load(named / "model", "torch").embed_images(images(tmp_path))
    shutil.copytree(named / "out", tmp_path / "out")
    hidden = (named / "elsewhere").rename(named / "hidden")
    hide_packages(monkeypatch, "torch", "timm", "onnx")
    model = grr_coca_load(tmp_path / "out")
    assert model.engine.name == "onnx"
    np.testing.assert_allclose(model.embed_images(images(tmp_path)), expected, atol=2e-4)
    hidden.rename(named / "elsewhere")
    assert all(isinstance(caption, str) for caption in model.caption(images(tmp_path)))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["encoder"]["name"] == "onnx:encoder.onnx"
    assert str(named) not in (tmp_path / "out" / "frozen.json").read_text()


def grr_coca_load(folder, engine="auto"):
    return grr_coca.load(folder, engine=engine)


def images(folder):
    paths = [folder / f"{number}.webp" for number in range(len(PICTURES))]
    for path, content in zip(paths, PICTURES, strict=True):
        path.write_bytes(content)
    return paths


def test_precision_of_the_encoder_follows_its_tokens(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    write_featured_model(tmp_path / "model", write_large_graph(tmp_path / "elsewhere", "convolution"))
    line = write_onnx(tmp_path / "model", tmp_path / "out", "int8", PICTURES)
    assert line.endswith("in fp16; cosine with fp32 at least 1.0000 over 4 images"), line
    assert json.loads((tmp_path / "out" / "frozen.json").read_text())["precision"] == "fp16"
    found = grr_coca_load(tmp_path / "out").embed_images(images(tmp_path))
    expected = grr_coca_load(tmp_path / "model", "torch").embed_images(images(tmp_path))
    assert (found * expected).sum(axis=1).min() > 0.97


def test_weights_under_another_licence_are_referenced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path = write_graph(tmp_path / "elsewhere", kind="tokens", licence="cc-by-nc-4.0")
    write_featured_model(tmp_path / "model", open_encoder(f"onnx:{path}"))
    line = write_onnx(tmp_path / "model", tmp_path / "out")
    assert line.endswith("is needed wherever the model is used: its licence is cc-by-nc-4.0")
    assert [(tmp_path / "out" / name).exists() for name in FROZEN_FILES] == [True, False]
    assert grr_coca_load(tmp_path / "out").embed_images(images(tmp_path)).shape[0] == len(PICTURES)
    path.unlink()
    with pytest.raises(
        UserError, match=r"an image, but this model takes features of onnx:.*, which cannot be opened here"
    ):
        grr_coca_load(tmp_path / "out").embed_images(images(tmp_path))


def test_graph_of_another_encoder_raises(named, tmp_path):
    shutil.copytree(named / "out", tmp_path / "out")
    info = json.loads((tmp_path / "out" / "frozen.json").read_text())
    (tmp_path / "out" / "frozen.json").write_text(json.dumps({**info, "weights": "0" * 64}))
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(UserError, match="not the encoder that config"):
        grr_coca_load(tmp_path / "out", "torch")


def test_push_names_the_encoder(named, grr_coca):
    pytest.importorskip("huggingface_hub")
    arguments = ("me/mine", "--licence", "mit", "--data", "glyphs", "--dry-run")
    refused = grr_coca("push", named / "model", *arguments)
    assert refused.code == 2
    assert "which is a file on this machine; use a public encoder" in refused.err
    pushed = grr_coca("push", named / "out", *arguments)
    assert pushed.code == 0, pushed.err
    card = " ".join(pushed.out.split())
    assert "The model contains the image encoder `onnx:encoder.onnx`, trained by others. The SHA-256" in card
    assert all(name in pushed.out for name in FROZEN_FILES)
    assert str(named) not in pushed.out
    assert "the upload includes the image encoder onnx:encoder.onnx (licence of its weights: unknown)" in pushed.err


def test_index_rejects_a_model_of_another_encoder(named, grr_coca, refused, tmp_path):
    files = [str(path) for path in images(tmp_path)]
    assert grr_coca("index", *files, "--out", tmp_path / "index", "-c", named / "out").code == 0
    (tmp_path / "other").mkdir()
    path = write_graph(tmp_path / "other", kind="tokens")
    changed = PREPROCESSOR | {"image_mean": [0.1, 0.2, 0.3]}
    (tmp_path / "other" / "preprocessor_config.json").write_text(json.dumps(changed))
    write_featured_model(tmp_path / "model", open_encoder(f"onnx:{path}"))
    assert "whose embeddings are not comparable" in refused(
        "index", *files, "--out", tmp_path / "index", "-c", tmp_path / "model"
    )
