"""Requests that nobody would write: those that schemathesis makes from the OpenAPI document, and those by grammar.

Whatever comes, the answer is no 500, has a documented status and the documented form, and no file outside of the index
is opened.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import product

import pytest
import schemathesis
from grammar import attack
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks
from serving import Client

# The server runs in threads of this process, and uses random numbers while requests are made up.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def opened(index, pictures) -> Iterator[set[str]]:
    """The files that this process opens from now on, but for its own code, its model and the index, and what programs
    that decode get as their standard error."""
    found: set[str] = set()
    allowed = tuple(map(os.path.realpath, (index, pictures, *sys.path, sys.prefix, sys.base_prefix, os.devnull)))

    def see(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if watching and not path.startswith((*allowed, "/proc/", "/sys/")):
                found.add(path)

    watching = True
    sys.addaudithook(see)
    yield found
    watching = False


def fuzz(client: Client, examples: int) -> Counter:
    """Send requests that schemathesis makes for each operation. Returns the number of answers by status."""
    schema = schemathesis.openapi.from_url(f"{client.address}openapi.json")
    statuses: Counter = Counter()
    operations = [result.ok() for result in schema.get_all_operations()]
    while sum(statuses.values()) < examples:
        for operation, mode in product(operations, GenerationMode):
            _fuzz_operation(operation, mode, max(5, examples // 100), statuses)
    return statuses


def _fuzz_operation(operation, mode: GenerationMode, examples: int, statuses: Counter) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=False,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send(case) -> None:
        response = case.call(timeout=60)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    with suppress(Unsatisfiable):  # nothing can be wrong with an operation without parameters
        send()


@pytest.mark.ci
def test_requests_made_from_the_document_get_documented_answers(served, opened):
    statuses = fuzz(served, examples=300)
    assert sum(statuses.values()) >= 300
    assert statuses[200] > 20
    assert statuses[422] > 20
    assert opened == set()


@pytest.mark.ci
def test_generated_requests_get_short_errors_and_open_no_file(served, opened):
    """`make attack` sends such requests for an hour."""
    found = attack(served.place, 0, 100)
    assert found.wrong == []
    assert found.statuses.total() == 100
    assert {200, 403, 404, 413, 415, 422} <= found.statuses.keys()
    assert served.get("/health").status == 200
    assert served.metric("grr_coca_body_bytes") == 0
    assert opened == set()


@pytest.mark.slow
def test_ten_thousand_requests_that_nobody_would_write(served, opened):
    statuses = fuzz(served, examples=6000)
    found = attack(served.place, 0, 4000)
    assert sum(statuses.values()) + found.statuses.total() >= 10_000
    assert max(statuses) < 500
    assert found.wrong == []
    assert opened == set()


@given(content=st.binary(max_size=400))
@settings(max_examples=30)
def test_invalid_http_is_rejected_or_closed(served, content):
    response = served.raw(content + b"\r\n\r\n", seconds=0.2)
    assert response == b"" or response.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
