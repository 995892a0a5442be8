"""Changes of a metric between arms of studies, with intervals: the settings that `claims.txt` names.

Shapes: S seeds, N images or batches of images, Q quotients that a metric is the sum of, R resamples.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from ledgers import ROOT, captions, plan_of, recipe_of, rows_of, stages_of
from scipy import stats

SPLITS = {"known": "val+test", "style": "test_style", "concept": "test_concept", "tuned": "test"}
METRICS = {"coca": "coca_loss", "contrastive": "contrastive_loss", "refitted": "contrastive_loss_refitted"}
IMAGES = {"val": "val_images"}
"""Splits of which rows have values of single images under another name, if at all."""
RESAMPLES = 2000
IMAGE_SIZE = 64
"""Pixels along a side of all images."""
PAPER = {"coca_loss": -7.15, "perplexity": -3.71, "contrastive_loss": -27.25}
"""Changes after pretraining that the paper reports, in per cent."""
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
)


# --- Values


def value(row: Any, split: str, metric: str) -> float:
    """Return a metric of a run on a split.

    `val+test`: both splits, weighted by their pairs. `training`: the mean over the last steps. `val@1200`: at this
    step. `test_style#flags`, `test_style#others`: perplexity on emojione's flags, and on its other captions.
    """
    if "#" in split:
        assert metric == "perplexity", "contrastive batches mix all captions"
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
    """Return which captions of emojione are flags, in the order of their values."""
    return np.array(["flag" in caption for caption in captions("datasets/pictograms/test_style-*.tar")])


# --- Changes


@dataclass(frozen=True)
class Change:
    """Change by seed.

    Attributes:
        logs: Log ratios, S.
        split: Split, as `value` names it.
        metric: Key in the rows.
        pairs: Rows of both sides by seed; empty for joined settings.
        resampled: Returns log ratios of resampled images, R × S; None if rows lack values of single images.
    """

    logs: np.ndarray
    split: str
    metric: str
    pairs: list[Any]
    resampled: Callable[[], np.ndarray | None] = lambda: None

    def ends(self, more: float = 0.0) -> tuple[float, float, float]:
        """Return the mean and the ends of its 95 % t interval, as log ratios; `more` 1: of one more pair of runs."""
        mean, count = float(self.logs.mean()), len(self.logs)
        width = stats.t.ppf(0.975, count - 1) * self.logs.std(ddof=1) * math.sqrt(more + 1 / count)
        return mean, float(mean - width), float(mean + width)

    def side(self) -> int:
        """Return 1 if the interval is below zero, 2 if above, 0 if it contains zero."""
        _, low, high = self.ends()
        return 1 if high < 0 else 2 if low > 0 else 0

    def p(self) -> float:
        """Return p of the two-sided t test over seeds."""
        return float(stats.ttest_1samp(self.logs, 0).pvalue)

    def sign_flip_p(self) -> float:
        """Return p of the exact sign-flip test over seeds."""
        sums = np.array(list(product((1, -1), repeat=len(self.logs)))) @ self.logs
        return float(np.mean(np.abs(sums) >= abs(self.logs.sum()) - 1e-12))

    def contains_paper(self) -> bool:
        """Return whether the interval contains the change that the paper reports."""
        low, high = self.ends()[1:]
        return bool(low <= math.log1p(PAPER[self.metric] / 100) <= high)

    def over_both(self) -> tuple[float, float] | None:
        """Return the 95 % interval over seeds and images, resampled crossed (Owen 2007); None if rows lack values."""
        logs = self.resampled()
        return None if logs is None else _ends_of((_resampled_seeds(logs.shape[1]) * logs).sum(axis=1))

    def __format__(self, asked: str) -> str:
        return FORMATS[asked](self)


def _resampled_seeds(count: int, seed: int = 0) -> np.ndarray:
    """Weights of resampled seeds, R × S."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count


