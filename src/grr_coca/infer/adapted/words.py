"""Words of captions and queries, and their weights (TF-IDF).

A word is a run of letters, marks and numbers in lower case, after compatibility composition (NFKC). Text in scripts
without spaces between words, such as Chinese, is split into characters and pairs of adjacent characters.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from grr_coca.common.shapes import Float, Int

RULES = 1
"""Version of these rules, which is stored in adapted models."""

UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Code points of scripts without spaces between words, as the first and last code point of each range."""
_ASCII_WORDS = re.compile(r"[a-z0-9]+")


def split_words(text: str) -> list[str]:
    """Split a text into words, in the order of the text."""
    text = unicodedata.normalize("NFKC", text).lower()
    if text.isascii():
        return _ASCII_WORDS.findall(text)
    words: list[str] = []
    run, is_unspaced = "", False
    for letter in f"{text} ":
        belongs = unicodedata.category(letter)[0] in "LMN"
        unspaced = belongs and any(first <= ord(letter) <= last for first, last in UNSPACED)
        if run and (not belongs or unspaced != is_unspaced):
            words += _characters_and_pairs(run) if is_unspaced else [run]
            run = ""
        if belongs:
            run, is_unspaced = run + letter, unspaced
    return words


def _characters_and_pairs(run: str) -> list[str]:
    return [*run, *(run[start : start + 2] for start in range(len(run) - 1))]


class WordWeights(NamedTuple):
    """The known words of M texts and their weights, as the rows of a sparse matrix with N stored values.

    From `Vocabulary.weigh`, the weights of each text with known words form a vector of length 1.

    Attributes:
        ids: Concatenated word ids of all texts.
        weights: Weight of each word.
        ends: Position in the other arrays at which each text ends, exclusive.
    """

    ids: Int[np.ndarray, " N"]
    weights: Float[np.ndarray, " N"]
    ends: Int[np.ndarray, " M"]

    def times(self, rows: Float[np.ndarray, "V K"]) -> Float[np.ndarray, "M K"]:
        """Multiply the matrix by a dense matrix. Texts without a known word yield zeros."""
        found = np.zeros((len(self.ends), rows.shape[1]), np.float32)
        counts = np.diff(self.ends, prepend=0)
        filled = counts > 0
        if not filled.any():
            return found
        step = max(1, 4_000_000 // max(1, rows.shape[1]))  # limits the memory of the gathered rows
        starts = (self.ends - counts)[filled]
        rows_with_words = np.flatnonzero(filled)
        first = 0
        while first < len(starts):
            last = first + max(1, int(np.searchsorted(starts[first:], starts[first] + step, side="right")) - 1)
            begin, end = starts[first], starts[last] if last < len(starts) else len(self.ids)
            gathered = rows[self.ids[begin:end]].astype(np.float32) * self.weights[begin:end, None]
            found[rows_with_words[first:last]] = np.add.reduceat(gathered, starts[first:last] - begin, axis=0)
            first = last
        return found

    def transposed(self, num_words: int) -> "WordWeights":
        """Return the transposed matrix: the texts of each word."""
        texts = np.repeat(np.arange(len(self.ends)), np.diff(self.ends, prepend=0))
        order = np.argsort(self.ids, kind="stable")
        ends = np.cumsum(np.bincount(self.ids, minlength=num_words))
        return WordWeights(texts[order], self.weights[order], ends)


class Vocabulary:
    """Words that occur in a set of captions, and the rarity of each word.

    Args:
        words: Distinct words.
        rarities: Inverse document frequency of each word.
    """

    def __init__(self, words: Sequence[str], rarities: Float[np.ndarray, " V"]) -> None:
        self.words = tuple(words)
        self.rarities = np.asarray(rarities, np.float32)
        self._ids = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def from_captions(cls, captions: Sequence[str], limit: int) -> "Vocabulary":
        """Collect the words of captions. At most `limit` words are kept, those that occur in the most captions."""
        counts = Counter(word for caption in captions for word in set(split_words(caption)))
        kept = sorted(sorted(counts, key=lambda word: (-counts[word], word))[:limit])
        rarities = [math.log((1 + len(captions)) / (1 + counts[word])) + 1 for word in kept]
        return cls(kept, np.array(rarities, np.float32))

    def knows(self, text: str) -> bool:
        """Return whether a text contains at least one word of the vocabulary."""
        return any(word in self._ids for word in split_words(text))

    def weigh(self, texts: Iterable[str]) -> WordWeights:
        """Weigh the words of texts by term frequency × rarity, scaled to length 1."""
        ids: list[int] = []
        weights: list[float] = []
        ends: list[int] = []
        for text in texts:
            counts = Counter(self._ids[word] for word in split_words(text) if word in self._ids)
            values = [count * float(self.rarities[word]) for word, count in counts.items()]
            length = math.sqrt(math.fsum(value * value for value in values))
            ids += counts
            weights += [value / length for value in values]
            ends.append(len(ids))
        return WordWeights(np.array(ids, np.int64), np.array(weights, np.float32), np.array(ends, np.int64))
