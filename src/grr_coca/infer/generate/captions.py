"""Caption images by greedy decoding, sampling or beam search, with public functions at the end.

In each step, the loop appends a token to every caption of the batch, independently of the other captions. The rules of
the options and beam search are in separate modules.

Shapes: B images, S image size in pixels, E joint embedding width, R captions (rows; the captions of one image are
adjacent), T maximum number of new tokens, P prompt tokens, N changed log-probabilities or ids, K selected tokens, V
size of the vocabulary.
"""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca.common.shapes import Bool, Float, Int, UInt8
from grr_coca.data.tokenizer import Tokenizer, clean_prompt
from grr_coca.infer.engine.base import Decoder, EncodedImages, Engine, Logits
from grr_coca.infer.generate.beams import BeamSearch
from grr_coca.infer.generate.options import GREEDY, GenerationOptions
from grr_coca.infer.generate.rules import NAN_RESULTS, NOTHING_LEFT, Hypothesis, apply_rules

log = logging.getLogger(__name__)


# --- The distribution of the next token, as an array


class ArrayLogits:
    """`Logits` in an array, which is neither copied nor changed.

    Args:
        logits: The logits, R V.
        normalizer: Logarithm of each row's softmax denominator, R 1. None if it must be computed from `logits`.
    """

    def __init__(self, logits: Float[np.ndarray, "R V"], normalizer: Float[np.ndarray, "R 1"] | None = None) -> None:
        self._logits = logits
        self._given_normalizer = normalizer

    def largest(self, k: int) -> tuple[Float[np.ndarray, "R K"], Int[np.ndarray, "R K"]]:
        """Return the largest log-probabilities; see `Logits`."""
        ids = self._logits.argmax(axis=1)[:, None] if k == 1 else _largest(self._logits, k)
        return self.log_probs_of(ids), ids

    def log_probs_of(self, ids: Int[np.ndarray, "R N"]) -> Float[np.ndarray, "R N"]:
        """Return the log-probabilities of given tokens; see `Logits`."""
        return (self._logits[np.arange(len(ids))[:, None], ids] - self._normalizer).astype(self._logits.dtype)

    def with_log_probs(
        self, rows: Int[np.ndarray, " N"], ids: Int[np.ndarray, " N"], log_probs: Float[np.ndarray, " N"]
    ) -> "ArrayLogits":
        """Replace log-probabilities; see `Logits`."""
        changed = self._logits.copy()
        changed[rows, ids] = log_probs + self._normalizer[rows, 0]
        return ArrayLogits(changed, self._normalizer)

    def repeat_rows(self, count: int) -> "ArrayLogits":
        """Repeat each row; see `Logits`."""
        return ArrayLogits(self._logits.repeat(count, axis=0), self._normalizer.repeat(count, axis=0))

    def logsumexp(self, temperature: float) -> Float[np.ndarray, " R"]:
        """Return the logarithms of the sums; see `Logits`."""
        return (_log_sum_exp(self._logits / temperature) - self._normalizer / temperature)[:, 0]

    def sample_tokens(self, uniforms: Float[np.ndarray, " R"], temperature: float) -> Int[np.ndarray, " R"]:
        """Sample one token per row; see `Logits`."""
        return inverse_cdf(self._logits / temperature, uniforms)

    @cached_property
    def _normalizer(self) -> Float[np.ndarray, "R 1"]:
        """Logarithm of the softmax denominator, which converts logits to log-probabilities.

        It is computed in fp64, because it is nearly as large as the logits from which it is subtracted.
        """
        return _log_sum_exp(self._logits) if self._given_normalizer is None else self._given_normalizer


