"""Store the weights of ONNX graphs in a safetensors file.

ONNX locates a tensor in the file by its offset, so several graphs and PyTorch can read the same file.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from onnxscript import ir
from torch import Tensor

from grr_coca.model.checkpoint import load_tensors, save_tensors

MIN_BYTES = 1024
"""Minimum size, in bytes, of a tensor in the file. Smaller tensors stay in the graph."""

_DTYPES = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "I64": ir.DataType.INT64,
    "I8": ir.DataType.INT8,
    "U8": ir.DataType.UINT8,
}


@dataclass(frozen=True, kw_only=True)
class _StoredTensor:
    """Location of a tensor in the file. `is_transposed` means that the graph needs the transpose."""

    name: str
    offset: int
    length: int
    dtype: ir.DataType
    shape: list[int]
    is_transposed: bool


def reference_weights(graphs: Iterable[ir.Model], path: Path) -> None:
    """Replace large tensors in graphs, in place, by references to equal tensors in a safetensors file.

    If the file has the tensor in half precision or transposed, the graph gets a `Cast` or a `Transpose`, which ONNX
    Runtime computes once, when it loads the graph. Tensors that are not in the file stay in the graph.
    """
    sources = _stored_tensors(path)
    for model in graphs:
        for value in list(model.graph.initializers.values()):
            tensor = value.const_value
            if tensor is not None and tensor.nbytes >= MIN_BYTES:
                source = sources.get(_content_digest(tensor.numpy()))
                if source is not None:
                    _replace(model.graph, value, source, path.name)


def write_shared(graphs: Iterable[ir.Model], path: Path) -> None:
    """Write the large tensors of graphs to a safetensors file. Tensors that graphs share are written once.

    Raises:
        OSError: If the disk is full or cannot be written to.
    """
    found: dict[bytes, Tensor] = {}
    for model in graphs:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes >= MIN_BYTES:
                array = tensor.numpy()
                found.setdefault(_content_digest(array), torch.from_numpy(np.array(array)))
    save_tensors({f"tensor.{number}": tensor for number, tensor in enumerate(found.values())}, path)


def _stored_tensors(path: Path) -> dict[bytes, _StoredTensor]:
    """Map the contents of tensors, in fp32, to their locations in a safetensors file.

    Each tensor is found by its content as stored, transposed, or reshaped to 3 × 3 kernels.
    """
    tensors = load_tensors(path)
    sources: dict[bytes, _StoredTensor] = {}
    for name, (start, entry) in _header(path).items():
        first, last = entry["data_offsets"]
        tensor = tensors[name].float() if tensors[name].is_floating_point() else tensors[name]
        forms = [(tensor, False)]
        if tensor.ndim == 2:
            forms.append((tensor.mT, True))
        if tensor.ndim == 2 and tensor.shape[1] % 9 == 0:  # the exporter reshapes small convolution kernels
            forms.append((tensor.unflatten(1, (-1, 3, 3)), False))
        for form, is_transposed in forms:
            source = _StoredTensor(
                name=name,
                offset=start + first,
                length=last - first,
                dtype=_DTYPES[entry["dtype"]],
                shape=entry["shape"] if is_transposed else list(form.shape),
                is_transposed=is_transposed,
            )
            sources.setdefault(_content_digest(form.numpy()), source)
    return sources


def _header(path: Path) -> Mapping[str, tuple[int, dict]]:
    """Return, for the name of each tensor, the offset at which the data of all tensors begins, and the tensor's header
    entry."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {name: (8 + size, entry) for name, entry in header.items() if name != "__metadata__"}


def _content_digest(array: np.ndarray) -> bytes:
    digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _replace(graph: ir.Graph, value: ir.Value, source: _StoredTensor, location: str) -> None:
    """Make the nodes that use an initializer read the equal tensor in the file `location` instead."""
    stored = graph.initializers.get(source.name)
    if stored is None:
        data = ir.ExternalTensor(
            location, source.offset, source.length, source.dtype, shape=ir.Shape(source.shape), name=source.name
        )
        stored = ir.Value(name=source.name, type=ir.TensorType(source.dtype), shape=data.shape, const_value=data)
    nodes, read = [], stored
    assert value.const_value is not None
    if source.dtype != value.const_value.dtype:
        nodes.append(ir.node("Cast", [read], {"to": value.const_value.dtype}))
        read = nodes[-1].outputs[0]
    if source.is_transposed:
        nodes.append(ir.node("Transpose", [read], {"perm": [1, 0]}))
        read = nodes[-1].outputs[0]
    ir.convenience.replace_all_uses_with(value, read)
    graph.initializers.pop(value.name)
    graph.initializers[source.name] = stored
    if nodes:
        graph.insert_before(graph[0], nodes)
