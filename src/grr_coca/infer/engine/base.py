"""The interface of an engine: images and texts to embeddings, and the next token of each caption.

Captioning, search and classification need no more of a model, whoever computes it.

    engine = OnnxEngine(folder)  # or TorchEngine(model, preprocess)
    images = engine.encode_images(pixels)
    decoder = engine.decoder(images, num_prompt=1, max_tokens=20)
    logits = decoder.step(begin_tokens)  # the prompt, one row for each image
    values, ids = logits.largest(1)  # then one token for each row at every step

All results are NumPy arrays. What may be large stays where the engine computed it: `EncodedImages.context`, the keys
and values of a decoder, and on a GPU the logits.

Shapes: B images or texts, S image size in pixels, E joint embedding width, R captions (rows; those of an image are
neighbours), T tokens, N ids, K ids that are kept, V vocabulary.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from grr_coca.common.shapes import Float, Int, UInt8

EngineName = Literal["onnx", "torch"]
SMALL_MODEL = 32_000_000
"""Bytes of weights. A model of fewer, such as those that ship, computes a batch no faster with two threads: they gave
0.9 to 1.1 times the speed of one. Two batches at the same time gave 1.6 to 1.9 times the speed."""
MAX_WORKERS = 8
"""Batches at the same time. Python does a tenth of the work or more, and only one thread at a time does that."""


@dataclass(frozen=True)
class EncodedImages:
    """Images after encoding. `embedding`: fp32, of unit length. `context`: what captions attend to, in a form that only
    the engine itself reads."""

    embedding: Float[np.ndarray, "B E"]
    context: Any


@runtime_checkable
class Logits(Protocol):
    """The distribution of the next token of each caption, where the engine computed it.

    Log-probabilities are those of the model over the whole vocabulary. If the model computes NaN for a token of a row,
    all of them are NaN in this row.
    """

    def largest(self, k: int) -> tuple[Float[np.ndarray, "R K"], Int[np.ndarray, "R K"]]:
        """The k highest log-probabilities of each row, in descending order, and their token ids; all of them if k is
        more than V."""

    def of(self, ids: Int[np.ndarray, "R N"]) -> Float[np.ndarray, "R N"]:
        """The log-probabilities of these tokens."""

    def replaced(
        self, rows: Int[np.ndarray, " N"], ids: Int[np.ndarray, " N"], log_probs: Float[np.ndarray, " N"]
    ) -> "Logits":
        """A copy with other log-probabilities for some tokens; -inf rules a token out. The rest is not normalized
        anew. No pair of a row and an id may occur twice."""

    def repeated(self, count: int) -> "Logits":
        """Each row `count` times, side by side."""

    def total(self, temperature: float) -> Float[np.ndarray, " R"]:
        """The logarithm of the sum of exp(log-probability / temperature) over the vocabulary."""

    def draw(self, uniforms: Float[np.ndarray, " R"], temperature: float) -> Int[np.ndarray, " R"]:
        """One token for each row, sampled from the softmax of log-probability / temperature: the first token, in the
        order of ids, at which the cumulative probability exceeds the row's uniform number in [0, 1)."""


@runtime_checkable
class Decoder(Protocol):
    """Captions in progress, with their keys and values.

    The first step reads the prompt, in one row for each image. `reorder` then gives each image its captions.
    """

    def step(self, token_ids: Int[np.ndarray, "R T"]) -> Logits:
        """Read new tokens: the prompt at the first step, then one token of each caption at every step. Returns the
        logits of the token that follows the last one."""

    def reorder(self, rows: Int[np.ndarray, " _"]) -> None:
        """Replace the captions by these rows. A row may be repeated, dropped, or exchanged with others of its image.

        Every image that has a row must have the same number of rows, side by side, and images stay in their order. An
        image without rows is dropped.
        """


