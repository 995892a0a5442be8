"""Fit the numbers by which pictures are matched, and measure how good matches are: `python scripts/fit_match.py icons`.

Writes `match.json` (see `grr_coca_icons.match.match_numbers`) into `src/grr_coca/model/weights/NAME/`, and
`benchmarks/results/match.json`. Run it again whenever the weights or their preprocessing change: all pictures are
embedded anew, which takes some ten minutes on two cores. It needs the packages of the corpus `icons`, which it fetches.

What is fitted to what:

1. The weights of the pictures' evidence: pairs of icons of equal names in different sets, with the names hidden. The
   candidates among which the right one must win are the nearest, so they look alike.
2. All weights: pairs with different names. Some were read by hand (`benchmarks/match/truth.csv`, parts `fit …`). The
   others are tables that makers of components publish in their packages, which name an icon of each of several sets for
   a role (`TABLES`). They are rough, so they count less.
3. The curves: the icons of the parts `fit unseen` and `fit seen`, with those for which the target has no equivalent.

What is reported was not fitted to: the parts `random` and `other names`, whose target is a family that training never
saw, and that the fit saw neither; and of `fit seen` the targets in `REPORTED_SEEN`. No word of a reported icon's name
names an icon of the fit. The rows of the hash depend on no model, so they stay as commit `a84b5aca` measured them.
"""

import csv
import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).with_name("build_datasets")))

from icon_pairs import HeldOut
from icon_sources import PACKAGES as CORPUS
from icon_sources import Archives, NpmPackage, kept_sets

from fitting import BINS, exactly, folder_of, logistic, parser_of, table, write_fitted
from grr_coca.cli import exit_code
from grr_coca.common.files import read_json, user_cache, write_bytes_atomic
from grr_coca.evaluate.intervals import Interval, Measure
from grr_coca.model.checkpoint_files import MATCHING, Figure
from grr_coca_icons.match.candidates import Pairs, PictureSet
from grr_coca_icons.match.label_check import LabelledImage, check_labels
from grr_coca_icons.match.labelled_pictures import labelled_pictures
from grr_coca_icons.match.match_numbers import (
    CANDIDATES,
    FEATURES,
    IMAGE_FEATURES,
    MatchParameters,
    MatchWeights,
    ProbabilityCurve,
)
from grr_coca_icons.match.picture_set import read_sources
from grr_coca_search.index import IndexModel

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TRUTH, RESULTS = BENCHMARKS / "match" / "truth.csv", BENCHMARKS / "results" / "match.json"

PACKAGES = {
    "iconify": CORPUS["iconify"],
    "quasar": NpmPackage("quasar", "2.27.0", "c6e0066f507bf5d90192bd54408b10eb0c2b43abc284500c7a5f4c756aa3b553"),
    "vuetify": NpmPackage("vuetify", "4.3.0", "4335a294dab5fe90f5d9db1cb5cfe8d800f75eed54cf68af6f03482f92bab272"),
}
TABLES = {
    "quasar": {
        "bi": "icon-set/bootstrap-icons.js",
        "eva": "icon-set/eva-icons.js",
        "la": "icon-set/line-awesome.js",
        "mdi": "icon-set/mdi-v7.js",
        "material-symbols": "icon-set/material-symbols-outlined.js",
        "fa6-solid": "icon-set/fontawesome-v6.js",
    },
    "vuetify": {
        "ri": "lib/iconsets/ri.js",
        "carbon": "lib/iconsets/carbon.js",
        "ph": "lib/iconsets/ph.js",
        "lucide": "lib/iconsets/lucide.js",
        "mdi": "lib/iconsets/mdi.js",
        "fa6-solid": "lib/iconsets/fa.js",
    },
}
"""The file of each set in packages of components. A file gives each role, such as `chevron.left`, an icon."""

