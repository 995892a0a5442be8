"""Image encoders as ONNX graphs, of any layout and type."""

import json
import pickle

import numpy as np
import onnx
import onnxruntime
import pytest
from encoder_graphs import BYTES, HALF, PATCH, PREPROCESSOR, SIDE, WEIGHT, WIDTH, write_graph
from onnx import TensorProto, helper
from PIL import Image
from support import hide_packages

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.errors import UserError
from grr_coca.infer.encoder import open_encoder


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
def test_tokens_equal_those_of_the_graph(tmp_path, form):
    encoder = open_encoder(f"onnx:{write_graph(tmp_path, **form)}")
    found = encoder.encode(pictures())
    right = expected(pictures(), form.get("dtype") != BYTES)
    np.testing.assert_allclose(found.tokens, right, atol=1e-5 * np.abs(right).max())
    assert (encoder.info.num_tokens, encoder.info.embed_dim) == (16, WIDTH)
    assert found.mask.shape == (3, 16)
    assert found.mask.all()


@pytest.mark.parametrize("location", ["", "encoder.onnx.data"])
def test_features_of_a_classifier_are_an_inner_tensor(tmp_path, monkeypatch, location):
    path = write_graph(tmp_path, kind="classifier", location=location)
    text = r"its output has width 2 per image, too small for features; name an inner tensor: onnx:encoder.onnx#TENSOR"
    with pytest.raises(UserError, match=rf"{text}, such as mean \(5\)$"):
        open_encoder(f"onnx:{path}")
    with pytest.raises(UserError, match=r"encoder.onnx#other: the graph has no such tensor; name an inner tensor"):
        open_encoder(f"onnx:{path}#other")
    encoder = open_encoder(f"onnx:{path}#features")
    np.testing.assert_allclose(encoder.encode(pictures()).tokens, expected(pictures()), atol=1e-5)
    assert encoder.info.name == f"onnx:{path}#features"
    assert encoder.info.digest != open_encoder(f"onnx:{path}#mean").info.digest
    encoder.write_graph(tmp_path / "written.onnx")
    written = onnx.load(tmp_path / "written.onnx")
    assert not {"probabilities", "labels"} & {
        *(name for node in written.graph.node for name in node.output),
        *(constant.name for constant in written.graph.initializer),
    }
    hide_packages(monkeypatch, "onnx_ir")
    with pytest.raises(UserError, match=rf"{text}; with the extra 'export', the likely ones are listed"):
        open_encoder(f"onnx:{path}")


FORMS = [
    {},
    {"channels_last": True},
    {"dtype": BYTES},
    {"dtype": BYTES, "channels_last": True},
    {"dtype": HALF},
    {"batch": 1},
    {"kind": "tokens", "prefix": 5},
    {"kind": "mean"},
    {"location": "encoder.onnx.data"},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_written_graph_takes_pixels_and_returns_tokens(tmp_path, form):
    encoder = open_encoder(f"onnx:{write_graph(tmp_path, **form)}")
    encoder.write_graph(tmp_path / "written.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "written.onnx", providers=["CPUExecutionProvider"])
    [given], [tokens] = session.get_inputs(), session.get_outputs()
    assert (given.type, given.shape[1:], tokens.type) == ("tensor(uint8)", [SIDE, SIDE, 3], "tensor(float)")
    one = pictures()[:1]
    [found] = session.run(None, {given.name: one})
    right = encoder.encode(one).tokens
    np.testing.assert_allclose(found, right, atol=(2e-2 if form.get("dtype") == HALF else 1e-5) * np.abs(right).max())
    (tmp_path / "written.json").write_text(json.dumps(to_dict(encoder.info)))
    again = open_encoder(f"onnx:{tmp_path / 'written.onnx'}")
    again.write_graph(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "written.onnx").read_bytes()


def test_graph_is_copied_without_the_extra(tmp_path, monkeypatch):
    path = write_graph(tmp_path)
    hide_packages(monkeypatch, "onnx_ir")
    open_encoder(f"onnx:{path}").write_graph(tmp_path / "written.onnx")
    assert (tmp_path / "written.onnx").read_bytes() == path.read_bytes()
    write_graph(tmp_path, location="encoder.onnx.data")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"the weights are in a separate file; .* install the extra 'export'"):
        open_encoder(f"onnx:{path}").write_graph(tmp_path / "out" / "written.onnx")


def test_half_precision_error_is_within_input_rounding(tmp_path):
    found = open_encoder(f"onnx:{write_graph(tmp_path, dtype=HALF)}").encode(pictures()).tokens
    np.testing.assert_allclose(found, expected(pictures()), atol=5e-3)


def test_one_vector_per_image_is_one_token(tmp_path):
    encoder = open_encoder(f"onnx:{write_graph(tmp_path, kind='mean')}")
    found = encoder.encode(pictures()).tokens
    np.testing.assert_allclose(found[:, 0], expected(pictures()).mean(axis=1), atol=1e-5)
    assert encoder.info.num_tokens == 1


def test_description_next_to_the_graph_is_used(tmp_path):
    path = write_graph(tmp_path, licence="mit")
    info = open_encoder(f"onnx:{path}").info
    assert info.licence == "mit"
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "encoder.json").write_text(json.dumps({**to_dict(info), "name": "timm:something"}))
    again = open_encoder(f"onnx:{path}")
    assert again.info.name == "timm:something"
    assert again.info.digest == info.digest
    np.testing.assert_array_equal(again.encode(pictures()).tokens.shape, (3, 16, WIDTH))


@pytest.mark.parametrize("stem", ["encoder", "encoder[1]"])
def test_digest_depends_on_weights_in_another_file(tmp_path, stem):
    weights = tmp_path / f"{stem}.onnx.data"
    path = write_graph(tmp_path, location=weights.name).rename(tmp_path / f"{stem}.onnx")
    first = open_encoder(f"onnx:{path}").info.digest
    data = bytearray(weights.read_bytes())
    data[3] ^= 1
    weights.write_bytes(data)
    assert open_encoder(f"onnx:{path}").info.digest != first


def test_weights_outside_the_graph_folder_raise(tmp_path):
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
        for tensor in ("", "#map"):
            with pytest.raises(UserError, match="cannot be opened"):
                open_encoder(f"onnx:{path}{tensor}")


def test_encoder_is_sent_to_another_process(tmp_path):
    encoder = open_encoder(f"onnx:{write_graph(tmp_path)}")
    found = pickle.loads(pickle.dumps(encoder)).encode(pictures()).tokens
    np.testing.assert_array_equal(found, encoder.encode(pictures()).tokens)


def test_preprocessing_squashes_as_its_file_states(tmp_path):
    preprocess = open_encoder(f"onnx:{write_graph(tmp_path)}").info.preprocess
    picture = Image.effect_noise((50, 90), 80).convert("RGB")
    np.testing.assert_array_equal(preprocess(picture), np.array(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))


def test_invalid_graphs_raise(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        open_encoder(f"onnx:{tmp_path / 'none.onnx'}")
    info = open_encoder(f"onnx:{write_graph(tmp_path)}").info
    (tmp_path / "encoder.json").write_text(json.dumps(to_dict(info)))
    path = write_graph(tmp_path, side=40)
    with pytest.raises(UserError, match=r"takes images of 40 pixels, .* yields 32; .* in encoder\.json"):
        open_encoder(f"onnx:{path}")
    (tmp_path / "encoder.json").unlink()
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config.json: no such file; .* see docs/encoders.md"):
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
