"""An image encoder as an ONNX graph of any origin, computed by ONNX Runtime.

The first input takes images: B 3 S S or B S S 3, uint8 pixels, or floating-point values normalized by mean and
deviation. The output is `last_hidden_state`, or else the first output with tokens B N D, a map, or one vector per
image.

Shapes: B images, S image size in pixels, T tokens with class token and registers, N tokens, D width.
"""

import hashlib
import math
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grr_coca.common.dict_to_dataclass import from_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import file_sha256, read_errors, read_json
from grr_coca.common.shapes import Float, UInt8
from grr_coca.common.threads import num_threads
from grr_coca.data.features import EncoderInfo
from grr_coca.infer.encoder import UNKNOWN_LICENCE, ImageTokens
from grr_coca_encoders.hub_preprocess import FILE, read_hub_preprocess

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_DTYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}
_MAX_PREFIX = 16
"""Maximum number of tokens before the patch tokens."""
_OPENING = threading.Lock()


class OnnxEncoder:
    """A `grr_coca.infer.encoder.VisionEncoder` of a graph.

    Args:
        path: The graph, next to its description: `NAME.json` written by this package for `NAME.onnx`, or
            `preprocessor_config.json`.

    Raises:
        UserError: If the graph or its description is missing, or cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
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
        self._output = _choose_output(names, path)
        described = path.with_suffix(".json")
        if described.exists():
            self.info = from_dict(EncoderInfo, read_json(described), str(described))
            self._preprocess = self.info.preprocess
            self._require_side(side)
            return
        try:
            self._preprocess = read_hub_preprocess(path.with_name(FILE), side)
        except UserError as error:
            raise UserError(
                f"{error}; it specifies how images are resized and normalized, see docs/encoders.md"
            ) from error
        self._require_side(side)
        pixels = np.zeros((1, self._preprocess.image_size, self._preprocess.image_size, 3), np.uint8)
        _, num_tokens, embed_dim = self.encode(pixels).tokens.shape
        self.info = EncoderInfo(
            name=f"onnx:{path}",
            weights=_hash_of(path),
            licence=session.get_modelmeta().custom_metadata_map.get("license", UNKNOWN_LICENCE),
            preprocess=self._preprocess,
            embed_dim=embed_dim,
            num_tokens=num_tokens,
        )

    def encode(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> ImageTokens:
        """Encode images, see `VisionEncoder`."""
        images: np.ndarray = pixels
        if self._dtype != np.uint8:
            mean, std = (np.array(values, np.float32) for values in (self._preprocess.mean, self._preprocess.std))
            images = ((pixels.astype(np.float32) / 255 - mean) / std).astype(self._dtype)
        images = images if self._is_channels_last else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        parts = np.split(images, len(images)) if self._takes_one else [images]
        try:
            found = [self._open().run([self._output], {self._input: part})[0] for part in parts]
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise UserError(f"onnx:{self.path}: cannot encode images ({' '.join(str(error).split())[:200]})") from error
        tokens = _to_tokens(np.concatenate(found).astype(np.float32))
        return ImageTokens(tokens, np.ones(tokens.shape[:2], bool))

    def write_graph(self, path: Path) -> None:
        """Copy the graph, see `VisionEncoder`."""
        with read_errors(self.path):
            shutil.copyfile(self.path, path)
        try:
            _opened(path)
        except UserError as error:
            raise UserError(
                f"onnx:{self.path}: its weights are in a separate file; save the graph with the weights inside"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the open graph, which other processes reopen."""
        return {**vars(self), "_session": None}

    def _open(self) -> "InferenceSession":
        with _OPENING:
            if self._session is None:
                self._session = _opened(self.path)
            return self._session

    def _require_side(self, side: int | None) -> None:
        if side not in (None, self._preprocess.image_size):
            raise UserError(
                f"onnx:{self.path}: takes images of {side} pixels, but its preprocessing makes "
                f"{self._preprocess.image_size}"
            )


def _opened(path: Path) -> "InferenceSession":
    import onnxruntime  # late: the import takes a tenth of a second

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads()
    options.log_severity_level = 4  # errors are raised
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise UserError(f"onnx:{path}: cannot be opened ({' '.join(str(error).split())[:300]})") from error


def tokens_of_graph(path: Path, pixels: UInt8[np.ndarray, "B S S 3"]) -> Float[np.ndarray, "B N D"]:
    """Return the tokens computed by a graph of uint8 pixels, which needs no description."""
    session = _opened(path)
    (tokens,) = session.run(None, {session.get_inputs()[0].name: pixels})
    return tokens


def _choose_output(ranks: dict[str, int], path: Path) -> str:
    if ranks.get("last_hidden_state") == 3:
        return "last_hidden_state"
    for rank in (3, 4, 2):
        for name, found in ranks.items():
            if found == rank:
                return name
    raise UserError(f"onnx:{path}: must have an output of tokens, a map, or one vector an image, got {ranks}")


def _to_tokens(found: Float[np.ndarray, "B ..."]) -> Float[np.ndarray, "B N D"]:
    if found.ndim == 2:
        return found[:, None]
    if found.ndim == 4:
        is_channels_last = found.shape[1] == found.shape[2] != found.shape[3]
        found = found if is_channels_last else found.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(found.reshape(len(found), -1, found.shape[3]))
    return found[:, count_prefix(found.shape[1]) :]


def count_prefix(num_tokens: int) -> int:
    """Return the number of tokens before the patch tokens, which fill a square grid; 0 if they do not."""
    prefix = num_tokens - math.isqrt(num_tokens) ** 2
    return prefix if prefix <= _MAX_PREFIX else 0


def _hash_of(path: Path) -> str:
    """Return the SHA-256 of a graph and of the files next to it with its weights."""
    digest = hashlib.sha256(file_sha256(path).encode())
    for other in sorted(path.parent.glob(f"{path.stem}*data")):  # NAME.onnx.data, NAME.onnx_data
        digest.update(f"{other.name} {file_sha256(other)}".encode())
    return digest.hexdigest()
