"""Requests that nobody would write: those that schemathesis makes from the OpenAPI document, and hostile ones by hand.

Whatever comes, the answer is no 500, has a documented status and the documented form, and no file outside of the index
is opened.
"""

import io
import os
import random
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import product

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks
from serving import DRAWINGS, EVENTS, Client

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
    """The files that this process opens from now on, but for its own code, its model and the index."""
    found: set[str] = set()
    allowed = tuple(map(os.path.realpath, (index, pictures, *sys.path, sys.prefix, sys.base_prefix)))

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


def damaged(random_: random.Random) -> bytes:
    """A picture with some bytes changed, cut off or repeated, or none at all."""
    kind = random_.choice(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "noise"])
    if kind == "noise":
        return random_.randbytes(random_.randrange(300))
    buffer = io.BytesIO()
    with Image.open(random_.choice(sorted(DRAWINGS.iterdir()))) as image:
        image.convert("RGB").save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(random_.choice([0, 1, 5, 50])):
        content[random_.randrange(len(content))] = random_.randrange(256)
    return bytes(content[: random_.choice([len(content), random_.randrange(len(content))])])


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that would take gigabytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    pixels = zlib.compress(bytes(1000)) * 3
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


HOSTILE_NAMES = [
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "%00",
    "....//....//etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "C:%5Cwindows",
    "%c0%ae%c0%ae/",
    "a" * 4000,
]


def hostile(client: Client, count: int) -> Counter:
    """Send damaged pictures, bombs, and names of files of the system."""
    made = random.Random(0)
    statuses: Counter = Counter()
    paths = ["/caption", "/classify?labels=a&labels=b", "/similar", "/caption?num_beams=2", "/explain"]
    for number in range(count):
        choice = number % 10
        if choice == 0:
            answer = client.get(f"/image/{made.choice(HOSTILE_NAMES)}")
        elif choice == 1:
            answer = client.get(f"/{made.choice(HOSTILE_NAMES)}")
        elif choice == 2:
            answer = client.post("/caption", bomb(made.choice([100, 8000, 60_000, 2**31 - 1]), 60_000))
        elif choice == 3:
            where = made.choice(["path like '/etc/%'", "1=1; DROP TABLE pictures", "a" * 9000, "((" * 500, "x = 'é"])
            answer = client.post("/search", {"texts": ["a"], "where": where})
        else:
            path = made.choice(paths[: 4 if number % 50 else 5])
            answer = client.post(path, damaged(made), made.choice([{}, EVENTS]))
        statuses[answer.status] += 1
        assert answer.status < 500, (number, answer.body)
        if answer.status >= 400:
            assert answer.reason()
    return statuses


@pytest.mark.ci
def test_requests_made_from_the_document_get_documented_answers(served, opened):
    statuses = fuzz(served, examples=300)
    assert sum(statuses.values()) >= 300
    assert statuses[200] > 20
    assert statuses[422] > 20
    assert opened == set()


def test_hostile_bodies_are_refused_and_open_no_file(served, opened):
    statuses = hostile(served, 200)
    assert statuses[200] > 10, "some damaged pictures can be read all the same"
    assert statuses[404] > 10
    assert statuses[413] > 5
    assert statuses[415] > 20
    assert served.get("/health").status == 200
    assert opened == set()


@pytest.mark.slow
def test_ten_thousand_requests_that_nobody_would_write(served, opened):
    statuses = fuzz(served, examples=6000) + hostile(served, 4000)
    assert sum(statuses.values()) >= 10_000
    assert max(statuses) < 500
    assert opened == set()


@given(content=st.binary(max_size=400))
@settings(max_examples=30)
def test_bytes_that_are_no_http_are_refused_or_closed(served, content):
    said = served.raw(content + b"\r\n\r\n", seconds=0.2)
    assert said == b"" or said.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