@runtime_checkable
class Engine(Protocol):
    """A model that is ready for use. It is always in eval mode, and may be sent to another process."""

    name: EngineName
    embed_dim: int
    context_length: int
    """Maximum number of tokens of a text, with [BOS], [EOS] and [CLS]."""
    vocab_size: int

    @property
    def workers(self) -> int:
        """Number of batches to compute at the same time. One on each core if the model is small, as several threads
        would not compute one batch faster; else 1."""

    def one_thread_each(self) -> AbstractContextManager:
        """A context in which new threads compute with one thread each, for threads that each run a batch."""

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by to give logits: the inverse of the learned temperature."""

    @property
    def logit_bias(self) -> float | None:
        """What is added to these logits in a model that was trained with the sigmoid loss; else None."""

    def encode_images(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> EncodedImages:
        """Encode RGB images. The engine normalizes their pixels itself."""

    def encode_texts(
        self, token_ids: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, "B E"]:
        """Embeddings of texts, fp32, of unit length. `lengths` counts [BOS], [EOS] and [CLS] of each text too."""

    def decoder(
        self, images: EncodedImages, *, num_prompt: int, max_tokens: int, num_captions: int = 1, beams: bool = False
    ) -> Decoder:
        """A decoder with empty caches.

        Args:
            images: from this engine.
            num_prompt: tokens of the prompt.
            max_tokens: the most tokens that follow it in a caption. The last of them need not be read.
            num_captions: captions of each image.
            beams: captions of an image will be exchanged.
        """


class ArrayLogits:
    """`Logits` in an array, which is not copied."""

    def __init__(self, logits: Float[np.ndarray, "R V"], normalizer: Float[np.ndarray, "R 1"] | None = None) -> None:
        self._logits = logits
        self._given_normalizer = normalizer

    def largest(self, k: int) -> tuple[Float[np.ndarray, "R K"], Int[np.ndarray, "R K"]]:
        """As in `Logits`."""
        ids = self._logits.argmax(axis=1)[:, None] if k == 1 else _largest(self._logits, k)
        return self.of(ids), ids

    def of(self, ids: Int[np.ndarray, "R N"]) -> Float[np.ndarray, "R N"]:
        """As in `Logits`."""
        return (self._logits[np.arange(len(ids))[:, None], ids] - self._normalizer).astype(self._logits.dtype)

    def replaced(
        self, rows: Int[np.ndarray, " N"], ids: Int[np.ndarray, " N"], log_probs: Float[np.ndarray, " N"]
    ) -> "ArrayLogits":
        """As in `Logits`."""
        changed = self._logits.copy()
        changed[rows, ids] = log_probs + self._normalizer[rows, 0]
        return ArrayLogits(changed, self._normalizer)

    def repeated(self, count: int) -> "ArrayLogits":
        """As in `Logits`."""
        return ArrayLogits(self._logits.repeat(count, axis=0), self._normalizer.repeat(count, axis=0))

    def total(self, temperature: float) -> Float[np.ndarray, " R"]:
        """As in `Logits`."""
        return (_log_sum_exp(self._logits / temperature) - self._normalizer / temperature)[:, 0]

    def draw(self, uniforms: Float[np.ndarray, " R"], temperature: float) -> Int[np.ndarray, " R"]:
        """As in `Logits`."""
        return inverse_cdf(self._logits / temperature, uniforms)

    @cached_property
    def _normalizer(self) -> Float[np.ndarray, "R 1"]:
        """The logarithm of the softmax's denominator, which turns logits into log-probabilities. In fp64, as it is
        nearly as large as the logits."""
        return _log_sum_exp(self._logits) if self._given_normalizer is None else self._given_normalizer


def inverse_cdf(logits: Float[np.ndarray, "R V"], uniforms: Float[np.ndarray, " R"]) -> Int[np.ndarray, " R"]:
    """The first column at which the cumulative softmax of the logits exceeds the uniform number of its row."""
    cumulative = _shifted_exp(logits)[0].cumsum(axis=1, dtype=np.float64)
    passed = (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(axis=1)
    return np.minimum(passed, logits.shape[1] - 1)


def _log_sum_exp(logits: Float[np.ndarray, "R V"]) -> Float[np.ndarray, "R 1"]:
    exponentials, shift = _shifted_exp(logits)
    with np.errstate(divide="ignore"):  # a row of which every token is ruled out
        return np.log(exponentials.sum(axis=1, keepdims=True).astype(np.float64)) + shift


def _shifted_exp(logits: Float[np.ndarray, "R V"]) -> tuple[Float[np.ndarray, "R V"], Float[np.ndarray, "R 1"]]:
    """exp(logits - shift), of which no number overflows, and the shift of each row."""
    shift = logits.max(axis=1, keepdims=True)
    shift[np.isneginf(shift)] = 0  # in a row of which every token is ruled out
    shifted = logits - shift
    return np.exp(shifted, out=shifted), shift


_BLOCK = 64


def _largest(values: Float[np.ndarray, "R V"], k: int) -> Int[np.ndarray, "R K"]:
    """The indices of the k largest numbers of each row, in descending order.

    Ranking a vocabulary of 50,000 would take longer than a small model. So the row is cut into blocks of every n-th
    number. The k largest numbers lie in the k blocks with the largest maxima, or among those behind the last block.
    """
    num_rows, num_values = values.shape
    num_blocks = num_values // _BLOCK
    if 2 * k >= num_blocks:
        return _ranked(values, k)
    blocks = values[:, : num_blocks * _BLOCK].reshape(num_rows, _BLOCK, num_blocks)
    best_blocks = blocks.max(axis=1).argpartition(num_blocks - k, axis=1)[:, num_blocks - k :]  # R K
    within = best_blocks[:, None] + np.arange(_BLOCK)[:, None] * num_blocks  # R BLOCK K
    behind = np.broadcast_to(np.arange(num_blocks * _BLOCK, num_values), (num_rows, num_values % _BLOCK))
    candidates = np.concatenate([within.reshape(num_rows, -1), behind], axis=1)
    ranked = _ranked(np.take_along_axis(values, candidates, axis=1), k)
    return np.take_along_axis(candidates, ranked, axis=1)


def _ranked(values: Float[np.ndarray, "R V"], k: int) -> Int[np.ndarray, "R K"]:
    """`_largest` without blocks."""
    if k < values.shape[1]:
        among = values.argpartition(values.shape[1] - k, axis=1)[:, values.shape[1] - k :]
        order = np.take_along_axis(values, among, axis=1).argsort(axis=1)[:, ::-1]
        return np.take_along_axis(among, order, axis=1)
    return values.argsort(axis=1)[:, ::-1]
