"""Write a checkpoint as a folder of ONNX graphs, for programs without PyTorch.

The folder of a model in fp32 or fp16 is a checkpoint too: graphs and PyTorch read the same `model.safetensors`.
"""

import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxscript import ir

from grr_coca.common.errors import UserError
from grr_coca.common.files import whole_folder
from grr_coca.infer.export.graphs import OPSET, quiet, trace
from grr_coca.infer.export.readme import readme
from grr_coca.infer.export.weights import refer_to, write_shared
from grr_coca.model.checkpoint import Checkpoint, from_pretrained, save_tensors
from grr_coca.model.checkpoint_files import FITTED_FILES, GRAPHS, QUANTIZED_WEIGHTS, WEIGHTS, GraphName, fingerprint

Precision = Literal["fp32", "fp16", "int8"]
"""Precision of the weights in the folder. Sums are always computed in fp32."""

_PRODUCTS = frozenset(("MatMul", "Gemm", "Conv", "Attention", "Softmax"))
_NORMS = frozenset(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "GroupNormalization"))
_SHAPED = frozenset(
    [
        "Reshape",
        "Transpose",
        "Cast",
        "Identity",
        "Slice",
        "Gather",
        "Unsqueeze",
        "Squeeze",
        "Split",
        "Expand",
        "Flatten",
    ]
)
"""Operators that only move numbers. Their inputs besides the first are sizes and indices."""
_LINEAR = _SHAPED | {"Concat", "Constant", "Add", "Sub", "Neg"}
"""Operators that keep tokens equal in magnitude. Any other operator between two products, such as an activation,
does not."""


def write_onnx(source: Path, out: Path, precision: Precision = "fp32") -> None:
    """Write the graphs of a checkpoint, its tokenizer, its preprocessing and a manifest, atomically.

    Args:
        source: Folder of the checkpoint.
        out: New folder.
        precision: `fp32` keeps the weights as the checkpoint stores them. `fp16` rounds them to half precision.
            `int8` quantizes the matrices by channel, and the inputs of each product when it is computed. Convolutions
            and the patch embedding stay in fp32.

    Raises:
        UserError: If the checkpoint is corrupt, or the disk is full or cannot be written to.
    """
    checkpoint = from_pretrained(source)
    facts: dict[str, object] = {}
    if precision == "fp16":
        checkpoint.model.half().float()
    try:
        with whole_folder(out, facts) as partial:
            for name in ("config.json", "tokenizer.json", "preprocess.json", *FITTED_FILES):
                if name not in FITTED_FILES or (source / name).exists():
                    shutil.copyfile(source / name, partial / name)
            match precision:
                case "fp32":
                    shutil.copyfile(source / WEIGHTS, partial / WEIGHTS)
                    write_graphs(checkpoint, partial)
                case "fp16":
                    halves = {name: tensor.half() for name, tensor in checkpoint.model.state_dict().items()}
                    save_tensors(halves, partial / WEIGHTS)
                    write_graphs(checkpoint, partial)
                case "int8":
                    _write_quantized(checkpoint, partial)
            facts |= manifest_facts(checkpoint, source if precision == "int8" else partial, precision)
            (partial / "README.md").write_bytes(readme(checkpoint, precision).encode())
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error


