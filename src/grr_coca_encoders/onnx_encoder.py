"""Image encoder from an arbitrary ONNX graph, run by ONNX Runtime.

The first input takes images of the shape B 3 S S or B S S 3, either as uint8 pixels or as floating-point values
normalized by mean and standard deviation. The output is `last_hidden_state` if it has tokens, or else the first output
with tokens (B T D), or else with a map, or else with one vector per image. Graphs that end in a classifier or a decoder
have features in an inner tensor, which can be named.

Shapes: B images, S image size in pixels, T tokens including class token and registers, N tokens, D width.
"""

import glob
import hashlib
import math
import shutil
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grr_coca.common.dict_to_dataclass import from_dict
from grr_coca.common.errors import UserError, install_command
from grr_coca.common.files import file_sha256, read_errors, read_json
from grr_coca.common.shapes import Float, UInt8
from grr_coca.common.threads import num_threads
from grr_coca.data.features import EncoderInfo
from grr_coca.infer.encoder import UNKNOWN_LICENCE, ImageTokens, VisionEncoder
from grr_coca_encoders.hub_preprocess import FILE, read_hub_preprocess
from grr_coca_encoders.pixel_graph import GraphForm, write_pixel_graph

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_DTYPES: dict[str, type[np.generic]] = {
    "tensor(uint8)": np.uint8,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}
_MAX_PREFIX = 16
"""Maximum number of tokens before the patch tokens."""
_MIN_WIDTH = 5
"""Minimum width of features. Masks, boxes and most probabilities have a smaller width."""
_FEATURE_OPERATORS = {"LayerNormalization", "Add", "Relu", "HardSwish", "Clip", "GlobalAveragePool", "ReduceMean"}
"""Operators whose results are features if they are near the end of a graph."""
_OPEN_LOCK = threading.Lock()


