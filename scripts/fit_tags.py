"""Fit the numbers by which a model gives pictures words, and measure them: `python scripts/fit_tags.py icons`.

Writes `tags.json` and `tags.safetensors` (see `grr_coca.infer.tags`) into `src/grr_coca/model/weights/NAME/`, and
`benchmarks/results/tags.json`. Run it again whenever the weights change.

The vocabulary are words and phrases of two words that stand behind a first caption of training at least `MIN_COUNT`
times. The weights are fitted to one half of the icons of `tabler`, a family that training never saw, whose makers wrote
tags by hand; the other half measures. Right are the words of an icon's name, and its tags; then tags alone, without
words of the name.

Beside it: the best caption and its words; and the words of five captions by their probability. The row of WordNet,
which is given the true name, does not depend on the model: it stays as commit `a84b5aca` measured it.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from fitting import calibration_error, folder_of, logistic, parser_of
from grr_coca.cli import exit_code
from grr_coca.common.files import edit_folder_atomic, expand_cache_prefix, read_json, write_bytes_atomic
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.intervals import Measure
from grr_coca.infer.generate import GREEDY
from grr_coca.infer.image_text_model import Description, ImageTextModel
from grr_coca.infer.load import load
from grr_coca.infer.tags import Tag, Tagger, TagModel, to_singular, with_beams, write_tags
from icon_search import Icon, read_icons

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "tags.json"
TRAINING, TAGGED = "cache:icons/train-*.tar", "cache:icons/test_family_tabler-*.tar"
MIN_COUNT, MAX_WORDS, MIN_LETTERS = 10, 2, 3
SHOWN = 5
RIDGE = 1.0
THESAURUS = "WordNet, given the name"


def main() -> None:
    """Fit a bundled model."""
    folder = folder_of(parser_of(__doc__).parse_args().name)
    model = load(folder, engine="onnx")
    numbers = vocabulary()
    vectors = model.embed_texts(list(numbers.words))
    icons = [icon for icon in read_icons(expand_cache_prefix(TAGGED)) if icon.tags]
    described = [one for start in range(0, len(icons), 256) for one in describe(model, icons[start : start + 256])]
    halves: tuple[list[tuple[Icon, Description]], ...] = ([], [])
    for icon, one in zip(icons, described, strict=True):
        halves[sha256(icon.name.encode()).digest()[0] % 2].append((icon, one))
    fit_to, measured = halves
    numbers = replace(
        numbers,
        weights=fit(Tagger(numbers, vectors), fit_to),
        fitted_on=f"{len(fit_to):,} icons of tabler with the tags of their makers",
    )
    found = figures(Tagger(numbers, vectors), measured)
    with edit_folder_atomic(folder) as partial:
        write_tags(partial, numbers, vectors)
    write_bytes_atomic(RESULTS, (json.dumps(found, indent=1) + "\n").encode())
    print(json.dumps(found, indent=1))


def vocabulary() -> TagModel:
    """Return the words of the captions of training, without weights."""
    source = open_source(expand_cache_prefix(TRAINING))
    counts: Counter[str] = Counter()
    behind: Counter[str] = Counter()
    for number in range(len(source)):
        first, *others = map(plain, source.captions(number))
        counts.update((first, *others))
        behind.update(others)
    words = tuple(
        word
        for word, count in behind.items()
        if count >= MIN_COUNT and len(word.split()) <= MAX_WORDS and len(word) >= MIN_LETTERS
    )
    return TagModel(
        words=words,
        counts=tuple(counts[word] for word in words),
        tag_counts=tuple(behind[word] for word in words),
        weights=(20.0, 0.6, 0.3, 0.0, 0.0, 0.0),  # which words of the vocabulary are candidates in the fit
        fitted_on="nothing",
    )


def describe(model: ImageTextModel, icons: Sequence[Icon]) -> list[Description]:
    """Captions by beam search, and embeddings."""
    return model.describe_many([icon.image for icon in icons], options=with_beams(GREEDY))


def plain(text: str) -> str:
    """Return a text in small letters, with single spaces in place of all else."""
    return " ".join(re.sub(r"[^a-z0-9 ]", " ", text.lower()).split())


def right_words(icon: Icon, *, beyond_name: bool) -> set[str]:
    """Return the words of the icon's name and its tags, or its tags without words of the name."""
    name = {to_singular(plain(icon.name)), *map(to_singular, plain(icon.name).split())}
    tags = {to_singular(plain(tag)) for tag in icon.tags}
    return tags - name if beyond_name else tags | name