EQUAL_SEEN = ("ph", "mdi", "material-symbols", "ri", "lucide", "hugeicons", "solar")
EQUAL_UNSEEN = ("bi", "iconoir", "carbon", "la")
"""Targets of pairs of equal names."""
NUM_EQUAL, PER_CONCEPT = 600, 3
TABLE_WEIGHT, EQUAL_WEIGHT = 0.15, 0.1
"""Weights of a pair beside one that was read by hand."""
L2, CURVE_L2 = 0.02, 0.01
REPORTED_SEEN = ("ph", "ri")
LABEL_SETS = ("iconoir", "bi", "la", "gridicons", "system-uicons", "typcn", "entypo", "heroicons")
LABEL_REPORTED = ("tabler", "carbon", "healthicons", "mdi-light", "mingcute", "solar")
"""Sets that the limits of names are taken from, and sets that they are measured on."""
LABEL_SHARES = (0.0005, 0.001, 0.002)
LABEL_MOST = 0.25
"""Cosine that more right names are below than the largest share."""
LABEL_SWAPPED = 500
MOST_MISSED = 0.10
"""How often none may be told although there is an equivalent, on the fitted icons."""
_NO_CURVE = ProbabilityCurve(per_score=0, per_lead=0, offset=0, least=0)
ALL = MatchWeights(weights=dict.fromkeys(FEATURES, 1.0), seen=_NO_CURVE, unseen=_NO_CURVE)


class Row(NamedTuple):
    """An icon, the set to match it with, and the names there that are right; none if there is no equivalent."""

    source: str
    target: str
    right: frozenset[str]
    why: str = ""
    part: str = ""


class Case(NamedTuple):
    """A row with its candidates: their names, the things that they are drawings of, their evidence P 10, and whether
    each is right, P."""

    row: Row
    names: list[str]
    concepts: list[str]
    features: np.ndarray
    is_right: np.ndarray


class Sets:
    """The icon sets, drawn and embedded when they are needed.

    Args:
        archives: the packages.
        model: what embeds them.
        prefixes: of all sets that are needed.
    """

    def __init__(self, archives: Archives, model: IndexModel, prefixes: set[str]) -> None:
        self.model = model
        self._folder = user_cache() / "match-sets"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._opened: dict[str, PictureSet] = {}
        self._things: dict[str, dict[str, list[int]]] = {}
        missing = {f"json/{prefix}.json" for prefix in prefixes if not self.path(prefix).exists()}
        for name, content in archives.files("iconify", missing.__contains__) if missing else ():
            write_bytes_atomic(self.path(Path(name).stem), content)

    def path(self, prefix: str) -> Path:
        """Return the file of a set."""
        return self._folder / f"{prefix}.json"

    def __getitem__(self, prefix: str) -> PictureSet:
        """Return the pictures of a set."""
        if prefix not in self._opened:
            print(f"reading {prefix}", file=sys.stderr, flush=True)
            # Whether training saw a set is asked for each case, so a set need not know.
            numbers = MatchParameters(with_names=ALL, without_names=ALL, seen_sets=())
            self._opened[prefix] = read_sources([str(self.path(prefix))], self.model, numbers).set
        return self._opened[prefix]

    def concepts(self, prefix: str) -> dict[str, list[int]]:
        """Return the rows of the drawings of each thing in a set."""
        if prefix not in self._things:
            found = self._things.setdefault(prefix, {})
            for row, thing in enumerate(self[prefix].concepts):
                found.setdefault(thing.partition(":")[2], []).append(row)
        return self._things[prefix]

    def thing(self, name: str) -> str:
        """Return the name of an icon without words of style."""
        pictures = self[name.partition(":")[0]]
        return pictures.concepts[pictures.row_by_name[name]].partition(":")[2]

    def names(self, prefix: str, concepts: set[str]) -> frozenset[str]:
        """Return the names of all drawings of some things, without the set."""
        names, rows = self[prefix].names, self.concepts(prefix)
        return frozenset(names[row].partition(":")[2] for thing in concepts for row in rows.get(thing, ()))

    def cases(self, rows: Sequence[Row]) -> list[Case]:
        """Return the candidates of each row, in the order of the rows."""
        together: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, row in enumerate(rows):
            together[row.source.partition(":")[0], row.target].append(number)
        found: dict[int, Case] = {}
        for (source, target), numbers in together.items():
            one, other = self[source], self[target]
            sources = np.array([one.row_by_name[rows[number].source] for number in numbers])
            columns, features, bounds = Pairs(one, other, ALL).features(sources)
            for index, number in enumerate(numbers):
                part = slice(bounds[index], bounds[index + 1])
                names = [other.names[column] for column in columns[part]]
                concepts = [other.concepts[column] for column in columns[part]]
                is_right = np.array([name.partition(":")[2] in rows[number].right for name in names])
                found[number] = Case(rows[number], names, concepts, features[part], is_right)
        return [found[number] for number in range(len(rows))]


