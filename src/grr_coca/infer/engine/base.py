"""The interface of an engine: images and texts to embeddings, and the next token of each caption.

Captioning, search and classification use only this interface of a model.

    engine = OnnxEngine(folder)  # or TorchEngine(model, preprocess)
    images = engine.encode_images(pixels)
    decoder = engine.decoder(images, num_prompt=1, max_tokens=20)
    logits = decoder.step(begin_tokens)  # the prompt, one row for each image
    values, ids = logits.largest(1)  # then one token for each row at every step

All results are NumPy arrays. Large results stay on the engine's device: `EncodedImages.context`, the keys
and values of a decoder, and on a GPU the logits.

Shapes: B images or texts, S image size in pixels, E joint embedding width, R captions (rows; those of an image are
neighbours), T tokens, N ids, K selected ids, V vocabulary.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from grr_coca.common.shapes import Float, Int, UInt8

EngineName = Literal["onnx", "torch"]
SMALL_MODEL = 32_000_000
"""Size of weights in bytes. A smaller model, such as the bundled ones, computes a batch no faster with two threads (0.9
to 1.1 times the speed of one), but two batches at the same time gave 1.6 to 1.9 times the speed."""
MAX_WORKERS = 8
"""Maximum number of simultaneous batches. A tenth or more of the work is in Python, in one thread at a time."""


@dataclass(frozen=True)
class EncodedImages:
    """Encoded images. `embedding`: fp32, of unit length.

    `context`: input of the captioning decoder, in an engine-specific form.
    """

    embedding: Float[np.ndarray, "B E"]
    context: Any


@runtime_checkable
class Logits(Protocol):
    """The distribution of the next token of each caption, on the engine's device.

    Log-probabilities are those of the model over the whole vocabulary. If the model computes NaN for a token of a row,
    all of them are NaN in this row.
    """

    def largest(self, k: int) -> tuple[Float[np.ndarray, "R K"], Int[np.ndarray, "R K"]]:
        """Return the k highest log-probabilities of each row, in descending order, and their token ids; all if
        k is more than V.
        """

    def of(self, ids: Int[np.ndarray, "R N"]) -> Float[np.ndarray, "R N"]:
        """Return the log-probabilities of the given tokens."""

    def replaced(
        self, rows: Int[np.ndarray, " N"], ids: Int[np.ndarray, " N"], log_probs: Float[np.ndarray, " N"]
    ) -> "Logits":
        """Return a copy with other log-probabilities for some tokens; -inf rules a token out.

        The other values are not normalized again. Pairs of row and id must be distinct.
        """

    def repeated(self, count: int) -> "Logits":
        """Return each row `count` times, side by side."""

    def total(self, temperature: float) -> Float[np.ndarray, " R"]:
        """Return the logarithm of the sum of exp(log-probability / temperature) over the vocabulary."""

    def draw(self, uniforms: Float[np.ndarray, " R"], temperature: float) -> Int[np.ndarray, " R"]:
        """Return one token for each row, sampled from the softmax of log-probability / temperature: the first token, in
        the order of ids, at which the cumulative probability exceeds the row's uniform number in [0, 1).
        """


@runtime_checkable
class Decoder(Protocol):
    """Captions in progress, with their keys and values.

    The first step reads the prompt, in one row for each image. `reorder` then gives each image its captions.
    """

    def step(self, token_ids: Int[np.ndarray, "R T"]) -> Logits:
        """Read new tokens: the prompt at the first step, then one token of each caption at every step. Return the
        logits of the token that follows the last one."""

    def reorder(self, rows: Int[np.ndarray, " _"]) -> None:
        """Replace the captions by the given rows. Rows of an image may be repeated, dropped or reordered.

        Every image with rows must have the same number of rows, side by side, and images keep their order. An
        image without rows is dropped.
        """


@runtime_checkable
class Engine(Protocol):
    """A model that is ready for use. It is always in eval mode, and can be sent to another process."""

    name: EngineName
    embed_dim: int
    context_length: int
    """Maximum number of tokens of a text, with [BOS], [EOS] and [CLS]."""
    vocab_size: int

    @property
    def workers(self) -> int:
        """Number of batches to compute at the same time: one per core if the model is small, as several threads
        would not compute one batch faster; else 1."""

    def single_threaded(self) -> AbstractContextManager:
        """Return a context in which new threads compute with one thread each, for threads that each run a batch."""

    @property
    def logit_scale(self) -> float:
        """Factor that converts cosines to logits: the inverse of the learned temperature."""

    @property
    def logit_bias(self) -> float | None:
        """Offset of these logits in a model trained with the sigmoid loss; else None."""

    def encode_images(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> EncodedImages:
        """Encode RGB images. The engine normalizes their pixels itself."""

    def encode_texts(
        self, token_ids: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, "B E"]:
        """Return embeddings of texts, fp32, of unit length.

        `lengths` includes [BOS], [EOS] and [CLS] of each text.
        """

    def decoder(
        self, images: EncodedImages, *, num_prompt: int, max_tokens: int, num_captions: int = 1, beams: bool = False
    ) -> Decoder:
        """Return a decoder with empty caches.

        Args:
            images: Encoded images of this engine.
            num_prompt: Number of tokens of the prompt.
            max_tokens: Maximum number of tokens after the prompt. The last one need not be read.
            num_captions: Number of captions of each image.
            beams: Whether captions of an image will be reordered.
        """
