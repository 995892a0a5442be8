"""Every command and every line of Python of the README runs, in its order, on a few drawings and with small recipes."""

import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image

from grr_coca.cli import main
from grr_coca_serve.server import RunningServer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(?P<kind>\w*)\n(?P<lines>.*?)^```$", re.MULTILINE | re.DOTALL)
PLACES = {
    "IMAGES…": "docs/drawings",
    "IMAGE.png": "docs/drawings/guitar.webp",
    "INDEX": "index",
    "DATA": "pairs",
    "PAIRS": "icons",
    "SPLIT": "pairs",
}
OF_OTHERS = ("export web", "push", "match iconify", "mcp", "lint")
"""They need packages of npm, the Hugging Face hub, a client, or find something. They have tests of their own."""
MODEL = """
model: {preset: grr_coca, size: tiny, image_layers: 1, image_dim: 64, text_layers: 1, text_dim: 64, image_size: 16}
tokenizer: {kind: bpe, vocab_size: 300}
"""
RUN = """
data: {train: ../pairs, val: ../pairs, batch_size: 3}
schedule: {steps: 2, warmup_steps: 1}
evaluation: {interval: 2, batch_size: 3}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with what the README takes for granted: drawings, pairs, and recipes that take a second."""
    drawings = ROOT / "docs" / "drawings"
    shutil.copytree(drawings, tmp_path / "docs" / "drawings")
    (tmp_path / "icons").mkdir()
    for number in range(12):  # `adapt` wants ten different images
        image = Image.new("RGB", (64, 64), "white")
        image.paste((20 * number, 0, 0), (4, 4, 10 + 4 * number, 20 + 2 * number))
        image.save(tmp_path / "icons" / f"{number}.png")
        (tmp_path / "icons" / f"{number}.txt").write_text(f"bar {number}")
    (tmp_path / "pairs").mkdir()
    for path in drawings.glob("*.webp"):
        for number in range(16):
            copy = tmp_path / "pairs" / f"{number}-{path.name}"
            shutil.copy(path, copy)
            copy.with_suffix(".txt").write_text(f"{path.stem} {number}")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "pictograms.yaml").write_text(MODEL + RUN)
    (tmp_path / "recipes" / "health.yaml").write_text(RUN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands():
    lines = "".join(block["lines"] for block in BLOCK.finditer(README) if not block["kind"]).splitlines()
    ours = [line.partition("#")[0] for line in lines if line.startswith(".venv/bin/grr-coca ")]
    return [shlex.split(line)[1:] for line in ours]


@pytest.mark.ci
def test_commands_run_in_their_order(folder, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    serve = RunningServer.run

    def briefly(server):
        server.stop()
        serve(server)

    monkeypatch.setattr(RunningServer, "run", briefly)
    before = signal.getsignal(signal.SIGINT)
    done = []
    for line in commands():
        if " ".join(line).startswith(OF_OTHERS):
            continue
        words = [PLACES.get(word, word) for word in line]
        if words[0] == "compare":
            shutil.copytree("runs/mine", "runs/other")
        assert main(words) == 0, f"{line}: {capsys.readouterr().err}"
        done.append(words[0])
    assert {"caption", "index", "search", "serve", "pretrain", "finetune", "compare"} <= set(done)
    assert opened
    assert signal.getsignal(signal.SIGINT) is before


def test_python_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code = [block["lines"] for block in BLOCK.finditer(README) if block["kind"] == "python"]
    assert code
    for lines in code:
        exec(compile(lines, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("guitar\n")
