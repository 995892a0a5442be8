"""Write a checkpoint as a folder of ONNX graphs, for programs without PyTorch.

In fp32 or fp16, the folder is also a checkpoint, because graphs and PyTorch read the same `model.safetensors`.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
from onnxscript import ir

from grr_coca.common.errors import UserError
from grr_coca.common.files import atomic_folder, read_json
from grr_coca.data.features import EncoderInfo
from grr_coca.infer.engine.frozen import open_frozen
from grr_coca.infer.export.encoder_graph import name_without_folders, write_encoder_files
from grr_coca.infer.export.graphs import OPSET, trace
from grr_coca.infer.export.quantize import constant_products, quantize_products
from grr_coca.infer.export.readme import render_readme
from grr_coca.infer.export.weights import reference_weights, write_shared
from grr_coca.model.checkpoint import Checkpoint, from_pretrained, save_tensors
from grr_coca.model.checkpoint_files import (
    ADAPTED_FILES,
    ENCODER_FILES,
    FITTED_FILES,
    FROZEN_FILES,
    GRAPHS,
    QUANTIZED_WEIGHTS,
    START_MODEL,
    WEIGHTS,
    GraphName,
    base_fingerprint,
    has_graphs,
    is_adapted,
)

Precision = Literal["fp32", "fp16", "int8"]
"""Precision of the weights in the folder. Sums are always computed in fp32."""


def write_onnx(source: Path, out: Path, precision: Precision = "fp32", images: Sequence[bytes] = ()) -> str:
    """Write a folder with the graphs of a checkpoint and all other files that their use needs, atomically.

    If the model takes features of a frozen encoder, the encoder is also written, provided that its licence allows
    copying. An adapted model remains adapted; the graphs of its base and of its start model, if any, are written.

    Args:
        source: Folder of the checkpoint.
        out: Folder to create.
        precision: `fp32` keeps the weights as the checkpoint stores them. `fp16` rounds them to half precision. `int8`
            quantizes the matrices by channel, and the inputs of each product when it is computed. Convolutions and the
            patch embedding stay in fp32. With `fp16` and `int8`, a frozen encoder is written in the smallest precision
            that is accurate enough.
        images: Image files for comparing precisions of the frozen encoder.

    Returns:
        One line that describes the frozen encoder. Empty if the model has no such encoder.

    Raises:
        UserError: If the checkpoint is missing or corrupt, the frozen encoder is missing or has changed, or the disk is
            full or cannot be written to.
    """
    checkpoint, line = from_pretrained(source), ""
    facts: dict[str, object] = {}
    if precision == "fp16":
        checkpoint.model.half().float()
    try:
        with atomic_folder(out, facts) as partial:
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
            if checkpoint.encoder is not None:
                line = _write_frozen(checkpoint.encoder, source, partial, images, smallest=precision != "fp32")
            if is_adapted(source):
                _write_adaptation(source, partial, precision)
            facts |= manifest_facts(checkpoint, source if precision == "int8" else partial, precision)
            page = render_readme(checkpoint, precision, is_adapted=is_adapted(source))
            (partial / "README.md").write_bytes(page.encode())
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error
    return line


def _write_adaptation(source: Path, folder: Path, precision: Precision) -> None:
    for name in (*ADAPTED_FILES, *ENCODER_FILES):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    start = source / START_MODEL
    if start.is_dir() and precision == "fp32" and has_graphs(start):
        shutil.copytree(start, folder / START_MODEL)
    elif start.is_dir():
        write_onnx(start, folder / START_MODEL, precision)


def _write_frozen(info: EncoderInfo, source: Path, folder: Path, images: Sequence[bytes], *, smallest: bool) -> str:
    """Write the frozen encoder next to the graphs, and return one line that describes it.

    If a graph of the encoder is written, local folders are removed from the encoder's name in `config.json`.
    """
    encoder, preprocess = open_frozen(info, source), info.preprocess
    squares = [np.array(preprocess.decode_square(content, "an image")) for content in images]
    side = preprocess.image_size
    stacked = np.stack(squares) if squares else np.zeros((0, side, side, 3), np.uint8)
    description, graph = (folder / name for name in FROZEN_FILES)
    line = write_encoder_files(encoder, description, graph, stacked, smallest=smallest)
    if graph.exists():
        config = read_json(folder / "config.json")
        config["encoder"]["name"] = name_without_folders(info.name)
        (folder / "config.json").write_bytes(json.dumps(config, indent=2).encode())
    return line


def write_graphs(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the graphs of a checkpoint into a folder that has its weights as `model.safetensors`.

    The graphs read that file.

    Raises:
        OSError: If the disk is full or cannot be written to.
    """
    graphs = _trace_graphs(checkpoint)
    reference_weights(graphs.values(), folder / WEIGHTS)
    _save(graphs, folder)


def _write_quantized(checkpoint: Checkpoint, folder: Path) -> None:
    graphs = {name: _quantize(name, graph, folder / "quantized") for name, graph in _trace_graphs(checkpoint).items()}
    write_shared(graphs.values(), folder / QUANTIZED_WEIGHTS)
    reference_weights(graphs.values(), folder / QUANTIZED_WEIGHTS)
    _save(graphs, folder)


def _trace_graphs(checkpoint: Checkpoint) -> dict[GraphName, ir.Model]:
    return {name: trace(checkpoint.model, checkpoint.config, checkpoint.preprocess, name) for name in GRAPHS}


def _save(graphs: Mapping[GraphName, ir.Model], folder: Path) -> None:
    for name, graph in graphs.items():
        ir.save(graph, folder / f"{name}.onnx")


def _quantize(name: GraphName, model: ir.Model, scratch: Path) -> ir.Model:
    """Return a graph whose products with constant matrices are computed in int8.

    `scratch` is a folder that is created and deleted here. The given graph is changed.
    """
    products = constant_products(model.graph)
    # The patch embedding stays in fp32: it is cheap, and it reads pixels, whose magnitude is constant in an image with
    # a single colour, and also throughout a photograph. Convolutions before it are not a `MatMul`, and thus also stay
    # in fp32.
    in_fp32 = products[:1] if name == "image" else []
    quantize_products(model, in_fp32, scratch)
    quantized = ir.external_data.load_to_model(ir.load(scratch / "int8.onnx"))
    shutil.rmtree(scratch)
    return quantized


def manifest_facts(checkpoint: Checkpoint, source: Path, precision: Precision) -> Mapping[str, object]:
    """Return the manifest entries of a graph folder, except the list of its files.

    The entries contain everything that a program needs if it does not read `config.json`. `source` is the folder of
    the weights that the graphs contain, or from which the graphs were quantized.
    """
    config, tokenizer, model = checkpoint.config, checkpoint.tokenizer, checkpoint.model
    return {
        "precision": precision,
        "checkpoint": base_fingerprint(source),
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
