"""Answer of a study in words: the question, one headline, and the limitations."""

from collections import Counter
from typing import NamedTuple

from grr_coca_study.plan import Plan
from grr_coca_study.report.numbers import StudyResults
from grr_coca_study.statistics import min_seeds

_ARM_TITLES = {
    "grr_coca": "GRR-CoCa",
    "baseline_coca": "Baseline CoCa",
    "baseline_rms": "Baseline + RMSNorm",
    "baseline_geglu": "Baseline + GEGLU",
    "baseline_rope_2d": "Baseline + RoPE",
    "baseline_rms_geglu": "Baseline + RMSNorm + GEGLU",
    "baseline_rms_rope_2d": "Baseline + RMSNorm + RoPE",
    "baseline_geglu_rope_2d": "Baseline + GEGLU + RoPE",
}


def arm_titles(plan: Plan) -> dict[str, str]:
    """Return the display name of each arm.

    This is the arm's title if the plan has one. Otherwise, GRR-CoCa, the baseline and the arms between them have fixed
    display names, such as `Baseline + GEGLU`. The display name of any other arm is its name.
    """
    return {arm.name: arm.title or _ARM_TITLES.get(arm.name, arm.name) for arm in plan.arms}


class Answer(NamedTuple):
    """Question of a study, its answer in one line, and its limitations in sentences."""

    question: str
    headline: str
    cautions: list[str]


def answer(plan: Plan, results: StudyResults) -> Answer:
    """Return the answer of a study to the question whether its first arm is better than the baseline.

    The headline counts the verdicts on the primary endpoints.
    """
    primary, titles = results.arms[0].primary, arm_titles(plan)
    question = f"Is {titles[results.pair[0]]} better than {titles[results.baseline]}?"
    if not plan.seeds:
        return Answer(question, "This plan searches for settings only", [])
    verdicts = Counter(result.verdict for result in primary)
    summary = ", ".join(f"{verdict} in {count}" for verdict, count in verdicts.items())
    headline = f"{summary} of {len(primary)} primary endpoint{'' if len(primary) == 1 else 's'}"
    if results.num_awaited_seeds:
        headline = f"so far, with {results.num_seeds} of {results.num_planned_seeds} seeds complete: {headline}"
    return Answer(question, headline[0].upper() + headline[1:], _cautions(results))


def _cautions(results: StudyResults) -> list[str]:
    primary, found = results.arms[0].primary, []
    if results.near_chance:
        first, stages = results.near_chance[0], ", ".join(each.stage for each in results.near_chance)
        found.append(
            f"After {stages}, contrastive losses on {results.split} are about as high as by guessing "
            f"({first.chance:.2f}, the logarithm of the {first.batch_size} pairs of a batch). They are uninformative, "
            "and so is their part of the CoCa loss. Compare the loss with a refitted temperature, and R@1."
        )
    if results.num_lost_seeds:
        found.append(
            f"{results.num_lost_seeds} of {results.num_planned_seeds} seeds cannot be compared, because a run "
            "diverged. An arm that diverged is worse than its other seeds suggest."
        )
    if any(0 < result.num_seeds < results.num_seeds for result in primary):
        found.append(
            "Some endpoints lack seeds whose value has no ratio; see the notes. These seeds may be the worst, so the "
            "changes of these endpoints cannot be trusted."
        )
    seeds = max(result.num_seeds for result in primary)
    if seeds == 1:
        found.append(
            "One seed is not evidence: with another seed, the order of the two models may be different. Run the plan "
            "with several seeds, as a study does."
        )
    elif 1 < seeds < min_seeds(len(primary)):
        found.append(
            f"With {seeds} seeds, no endpoint is called better, worse or equal: with {len(primary)} primary "
            f"endpoint{'' if len(primary) == 1 else 's'}, this requires at least {min_seeds(len(primary))} seeds."
        )
    if results.num_awaited_seeds and any(result.verdict in ("better", "worse") for result in primary):
        found.append(
            "Wait for all seeds: a study that stops at the first significant difference often finds differences that "
            "do not exist."
        )
    return found
