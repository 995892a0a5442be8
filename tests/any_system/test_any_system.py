"""Everything that an index, captions, a search, a server and a small training need is there on any system.

On Windows and macOS, this runs on the system itself. On Linux, in a process that `windows_like` has made like one on
Windows.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DRAWINGS = sorted((ROOT / "docs" / "drawings").glob("*.webp"))
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
needs_icons = pytest.mark.skipif(find_spec("resvg_py") is None, reason="resvg is not installed")
needs_serve = pytest.mark.skipif(find_spec("fastapi") is None, reason="the server is not installed")
RECIPE = """
model:
  preset: grr_coca
  size: tiny
  image_layers: 1
  image_dim: 64
  text_layers: 1
  text_dim: 64
  image_size: 16
  context_length: 24
tokenizer:
  kind: bpe
  vocab_size: 300
data:
  train: pairs
  val: pairs
  batch_size: 3
  num_workers: {workers}
schedule:
  steps: 4
  warmup_steps: 1
evaluation:
  interval: 4
  batch_size: 3
checkpoints:
  interval: 2
precision: fp32
"""


def shown(path: Path) -> str:
    """A path as a user of Windows types it."""
    return str(path) if sys.platform == "win32" else "C:" + str(path).replace("/", "\\")


def done(folder: Path, *tasks: list) -> list[dict]:
    """What became of each task of `verbs.py`, in a process of its own."""
    with tempfile.TemporaryDirectory() as short:  # sockets of workers lie there
        ended = subprocess.run(
            [sys.executable, "-X", "warn_default_encoding", str(HERE / "verbs.py")],
            input=json.dumps(tasks),
            capture_output=True,
            encoding="utf-8",
            cwd=folder,
            timeout=280,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "PYTHONIOENCODING": "utf-8",
                "XDG_CACHE_HOME": str(folder / "cache"),
                "TMPDIR": short,
                "OMP_NUM_THREADS": "1",
            },
        )
    assert ended.returncode == 0, f"{ended.returncode}: {ended.stderr[-4000:]}"
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.fixture
def folder(tmp_path):
    """A folder with `pictures` in two folders, one with a name that is not ASCII."""
    for number, path in enumerate(DRAWINGS):
        place = tmp_path / "pictures" / ("Größe 猫" if number % 2 else "plain")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / path.name)
    return tmp_path


def require_success(answers: list[dict]) -> None:
    for answer in answers:
        assert answer["code"] == 0, answer.get("err") or answer.get("out")


@pytest.mark.ci
def test_captions_go_to_the_console_to_rows_and_next_to_images(folder):
    pictures = shown(folder / "pictures")
    answers = done(
        folder,
        ["run", ["caption", pictures]],
        ["run", ["caption", f"{pictures}\\**\\*.webp", "--exclude", "plain/", "--json"]],
        ["run", ["caption", pictures, "--out", shown(folder / "captions.csv")]],
        ["run", ["caption", pictures, "--out", shown(folder / "captions.csv")]],
        ["run", ["caption", pictures, "--sidecar", "txt"]],
        ["run", ["classify", pictures, "--labels", "guitar,airplane", "--json"]],
        ["run", ["embed", pictures, "--out", shown(folder / "vectors.npy")]],
        ["run", ["models"]],
    )
    require_success(answers)
    lines = dict(line.split("\t") for line in answers[0]["out"].splitlines())
    assert sorted(path.rpartition("\\")[2] for path in lines) == [path.name for path in DRAWINGS]
    assert {json.loads(line)["image"] for line in answers[1]["out"].splitlines()} == {
        path for path in lines if "plain" not in path
    }
    rows = (folder / "captions.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == len(DRAWINGS) + 1
    texts = sorted(folder.glob("pictures/*/*.txt"))
    assert [text.stem for text in texts if text.read_text(encoding="utf-8")] != []
    assert len(texts) == len(DRAWINGS)
    assert not list(folder.glob("**/*.lock"))


@pytest.mark.ci
def test_index_is_created_updated_searched_and_unlocked(folder):
    pictures, index = shown(folder / "pictures"), shown(folder / "index")
    first = done(
        folder,
        ["run", ["index", pictures, "--out", index]],
        ["run", ["search", index, "guitar", "--json", "--where", f"folder = 'plain' and path like '{pictures}\\%'"]],
        ["run", ["duplicates", index]],
    )
    require_success(first)
    hits = json.loads(first[1]["out"])
    assert {hit["path"].rsplit("\\", 1)[0] for hit in hits} == {f"{pictures}\\plain"}
    (folder / "pictures" / "plain" / DRAWINGS[0].name).unlink()
    shutil.copy(DRAWINGS[1], folder / "pictures" / "plain" / "another.webp")
    second = done(
        folder,
        ["run", ["index", pictures, "--out", index]],
        ["run", ["search", index, "--image", shown(folder / "pictures" / "plain" / "another.webp"), "--json"]],
        ["run", ["index", "--out", index, "--forget", pictures]],
    )
    require_success(second)
    hits = json.loads(second[1]["out"])
    names = [path.rpartition("\\")[2] for hit in hits for path in (hit["path"], *hit["copies"])]
    assert "another.webp" in names
    assert DRAWINGS[0].name not in names


@pytest.mark.ci
@needs_icons
def test_crashing_drawing_reports_one_line(folder):
    pictures = folder / "pictures"
    square = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">{}<path d="M1 1h7v7H1z"/></svg>'
    (pictures / "square.svg").write_text(square.format(""), encoding="utf-8")
    tall = '<pattern id="p" width="5" height="99999999999"><rect width="3" height="3"/></pattern>'
    crash = f'{tall}<path d="M0 0L9 90V0Z" fill="url(#p)"/>'
    (pictures / "crash.svg").write_text(square.format(crash), encoding="utf-8")
    captioned, indexed = done(
        folder,
        ["run", ["caption", f"{shown(pictures)}\\square.svg"]],
        ["run", ["index", shown(pictures), "--out", shown(folder / "index")]],
    )
    require_success([captioned])
    assert captioned["out"].startswith(f"{shown(pictures)}\\square.svg\t")
    assert indexed["code"] in (0, 1), indexed
    failures = [line for line in indexed["err"].splitlines() if "crash.svg" in line]
    assert len(failures) == 1, indexed["err"]
    assert "Traceback" not in indexed["err"]


@pytest.mark.ci
@needs_serve
def test_server_answers_and_stops(folder):
    pictures, index = shown(folder / "pictures"), shown(folder / "index")
    requests = {"": None, "health": None, "pictures": None, "facets": None, "search": {"texts": ["guitar"]}}
    exported, served = done(
        folder,
        ["run", ["index", pictures, "--out", index]],
        ["serve", [index], requests],
    )
    require_success([exported, served])
    assert "error" not in served["answers"], served
    assert {status for status, _ in served["answers"].values()} == {200}
    best = served["answers"]["search"][1]["hits"][0]
    assert best["caption"] == "guitar"
    assert best["name"] == f"{pictures}\\plain\\guitar.webp"


@pytest.mark.ci
@needs_torch
def test_stopped_training_resumes_to_the_same_result(folder):
    for workers in (0, 1):  # which changes nothing in what is trained
        text = RECIPE.format(workers=workers)
        (folder / f"{workers}.yaml").write_text(text, encoding="utf-8", newline="\r\n")
    pairs = folder / "pairs"
    pairs.mkdir()
    for path in DRAWINGS:
        shutil.copy(path, pairs)
        text = f"a {path.stem.replace('-', ' ')}"
        (pairs / f"{path.stem}.txt").write_text(text, encoding="utf-8", newline="\r\n")
    stopped_run = ["pretrain", shown(folder / "1.yaml"), "--out", shown(folder / "stopped")]
    whole, stopped, resumed, shards, checked = done(
        folder,
        ["run", ["pretrain", shown(folder / "0.yaml"), "--out", shown(folder / "whole")]],
        ["run_and_stop", stopped_run, 0],
        ["run", [*stopped_run, "--resume"]],
        ["run", ["data", "convert", shown(pairs), shown(folder / "shards")]],
        ["run", ["data", "check", shown(folder / "shards" / "*.tar")]],
    )
    require_success([whole, resumed, shards, checked])
    assert stopped["code"] == 130, stopped["err"]
    first, second = (max(folder.glob(f"{name}/checkpoints/step-*/model.safetensors")) for name in ("whole", "stopped"))
    assert first.read_bytes() == second.read_bytes()
