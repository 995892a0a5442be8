"""Caption metrics CIDEr, CIDEr-D, BLEU-1 … BLEU-4 and ROUGE-L, with the same results as pycocoevalcap.

- CIDEr (Vedantam et al., arXiv 1411.5726) is the mean cosine between the tf-idf vectors of a caption and of its
  references, over n-grams with n = 1 … 4 tokens. CIDEr-D also clips repeated n-grams, and penalizes a difference in
  length (σ = 6). pycocoevalcap, the COCO server and thus the literature call CIDEr-D "CIDEr". As in these programs,
  both are multiplied by 10, and words are not stemmed.
- BLEU (Papineni et al., 2002) is computed for a corpus, with the closest reference length.
- ROUGE-L (Lin, 2004) is based on the longest common subsequence of a caption and its references.

Shapes: N captions.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from grr_coca.common.errors import UserError, count_of
from grr_coca.evaluate.intervals import Measure
from grr_coca.evaluate.ptb import tokenize

# --- n-grams

MAX_ORDER = 4
Ngram = tuple[str, ...]
Tokens = Sequence[str]


def _count_ngrams(tokens: Sequence[str]) -> list[Counter[Ngram]]:
    """Count how often each run of n tokens occurs, for n = 1 … 4."""
    return [
        Counter(tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1))
        for order in range(1, MAX_ORDER + 1)
    ]


# --- BLEU

TINY, SMALL = 1e-15, 1e-9
"""Numbers that pycocoevalcap adds to numerators and denominators, to avoid division by zero."""


def bleu_statistics(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """Return the counts from which BLEU is computed, N × 10.

    The columns are the numbers of the caption's n-grams that match a reference (n = 1 … 4), the numbers of all its
    n-grams (n = 1 … 4), its length in tokens, and the length of the reference that is closest to this length, or the
    shorter length if two are equally close. The score of a corpus depends only on the sums of these counts.
    """
    rows = [_bleu_counts(hypothesis, refs) for hypothesis, refs in zip(hypotheses, references, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(-1, 2 * MAX_ORDER + 2)


def bleu(sums: np.ndarray) -> np.ndarray:
    """Return BLEU-1 … BLEU-4 from the counts of one caption, or from their sums over a corpus.

    Counts with the shape … × 10 yield scores with the shape … × 4.
    """
    matches, guesses = sums[..., :MAX_ORDER], sums[..., MAX_ORDER : 2 * MAX_ORDER]
    length, reference = sums[..., -2:-1], sums[..., -1:]
    precisions = (matches + TINY) / (guesses + SMALL)
    orders = np.arange(1, MAX_ORDER + 1)
    ratio = (length + TINY) / (reference + SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return np.cumprod(precisions, axis=-1) ** (1 / orders) * brevity


def _bleu_counts(hypothesis: Tokens, references: Sequence[Tokens]) -> list[int]:
    counts = _count_ngrams(hypothesis)
    allowed = [_largest_counts(order) for order in zip(*map(_count_ngrams, references), strict=True)]
    matches = [sum((mine & theirs).values()) for mine, theirs in zip(counts, allowed, strict=True)]
    guesses = [max(0, len(hypothesis) - order) for order in range(MAX_ORDER)]
    closest = min((abs(len(reference) - len(hypothesis)), len(reference)) for reference in references)[1]
    return [*matches, *guesses, len(hypothesis), closest]


def _largest_counts(counters: Sequence[Counter[Ngram]]) -> Counter[Ngram]:
    largest: Counter[Ngram] = Counter()
    for counter in counters:
        largest |= counter
    return largest


# --- CIDEr

SIGMA = 6.0
SCALE = 10.0


class CiderScores(NamedTuple):
    """CIDEr and CIDEr-D of N captions, N each. The scores of the corpus are the means over the captions."""

    cider: np.ndarray
    cider_d: np.ndarray


class _Vector(NamedTuple):
    weights: list[dict[Ngram, float]]
    norms: list[float]
    num_bigrams: int


def cider(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> CiderScores:
    """Compute CIDEr and CIDEr-D of each caption from its tokens and the tokens of its image's references.

    The document frequency of an n-gram is the number of images with the n-gram in any of their references.
    """
    counts = [[_count_ngrams(reference) for reference in refs] for refs in references]
    frequency = _document_frequency(counts)
    log_images = math.log(len(references)) if references else 0.0
    plain, clipped = [], []
    for hypothesis, refs in zip(hypotheses, counts, strict=True):
        mine = _vector(_count_ngrams(hypothesis), frequency, log_images)
        pairs = [_similarity(mine, _vector(reference, frequency, log_images)) for reference in refs]
        plain.append(SCALE * sum(pair[0] for pair in pairs) / len(pairs))
        clipped.append(SCALE * sum(pair[1] for pair in pairs) / len(pairs))
    return CiderScores(np.array(plain), np.array(clipped))


def _document_frequency(counts: Sequence[Sequence[list[Counter[Ngram]]]]) -> Counter[Ngram]:
    frequency: Counter[Ngram] = Counter()
    for refs in counts:
        frequency.update({ngram for reference in refs for order in reference for ngram in order})
    return frequency


def _vector(counts: list[Counter[Ngram]], frequency: Counter[Ngram], log_images: float) -> _Vector:
    weights = [
        {ngram: count * (log_images - math.log(max(1, frequency[ngram]))) for ngram, count in order.items()}
        for order in counts
    ]
    norms = [math.sqrt(sum(weight * weight for weight in order.values())) for order in weights]
    return _Vector(weights, norms, counts[1].total())


def _similarity(mine: _Vector, other: _Vector) -> tuple[float, float]:
    # pycocoevalcap measures lengths in bigrams, so a caption of one token is as long as an empty caption.
    penalty = math.exp(-((mine.num_bigrams - other.num_bigrams) ** 2) / (2 * SIGMA**2))
    plain = clipped = 0.0
    for order, my_weights in enumerate(mine.weights):
        norm = mine.norms[order] * other.norms[order]
        if not norm:
            continue
        theirs = other.weights[order]
        shared = [(weight, theirs[ngram]) for ngram, weight in my_weights.items() if ngram in theirs]
        plain += sum(weight * their for weight, their in shared) / norm
        clipped += sum(min(weight, their) * their for weight, their in shared) / norm * penalty
    return plain / len(mine.weights), clipped / len(mine.weights)


# --- ROUGE-L

BETA = 1.2
"""Weight of recall relative to precision in the F-measure, as in pycocoevalcap."""


def rouge_l(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """Return ROUGE-L of N captions: the F-measure of each caption's best precision and best recall over its
    references."""
    return np.array([_rouge_l_score(mine, refs) for mine, refs in zip(hypotheses, references, strict=True)])


def _rouge_l_score(hypothesis: Tokens, references: Sequence[Tokens]) -> float:
    # pycocoevalcap treats an empty caption as one empty token, which matches an empty reference.
    mine = hypothesis or [""]
    common = [(lcs_length(mine, reference or [""]), len(reference) or 1) for reference in references]
    precision = max(length for length, _ in common) / len(mine)
    recall = max(length / total for length, total in common)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def lcs_length(first: Tokens, second: Tokens) -> int:
    """Return the length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for token in first:
        diagonal = 0
        for column, other in enumerate(second, start=1):
            above = row[column]
            row[column] = diagonal + 1 if token == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]


