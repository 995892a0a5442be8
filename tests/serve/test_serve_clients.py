"""Clients of other projects caption and embed, unchanged: `make test-clients` installs them beside this environment."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from serving import DRAWINGS

PYTHON = os.environ.get("GRR_COCA_TEST_CLIENTS")
"""The Python of an environment with `tests/serve/clients.txt`."""

INSPECTOR = Path(PYTHON or sys.executable).absolute().parents[1] / "node_modules" / ".bin" / "mcp-inspector"
"""npm's inspector of MCP, beside the `node` that it needs."""

pytestmark = pytest.mark.skipif(PYTHON is None, reason="run `make test-clients`, which installs the clients")


@pytest.fixture(scope="module")
def got(served) -> dict[str, dict]:
    """What each client got."""
    command = [PYTHON, Path(__file__).with_name("clients.py"), served.address, DRAWINGS / "red-apple.webp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("client", ["openai", "litellm", "langchain", "huggingface_hub", "curl"])
def test_client_captions_and_embeds(got, icons, client):
    expected = icons.caption(DRAWINGS / "red-apple.webp")
    found = got[client]
    assert found["caption"] == expected
    assert found.get("streamed", expected) == expected
    assert found.get("form", expected) == expected
    texts = icons.embed_texts(["a red apple", "a boat"])
    np.testing.assert_allclose(found["texts"], texts, atol=1e-5)
    np.testing.assert_allclose(found.get("floats", texts), texts, atol=1e-5)


def test_openai_client_embeds_images_and_gets_errors(got, icons):
    np.testing.assert_allclose(got["openai"]["picture"], icons.embed_images(DRAWINGS / "red-apple.webp"), atol=1e-5)
    assert got["openai"]["models"] == ["icons"]
    assert "'icons'" in got["openai"]["refused"]


def test_langchain_error_names_how_to_send_texts(got):
    assert "check_embedding_ctx_length=False" in got["langchain"]["tokens"]
    assert got["langchain"]["refused"]


@pytest.mark.skipif(not INSPECTOR.exists(), reason="`make test-clients` could not install the inspector; it needs npm")
def test_inspector_of_mcp_lists_the_tools_and_calls_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{INSPECTOR.parent}{os.pathsep}{os.environ['PATH']}")
    drawing = tmp_path / "pictures" / "apple.webp"
    drawing.parent.mkdir()
    shutil.copy(DRAWINGS / "red-apple.webp", drawing)
    program = [sys.executable, "-m", "grr_coca"]
    subprocess.run([*program, "index", drawing.parent, "--out", tmp_path / "index"], check=True, capture_output=True)

    def ask(*request: str) -> dict:
        command = [INSPECTOR, "--cli", *program, "mcp", tmp_path / "index", "--method", *request]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    tools = [tool["name"] for tool in ask("tools/list")["tools"]]
    assert {"search_icons", "search_by_picture", "match_icons", "caption_picture", "get_icon", "check_names"} == {
        *tools
    }
    found = ask("tools/call", "--tool-name", "search_icons", "--tool-arg", "query=apple")
    assert "apple" in found["content"][0]["text"]
