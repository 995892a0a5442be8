"""Three graphs of a model: for images, for texts, and for one decoding step. All are traced from the model itself.

| graph | inputs | outputs |
|---|---|---|
| image | `pixels` B S S 3, uint8 | `image_embedding` B E; `cross_key.i` and `cross_value.i` B H Q Dh |
| text | `token_ids` B T, `lengths` B | `text_embedding` B E |
| step | `token_ids` R T, `cross_key.i`, `cross_value.i`, `past_key.j` and `past_value.j` R H P Dh | `logits` R T V, \
`present_key.j` and `present_value.j` R H P+T Dh |

If a model takes features of a frozen encoder, instead of `pixels` or in addition to them, the image graph has the input
`features` B N X and, if N differs between images, the input `feature_mask` B N. If captions attend to tokens whose
number differs, `image_mask` B Q is an output of the image graph and an input of the step graph.

i counts the multimodal layers; j counts the text layers, followed by the multimodal layers. R is any multiple of B; the
captions of an image are adjacent rows, which share the keys and values of the image. With P = 0, a step reads the
prompt.

Shapes: B images, S image size in pixels, E joint embedding width, R captions (rows), T new tokens, P earlier tokens, H
heads of width Dh, Q image tokens, V size of the vocabulary, N features of width X.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, DeduplicateInitializersPass, RemoveUnusedNodesPass
from onnxscript import ir
from torch import Tensor, nn
from torch.export import Dim

from grr_coca.data.batch import FeatureTokens, normalize
from grr_coca.data.preprocess import Preprocess
from grr_coca.infer.export.layers import GrowingCache, make_exportable, pad_lengths
from grr_coca.infer.export.quantize import suppress_messages
from grr_coca.model.attention import CachedLayout, CrossAttention, KeyValues
from grr_coca.model.checkpoint_files import GraphName
from grr_coca.model.coca import CoCa
from grr_coca.model.config import CoCaConfig

OPSET = 23
"""Version of the ONNX operator set: the first with operators for attention, rotary positions and RMSNorm."""


class _ImageGraph(nn.Module):
    """Image graph. Its results are the image embedding, and the keys and values that every caption of the image
    reads."""

    def __init__(self, model: CoCa, preprocess: Preprocess) -> None:
        super().__init__()
        self.model = model
        self.preprocess = preprocess

    def forward(
        self,
        pixels: UInt8[Tensor, "B S S 3"] | None,
        features: Float[Tensor, "B N X"] | None,
        mask: Bool[Tensor, "B N"] | None,
    ) -> tuple[Tensor, ...]:
        decoder = self.model.multimodal_decoder
        images = None if pixels is None else normalize(pixels.permute(0, 3, 1, 2).float() / 255, self.preprocess)
        image = self.model.encode_image(images, features=None if features is None else FeatureTokens(features, mask))
        context = decoder.context(image.tokens)
        projected = [cast(CrossAttention, block.cross_attn).project(context) for block in decoder.blocks]
        cross = [t.transpose(1, 2) for key_values in projected for t in key_values]
        return image.embedding, *cross, *(() if image.mask is None else (image.mask,))


class _TextGraph(nn.Module):
    """Text graph, which converts padded texts to their embeddings."""

    def __init__(self, model: CoCa) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B E"]:
        # The texts are padded by one token, because a text without words has only one token that predicts another, and
        # tracing treats every length of 1 as a constant.
        text = self.model.text_decoder.pack(F.pad(token_ids, (0, 1)), lengths, pad_lengths)
        return self.model.embed_text(text)


class _StepGraph(nn.Module):
    """Step graph, which computes the logits that follow each new token.

    Captions have the shape B K T, with K captions per image, and not R T with R = B · K rows. With rows, the symbolic
    shapes would contain the quotient R · T / B, the number of queries that share an image's keys, and tracing would
    take three times as long. See `_group_rows`.
    """

    def __init__(self, model: CoCa) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        token_ids: Int[Tensor, "B K T"],
        cross: list[Tensor],
        past: list[Tensor],
        image_mask: Bool[Tensor, "B Q"] | None,
    ) -> tuple[Tensor, ...]:
        token_ids = token_ids.flatten(0, 1)  # R T
        num_past, num_new = past[0].shape[2], token_ids.shape[1]
        positions = torch.arange(num_new) + num_past
        mask = (torch.arange(num_past + num_new) <= positions[:, None])[None, None]  # 1 1 T P+T
        caches = [GrowingCache(keys, values) for keys, values in zip(past[0::2], past[1::2], strict=True)]
        contexts = [
            KeyValues(keys.transpose(1, 2), values.transpose(1, 2))
            for keys, values in zip(cross[0::2], cross[1::2], strict=True)
        ]
        layouts = [CachedLayout(cache, positions, mask) for cache in caches]
        logits = self.model.multimodal_decoder.lm_head(self.model.decode_step(token_ids, contexts, layouts, image_mask))
        return logits, *(kept for cache in caches for kept in (cache.keys, cache.values))


Shape = tuple[str | int, ...]
"""Sizes of a tensor. Variable sizes are letters, as in the module's docstring."""


