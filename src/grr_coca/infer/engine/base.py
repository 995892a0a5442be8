"""Interface of engines, and an engine that delegates to another engine. An engine embeds images and
texts, and predicts the next token of each caption.

Captioning, search and classification use a model only through this interface.

    engine = OnnxEngine(folder)  # or TorchEngine(model, preprocess)
    images = engine.encode_images(pixels)
    decoder = engine.decoder(images, num_prompt=1, max_tokens=20)
    logits = decoder.step(begin_tokens)  # the prompt, one row for each image
    values, ids = logits.largest(1)  # then one token for each row at every step

All results are NumPy arrays. Large results stay on the engine's device: `EncodedImages.context`, the keys
and values of a decoder, and on a GPU the logits.

Shapes: B images or texts, S image size in pixels, E joint embedding width, R captions (rows; the rows of an
image are adjacent), T tokens, N ids, K selected ids, V size of the vocabulary.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from grr_coca.common.shapes import Float, Int, UInt8

EngineName = Literal["onnx", "torch"]
SMALL_MODEL = 32_000_000
"""Total size of the weights, in bytes, below which a model counts as small. Small models, such as the bundled ones,
process a batch no faster with two threads than with one (0.9 to 1.1 times the speed), but processing two batches at the
same time was 1.6 to 1.9 times as fast.
"""
MAX_WORKERS = 8
"""Maximum number of simultaneous batches. At least a tenth of the work is in Python, where only one thread runs at a
time."""


@dataclass(frozen=True)
class EncodedImages:
    """Encoded images. `embedding` is fp32 and of unit length.

    `context` is the input of the captioning decoder, in a form that depends on the engine.
    """

    embedding: Float[np.ndarray, "B E"]
    context: Any


@runtime_checkable
class Logits(Protocol):
    """Distribution of the next token of each caption, on the engine's device.

    Log-probabilities are those of the model over the whole vocabulary. If the model computes NaN for a token in a row,
    the log-probabilities of all tokens in this row are NaN.
    """

    def largest(self, k: int) -> tuple[Float[np.ndarray, "R K"], Int[np.ndarray, "R K"]]:
        """Return the k highest log-probabilities of each row, in descending order, and their token ids.

        If k exceeds the size of the vocabulary, return all log-probabilities.
        """

    def log_probs_of(self, ids: Int[np.ndarray, "R N"]) -> Float[np.ndarray, "R N"]:
        """Return the log-probabilities of the given tokens."""

    def with_log_probs(
        self, rows: Int[np.ndarray, " N"], ids: Int[np.ndarray, " N"], log_probs: Float[np.ndarray, " N"]
    ) -> "Logits":
        """Return a copy in which some tokens have the given log-probabilities. A value of -inf rules a token out.

        The remaining values are not normalized again. Pairs of row and id must be distinct.
        """

    def repeat_rows(self, count: int) -> "Logits":
        """Return a copy in which each row is repeated `count` times in succession."""

    def logsumexp(self, temperature: float) -> Float[np.ndarray, " R"]:
        """Return the logarithm of the sum of exp(log-probability / temperature) over the vocabulary."""

    def sample_tokens(self, uniforms: Float[np.ndarray, " R"], temperature: float) -> Int[np.ndarray, " R"]:
        """Sample one token for each row from the softmax of log-probability / temperature.

        The result is the first token, in the order of ids, at which the cumulative probability exceeds the row's
        uniform number in [0, 1).
        """


@runtime_checkable
class Decoder(Protocol):
    """Decoder of unfinished captions, with their keys and values.

    The first step reads the prompt, with one row per image. `reorder` then creates one row per caption of each image.
    """

    def step(self, token_ids: Int[np.ndarray, "R T"]) -> Logits:
        """Read new tokens, and return the logits of the token that follows them.

        The first step reads the prompt, and every later step reads one token of each caption.
        """

    def reorder(self, rows: Int[np.ndarray, " _"]) -> None:
        """Replace the rows by those with the given indices. The rows of an image can be repeated, dropped or reordered.

        All images that still have rows must have the same number of rows, which must be adjacent, and the images must
        keep their order. An image without rows is dropped.
        """


@runtime_checkable
class Engine(Protocol):
    """Model that is ready for use. It is always in eval mode, and can be sent to another process."""

    name: EngineName
    embed_dim: int
    context_length: int
    """Maximum number of tokens in a text, including [BOS], [EOS] and [CLS]."""
    vocab_size: int

    @property
    def workers(self) -> int:
        """Number of batches to process at the same time.

        For a small model, this is one per core, up to `MAX_WORKERS`, because several threads would not process a batch
        faster. For other models, it is 1.
        """

    def single_threaded(self) -> AbstractContextManager:
        """Return a context manager inside which newly started threads compute without further threads.

        Within this context, start the threads that each process a batch.
        """

    @property
    def logit_scale(self) -> float:
        """Factor that converts cosines to logits: the inverse of the learned temperature."""

    @property
    def logit_bias(self) -> float | None:
        """Offset of the logits in a model that was trained with the sigmoid loss. None for other models."""

    def encode_images(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> EncodedImages:
        """Encode RGB images. The engine itself normalizes their pixels."""

    def encode_texts(
        self, token_ids: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, "B E"]:
        """Return embeddings of texts, in fp32 and of unit length.

        `lengths` includes [BOS], [EOS] and [CLS] of each text.
        """

    def decoder(
        self, images: EncodedImages, *, num_prompt: int, max_tokens: int, num_captions: int = 1, beams: bool = False
    ) -> Decoder:
        """Return a decoder with empty caches.

        Args:
            images: Images that this engine has encoded.
            num_prompt: Number of tokens in the prompt.
            max_tokens: Maximum number of tokens after the prompt. The last of these tokens
                does not need to be read.
            num_captions: Number of captions per image.
            beams: Whether the captions of an image will be reordered.
        """


class WrappedEngine:
    """Engine that delegates to a base engine, as a base class for engines that change only some of its methods.

    Args:
        base: The base engine.
    """

    def __init__(self, base: Engine) -> None:
        self.base = base
        self.name: EngineName = base.name
        self.embed_dim, self.context_length, self.vocab_size = base.embed_dim, base.context_length, base.vocab_size
        self.logit_scale, self.logit_bias = base.logit_scale, base.logit_bias

    @property
    def device(self) -> str:
        """Device of the base engine, or `cpu` if the engine does not state one."""
        return str(getattr(self.base, "device", "cpu"))

    @property
    def workers(self) -> int:
        """Number of workers; see `Engine`."""
        return self.base.workers

    def single_threaded(self) -> AbstractContextManager:
        """Return the context manager; see `Engine`."""
        return self.base.single_threaded()

    def encode_images(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> EncodedImages:
        """Encode images; see `Engine`."""
        return self.base.encode_images(pixels)

    def encode_texts(
        self, token_ids: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, "B E"]:
        """Encode texts; see `Engine`."""
        return self.base.encode_texts(token_ids, lengths)

    def decoder(
        self, images: EncodedImages, *, num_prompt: int, max_tokens: int, num_captions: int = 1, beams: bool = False
    ) -> Decoder:
        """Create a decoder; see `Engine`."""
        return self.base.decoder(
            images, num_prompt=num_prompt, max_tokens=max_tokens, num_captions=num_captions, beams=beams
        )
