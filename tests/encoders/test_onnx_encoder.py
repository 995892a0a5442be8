"""Image encoders as ONNX graphs, of any layout and type."""

import json
import pickle

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.errors import UserError
from grr_coca.infer.encoder import open_encoder

WIDTH, PATCH, SIDE = 5, 8, 32
WEIGHT = np.random.default_rng(0).standard_normal((WIDTH, 3, PATCH, PATCH)).astype(np.float32) / 10
PREPROCESSOR = {
    "do_center_crop": False,
    "size": {"height": SIDE, "width": SIDE},
    "resample": 3,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
}
FLOAT, HALF, BYTES = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8


def write_graph(
    folder, *, kind="map", dtype=FLOAT, channels_last=False, batch="B", prefix=0, location="", licence="", side=SIDE
):
    """A graph of one convolution, with its result as a map, as tokens behind a prefix, or as their mean."""
    shape = [batch, side, side, 3] if channels_last else [batch, 3, side, side]
    nodes, name = [], "images"
    if dtype != FLOAT:
        nodes.append(helper.make_node("Cast", [name], ["cast"], to=FLOAT))
        name = "cast"
    if channels_last:
        nodes.append(helper.make_node("Transpose", [name], ["first"], perm=[0, 3, 1, 2]))
        name = "first"
    nodes.append(helper.make_node("Conv", [name, "weight"], ["map"], strides=[PATCH, PATCH]))
    constants = [numpy_helper.from_array(WEIGHT, "weight")]
    grid = SIDE // PATCH
    outputs = {"map": [batch, WIDTH, grid, grid]}
    if kind == "mean":
        nodes.append(helper.make_node("GlobalAveragePool", ["map"], ["pooled"]))
        nodes.append(helper.make_node("Flatten", ["pooled"], ["vector"]))
        outputs = {"vector": [batch, WIDTH]}
    if kind == "tokens":
        constants.append(numpy_helper.from_array(np.array([0, WIDTH, -1]), "flat"))
        nodes.append(helper.make_node("Reshape", ["map", "flat"], ["rows"]))
        nodes.append(helper.make_node("Transpose", ["rows"], ["patches"], perm=[0, 2, 1]))
        constants.append(numpy_helper.from_array(np.array([0, prefix, 0, 0, 0, 0]), "pads"))
        nodes.append(helper.make_node("Pad", ["patches", "pads"], ["last_hidden_state"]))
        outputs = {"map": outputs["map"], "last_hidden_state": [batch, grid**2 + prefix, WIDTH]}
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("images", dtype, shape)],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if licence:
        helper.set_model_props(model, {"license": licence})
    path = folder / "encoder.onnx"
    if location:
        onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)
    else:
        onnx.save(model, path)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return path


def pictures():
    return np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)


def expected(pixels, normalized=True):
    values = pixels.astype(np.float32)
    if normalized:
        mean, std = (np.array(PREPROCESSOR[f"image_{key}"], np.float32) for key in ("mean", "std"))
        values = (values / 255 - mean) / std
    grid = SIDE // PATCH
    patches = values.reshape(len(pixels), grid, PATCH, grid, PATCH, 3).transpose(0, 1, 3, 5, 2, 4)
    return patches.reshape(len(pixels), grid**2, -1) @ WEIGHT.reshape(WIDTH, -1).T


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"channels_last": True},
        {"dtype": BYTES, "channels_last": True},
        {"dtype": BYTES},
        {"batch": 1},
        {"side": "S"},
        {"kind": "tokens"},
        {"kind": "tokens", "prefix": 1},
        {"kind": "tokens", "prefix": 5},
        {"location": "encoder.onnx.data"},
    ],
    ids=str,
)
def test_tokens_are_those_of_the_graph(tmp_path, form):
    encoder = open_encoder(f"onnx:{write_graph(tmp_path, **form)}")
    found = encoder.encode(pictures())
    right = expected(pictures(), form.get("dtype") != BYTES)
    np.testing.assert_allclose(found.tokens, right, atol=1e-5 * np.abs(right).max())
    assert (encoder.info.num_tokens, encoder.info.embed_dim) == (16, WIDTH)
    assert found.mask.shape == (3, 16)
    assert found.mask.all()


