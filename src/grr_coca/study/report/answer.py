"""The answer of a study in sentences: `answer`.

Its parts follow: verdicts, the comparison with the paper, the effects of the parts, and numbers in words.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from grr_coca.study.plan import SIGNIFICANCE_LEVEL, Plan
from grr_coca.study.report.numbers import (
    PARTS,
    PARTS_OF_PRESET,
    PHASE_TITLES,
    ArmResults,
    Effect,
    Endpoint,
    EndpointResult,
    FactorResults,
    StudyResults,
)
from grr_coca.study.statistics import min_seeds

_Names = tuple[str, str]
"""Display names of the first arm and the baseline."""


@dataclass(frozen=True)
class Answer:
    """The question of a study, its answer in one line, and sentences with the numbers and caveats."""

    question: str
    headline: str
    sentences: tuple[str, ...]


def answer(plan: Plan, results: StudyResults) -> Answer:
    """The answer of a study on its first arm against the baseline."""
    titles = arm_titles(plan)
    main = results.arms[0]
    names = titles[main.arm], titles[results.baseline]
    question = f"Is {names[0]} better than {names[1]}?"
    if not plan.seeds:
        return Answer(question, "This plan searches for settings only", ())
    sentences = [
        *_amounts(plan, main, names),
        _decisions(main, names[0]),
        _main_effects(results, headline_endpoint(plan, "pretraining")),
        _significant_effects(results),
        _paper(results, main),
        near_chance_in_words(results),
        _lost(results, main),
        _left_out(results, main),
        _too_few_seeds(main),
        _too_early(results, main),
    ]
    return Answer(question, _capitalized(_headline(results, main, names)), tuple(filter(None, sentences)))


def headline_endpoint(plan: Plan, phase: str) -> Endpoint | None:
    """The primary endpoint for the headline of a phase: the CoCa loss, which is trained, or else the first one."""
    found = [endpoint for endpoint in map(Endpoint, plan.endpoints.primary) if endpoint.phase == phase]
    return next((endpoint for endpoint in found if endpoint.metric == "coca_loss"), found[0] if found else None)


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


def _amounts(plan: Plan, main: ArmResults, names: _Names) -> list[str]:
    shown = [headline_endpoint(plan, phase) for phase in PHASE_TITLES]
    return [_amount(r, names) for e in shown for r in _primary(main) if e and r.endpoint == e.name and r.effect]


def _amount(result: EndpointResult, names: _Names) -> str:
    effect = result.effect
    assert effect is not None
    change = change_in_words(effect.change)
    than = "as" if change == "the same" else "than"
    begins = "" if effect.low is None else "95 % interval: "
    words = f"{begins}{interval_in_words(effect)}"
    return f"{names[0]}'s {Endpoint(result.endpoint).full_title} is {change} {than} {names[1]}'s ({words})."


def _lost(results: StudyResults, main: ArmResults) -> str:
    """A sentence on the seeds in which a run of the two arms diverged; empty if none did."""
    if not results.num_lost_seeds:
        return ""
    lost = [line for line in results.lost if line.startswith((f"{main.arm}:", f"{results.baseline}:"))]
    return (
        f"Of {_counted(results.num_planned_seeds, 'seed')}, {results.num_lost_seeds} cannot be compared, because a run "
        f"diverged ({'; '.join(lost)}). An arm that diverged is worse than what its other seeds show."
    )


def near_chance_in_words(results: StudyResults) -> str:
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


def _says_nothing(results: StudyResults, endpoint: Endpoint) -> bool:
    """True for a contrastive loss that is near chance in some stage of its phase."""
    pretraining = results.stages[0]
    phases = {"pretraining" if found.stage == pretraining else "finetuning" for found in results.near_chance}
    return endpoint.metric == "contrastive_loss" and endpoint.phase in phases


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
    needed = min_seeds(len(primary))
    seeds = max((result.effect.num_seeds for result in primary if result.effect), default=0)
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

_DECISIONS: dict[Verdict, str] = {
    "better": "{name} is better in {endpoints}",
    "worse": "{name} is worse in {endpoints}",
    "equal": "the 95 % interval lies within ±2 % for {endpoints}",
    "open": "nothing is decided on {endpoints}",
    "missing": "nothing can be compared of {endpoints}",
}


def verdict(result: EndpointResult) -> Verdict:
    """The verdict on an endpoint.

    Better or worse: the t test passes Holm's correction. Secondary endpoints, which the correction does not cover, are
    never called so. Equal: it does not pass with seeds enough for a verdict, and the interval lies within ± 2 %.
    Missing: no seed can be compared, since a value is missing or not above zero. Open: none of these.
    """
    effect = result.effect
    if effect is None:
        return "missing"
    if result.p_holm is None:
        return "open"
    if result.p_holm <= SIGNIFICANCE_LEVEL:
        is_lower = effect.change < 0
        return "better" if is_lower == Endpoint(result.endpoint).lower_is_better else "worse"
    return "equal" if effect.is_equivalent else "open"


def _decisions(main: ArmResults, name: str) -> str:
    """A clause for each verdict, with its endpoints."""
    decided: dict[Verdict, list[EndpointResult]] = {}
    for result in _primary(main):
        decided.setdefault(verdict(result), []).append(result)
    return _clauses(
        template.format(name=name, endpoints=_in_words(decided[kind]))
        for kind, template in _DECISIONS.items()
        if kind in decided
    )


# --- Comparison with the paper

REPORTED = {
    "pretraining/contrastive_loss": -27.25,
    "pretraining/perplexity": -3.71,
    "pretraining/coca_loss": -7.15,
    "finetuning/contrastive_loss": -13.66,
    "finetuning/perplexity": -5.18,
    "finetuning/coca_loss": -5.55,
}
"""Changes of GRR-CoCa over Baseline CoCa in per cent, after pretraining and on average over three fine-tunings, in the
abstract of *GRR-CoCa: Leveraging LLM Mechanisms in Multimodal Model Architectures* (arXiv 2507.18009)."""
_ARMS = ("grr_coca", "baseline_coca")

Agreement = Literal["excluded", "doubtful", "within", "exceeded"]

_AGREEMENTS: dict[Agreement, str] = {
    "excluded": "as large a gain as the paper reports is excluded at this scale, by an interval over seeds that is "
    "corrected for the {count}, for {endpoints}",
    "doubtful": "a gain like the paper's lies outside the 95 % interval, but within one that is corrected for the "
    "{count}, for {endpoints}",
    "within": "a gain like the paper's lies within the interval for {endpoints}",
    "exceeded": "the paper's gain is exceeded for {endpoints}",
}


def reported_change(endpoint: str, arm: str, baseline: str) -> float | None:
    """The change in per cent that the paper reports for an endpoint; None if it has none, or for other models."""
    return REPORTED.get(endpoint) if (arm, baseline) == _ARMS else None


def agreement(effect: Effect, reported: float, num_endpoints: int) -> Agreement | None:
    """Compare a study's interval with a gain that the paper reports.

    - within: the 95 % interval contains the reported gain
    - doubtful: it does not, but the interval does that is corrected for all endpoints (Dunn, Journal of the American
      Statistical Association 56, 1961)
    - excluded: neither contains it, and the gain of the study is smaller
    - exceeded: neither contains it, and the gain of the study is larger

    Args:
        effect: the effect in the study.
        reported: the reported gain in per cent, below zero.
        num_endpoints: number of endpoints that are compared with the paper.

    Returns:
        None if the study has a single seed.
    """
    if effect.low is None or effect.high is None:
        return None
    if effect.low <= reported <= effect.high:
        return "within"
    low, high = effect.interval_among(num_endpoints)
    if low <= reported <= high:
        return "doubtful"
    return "excluded" if low > reported else "exceeded"


def _paper(results: StudyResults, main: ArmResults) -> str:
    """The comparison with the gains that the paper reports; empty until all seeds are finished.

    Endpoints that lack seeds are left out, since the missing seeds may be the worst, and so are
    contrastive losses near chance, which exclude nothing.
    """
    if results.num_seeds < results.num_planned_seeds:
        return ""
    reported = [(result, reported_change(result.endpoint, main.arm, results.baseline)) for result in main.endpoints]
    compared = [
        (result, result.effect, gain)
        for result, gain in reported
        if result.effect and gain is not None and result.effect.num_seeds == results.num_planned_seeds
    ]
    agreeing: dict[Agreement, list[EndpointResult]] = {}
    for result, effect, gain in compared:
        found = agreement(effect, gain, len(compared))
        if found is not None and not _says_nothing(results, Endpoint(result.endpoint)):
            agreeing.setdefault(found, []).append(result)
    clauses = [
        template.format(endpoints=_in_words(agreeing[kind]), count=_counted(len(compared), "endpoint"))
        for kind, template in _AGREEMENTS.items()
        if kind in agreeing
    ]
    small = [result for result, effect, gain in compared if _is_small(effect, gain)]
    small = [result for result in small if not _says_nothing(results, Endpoint(result.endpoint))]
    if small:
        clauses.append(f"the 95 % interval lies within half of the paper's gain, up and down, for {_in_words(small)}")
    return _clauses(clauses)


def _is_small(effect: Effect, reported: float) -> bool:
    """True if the interval lies within half of the reported gain, below and above no change.

    This is an equivalence test by two one-sided tests of 2.5 % each. A change within this margin is closer to none than
    to what the paper reports.
    """
    margin = abs(reported) / 2
    return effect.low is not None and effect.high is not None and -margin < effect.low and effect.high < margin


# --- Effects of the parts


def _main_effects(results: StudyResults, endpoint: Endpoint | None) -> str:
    """A sentence on the main effects on an endpoint; empty without a factorial of two or more seeds."""
    if endpoint is None or _num_seeds(results, endpoint.name) < 2:
        return ""
    effects = [(found.factors[0], found.effects[endpoint.name]) for found in _single_factors(results)]
    effects.sort(key=lambda named: named[1].change)
    changes = [f"{name} {change_in_words(effect.change)} ({interval_in_words(effect)})" for name, effect in effects]
    seeds, planned = _num_seeds(results, endpoint.name), results.num_planned_seeds
    of_seeds = "" if seeds == planned else f", with {seeds} of {planned} seeds"
    return f"Main effects on {endpoint.full_title}{of_seeds}: {listed(changes)}."


def _significant_effects(results: StudyResults) -> str:
    """A sentence on the significant main effects; empty until the study is complete.

    Endpoints that lack seeds are left out, since the missing seeds may be the worst.
    """
    if not results.factorial or not results.is_complete or results.num_planned_seeds < 2:
        return ""
    effects = results.factorial[0].effects  # all effects on an endpoint have the same seeds
    lacking = [Endpoint(name) for name, effect in effects.items() if effect.num_seeds < results.num_planned_seeds]
    sentences = [] if len(lacking) == len(effects) else [_shown(results)]
    if lacking:
        combined = f"not all {results.num_planned_seeds} seeds have a value for every combination of the parts"
        sentences.append(f"Significant main effects on {endpoints_in_words(lacking)} are unknown: {combined}.")
    return " ".join(sentences)


def _shown(results: StudyResults) -> str:
    clauses = [
        clause for found in _single_factors(results) for clause in _part_clauses(found, results.num_planned_seeds)
    ]
    level = f"t test at the {100 * SIGNIFICANCE_LEVEL:g} % level"
    counted = f"{level}, corrected for the {len(results.factorial)} main effects and interactions on an endpoint, "
    counted += "but not for several endpoints"
    return f"Significant main effects ({counted}): {'; '.join(clauses) or 'none'}."


def _num_seeds(results: StudyResults, endpoint: str) -> int:
    """Number of seeds of the effects on an endpoint, the same for all effects."""
    effect = results.factorial[0].effects.get(endpoint) if results.factorial else None
    return 0 if effect is None else effect.num_seeds


def _single_factors(results: StudyResults) -> list[FactorResults]:
    return [found for found in results.factorial if len(found.factors) == 1]


def _part_clauses(found: FactorResults, num_seeds: int) -> list[str]:
    """A clause for each phase and direction, such as `RoPE lowers perplexity by 2.5 % after pretraining`, on endpoints
    that have all seeds."""
    shown = {
        Endpoint(name): found.effects[name].change
        for name, p in found.p_holm.items()
        if p <= SIGNIFICANCE_LEVEL and found.effects[name].num_seeds == num_seeds
    }
    clauses = []
    for (phase, title), (verb, sign) in product(PHASE_TITLES.items(), (("lowers", -1), ("raises", 1))):
        moved = [(e.title, change) for e, change in shown.items() if e.phase == phase and change * sign > 0]
        if moved:
            moves = listed([f"{metric} by {abs(change):.1f} %" for metric, change in moved])
            clauses.append(f"{found.factors[0]} {verb} {moves} {title}")
    return clauses


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


def change_in_words(percent: float) -> str:
    """A change as `2.4 % lower`."""
    if abs(percent) < 0.05:
        return "the same"
    return f"{abs(percent):.1f} % {_direction(percent)}"


def interval_in_words(effect: Effect) -> str:
    """An interval as `1.2 to 3.5 % lower`, or why there is none."""
    low, high = effect.low, effect.high
    if low is None or high is None:
        return "one seed, so no interval"
    if low * high > 0:
        near, far = sorted((abs(low), abs(high)))
        return f"{near:.1f} to {far:.1f} % {_direction(low)}"
    return f"{abs(low):.1f} % lower to {high:.1f} % higher"


def endpoints_in_words(endpoints: Sequence[Endpoint]) -> str:
    """Endpoints as `contrastive loss and perplexity after pretraining, and CoCa loss after fine-tuning`."""
    metrics: dict[str, list[str]] = {}
    for endpoint in endpoints:
        metrics.setdefault(PHASE_TITLES[endpoint.phase], []).append(endpoint.title)
    listed_by_phase = {phase: listed(titles) for phase, titles in metrics.items()}
    if listed_by_phase and len(set(listed_by_phase.values())) == 1:
        return f"{next(iter(listed_by_phase.values()))} {listed(list(listed_by_phase))}"
    return ", and ".join(f"{titles} {phase}" for phase, titles in listed_by_phase.items())


def interval_in_signs(effect: Effect | None) -> str:
    """An interval as `−3.5 to −1.2`; a dash if there is none."""
    return "–" if effect is None or effect.low is None else f"{signed(effect.low)} to {signed(effect.high)}"


def p_in_words(p: float | None) -> str:
    """A p value with three digits; a dash if it is None."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _direction(percent: float) -> str:
    return "lower" if percent < 0 else "higher"


def _in_words(results: Sequence[EndpointResult]) -> str:
    return endpoints_in_words([Endpoint(result.endpoint) for result in results])


def _clauses(clauses: Iterable[str]) -> str:
    text = "; ".join(clauses)
    return f"{_capitalized(text)}." if text else ""


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
