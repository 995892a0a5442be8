"""Write a checkpoint as a folder of ONNX graphs, for programs without PyTorch.

The folder of a model in fp32 or fp16 is a checkpoint too: graphs and PyTorch read the same `model.safetensors`.
"""

import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxscript import ir

from grr_coca.checkpoint import Checkpoint, from_pretrained, save_tensors
from grr_coca.checkpoint_files import fingerprint
from grr_coca.errors import UserError
from grr_coca.files import whole_folder
from grr_coca.interop.onnx.graphs import GRAPHS, OPSET, GraphName, quiet, trace
from grr_coca.interop.onnx.readme import readme
from grr_coca.interop.onnx.weights import refer_to, write_shared

Precision = Literal["fp32", "fp16", "int8"]
"""Of the weights in the folder. Sums are always computed in fp32."""

WEIGHTS = "model.safetensors"
QUANTIZED = "weights.safetensors"
"""Weights of int8 graphs. They have another name, because the folder is no checkpoint."""


def write_onnx(source: Path, out: Path, precision: Precision = "fp32") -> None:
    """Write the graphs of a checkpoint, its tokenizer, its preprocessing and a manifest, completely or not at all.

    Args:
        source: folder of the checkpoint.
        out: new folder.
        precision: `fp32` keeps the weights as the checkpoint stores them. `fp16` rounds them to half precision.
            `int8` quantizes the matrices by channel, and the inputs of each product when it is computed.

    Raises:
        UserError: the checkpoint is damaged, or the disk is full or cannot be written to.
    """
    checkpoint = from_pretrained(source)
    facts: dict[str, object] = {}
    if precision == "fp16":
        checkpoint.model.half().float()
    try:
        with whole_folder(out, facts) as partial:
            for name in ("config.json", "tokenizer.json", "preprocess.json"):
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
            weights = QUANTIZED if precision == "int8" else WEIGHTS
            (partial / "README.md").write_text(readme(checkpoint, precision, weights), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: could not be written ({error.strerror or error})") from error


def write_graphs(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the graphs of a checkpoint into a folder whose `model.safetensors` holds its weights. They read that file.

    Raises:
        OSError: the disk is full or cannot be written to.
    """
    graphs = _traced(checkpoint)
    refer_to(graphs.values(), folder / WEIGHTS)
    _save(graphs, folder)


def _write_quantized(checkpoint: Checkpoint, folder: Path) -> None:
    graphs = {name: _quantized(graph, folder / "quantized") for name, graph in _traced(checkpoint).items()}
    write_shared(graphs.values(), folder / QUANTIZED)
    refer_to(graphs.values(), folder / QUANTIZED)
    _save(graphs, folder)


def _traced(checkpoint: Checkpoint) -> dict[GraphName, ir.Model]:
    return {name: trace(checkpoint.model, checkpoint.config, checkpoint.preprocess, name) for name in GRAPHS}


def _save(graphs: Mapping[GraphName, ir.Model], folder: Path) -> None:
    for name, graph in graphs.items():
        ir.save(graph, folder / f"{name}.onnx")


def _quantized(model: ir.Model, scratch: Path) -> ir.Model:
    """A graph whose products with constant matrices are computed in int8."""
    scratch.mkdir()
    ir.save(model, scratch / "fp32.onnx", external_data="fp32.data")
    # Without `reduce_range`, sums of two products overflow 16 bits on processors with AVX2 alone, unseen on newer ones.
    with quiet():
        quantize_dynamic(
            scratch / "fp32.onnx",
            scratch / "int8.onnx",
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            use_external_data_format=True,
        )
    quantized = ir.external_data.load_to_model(ir.load(scratch / "int8.onnx"))
    shutil.rmtree(scratch)
    return quantized


def manifest_facts(checkpoint: Checkpoint, source: Path, precision: Precision) -> Mapping[str, object]:
    """What the manifest of a folder of graphs says beside the files: all that a program needs to know without
    `config.json`. `source`: the folder of the weights that the graphs hold, or were quantized from."""
    config, tokenizer, model = checkpoint.config, checkpoint.tokenizer, checkpoint.model
    return {
        "precision": precision,
        "checkpoint": fingerprint(source),
        "opset": OPSET,
        "versions": {name: version(name) for name in ("grr-coca", "torch", "onnx", "onnxscript")},
        "model": {
            "preset": checkpoint.preset,
            "image_size": config.image_encoder.image_size,
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