def test_half_precision_is_as_good_as_its_input(tmp_path):
    found = open_encoder(f"onnx:{write_graph(tmp_path, dtype=HALF)}").encode(pictures()).tokens
    np.testing.assert_allclose(found, expected(pictures()), atol=5e-3)


def test_one_vector_an_image_is_one_token(tmp_path):
    encoder = open_encoder(f"onnx:{write_graph(tmp_path, kind='mean')}")
    found = encoder.encode(pictures()).tokens
    np.testing.assert_allclose(found[:, 0], expected(pictures()).mean(axis=1), atol=1e-5)
    assert encoder.info.num_tokens == 1


def test_description_beside_the_graph_is_used(tmp_path):
    path = write_graph(tmp_path, licence="mit")
    info = open_encoder(f"onnx:{path}").info
    assert info.licence == "mit"
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "encoder.json").write_text(json.dumps({**to_dict(info), "name": "timm:something"}))
    again = open_encoder(f"onnx:{path}")
    assert again.info.name == "timm:something"
    assert again.info.digest == info.digest
    np.testing.assert_array_equal(again.encode(pictures()).tokens.shape, (3, 16, WIDTH))


def test_digest_depends_on_weights_in_another_file(tmp_path):
    path = write_graph(tmp_path, location="encoder.onnx.data")
    first = open_encoder(f"onnx:{path}").info.digest
    data = bytearray((tmp_path / "encoder.onnx.data").read_bytes())
    data[3] ^= 1
    (tmp_path / "encoder.onnx.data").write_bytes(data)
    assert open_encoder(f"onnx:{path}").info.digest != first


def test_weights_outside_of_the_folder_of_the_graph_raise(tmp_path):
    folder = tmp_path / "graph"
    folder.mkdir()
    path = write_graph(folder, location="encoder.onnx.data")
    model = onnx.load(path, load_external_data=False)
    for location in ("../secret.data", str(tmp_path / "secret.data")):
        (folder / "encoder.onnx.data").replace(tmp_path / "secret.data") if not location.startswith("/") else None
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        path.write_bytes(model.SerializeToString())
        with pytest.raises(UserError, match="cannot be opened"):
            open_encoder(f"onnx:{path}")


def test_encoder_goes_to_another_process(tmp_path):
    encoder = open_encoder(f"onnx:{write_graph(tmp_path)}")
    found = pickle.loads(pickle.dumps(encoder)).encode(pictures()).tokens
    np.testing.assert_array_equal(found, encoder.encode(pictures()).tokens)


def test_preprocessing_squashes_as_its_file_states(tmp_path):
    preprocess = open_encoder(f"onnx:{write_graph(tmp_path)}").info.preprocess
    picture = Image.effect_noise((50, 90), 80).convert("RGB")
    np.testing.assert_array_equal(preprocess(picture), np.array(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))


def test_wrong_graphs_raise(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        open_encoder(f"onnx:{tmp_path / 'none.onnx'}")
    info = open_encoder(f"onnx:{write_graph(tmp_path)}").info
    (tmp_path / "encoder.json").write_text(json.dumps(to_dict(info)))
    path = write_graph(tmp_path, side=40)
    with pytest.raises(UserError, match="takes images of 40 pixels, but its preprocessing makes 32"):
        open_encoder(f"onnx:{path}")
    (tmp_path / "encoder.json").unlink()
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config.json: the file is missing; .* see docs/encoders.md"):
        open_encoder(f"onnx:{path}")
    path.write_bytes(b"not a graph")
    with pytest.raises(UserError, match="cannot be opened") as raised:
        open_encoder(f"onnx:{path}")
    assert "\n" not in str(raised.value)
    empty = helper.make_graph(
        [helper.make_node("Identity", ["ids"], ["out"])],
        "text",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["B", "T"])],
        [helper.make_tensor_value_info("out", TensorProto.INT64, ["B", "T"])],
    )
    onnx.save(helper.make_model(empty, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(UserError, match="the first input must be images"):
        open_encoder(f"onnx:{path}")
