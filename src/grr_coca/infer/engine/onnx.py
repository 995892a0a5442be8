"""Engine that runs a folder of graphs in ONNX Runtime, without PyTorch.

`grr-coca export onnx` writes the graphs. The names of inputs and outputs are in `grr_coca.infer.export.graphs`.

Shapes: B images or texts, S image size in pixels, E joint embedding width, R captions (rows; R / B neighbouring rows
belong to one image), T tokens.
"""

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from grr_coca.common.errors import UserError, pip_install_command
from grr_coca.common.files import MANIFEST, file_sha256, read_json, read_manifest
from grr_coca.common.shapes import Float, Int, UInt8
from grr_coca.common.threads import num_threads
from grr_coca.infer.engine.base import MAX_WORKERS, SMALL_MODEL, EncodedImages, EngineName
from grr_coca.infer.generate.captions import ArrayLogits
from grr_coca.model.checkpoint_files import GRAPHS, GraphName

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from grr_coca.infer.encoder import ImageTokens

_Values = Mapping[str, np.ndarray]
"""Tensors by input name. ONNX Runtime reads arrays in place, and keeps results in its own memory, without copies."""


class _Graph(NamedTuple):
    """Open graph, the names of its outputs, and the name of the `step` input that takes each output except the
    first."""

    session: "InferenceSession"
    outputs: list[str]
    given_on: list[str]