class _GraphSpec(NamedTuple):
    """Specification for tracing a graph: its module, the shapes of its inputs and outputs by name, and a function that
    converts the list of inputs to the module's arguments."""

    module: nn.Module
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    arguments: Callable[[list[Any]], tuple[Any, ...]] = tuple


_EXAMPLE = {"B": 2, "K": 3, "R": 6, "T": 5, "P": 4, "N": 7, "Q": 11}
"""Tensor sizes for tracing. All sizes differ, so that they cannot be confused with each other."""
_MIN = {"R": 4}
"""Minimum sizes for tracing, which assumes that other sizes are at least 2, and that R is B · K. The graph has no such
bounds."""


def trace(model: CoCa, config: CoCaConfig, preprocess: Preprocess, name: GraphName) -> ir.Model:
    """Trace a graph of a model in fp32, with standard operators, for any number of images, captions and tokens.

    Args:
        model: Model in eval mode, in fp32 and on the CPU.
        config: Config of the model.
        preprocess: Preprocessing, whose pixel mean and standard deviation become part of the image graph.
        name: Name of the graph.

    Raises:
        torch._dynamo.exc.UserError: If a layer treats a variable size as a constant.
    """
    spec = _graph_spec(make_exportable(model), config, preprocess, name)
    minima = {"T": _MIN_TEXT} if name == "text" else _MIN
    dims = {size: Dim(size, min=minima.get(size, 0)) for size in _EXAMPLE}
    examples = [_example(name, shape) for name, shape in spec.inputs.items()]
    varying = [{axis: dims[s] for axis, s in enumerate(shape) if isinstance(s, str)} for shape in spec.inputs.values()]
    with torch.no_grad(), suppress_messages():
        # If a layer required a fixed batch size, `torch.onnx.export` would write a graph for that size when called with
        # the module itself. `torch.export.export` raises an error instead.
        program = torch.export.export(
            spec.module,
            spec.arguments(examples),
            dynamic_shapes=spec.arguments(varying),
            prefer_deferred_runtime_asserts_over_guards=True,  # R is B · K, which `Dim` cannot express
        )
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(spec.inputs),
            output_names=list(spec.outputs),
            verbose=False,
        )
    assert exported is not None
    _share_tables(exported.model)
    _join_reshapes(exported.model)
    _clean_metadata(exported.model.graph, {**spec.inputs, **spec.outputs})
    if name == "step":
        _group_rows(exported.model.graph)
    return exported.model


_MIN_TEXT = 3
"""Number of special tokens in a text: [BOS], [EOS] and [CLS]."""


def _graph_spec(model: CoCa, config: CoCaConfig, preprocess: Preprocess, name: GraphName) -> _GraphSpec:
    cross = _cross_shapes(config)
    match name:
        case "image":
            inputs = _image_inputs(config)
            outputs: dict[str, Shape] = {"image_embedding": ("B", config.embed_dim), **cross, **_mask_shapes(config)}
            return _GraphSpec(
                _ImageGraph(model, preprocess), inputs, outputs, _make_input_sorter(inputs, _IMAGE_INPUTS)
            )
        case "text":
            inputs = {"token_ids": ("B", "T"), "lengths": ("B",)}
            return _GraphSpec(_TextGraph(model), inputs, {"text_embedding": ("B", config.embed_dim)})
        case "step":
            logits, past, mask = (
                ("R", "T", config.text_decoder.vocab_size),
                _cache_shapes(config, "past", "P"),
                _mask_shapes(config),
            )
            end = 1 + len(cross)
            return _GraphSpec(
                _StepGraph(model),
                {"token_ids": ("B", "K", "T"), **cross, **past, **mask},
                {"logits": logits, **_cache_shapes(config, "present", "P + T")},
                lambda given: (
                    given[0],
                    given[1:end],
                    given[end : end + len(past)],
                    *(given[end + len(past) :] or [None]),
                ),
            )


_IMAGE_INPUTS = ("pixels", "features", "feature_mask")


def _image_inputs(config: CoCaConfig) -> dict[str, Shape]:
    own, taken = config.image_encoder, config.feature_encoder
    inputs: dict[str, Shape] = {}
    if own is not None:
        inputs["pixels"] = ("B", own.image_size, own.image_size, 3)
    if taken is not None:
        inputs["features"] = ("B", taken.num_tokens or "N", taken.feature_dim)
        if taken.num_tokens is None:
            inputs["feature_mask"] = ("B", "N")
    return inputs


