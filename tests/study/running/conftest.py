"""The agenda of a small study."""

import pytest

from grr_coca_study.plan import Plan, read_plan
from grr_coca_study.running.agenda import RemainingWork


@pytest.fixture
def agenda_of(write_study, tmp_path):
    """The agenda of some arms of a study that is laid out here; folders of runs lie in `tmp_path`."""

    def make(*arms: str, **changes):
        plan = read_plan(write_study(**changes), Plan)
        return RemainingWork(plan, lambda *names: tmp_path.joinpath("runs", *map(str, names)), arms=arms)

    return make