def inverse_cdf(logits: Float[np.ndarray, "R V"], uniforms: Float[np.ndarray, " R"]) -> Int[np.ndarray, " R"]:
    """Return, for each row, the first column at which the cumulative softmax exceeds the row's uniform number."""
    cumulative = _shifted_exp(logits)[0].cumsum(axis=1, dtype=np.float64)
    passed = (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(axis=1)
    return np.minimum(passed, logits.shape[1] - 1)


def _log_sum_exp(logits: Float[np.ndarray, "R V"]) -> Float[np.ndarray, "R 1"]:
    exponentials, shift = _shifted_exp(logits)
    with np.errstate(divide="ignore"):  # a row in which every token is ruled out
        return np.log(exponentials.sum(axis=1, keepdims=True).astype(np.float64)) + shift


def _shifted_exp(logits: Float[np.ndarray, "R V"]) -> tuple[Float[np.ndarray, "R V"], Float[np.ndarray, "R 1"]]:
    """Return exp(logits - shift), which cannot overflow, and the shift of each row."""
    shift = logits.max(axis=1, keepdims=True)
    shift[np.isneginf(shift)] = 0  # for a row in which every token is ruled out
    shifted = logits - shift
    return np.exp(shifted, out=shifted), shift


_BLOCK = 64


def _largest(values: Float[np.ndarray, "R V"], k: int) -> Int[np.ndarray, "R K"]:
    """Return the indices of the k largest numbers of each row, in descending order.

    Ranking a vocabulary of 50,000 would take longer than running a small model, so each row is split into n
    blocks, each of which contains every n-th number. The k largest numbers are in the k blocks with the largest maxima,
    or among the numbers that are left after the last block.
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
    """Return the same result as `_largest`, without splitting rows into blocks."""
    if k < values.shape[1]:
        among = values.argpartition(values.shape[1] - k, axis=1)[:, values.shape[1] - k :]
        order = np.take_along_axis(values, among, axis=1).argsort(axis=1)[:, ::-1]
        return np.take_along_axis(among, order, axis=1)
    return values.argsort(axis=1)[:, ::-1]


# --- Sampling

SEARCHES = (128, 1024, 2**31)
"""Numbers of most likely tokens among which the filters search. They are tried in this order until enough tokens are
found, because ranking an entire large vocabulary would take longer than running the model."""


def sample_next(logits: Logits, uniforms: Float[np.ndarray, " R"], options: GenerationOptions) -> Int[np.ndarray, " R"]:
    """Sample one token for each row. `uniforms` has one random number in [0, 1) per row."""
    assert options.temperature is not None
    if options.top_k is None and options.top_p is None and options.min_p is None:
        return logits.sample_tokens(uniforms, options.temperature)
    total = logits.logsumexp(options.temperature) if options.top_k is None and options.top_p is not None else None
    for num_searched in SEARCHES if options.top_k is None else (options.top_k,):
        kept, ids = logits.largest(num_searched)
        kept = kept / options.temperature
        is_excluded = _excluded_tokens(kept, total, options)
        if kept.shape[1] < num_searched or is_excluded[:, -1].all():
            break
    kept[is_excluded] = -np.inf
    return np.take_along_axis(ids, inverse_cdf(kept, uniforms)[:, None], axis=1)[:, 0]


def _excluded_tokens(
    logits: Float[np.ndarray, "R K"], total: Float[np.ndarray, " R"] | None, options: GenerationOptions
) -> Bool[np.ndarray, "R K"]:
    """Return a mask of the tokens that `top_p` and `min_p` exclude. The most likely token is never excluded.

    Args:
        logits: Logits of the most likely tokens, divided by the temperature, in descending order.
        total: Log-sum-exp over all tokens. None if `logits` contains all tokens.
        options: Options with the filters.
    """
    is_excluded = np.zeros(logits.shape, dtype=bool)
    if options.top_p is not None:
        with np.errstate(invalid="ignore"):  # a row in which every token is ruled out
            probs = np.exp(logits - logits[:, :1], dtype=np.float64)  # relative to the most likely token
            whole = probs.sum(axis=1) if total is None else np.exp(total - logits[:, 0])
        is_excluded |= probs.cumsum(axis=1) - probs >= options.top_p * whole[:, None]
    if options.min_p is not None:
        is_excluded |= logits < logits[:, :1] + math.log(options.min_p)
    is_excluded[:, 0] = False  # keeps the most likely token even if its probability rounds to 0
    return is_excluded


# --- The loop of greedy decoding and sampling

MAX_KEPT = 0.75
"""Maximum fraction of unfinished images in a batch at which finished images are removed. Compacting the batch copies
the keys and values of the remaining images, which takes about as long as one or two steps with fewer rows save."""


class CaptionsInProgress:
    """Tokens of all captions so far, including captions whose row has been removed from the batch.

    Attributes:
        token_ids: New tokens of each caption, with zeros after them.
        log_probs: The model's own log-probability of each new token.
        lengths: Number of new tokens of each caption, including the end token.
    """

    def __init__(self, num_rows: int, max_length: int) -> None:
        self.token_ids = np.zeros((num_rows, max_length), dtype=np.int64)
        self.log_probs = np.zeros((num_rows, max_length), dtype=np.float32)
        self.lengths = np.zeros(num_rows, dtype=np.int64)
        self.running = np.arange(num_rows)
        """Indices of the captions whose rows are still in the batch, whether finished or not."""
        self.ended = np.zeros(num_rows, dtype=bool)
        """Whether each caption in the batch is finished."""

    def append(self, next_ids: Int[np.ndarray, " R"], log_probs: Float[np.ndarray, " R"], eos_id: int) -> None:
        """Append a token to every unfinished caption in the batch, given one token for each of its rows."""
        rows = self.running[~self.ended]
        ends = self.lengths[rows]
        self.token_ids[rows, ends] = next_ids[~self.ended]
        self.log_probs[rows, ends] = log_probs[~self.ended]
        self.lengths[rows] += 1
        self.ended |= next_ids == eos_id

    def hypotheses(self, num_per_image: int) -> list[list[Hypothesis]]:
        """Return the captions of each image, ranked by log-probability per token, best first."""
        found = []
        for ids, log_probs, length in zip(
            self.token_ids.tolist(), self.log_probs.tolist(), self.lengths.tolist(), strict=True
        ):
            score = sum(log_probs[:length]) / length
            found.append(Hypothesis(tuple(ids[:length]), tuple(log_probs[:length]), score))
        images = [found[i : i + num_per_image] for i in range(0, len(found), num_per_image)]
        return [sorted(image, key=lambda hypothesis: -hypothesis.score) for image in images]


def decode_independently(
    decoder: Decoder,
    prompt_ids: Int[np.ndarray, "B P"],
    options: GenerationOptions,
    max_length: int,
    eos_id: int,
    uniforms: Float[np.ndarray, "R T"] | None,
) -> Iterator[CaptionsInProgress]:
    """Append tokens to each caption until all are finished, and yield the captions after each step.

    The same object is yielded after every step.

    Args:
        decoder: Decoder with empty caches.
        prompt_ids: Tokens that begin every caption of an image.
        options: Decoding options.
        max_length: Maximum number of new tokens.
        eos_id: Id of the end token.
        uniforms: Random numbers in [0, 1) for sampling. If None, the most likely token is taken.

    Raises:
        UserError: If the rules of the options exclude every token that could continue a caption.
    """
    num_captions = options.num_captions
    captions = CaptionsInProgress(len(prompt_ids) * num_captions, max_length)
    logits = decoder.step(prompt_ids)
    if num_captions > 1:
        logits = logits.repeat_rows(num_captions)
        decoder.reorder(np.arange(len(prompt_ids)).repeat(num_captions))
    has_rules = options.min_length or options.no_repeat_ngram or options.repetition_penalty != 1
    for step in range(max_length):
        allowed = logits
        if has_rules:
            allowed = apply_rules(logits, captions.token_ids[captions.running, :step], options, eos_id)
        if uniforms is None:
            best, ids = allowed.largest(1)
        else:
            ids = sample_next(allowed, uniforms[captions.running, step], options)[:, None]
            best = allowed.log_probs_of(ids)
        if (np.isneginf(best[:, 0]) & ~captions.ended).any():
            raise UserError(NOTHING_LEFT)
        log_probs = best if allowed is logits else logits.log_probs_of(ids)
        captions.append(ids[:, 0], log_probs[:, 0], eos_id)
        yield captions
        if captions.ended.all() or step + 1 == max_length:
            return
        logits = decoder.step(_compact(decoder, captions, ids, num_captions))


def _compact(
    decoder: Decoder, captions: CaptionsInProgress, next_ids: Int[np.ndarray, "R 1"], num_captions: int
) -> Int[np.ndarray, "_ 1"]:
    """Remove the images whose captions are all finished from the batch and the decoder, if there are enough of them.

    Return the tokens of the remaining rows.
    """
    unfinished = ~captions.ended.reshape(-1, num_captions).all(axis=1)  # B
    if np.count_nonzero(unfinished) > MAX_KEPT * unfinished.size:
        return next_ids
    stay = unfinished.repeat(num_captions).nonzero()[0]
    decoder.reorder(stay)
    captions.running, captions.ended = captions.running[stay], captions.ended[stay]
    return next_ids[stay]


def uniform_draws(seed: int, keys: Sequence[object], num_draws: int, length: int) -> Float[np.ndarray, "R length"]:
    """Return `num_draws` rows of random numbers in [0, 1) for each key.

    A row depends only on the seed, on its key, and on its number among the rows for this key.
    """
    rows = []
    for key in keys:
        for i in range(num_draws):
            digest = hashlib.sha256(f"{seed}:{key}:{i}".encode("utf-8", "surrogateescape")).digest()
            rows.append(np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16]))).random(length))
    return np.stack(rows)


# --- Public functions


def require_no_nan(values: Float[np.ndarray, "*x"]) -> Float[np.ndarray, "*x"]:
    """Check that no embedding or log-probability is NaN, and return the values unchanged.

    Raises:
        UserError: If a value is NaN.
    """
    if np.isnan(values).any():
        raise UserError(NAN_RESULTS)
    return values


class Caption(NamedTuple):
    """A caption of an image.

    Attributes:
        text: The prompt, followed by the new words.
        token_ids: New tokens, with the end token if present.
        log_probs: Log-probability of each new token in the model's own distribution, before options change it.
        confidence: Probability that the caption is exactly right, if an adapted model chose it. Otherwise None.
    """

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    confidence: float | None = None

    @property
    def log_prob(self) -> float | None:
        """Log-probability of the new tokens together, or None if no decoder computed it."""
        return sum(self.log_probs) if self.log_probs else None


class GeneratedCaptions(NamedTuple):
    """Captions of each image, best first, and the unit-length embedding of the image, both from one forward pass.

    Sampled captions are ranked by log-probability per token, beams by `GenerationOptions.length_penalty`.
    """

    captions: list[list[Caption]]
    image_embedding: Float[np.ndarray, "B E"]

    def require_no_nan(self) -> None:
        """Check that no log-probability or embedding is NaN.

        Validation during training does not call this method, so that the run continues.

        Raises:
            UserError: If a value is NaN.
        """
        require_no_nan(self.image_embedding)
        for image in self.captions:
            for caption in image:
                require_no_nan(np.array(caption.log_probs))


def generate(
    engine: Engine,
    tokenizer: Tokenizer,
    pixels: UInt8[np.ndarray, "B S S 3"],
    options: GenerationOptions = GREEDY,
    prompt: str = "",
    keys: Sequence[object] | None = None,
) -> GeneratedCaptions:
    """Caption images.

    Args:
        engine: Engine that runs the model.
        tokenizer: Tokenizer with which the model was trained.
        pixels: RGB images, cropped and resized to squares of the model's size by `Preprocess`.
        options: Decoding options.
        prompt: Words that begin every caption.
        keys: Key of each image, which seeds the random numbers for this image. By default, the key is the index of the
            image in `pixels`. With explicit keys, sampled captions do not depend on how images are divided into
            batches.

    Raises:
        UserError: If the prompt, `max_length` or `min_length` does not fit the context, the rules leave no token, no
            image is given, the number of keys differs from the number of images, or beam search finds only NaN.
    """
    captioning = _Captioning(engine, tokenizer, options, prompt, _check_keys(keys, len(pixels)))
    images = engine.encode_images(pixels)
    if options.num_beams > 1:
        found = captioning.search(images)
    else:
        *_, captions = captioning.decode(images)
        found = captions.hypotheses(options.num_captions)
    return captioning.make_result(images, found)


def stream_captions(
    engine: Engine,
    tokenizer: Tokenizer,
    pixels: UInt8[np.ndarray, "B S S 3"],
    options: GenerationOptions = GREEDY,
    prompt: str = "",
    keys: Sequence[object] | None = None,
) -> Generator[list[str], None, GeneratedCaptions]:
    """Caption images as `generate` does, and yield the new text of each caption after each step of decoding.

    The pieces of a caption together form its text, and the first piece begins with the prompt. A piece is empty if the
    caption has already ended, or if a character is still incomplete. The generator's return value is that of
    `generate`.

    The arguments are those of `generate`. The options must be for greedy decoding, or for sampling a single caption per
    image.

    Raises:
        UserError: As for `generate`, and if captions with these options cannot be streamed.
    """
    if options.num_beams > 1 or options.num_captions > 1:
        raise UserError("captions cannot be streamed with num_beams or num_captions above 1; set both to 1")
    captioning = _Captioning(engine, tokenizer, options, prompt, _check_keys(keys, len(pixels)))
    images = engine.encode_images(pixels)
    previous = [""] * len(pixels)
    for captions in captioning.decode(images):
        texts = captioning.texts_so_far(captions)
        yield [text[len(before) :] for text, before in zip(texts, previous, strict=True)]
        previous = texts
    return captioning.make_result(images, captions.hypotheses(1))


def _check_keys(keys: Sequence[object] | None, num_images: int) -> Sequence[object]:
    """Return one key per image, by default its index.

    Raises:
        UserError: If no image is given, or the number of keys differs from the number of images.
    """
    if num_images == 0:
        raise UserError("no image to caption; pass at least one")
    if keys is not None and len(keys) != num_images:
        raise UserError(f"keys: expected one key per image, {num_images}, got {len(keys)}")
    return range(num_images) if keys is None else keys


class _Captioning:
    """One call of `generate` or `stream_captions`, with the options, prompt and engine of the call."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, options: GenerationOptions, prompt: str, keys: Sequence[object]
    ) -> None:
        self.engine, self.tokenizer, self.options, self.keys = engine, tokenizer, options, keys
        self.prompt_ids = [tokenizer.bos_id, *tokenizer.encode(clean_prompt(prompt) if prompt else "")]
        self.max_length = _max_length(options, engine.context_length, len(self.prompt_ids))

    def search(self, images: EncodedImages) -> list[list[Hypothesis]]:
        """Return the best captions of each image from beam search, best first."""
        decoder = self.engine.decoder(
            images,
            num_prompt=len(self.prompt_ids),
            max_tokens=self.max_length,
            num_captions=self.options.num_beams,
            beams=True,
        )
        return BeamSearch(decoder, self._prompts(), self.options, self.max_length, self.tokenizer.eos_id).run()

    def decode(self, images: EncodedImages) -> Iterator[CaptionsInProgress]:
        """Decode greedily or by sampling, and yield all captions after each step; see `decode_independently`."""
        options, max_length, uniforms = self.options, self.max_length, None
        if options.temperature is not None:
            uniforms = uniform_draws(options.seed, self.keys, options.num_captions, max_length)
        decoder = self.engine.decoder(
            images, num_prompt=len(self.prompt_ids), max_tokens=max_length, num_captions=options.num_captions
        )
        return decode_independently(decoder, self._prompts(), options, max_length, self.tokenizer.eos_id, uniforms)

    def make_result(self, images: EncodedImages, found: list[list[Hypothesis]]) -> GeneratedCaptions:
        """Convert hypotheses to the result of the call, which also contains the texts of the captions."""
        captions = [
            [Caption(self.text(ids), ids, log_probs) for ids, log_probs, _ in hypotheses] for hypotheses in found
        ]
        return GeneratedCaptions(captions, images.embedding)

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of the prompt and the new tokens."""
        return self.tokenizer.decode([*self.prompt_ids, *token_ids])

    def texts_so_far(self, captions: CaptionsInProgress) -> list[str]:
        """Return the text of each caption so far, without an incomplete character at the end of an unfinished caption.

        Later tokens only append to this text.
        """
        texts = []
        for ids, length in zip(captions.token_ids.tolist(), captions.lengths.tolist(), strict=True):
            is_whole = length == self.max_length or ids[length - 1] == self.tokenizer.eos_id
            text = self.text(ids[:length])
            texts.append(text if is_whole else text.rstrip(_INCOMPLETE))
        return texts

    def _prompts(self) -> Int[np.ndarray, "B P"]:
        return np.array([self.prompt_ids] * len(self.keys), dtype=np.int64)


_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""Character with which decoding replaces bytes that do not form a complete character."""