# --- Pairs


def read_truth() -> list[Row]:
    """Return the rows that were read by hand."""
    with TRUTH.open(encoding="utf-8", newline="") as file:
        return [
            Row(row["source"], row["target"], frozenset(row["right"].split()), row["why"], row["part"])
            for row in csv.DictReader(file)
        ]


def table_rows(archives: Archives, sets: Sets, left_out: frozenset[str]) -> list[Row]:
    """Pairs of different names of the tables in `TABLES`, at most `PER_CONCEPT` of each thing.

    Args:
        archives: the packages.
        sets: the icon sets.
        left_out: things that are reported.
    """
    right: dict[tuple[str, str], set[str]] = defaultdict(set)
    for package, files in TABLES.items():
        roles = {prefix: _roles(archives.text(package, file), prefix) for prefix, file in files.items()}
        for one, icons in roles.items():
            for other, theirs in roles.items():
                for role, name in icons.items():
                    if one != other and role in theirs:
                        full = (f"{one}:{name}", f"{other}:{theirs[role]}")
                        if full[0] in sets[one].row_by_name and full[1] in sets[other].row_by_name:
                            right[full[0], other].add(sets.thing(full[1]))
    by_thing: dict[str, list[Row]] = defaultdict(list)
    for (source, target), concepts in right.items():
        thing = sets.thing(source)
        if thing not in left_out and thing not in concepts:
            by_thing[thing].append(Row(source, target, sets.names(target, concepts)))
    chosen = random.Random(3)
    return [row for rows in by_thing.values() for row in chosen.sample(rows, min(PER_CONCEPT, len(rows)))]


def _roles(script: str, prefix: str) -> dict[str, str]:
    """Return the icon of each role of a table, by the path of the role."""
    roles: dict[str, str] = {}
    path: list[str] = []
    for line in script.splitlines():
        if opened := re.match(r"\s*(\w+): \{", line):
            path.append(opened[1])
        elif re.match(r"\s*\},?$", line) and path:
            path.pop()
        elif named := re.match(r"\s*(\w+): ['\"]([^'\"]+)['\"]", line):
            word = named[2].split()[-1].replace("_", "-")
            name = re.sub(rf"^(?:i-)?(?:sym-o-|{prefix}[-:]|fa-)", "", word)
            roles[".".join([*path, named[1]])] = name
    return roles


def equal_rows(sets: Sets, left_out: frozenset[str]) -> list[Row]:
    """Icons of one name in two sets."""
    chosen = random.Random(4)
    rows = []
    while len(rows) < NUM_EQUAL:
        target = chosen.choice(EQUAL_UNSEEN if len(rows) % 2 else EQUAL_SEEN)
        source = chosen.choice([prefix for prefix in EQUAL_SEEN if prefix != target])
        thing = chosen.choice(sorted((sets.concepts(source).keys() & sets.concepts(target).keys()) - left_out))
        name = sets[source].names[chosen.choice(sets.concepts(source)[thing])]
        rows.append(Row(name, target, sets.names(target, {thing})))
    return rows


# --- Fitting


def fit_weights(cases: Sequence[tuple[Case, float]], names: Sequence[str]) -> dict[str, float]:
    """Return the weights under which right candidates win: a conditional logit over the candidates of each case.

    Args:
        cases: each with its weight. Those whose candidates hold nothing right are left out.
        names: of the evidence that gets a weight.
    """
    columns = [FEATURES.index(name) for name in names]
    groups = [(case.features[:, columns], case.is_right, weight) for case, weight in cases if case.is_right.any()]
    total = sum(weight for _, _, weight in groups)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = 0.0, np.zeros(len(weights))
        for features, is_right, weight in groups:
            shares = np.exp(features @ weights - (features @ weights).max())
            right = np.where(is_right, shares, 0)
            value -= weight * np.log(right.sum() / shares.sum() + 1e-12)
            slope += weight * (features.T @ (shares / shares.sum()) - features.T @ (right / (right.sum() + 1e-12)))
        return value / total + L2 * weights @ weights / 2, slope / total + L2 * weights

    found = minimize(loss, np.zeros(len(columns)), jac=True, method="L-BFGS-B").x
    return {name: round(float(weight), 4) for name, weight in zip(names, found, strict=True)}


