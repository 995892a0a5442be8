"""Hold what the pages say of the models to the ledgers: `python studies/check.py`.

`claims.txt` names settings, and has pieces of pages with places for what follows from rows. `{adamw[known coca]:word}`
is `lower`, `higher` or `no different`: the CoCa loss on known styles in the setting `adamw`. Each piece must stand on
its page as the rows fill it, so a wrong number, sign or verdict fails. The rest of the page must have none.

Nothing of the package is imported: ledgers are read anew. S seeds, N images or batches of them, R resamples.
"""

import json
import math
import re
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

STUDIES = Path(__file__).parent
ROOT = STUDIES.parent
SPLITS = {"known": "val+test", "style": "test_style", "concept": "test_concept", "tuned": "test"}
IMAGES = {"val": "val_images"}
"""Splits of which rows have values of single images under another name, if at all."""
METRICS = {"coca": "coca_loss", "contrastive": "contrastive_loss"}
RESAMPLES = 4000
VERDICTS = "better|worse|lower|higher|ahead|behind|equal|leads?|favours?|differen(t|ce)|helps?|hurts?|excludes?"
RESULT = re.compile(rf"\d %|[−+]\d|\d of \d|\b({VERDICTS})\b")
"""A number or a word that is a result, and so must stand in a claim."""


@cache
def rows_of(study: str) -> dict[tuple[str, int, str], Any]:
    """The runs of a study that count, by arm, seed and stage: those with the digests that it names."""
    valid = json.loads((STUDIES / study / "digests.json").read_text(encoding="utf-8"))
    found: dict[tuple[str, int, str], Any] = {}
    for row in map(json.loads, (STUDIES / study / "runs.jsonl").read_text(encoding="utf-8").splitlines()):
        arm, stage = row["arm"], row["stage"]
        digests = valid["recipes"].get(arm, {}).get(stage), valid["data"].get(stage)
        if row["kind"] == "run" and digests == (row["recipe_digest"], row["data_digest"]):
            found.setdefault((arm, row["seed"], stage), row)
    return found


def value(row: Any, split: str, metric: str) -> float:
    """A metric of a run on a split; `val+test`: on both, weighted by their pairs; `training`: over its last steps;
    `val@1200`: at this step; `test_style#flags`, `test_style#others`: perplexity on emojione's flags, and on the rest.
    """
    if "#" in split:
        assert metric == "perplexity", "batches of the contrastive loss mix all captions"
        split, which = split.split("#")
        kept = emojione_flags() == (which == "flags")
        sums = (np.array(row["values"][split][name])[kept].sum() for name in ("nll", "tokens"))
        return math.exp(next(sums) / next(sums))
    if "@" in split:
        split, step = split.split("@")
        return float(next(entry for entry in row["curve"] if entry["step"] == int(step))[split][metric])
    if split == "training":
        last = row["curve"][-1]["train"]
        contrastive, captioning = last["contrastive"], last["captioning"]
    else:
        splits = [row["metrics"][name] for name in split.split("+")]
        if len(splits) == 1:
            return float(splits[0][metric])
        pairs = [found["num_pairs"] for found in splits]
        names = ("contrastive_loss", "captioning_loss")
        contrastive, captioning = (np.average([found[name] for found in splits], weights=pairs) for name in names)
    losses = {"contrastive_loss": contrastive, "perplexity": math.exp(captioning)}
    return float((losses | {"coca_loss": contrastive + 2 * captioning})[metric])


@cache
def emojione_flags() -> np.ndarray:
    """Which captions of emojione are of flags, in the order of their values."""
    found = []
    for shard in sorted((ROOT / "datasets" / "pictograms").glob("test_style-*.tar")):
        with tarfile.open(shard) as tar:
            found += [tar.extractfile(file).read() for file in tar if file.name.endswith(".txt")]  # type: ignore[union-attr]
    return np.array([b"flag" in caption for caption in found])


