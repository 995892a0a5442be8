"""The answer of a study in sentences."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from grr_coca.study.plan.plan import Plan
from grr_coca.study.report.numbers.metrics import PHASE_TITLES, Endpoint
from grr_coca.study.report.numbers.results import ArmResults, EndpointResult, StudyResults
from grr_coca.study.report.paper import Agreement, agreement, reported_change
from grr_coca.study.report.parts import parts_on_average, parts_shown
from grr_coca.study.report.verdict import Verdict, verdict
from grr_coca.study.report.words import arm_titles, change_in_words, endpoints_in_words, interval_in_words, listed
from grr_coca.study.statistics.fewest import fewest_seeds

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
