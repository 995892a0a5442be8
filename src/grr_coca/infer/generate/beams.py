"""Beam search.

Shapes: B images, K beams of an image, T new tokens so far, P prompt tokens, C candidates, R = B · K rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca.common.shapes import Float, Int
from grr_coca.infer.engine.base import Decoder
from grr_coca.infer.generate.options import GenerationOptions
from grr_coca.infer.generate.rules import NAN_RESULTS, NOTHING_LEFT, Hypothesis, apply_rules


class _Pool:
    """The finished captions of an image, at most the `size` best by summed score / length ** length_penalty."""

    def __init__(self, size: int, length_penalty: float) -> None:
        self.size = size
        self.length_penalty = length_penalty
        self.hypotheses: list[Hypothesis] = []

    def add(self, token_ids: Sequence[int], log_probs: Sequence[float], summed: float) -> None:
        """Add a finished caption. If the pool then has more than `size` captions, drop the worst."""
        score = self._normalize_score(summed, len(token_ids))
        self.hypotheses.append(Hypothesis(tuple(token_ids), tuple(log_probs), score))
        self.hypotheses = sorted(self.hypotheses, key=lambda hypothesis: -hypothesis.score)[: self.size]

    def can_improve(self, summed: float, next_length: int, max_length: int) -> bool:
        """Return whether a continuation of an unfinished caption can still be among the best.

        Log-probabilities are negative, so no continuation has a greater sum of scores. The bound assumes the
        most favourable length.

        Args:
            summed: Sum of the caption's log-probabilities after the rules.
            next_length: Length of the caption with one more token.
            max_length: Maximum length of a caption.
        """
        if len(self.hypotheses) < self.size:
            return summed > -float("inf")
        best = max(self._normalize_score(summed, next_length), self._normalize_score(summed, max_length))
        return best > self.hypotheses[-1].score

    def _normalize_score(self, summed: float, length: int) -> float:
        return summed / length**self.length_penalty


class Beams(NamedTuple):
    """Unfinished captions. `scores` are sums of log-probabilities after the rules; unused beams have -inf."""

    token_ids: Int[np.ndarray, "B K T"]
    log_probs: Float[np.ndarray, "B K T"]
    scores: Float[np.ndarray, "B K"]


class Choice(NamedTuple):
    """Continuations of beams, best first.

    The fields are the beam that is continued, the new token, the log-probability of the token in the model's own
    distribution, and the new score.
    """

    parents: Int[np.ndarray, "B C"]
    token_ids: Int[np.ndarray, "B C"]
    log_probs: Float[np.ndarray, "B C"]
    scores: Float[np.ndarray, "B C"]

    def take(self, columns: Int[np.ndarray, "B K"]) -> "Choice":
        """Select the continuations in the given columns."""
        return Choice(*(np.take_along_axis(field, columns, axis=1) for field in self))


class BeamSearch:
    """One beam search for all images of a batch together. The beams of an image do not depend on the other images.

    Args:
        decoder: Decoder with empty caches.
        prompt_ids: Tokens that begin every caption of an image.
        options: Decoding options.
        max_length: Maximum number of new tokens.
        eos_id: Id of the end token.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompt_ids: Int[np.ndarray, "B P"],
        options: GenerationOptions,
        max_length: int,
        eos_id: int,
    ) -> None:
        self.decoder, self.options, self.max_length, self.eos_id = decoder, options, max_length, eos_id
        self.num_beams = options.num_beams
        num_images = len(prompt_ids)
        self.logits = decoder.step(prompt_ids).repeat_rows(self.num_beams)
        self.rows = np.arange(num_images).repeat(self.num_beams)
        """For each beam, the decoder row that has read all tokens of the beam except the last token."""
        # All beams are initially equal, so one of them suffices.
        first = np.arange(self.num_beams) == 0
        self.beams = Beams(
            token_ids=np.zeros((num_images, self.num_beams, 0), dtype=np.int64),
            log_probs=np.zeros((num_images, self.num_beams, 0), dtype=np.float32),
            scores=np.where(first, np.float32(0), np.float32(-np.inf))[None].repeat(num_images, axis=0),
        )
        self.pools = [_Pool(self.num_beams, options.length_penalty) for _ in range(num_images)]
        self.running = list(range(num_images))
        self.has_nan = False

    def run(self) -> list[list[Hypothesis]]:
        """Search, and return the best `num_captions` captions of each image, best first. Call this method only once.

        Raises:
            UserError: If an image has fewer captions, because the rules leave no token or the model computes NaN.
        """
        for step in range(self.max_length):
            self._advance(last=step + 1 == self.max_length)
            if step + 1 == self.max_length:
                break
            self._stop_images()
            if not self.running:
                break
            self.decoder.reorder(self.rows)
            self.rows = np.arange(len(self.rows))
            self.logits = self.decoder.step(self.beams.token_ids[..., -1].reshape(-1, 1))
        return [self._best(pool) for pool in self.pools]

    def _advance(self, last: bool) -> None:
        """Choose the next tokens, and add finished captions to the pools. At the last step, add all captions."""
        choice = self._best_continuations()
        self._collect(choice)
        continuing = (choice.token_ids == self.eos_id).argsort(axis=1, kind="stable")[:, : self.num_beams]
        self._extend(choice.take(continuing))
        if last:
            self._collect_unfinished()

    def _best_continuations(self) -> Choice:
        """Return the 2 K best continuations of the K beams of each image, best first.

        Each beam has at most one continuation that ends its caption, so at least K continuations do not end a caption.
        """
        beams = self.beams
        token_ids = np.concatenate(beams.token_ids)  # R T
        allowed = apply_rules(self.logits, token_ids, self.options, self.eos_id)
        after_rules, ids = allowed.largest(2 * self.num_beams)  # R C
        own = after_rules if allowed is self.logits else self.logits.log_probs_of(ids)
        self.has_nan |= bool(np.isnan(own).any())  # checked here, because an image with only NaN leaves the batch
        num_images = len(beams.scores)
        scores = after_rules.reshape(num_images, self.num_beams, -1) + beams.scores[..., None]  # B K C
        parents = np.arange(self.num_beams).repeat(ids.shape[1])[None].repeat(num_images, axis=0)
        candidates = Choice(parents, *(field.reshape(num_images, -1) for field in (ids, own, scores)))
        return candidates.take((-candidates.scores).argsort(axis=1, kind="stable")[:, : 2 * self.num_beams])

    def _collect(self, choice: Choice) -> None:
        """Add the captions that end with one of the K best continuations of their image to the pools."""
        ends = (choice.token_ids == self.eos_id) & np.isfinite(choice.scores)
        for image, rank in np.argwhere(ends[:, : self.num_beams]).tolist():
            parent = choice.parents[image, rank]
            ids = [*self.beams.token_ids[image, parent].tolist(), self.eos_id]
            log_probs = [*self.beams.log_probs[image, parent].tolist(), float(choice.log_probs[image, rank])]
            self.pools[self.running[image]].add(ids, log_probs, float(choice.scores[image, rank]))

    def _extend(self, choice: Choice) -> None:
        """Replace the beams by the chosen continuations, which have one more token."""
        beams, images = self.beams, np.arange(len(choice.parents))[:, None]
        parents = images, choice.parents
        self.beams = Beams(
            token_ids=np.concatenate([beams.token_ids[parents], choice.token_ids[..., None]], axis=2),
            log_probs=np.concatenate([beams.log_probs[parents], choice.log_probs[..., None]], axis=2),
            scores=choice.scores,
        )
        self.rows = self.rows.reshape(-1, self.num_beams)[parents].ravel()

    def _collect_unfinished(self) -> None:
        """Add unfinished captions that have reached the maximum length to the pools."""
        for image, beam in np.argwhere(np.isfinite(self.beams.scores)).tolist():
            ids, log_probs, scores = (field[image, beam] for field in self.beams)
            self.pools[self.running[image]].add(ids.tolist(), log_probs.tolist(), float(scores))

    def _stop_images(self) -> None:
        """Remove images from the batch if their pool can no longer improve."""
        length, best = self.beams.token_ids.shape[2], self.beams.scores.max(axis=1).tolist()
        pools = (self.pools[image] for image in self.running)
        continuing = np.array(
            [pool.can_improve(score, length + 1, self.max_length) for pool, score in zip(pools, best, strict=True)]
        )
        self.running = [image for image, goes_on in zip(self.running, continuing, strict=True) if goes_on]
        self.beams = Beams(*(field[continuing] for field in self.beams))
        self.rows = self.rows.reshape(-1, self.num_beams)[continuing].ravel()

    def _best(self, pool: _Pool) -> list[Hypothesis]:
        if len(pool.hypotheses) < self.options.num_captions:
            raise UserError(NAN_RESULTS if self.has_nan else NOTHING_LEFT)
        return pool.hypotheses[: self.options.num_captions]
