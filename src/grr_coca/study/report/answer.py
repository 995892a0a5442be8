"""The answer of a study in sentences.

Numbers and names of a study as people say them.

What a study may say of an endpoint.

What the paper of GRR-CoCa reports, to be held against a study of the same two models.

*GRR-CoCa: Leveraging LLM Mechanisms in Multimodal Model Architectures* (arXiv 2507.18009), abstract: changes of
GRR-CoCa over Baseline CoCa in per cent, after pretraining and on average over three fine-tunings.

Main effects in sentences: the answer to a factorial's question.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from grr_coca.study.plan import Plan
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
from grr_coca.study.statistics import LEVEL_OF_TESTS, fewest_seeds

ARM_TITLES = {"grr_coca": "GRR-CoCa", "baseline_coca": "Baseline CoCa"}
MINUS = "\u2212"


def arm_titles(plan: Plan) -> dict[str, str]:
    """What a reader calls each arm: by its title, those between the two models by their parts, others by their
    names."""
    titles = dict(ARM_TITLES)
    for preset, parts in PARTS_OF_PRESET.items():
        titles.setdefault(preset, " + ".join(["Baseline", *sorted(parts, key=PARTS.index)]))
    return {arm.name: arm.title or titles.get(arm.name, arm.name) for arm in plan.arms}


def listed(items: Sequence[str]) -> str:
    """`a, b and c`."""
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else "".join(items)


def signed(percent: float | None, digits: int = 1) -> str:
    """A change with its sign, such as `−2.4`; a dash if there is none."""
    if percent is None:
        return "–"
    rounded = round(percent, digits)
    return f"{rounded:+.{digits}f}".replace("-", MINUS) if rounded else f"{0:.{digits}f}"  # never −0.0


def change_in_words(percent: float) -> str:
    """`2.4 % lower`."""
    if abs(percent) < 0.05:
        return "the same"
    return f"{abs(percent):.1f} % {_direction(percent)}"


def interval_in_words(effect: Effect) -> str:
    """`1.2 to 3.5 % lower`, or what keeps the interval from being told."""
    low, high = effect.low, effect.high
    if low is None or high is None:
        return "one seed, so no interval"
    if low * high > 0:
        near, far = sorted((abs(low), abs(high)))
        return f"{near:.1f} to {far:.1f} % {_direction(low)}"
    return f"{abs(low):.1f} % lower to {high:.1f} % higher"


def endpoints_in_words(endpoints: Sequence[Endpoint]) -> str:
    """`contrastive loss and perplexity after pretraining, CoCa loss after fine-tuning`."""
    metrics: dict[str, list[str]] = {}
    for endpoint in endpoints:
        metrics.setdefault(PHASE_TITLES[endpoint.phase], []).append(endpoint.title)
    told = {phase: listed(titles) for phase, titles in metrics.items()}
    if told and len(set(told.values())) == 1:
        return f"{next(iter(told.values()))} {listed(list(told))}"
    return ", and ".join(f"{titles} {phase}" for phase, titles in told.items())


def interval_in_signs(effect: Effect | None) -> str:
    """`−3.5 to −1.2`; a dash if there is none."""
    return "–" if effect is None or effect.low is None else f"{signed(effect.low)} to {signed(effect.high)}"


def p_in_words(p: float | None) -> str:
    """A p value with three digits; a dash if there is none."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _direction(percent: float) -> str:
    return "lower" if percent < 0 else "higher"


Verdict = Literal["better", "worse", "equal", "open", "missing"]

VERDICT_TITLES: dict[Verdict, str] = {
    "better": "better",
    "worse": "worse",
    "equal": "equal within ±2 %",
    "open": "undecided",
    "missing": "nothing to compare",
}