@dataclass(frozen=True)
class Setting:
    """Arms of a study over other arms, seed by seed; of several arms, the mean of the logarithms.

    `over_study`: the study of the arms `over`, if another. `minus`: a setting whose change is taken off, seed by seed;
    `earlier`: one with other seeds.
    """

    study: str
    arms: Sequence[str]
    over: Sequence[str]
    over_study: str
    seeds: Sequence[int] | None = None
    minus: "Setting | Joined | None" = None
    earlier: "Setting | Joined | None" = None

    def __getitem__(self, asked: str) -> "Change":
        """The change on a split of a metric: `test perplexity`. The split `tuned` is `test` after each fine-tuning."""
        name, metric = asked.split()
        renamed = {"style": "left_out"} if self.study.startswith("styles/") else {}
        renamed = {"known": "test", "style": "val"} if self.study == "icons" else renamed  # val has its unseen styles
        split, metric = renamed.get(name, SPLITS.get(name, name)), METRICS.get(metric, metric)
        sides = ((self.study, self.arms), (self.over_study, self.over))
        stages = list(dict.fromkeys(stage for _, _, stage in rows_of(self.study)))
        stages = stages[1:] if name == "tuned" else stages[:1]
        seeds = set.intersection(*({s for a, s, _ in rows_of(study) if a in arms} for study, arms in sides))
        pairs = [
            [[rows_of(study)[arm, seed, stage] for arm in arms for stage in stages] for study, arms in sides]
            for seed in sorted(seeds if self.seeds is None else seeds & {*self.seeds})
        ]
        means = [[np.mean([math.log(value(row, split, metric)) for row in side]) for side in pair] for pair in pairs]
        taken = 0.0 if self.minus is None else self.minus[asked].logs
        logs = np.subtract(*np.transpose(means)) - taken
        if self.earlier is not None:
            return Growth(logs, split, metric, pairs, self.earlier[asked].logs)
        return Change(logs, split, metric, pairs)


@dataclass(frozen=True)
class Change:
    """A change by seed: S log ratios, and the rows of both sides that they come from."""

    logs: np.ndarray
    split: str
    metric: str
    pairs: list[Any]

    def ends(self, more: float = 0.0) -> tuple[float, float, float]:
        """Mean and ends of its 95 % t interval, as log ratios; with `more` 1, of that of one more pair of runs."""
        mean, count = float(self.logs.mean()), len(self.logs)
        width = stats.t.ppf(0.975, count - 1) * self.logs.std(ddof=1) * math.sqrt(more + 1 / count)
        return mean, float(mean - width), float(mean + width)

    def side(self) -> int:
        """1 if the interval lies below zero, 2 if above, 0 if it contains it."""
        _, low, high = self.ends()
        return 1 if high < 0 else 2 if low > 0 else 0

    def p(self) -> float:
        """Of the two-sided t test over seeds."""
        return float(stats.ttest_1samp(self.logs, 0).pvalue)

    def over_both(self) -> tuple[float, float] | None:
        """95 % interval over seeds and images, drawn crossed (Owen 2007); None if rows lack values of images."""
        rows = [row for pair in self.pairs for side in pair for row in side]
        assert rows, "joined settings have no rows of their own"
        splits = [IMAGES.get(name, name) for name in self.split.split("+")]
        if any(name not in row["values"] for row in rows for name in splits) or len(rows) != 2 * len(self.pairs):
            return None
        draws, num_seeds, losses = np.random.default_rng(0), len(self.pairs), np.zeros(())
        num_pairs = [rows[0]["metrics"][name]["num_pairs"] for name in splits]
        for split, share in zip(splits, np.divide(num_pairs, sum(num_pairs)), strict=True):
            added = np.array([[_added(side[0], split, self.metric) for side in pair] for pair in self.pairs])
            count = added.shape[-1]
            images = draws.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
            sums = np.tensordot(images, added, axes=(1, 4))  # R × S × 2 sides × quotients × 2
            losses = losses + share * (sums[..., 0] / sums[..., 1]).sum(axis=-1)
        logs = losses if self.metric == "perplexity" else np.log(losses)  # its quotient is a logarithm already
        seeds = draws.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=RESAMPLES) / num_seeds
        low, high = np.quantile((seeds * (logs[..., 0] - logs[..., 1])).sum(axis=1), [0.025, 0.975])
        return float(low), float(high)

    def __format__(self, asked: str) -> str:
        return FORMATS[asked](self)