def _make_input_sorter(inputs: Mapping[str, Shape], names: Sequence[str]) -> Callable[[list[Any]], tuple[Any, ...]]:
    """Return a function that puts inputs in the order of the given names, with None for missing inputs."""
    return lambda given: tuple(map(dict(zip(inputs, given, strict=True)).get, names))


def _mask_shapes(config: CoCaConfig) -> dict[str, Shape]:
    """Return the shape of the mask of the image tokens that captions attend to, by the mask's name.

    If all images have the same number of these tokens, the graph needs no mask, and the result is empty.
    """
    varies = config.poolers.num_queries is None and config.num_image_tokens is None
    return {"image_mask": ("B", "Q")} if varies else {}


def _cross_shapes(config: CoCaConfig) -> dict[str, Shape]:
    """Return the shapes of the keys and values of the image tokens, for each multimodal layer."""
    t, poolers = config.multimodal_decoder.transformer, config.poolers
    num_tokens: int | str
    num_tokens = (config.num_image_tokens or "Q") if poolers.num_queries is None else poolers.num_queries
    if poolers.arrangement == "shared" and isinstance(num_tokens, int):
        num_tokens -= 1  # the first query yields the embedding
    shapes: dict[str, Shape] = {}
    for i in range(t.num_layers):
        shapes |= dict.fromkeys((f"cross_key.{i}", f"cross_value.{i}"), ("B", t.num_heads, num_tokens, t.head_dim))
    return shapes


def _cache_shapes(config: CoCaConfig, when: str, length: str) -> dict[str, Shape]:
    """Return the shapes of the keys and values of caption tokens, for each layer in both halves of the decoder.

    `when` is `past` or `present`, and `length` is the number of tokens, as in the module's docstring.
    """
    text, multimodal = config.text_decoder.transformer, config.multimodal_decoder.transformer
    layers = [text] * text.num_layers + [multimodal] * multimodal.num_layers
    return {
        f"{when}_{kind}.{j}": ("R", t.num_heads, length, t.head_dim)
        for j, t in enumerate(layers)
        for kind in ("key", "value")
    }


_DTYPES = {
    "pixels": torch.uint8,
    "token_ids": torch.long,
    "lengths": torch.long,
    "feature_mask": torch.bool,
    "image_mask": torch.bool,
}


def _example(name: str, shape: Shape) -> Tensor:
    dtype = _DTYPES.get(name, torch.float32)
    return torch.full([_EXAMPLE[size] if isinstance(size, str) else size for size in shape], 3, dtype=dtype)


_MAX_TABLE = 2**16
"""Maximum number of values in a table. The largest tables contain the angles of all patches of an image."""


def _share_tables(model: ir.Model) -> None:
    """Make layers share equal position tables and the values looked up in them. The graph is changed in place."""
    DeduplicateInitializersPass(size_limit=_MAX_TABLE)(model)
    CommonSubexpressionEliminationPass()(model)


def _join_reshapes(model: ir.Model) -> None:
    """Drop reshapes that a later reshape makes unnecessary. The graph is changed in place.

    Layers separate the attention heads, and operators concatenate them again. In a step of a small model, a reshape
    takes about as long as an operator.
    """
    for node in model.graph:
        if node.op_type != "Reshape":
            continue
        source, result = node.inputs[0], node.outputs[0]
        assert source is not None
        while (earlier := source.producer()) is not None and earlier.op_type == "Reshape":
            source = cast(ir.Value, earlier.inputs[0])
        node.replace_input_with(0, source)
        if source.shape == result.shape:
            ir.convenience.replace_all_uses_with(result, source)
    RemoveUnusedNodesPass()(model)


def _clean_metadata(graph: ir.Graph, shapes: Mapping[str, Shape]) -> None:
    """Name the variable sizes, and drop the node metadata of the exporter, such as source paths."""
    for value in (*graph.inputs, *graph.outputs):
        value.shape = ir.Shape(shapes[value.name])
    graph.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = value.type = None
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()


def _group_rows(graph: ir.Graph) -> None:
    """Make the step graph take token ids as rows, R T, and group these rows by image within the graph."""
    grouped, image = graph.inputs[0], graph.inputs[1]
    rows = ir.Value(name="token_ids", type=grouped.type, shape=ir.Shape(("R", "T")))
    grouped.name = "captions_of_images"
    num_images = ir.node("Shape", [image], {"start": 0, "end": 1})
    num_captions = ir.node("Constant", [], {"value_ints": [-1]})
    num_tokens = ir.node("Shape", [rows], {"start": 1, "end": 2})
    sizes = ir.node("Concat", [node.outputs[0] for node in (num_images, num_captions, num_tokens)], {"axis": 0})
    group = ir.node("Reshape", [rows, sizes.outputs[0]])
    ir.convenience.replace_all_uses_with(grouped, group.outputs[0])
    graph.inputs[0] = rows
    graph.insert_before(graph[0], [num_images, num_captions, num_tokens, sizes, group])