def verdict(result: EndpointResult) -> Verdict:
    """Better or worse if the exact test passes Holm's correction; else equal if the interval lies within ± 2 %.

    Secondary endpoints are never called better or worse: no correction covers them. Missing: no seed has values of both
    arms that are above zero, so that there is no ratio.
    """
    effect = result.effect
    if effect is None:
        return "missing"
    if result.p_holm is not None and result.p_holm <= LEVEL_OF_TESTS:
        is_lower = effect.change < 0
        return "better" if is_lower == Endpoint(result.endpoint).lower_is_better else "worse"
    return "equal" if effect.is_equivalent else "open"


REPORTED = {
    "pretraining/contrastive_loss": -27.25,
    "pretraining/perplexity": -3.71,
    "pretraining/coca_loss": -7.15,
    "finetuning/contrastive_loss": -13.66,
    "finetuning/perplexity": -5.18,
    "finetuning/coca_loss": -5.55,
}
ARMS = ("grr_coca", "baseline_coca")

Agreement = Literal["excluded", "doubtful", "within", "exceeded"]


def reported_change(endpoint: str, arm: str, baseline: str) -> float | None:
    """The paper's figure for an endpoint, in per cent; None if it has none, or the models are others."""
    return REPORTED.get(endpoint) if (arm, baseline) == ARMS else None


def agreement(effect: Effect, reported: float, num_endpoints: int) -> Agreement | None:
    """Whether a study excludes a reported gain as too large, has it within its interval, or exceeds it.

    Args:
        effect: what the study found.
        reported: the gain, in per cent, below zero.
        num_endpoints: how many gains are looked at. A gain is excluded or exceeded by an interval that is corrected for
            them (Dunn, Journal of the American Statistical Association 56, 1961); it is doubtful if only the 95 %
            interval of the endpoint by itself leaves it out.
    """
    if effect.low is None or effect.high is None:
        return None
    if effect.low <= reported <= effect.high:
        return "within"
    low, high = effect.interval_among(num_endpoints)
    if low <= reported <= high:
        return "doubtful"
    return "excluded" if low > reported else "exceeded"


FEWEST_SEEDS = 2
"""With one, there is no interval and no test."""


def parts_on_average(results: StudyResults, endpoint: Endpoint | None) -> str:
    """The main effects on an endpoint with their intervals; empty without a factorial that has two seeds."""
    if endpoint is None or _num_seeds(results, endpoint.name) < FEWEST_SEEDS:
        return ""
    effects = [(found.factors[0], found.effects[endpoint.name]) for found in _main_effects(results)]
    effects.sort(key=lambda named: named[1].change)
    told = [f"{name} {change_in_words(effect.change)} ({interval_in_words(effect)})" for name, effect in effects]
    seeds, planned = _num_seeds(results, endpoint.name), results.num_planned_seeds
    of_seeds = "" if seeds == planned else f", with {seeds} of {planned} seeds"
    return f"Main effects on {endpoint.full_title}{of_seeds}: {listed(told)}."


def parts_shown(results: StudyResults) -> str:
    """Which main effects pass the correction, and in which direction; empty until the study is complete. Of an endpoint
    that lacks seeds, nothing is told: those may be the worst."""
    if not results.factorial or not results.is_complete or results.num_planned_seeds < FEWEST_SEEDS:
        return ""
    effects = results.factorial[0].effects  # all effects on an endpoint have the same seeds
    lacking = [Endpoint(name) for name, effect in effects.items() if effect.num_seeds < results.num_planned_seeds]
    sentences = [] if len(lacking) == len(effects) else [_shown(results)]
    if lacking:
        combined = f"not all {results.num_planned_seeds} seeds have a value for every combination of the parts"
        sentences.append(f"Significant main effects on {endpoints_in_words(lacking)} are unknown: {combined}.")
    return " ".join(sentences)


def _shown(results: StudyResults) -> str:
    told = [clause for found in _main_effects(results) for clause in _part_clauses(found, results.num_planned_seeds)]
    level = f"t test at the {100 * LEVEL_OF_TESTS:g} % level"
    counted = f"{level}, corrected for the {len(results.factorial)} main effects and interactions on an endpoint, "
    counted += "but not for several endpoints"
    return f"Significant main effects ({counted}): {'; '.join(told) or 'none'}."


