"""Clients of other projects caption and embed, unchanged: `make test-clients` installs them beside this environment."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from serving import DRAWINGS

PYTHON = os.environ.get("GRR_COCA_TEST_CLIENTS")
"""The Python of an environment with `tests/serve/clients.txt`."""

pytestmark = pytest.mark.skipif(PYTHON is None, reason="run `make test-clients`, which installs the clients")


@pytest.fixture(scope="module")
def got(served) -> dict[str, dict]:
    """What each client got."""
    command = [PYTHON, Path(__file__).with_name("clients.py"), served.address, DRAWINGS / "red-apple.webp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("client", ["openai", "litellm", "langchain", "huggingface_hub", "curl"])
def test_a_client_captions_and_embeds(got, icons, client):
    expected = icons.caption(DRAWINGS / "red-apple.webp")
    found = got[client]
    assert found["caption"] == expected
    assert found.get("streamed", expected) == expected
    assert found.get("form", expected) == expected
    texts = icons.embed_texts(["a red apple", "a boat"])
    np.testing.assert_allclose(found["texts"], texts, atol=1e-5)
    np.testing.assert_allclose(found.get("floats", texts), texts, atol=1e-5)


def test_a_client_of_openai_embeds_pictures_lists_models_and_is_told_errors(got, icons):
    np.testing.assert_allclose(got["openai"]["picture"], icons.embed_images(DRAWINGS / "red-apple.webp"), atol=1e-5)
    assert got["openai"]["models"] == ["icons"]
    assert "'icons'" in got["openai"]["refused"]


def test_langchain_is_told_how_to_send_texts(got):
    assert "check_embedding_ctx_length=False" in got["langchain"]["tokens"]
    assert got["langchain"]["refused"]