class Ranked(NamedTuple):
    """The first candidates of some cases, the best drawing of each thing: name, score, lead, and whether it is right,
    N 5 each; and whether a case has anything right, N."""

    names: np.ndarray
    scores: np.ndarray
    leads: np.ndarray
    is_right: np.ndarray
    has_right: np.ndarray

    def hits(self) -> np.ndarray:
        """Whether the first, and any of the first five, is right, for each case that has a right one: N 2."""
        found = self.is_right[self.has_right]
        return np.stack([found[:, 0], found.any(axis=1)], axis=1).astype(float)


def ranked(cases: Sequence[Case], score: Callable[[np.ndarray], np.ndarray]) -> Ranked:
    """Return the first candidates of each case by a score of their evidence, as `match_pictures` ranks them."""
    columns = []
    for case in cases:
        scores = score(case.features)
        kept: dict[str, int] = {}
        for number in np.argsort(-scores, kind="stable").tolist():
            kept.setdefault(case.concepts[number], number)
        best = list(kept.values())[:CANDIDATES]
        others = np.full(CANDIDATES, scores[best[0]])
        others[0] = scores[best[1]]
        names = [case.names[number] for number in best]
        columns.append((names, scores[best], scores[best] - others, case.is_right[best], bool(case.row.right)))
    return Ranked(*map(np.array, zip(*columns, strict=True)))


def fit_curve(found: Ranked) -> ProbabilityCurve:
    """Return the curve over scores and leads, and the limit below which no candidate is reported."""
    measured = np.stack([found.scores.ravel(), found.leads.ravel(), np.ones(found.scores.size)], axis=1)
    ridge = CURVE_L2 * len(measured) * np.array([1, 1, 0])
    per_score, per_lead, offset = (
        round(float(number), 4) for number in logistic(measured, found.is_right.ravel(), ridge=ridge)
    )
    curve = ProbabilityCurve(per_score=per_score, per_lead=per_lead, offset=offset, least=0.0)
    of_right = np.sort(any_right(curve, found)[found.has_right])
    return replace(curve, least=round(float(of_right[int(MOST_MISSED * len(of_right))]), 4))


def any_right(curve: ProbabilityCurve, found: Ranked) -> np.ndarray:
    """Return the probability that any of the candidates is right, for each case."""
    return 1 - np.prod(1 - curve.probabilities(found.scores, found.leads), axis=1)


def fitted(names: Sequence[str], cases: Sequence[tuple[Case, float]], curves: dict[str, list[Case]]) -> MatchWeights:
    """Return the numbers for this evidence."""
    numbers = replace(ALL, weights=fit_weights(cases, names))
    return replace(numbers, **{kind: fit_curve(ranked(of_kind, numbers.scores)) for kind, of_kind in curves.items()})


# --- Figures


def _with_interval(interval: Interval) -> dict[str, float]:
    return {name: round(float(number), 4) for name, number in interval._asdict().items()}


def curve_figures(curve: ProbabilityCurve, found: Ranked) -> dict[str, Any]:
    """Return how well probabilities and missing equivalents are reported. Bins hold equally many candidates."""
    probabilities = curve.probabilities(found.scores, found.leads)
    is_none = any_right(curve, found) < curve.least

    def bins(told: np.ndarray, is_right: np.ndarray) -> list[tuple[int, float, float]]:
        parts = np.array_split(np.argsort(told), BINS)
        return [(len(part), float(told[part].mean()), float(is_right[part].mean())) for part in parts]

    def error(found: list[tuple[int, float, float]]) -> float:
        return round(sum(n * abs(told - right) for n, told, right in found) / sum(n for n, *_ in found), 4)

    every = bins(probabilities.ravel(), found.is_right.ravel())
    return {
        "icons": len(is_none),
        "calibration_error": error(every),
        "calibration_error_of_first": error(bins(probabilities[:, 0], found.is_right[:, 0])),
        "none_where_none": round(float(is_none[~found.has_right].mean()), 4),
        "none_where_one": round(float(is_none[found.has_right].mean()), 4),
        "curve": [[round(told, 4), round(right, 4)] for _, told, right in every],
    }