def fit(tagger: Tagger, pairs: Sequence[tuple[Icon, Description]]) -> tuple[float, ...]:
    """Return the weights of a logistic regression."""
    rows, right = [], []
    embeddings = np.stack([one.embedding for _, one in pairs])
    found = tagger.candidates(embeddings, [one.captions for _, one in pairs])
    for (icon, _), (words, evidence) in zip(pairs, found, strict=True):
        rows.append(evidence)
        wanted = right_words(icon, beyond_name=False)
        right += [to_singular(word) in wanted for word in words]
    weights = logistic(np.concatenate(rows), np.array(right, float), ridge=RIDGE)
    return tuple(round(float(weight), 4) for weight in weights)


# --- Figures


def figures(tagger: Tagger, pairs: Sequence[tuple[Icon, Description]]) -> dict[str, object]:
    """nDCG@5 of each way to give words, with intervals over icons, by what is right; and the calibration error."""
    before = read_json(RESULTS)
    ways: dict[str, Callable[[Icon, Description], list[str]]] = {
        "tags": lambda _, one: [tag.text for tag in tags_of(tagger, one)],
        "the caption and its words": lambda _, one: words_of([one.captions[0].text]),
        "words of five captions": lambda _, one: by_beams(one),
    }
    found: dict[str, object] = {}
    for kind, beyond_name in (("all words", False), ("tags beyond the name", True)):
        of_kind: dict[str, dict[str, float]] = {}
        for way, words in ways.items():
            scores = [
                ndcg(words(icon, one), wanted)
                for icon, one in pairs
                if (wanted := right_words(icon, beyond_name=beyond_name))
            ]
            value, low, high = Measure.mean(np.array(scores)).interval()
            of_kind[way] = {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}
        found[kind] = {**of_kind, THESAURUS: before[kind][THESAURUS]}
    said, true = [], []
    for icon, one in pairs:
        wanted = right_words(icon, beyond_name=False)
        for tag in tags_of(tagger, one):
            said.append(tag.probability)
            true.append(to_singular(tag.text) in wanted)
    return {**found, "calibration error": round(calibration_error(np.array(said), np.array(true, float)), 4)}


def tags_of(tagger: Tagger, description: Description) -> tuple[Tag, ...]:
    """Return the tags of one image."""
    (tags,) = tagger.tags(description.embedding[None], [description.captions], SHOWN)
    return tags


def ndcg(words: Sequence[str], wanted: set[str]) -> float:
    """nDCG@5 of distinct words, of which each that is wanted counts 1."""
    distinct = list(dict.fromkeys(map(to_singular, words)))[:SHOWN]
    gains = sum((word in wanted) / np.log2(rank + 2) for rank, word in enumerate(distinct))
    return float(gains / sum(1 / np.log2(rank + 2) for rank in range(min(SHOWN, len(wanted)))))


def words_of(texts: Sequence[str]) -> list[str]:
    """Texts and their words, each text before its words."""
    return [word for text in map(plain, texts) for word in (text, *text.split()) if len(word) >= MIN_LETTERS]


def by_beams(one: Description) -> list[str]:
    """Return the words of the captions, most likely first."""
    likely: Counter[str] = Counter()
    for caption in one.captions:
        for word in dict.fromkeys(words_of([caption.text])):
            likely[word] += np.exp(sum(caption.log_probs))  # type: ignore[assignment]
    return [word for word, _ in likely.most_common()]


if __name__ == "__main__":
    sys.exit(exit_code(main))