class OnnxEngine:
    """`Engine` that runs the graphs in a folder.

    Each graph is opened when it is first used, so that a text query does not load the image encoder. The loader of a
    model compares the folder with its manifest (`grr_coca.model.checkpoint_files`); this class itself checks each graph
    and the size of the weights.

    Args:
        folder: Folder with `image.onnx`, `text.onnx`, `step.onnx`, their weights and `manifest.json`.
        threads: Number of threads per batch. The default is 1 for a small model, which processes several batches at the
            same time instead, and `num_threads()` for other models.

    Raises:
        UserError: If the folder has no graphs, or its manifest is corrupt. The error is also raised when a graph is
            opened, if the graph was not exported together with the weights, if a file is missing or corrupt, or if ONNX
            Runtime is too old.
    """

    name: EngineName = "onnx"

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        self.folder = Path(folder)
        self._graphs: dict[GraphName, _Graph] = {}
        self._files = read_manifest(self.folder)
        num_bytes = sum(size for name, (size, _) in self._files.items() if name.endswith(".safetensors"))
        is_small = threads is None and num_bytes < SMALL_MODEL
        self.threads = threads or (1 if is_small else num_threads())
        self.workers = min(num_threads(), MAX_WORKERS) if is_small else 1
        manifest = read_json(self.folder / MANIFEST)
        try:
            model = manifest["model"]
            self.precision = str(manifest["precision"])
            self.embed_dim, self.context_length, self.vocab_size = (
                _size(model[name]) for name in ("embed_dim", "context_length", "vocab_size")
            )
            self.logit_scale = float(model["logit_scale"])
            self.logit_bias = None if model["logit_bias"] is None else float(model["logit_bias"])
        except KeyError as error:
            raise UserError(f"{self.folder}: has no ONNX graphs ({error} missing in {MANIFEST}); {_EXPORT}") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{self.folder / MANIFEST}: corrupt ({error}); {_EXPORT}") from error

    def encode_images(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> EncodedImages:
        """Encode images; see `Engine`.

        The context contains the keys and values of the cross-attention, which are thus computed only once per image.
        """
        embedding, context = self.run("image", {"pixels": pixels})
        return EncodedImages(embedding, context)

    def encode_features(
        self, features: "ImageTokens", pixels: UInt8[np.ndarray, "B S S 3"] | None = None
    ) -> EncodedImages:
        """Encode features; see `grr_coca.infer.engine.frozen.FeatureReader`."""
        given = {"features": features.tokens, "feature_mask": features.mask, "pixels": pixels}
        inputs = [one.name for one in self.session("image").get_inputs()]
        assert "feature_mask" in inputs or features.mask.all(), "this model has a fixed number of features"
        embedding, context = self.run("image", {name: array for name in inputs if (array := given[name]) is not None})
        return EncodedImages(embedding, context)

    def encode_texts(
        self, token_ids: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, "B E"]:
        """Encode texts; see `Engine`."""
        embedding, _ = self.run("text", {"token_ids": token_ids, "lengths": lengths})
        return embedding

    def decoder(
        self,
        images: EncodedImages,
        *,
        num_prompt: int,  # noqa: ARG002
        max_tokens: int,  # noqa: ARG002
        num_captions: int = 1,  # noqa: ARG002
        beams: bool = False,  # noqa: ARG002
    ) -> "OnnxDecoder":
        """Create a decoder; see `Engine`. The caches grow as needed, so their sizes are not needed here."""
        return OnnxDecoder(self, images.context)

    def single_threaded(self) -> AbstractContextManager:
        """Return a context manager without effect; see `Engine`. The number of threads is set when a graph is
        opened."""
        return nullcontext()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without open graphs, because other processes must reopen them."""
        return {**vars(self), "_graphs": {}}

    def run(self, name: GraphName, inputs: _Values) -> tuple[np.ndarray, _Values]:
        """Run a graph, and return its first output, and the other outputs by the names of the `step` inputs that take
        them."""
        graph = self._graph(name)
        first, *others = graph.session.run(graph.outputs, inputs)
        return first, dict(zip(graph.given_on, others, strict=True))

    def session(self, name: GraphName) -> "InferenceSession":
        """Return the session of the graph with this name, opening the graph if necessary."""
        return self._graph(name).session

    def open_ahead(self, *names: GraphName) -> None:
        """Open graphs in background threads. An error is raised only when the graph is used."""
        for name in names:
            threading.Thread(target=self._try_to_open, args=(name,), name=f"open {name}").start()

    def _try_to_open(self, name: GraphName) -> None:
        with suppress(Exception):
            self._graph(name)

    def _graph(self, name: GraphName) -> _Graph:
        with _OPEN_LOCKS[name]:
            if name not in self._graphs:
                session = self._create_session(f"{name}.onnx")
                outputs = [output.name for output in session.get_outputs()]
                given_on = [given.replace("present", "past") for given in outputs[1:]]
                self._graphs[name] = _Graph(session, outputs, given_on)
        return self._graphs[name]

    def _create_session(self, name: str) -> "InferenceSession":
        import onnxruntime  # lazy import, because it takes a tenth of a second

        self._require_listed(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 4  # errors are raised, so printing them would be redundant
        # A spinning thread would keep its core busy, and slow down everything else on that core, including this
        # process.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = self.folder / name
        try:
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            reason = " ".join(str(error).split())
            if "opset" in reason or "IR version" in reason:
                raise UserError(
                    f"{path}: needs a newer ONNX Runtime than {onnxruntime.__version__}; run: "
                    f"{pip_install_command('-U', 'onnxruntime')}"
                ) from error
            raise UserError(f"{path}: cannot be opened ({reason}); {_EXPORT}") from error

    def _require_listed(self, name: str) -> None:
        """Check the size and the hash of a graph, and the size of each weights file, against the manifest.

        Raises:
            UserError: If the manifest does not list the graph, or a file is missing, cannot be read, or differs.
        """
        if name not in self._files:
            raise UserError(f"{self.folder}: {MANIFEST} does not list {name}; {_EXPORT}")
        for other, (size, sha256) in self._files.items():
            if other != name and not other.endswith(".safetensors"):
                continue
            path = self.folder / other
            try:
                is_listed = path.stat().st_size == size and (other != name or file_sha256(path) == sha256)
            except OSError as error:
                raise UserError(f"{path}: missing, or cannot be read ({error.strerror}); {_EXPORT}") from error
            if not is_listed:
                raise UserError(f"{path}: corrupt, or from another model: it differs from {MANIFEST}; {_EXPORT}")


_EXPORT = "write the folder again with `grr-coca export onnx`"
_OPEN_LOCKS = {name: threading.Lock() for name in GRAPHS}
"""Lock for each graph, so that only one thread opens it."""


class OnnxDecoder:
    """`Decoder` whose keys and values are outputs of the graphs.

    A step takes the keys and values of earlier tokens, and returns them with those of the new tokens appended. The
    captions of an image share the cross-attention keys and values of the image.
    """

    def __init__(self, engine: OnnxEngine, cross: _Values) -> None:
        self.engine = engine
        self.cross = cross
        self.past: _Values | None = None
        self.rows_per_image = 1

    def step(self, token_ids: Int[np.ndarray, "R T"]) -> ArrayLogits:
        """Read new tokens; see `Decoder`."""
        past = self._empty(len(token_ids)) if self.past is None else self.past
        logits, self.past = self.engine.run("step", {"token_ids": token_ids, **self.cross, **past})
        return ArrayLogits(logits[:, -1])

    def reorder(self, rows: Int[np.ndarray, " _"]) -> None:
        """Reorder the captions; see `Decoder`. Rows of the cache are copied, unless their order is unchanged."""
        assert self.past is not None
        images, counts = np.unique(rows // self.rows_per_image, return_counts=True)
        assert (counts == counts[0]).all()
        self.past = _take_rows(self.past, rows)
        self.cross = _take_rows(self.cross, images)
        self.rows_per_image = int(counts[0])

    def _empty(self, num_rows: int) -> _Values:
        """Return keys and values for zero earlier tokens."""
        return {
            given.name: np.zeros((num_rows, given.shape[1], 0, given.shape[3]), dtype=np.float32)
            for given in self.engine.session("step").get_inputs()
            if given.name.startswith("past_")
        }


_MAX_SIZE = 2**24


def _size(value: object) -> int:
    """Convert a width, length or number of tokens of a model to an integer, and check it.

    Raises:
        ValueError: If the value is not a valid size.
    """
    size = int(value)  # type: ignore[call-overload]
    if not 1 <= size <= _MAX_SIZE:
        raise ValueError(f"a size must be from 1 to {_MAX_SIZE}, got {size}")
    return size  # type: ignore[no-any-return]


def _take_rows(values: _Values, rows: Int[np.ndarray, " _"]) -> _Values:
    """Select rows of all tensors."""
    num_rows = len(next(iter(values.values())))
    if np.array_equal(rows, np.arange(num_rows)):
        return values
    return {name: value.take(rows, axis=0) for name, value in values.items()}
