"""Convert matrix products in ONNX graphs to int8."""

import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
from onnxruntime.quantization import QuantType, quantize_dynamic

_PRODUCTS = frozenset(("MatMul", "Gemm", "Conv", "Attention", "Softmax"))
_NORMS = frozenset(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "GroupNormalization"))
_SHAPED = frozenset({
    "Reshape", "Transpose", "Cast", "Identity", "Slice", "Gather", "Unsqueeze", "Squeeze", "Split", "Expand",
    "Flatten",
})  # fmt: skip
"""Operators that do not change numbers. All of their inputs except the first are sizes, indices or types."""
_LINEAR = _SHAPED | {"Concat", "Constant", "Add", "Sub", "Neg"}
"""Operators that preserve the equal magnitude of tokens. Other operators between two products, such as activations, do
not."""


@contextmanager
def suppress_messages() -> Iterator[None]:
    """Suppress warnings and log messages up to level WARNING within a `with` block, in all threads.

    Exporters print many of them about their own internals.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def quantize_products(model: ir.Model, in_fp32: Collection[ir.Node], folder: Path) -> None:
    """Write `int8.onnx`, a graph that computes products with constant matrices in int8.

    Args:
        model: The graph, which is changed in place.
        in_fp32: Products that stay in fp32.
        folder: Folder to create for the graph and for intermediate files.

    Raises:
        OSError: If the disk is full or cannot be written to.
    """
    selected = [node for node in constant_products(model.graph) if node not in in_fp32]
    _scale_rows(model.graph, [node for node in selected if follows_activation(node)])
    folder.mkdir()
    ir.save(model, folder / "fp32.onnx", external_data="fp32.data")
    with suppress_messages():
        quantize_dynamic(
            folder / "fp32.onnx",
            folder / "int8.onnx",
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=[str(node.name) for node in in_fp32],
            per_channel=True,
            weight_type=QuantType.QInt8,
            # Otherwise, sums of two products would overflow 16 bits on processors that have AVX2 but no newer
            # instructions.
            reduce_range=True,
            use_external_data_format=True,
        )


def constant_products(graph: ir.Graph) -> list[ir.Node]:
    """Return the products with constant matrices, in graph order."""
    return [node for node in graph if node.op_type == "MatMul" and _is_constant(node.inputs[1])]


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def follows_activation(product: ir.Node) -> bool:
    """Return whether the input tokens of a matrix product may differ much in magnitude.

    This is assumed if a nonlinear operation, such as an activation or GEGLU, is between the product and the nearest
    preceding norms and products.
    """
    is_uneven, values, seen = False, [product.inputs[0]], set()
    while values:
        value = values.pop()
        node = None if value is None or value.const_value is not None else value.producer()
        if node is None or id(node) in seen or node.op_type in _PRODUCTS:
            continue
        seen.add(id(node))
        if node.op_type in _NORMS:
            continue
        if node.op_type.startswith("Reduce"):  # a norm composed of simpler operators
            return False
        is_scaling = node.op_type in ("Mul", "Div") and any(map(_is_constant, node.inputs))
        is_uneven = is_uneven or not (node.op_type in _LINEAR or is_scaling)
        values += node.inputs[:1] if node.op_type in _SHAPED else node.inputs
    return is_uneven


def _scale_rows(graph: ir.Graph, products: Sequence[ir.Node]) -> None:
    """Divide each token of a product's input by its largest magnitude, and multiply the result by the same number.

    The graph is changed in place.

    All tokens of a quantized product's input share one scale. After a norm, all tokens have the same magnitude. After
    GELU and other activations, magnitudes differ, and a large token would leave few levels for all other tokens of
    the batch.
    """
    for product in products:
        given, result = product.inputs[0], product.outputs[0]
        assert given is not None
        axis = ir.node("Constant", [], {"value_ints": [-1]})
        smallest = ir.node("Constant", [], {"value_float": 1e-12})
        magnitude = ir.node("Abs", [given])
        largest = ir.node("ReduceMax", [magnitude.outputs[0], axis.outputs[0]], {"keepdims": 1})
        size = ir.node("Max", [largest.outputs[0], smallest.outputs[0]])
        scaled = ir.node("Div", [given, size.outputs[0]])
        restored = ir.node("Mul", [result, size.outputs[0]])
        is_output = result.is_graph_output()
        ir.convenience.replace_all_uses_with(result, restored.outputs[0], replace_graph_outputs=True)
        if is_output:
            restored.outputs[0].name, result.name = result.name, f"{result.name}.scaled"
        restored.replace_input_with(0, result)
        product.replace_input_with(0, scaled.outputs[0])
        graph.insert_before(product, [axis, smallest, magnitude, largest, size, scaled])
        graph.insert_after(product, [restored])
