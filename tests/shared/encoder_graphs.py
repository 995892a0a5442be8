"""ONNX graphs of image encoders, of any layout and type."""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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
    """A graph of one convolution, with its result as a map, as tokens behind a prefix, as their mean, or behind a
    classifier."""
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
    if kind == "classifier":
        constants.append(numpy_helper.from_array(WEIGHT[:, :2, 0, 0].copy(), "labels"))
        nodes.append(helper.make_node("Add", ["map", "zero"], ["features"]))
        constants.append(numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
        nodes.append(helper.make_node("ReduceMean", ["features"], ["mean"], axes=[2, 3], keepdims=0))
        nodes.append(helper.make_node("MatMul", ["mean", "labels"], ["scores"]))
        nodes.append(helper.make_node("Softmax", ["scores"], ["probabilities"]))
        outputs = {"probabilities": [batch, 2]}
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