@dataclass(frozen=True)
class Growth(Change):
    """A change less that of an earlier setting with other seeds: Welch's t test."""

    earlier: np.ndarray

    def ends(self, more: float = 0.0) -> tuple[float, float, float]:
        """Difference of the means and ends of its 95 % interval, as log ratios."""
        assert not more, "a growth has no pairs"
        low, high = self._welch().confidence_interval()
        return float(self.logs.mean() - self.earlier.mean()), float(low), float(high)

    def p(self) -> float:
        """Of Welch's t test, two-sided."""
        return float(self._welch().pvalue)

    def over_both(self) -> tuple[float, float] | None:
        """Not known: only the later rows are at hand."""
        raise NotImplementedError

    def _welch(self) -> Any:
        return stats.ttest_ind(self.logs, self.earlier, equal_var=False)


@dataclass(frozen=True)
class Joined:
    """Several settings at once. `mean` and `sum`: of their log ratios, seed by seed. `each`: of every setting the mean
    over its seeds, so that an interval is one over settings."""

    how: str
    settings: Sequence[Setting]

    def __getitem__(self, asked: str) -> "Change":
        changes = [setting[asked] for setting in self.settings]
        seeds = {tuple(pair[0][0]["seed"] for pair in change.pairs) for change in changes}
        assert self.how == "each" or len(seeds) == 1, f"joined seed by seed, but the seeds are {seeds}"
        if self.how == "each":
            logs = np.array([change.logs.mean() for change in changes])
        else:
            logs = getattr(np, self.how)([change.logs for change in changes], axis=0)
        return Change(logs, changes[0].split, changes[0].metric, [])


@dataclass(frozen=True)
class Best:
    """Arms at several rates over others at several: each side at its own best rate.

    That has the lowest CoCa loss on `val`, by the mean of the logarithm over seeds. Intervals draw the seeds with
    replacement, all draws once, and choose the rates anew in each; over few seeds they are too narrow.
    """

    study: str
    arms: Sequence[str]
    over: Sequence[str]

    def __getitem__(self, asked: str) -> "Drawn":
        rows = rows_of(self.study)
        stage = next(iter(rows))[2]
        seeds = yaml.safe_load((STUDIES / self.study / "plan.yaml").read_text(encoding="utf-8"))["seeds"]
        lacking = {*product((*self.arms, *self.over), seeds, (stage,))} - {*rows}
        assert not lacking, f"{self.study} lacks {sorted(lacking)}"
        assert 3 <= len(seeds) <= 5, "every draw of the seeds is made"
        logs = {
            arm: np.array([math.log(value(rows[arm, seed, stage], "val", "coca_loss")) for seed in seeds])
            for arm in (*self.arms, *self.over)
        }

        def best_of(drawn: Sequence[int]) -> tuple[str, str]:
            means = {arm: found[[*drawn]].mean() for arm, found in logs.items()}
            return min(self.arms, key=means.__getitem__), min(self.over, key=means.__getitem__)

        sides = product(self.arms, self.over)
        changes = {both: Setting(self.study, both[:1], both[1:], self.study, seeds)[asked] for both in sides}
        draws = []
        for drawn in product(range(len(seeds)), repeat=len(seeds)):
            both = best_of(drawn)
            draws.append((both, float(changes[both].logs[[*drawn]].mean())))
        best = best_of(range(len(seeds)))
        change = changes[best]
        return Drawn(change.logs, change.split, change.metric, change.pairs, best, draws)


