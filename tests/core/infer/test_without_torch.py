"""The base installation works without PyTorch: in a process that finds none of the other packages.

That ONNX Runtime computes the same as PyTorch is tested where the engine is (`engine/test_onnx_engine.py`).
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from grr_coca.common.errors import PACKAGES
from grr_coca.model.checkpoint_files import bundled_models

pytestmark = pytest.mark.ci


DRAWINGS = sorted((Path(__file__).parents[3] / "docs" / "drawings").glob("*.webp"))
BLOCKED = sorted({module for packages in PACKAGES.values() for module in packages} | {"beartype", "torchvision"})
BLOCK = f"""
import sys
from importlib.machinery import PathFinder

class Others(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {BLOCKED!r} else super().find_spec(name, path, target)

sys.meta_path = [Others if finder is PathFinder else finder for finder in sys.meta_path]
"""
RUN = """
import contextlib, io, json
from grr_coca.cli import main

def answer(arguments):
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    out.flush()
    return code, out.buffer.getvalue().decode(), err.getvalue()

commands, image = json.load(sys.stdin)
answers = [answer(arguments) for arguments in commands]
import grr_coca
model = grr_coca.load("icons")
print(json.dumps([answers, [model.caption(image), model.engine.name, model.device]]))
"""
COMMANDS = {
    "caption": "caption {drawings}",
    "caption --json": "caption {drawings} --json --num-beams 2 --prompt red",
    "sample": "caption {drawings} --temperature 1 --top-p 0.9 --num-captions 2",
    "embed": "embed {drawings} --out vectors.npy",
    "embed --texts": "embed --texts texts.txt --out texts.safetensors",
    "classify": "classify {drawings} --labels guitar,airplane --json",
    "index": "index {drawings} --out index",
    "search": "search index guitar --json",
    "search --image": "search index --image {drawings}/guitar.webp",
    "duplicates": "duplicates index",
    "models": "models",
    "models --json": "models --json",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("without torch")


@pytest.fixture(scope="module")
def results(folder):
    """The exit code, output and messages of each command, and the results in Python."""
    (folder / "texts.txt").write_text("a guitar\nan airplane\n")
    (folder / "drawings").mkdir()
    for path in (*DRAWINGS[:2], DRAWINGS[0].with_name("guitar.webp")):
        shutil.copy(path, folder / "drawings")
    commands = [[w.format(drawings=folder / "drawings") for w in command.split()] for command in COMMANDS.values()]
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + RUN],
        input=json.dumps([commands, str(DRAWINGS[0])]),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    answers, in_python = json.loads(done.stdout)
    return dict(zip(COMMANDS, answers, strict=True)) | {"Python": in_python}


def test_all_commands_succeed(results):
    for command, (code, _, err) in ((command, results[command]) for command in COMMANDS):
        assert code == 0, (command, err)
        assert "Traceback" not in err, command


def test_search_finds_the_requested_image(results, folder):
    first, *_ = json.loads(results["search"][1])
    assert Path(first["path"]).name == "guitar.webp"
    assert "guitar.webp" in results["search --image"][1].splitlines()[0]


def test_json_and_models_name_the_engine(results):
    for command in ("caption --json", "classify"):
        assert {json.loads(line)["engine"] for line in results[command][1].splitlines()} == {"onnx"}
    assert {hit["engine"] for hit in json.loads(results["search"][1])} == {"onnx"}
    models = json.loads(results["models --json"][1])
    assert {models[name]["engine"] for name in bundled_models()} == {"onnx"}
    assert results["models"][1].count("runs here in ONNX Runtime") == len(bundled_models())


def test_model_is_loaded_in_python(results):
    assert results["Python"] == [results["caption"][1].splitlines()[0].split("\t")[1], "onnx", "cpu"]
