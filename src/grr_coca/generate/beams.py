"""Beam search, also in groups that avoid each other's tokens (diverse beam search, arXiv 1610.02424).

Shapes: B images, K beams of an image (G groups of N neighbouring beams), T new tokens so far, P prompt tokens, S slots
of the caches, C candidates, V vocabulary, R = B · K rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grr_coca.errors import UserError
from grr_coca.generate.decoder import CachedDecoder, Hypothesis
from grr_coca.generate.options import GenerationOptions
from grr_coca.generate.sampling import NAN_RESULTS, NOTHING_LEFT, apply_rules, largest


class _Pool:
    """The best finished captions of a group of beams, at most `size`, by summed score / length ** length_penalty."""

    def __init__(self, size: int, length_penalty: float) -> None:
        self.size = size
        self.length_penalty = length_penalty
        self.hypotheses: list[Hypothesis] = []

    def add(self, token_ids: Sequence[int], log_probs: Sequence[float], summed: float) -> None:
        """Add a finished caption. If there are too many, drop the worst."""
        score = self._normalized(summed, len(token_ids))
        self.hypotheses.append(Hypothesis(tuple(token_ids), tuple(log_probs), score))
        self.hypotheses = sorted(self.hypotheses, key=lambda hypothesis: -hypothesis.score)[: self.size]

    def can_improve(self, summed: float, next_length: int, max_length: int) -> bool:
        """True if a continuation of a caption with this sum of scores may still be among the best.

        Log-probabilities are negative, so no continuation has a greater sum. The bound divides the sum by the most
        favourable length.
        """
        if len(self.hypotheses) < self.size:
            return summed > -float("inf")
        best = max(self._normalized(summed, next_length), self._normalized(summed, max_length))
        return best > self.hypotheses[-1].score

    def _normalized(self, summed: float, length: int) -> float:
        return summed / length**self.length_penalty


class Beams(NamedTuple):
    """Captions that have not ended. `scores`: sums of log-probabilities after the rules; -inf marks an unused beam."""

    token_ids: Int[Tensor, "B K T"]
    log_probs: Float[Tensor, "B K T"]
    scores: Float[Tensor, "B K"]
    visible: Bool[Tensor, "B K S"]
    """Which slots of the image's line in the caches hold the earlier tokens of each beam."""


class Choice(NamedTuple):
    """The best continuations of a group, best first: the beam that is continued, the token, and the new score."""

    parents: Int[Tensor, "B C"]
    token_ids: Int[Tensor, "B C"]
    scores: Float[Tensor, "B C"]

    def take(self, columns: Int[Tensor, "B N"]) -> "Choice":
        """The continuations at these columns."""
        return Choice(*(field.gather(1, columns) for field in self))