def _max_length(options: GenerationOptions, context_length: int, num_prompt_ids: int) -> int:
    """Return the maximum number of new tokens.

    The context must also have space for [BOS], the prompt, [EOS] and [CLS].

    Raises:
        UserError: If the prompt leaves no space for a caption, or `max_length` or `min_length` exceeds this space.
    """
    room = context_length - num_prompt_ids - 2
    if room < 1:
        raise UserError(
            f"the prompt has {num_prompt_ids - 1} tokens; use at most {context_length - 4}, to leave space "
            "for a caption"
        )
    if options.max_length is not None and options.max_length > room:
        raise UserError(
            f"max_length must be at most {room}, got {options.max_length}: of the model's {context_length} tokens, the "
            f"prompt takes {num_prompt_ids - 1}, and special tokens take 3"
        )
    if options.min_length > room:
        raise UserError(
            f"min_length must be at most {room}, got {options.min_length}: of the model's {context_length} tokens, the "
            f"prompt takes {num_prompt_ids - 1}, and special tokens take 3"
        )
    return options.max_length or room


def warn_if_repeated(captions: Sequence[str]) -> None:
    """Log a warning if more than half of at least eight captions are equal, as happens with untrained weights."""
    if len(captions) < 8:
        return
    caption, count = Counter(captions).most_common(1)[0]
    if count > len(captions) / 2:
        log.warning(
            "%d of %d images got the same caption, '%s': check that this is the right checkpoint",
            count,
            len(captions),
            caption,
        )