class OnnxEncoder:
    """`grr_coca.infer.encoder.VisionEncoder` that runs an ONNX graph.

    Args:
        path: Path of the graph. Its description must be in the same folder: either `NAME.json`, which this package
            writes for `NAME.onnx`, or `preprocessor_config.json`.
        tensor: Name of the tensor with the features. If empty, an output of the graph is used.

    Raises:
        UserError: If the graph or its description is missing, or cannot be used.
    """

    def __init__(self, path: Path, tensor: str = "") -> None:
        self.path, self._tensor = path, tensor
        self.name = f"onnx:{path}#{tensor}" if tensor else f"onnx:{path}"
        if not path.is_file():
            raise UserError(f"onnx:{path}: no such file")
        self._session: InferenceSession | None = None
        session = self._open()
        given = session.get_inputs()[0]
        if given.type not in _DTYPES or len(given.shape) != 4 or 3 not in (given.shape[1], given.shape[3]):
            raise UserError(
                f"onnx:{path}: the first input must be images, B × 3 × S × S or B × S × S × 3, as uint8 or float, got "
                f"{given.shape} of {given.type}"
            )
        self._input = str(given.name)
        self._dtype = _DTYPES[given.type]
        self._is_channels_last = given.shape[1] != 3
        self._takes_one = given.shape[0] == 1
        side = given.shape[2] if isinstance(given.shape[2], int) else None
        names = {output.name: len(output.shape) for output in session.get_outputs()}
        self._output = tensor or _choose_output(names, path)
        described = path.with_suffix(".json")
        if described.exists():
            self.info = from_dict(EncoderInfo, read_json(described), str(described))
            self._preprocess = self.info.preprocess
            self._require_side(side, described)
            return
        try:
            self._preprocess = read_hub_preprocess(path.with_name(FILE), side)
        except UserError as error:
            raise UserError(
                f"{error}; this file specifies how images are resized and normalized; see docs/encoders.md"
            ) from error
        self._require_side(side, path.with_name(FILE))
        _, num_tokens, embed_dim = self.encode(self._black()).tokens.shape
        if embed_dim < _MIN_WIDTH:
            raise UserError(
                f"{self.name}: its output has width {embed_dim} per {'image' if num_tokens == 1 else 'position'}, too "
                f"small for features{candidates(path)}"
            )
        self.info = EncoderInfo(
            name=self.name,
            weights=_hash_graph(path, tensor),
            licence=session.get_modelmeta().custom_metadata_map.get("license", UNKNOWN_LICENCE),
            preprocess=self._preprocess,
            embed_dim=embed_dim,
            num_tokens=num_tokens,
        )

    def encode(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> ImageTokens:
        """Encode images; see `VisionEncoder`."""
        tokens = _to_tokens(self._run(pixels))
        return ImageTokens(tokens, np.ones(tokens.shape[:2], bool))

    def _run(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> Float[np.ndarray, "B ..."]:
        images: np.ndarray = pixels
        if self._dtype != np.uint8:
            mean, std = (np.array(values, np.float32) for values in (self._preprocess.mean, self._preprocess.std))
            images = ((pixels.astype(np.float32) / 255 - mean) / std).astype(self._dtype)
        images = images if self._is_channels_last else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        parts = np.split(images, len(images)) if self._takes_one else [images]
        try:
            found = [self._open().run([self._output], {self._input: part})[0] for part in parts]
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise UserError(f"{self.name}: cannot encode images ({' '.join(str(error).split())[:200]})") from error
        return np.concatenate(found).astype(np.float32)

    def write_graph(self, path: Path) -> None:
        """Write a graph that takes uint8 pixels and computes the same tokens; see `VisionEncoder`.

        The graph is copied if it already has this form, or if the extra `export` is not installed.

        Raises:
            UserError: If the encoder cannot be written as one file, or the written graph computes other tokens.
            OSError: If the file cannot be written.
        """
        form = self._form()
        is_ready = form.dtype == np.uint8 and form.is_channels_last and form.rank == 3 and not form.num_prefix
        if is_ready or find_spec("onnx_ir") is None:
            self._copy(path)
            return
        try:
            write_pixel_graph(self.path, form, self._preprocess, path)
        except (ValueError, RuntimeError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UserError(f"{self.name}: cannot be written as a graph of pixels ({error})") from error
        require_same_tokens(path, self)

    def _form(self) -> GraphForm:
        found = self._run(self._black())
        _, num_tokens, embed_dim = _to_tokens(found).shape
        return GraphForm(
            images=self._input,
            features=self._output,
            dtype=self._dtype,
            is_channels_last=self._is_channels_last,
            is_map_channels_last=_is_map_channels_last(found),
            rank=found.ndim,
            num_prefix=found.shape[1] - num_tokens if found.ndim == 3 else 0,
            num_tokens=num_tokens,
            embed_dim=embed_dim,
        )

    def _black(self) -> UInt8[np.ndarray, "1 S S 3"]:
        side = self._preprocess.image_size
        return np.zeros((1, side, side, 3), np.uint8)

    def _copy(self, path: Path) -> None:
        with read_errors(self.path):
            shutil.copyfile(self.path, path)
        try:
            _open_session(path)
        except UserError as error:
            raise UserError(
                f"onnx:{self.path}: the weights are in a separate file; save the graph with its weights inside, or "
                f"install the extra 'export' with: {install_command('export')}"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the open graph, because each process must open the graph itself."""
        return {**vars(self), "_session": None}

    def _open(self) -> "InferenceSession":
        with _OPEN_LOCK:
            if self._session is None:
                self._session = _open_session(self.path, self._tensor)
            return self._session

    def _require_side(self, side: int | None, described: Path) -> None:
        if side not in (None, self._preprocess.image_size):
            raise UserError(
                f"onnx:{self.path}: takes images of {side} pixels, but the preprocessing next to it yields "
                f"{self._preprocess.image_size}; correct the size in {described.name}"
            )


def _open_session(path: Path, tensor: str = "") -> "InferenceSession":
    """Open a graph on the CPU, with an inner tensor as an additional output if its name is given.

    Raises:
        UserError: If the graph cannot be opened, or does not have the tensor.
    """
    import onnxruntime  # lazy import: the import takes a tenth of a second

    options = onnxruntime.SessionOptions()
    graph: Path | bytes = path
    if tensor:
        with read_errors(path):
            graph = path.read_bytes() + output_field(tensor)
        folder = str(path.parent.absolute())
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    options.intra_op_num_threads = num_threads()
    options.log_severity_level = 4  # errors are raised, so printing them would be redundant
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        if tensor and f"({tensor}) does not exist" in str(error):
            raise UserError(f"onnx:{path}#{tensor}: the graph has no such tensor{candidates(path)}") from error
        raise UserError(f"onnx:{path}: cannot be opened ({' '.join(str(error).split())[:300]})") from error


def output_field(tensor: str) -> bytes:
    """Return bytes that add an output when they are appended to the file of a graph.

    Protocol buffers merge the fields of a message that occurs twice. The fields are numbered as follows in onnx.proto:
    7 is the graph of a model, 12 an output of a graph, and 1 the name of an output.
    """
    content = tensor.encode()
    for number in (1, 12, 7):
        content = bytes([number << 3 | 2]) + _varint(len(content)) + content
    return content


def _varint(number: int) -> bytes:
    """Encode a number in groups of seven bits, as protocol buffers do."""
    groups = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def require_same_tokens(path: Path, encoder: VisionEncoder) -> None:
    """Check that a graph that takes uint8 pixels computes the same tokens as an encoder.

    Raises:
        UserError: If the tokens differ.
    """
    side = encoder.info.preprocess.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    session = _open_session(path)
    given = session.get_inputs()[0]
    parts = np.split(pixels, len(pixels)) if given.shape[0] == 1 else [pixels]
    found = np.concatenate([session.run(None, {given.name: part})[0] for part in parts])
    expected = encoder.encode(pixels).tokens
    if found.shape != expected.shape or not np.allclose(found, expected, atol=1e-3 * np.abs(expected).max()):
        raise UserError(f"{encoder.info.name}: the exported graph computes wrong tokens; use another encoder")


def _choose_output(ranks: dict[str, int], path: Path) -> str:
    if ranks.get("last_hidden_state") == 3:
        return "last_hidden_state"
    for rank in (3, 4, 2):
        for name, found in ranks.items():
            if found == rank:
                return name
    raise UserError(
        f"onnx:{path}: must have an output of rank 3 (tokens), 4 (a map) or 2 (one vector per image), got the ranks "
        f"{ranks}{candidates(path)}"
    )


def candidates(path: Path) -> str:
    """Return the end of a message, which names at most four inner tensors of a graph that may contain features.

    Each tensor has another number of features, which is listed after its name. The tensors closest to the end of the
    graph come first. Without the extra `export`, the message states how to install it instead.
    """
    named = f"; name an inner tensor: onnx:{path.name}#TENSOR"
    if find_spec("onnx_ir") is None:
        return f"{named}; with the extra 'export', the likely ones are listed here; run: {install_command('export')}"
    import onnx_ir as ir  # lazy import: part of the extra `export`
    from onnx_ir.passes.common import ShapeInferencePass

    model = ir.load(path)
    ShapeInferencePass()(model)
    widths: dict[int, str] = {}
    for node in reversed(model.graph):
        for value in node.outputs if node.op_type in _FEATURE_OPERATORS else ():
            shape = [] if value.shape is None else [size if isinstance(size, int) else 0 for size in value.shape]
            width = (shape[-1] or (shape[1] if len(shape) == 4 else 0)) if len(shape) > 1 else 0
            if width >= _MIN_WIDTH:
                widths.setdefault(width, f"{value.name} ({width})")
    return f"{named}, such as {', '.join([*widths.values()][:4])}" if widths else named


def _to_tokens(found: Float[np.ndarray, "B ..."]) -> Float[np.ndarray, "B N D"]:
    if found.ndim == 2:
        return found[:, None]
    if found.ndim == 4:
        found = found if _is_map_channels_last(found) else found.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(found.reshape(len(found), -1, found.shape[3]))
    return found[:, count_prefix(found.shape[1]) :]


def _is_map_channels_last(found: Float[np.ndarray, "B ..."]) -> bool:
    """Return whether features are a map of the shape B h w D. Maps are assumed to be square."""
    return found.ndim == 4 and found.shape[1] == found.shape[2] != found.shape[3]


def count_prefix(num_tokens: int) -> int:
    """Return the number of tokens before the patch tokens, if the patch tokens fill a square grid, and otherwise 0."""
    prefix = num_tokens - math.isqrt(num_tokens) ** 2
    return prefix if prefix <= _MAX_PREFIX else 0


def _hash_graph(path: Path, tensor: str) -> str:
    """Return a SHA-256 of a graph, of the name of an inner tensor, and of files with weights next to the graph."""
    digest = hashlib.sha256(file_sha256(path).encode())
    digest.update(tensor.encode())
    for other in sorted(path.parent.glob(f"{glob.escape(path.stem)}*data")):  # NAME.onnx.data, NAME.onnx_data
        digest.update(f"{other.name} {file_sha256(other)}".encode())
    return digest.hexdigest()
