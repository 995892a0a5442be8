"""What a study may say of an endpoint."""

from typing import Literal

from grr_coca.study.report.numbers.metrics import Endpoint
from grr_coca.study.report.numbers.results import EndpointResult
from grr_coca.study.statistics.fewest import LEVEL_OF_TESTS

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