def _num_seeds(results: StudyResults, endpoint: str) -> int:
    """With which the effects on an endpoint are known; every effect has the same."""
    effect = results.factorial[0].effects.get(endpoint) if results.factorial else None
    return 0 if effect is None else effect.num_seeds


def _main_effects(results: StudyResults) -> list[FactorResults]:
    return [found for found in results.factorial if len(found.factors) == 1]


def _part_clauses(found: FactorResults, num_seeds: int) -> list[str]:
    """`RoPE lowers perplexity by 2.5 % after pretraining`, a clause for each phase and direction, of endpoints that all
    seeds have."""
    shown = {
        Endpoint(name): found.effects[name].change
        for name, p in found.p_holm.items()
        if p <= LEVEL_OF_TESTS and found.effects[name].num_seeds == num_seeds
    }
    clauses = []
    for (phase, title), (verb, sign) in product(PHASE_TITLES.items(), (("lowers", -1), ("raises", 1))):
        moved = [(e.title, change) for e, change in shown.items() if e.phase == phase and change * sign > 0]
        if moved:
            told = listed([f"{metric} by {abs(change):.1f} %" for metric, change in moved])
            clauses.append(f"{found.factors[0]} {verb} {told} {title}")
    return clauses


Names = tuple[str, str]
"""The arm that is asked about, and the baseline."""

DECISIONS: dict[Verdict, str] = {
    "better": "{name} is better in {endpoints}",
    "worse": "{name} is worse in {endpoints}",
    "equal": "the 95 % interval lies within ±2 % for {endpoints}",
    "open": "nothing is decided on {endpoints}",
    "missing": "nothing can be compared of {endpoints}",
}
AGREEMENTS: dict[Agreement, str] = {
    "excluded": "as large a gain as the paper reports is excluded at this scale for {endpoints}",
    "doubtful": "a gain like the paper's lies outside the 95 % interval, but within one that is corrected for the "
    "{count}, for {endpoints}",
    "within": "a gain like the paper's lies within the interval for {endpoints}",
    "exceeded": "the paper's gain is exceeded for {endpoints}",
}


@dataclass(frozen=True)
class Answer:
    """A question, its answer in one line, and the sentences that say how much and why."""

    question: str
    headline: str
    sentences: tuple[str, ...]


def answer(plan: Plan, results: StudyResults) -> Answer:
    """Say what a study found of its first arm against the baseline."""
    titles = arm_titles(plan)
    main = results.arms[0]
    names = titles[main.arm], titles[results.baseline]
    question = f"Is {names[0]} better than {names[1]}?"
    if not plan.seeds:
        return Answer(question, "This plan searches for settings only", ())
    sentences = [
        *_amounts(plan, main, names),
        _decisions(main, names[0]),
        parts_on_average(results, headline_endpoint(plan, "pretraining")),
        parts_shown(results),
        _paper(results, main),
        _lost(results, main),
        _left_out(results, main),
        _too_few_seeds(main),
        _too_early(results, main),
    ]
    return Answer(question, _capitalized(_headline(results, main, names)), tuple(filter(None, sentences)))


def headline_endpoint(plan: Plan, phase: str) -> Endpoint | None:
    """The primary endpoint that stands for a phase: CoCa loss, which is what is trained, or else the first."""
    found = [endpoint for endpoint in map(Endpoint, plan.endpoints.primary) if endpoint.phase == phase]
    return next((endpoint for endpoint in found if endpoint.metric == "coca_loss"), found[0] if found else None)


def _primary(main: ArmResults) -> list[EndpointResult]:
    return [result for result in main.endpoints if result.is_primary]


def _headline(results: StudyResults, main: ArmResults, names: Names) -> str:
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


