"""Retrieval over a split: the rank of each query's first correct answer, computed in blocks that fit into memory.

Shapes: I images, C captions, E embedding width; B images in a block; N pairs, or N queries and M candidates; Q queries.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def rank_of_first_hit(
    similarity: Float[Tensor, "N M"], relevant: Bool[Tensor, "N M"], tie: float = 0.0
) -> Int[Tensor, " N"]:
    """Count, for each query, the wrong candidates that rank above the best correct candidate or tie with it.

    A candidate ties if its similarity is lower by at most `tie`. A query may have several correct answers: equal
    captions, or several captions of one image. A tie counts against the correct answer, so a collapsed model, which
    assigns the same similarity to all candidates, scores zero.
    """
    best = similarity.masked_fill(~relevant, float("-inf")).amax(dim=1, keepdim=True)
    # `similarity >= best` would be false for NaN, so the correct answers of a diverged model would rank first.
    return (~(similarity < best - tie) & ~relevant).sum(dim=1)


RightAnswers = Literal["own", "equal"]
"""`own`: the correct answers are the image's own captions, as in the literature. `equal`: captions with the same text
are also correct."""

SIMILARITIES_AT_ONCE = 2_000_000
TIE = 1e-6
"""Difference of similarities below which candidates tie. Rounding errors depend on the block, so they must not
determine a rank."""


@dataclass(frozen=True)
class Gallery:
    """A split prepared for retrieval: every image once, in the order of the images' first pairs, and every caption."""

    image: Float[Tensor, "I E"]
    text: Float[Tensor, "C E"]
    image_of: Int[Tensor, " C"]
    caption_ids: Int[Tensor, " C"]


class QueryRanks(NamedTuple):
    """For each query, the number of wrong candidates above the first correct one, and the number of correct answers."""

    rank: Int[Tensor, " Q"]
    num_right: Int[Tensor, " Q"]
    num_candidates: int

    def recall(self, k: int) -> float:
        """Return the fraction of queries with a correct answer among their k best candidates."""
        return (self.rank < k).double().mean().item()

    def chance(self, k: int) -> float:
        """Return the recall at k that is expected if the candidates are in random order."""
        wrong = self.num_candidates - self.num_right.double()
        missed = torch.ones_like(wrong)
        for drawn in range(min(k, self.num_candidates)):
            missed *= (wrong - drawn).clamp(min=0) / (self.num_candidates - drawn)
        return (1 - missed).mean().item()

    def median(self) -> float:
        """Return the median rank of the first correct answer, counted from 1."""
        return self.rank.double().quantile(0.5).item() + 1


class Retrieval(NamedTuple):
    """Ranks in both directions. `image_of` contains the index of each text query's image."""

    text_to_image: QueryRanks
    image_to_text: QueryRanks
    image_of: Int[Tensor, " C"]


def make_gallery(
    image: Float[Tensor, "N E"],
    text: Float[Tensor, "N E"],
    caption_ids: Int[Tensor, " N"],
    image_ids: Int[Tensor, " N"],
) -> Gallery:
    """Build a gallery from pairs. If several pairs have the same image id, the image of the first pair is used."""
    first, image_of = first_rows(image_ids)
    return Gallery(image[first], text, image_of, caption_ids)


def first_rows(ids: Int[Tensor, " N"]) -> tuple[Int[Tensor, " I"], Int[Tensor, " N"]]:
    """Deduplicate ids. Return the first row of each distinct id, in ascending order, and for each row the index of its
    id in that list."""
    _, inverse = torch.unique(ids, return_inverse=True)
    rows = torch.arange(len(ids))
    first = torch.full((int(inverse.max()) + 1,), len(ids)).scatter_reduce(0, inverse, rows, "amin")
    order = first.argsort()
    return first[order], order.argsort()[inverse]


def retrieve(gallery: Gallery, right: RightAnswers) -> Retrieval:
    """Return the rank of the first correct answer for every caption and every image.

    A tie counts against the correct answer.
    """
    _, captions = torch.unique(gallery.caption_ids, return_inverse=True)
    num_texts = len(gallery.text)
    step = max(1, SIMILARITIES_AT_ONCE // num_texts)
    blocks = [slice(start, start + step) for start in range(0, len(gallery.image), step)]
    best = torch.full((num_texts,), float("-inf"))
    text_right = torch.zeros(num_texts, dtype=torch.long)
    image_rank, image_right = [], []
    for block in blocks:
        similarity, relevant = _block(gallery, captions, block, right)
        best = torch.maximum(best, similarity.masked_fill(~relevant, float("-inf")).amax(dim=0))
        text_right += relevant.sum(dim=0)
        image_rank.append(rank_of_first_hit(similarity, relevant, TIE))
        image_right.append(relevant.sum(dim=1))
    text_rank = torch.zeros(num_texts, dtype=torch.long)
    for block in blocks:  # a second pass, because the best correct image of each text is known only now
        similarity, relevant = _block(gallery, captions, block, right)
        text_rank += (~(similarity < best - TIE) & ~relevant).sum(dim=0)
    return Retrieval(
        QueryRanks(text_rank, text_right, len(gallery.image)),
        QueryRanks(torch.cat(image_rank), torch.cat(image_right), num_texts),
        gallery.image_of,
    )


def _block(
    gallery: Gallery, captions: Int[Tensor, " C"], block: slice, right: RightAnswers
) -> tuple[Float[Tensor, "B C"], Bool[Tensor, "B C"]]:
    similarity = gallery.image[block] @ gallery.text.T
    row = gallery.image_of - block.start
    mine = (row >= 0) & (row < len(similarity))
    if right == "own":
        relevant = torch.zeros_like(similarity, dtype=torch.bool)
        relevant[row[mine], mine.nonzero().squeeze(1)] = True
        return similarity, relevant
    says = torch.zeros(len(similarity), int(captions.max()) + 1, dtype=torch.bool)
    says[row[mine], captions[mine]] = True
    return similarity, says[:, captions]