def report(sets: Sets, numbers: MatchParameters, reported: dict[str, list[Case]]) -> dict[str, Any]:
    """Return all figures."""
    unseen = [*reported["random"], *reported["other names"]]
    other_name = [case for case in unseen if case.row.why == "another name"]
    groups = {"random": reported["random"], "other_name": other_name, "seen": reported["seen"]}
    picture, spelling, same_name = (FEATURES.index(name) for name in ("picture", "spelling", "same_name"))
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "fitted": numbers.with_names.scores,
        "picture": lambda features: features[:, picture],
        "name": lambda features: features[:, spelling] + features[:, same_name],
    }
    before = read_json(RESULTS)
    found: dict[str, Any] = {}
    for group, cases in groups.items():
        hits = {way: ranked(cases, score).hits() for way, score in ways.items()}
        found[group] = {
            way: {
                "first": _with_interval(Measure.mean(values[:, 0]).interval()),
                "first_five": _with_interval(Measure.mean(values[:, 1]).interval()),
                "icons": len(values),
            }
            for way, values in hits.items()
        }
        if group != "seen":
            found[group]["hash"] = before[group]["hash"]
        if group == "other_name":
            first = {way: Measure.mean(values[:, 0]) for way, values in hits.items()}
            for way in ("picture", "name"):
                found[group][f"fitted_minus_{way}"] = _with_interval(first["fitted"].difference(first[way]))
    found["labels"] = label_figures(sets, numbers.label_limits[0][1])
    curves = {"unseen": (numbers.with_names.unseen, unseen), "seen": (numbers.with_names.seen, reported["seen"])}
    found["probabilities"] = {
        kind: curve_figures(curve, ranked(cases, numbers.with_names.scores)) for kind, (curve, cases) in curves.items()
    }
    return found


def labelled(sets: Sets, prefix: str) -> list[LabelledImage]:
    """Return the icons of a set with their names, as `grr-coca lint` checks them."""
    return list(labelled_pictures([str(sets.path(prefix))], (), sets.model.loaded, [], []))


def label_limits(sets: Sets) -> tuple[tuple[float, ...], ...]:
    """Shares of right names of `LABEL_SETS` that are reported by mistake, and the cosines that these are below."""
    named = [one for prefix in LABEL_SETS for one in labelled(sets, prefix)]
    checked = check_labels(iter(named), sets.model.loaded, limit=LABEL_MOST)
    cosines = sorted(one.cosine for one in checked.contradictions)
    print(f"{len(cosines)} of {checked.judged} right names are below {LABEL_MOST}", file=sys.stderr)
    return tuple((share, cosines[round(share * checked.judged)]) for share in LABEL_SHARES)


def label_figures(sets: Sets, limit: float) -> dict[str, Any]:
    """For sets that nobody fitted: how many right names are reported, and the share of swapped names that is found.

    Of swapped names, `LABEL_SWAPPED` are tried; those that are judged count.
    """
    found: dict[str, Any] = {}
    for prefix in LABEL_REPORTED:
        named = labelled(sets, prefix)
        order = np.random.default_rng(7).permutation(len(named))
        pairs = [(named[one], named[other]) for one, other in zip(order, np.roll(order, 1), strict=True)]
        swapped = [replace(one, texts=other.texts) for one, other in pairs[:LABEL_SWAPPED]]
        right, wrong = (check_labels(iter(labels), sets.model.loaded, limit) for labels in (named, swapped))
        found[prefix] = {
            "names": len(named),
            "judged": right.judged,
            "reported": len(right.contradictions),
            "found": round(len(wrong.contradictions) / wrong.judged, 4),
        }
    return found


def missed(cases: Sequence[Case], numbers: MatchWeights) -> Iterator[str]:
    """Yield a line for each icon whose first candidate is wrong."""
    found = ranked(cases, numbers.scores)
    for case, names, is_right in zip(cases, found.names, found.is_right, strict=True):
        if case.row.right and not is_right[0]:
            yield f"{case.row.source} -> {names[0]}, not {' '.join(sorted(case.row.right)[:2])}"


