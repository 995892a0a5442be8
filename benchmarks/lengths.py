"""How long captions are, in tokens of CLIP's vocabulary: [BOS], words, [EOS]; [CLS] comes on top in every model.

A batch holds the lengths at equally spaced quantiles of a distribution, so that even one of 32 has its mean and its
tail; what is drawn is their order.
"""

import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import NormalDist

CONTEXT = 76
"""Tokens to which captions are cut, and to which open_clip pads them."""
TOKENS_PER_WORD = 1.25
"""Of English captions under CLIP's vocabulary."""
DATASETS = Path(__file__).parents[1] / "datasets"
CORPORA = ("pictograms", "health", "clipart", "glyphs")
PER_CORPUS = 800

# Words: mean 20.2 and standard deviation 16.3, the figures of CC12M's paper (arXiv 2102.08981), as a log-normal.
CC12M_SIGMA = math.sqrt(math.log(1 + (16.3 / 20.2) ** 2))
CC12M_MU = math.log(20.2) - CC12M_SIGMA**2 / 2
# Annotators of COCO were asked for eight words at least; mean 10.5, standard deviation 2.5.
COCO_LEAST, COCO_MORE = 8, 2.5


def full(_: float) -> int:
    """The worst case."""
    return CONTEXT


def cc12m(quantile: float) -> int:
    """Captions like those of Conceptual 12M."""
    return _tokens(math.exp(CC12M_MU + CC12M_SIGMA * NormalDist().inv_cdf(quantile)))


def coco(quantile: float) -> int:
    """Captions like those of COCO."""
    return _tokens(COCO_LEAST - COCO_MORE * math.log(1 - quantile))


def demo(quantile: float) -> int:
    """The captions of the four corpora that come with the code, each with an equal share."""
    lengths = _demo_lengths()
    return lengths[int(quantile * len(lengths))]


DISTRIBUTIONS: dict[str, Callable[[float], int]] = {"full": full, "cc12m": cc12m, "coco": coco, "demo": demo}


def batch_lengths(distribution: str, size: int, seed: int, offset: float = 0.5) -> list[int]:
    """The lengths of a batch, in an order drawn from the seed; another `offset` (0 to 1) gives other quantiles."""
    quantile = DISTRIBUTIONS[distribution]
    lengths = [quantile((i + offset) / size) for i in range(size)]
    random.Random(seed).shuffle(lengths)
    return lengths


def _tokens(words: float) -> int:
    return min(CONTEXT, round(TOKENS_PER_WORD * max(1, round(words))) + 2)


@cache
def _demo_lengths() -> list[int]:
    from grr_coca.data.sources.open import open_source
    from grr_coca.data.tokenizer import clip_bpe

    tokenizer, lengths = clip_bpe(), []
    for corpus in CORPORA:
        source = open_source(str(DATASETS / corpus / "train-*.tar"))
        chosen = random.Random(0).sample(range(len(source)), PER_CORPUS)
        lengths += [min(CONTEXT, len(tokenizer.encode(source.caption(i))) + 2) for i in chosen]
    return sorted(lengths)
