"""Requests by grammar and pictures by mutation, in a small form. `make attack` sends them for an hour."""

import pytest
from grammar import attack, request
from serving import Client

COUNT = 300


def test_a_request_depends_on_its_number_alone():
    assert [request(number) for number in range(40)] == [request(number) for number in range(40)]
    asked = [request(number) for number in range(COUNT)]
    assert len({one.path.partition("?")[0] for one in asked}) > 15
    assert len({one.body for one in asked}) > COUNT / 2


@pytest.mark.ci
def test_requests_by_grammar_get_answers_and_short_errors(served: Client):
    found = attack(served.place, 0, COUNT)
    assert found.wrong == []
    assert found.statuses.total() == COUNT
    assert {200, 400, 403, 404, 413, 415, 422} <= found.statuses.keys()
    assert served.get("/health").status == 200
    assert served.metric("grr_coca_body_bytes") == 0
