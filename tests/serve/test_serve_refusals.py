"""What endpoints refuse: a status, and a sentence that names the way out."""

import base64
import json
from pathlib import Path

import pytest
from serving import EVENTS
from support import refusals

from grr_coca_serve.schemas import HEART

PARTS = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": HEART, "detail": "auto"}},
]


@pytest.mark.parametrize(("asked", "told"), refusals(Path(__file__).with_name("refusals.txt")))
def test_invalid_requests_return_one_sentence(served, asked, told):
    path, _, written = asked.partition(" ")
    if written == "$HEART":
        bodies = [base64.b64decode(HEART.partition(",")[2])]
    else:
        messages = json.dumps([{"role": "user", "content": PARTS}])
        body = json.loads(written.replace("$MESSAGES", messages).replace("$HEART", HEART))
        bodies = [body, {**body, "stream": True}] if path == "/v1/chat/completions" else [body]
    for body in bodies:
        for headers in ({}, EVENTS):
            answer = served.post(path, body, headers)
            found = f"{answer.status} {answer.reason()}"
            assert found == told or (told.endswith("…") and found.startswith(told[:-1]))
