"""Numbers and names of a study as people say them."""

from collections.abc import Sequence

from grr_coca.study.plan.plan import Plan
from grr_coca.study.report.numbers.corners import PARTS, PARTS_OF_PRESET
from grr_coca.study.report.numbers.effect import Effect
from grr_coca.study.report.numbers.metrics import PHASE_TITLES, Endpoint

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