def write_graphs(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the graphs of a checkpoint into a folder whose `model.safetensors` holds its weights.

    The graphs read that file.

    Raises:
        OSError: If the disk is full or cannot be written to.
    """
    graphs = _traced(checkpoint)
    refer_to(graphs.values(), folder / WEIGHTS)
    _save(graphs, folder)


def _write_quantized(checkpoint: Checkpoint, folder: Path) -> None:
    graphs = {name: _quantized(name, graph, folder / "quantized") for name, graph in _traced(checkpoint).items()}
    write_shared(graphs.values(), folder / QUANTIZED_WEIGHTS)
    refer_to(graphs.values(), folder / QUANTIZED_WEIGHTS)
    _save(graphs, folder)


def _traced(checkpoint: Checkpoint) -> dict[GraphName, ir.Model]:
    return {name: trace(checkpoint.model, checkpoint.config, checkpoint.preprocess, name) for name in GRAPHS}


def _save(graphs: Mapping[GraphName, ir.Model], folder: Path) -> None:
    for name, graph in graphs.items():
        ir.save(graph, folder / f"{name}.onnx")


def _quantized(name: GraphName, model: ir.Model, scratch: Path) -> ir.Model:
    """Return a graph whose products with constant matrices are computed in int8."""
    products = [node for node in model.graph if node.op_type == "MatMul" and _is_constant(node.inputs[1])]
    # The patch embedding is cheap, and reads pixels: their magnitude is constant in an image of one colour and in all
    # of a photograph. Convolutions before it are not a `MatMul`, and stay in fp32, too.
    in_fp32 = products[:1] if name == "image" else []
    _scale_rows(model.graph, [node for node in products if node not in in_fp32 and follows_activation(node)])
    scratch.mkdir()
    ir.save(model, scratch / "fp32.onnx", external_data="fp32.data")
    with quiet():
        quantize_dynamic(
            scratch / "fp32.onnx",
            scratch / "int8.onnx",
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=[str(node.name) for node in in_fp32],
            per_channel=True,
            weight_type=QuantType.QInt8,
            # Else sums of two products overflow 16 bits on processors that have only AVX2, but not on newer ones.
            reduce_range=True,
            use_external_data_format=True,
        )
    quantized = ir.external_data.load_to_model(ir.load(scratch / "int8.onnx"))
    shutil.rmtree(scratch)
    return quantized


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def follows_activation(product: ir.Node) -> bool:
    """Return whether the input tokens of a product differ in magnitude.

    They do if anything that is neither linear nor a norm separates it from earlier products: any activation,
    or an activation times something, as in GEGLU.
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
        if node.op_type.startswith("Reduce"):  # a norm that is written in simpler operators
            return False
        is_scaling = node.op_type in ("Mul", "Div") and any(map(_is_constant, node.inputs))
        is_uneven = is_uneven or not (node.op_type in _LINEAR or is_scaling)
        values += node.inputs[:1] if node.op_type in _SHAPED else node.inputs
    return is_uneven


def _scale_rows(graph: ir.Graph, products: Sequence[ir.Node]) -> None:
    """Divide each token of a product's input by its largest magnitude, and multiply the token's result by it.

    All inputs of a quantized product share one scale. After a norm, all tokens have one magnitude. After GELU and
    other activations they differ, and a large token would leave few levels for the others, in its own image and in
    all of the batch.
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
        ir.convenience.replace_all_uses_with(result, restored.outputs[0])
        restored.replace_input_with(0, result)
        product.replace_input_with(0, scaled.outputs[0])
        graph.insert_before(product, [axis, smallest, magnitude, largest, size, scaled])
        graph.insert_after(product, [restored])


def manifest_facts(checkpoint: Checkpoint, source: Path, precision: Precision) -> Mapping[str, object]:
    """Return the manifest entries of a folder of graphs besides its files: all that a program needs without
    `config.json`. `source`: the folder of the weights that the graphs hold, or were quantized from."""
    config, tokenizer, model = checkpoint.config, checkpoint.tokenizer, checkpoint.model
    return {
        "precision": precision,
        "checkpoint": fingerprint(source),
        "opset": OPSET,
        "versions": {name: version(name) for name in ("grr-coca", "torch", "onnx", "onnxscript")},
        "model": {
            "preset": checkpoint.preset,
            "image_size": checkpoint.preprocess.image_size,
            "embed_dim": config.embed_dim,
            "context_length": config.text_decoder.context_length,
            "vocab_size": config.text_decoder.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "text_cleaning": tokenizer.cleaning,
            "contrastive": config.contrastive,
            "logit_scale": model.logit_scale.exp().item(),
            "logit_bias": None if model.logit_bias is None else model.logit_bias.item(),
            "caution": checkpoint.caution,
        },
    }