def _ends_of(logs: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(logs, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Growth(Change):
    """Change minus an earlier one with other seeds: Welch's t test."""

    earlier: Change | None = None

    def ends(self, more: float = 0.0) -> tuple[float, float, float]:
        """Return the difference of the means and the ends of its 95 % interval, as log ratios."""
        assert not more, "a growth has no pairs"
        low, high = self._welch().confidence_interval()
        return float(self.logs.mean() - self._before().logs.mean()), float(low), float(high)

    def p(self) -> float:
        """Return p of Welch's t test, two-sided."""
        return float(self._welch().pvalue)

    def over_both(self) -> tuple[float, float] | None:
        """Return the interval over seeds of both and the images that they share."""
        later, earlier = self.resampled(), self._before().resampled()
        if later is None or earlier is None:
            return None
        sides = ((_resampled_seeds(found.shape[1], i) * found).sum(axis=1) for i, found in enumerate((later, earlier)))
        return _ends_of(np.subtract(*sides))

    def _before(self) -> Change:
        assert self.earlier is not None
        return self.earlier

    def _welch(self) -> Any:
        return stats.ttest_ind(self.logs, self._before().logs, equal_var=False)


# --- Settings


@dataclass(frozen=True)
class Setting:
    """Arms of a study over other arms, seed by seed; of several arms, the mean of the logarithms.

    Attributes:
        study: Study of the arms.
        arms: Names of the arms.
        over: Names of the arms that they are compared with.
        over_study: Study of `over`.
        seeds: Seeds to use; None for all.
        minus: Setting whose change is subtracted, seed by seed.
        earlier: Setting with other seeds whose change is subtracted.
    """

    study: str
    arms: Sequence[str]
    over: Sequence[str]
    over_study: str
    seeds: Sequence[int] | None = None
    minus: "Setting | Joined | None" = None
    earlier: "Setting | Joined | None" = None

    def __getitem__(self, asked: str) -> Change:
        """Return the change on a split of a metric: `test perplexity`. `tuned`: `test` after each fine-tuning."""
        name, metric = asked.split()
        renamed = {"style": "left_out"} if self.study.startswith("styles/") else {}
        renamed = {"known": "test", "style": "val"} if self.study == "icons" else renamed  # val has its unseen styles
        split, metric = renamed.get(name, SPLITS.get(name, name)), METRICS.get(metric, metric)
        stages = stages_of(self.study)
        stages = stages[1:] if name == "tuned" else stages[:1]
        pairs = [
            [[rows_of(study)[arm, seed, stage] for arm in arms for stage in stages] for study, arms in self._sides()]
            for seed in self.used_seeds()
        ]
        means = [[np.mean([math.log(value(row, split, metric)) for row in side]) for side in pair] for pair in pairs]
        logs = np.subtract(*np.transpose(means))
        taken = None if self.minus is None else self.minus[asked]

        def resampled() -> np.ndarray | None:
            found = _resampled_logs(pairs, split, metric)
            other = None if taken is None else taken.resampled()
            if found is None or (taken is not None and other is None):
                return None
            return found if other is None else found - other

        logs = logs if taken is None else logs - taken.logs
        if self.earlier is not None:
            return Growth(logs, split, metric, pairs, resampled, self.earlier[asked])
        return Change(logs, split, metric, pairs, resampled)

    def _sides(self) -> tuple[tuple[str, Sequence[str]], tuple[str, Sequence[str]]]:
        return (self.study, self.arms), (self.over_study, self.over)

    def studies(self) -> list[str]:
        """Return the studies whose rows are used."""
        return list(dict.fromkeys([self.study, self.over_study]))

    def used_seeds(self) -> list[int]:
        """Return the seeds that all arms have."""
        found = set.intersection(*({s for a, s, _ in rows_of(study) if a in arms} for study, arms in self._sides()))
        return sorted(found if self.seeds is None else found & {*self.seeds})

    def recipes(self) -> list[dict[str, Any]]:
        """Return the pretraining recipe of each arm, both sides."""
        return [recipe_of(study, arm, stages_of(study)[0]) for study, arms in self._sides() for arm in arms]

    def _steps(self) -> int:
        steps = {recipe["schedule"]["steps"] for recipe in self.recipes()}
        assert len(steps) == 1, f"{self.study}: arms have {steps} steps"
        return int(steps.pop())

    def __format__(self, asked: str) -> str:
        """Return a fact about the runs, such as `steps`, `passes` over the training pairs, or `n` seeds."""
        if asked == "passes":
            data = self.recipes()[0]["data"]
            shards = (self.recipes()[0]["path"].parent / data["train"]).resolve()
            pairs = len(captions(shards.relative_to(ROOT).as_posix()))
            return f"{self._steps() * data['batch_size'] / pairs:.0f}"
        if asked == "size":
            sizes = {
                row["parameters"]
                for study, arms in self._sides()
                for (arm, _, _), row in rows_of(study).items()
                if arm in arms
            }
            return " or ".join(sorted({NUMBERS[round(size / 1e6)] for size in sizes})) + " million parameters"
        sizes = {recipe["model"].get("patch_size", 16) for recipe in self.recipes()}
        return {
            "steps": f"{self._steps():,}",
            "rate": " and ".join(dict.fromkeys(self.rates())),
            "over rate": self.rates()[1],
            "patches": " and ".join(f"{(IMAGE_SIZE // size) ** 2}" for size in sorted(sizes)),
            "arms": NUMBERS[len(self.arms)],
            "positions": self._positions(),
            "n": f"{len(self.used_seeds())}",
            "seeds": NUMBERS[len(self.used_seeds())],
            "rates": f"Baseline CoCa {self.rates()[1]}, GRR-CoCa {self.rates()[0]}",
            "verdict": "none" if len(self.used_seeds()) < 8 else "by t test",
            "commits": self._commits(self._sides()),
            "commits of arms": self._commits(self._sides()[:1]),
            "commits of over": self._commits(self._sides()[1:]),
        }[asked]

    def _commits(self, sides: Sequence[tuple[str, Sequence[str]]]) -> str:
        """Commits of the code that made the rows of arms."""
        found = {
            row["commit"][:7] for study, arms in sides for (arm, _, _), row in rows_of(study).items() if arm in arms
        }
        return " and ".join(f"`{commit}`" for commit in sorted(found))

    def _positions(self) -> str:
        """Learning rates of learned positions, which GRR-CoCa does not have: `0.0015`, or `0.0015 over 0.012`."""
        found = []
        for study, arms in self._sides():
            for arm in arms:
                own = recipe_of(study, arm, stages_of(study)[0])["optimizer"].get("learning_rates", {})
                if not arm.startswith("grr"):
                    found.append(f"{own.get('image_encoder.position', _rate_of(study, [arm]))}")
        return " over ".join(dict.fromkeys(found))

    def rates(self) -> list[str]:
        """Return the learning rate of both sides."""
        return [_rate_of(study, arms) for study, arms in self._sides()]


def _rate_of(study: str, arms: Sequence[str]) -> str:
    """Learning rate of arms in pretraining: chosen by trials, or that of the recipe."""
    stage, rates = stages_of(study)[0], set()
    for arm in arms:
        chosen = {
            row["settings"].get("optimizer.lr") for (a, _, s), row in rows_of(study).items() if (a, s) == (arm, stage)
        }
        rates |= {recipe_of(study, arm, stage)["optimizer"]["lr"] if rate is None else rate for rate in chosen}
    return " and ".join(f"{rate:g}" for rate in sorted(rates))


@dataclass(frozen=True)
class Joined:
    """Several settings as one.

    Attributes:
        how: `mean` or `sum` of their log ratios, seed by seed; `each`: the mean over seeds of every setting, so that an
            interval is over settings.
        settings: The settings.
    """

    how: str
    settings: Sequence[Setting]

    def __getitem__(self, asked: str) -> Change:
        changes = [setting[asked] for setting in self.settings]
        seeds = {tuple(pair[0][0]["seed"] for pair in change.pairs) for change in changes}
        assert self.how == "each" or len(seeds) == 1, f"joined seed by seed, but the seeds are {seeds}"
        if self.how == "each":
            logs = np.array([change.logs.mean() for change in changes])
            return Change(logs, changes[0].split, changes[0].metric, [])

        def resampled() -> np.ndarray | None:
            found = [change.resampled() for change in changes]
            if any(logs is None for logs in found) or len({change.split for change in changes}) > 1:
                return None
            return np.asarray(getattr(np, self.how)(found, axis=0))

        logs = getattr(np, self.how)([change.logs for change in changes], axis=0)
        return Change(logs, changes[0].split, changes[0].metric, [], resampled)

    def studies(self) -> list[str]:
        """Return the studies whose rows are used."""
        return list(dict.fromkeys(study for setting in self.settings for study in setting.studies()))

    def rates(self) -> list[str]:
        """Return the learning rates of all settings."""
        return [rate for setting in self.settings for rate in setting.rates()]

    def __format__(self, asked: str) -> str:
        found = {f"{setting:{asked}}" for setting in self.settings}
        assert len(found) == 1, f"joined settings differ in {asked}: {found}"
        return found.pop()


@dataclass(frozen=True)
class Best:
    """Arms at several rates over others at several: each side at its own best rate.

    The best rate has the lowest CoCa loss on `val`, by the mean of the logarithm over seeds. Intervals resample the
    seeds and choose the rates in each resample; over few seeds they are too narrow.

    Attributes:
        studies: Studies with equal seeds, whose arms are taken together.
        patterns: Patterns of arms: a side, and the side that it is compared with.
    """

    studies: Sequence[str]
    patterns: tuple[str, str]

    def sides(self) -> list[dict[str, str]]:
        """Return the arms of both sides, each with its study."""
        return [
            {arm: study for study in self.studies for arm in plan_of(study)["arms"] if re.fullmatch(pattern, arm)}
            for pattern in self.patterns
        ]

    def _seeds(self) -> list[int]:
        seeds = {tuple(plan_of(study)["seeds"]) for study in self.studies}
        assert len(seeds) == 1, f"curves need equal seeds, but they are {seeds}"
        return [*seeds.pop()]

    def _losses(self) -> dict[str, np.ndarray]:
        """Logarithms of the CoCa loss on `val` by arm, S each."""
        found = {}
        for side in self.sides():
            for arm, study in side.items():
                stage = stages_of(study)[0]
                lacking = [seed for seed in self._seeds() if (arm, seed, stage) not in rows_of(study)]
                assert not lacking, f"{study}: {arm} lacks the seeds {lacking}"
                rows = [rows_of(study)[arm, seed, stage] for seed in self._seeds()]
                found[arm] = np.array([math.log(value(row, "val", "coca_loss")) for row in rows])
        return found

    def best(self, drawn: Sequence[int] | None = None) -> tuple[str, ...]:
        """Return the best arm of each side, over all seeds or over those drawn."""
        losses = self._losses()
        means = {arm: (found if drawn is None else found[[*drawn]]).mean() for arm, found in losses.items()}
        return tuple(min(side, key=means.__getitem__) for side in self.sides())

    def at(self, arms: Sequence[str]) -> Setting:
        """Return the setting of two arms."""
        ours, theirs = self.sides()
        return Setting(ours[arms[0]], (arms[0],), (arms[1],), theirs[arms[1]], self._seeds())

    def __getitem__(self, asked: str) -> "Drawn":
        seeds = range(len(self._seeds()))
        every = len(seeds) <= 5
        random = np.random.default_rng(0).integers(len(seeds), size=(RESAMPLES, len(seeds))).tolist()
        losses = self._losses()
        changes = {both: self.at(both)[asked] for both in product(*self.sides())}
        draws = []
        for drawn in product(seeds, repeat=len(seeds)) if every else random:
            means = {arm: found[[*drawn]].mean() for arm, found in losses.items()}
            both = tuple(min(side, key=means.__getitem__) for side in self.sides())
            draws.append((both, float(changes[both].logs[[*drawn]].mean())))
        best = self.best()
        change = changes[best]
        drawn_change = Drawn(change.logs, change.split, change.metric, change.pairs, change.resampled)
        return replace(drawn_change, best=best, draws=tuple(draws), words=self.in_words(best))

    def rates(self, arms: Sequence[str]) -> list[float]:
        """Return the learning rates of arms, a side each."""
        return [float(_rate_of(side[arm], [arm])) for side, arm in zip(self.sides(), arms, strict=True)]

    def in_words(self, arms: Sequence[str]) -> str:
        """Return `0.0015 for GRR-CoCa and 0.003 for Baseline CoCa`."""
        ours, theirs = (f"{rate:g}" for rate in self.rates(arms))
        return f"{ours} for both" if ours == theirs else f"{ours} for GRR-CoCa and {theirs} for Baseline CoCa"

    def __format__(self, asked: str) -> str:
        """Return the best rates (`rates`), the one rate that is best for both (`both`), or how many draws agree."""
        best = self.best()
        if asked == "rates":
            return self.in_words(best)
        if asked == "both":
            ours, theirs = self.rates(best)
            assert ours == theirs, f"the best rates differ: {best}"
            return f"{ours:g}"
        tried = [sorted({self.rates(both)[i] for both in product(*self.sides())}) for i in (0, 1)]
        assert asked == "edges", f"unknown format {asked!r}"
        where = [
            "the lowest" if rate == of[0] else "the highest" if rate == of[-1] else "between others"
            for rate, of in zip(self.rates(best), tried, strict=True)
        ]
        return where[0] if where[0] == where[1] else f"{where[0]} for GRR-CoCa and {where[1]} for Baseline CoCa"


@dataclass(frozen=True)
class Drawn(Change):
    """Change between the best rates, with what each resample of seeds chooses and finds."""

    best: tuple[str, ...] = ()
    draws: tuple[tuple[tuple[str, ...], float], ...] = ()
    words: str = ""

    def ends(self, more: float = 0.0) -> tuple[float, float, float]:
        """Return the mean, and the ends of the middle 95 % of the resamples, as log ratios."""
        assert not more, "a resample is not a pair of runs"
        found = [change for _, change in self.draws]
        low, high = np.quantile(found, [0.025, 0.975], method="inverted_cdf")
        return float(self.logs.mean()), float(low), float(high)

    def p(self) -> float:
        """Raise: a t test would take the rates as given."""
        raise NotImplementedError

    def agreeing(self) -> str:
        """Return how many resamples choose these rates: `26 of 27`."""
        return f"{sum(both == self.best for both, _ in self.draws)} of {len(self.draws)}"


# --- Resampled images


def _resampled_logs(pairs: list[Any], split: str, metric: str) -> np.ndarray | None:
    """Log ratios of resampled images, R × S; None if rows lack values. Stages and splits are independent."""
    stages = len(pairs[0][0])
    if any(len({row["arm"] for row in side}) > 1 for pair in pairs for side in pair):
        return None
    splits = [IMAGES.get(name, name) for name in split.split("+")]
    if any(name not in row["values"] for pair in pairs for side in pair for row in side for name in splits):
        return None
    logs = np.zeros((RESAMPLES, len(pairs)))
    for stage in range(stages):
        sides = [[side[stage] for side in pair] for pair in pairs]
        found = [row["metrics"][name]["num_pairs"] for row in sides[0][:1] for name in splits]
        losses = np.zeros((RESAMPLES, len(pairs), 2))
        for number, (name, share) in enumerate(zip(splits, np.divide(found, sum(found)), strict=True)):
            added = np.array([[_added(row, name, metric) for row in both] for both in sides])  # S × 2 × Q × 2 × N
            images = _resampled_images(added.shape[-1], stage + number)
            sums = np.tensordot(images, added, axes=(1, 4))  # R × S × 2 × Q × 2
            losses += share * (sums[..., 0] / sums[..., 1]).sum(axis=-1)
        losses = losses if metric == "perplexity" else np.log(losses)  # its quotient is a logarithm already
        logs += (losses[..., 0] - losses[..., 1]) / stages
    return logs


@cache
def _resampled_images(count: int, seed: int) -> np.ndarray:
    """Return how often each image is drawn, R × N."""
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    counts = np.bincount((drawn + np.arange(RESAMPLES)[:, None] * count).ravel(), minlength=RESAMPLES * count)
    return counts.reshape(RESAMPLES, count).astype(float)


def _added(row: Any, split: str, metric: str) -> np.ndarray:
    """What images, or batches with their captions, add to the numerator and denominator of each quotient, Q × 2 × N."""
    values = row["values"][split]
    nll, tokens = np.array(values["nll"]), np.array(values["tokens"], dtype=float)
    if metric in ("perplexity", "R@1"):
        counted = (nll, tokens) if metric == "perplexity" else (np.array(values["rank"]) == 0, np.ones(len(nll)))
        image = np.unique(values["image"], return_inverse=True)[1] if "image" in values else np.arange(len(nll))
        return np.array([[np.bincount(image, each) for each in counted]])
    name = "contrastive_batches" + ("_refitted" if metric == "contrastive_loss_refitted" else "")
    contrastive = np.array(values[name])
    added: list[tuple[np.ndarray, np.ndarray]] = [(contrastive, np.ones(len(contrastive)))]
    if metric == "coca_loss":
        batch = batch_of_captions(len(nll), int(row["metrics"][split]["contrastive_batch_size"]))
        added.append((2 * np.bincount(batch, nll), np.bincount(batch, tokens)))
    return np.array(added)


@cache
def batch_of_captions(count: int, size: int) -> np.ndarray:
    """Return the contrastive batch of each caption: `torch.randperm` with seed 0, cut into batches."""
    order, raw = list(range(count)), np.random.RandomState(0)._bit_generator.random_raw(count)
    for i in range(count - 1):
        j = i + int(raw[i]) % (count - i)
        order[i], order[j] = order[j], order[i]
    found = np.empty(count, dtype=int)
    found[order] = np.arange(count) // size
    return found


# --- Groups of settings


@dataclass(frozen=True)
class Group:
    """Several settings by name, of which a claim asks how many.

    Attributes:
        settings: The settings by name.
        changes: Their changes, once a split and a metric are chosen.
    """

    settings: dict[str, Any]
    changes: dict[str, Change] | None = None

    def __getitem__(self, asked: str) -> "Group":
        return replace(self, changes={name: setting[asked] for name, setting in self.settings.items()})

    def __format__(self, asked: str) -> str:
        """Return a count, or what Holm's correction (1979) for the whole group says of one setting.

        - `n`, `count`: number of settings; `rates`: their lowest and highest learning rate
        - `lower`, `higher`, `no different`: how many have this verdict; `lower in`: the same after the verdict
        - `lowers`, `raises`: the same after a verb: `lowers it in 2 of 4`; `verb`: the verb of all changes
        - `all`: the verdict that all share; `range`: the smallest and the largest fall
        - `shown`, `flips`: how many pass the correction by the t test, and by the exact sign-flip test
        - `least flip`: the smallest p of the sign-flip test
        - `excludes`: how many intervals exclude the paper's change
        - `word NAME`, `use NAME`, `p NAME`: verdict, advice and corrected p of a setting
        """
        if asked == "n":
            return f"{len(self.settings)}"
        if asked == "count":
            return NUMBERS[len(self.settings)]
        if asked == "rates":
            rates = sorted(float(rate) for setting in self.settings.values() for rate in setting.rates())
            return f"{rates[0]:g} to {rates[-1]:g}"
        assert self.changes is not None
        words = [f"{change:word}" for change in self.changes.values()]
        if asked == "all":
            return words[0] if len({*words}) == 1 else "not of one sign"
        if asked.endswith(" in"):
            return f"{asked} {words.count(asked.removesuffix(' in'))} of {len(words)}"
        if asked in ("lowers", "raises"):
            count = words.count({"lowers": "lower", "raises": "higher"}[asked])
            return f"{asked} it in {count} of {len(words)}"
        if asked == "verb":
            assert len({change.ends()[0] < 0 for change in self.changes.values()}) == 1, "changes of both signs"
            return "lowers" if min(change.ends()[0] for change in self.changes.values()) < 0 else "raises"
        if asked == "range":
            falls = [-100 * math.expm1(change.ends()[0]) for change in self.changes.values()]
            return f"{min(falls):.0f} to {max(falls):.0f}"
        if asked in ("shown", "flips"):
            passed = [p < 0.05 for p in holm(self._p(asked)).values()]
            return f"{sum(passed)} of {len(passed)}"
        if asked == "least flip":
            return f"{256 * min(self._p('flips').values()):.0f}/256"
        if asked == "excludes":
            found = [not change.contains_paper() for change in self.changes.values()]
            return f"{sum(found)} of {len(found)}"
        question, _, name = asked.partition(" ")
        if question in ("word", "use", "p") and name in self.changes:
            p, change = holm(self._p("shown"))[name], self.changes[name]
            if question == "p":
                return p_text(p)
            verdicts = VERDICTS if question == "word" else ADVICE
            return verdicts[(1 if change.ends()[0] < 0 else 2) if p < 0.05 else 0]
        assert asked in VERDICTS, f"unknown format {asked!r}"
        return f"{words.count(asked)} of {len(words)}"

    def _p(self, test: str) -> dict[str, float]:
        assert self.changes is not None
        return {name: change.sign_flip_p() if test == "flips" else change.p() for name, change in self.changes.items()}


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Return p values with Holm's correction."""
    found, least = {}, 0.0
    for i, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        least = max(least, min(1.0, p_values[name] * (len(p_values) - i)))
        found[name] = least
    return found


# --- Formats

VERDICTS = ("no different", "lower", "higher")
ADVICE = ("either", "GRR-CoCa", "Baseline CoCa")


def signed(log_ratio: float) -> str:
    """Return a log ratio as a change in per cent: `−4.2`, `+0.3`, `0.0`."""
    text = f"{100 * math.expm1(log_ratio):+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def interval(ends: Sequence[float] | None) -> str:
    """Return `−5.0 to −3.3`, or a dash if there is no interval."""
    return " to ".join(map(signed, ends)) if ends else "–"


def p_text(p: float) -> str:
    """Return p with four digits."""
    return f"{p:.4f}" if p >= 1e-4 else "< 0.0001"


def _means(change: Change) -> list[float]:
    sides = ([pair[side][0] for pair in change.pairs] for side in (0, 1))
    return [float(np.mean([value(row, change.split, change.metric) for row in rows])) for rows in sides]


def _drawn(change: Change) -> Drawn:
    assert isinstance(change, Drawn), "only `best of` chooses rates"
    return change


def _advice(change: Change) -> str:
    """Return the model that the interval favours; `tentatively` with fewer than eight seeds, which decide nothing."""
    return ADVICE[change.side()] + (", tentatively" if change.side() and len(change.logs) < 8 else "")


FORMATS: dict[str, Callable[[Change], str]] = {
    "": lambda c: f"{signed(c.ends()[0])} % ({interval(c.ends()[1:])})",
    "change": lambda c: f"{signed(c.ends()[0])} %",
    "bare": lambda c: signed(c.ends()[0]),
    "cell": lambda c: f"{signed(c.ends()[0])} ({interval(c.ends()[1:])})",
    "ci": lambda c: interval(c.ends()[1:]),
    "both": lambda c: interval(c.over_both()),
    "pair": lambda c: interval(c.ends(more=1)[1:]),
    "size": lambda c: signed(c.ends()[0]).lstrip("+−"),
    "by": lambda c: f"{signed(c.ends()[0]).lstrip('+−')} % {VERDICTS[c.side()]}",
    "whole": lambda c: f"{abs(100 * math.expm1(c.ends()[0])):.0f}",
    "values": lambda c: " against ".join(f"{100 * mean:.1f}" for mean in _means(c)),
    "backwards": lambda c: " to ".join(f"{100 * mean:.1f}" for mean in reversed(_means(c))),
    "losses": lambda c: " and ".join(f"{mean:.2f}" for mean in reversed(_means(c))),
    "loss": lambda c: f"{_means(c)[0]:.2f}",
    "loss over": lambda c: f"{_means(c)[1]:.2f}",
    "word": lambda c: VERDICTS[c.side()],
    "use": _advice,
    "shown": lambda c: (
        "is shown" if min(c.over_both() or (0, 0)) > 0 or max(c.over_both() or (0, 0)) < 0 else "is not shown"
    ),
    "equal": lambda c: "equal within 2 %" if max(abs(math.expm1(end)) for end in c.ends()) < 0.02 else "not equal",
    "contains": lambda c: "contains" if c.contains_paper() else "does not contain",
    "falls": lambda c: f"{(c.logs < 0).sum()} of {len(c.logs)}",
    "rises": lambda c: f"{(c.logs > 0).sum()} of {len(c.logs)}",
    "rates": lambda c: _drawn(c).words,
    "agreeing": lambda c: _drawn(c).agreeing(),
    "p": lambda c: p_text(c.p()),
}
"""What a claim may ask of a change."""
