"""Write the graph of a third-party image encoder, in the smallest precision that keeps its tokens accurate.

Transformers are written in int8, and convolutional networks in half precision, because depthwise convolutions lose
their accuracy in int8. Weights that are stored in half precision are converted to fp32 for computation.

Shapes: B images, S image size in pixels, N tokens, D width.
"""

import json
import re
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.errors import UserError, install_command
from grr_coca.common.shapes import Float, UInt8
from grr_coca.infer.encoder import GivenEncoder, ImageTokens, VisionEncoder, open_encoder

if TYPE_CHECKING:
    import onnx_ir as ir

MIN_COSINE = 0.99
NUM_COMPARED = 16
"""Number of images for which the tokens in both precisions are compared."""
_MIN_BYTES = 2**20
"""Minimum size of a graph whose precision is reduced. Smaller graphs stay in fp32."""
_MIN_TENSOR_BYTES = 1024
_MIN_OPSET = 18
"""Minimum version of the ONNX operator set that has the operators inserted by `quantize_products`."""


_COPIED = frozenset(
    ("unknown", "apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "unlicense", "isc")
)
"""Licences that permit copying an encoder's weights into a model folder. Weights with other licences are referenced by
name, and must be available where the model is used. Weights with an unknown licence are a user's own files."""


def write_encoder_files(
    encoder: VisionEncoder,
    description: Path,
    graph: Path,
    images: UInt8[np.ndarray, "B S S 3"],
    *,
    smallest: bool = True,
) -> str:
    """Write the description of an encoder into the folder of a model, and also its graph if possible.

    No graph is written if the encoder is known only by its features, if its licence does not allow copying, or if the
    encoder cannot be exported.

    Args:
        encoder: Encoder to write.
        description: File to create for the description.
        graph: File to create for the graph, in the same folder.
        images: Images from the preprocessing of the encoder, for comparing precisions.
        smallest: Whether to choose the smallest precision that is accurate enough. If False, the graph is in fp32.

    Returns:
        One line that describes the graph, or states why it was not written. Empty if the encoder is known only by its
        features.

    Raises:
        OSError: If the disk is full or cannot be written to.
    """
    info, line = encoder.info, ""
    needed = f"{info.name} is needed wherever the model is used"
    if isinstance(encoder, GivenEncoder):
        pass
    elif info.licence not in _COPIED:
        line = f"{needed}: its licence is {info.licence}"
    else:
        try:
            written = write_encoder_graph(encoder, graph, images if smallest else images[:0])
            line = f"{info.name}: a graph of {graph.stat().st_size / 1e6:.1f} MB in {written.precision}"
            if written.cosine is not None:
                line += f"; cosine with fp32 at least {written.cosine:.4f} over {len(images)} images"
            elif smallest:
                line += f" ({written.reason})"
            info = replace(info, name=name_without_folders(info.name), precision=written.precision)
        except UserError as error:
            graph.unlink(missing_ok=True)
            line = f"{needed}: {error}"
    description.write_bytes(json.dumps(to_dict(info), indent=1, ensure_ascii=False).encode())
    return line


def name_without_folders(name: str) -> str:
    """Return the name of an encoder with each path that exists here shortened to its last part."""
    parts = re.split("([:=@#])", name)
    return "".join(Path(part).name if len(part) > 1 and Path(part).exists() else part for part in parts)


class EncoderGraph(NamedTuple):
    """Written graph of an encoder.

    Attributes:
        precision: Weight precision.
        cosine: Minimum cosine between the graph's tokens and those computed in fp32. None if the graph is in fp32.
        reason: Reason why the graph is in fp32. Empty for other precisions.
    """

    precision: Literal["fp32", "fp16", "int8"]
    cosine: float | None
    reason: str


def write_encoder_graph(encoder: VisionEncoder, path: Path, images: UInt8[np.ndarray, "B S S 3"]) -> EncoderGraph:
    """Write an encoder as an ONNX graph, in reduced precision if its tokens stay close to those in fp32.

    The result states the precision and the reason for choosing it. Graphs of less than 1 MiB stay in fp32.

    Args:
        encoder: Encoder to export.
        path: File to create.
        images: Images from the preprocessing of the encoder, for comparing precisions. With fewer than two images, the
            graph is in fp32.

    Raises:
        UserError: If the graph cannot be written as one file, or a package is missing.
        OSError: If the disk is full or cannot be written to.
    """
    encoder.write_graph(path)
    if path.stat().st_size < _MIN_BYTES:
        return EncoderGraph("fp32", None, "it is small")
    if len(images) < 2:
        return EncoderGraph("fp32", None, "a smaller one needs two or more images to measure its accuracy")
    if find_spec("onnx") is None or find_spec("onnx_ir") is None:
        return EncoderGraph("fp32", None, f"a smaller one needs the extra 'export'; run: {install_command('export')}")
    with TemporaryDirectory(dir=path.parent) as name:
        folder = Path(name)
        precision = _write_small(path, folder)
        info = replace(encoder.info, name=f"onnx:{folder / 'small.onnx'}")
        (folder / "small.json").write_text(json.dumps(to_dict(info)), encoding="utf-8")
        small = open_encoder(info.name)
        cosine = lowest_cosine(encoder.encode(images), small.encode(images))
        if not cosine >= MIN_COSINE:
            reason = f"in {precision}, the cosine with its tokens is {cosine:.3f}, below {MIN_COSINE}"
            return EncoderGraph("fp32", None, reason)
        del small  # otherwise, Windows could not delete the file
        shutil.move(folder / "small.onnx", path)
    return EncoderGraph(precision, cosine, "")


def lowest_cosine(tokens: ImageTokens, others: ImageTokens) -> float:
    """Return the smallest cosine between two encodings of the same images.

    Two cosines are computed for each image: one for all of its tokens together, and one for its mean token minus the
    mean of `tokens` over all images, because this difference distinguishes the images.
    """
    means = tokens.mean()
    centre = means.mean(axis=0)
    compared = [
        _cosines(tokens.tokens.reshape(len(means), -1), others.tokens.reshape(len(means), -1)),
        _cosines(means - centre, others.mean() - centre),
    ]
    return float(np.concatenate(compared).min())


def _cosines(rows: Float[np.ndarray, "B K"], others: Float[np.ndarray, "B K"]) -> Float[np.ndarray, " B"]:
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
    return (rows * others).sum(axis=1) / np.maximum(lengths, 1e-12)


def _write_small(path: Path, folder: Path) -> Literal["fp16", "int8"]:
    """Write the graph at `path` in reduced precision as `small.onnx` in a folder, and return its precision."""
    import onnx_ir as ir  # lazy imports, here and below, because they need the extra `export`

    from grr_coca.infer.export.quantize import constant_products, quantize_products, suppress_messages

    model = ir.load(path)
    products = sum(_num_bytes(node.inputs[1]) for node in constant_products(model.graph))
    convolutions = sum(_num_bytes(node.inputs[1]) for node in model.graph if node.op_type == "Conv")
    if products > convolutions:
        if model.opset_imports.get("", _MIN_OPSET) < _MIN_OPSET:
            from onnxscript.version_converter import convert_version

            with suppress_messages():
                convert_version(model, _MIN_OPSET, fallback=True)
        quantize_products(model, (), folder / "quantized")
        model = ir.external_data.load_to_model(ir.load(folder / "quantized" / "int8.onnx"))
    else:
        _store_weights_in_half(model.graph)
    ir.save(model, folder / "small.onnx")
    return "int8" if products > convolutions else "fp16"


def _num_bytes(value: "ir.Value | None") -> int:
    return 0 if value is None or value.const_value is None else value.const_value.nbytes


def _store_weights_in_half(graph: "ir.Graph") -> None:
    """Store the weights of a graph in half precision, except small ones. The graph is changed in place.

    ONNX Runtime converts the weights to fp32 when it loads the graph.
    """
    import onnx_ir as ir

    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes < _MIN_TENSOR_BYTES:
            continue
        half = ir.tensor(tensor.numpy().astype(np.float16), name=f"{value.name}.half")
        stored = ir.Value(name=half.name, type=ir.TensorType(half.dtype), shape=half.shape, const_value=half)
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        graph.initializers.pop(value.name)
        graph.initializers[half.name] = stored
        graph.insert_before(graph[0], cast)
