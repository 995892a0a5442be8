"""Caption sets to score: real captions of the corpora, and made ones; and what the reference says of them."""

import random
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from support import DATASETS

from grr_coca.data.sources.shards import TarShards

HERE = Path(__file__).parent
JAVA_TABLE = HERE / "ptb_java.tsv"
"""Input and output of Stanford's tokenizer, line by line."""
SCORES = HERE / "pycocoevalcap.npz"
NUM_REAL, NUM_MADE = 2000, 500
WORDS = [
    "a", "the", "two", "man's", "dog", "cats", "sitting", "on", "in", "front", "of", "red", "1/2", "U.S.", "don't",
    "isn't", "t-shirt", "10", ".", ",", "!!", "-", "(small)",
]  # fmt: skip
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""What pycocoevalcap removes from the tokenizer's output."""


class CaptionSet(NamedTuple):
    """One caption to score and the references of its image."""

    hypothesis: str
    references: list[str]


@cache
def real_captions() -> tuple[str, ...]:
    """All captions of the corpora, sorted, so that those that share words are neighbours."""
    captions: set[str] = set()
    for path in sorted(DATASETS.glob("*/*.tar")):
        shard = TarShards([path])
        captions.update(" ".join(shard.caption(index).split()) for index in range(len(shard)))
    return tuple(sorted(captions))


def real_sets() -> list[CaptionSet]:
    """A caption against one to five of its neighbours."""
    captions = real_captions()
    return [CaptionSet(captions[i], list(captions[i + 1 : i + 2 + i % 5])) for i in range(NUM_REAL)]


def made_sets() -> list[CaptionSet]:
    """Captions of drawn words, some empty, some equal to a reference."""
    rng = random.Random(0)

    def caption() -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.choice([0, 1, 2, 5, 9, 14])))

    sets = [CaptionSet(caption(), [caption() for _ in range(rng.randint(1, 6))]) for _ in range(NUM_MADE)]
    return [CaptionSet(s.references[0], s.references) if i % 3 == 0 else s for i, s in enumerate(sets)]


SETS = {"real": real_sets, "made": made_sets}
"""What makes the sets, each a corpus, by name."""


def java_table() -> list[tuple[str, list[str]]]:
    """Captions with the tokens that the reference leaves of them."""
    lines = JAVA_TABLE.read_text(encoding="utf-8").split("\n")[:-1]
    pairs = [line.split("\t") for line in lines]
    return [
        (text, [token for token in result.split(" ") if token and token not in PUNCTUATION]) for text, result in pairs
    ]


def reference_scores(sets: list[CaptionSet]) -> dict[str, np.ndarray]:
    """What pycocoevalcap says of sets that are tokenized as it tokenizes. CIDEr: its own code without the clipping and
    the penalty that make CIDEr-D of CIDEr."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider import cider_scorer
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    from grr_coca.evaluate.ptb import tokenize

    references = {i: [" ".join(tokenize(reference)) for reference in s.references] for i, s in enumerate(sets)}
    hypotheses = {i: [" ".join(tokenize(s.hypothesis))] for i, s in enumerate(sets)}
    cider_d, cider_ds = Cider().compute_score(references, hypotheses)
    cider_scorer.min = lambda mine, _: mine
    try:
        cider, ciders = Cider(sigma=1e100).compute_score(references, hypotheses)
    finally:
        del cider_scorer.min
    bleu, bleus = Bleu(4).compute_score(references, hypotheses, verbose=0)
    rouge, rouges = Rouge().compute_score(references, hypotheses)
    return {
        "corpus": np.array([cider, cider_d, *bleu, rouge]),
        "captions": np.array([ciders, cider_ds, *bleus, rouges]).T,
    }