@dataclass(frozen=True)
class Drawn(Change):
    """A change between the best rates, with what each draw of seeds chooses and finds."""

    best: tuple[str, str]
    draws: list[tuple[tuple[str, str], float]]

    def ends(self, more: float = 0.0) -> tuple[float, float, float]:
        """Mean, and the ends of the middle 95 % of the draws, as log ratios."""
        assert not more, "a draw is no pair of runs"
        found = [change for _, change in self.draws]
        low, high = np.quantile(found, [0.025, 0.975], method="inverted_cdf")
        return float(self.logs.mean()), float(low), float(high)

    def p(self) -> float:
        """Not known: a t test would take the rates as given."""
        raise NotImplementedError

    def over_both(self) -> tuple[float, float] | None:
        """Not known: images are not drawn."""
        raise NotImplementedError

    def rates(self) -> str:
        """`0.0015 for GRR-CoCa and 0.003 for Baseline CoCa`."""
        models = {"grr_coca": "GRR-CoCa", "baseline_coca": "Baseline CoCa"}
        return " and ".join(f"{arm.rpartition('_')[2]} for {models[arm.rpartition('_')[0]]}" for arm in self.best)

    def agreeing(self) -> str:
        """How many draws choose these rates: `26 of 27`."""
        return f"{sum(both == self.best for both, _ in self.draws)} of {len(self.draws)}"


