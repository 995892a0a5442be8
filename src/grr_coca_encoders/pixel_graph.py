"""Convert an ONNX graph of any form to a self-contained graph that computes tokens from uint8 pixels.

Shapes: B images, S image size in pixels, N tokens, D width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from grr_coca.data.preprocess import Preprocess

if TYPE_CHECKING:
    import onnx_ir as ir

_MAX_BYTES = 2**31 - 2**20
"""Maximum size of one file, because protocol buffers have signed 32-bit sizes."""


@dataclass(frozen=True, kw_only=True)
class GraphForm:
    """Form in which a graph takes images and returns features.

    Attributes:
        images: Name of the graph's input, which takes images of the shape B 3 S S or B S S 3, as uint8 pixels or
            normalized values.
        features: Name of the tensor that contains tokens, a feature map, or one vector per image.
        dtype: Type of the input.
        is_channels_last: Whether the channels of the input come last.
        is_map_channels_last: Whether the channels of a map come last.
        rank: Number of axes of the output.
        num_prefix: Number of tokens before the patch tokens.
        num_tokens: Number of patch tokens, N, without the `num_prefix` tokens before them. It is 1 if the graph returns
            one vector per image.
        embed_dim: Width of the tokens, D.
    """

    images: str
    features: str
    dtype: type[np.generic]
    is_channels_last: bool
    is_map_channels_last: bool
    rank: int
    num_prefix: int
    num_tokens: int
    embed_dim: int


def write_pixel_graph(graph: Path, form: GraphForm, preprocess: Preprocess, out: Path) -> None:
    """Write a graph with normalization added at its start, and the patch tokens as its only output.

    Args:
        graph: The graph.
        form: Form of the graph.
        preprocess: Preprocessing, whose mean and standard deviation of pixels are used.
        out: File to create.

    Raises:
        ValueError: If the weights do not fit into one file.
        OSError: If a file cannot be read or written.
    """
    import onnx_ir as ir  # lazy import: part of the extra `export`
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    model = ir.external_data.load_to_model(ir.load(graph))
    if sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value) > _MAX_BYTES:
        raise ValueError("its weights do not fit into one file of 2 GB")
    _take_pixels(model.graph, form, preprocess)
    _return_tokens(model.graph, form)
    RemoveUnusedNodesPass()(model)
    ir.save(model, out)


def _take_pixels(graph: "ir.Graph", form: GraphForm, preprocess: Preprocess) -> None:
    import onnx_ir as ir

    images = next(value for value in graph.inputs if value.name == form.images)
    batch, side = images.shape[0] if images.shape else None, preprocess.image_size
    pixels = ir.Value(
        name="grr_coca.pixels", type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape([batch, side, side, 3])
    )
    chain = _Chain(pixels)
    if form.dtype != np.uint8:
        chain.add("Cast", to=ir.DataType.FLOAT)
        mean, std = (np.array(values, np.float32) for values in (preprocess.mean, preprocess.std))
        for operator, value in (("Div", np.array(255, np.float32)), ("Sub", mean), ("Div", std)):
            chain.add(operator, value)
        if form.dtype == np.float16:
            chain.add("Cast", to=ir.DataType.FLOAT16)
    if not form.is_channels_last:
        chain.add("Transpose", perm=[0, 3, 1, 2])
    graph.inputs[graph.inputs.index(images)] = pixels
    if chain.nodes:
        first = graph[0]
        ir.convenience.replace_all_uses_with(images, chain.value)
        graph.insert_before(first, chain.nodes)
        graph.initializers.update(chain.constants)
    else:
        ir.convenience.replace_all_uses_with(images, pixels)


def _return_tokens(graph: "ir.Graph", form: GraphForm) -> None:
    import onnx_ir as ir

    features = next(value for node in graph for value in node.outputs if value.name == form.features)
    chain = _Chain(features)
    if form.rank == 4 and not form.is_map_channels_last:
        chain.add("Transpose", perm=[0, 2, 3, 1])
    if form.rank != 3:
        chain.add("Reshape", np.array([0, -1, form.embed_dim] if form.rank == 4 else [-1, 1, form.embed_dim]))
    if form.num_prefix:
        chain.add("Gather", np.arange(form.num_prefix, form.num_prefix + form.num_tokens), axis=1)
    chain.add("Cast", to=ir.DataType.FLOAT)
    graph.extend(chain.nodes)
    graph.initializers.update(chain.constants)
    tokens = chain.value
    tokens.name, tokens.type = "grr_coca.tokens", ir.TensorType(ir.DataType.FLOAT)
    tokens.shape = ir.Shape([features.shape[0] if features.shape else None, form.num_tokens, form.embed_dim])
    graph.outputs.clear()
    graph.outputs.append(tokens)


class _Chain:
    """Chain of nodes. `value` is the output of the last node."""

    def __init__(self, value: "ir.Value") -> None:
        self.value, self.start = value, str(value.name)
        self.nodes: list[ir.Node] = []
        self.constants: dict[str, ir.Value] = {}

    def add(self, operator: str, constant: np.ndarray | None = None, **attributes: object) -> None:
        """Add a node that takes the last value and, if given, a constant."""
        import onnx_ir as ir

        inputs, name = [self.value], f"{self.start}.{len(self.nodes)}"
        if constant is not None:
            tensor = ir.tensor(constant, name=f"{name}.constant")
            held = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
            self.constants[str(held.name)] = held
            inputs.append(held)
        node = ir.node(operator, inputs, attributes)
        node.outputs[0].name = name
        self.nodes.append(node)
        self.value = node.outputs[0]
