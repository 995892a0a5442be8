"""Tables and counts that placeholders of `pages/` name: `{endpoints[icons grr_coca / baseline_coca]}`.

Each function takes the words in the brackets, and some the settings by name, and returns Markdown.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
from changes import NUMBERS, Best, Change, Setting, holm, interval, signed, value
from ledgers import UNFINISHED, all_rows, plan_of, recipe_of, rows_of, stages_of, studies

PLATEAU = 1.5 / 8
"""R@1 above which a model has begun to learn positions: 1.5 times that of guessing among eight."""
EQUAL = 2.0
"""Per cent: changes whose interval is within this are called equal."""
PARTS = {"rms": "RMSNorm", "geglu": "GEGLU", "rope_2d": "RoPE"}
LOSSES = {"contrastive": "contrastive loss", "perplexity": "perplexity", "coca": "CoCa loss"}
PHASES = {"test": "after pretraining", "tuned": "after fine-tuning"}
SPLIT_ROWS = {
    "CoCa loss, `test`": "test coca",
    "contrastive loss, `test`": "test contrastive",
    "perplexity, `test`": "test perplexity",
    "R@1, `test`": "test R@1",
    "CoCa loss, `val`": "val coca",
    "CoCa loss, `val` and `test`": "known coca",
    "CoCa loss, the unseen style": "style coca",
    "CoCa loss, unseen concepts": "concept coca",
    "CoCa loss in training": "training coca",
}
STYLE_ROWS = {
    "CoCa loss": "coca",
    "contrastive loss": "contrastive",
    "perplexity": "perplexity",
    "R@1": "R@1",
}

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A function as a placeholder names it."""

    function: Callable[[list[str]], str]

    def __getitem__(self, asked: str) -> str:
        return self.function(asked.split())


@dataclass(frozen=True)
class Plateau:
    """Models of a study. A placeholder asks how many have left the plateau, by a pattern of arms."""

    study: str

    def __format__(self, pattern: str) -> str:
        rows = [row for (arm, _, _), row in rows_of(self.study).items() if re.search(pattern, arm)]
        return f"{sum(row['metrics']['test']['R@1'] > PLATEAU for row in rows)} of {len(rows)}"