class BeamSearch:
    """Beam search for all images of a batch together. The beams of one image do not depend on the other images."""

    def __init__(
        self,
        decoder: CachedDecoder,
        prompt_ids: Int[Tensor, " P"],
        options: GenerationOptions,
        max_length: int,
        eos_id: int,
    ) -> None:
        self.decoder, self.options, self.max_length, self.eos_id = decoder, options, max_length, eos_id
        self.num_beams, self.num_groups = options.num_beams, options.num_beam_groups
        self.group_size = self.num_beams // self.num_groups
        num_images, device = decoder.num_images, prompt_ids.device
        self.logits = decoder.step(prompt_ids.expand(num_images, -1)).repeat_interleave(self.num_beams, dim=0)
        # All beams are equal at the start, so one beam of each group is enough.
        first = torch.arange(self.num_beams, device=device) % self.group_size == 0
        self.beams = Beams(
            token_ids=torch.zeros(num_images, self.num_beams, 0, dtype=torch.long, device=device),
            log_probs=torch.zeros(num_images, self.num_beams, 0, device=device),
            scores=torch.where(first, 0.0, -torch.inf).expand(num_images, -1),
            visible=torch.ones(num_images, self.num_beams, len(prompt_ids), dtype=torch.bool, device=device),
        )
        self.pools = [
            [_Pool(self.group_size, options.length_penalty) for _ in range(self.num_groups)] for _ in range(num_images)
        ]
        self.running = list(range(num_images))

    def run(self) -> list[list[Hypothesis]]:
        """The best `num_captions` captions of each image, best first."""
        for step in range(self.max_length):
            self._advance(last=step + 1 == self.max_length)
            if step + 1 == self.max_length:
                break
            self._stop_groups()
            if not self.running:
                break
            self.logits = self.decoder.step(self.beams.token_ids[..., -1].reshape(-1, 1), self.beams.visible[:, None])
        return [self._best(pools) for pools in self.pools]

    def _advance(self, last: bool) -> None:
        """Choose the next tokens, group by group. Captions that end go to the pools. At the last step all captions
        do."""
        beams, num_vocab = self.beams, self.logits.shape[-1]
        log_probs = self.logits.log_softmax(dim=-1)
        allowed = apply_rules(log_probs, beams.token_ids.flatten(0, 1), self.options, self.eos_id)
        # The penalty can spoil at most as many tokens as there are beams. With that many more candidates, the best
        # continuations are certainly among them.
        scores, ids = largest(allowed, min(2 * self.group_size + self.num_beams, num_vocab))
        scores = scores.unflatten(0, (-1, self.num_beams)) + beams.scores[..., None]  # B K C
        ids = ids.view_as(scores)
        taken = scores.new_zeros(len(scores), num_vocab)  # how many beams of earlier groups took each token
        chosen = []
        for group in range(self.num_groups):
            choice = self._best_of_group(scores, ids, taken, group)
            self._collect(choice, log_probs, group)
            going_on = (choice.token_ids == self.eos_id).int().argsort(dim=1, stable=True)[:, : self.group_size]
            choice = choice.take(going_on)
            taken.scatter_add_(1, choice.token_ids, choice.scores.isfinite().type_as(taken))
            chosen.append(choice)
        self._extend(Choice(*(torch.cat(parts, dim=1) for parts in zip(*chosen, strict=True))), log_probs)
        if last:
            self._collect_unfinished()

    def _best_of_group(
        self, scores: Float[Tensor, "B K C"], ids: Int[Tensor, "B K C"], taken: Float[Tensor, "B V"], group: int
    ) -> Choice:
        """The 2 N best continuations of a group of N beams. At most one of each beam ends its caption, so at least N do
        not."""
        start, num_candidates = group * self.group_size, scores.shape[-1]
        scores, ids = (field[:, start : start + self.group_size].flatten(1) for field in (scores, ids))
        ranked = scores
        if self.options.diversity_penalty and group:
            ranked = scores - self.options.diversity_penalty * taken.gather(1, ids)
        best = ranked.topk(min(2 * self.group_size, ranked.shape[1])).indices
        return Choice(best // num_candidates + start, ids.gather(1, best), scores.gather(1, best))

    def _collect(self, choice: Choice, log_probs: Float[Tensor, "R V"], group: int) -> None:
        """Add those of the N best continuations that end their caption to the pool of the group."""
        ends = (choice.token_ids == self.eos_id) & choice.scores.isfinite()
        for image, rank in ends[:, : self.group_size].nonzero().tolist():
            parent = int(choice.parents[image, rank])
            ids = [*self.beams.token_ids[image, parent].tolist(), self.eos_id]
            end = float(log_probs[image * self.num_beams + parent, self.eos_id])
            probs = [*self.beams.log_probs[image, parent].tolist(), end]
            self.pools[self.running[image]][group].add(ids, probs, float(choice.scores[image, rank]))

    def _extend(self, choice: Choice, log_probs: Float[Tensor, "R V"]) -> None:
        """Replace each beam by its parent with one more token. Keys and values stay where they are."""
        beams, parents = self.beams, choice.parents
        images = torch.arange(len(parents), device=parents.device)[:, None]
        own = log_probs.unflatten(0, (-1, self.num_beams))[images, parents, choice.token_ids]
        new_slots = torch.eye(self.num_beams, dtype=torch.bool, device=parents.device).expand(len(parents), -1, -1)
        self.beams = Beams(
            token_ids=torch.cat([beams.token_ids[images, parents], choice.token_ids[..., None]], dim=2),
            log_probs=torch.cat([beams.log_probs[images, parents], own[..., None]], dim=2),
            scores=choice.scores,
            visible=torch.cat([beams.visible[images, parents], new_slots], dim=2),
        )

    def _collect_unfinished(self) -> None:
        """Add the captions that have not ended to the pools, because they have reached the maximum length."""
        for image, beam in self.beams.scores.isfinite().nonzero().tolist():
            ids, log_probs, scores, _ = (field[image, beam] for field in self.beams)
            pool = self.pools[self.running[image]][beam // self.group_size]
            pool.add(ids.tolist(), log_probs.tolist(), float(scores))

    def _stop_groups(self) -> None:
        """Stop the groups whose pool cannot improve. An image leaves the batch when all of its groups have stopped."""
        scores = self.beams.scores.unflatten(1, (self.num_groups, -1))  # B G N
        length = self.beams.token_ids.shape[2]
        best_of = scores.amax(dim=2).tolist()  # waits for the device once
        can_improve = [
            [pool.can_improve(best, length + 1, self.max_length) for pool, best in zip(pools, row, strict=True)]
            for pools, row in zip((self.pools[image] for image in self.running), best_of, strict=True)
        ]
        scores = scores.where(torch.tensor(can_improve, device=scores.device)[..., None], -torch.inf)
        self.beams = self.beams._replace(scores=scores.flatten(1))
        going_on = scores.isfinite().flatten(1).any(dim=1)
        if going_on.all():
            return
        stay = going_on.nonzero()[:, 0]
        self.running = [self.running[i] for i in stay.tolist()]
        self.beams = Beams(*(field[stay] for field in self.beams))
        if self.running:
            self.decoder.keep(stay, stay)

    def _best(self, pools: list[_Pool]) -> list[Hypothesis]:
        """The best captions of all groups. A caption that several groups found is repeated only if there are too few
        others."""
        found = sorted((h for pool in pools for h in pool.hypotheses), key=lambda hypothesis: -hypothesis.score)
        if len(found) < self.options.num_captions:
            raise UserError(NAN_RESULTS if self.logits.isnan().any() else NOTHING_LEFT)
        first: dict[tuple[int, ...], Hypothesis] = {}
        repeats = [h for h in found if first.setdefault(h.token_ids, h) is not h]
        best = [*first.values(), *repeats][: self.options.num_captions]
        return sorted(best, key=lambda hypothesis: -hypothesis.score)