# --- All metrics


@dataclass(frozen=True)
class CaptionScores:
    """Scores of one caption per image, in the order of the images.

    For a corpus, the first three scores are averaged, and BLEU is computed from the summed counts.

    Attributes:
        cider: CIDEr, N.
        cider_d: CIDEr-D, N.
        rouge_l: ROUGE-L, N.
        bleu_statistics: Counts from which BLEU is computed, N × 10.
    """

    cider: np.ndarray
    cider_d: np.ndarray
    rouge_l: np.ndarray
    bleu_statistics: np.ndarray

    def bleu(self) -> np.ndarray:
        """Return BLEU-1 … BLEU-4 of each caption, N × 4."""
        return bleu(self.bleu_statistics)

    def measures(self) -> dict[str, Measure]:
        """Return the corpus metrics by name, each as a `Measure`, which provides confidence intervals."""
        orders = range(1, MAX_ORDER + 1)
        return {
            "CIDEr": Measure.mean(self.cider),
            "CIDEr-D": Measure.mean(self.cider_d),
            **{f"BLEU-{order}": Measure(self.bleu_statistics, partial(_bleu_of, order)) for order in orders},
            "ROUGE-L": Measure.mean(self.rouge_l),
        }

    def corpus(self) -> dict[str, float]:
        """Return the corpus scores by name. The literature calls CIDEr-D "CIDEr"."""
        return {name: measure.value() for name, measure in self.measures().items()}


def score_captions(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Score one caption per image against the references of the image.

    Args:
        hypotheses: One caption per image, as raw text, which is tokenized here.
        references: One or more reference captions for each image, as raw text.

    Raises:
        UserError: If no caption is given, an image has no reference, a text is given in place of a list, or the number
            of captions differs from the number of reference lists.
    """
    if not hypotheses:
        raise UserError("no caption to score; pass at least one")
    if isinstance(hypotheses, str):
        raise UserError(f"captions must be a list of texts, got the text '{hypotheses}'")
    if len(hypotheses) != len(references):
        raise UserError(
            f"expected one list of references per caption, got {count_of(len(hypotheses), 'caption')} and "
            f"{count_of(len(references), 'list')} of references; pass the same number of both"
        )
    single = next((refs for refs in references if isinstance(refs, str)), None)
    if single is not None:
        raise UserError(f"the references of each image must be a list of texts, got the text '{single}'")
    bare = next((index for index, refs in enumerate(references) if not refs), None)
    if bare is not None:
        raise UserError(f"image {bare} has no reference caption; add one, or omit the image")
    tokens = [tokenize(hypothesis) for hypothesis in hypotheses]
    token_references = [[tokenize(reference) for reference in refs] for refs in references]
    words = [_words(row) for row in tokens]
    word_references = [[_words(row) for row in refs] for refs in token_references]
    scores = cider(words, word_references)
    return CaptionScores(
        cider=scores.cider,
        cider_d=scores.cider_d,
        rouge_l=rouge_l(tokens, token_references),
        bleu_statistics=bleu_statistics(words, word_references),
    )


def _words(tokens: Sequence[str]) -> list[str]:
    # A token may contain a no-break space, as in 1 1/2. In pycocoevalcap, only ROUGE-L counts such a token as one word.
    return " ".join(tokens).split()


def _bleu_of(order: int, summed: np.ndarray) -> np.ndarray:
    return bleu(summed)[..., order - 1]