def title_of(study: str, arm: str) -> str:
    """Return the title of an arm: that of the plan, or `Baseline + RMSNorm + GEGLU`."""
    title = plan_of(study)["arms"][arm].get("title") if arm in plan_of(study)["arms"] else None
    if title:
        return str(title)
    if arm in ("grr_coca", "baseline_coca"):
        return {"grr_coca": "GRR-CoCa", "baseline_coca": "Baseline CoCa"}[arm]
    return " + ".join(["Baseline", *(name for part, name in PARTS.items() if part in arm)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


# --- Study endpoints


def _endpoints(words: Sequence[str]) -> tuple[str, Sequence[str], dict[str, Change], dict[str, float]]:
    """Study, arms, changes and corrected p of the primary endpoints that a plan names, from `STUDY ARM / ARM`."""
    study, arm, _, over = words
    metrics = {"contrastive_loss": "contrastive", "coca_loss": "coca", "perplexity": "perplexity"}
    setting, found = Setting(study, (arm,), (over,), study), {}
    for name in plan_of(study)["endpoints"]["primary"]:
        phase, metric = name.split("/")
        split = "test" if phase == "pretraining" else "tuned"
        found[f"{LOSSES[metrics[metric]]} {PHASES[split]}"] = setting[f"{split} {metrics[metric]}"]
    return study, (arm, over), found, holm({name: change.p() for name, change in found.items()})


def _verdict(change: Change, p: float) -> str:
    if p < 0.05:
        return "better" if change.logs.mean() < 0 else "worse"
    is_equal = max(abs(100 * math.expm1(end)) for end in change.ends()[1:]) < EQUAL
    return f"equal within ±{EQUAL:.0f} %" if is_equal else "undecided"


def endpoints(words: list[str]) -> str:
    """Return the table of the primary endpoints of an arm over another: `STUDY ARM / ARM`."""
    _, _, changes, p_values = _endpoints(words)
    lines = [
        "| endpoint | change, % | 95 % interval | over both | p, corrected | verdict |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, change in changes.items():
        ends = interval(change.ends()[1:]), interval(change.over_both())
        lines.append(_line([name, f"{change:bare}", *ends, _p(p_values[name]), _verdict(change, p_values[name])]))
    return "\n".join(lines)


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def answer(words: list[str]) -> str:
    """Return how many primary endpoints are better or worse: `STUDY ARM / ARM`."""
    study, arms, changes, p_values = _endpoints(words)
    ours, theirs = (title_of(study, arm) for arm in arms)
    verdicts = [_verdict(change, p_values[name]) for name, change in changes.items()]
    counts = {word: verdicts.count(word) for word in ("better", "worse") if word in verdicts}
    if not counts:
        return f"No difference between {ours} and {theirs} is shown in any of {len(verdicts)} primary endpoints."
    told = []
    for word, count in counts.items():
        where = f"in {count} of {len(verdicts)} primary endpoints"
        if count == len(verdicts):
            where = "in the one primary endpoint" if count == 1 else f"in all {count} primary endpoints"
        told.append(f"{word} than {theirs} {where}")
    return f"{ours} is {' and '.join(told)}."


def arms(words: list[str]) -> str:
    """Return the losses after pretraining of all arms over the baseline: `STUDY`. A star: passes Holm's correction."""
    (study,) = words
    plan = plan_of(study)
    lines = ["| arm | seeds | contrastive loss | perplexity | CoCa loss |", "|---|--:|--:|--:|--:|"]
    for arm in plan["arms"]:
        if arm != plan["baseline"]:
            cells = _starred([study, arm, "/", plan["baseline"]])
            lines.append(_line([title_of(study, arm), f"{len(plan['seeds'])}", *cells]))
    return "\n".join(lines)


def pairs(words: list[str]) -> str:
    """Return the losses after pretraining of arms over others: `STUDY ARM/ARM ARM/ARM …`."""
    study, *both = words
    lines = ["|  | contrastive loss | perplexity | CoCa loss |", "|---|--:|--:|--:|"]
    for arm, over in (pair.split("/") for pair in both):
        name = f"{title_of(study, arm)} over {title_of(study, over)}"
        lines.append(_line([name, *_starred([study, arm, "/", over])]))
    return "\n".join(lines)


def _starred(words: Sequence[str]) -> list[str]:
    """The three losses after pretraining, with a star where the correction for all primary endpoints is passed."""
    _, _, changes, p_values = _endpoints(words)
    names = [f"{name} {PHASES['test']}" for name in LOSSES.values()]
    return [f"{changes[name]:cell}" + "*" * (p_values[name] < 0.05) for name in names]


def effects(words: list[str]) -> str:
    """Return main effects and interactions after pretraining: `STUDY PART PART …`, parts as in the names of arms."""
    study, *parts = words
    stage, seeds = stages_of(study)[0], plan_of(study)["seeds"]
    names = [" + ".join(title for part, title in PARTS.items() if part in name) for name in parts]
    groups = [group for size in range(1, len(parts) + 1) for group in combinations(range(len(parts)), size)]
    cells: dict[Any, list[str]] = {group: [] for group in groups}
    for metric in ("contrastive_loss", "perplexity", "coca_loss"):
        found = {}
        for group in groups:
            logs = np.zeros(len(seeds))
            for arm in plan_of(study)["arms"]:
                has = [arm == "grr_coca" or part in arm for part in parts]
                sign = math.prod(1 if has[i] else -1 for i in group)
                rows = (rows_of(study)[arm, seed, stage] for seed in seeds)
                logs = logs + sign * np.array([math.log(value(row, "test", metric)) for row in rows])
            found[group] = Change(2 * logs / len(plan_of(study)["arms"]), "test", metric, [])
        p_values = holm({str(group): change.p() for group, change in found.items()})
        for group, change in found.items():
            cells[group].append(f"{change:cell}" + "*" * (p_values[str(group)] < 0.05))
    lines = ["| effect | contrastive loss | perplexity | CoCa loss |", "|---|--:|--:|--:|"]
    lines += [_line([" × ".join(names[i] for i in group), *cells[group]]) for group in groups]
    return "\n".join(lines)


# --- Splits


def splits(words: list[str], known: Settings) -> str:
    """Return a row for each metric and split, a column for each setting: `NAME NAME …`."""
    return "\n".join(
        _line([title, *(f"{known[name][asked]:cell}" for name in words)]) for title, asked in SPLIT_ROWS.items()
    )


def styles(words: list[str], known: Settings) -> str:
    """Return a row for each metric: on the style left out, on emojione and on `test`: `NAME`."""
    (name,) = words
    return "\n".join(
        _line([title, *(f"{known[name][f'{split} {metric}']:cell}" for split in ("style", "test_style", "test"))])
        for title, metric in STYLE_ROWS.items()
    )


# --- Learning rates


def rates(words: list[str]) -> str:
    """Return the CoCa losses of models at each learning rate, the best on `val` in bold: `STUDY PATTERN PATTERN`."""
    study, *patterns = words
    rows: dict[str, list[str]] = {}
    for number, pattern in enumerate(patterns):
        means = {split: _means(study, pattern, split) for split in ("val", "test")}
        best = min(means["val"], key=means["val"].__getitem__)
        for rate, loss in means["val"].items():
            cell = f"**{loss:.4f}**" if rate == best else f"{loss:.4f}"
            rows.setdefault(rate, ["–"] * 2 * len(patterns))
            rows[rate][2 * number : 2 * number + 2] = [cell, f"{means['test'][rate]:.4f}"]
    return "\n".join(_line([rate, *rows[rate]]) for rate in sorted(rows, key=float))


def _means(study: str, pattern: str, split: str) -> dict[str, float]:
    """Geometric mean of the CoCa loss over seeds by learning rate, from the names of arms."""
    logs: dict[str, list[float]] = {}
    for (arm, _, _), row in rows_of(study).items():
        if re.fullmatch(pattern, arm):
            logs.setdefault(arm.rpartition("_")[2], []).append(math.log(value(row, split, "coca_loss")))
    return {rate: math.exp(np.mean(found)) for rate, found in logs.items()}


def mean(words: list[str]) -> str:
    """Return the geometric mean of a metric over seeds: `STUDY ARM SPLIT METRIC DIGITS`."""
    study, arm, split, metric, digits = words
    found = [math.log(value(row, split, metric)) for (name, _, _), row in rows_of(study).items() if name == arm]
    return f"{math.exp(np.mean(found)):.{digits}f}"


def spread(words: list[str], known: Settings) -> str:
    """Return the lowest and highest change by seed: `NAME SPLIT METRIC`."""
    name, *asked = words
    logs = known[name][" ".join(asked)].logs
    return f"{100 * math.expm1(logs.min()):.0f} to {100 * math.expm1(logs.max()):.0f} %"


def at_rate(words: list[str], known: Settings) -> str:
    """Return the change of the CoCa loss on `test` with both models at one rate: `CURVE RATE`."""
    curve, rate = words
    return f"{_at_rates(known[curve])[float(rate)]['test coca']:bare}"


def doubling(words: list[str], known: Settings) -> str:
    """Return how much this change grows when the rate is doubled, from a line through each seed's changes: `CURVE`."""
    (curve,) = words
    logs = {rate: setting["test coca"].logs for rate, setting in _at_rates(known[curve]).items()}
    slopes = np.polyfit(np.log2(list(logs)), np.array(list(logs.values())), 1)[0]
    return f"{Change(slopes, 'test', 'coca_loss', []):cell}"


def _at_rates(curve: Best) -> dict[float, Setting]:
    """Settings of both models at each rate that both have."""
    ours, theirs = curve.sides()
    found = {both: curve.rates(both) for both in product(ours, theirs)}
    return {rates[0]: curve.at(both) for both, rates in found.items() if rates[0] == rates[1]}


def trials(words: list[str]) -> str:
    """Return the loss of each trial on `val`, those taken marked: `STUDY`."""
    (study,) = words
    arms, lines = list(plan_of(study)["arms"]), []
    found = {kind: _by_settings(study, kind) for kind in ("trial", "choice")}
    for settings, losses in sorted(found["trial"].items()):
        cells = [
            (f"{losses[arm]:.3f}" if arm in losses else "–") + ", taken" * (arm in found["choice"].get(settings, {}))
            for arm in arms
        ]
        lines.append(_line([stages_of(study)[0], f"lr {settings[0]:g}, weight_decay {settings[1]:g}", *cells]))
    return "\n".join(lines)


def too_high(words: list[str]) -> str:
    """Return the models whose best rate of some trials is below the rate of their runs: `STUDY STUDY-OF-TRIALS`."""
    study, of_trials = words
    found = _by_settings(of_trials, "trial")
    models = []
    for arm in plan_of(study)["arms"]:
        run = next(row for key, row in rows_of(study).items() if (key[0], key[2]) == (arm, stages_of(study)[0]))
        best = min((losses[arm], settings[0]) for settings, losses in found.items() if arm in losses)[1]
        models += [title_of(study, arm)] * (best < run["settings"]["optimizer.lr"])
    assert models, f"{of_trials}: the best rates are not below those of {study}"
    return f"too high for {' and '.join(models)}"


def trial(words: list[str]) -> str:
    """Return the loss of an arm in a trial, or the change over another arm: `STUDY ARM [/ ARM] RATE DECAY`."""
    study, arm, *over, rate, decay = words
    losses = _by_settings(study, "trial")[float(rate), float(decay)]
    return signed(math.log(losses[arm] / losses[over[1]])) if over else f"{losses[arm]:.3f}"


def _by_settings(study: str, kind: str) -> dict[tuple[float, float], dict[str, float]]:
    """Losses on `val` of pretraining trials or choices, by learning rate and decay, and by arm."""
    found: dict[tuple[float, float], dict[str, float]] = {}
    for row in all_rows(study):
        if row["kind"] == kind and row["stage"] == stages_of(study)[0]:
            settings = row["settings"]["optimizer.lr"], row["settings"]["optimizer.weight_decay"]
            found.setdefault(settings, {})[row["arm"]] = row["metrics"]["val"]["coca_loss"]
    return found


# --- Other tables


def rows(words: list[str]) -> str:
    """Return how many runs of a plan are done: `STUDY`."""
    (study,) = words
    planned = len(plan_of(study)["arms"]) * len(plan_of(study)["seeds"]) * len(stages_of(study))
    return f"{len(rows_of(study))} of {planned}"


def seeds(words: list[str]) -> str:
    """Return the number of seeds of a study in words: `STUDY`."""
    (study,) = words
    return NUMBERS[len(plan_of(study)["seeds"])]


def steps(words: list[str]) -> str:
    """Return the steps of the pretraining of a study: `STUDY`."""
    (study,) = words
    arm = next(iter(plan_of(study)["arms"]))
    return f"{recipe_of(study, arm, stages_of(study)[0])['schedule']['steps']:,}"


def trial_steps(words: list[str]) -> str:
    """Return the steps of the trials that chose a study's settings: `STUDY`."""
    (study,) = words
    return f"{plan_of(study)['tuning']['steps']:,}"


def share(words: list[str], known: Settings) -> str:
    """Return the learning rate of a setting as a share of another's: `half`."""
    rates = [{float(rate) for rate in known[name].rates()} for name in words]
    assert all(len(found) == 1 for found in rates), f"{words} have several rates"
    return {0.5: "half"}[rates[0].pop() / rates[1].pop()]


def plateau(words: list[str]) -> str:
    """Return how many models of each arm have left the plateau, with their R@1 and that of the others: `STUDY`."""
    (study,) = words
    lines = []
    for arm in plan_of(study)["arms"]:
        found = [row["metrics"]["test"]["R@1"] for (name, _, _), row in rows_of(study).items() if name == arm]
        left, others = ([r for r in found if (r > PLATEAU) == is_left] for is_left in (True, False))
        cells = [
            " to ".join(dict.fromkeys(f"{100 * r:.1f}" for r in (min(each), max(each)))) if each else "–"
            for each in (left, others)
        ]
        lines.append(_line([title_of(study, arm), f"{len(left)} of {len(found)}", *cells]))
    return "\n".join(lines)


def _finished(words: list[str]) -> list[str]:
    assert words == ["all"], words
    return [study for study in studies() if study not in UNFINISHED]


def losses(words: list[str]) -> str:
    """Return lines of CSV: the geometric means over seeds of each arm of all finished studies: `all`."""
    lines = []
    for study in _finished(words):
        stage, *finetunings = stages_of(study)
        for arm in plan_of(study)["arms"]:
            rows = [row for (name, _, s), row in rows_of(study).items() if (name, s) == (arm, stage)]
            tuned = [row for (name, _, s), row in rows_of(study).items() if name == arm and s in finetunings]
            style = "left_out" if study.startswith("styles/") else "test_style"
            splits = ("val", "test", style, "test_concept", "training")
            cells = [_geometric(rows, split, "coca_loss") for split in splits]
            cells += [_geometric(rows, "test", metric) for metric in ("contrastive_loss", "perplexity", "R@1")]
            cells += [_geometric(tuned, "test", "coca_loss"), _geometric(tuned, "val", "coca_loss")]
            if rows:
                lines.append(",".join([study, arm, f"{len(rows)}", *(cell.replace("–", "") for cell in cells)]))
    return "\n".join(lines)


def _geometric(rows: Sequence[Any], split: str, metric: str) -> str:
    """Geometric mean of a metric over rows; a dash if there are none with this split."""
    if not rows or (split != "training" and any(split not in row["metrics"] for row in rows)):
        return "–"
    return f"{math.exp(np.mean([math.log(value(row, split, metric)) for row in rows])):.4f}"


def ledgers(words: list[str]) -> str:
    """Return lines of CSV: steps, seeds, commits and machines of the rows of finished studies: `all`."""
    lines = []
    for study in _finished(words):
        found = all_rows(study)
        runs = [row for row in found if row["kind"] == "run" and row["stage"] == stages_of(study)[0]] or found
        seeds = sorted({row["seed"] for row in runs})
        machines = [
            " ".join(re.sub(r"\(R\)|Processor|, torch .*|, 2 cores", " ", row["machine"]).split()) for row in found
        ]
        cells = [
            study,
            f"{len(found)}",
            " and ".join(f"{steps}" for steps in sorted({row["steps"] for row in runs})),
            " to ".join(f"{seed}" for seed in sorted({seeds[0], seeds[-1]})),
            _counted([row["commit"][:8] for row in found]),
            _counted([machine.replace(" ,", ",") for machine in machines]),
        ]
        lines.append(",".join(f'"{cell}"' if "," in cell else cell for cell in cells))
    return "\n".join(lines)


def _counted(found: Sequence[str]) -> str:
    """What is found, each with how often: `a 16; b 2`."""
    return "; ".join(f"{each} {found.count(each)}" for each in sorted({*found}))


OF_STUDIES: tuple[Callable[[list[str]], str], ...] = (
    endpoints,
    answer,
    arms,
    pairs,
    effects,
    rates,
    mean,
    trials,
    too_high,
    trial,
    rows,
    seeds,
    steps,
    trial_steps,
    plateau,
    losses,
    ledgers,
)
OF_SETTINGS: tuple[Callable[[list[str], Settings], str], ...] = (splits, styles, spread, share, at_rate, doubling)


def tables(known: Settings) -> dict[str, Table]:
    """Return all functions by name."""
    of_settings = {each.__name__: Table(lambda words, each=each: each(words, known)) for each in OF_SETTINGS}  # type: ignore[misc]
    return {each.__name__: Table(each) for each in OF_STUDIES} | of_settings
