"""The graph of an encoder in the folder of a model: its precision is the smallest that keeps its tokens."""

import json

import numpy as np
import onnx
import pytest
from encoder_graphs import FLOAT, PREPROCESSOR, SIDE
from onnx import helper, numpy_helper
from support import hide_packages

from grr_coca.infer.encoder import ImageTokens, open_encoder
from grr_coca.infer.export.encoder_graph import lowest_cosine, write_encoder_graph

PATCH, WIDTH, HIDDEN = 8, 64, 2_400


def write_large_graph(folder, kind, outlier=1.0, opset=20):
    """A graph of more than a megabyte: of products after a convolution, or of a convolution to many channels.

    `outlier`: factor of a channel that the products ignore, but whose numbers share a scale with the others in int8.
    `opset`: version of the operators.
    """
    random = np.random.default_rng(0)

    def normal(*shape):
        return (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:] or shape))).astype(np.float32)

    channels = WIDTH if kind == "products" else HIDDEN
    convolution = normal(channels, 3, PATCH, PATCH)
    convolution[0] *= outlier
    constants = {"conv": convolution, "flat": np.array([0, channels, -1])}
    nodes = [
        helper.make_node("Conv", ["images", "conv"], ["map"], strides=[PATCH, PATCH]),
        helper.make_node("Reshape", ["map", "flat"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["tokens"], perm=[0, 2, 1]),
    ]
    if kind == "products":
        first = normal(WIDTH, HIDDEN) * 8
        first[0] = 0
        constants |= {"first": first, "second": normal(HIDDEN, WIDTH) * 8}
        nodes += [
            helper.make_node("MatMul", ["tokens", "first"], ["hidden"]),
            helper.make_node("Tanh", ["hidden"], ["active"]),
            helper.make_node("MatMul", ["active", "second"], ["out"]),
        ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("images", FLOAT, ["B", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, ["B", "N", "D"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = folder / "encoder.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return open_encoder(f"onnx:{path}")


def weights_of(path):
    """The tensors of a graph, as bytes."""
    return {numpy_helper.to_array(tensor).tobytes() for tensor in onnx.load(path).graph.initializer}


@pytest.fixture
def pictures():
    """Blocks of colours: noise has the same mean everywhere."""
    colours = np.random.default_rng(1).integers(0, 256, (8, 4, 4, 3), np.uint8)
    return colours.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)


@pytest.mark.parametrize("opset", [14, 20])
@pytest.mark.parametrize(("kind", "precision", "share"), [("products", "int8", 0.3), ("convolution", "fp16", 0.52)])
def test_precision_follows_the_kind_of_network(tmp_path, pictures, kind, precision, share, opset):
    encoder = write_large_graph(tmp_path, kind, opset=opset)
    (tmp_path / "out").mkdir()
    written = write_encoder_graph(encoder, tmp_path / "out" / "encoder.onnx", pictures)
    assert (written.precision, written.reason) == (precision, "")
    size = (tmp_path / "out" / "encoder.onnx").stat().st_size
    assert size < share * (tmp_path / "encoder.onnx").stat().st_size
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["encoder.onnx"]
    (tmp_path / "out" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    small = open_encoder(f"onnx:{tmp_path / 'out' / 'encoder.onnx'}")
    cosine = lowest_cosine(encoder.encode(pictures), small.encode(pictures))
    assert cosine == pytest.approx(written.cosine, abs=1e-6)
    assert 0.99 <= cosine < 1.0


def test_tokens_that_lose_accuracy_stay_in_fp32(tmp_path, pictures):
    encoder = write_large_graph(tmp_path, "products", outlier=1e4)
    (tmp_path / "out").mkdir()
    written = write_encoder_graph(encoder, tmp_path / "out" / "encoder.onnx", pictures)
    assert written.precision == "fp32"
    assert written.reason.startswith("in int8, the cosine with its tokens is ")
    assert weights_of(tmp_path / "out" / "encoder.onnx") >= weights_of(tmp_path / "encoder.onnx")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["encoder.onnx"]


def test_reasons_for_fp32(tmp_path, pictures, monkeypatch):
    encoder = write_large_graph(tmp_path, "products")
    out = tmp_path / "out.onnx"
    assert (
        write_encoder_graph(encoder, out, pictures[:1]).reason
        == "a smaller one needs two or more images to measure its accuracy"
    )
    hide_packages(monkeypatch, "onnx")
    assert "needs the extra 'export'" in write_encoder_graph(encoder, out, pictures).reason
    assert weights_of(out) >= weights_of(tmp_path / "encoder.onnx")


def test_cosine_detects_lost_image_differences():
    random = np.random.default_rng(0)
    tokens = 100 + random.standard_normal((4, 3, 5)).astype(np.float32)
    mixed = tokens[[1, 0, 2, 3]]
    mask = np.ones((4, 3), bool)
    assert lowest_cosine(ImageTokens(tokens, mask), ImageTokens(tokens, mask)) == pytest.approx(1)
    assert lowest_cosine(ImageTokens(tokens, mask), ImageTokens(mixed, mask)) < 0.8