def _added(row: Any, split: str, metric: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """What images, or batches with their captions, add to the numerator and the denominator of each quotient."""
    values = row["values"][split]
    nll, tokens = np.array(values["nll"]), np.array(values["tokens"], dtype=float)
    if metric == "perplexity":
        return [(nll, tokens)]
    contrastive = np.array(values["contrastive_batches"])
    batch = batch_of_captions(len(nll), int(row["metrics"][split]["contrastive_batch_size"]))
    captioning = [(2 * np.bincount(batch, nll), np.bincount(batch, tokens))] if metric == "coca_loss" else []
    return [(contrastive, np.ones(len(contrastive))), *captioning]


@cache
def batch_of_captions(count: int, size: int) -> np.ndarray:
    """The contrastive batch of each caption: `torch.randperm` with seed 0, cut into batches."""
    order, raw = list(range(count)), np.random.RandomState(0)._bit_generator.random_raw(count)
    for i in range(count - 1):
        j = i + int(raw[i]) % (count - i)
        order[i], order[j] = order[j], order[i]
    found = np.empty(count, dtype=int)
    found[order] = np.arange(count) // size
    return found


def signed(log_ratio: float) -> str:
    """A log ratio as a change in per cent: `−4.2`, `+0.3`, `0.0`."""
    text = f"{100 * math.expm1(log_ratio):+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def interval(ends: Sequence[float] | None) -> str:
    """`−5.0 to −3.3`."""
    return " to ".join(map(signed, ends or ()))


def _means(change: Change) -> list[float]:
    sides = ([pair[side][0] for pair in change.pairs] for side in (0, 1))
    return [float(np.mean([value(row, change.split, change.metric) for row in rows])) for rows in sides]


def _drawn(change: Change) -> Drawn:
    assert isinstance(change, Drawn), "only `best of` chooses rates"
    return change


FORMATS: dict[str, Callable[[Change], str]] = {
    "": lambda c: f"{signed(c.ends()[0])} % ({interval(c.ends()[1:])})",
    "change": lambda c: f"{signed(c.ends()[0])} %",
    "cell": lambda c: f"{signed(c.ends()[0])} ({interval(c.ends()[1:])})",
    "ci": lambda c: interval(c.ends()[1:]),
    "both": lambda c: interval(c.over_both()),
    "pair": lambda c: interval(c.ends(more=1)[1:]),
    "fall": lambda c: signed(c.ends()[0]).removeprefix("−"),
    "by": lambda c: f"{signed(c.ends()[0]).lstrip('+−')} % {('no different', 'lower', 'higher')[c.side()]}",
    "rise": lambda c: signed(c.ends()[0]).removeprefix("+"),
    "whole": lambda c: f"{abs(100 * math.expm1(c.ends()[0])):.0f}",
    "third": lambda c: "a third" if abs(math.expm1(c.ends()[0]) + 1 / 3) < 0.05 else "another part",
    "values": lambda c: " against ".join(f"{100 * mean:.1f}" for mean in _means(c)),
    "backwards": lambda c: " to ".join(f"{100 * mean:.1f}" for mean in reversed(_means(c))),
    "word": lambda c: ("no different", "lower", "higher")[c.side()],
    "use": lambda c: ("either", "GRR-CoCa", "Baseline CoCa")[c.side()],
    "verb": lambda c: ("does not matter", "helps", "hurts")[c.side()],
    "shifts": lambda c: "shifts" if c.side() else "is not shown to shift",
    "more": lambda c: ("about as much", "more", "less")[c.side()],
    "smaller": lambda c: ("not told apart from it", "larger", "smaller")[c.side()],
    "contains": lambda c: "contains" if c.ends()[1] <= math.log1p(-0.0715) <= c.ends()[2] else "does not contain",
    "losses": lambda c: " and ".join(f"{mean:.2f}" for mean in reversed(_means(c))),
    "equal": lambda c: "equal within 2 %" if max(abs(math.expm1(end)) for end in c.ends()) < 0.02 else "not equal",
    "falls": lambda c: f"{(c.logs < 0).sum()} of {len(c.logs)}",
    "rises": lambda c: f"{(c.logs > 0).sum()} of {len(c.logs)}",
    "rates": lambda c: _drawn(c).rates(),
    "agreeing": lambda c: _drawn(c).agreeing(),
    "p": lambda c: f"{c.p():.4f}" if c.p() >= 1e-4 else "< 0.0001",
}
"""What a claim may ask of a change."""


@dataclass(frozen=True)
class Group:
    """Several settings, of which a claim asks how many: `3 of 9`."""

    settings: Sequence[Setting]
    changes: Sequence[Change] = ()

    def __getitem__(self, asked: str) -> "Group":
        return replace(self, changes=[setting[asked] for setting in self.settings])

    def __format__(self, asked: str) -> str:
        """`shown`: that pass Holm's correction (1979) for all. A number: whose interval excludes so large a fall.

        A word: of which it is said. `agree`: whether none is higher where another is lower. `ahead`: whether
        one is lower.
        """
        count, words = len(self.changes), [f"{change:word}" for change in self.changes]
        if asked == "agree":
            return "disagree" if {"lower", "higher"} <= {*words} else "agree"
        if asked == "ahead":
            return "ahead" if "lower" in words else "not ahead"
        if asked == "shown":
            p_values = sorted(change.p() for change in self.changes)
            return f"{next((i for i, p in enumerate(p_values) if p * (count - i) >= 0.05), count)} of {count}"
        if asked in words:
            return f"{words.count(asked)} of {count}"
        return f"{sum(100 * math.expm1(change.ends()[1]) > -float(asked) for change in self.changes)} of {count}"


@dataclass(frozen=True)
class Plateau:
    """Models of a study. A claim asks how many, by a pattern of arms, have R@1 above 1.5 times that of guessing."""

    study: str

    def __format__(self, pattern: str) -> str:
        rows = [row for (arm, _, _), row in rows_of(self.study).items() if re.search(pattern, arm)]
        return f"{sum(row['metrics']['test']['R@1'] > 1.5 / 8 for row in rows)} of {len(rows)}"


def arms_of(study: str, pattern: str) -> tuple[str, ...]:
    """The arms of a study whose whole name is of a pattern."""
    found = tuple(dict.fromkeys(arm for arm, _, _ in rows_of(study) if re.fullmatch(pattern, arm)))
    assert found, f"{study} has no arm {pattern}"
    return found


def read_claims(path: Path = STUDIES / "claims.txt") -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The settings by name, and the pieces of each page by its path."""
    known: dict[str, Any] = {}
    pages: dict[str, list[str]] = {}
    wanted: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            wanted = pages.setdefault(line[3:], [])
        elif pages and line and not line.startswith("#"):
            wanted.append(" ".join(line.split()))
        elif line and not line.startswith("#"):
            name, _, told = line.partition(" = ")
            known[name] = _setting(told, known)
    return known, pages


def _setting(told: str, known: dict[str, Any]) -> Any:
    """`STUDY ARMS / [STUDY] ARMS`, `NAME minus NAME`, `NAME grown from NAME`, `NAME seeds 4 5`, `all of NAME …`,
    `mean of NAME …`, `sum of NAME …`, `each of NAME …`, `best of STUDY ARMS / ARMS` or `models of STUDY`."""
    match told.split():
        case [name, "minus", other]:
            return replace(known[name], minus=_with_given_rates(known[other]))
        case [name, "grown", "from", other]:
            return replace(known[name], earlier=_with_given_rates(known[other]))
        case [name, "seeds", *seeds]:
            return replace(known[name], seeds=[int(seed) for seed in seeds])
        case ["all", "of", *names]:
            return Group([known[name] for name in names])
        case ["mean" | "sum" | "each" as how, "of", *names]:
            return Joined(how, [known[name] for name in names])
        case ["models", "of", study]:
            return Plateau(study)
        case ["best", "of", study, arms, "/", over]:
            return Best(study, arms_of(study, arms), arms_of(study, over))
        case [study, arms, "/", *other, over]:
            second = other[0] if other else study
            return Setting(study, arms_of(study, arms), arms_of(second, over), second)
    raise ValueError(f"claims.txt: {told!r} is no setting")


def _with_given_rates(setting: Any) -> Setting | Joined:
    assert isinstance(setting, Setting | Joined), "a change is taken off at given rates"
    return setting


def errors_of(text: str, wanted: Sequence[str], is_whole: bool = True) -> list[str]:
    """The pieces that a page lacks and, if all of its results must be in pieces, what else on it looks like one."""
    text = " ".join(text.split())
    found = [f"does not say: {claim}" for claim in wanted if claim not in text]
    letters = list(text)
    for claim in wanted:
        for place in re.finditer(re.escape(claim), text):
            letters[place.start() : place.end()] = "…" * len(claim)
    left = "".join(letters)
    more = [left[max(0, at.start() - 60) : at.end() + 40] for at in RESULT.finditer(left)] if is_whole else []
    return found + [f"says what no claim holds to rows: {words}" for words in more]


def part_of(page: str) -> str:
    """The text of a page, or of the section `PATH # TITLE` of it; without stars and addresses of links."""
    path, _, section = page.partition(" # ")
    text = (ROOT / path).read_text(encoding="utf-8")
    text = text.partition(f"## {section}\n")[2].partition("\n## ")[0] if section else text
    return re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("*", "")


def errors_on(page: str, wanted: Sequence[str]) -> list[str]:
    """What is wrong on a page. The archive of studies has other results beside its pieces."""
    is_whole = not page.startswith("studies/")
    return [f"{page} {error}" for error in errors_of(part_of(page), wanted, is_whole)]


def main() -> int:
    """Print what is wrong; with `--print`, all pieces as they should stand. 1 if anything is wrong."""
    known, pages = read_claims()
    told = {page: [piece.format_map(known) for piece in pieces] for page, pieces in pages.items()}
    if "--print" in sys.argv:
        print(*(line for page, wanted in told.items() for line in (f"== {page}", *wanted)), sep="\n")
    wrong = [error for page, wanted in told.items() for error in errors_on(page, wanted)]
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