def _amounts(plan: Plan, main: ArmResults, names: Names) -> list[str]:
    shown = [headline_endpoint(plan, phase) for phase in PHASE_TITLES]
    return [_amount(r, names) for e in shown for r in _primary(main) if e and r.endpoint == e.name and r.effect]


def _amount(result: EndpointResult, names: Names) -> str:
    effect = result.effect
    assert effect is not None
    change = change_in_words(effect.change)
    than = "as" if change == "the same" else "than"
    begins = "" if effect.low is None else "95 % interval: "
    told = f"{begins}{interval_in_words(effect)}"
    return f"{names[0]}'s {Endpoint(result.endpoint).full_title} is {change} {than} {names[1]}'s ({told})."


def _decisions(main: ArmResults, name: str) -> str:
    """Which endpoints are decided, and how."""
    decided: dict[Verdict, list[EndpointResult]] = {}
    for result in _primary(main):
        decided.setdefault(verdict(result), []).append(result)
    return _clauses(
        template.format(name=name, endpoints=_in_words(decided[kind]))
        for kind, template in DECISIONS.items()
        if kind in decided
    )


def _paper(results: StudyResults, main: ArmResults) -> str:
    """How the gains that the paper reports compare; empty until all seeds are there. Of an endpoint that lacks some,
    nothing is said: those may be the worst."""
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
        if found is not None:
            agreeing.setdefault(found, []).append(result)
    return _clauses(
        template.format(endpoints=_in_words(agreeing[kind]), count=_counted(len(compared), "endpoint"))
        for kind, template in AGREEMENTS.items()
        if kind in agreeing
    )


def _lost(results: StudyResults, main: ArmResults) -> str:
    """Said where a run of the two diverged."""
    if not results.num_lost_seeds:
        return ""
    told = [line for line in results.lost if line.startswith((f"{main.arm}:", f"{results.baseline}:"))]
    return (
        f"Of {_counted(results.num_planned_seeds, 'seed')}, {results.num_lost_seeds} cannot be compared, because a run "
        f"diverged ({'; '.join(told)}). An arm that diverged is worse than what its other seeds show."
    )


def _left_out(results: StudyResults, main: ArmResults) -> str:
    """Which endpoints lack seeds that were run: a loss that is not finite, or a recall of zero, has no ratio."""
    lacking = [r for r in _primary(main) if r.effect and r.effect.num_seeds < results.num_seeds]
    if not lacking:
        return ""
    told = [f"{Endpoint(r.endpoint).full_title} ({r.effect.num_seeds})" for r in lacking if r.effect]
    return (
        f"Not all {results.num_seeds} seeds are in {listed(told)}: a loss that is not finite and a recall of zero have "
        "no ratio. What is missing may be the worst of all, so these changes cannot be trusted."
    )


def _too_early(results: StudyResults, main: ArmResults) -> str:
    """Said where a verdict is given before all seeds are there."""
    is_decided = any(verdict(result) in ("better", "worse") for result in _primary(main))
    if not is_decided or not results.num_awaited_seeds:
        return ""
    return (
        "Wait for all seeds: whoever looks earlier, and stops when a difference shows, finds some that are not there."
    )


def _too_few_seeds(main: ArmResults) -> str:
    """Said where no endpoint has enough of them; those of pretraining may have more than those of fine-tuning."""
    primary = _primary(main)
    needed = fewest_seeds(len(primary))
    seeds = max((result.effect.num_seeds for result in primary if result.effect), default=0)
    if not 0 < seeds < needed:
        return ""
    return (
        f"With {_counted(seeds, 'seed')} the exact test cannot decide anything: it takes {needed} to pass the "
        f"correction for {_counted(len(primary), 'endpoint')}."
    )


def _in_words(results: Sequence[EndpointResult]) -> str:
    return endpoints_in_words([Endpoint(result.endpoint) for result in results])


def _clauses(clauses: Iterable[str]) -> str:
    text = "; ".join(clauses)
    return f"{_capitalized(text)}." if text else ""


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
