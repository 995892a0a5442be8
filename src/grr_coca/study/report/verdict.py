"""The answer of a study: its headline, what limits it, verdicts on endpoints, and numbers in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from grr_coca.study.plan import SIGNIFICANCE_LEVEL, Plan
from grr_coca.study.report.numbers import (
    PARTS,
    PARTS_OF_PRESET,
    ArmResults,
    Effect,
    Endpoint,
    EndpointResult,
    StudyResults,
)
from grr_coca.study.statistics import MARGIN, min_seeds

_Names = tuple[str, str]
"""Display names of the first arm and the baseline."""


@dataclass(frozen=True)
class Answer:
    """The question of a study, its answer in one line, and sentences on what limits it."""

    question: str
    headline: str
    cautions: tuple[str, ...]


def answer(plan: Plan, results: StudyResults) -> Answer:
    """The answer of a study on its first arm against the baseline. The numbers are in its tables."""
    titles = arm_titles(plan)
    main = results.arms[0]
    names = titles[main.arm], titles[results.baseline]
    where = ", each at its best settings" if any(r.with_choice for r in _primary(main)) else ""
    question = f"Is {names[0]} better than {names[1]}{where}?"
    if not plan.seeds:
        return Answer(question, "This plan searches for settings only", ())
    cautions = [
        _near_chance(results),
        _lost(results, main),
        _left_out(results, main),
        _too_few_seeds(main),
        _too_early(results, main),
    ]
    return Answer(question, capitalized(f"{_headline(results, main, names)}{where}"), tuple(filter(None, cautions)))


def _primary(main: ArmResults) -> list[EndpointResult]:
    return [result for result in main.endpoints if result.is_primary]


def _headline(results: StudyResults, main: ArmResults, names: _Names) -> str:
    verdicts = [verdict(result) for result in _primary(main)]
    if set(verdicts) == {"missing"}:
        yet = " yet" if results.num_awaited_seeds else ""
        return f"No answer{yet}: no seed allows a comparison of {names[0]} and {names[1]}"
    compared = [kind for kind in verdicts if kind != "missing"]
    begins = ""
    if results.num_awaited_seeds:
        begins = f"So far, with {results.num_seeds} of {results.num_planned_seeds} seeds complete: "
    better, worse, equal = (verdicts.count(kind) for kind in ("better", "worse", "equal"))
    of_all = f"of {len(verdicts)} primary endpoints"
    everywhere = "the one primary endpoint" if len(verdicts) == 1 else f"all {of_all[3:]}"
    if better and worse:
        return f"{begins}{names[0]} is better than {names[1]} in {better} {of_all} and worse in {worse}"
    if better or worse:
        kind, count = ("better", better) if better else ("worse", worse)
        where = everywhere if count == len(verdicts) else f"{count} {of_all}"
        return f"{begins}{names[0]} is {kind} than {names[1]} in {where}"
    if equal == len(verdicts):
        return f"{begins}{names[0]} and {names[1]} are equal within ±2 % in {everywhere}"
    if _too_few_seeds(main):
        return f"{begins}not enough seeds to decide whether {names[0]} is better than {names[1]}"
    anywhere = everywhere if len(verdicts) == 1 else f"any {of_all}"
    if len(compared) < len(verdicts):
        anywhere = f"the {_counted(len(compared), 'primary endpoint')} of {len(verdicts)} that can be compared"
    return f"{begins}no difference between {names[0]} and {names[1]} is shown in {anywhere}"


def _lost(results: StudyResults, main: ArmResults) -> str:
    """A sentence on the seeds in which a run of the two arms diverged; empty if none did."""
    if not results.num_lost_seeds:
        return ""
    lost = [line for line in results.lost if line.startswith((f"{main.arm}:", f"{results.baseline}:"))]
    return (
        f"Of {_counted(results.num_planned_seeds, 'seed')}, {results.num_lost_seeds} cannot be compared, because a run "
        f"diverged ({'; '.join(lost)}). An arm that diverged is worse than what its other seeds show."
    )


def _near_chance(results: StudyResults) -> str:
    """A warning that some contrastive losses are no better than guessing; empty if none is."""
    if not results.near_chance:
        return ""
    first = results.near_chance[0]
    stages = listed([found.stage for found in results.near_chance])
    guessing = f"{first.chance:.2f}, the logarithm of the {first.batch_size} pairs of a batch"
    return (
        f"After {stages}, contrastive losses on {results.split} are about as high as by guessing ({guessing}). Nothing "
        "follows from them, and the CoCa loss contains them. Look at the loss with a refitted temperature, and at R@1."
    )


def _left_out(results: StudyResults, main: ArmResults) -> str:
    """A sentence on endpoints that lack finished seeds, since a loss is infinite or NaN, or a recall is zero."""
    lacking = [r for r in _primary(main) if r.effect and r.effect.num_seeds < results.num_seeds]
    if not lacking:
        return ""
    partial = [f"{Endpoint(r.endpoint).full_title} ({r.effect.num_seeds})" for r in lacking if r.effect]
    return (
        f"Not all {results.num_seeds} seeds are in {listed(partial)}: a loss that is NaN or infinite, or a recall of "
        "zero, has no ratio. The missing seeds may be the worst, so these changes cannot be trusted."
    )


def _too_early(results: StudyResults, main: ArmResults) -> str:
    """A warning if there is a verdict before all seeds are finished; else empty."""
    is_decided = any(verdict(result) in ("better", "worse") for result in _primary(main))
    if not is_decided or not results.num_awaited_seeds:
        return ""
    return "Wait for all seeds: stopping at the first significant difference finds differences that do not exist."


def _too_few_seeds(main: ArmResults) -> str:
    """A sentence if no endpoint has enough seeds for a verdict; else empty."""
    primary = _primary(main)
    seeds = max((result.effect.num_seeds for result in primary if result.effect), default=0)
    if seeds == 1:
        return (
            "One seed is not a claim: the order of two models can change with the seed. grr-coca study run runs a plan "
            "with many."
        )
    needed = min_seeds(len(primary))
    if not 0 < seeds < needed:
        return ""
    return (
        f"With {_counted(seeds, 'seed')}, nothing is called better, worse or equal: "
        f"of {_counted(len(primary), 'endpoint')}, this takes {needed} seeds, which detect a true change of two "
        "standard deviations in four studies of five."
    )


# --- Verdicts

Verdict = Literal["better", "worse", "equal", "open", "missing"]

VERDICT_TITLES: dict[Verdict, str] = {
    "better": "better",
    "worse": "worse",
    "equal": "equal within ±2 %",
    "open": "undecided",
    "missing": "nothing to compare",
}


def verdict(result: EndpointResult) -> Verdict:
    """The verdict on an endpoint.

    Better or worse: the t test passes Holm's correction and, if the settings were chosen with these seeds, the interval
    with the choice drawn excludes zero. Secondary endpoints, which the correction does not cover, are never called so.
    Equal: neither, with seeds enough for a verdict, and all intervals lie within ± 2 %. Missing: no seed can be
    compared, since a value is missing or not above zero. Open: none of these.
    """
    effect = result.effect
    if effect is None:
        return "missing"
    if result.p_holm is None:
        return "open"
    drawn = result.with_choice
    if result.p_holm <= SIGNIFICANCE_LEVEL and (drawn is None or drawn[0] * drawn[1] > 0):
        is_lower = effect.change < 0
        return "better" if is_lower == Endpoint(result.endpoint).lower_is_better else "worse"
    is_equal = effect.is_equivalent and (drawn is None or max(-drawn[0], drawn[1]) < MARGIN)
    return "equal" if is_equal else "open"


# --- Names and numbers in words

_ARM_TITLES = {"grr_coca": "GRR-CoCa", "baseline_coca": "Baseline CoCa"}
_MINUS = "\u2212"


def arm_titles(plan: Plan) -> dict[str, str]:
    """Display names of the arms: the title, or the parts of an arm between the two models, or the name."""
    titles = dict(_ARM_TITLES)
    for preset, parts in PARTS_OF_PRESET.items():
        titles.setdefault(preset, " + ".join(["Baseline", *sorted(parts, key=PARTS.index)]))
    return {arm.name: arm.title or titles.get(arm.name, arm.name) for arm in plan.arms}


def listed(items: Sequence[str]) -> str:
    """Items as `a, b and c`."""
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else "".join(items)


def signed(percent: float | None, digits: int = 1) -> str:
    """A change in per cent with its sign, such as `−2.4`; a dash if it is None."""
    if percent is None:
        return "–"
    rounded = round(percent, digits)
    return f"{rounded:+.{digits}f}".replace("-", _MINUS) if rounded else f"{0:.{digits}f}"  # never −0.0


def interval_in_signs(effect: Effect | None) -> str:
    """An interval as `−3.5 to −1.2`; a dash if there is none."""
    return "–" if effect is None or effect.low is None else f"{signed(effect.low)} to {signed(effect.high)}"


def ends_in_signs(ends: tuple[float, float] | None) -> str:
    """The ends of an interval as `−3.5 to −1.2`; a dash if there is none."""
    return "–" if ends is None else f"{signed(ends[0])} to {signed(ends[1])}"


def p_in_words(p: float | None) -> str:
    """A p value with three digits; a dash if it is None."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def capitalized(text: str) -> str:
    """A text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
