"""All caption metrics of a set of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from grr_coca.errors import UserError
from grr_coca.evaluate.bootstrap import Measure
from grr_coca.evaluate.captioning.bleu import bleu, bleu_statistics
from grr_coca.evaluate.captioning.cider import cider
from grr_coca.evaluate.captioning.ngrams import MAX_ORDER
from grr_coca.evaluate.captioning.ptb.tokenizer import tokenize
from grr_coca.evaluate.captioning.rouge import rouge_l


@dataclass(frozen=True)
class CaptionScores:
    """For each image: CIDEr, CIDEr-D and ROUGE-L, N, and the statistics of BLEU, N × 10.

    The scores of the corpus are the means of the first three, and BLEU of the summed statistics.
    """

    cider: np.ndarray
    cider_d: np.ndarray
    rouge_l: np.ndarray
    bleu_statistics: np.ndarray

    def bleu(self) -> np.ndarray:
        """BLEU-1 … BLEU-4 of every single caption, N × 4."""
        return bleu(self.bleu_statistics)

    def measures(self) -> dict[str, Measure]:
        """The corpus's metrics by name, as measures over images."""
        orders = range(1, MAX_ORDER + 1)
        return {
            "CIDEr": Measure.mean(self.cider),
            "CIDEr-D": Measure.mean(self.cider_d),
            **{f"BLEU-{order}": Measure(self.bleu_statistics, partial(_bleu_of, order)) for order in orders},
            "ROUGE-L": Measure.mean(self.rouge_l),
        }

    def corpus(self) -> dict[str, float]:
        """The corpus's scores by name. CIDEr-D is what the literature calls CIDEr."""
        return {name: measure.value() for name, measure in self.measures().items()}


def score_captions(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Score one caption per image against the references of the image. All texts are raw.

    Raises:
        UserError: there is nothing to score, an image has no reference, a text is given in place of a list, or there
            are not as many references as captions.
    """
    if not hypotheses:
        raise UserError("there is no caption to score")
    if isinstance(hypotheses, str):
        raise UserError(f"captions must be a list of texts, not the one text '{hypotheses}'")
    if len(hypotheses) != len(references):
        raise UserError(f"{len(hypotheses)} captions, but references of {len(references)} images; give as many")
    single = next((refs for refs in references if isinstance(refs, str)), None)
    if single is not None:
        raise UserError(f"the references of each image must be a list of texts, not the one text '{single}'")
    bare = next((index for index, refs in enumerate(references) if not refs), None)
    if bare is not None:
        raise UserError(f"image {bare} has no reference caption to score against")
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
    # A token may contain an unbreakable space, as in 1 1/2. In pycocoevalcap, only ROUGE-L counts it as one word.
    return " ".join(tokens).split()


def _bleu_of(order: int, summed: np.ndarray) -> np.ndarray:
    return bleu(summed)[..., order - 1]