def main() -> None:
    """Fit, measure and write."""
    parser = parser_of(__doc__)
    parser.add_argument("--archives", type=Path, default=user_cache() / "packages", help="folder of the packages")
    parser.add_argument("--missed", action="store_true", help="print the reported icons whose first candidate is wrong")
    options = parser.parse_args()
    folder = folder_of(options.name)
    archives = Archives(options.archives, PACKAGES)
    archives.fetch(lambda _: None)
    rows = read_truth()
    prefixes = {row.target for row in rows} | {row.source.partition(":")[0] for row in rows}
    of_tables = {prefix for files in TABLES.values() for prefix in files}
    sets = Sets(
        archives,
        IndexModel(str(folder)),
        {*prefixes, *EQUAL_SEEN, *EQUAL_UNSEEN, *of_tables, *LABEL_SETS, *LABEL_REPORTED},
    )

    by_part: dict[str, list[Case]] = defaultdict(list)
    for case in sets.cases(rows):
        is_reported = case.row.part == "fit seen" and case.row.target in REPORTED_SEEN
        by_part["seen" if is_reported else case.row.part].append(case)
    reported = {part: by_part[part] for part in ("random", "other names", "seen")}
    curves = {kind: by_part[f"fit {kind}"] for kind in ("unseen", "seen")}
    left_out = frozenset(sets.thing(case.row.source) for cases in reported.values() for case in cases)
    by_hand = [(case, 1.0) for cases in curves.values() for case in cases]
    tables = [(case, TABLE_WEIGHT) for case in sets.cases(table_rows(archives, sets, left_out))]
    equal = [(case, EQUAL_WEIGHT) for case in sets.cases(equal_rows(sets, left_out))]
    print(f"{len(by_hand)} by hand, {len(tables)} of tables, {len(equal)} of equal names", file=sys.stderr)
    held_out = HeldOut.read()
    kept = kept_sets(archives.json("iconify", "collections.json"))
    numbers = MatchParameters(
        with_names=fitted(FEATURES, [*by_hand, *tables], curves),
        without_names=fitted(IMAGE_FEATURES, [*by_hand, *tables, *equal], curves),
        seen_sets=tuple(prefix for prefix in kept if held_out.split_of(prefix) == "train"),
        label_limits=label_limits(sets),
    )
    found = report(sets, numbers, reported)
    print(json.dumps(found, indent=1))
    if options.missed:
        print("\n".join(missed([*reported["random"], *reported["other names"]], numbers.with_names)))
    write_fitted(folder, MATCHING, numbers, {"matches": card_figures(found)}, match_section(found), NEXT)
    write_bytes_atomic(RESULTS, (json.dumps(found, indent=1) + "\n").encode())


TITLE, NEXT = "## Matching icons", "## Cost"


def card_figures(found: dict[str, Any]) -> dict[str, Figure]:
    """Return the figures of the card."""
    told = found["probabilities"]["unseen"]
    figures = {
        f"{group} {part}": Figure(**found[group]["fitted"][part])
        for group in ("random", "other_name")
        for part in ("first", "first_five")
    }
    names = ("calibration_error", "none_where_none", "none_where_one")
    return figures | {name: exactly(told[name]) for name in names}


def match_section(found: dict[str, Any]) -> list[str]:
    """Return the section of the card."""
    told, other = found["probabilities"]["unseen"], found["other_name"]["fitted"]
    first, first_five = other["first"], other["first_five"]
    said = (
        f"{other['icons']} icons have an equivalent with another name in `tabler`, which was not used in training. The "
        f"equivalent is first for {first['value']:.0%} of them ({first['low']:.0%} to {first['high']:.0%}), and among "
        f"the first five for {first_five['value']:.0%}. Of icons without an equivalent, {told['none_where_none']:.0%} "
        f"get none; of icons with an equivalent, {told['none_where_one']:.0%} wrongly get none. Probabilities are off "
        f"by {told['calibration_error']:.3f} on average, over ten bins of {CANDIDATES * told['icons']:,} candidates:"
    )
    shares = ("matches", str(other["icons"]), f"{first['value']:.0%}", f"{first_five['value']:.0%}")
    probabilities, right = ([f"{bin_[side]:.0%}" for bin_ in told["curve"]] for side in (0, 1))
    lines = [
        TITLE,
        "",
        *table(("", "icons", "first", "among the first five"), [shares]),
        "",
        fill(said, 110),
        "",
        *table(["probability", *probabilities], [["fraction that is right", *right]]),
        "",
        "`scripts/fit_match.py` fits the parameters and measures this. See `docs/match.md`.",
    ]
    return [line.replace("%", " %") for line in lines]


if __name__ == "__main__":
    sys.exit(exit_code(main))
