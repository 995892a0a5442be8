"""What each part does, in sentences: the answer to a factorial's question."""

from itertools import product

from grr_coca.study.report.numbers.factors import FactorResults
from grr_coca.study.report.numbers.metrics import PHASE_TITLES, Endpoint
from grr_coca.study.report.numbers.results import StudyResults
from grr_coca.study.report.words import change_in_words, endpoints_in_words, interval_in_words, listed
from grr_coca.study.statistics.fewest import LEVEL_OF_TESTS

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
    return f"What each part does to the {endpoint.full_title}, on average over the others{of_seeds}: {listed(told)}."


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
        sentences.append(f"Which parts are shown to change {endpoints_in_words(lacking)} cannot be told: {combined}.")
    return " ".join(sentences)


def _shown(results: StudyResults) -> str:
    told = [clause for found in _main_effects(results) for clause in _clauses(found, results.num_planned_seeds)]
    level = f"t test at the {100 * LEVEL_OF_TESTS:g} % level"
    effects = f"{len(results.factorial)} effects, of parts and of combinations"
    counted = f"{level}, corrected for the {effects}, that are tested on each endpoint, but not for several endpoints"
    if not told:
        return f"No part is shown to change anything on its own ({counted})."
    return f"What single parts are shown to do ({counted}): {'; '.join(told)}."


def _num_seeds(results: StudyResults, endpoint: str) -> int:
    """With which the effects on an endpoint are known; every effect has the same."""
    effect = results.factorial[0].effects.get(endpoint) if results.factorial else None
    return 0 if effect is None else effect.num_seeds


def _main_effects(results: StudyResults) -> list[FactorResults]:
    return [found for found in results.factorial if len(found.factors) == 1]


def _clauses(found: FactorResults, num_seeds: int) -> list[str]:
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
