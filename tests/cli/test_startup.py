"""The command line answers at once: help and mistakes in flags are reported before NumPy or an engine is imported."""

import json
import os
import subprocess
import sys

import pytest

from grr_coca.cli import all_commands, progress
from grr_coca.model.checkpoint_files import FILES

ANSWER = """
import contextlib, io, json, sys
from grr_coca.cli import main

def answer(arguments):
    result = io.StringIO()
    with contextlib.redirect_stdout(result), contextlib.redirect_stderr(result):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
    return code, result.getvalue(), sorted({"torch", "onnxruntime", "jaxtyping", "numpy", "PIL"} & sys.modules.keys())

print(json.dumps([answer(arguments) for arguments in json.loads(sys.argv[1])]))
"""
UNUSED = {"torchvision", "matplotlib", "tensorboard", "sklearn", "pandas", "pyarrow", "yaml", "huggingface_hub"}
"""Packages that a caption does without."""
HEAVY = {"torch._dynamo", "torch._inductor", "torch.utils.tensorboard"}
"""Modules of torch that take long, and that `import torch` alone does not import."""
ESCAPE = "\x1b"
"""Begins a control code, which only a terminal understands."""
RECIPE = """
data: {train: pairs.tar}
schedule: {steps: 1, warmup_steps: 0}
model: {preset: grr_coca, size: tiny}
tokenizer: {kind: bpe}
"""


def answers(commands: list[list[str]], cwd) -> list[tuple[int, str, list[str]]]:
    """Exit code, output, and the slow packages imported by then, of commands run one after the other."""
    command = [sys.executable, "-c", ANSWER, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=True)
    return [tuple(row) for row in json.loads(done.stdout)]


@pytest.fixture
def workspace(tmp_path):
    """A folder with pairs, labels, recipes and a checkpoint, of which the names alone are looked at."""
    (tmp_path / "checkpoint").mkdir()
    for name in (*(f"checkpoint/{name}" for name in FILES), "pairs.tar"):
        (tmp_path / name).touch()
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "finetune.yaml").write_text(RECIPE.partition("model:")[0])
    return tmp_path


def test_help_and_errors_import_no_slow_packages(tmp_path):
    helps = [["--help"], [], *([*verb.split(), "--help"] for verb in all_commands())]
    wrong = [["captoin"], *([*verb.split(), "--no-such-flag"] for verb in all_commands())]
    found = zip([*helps, *wrong], answers([*helps, *wrong], tmp_path), strict=True)
    for number, (arguments, (code, result, imported)) in enumerate(found):
        is_help = number < len(helps)
        assert imported == [], arguments
        assert code == (0 if is_help and arguments else 2), arguments
        assert not is_help or "usage: grr-coca" in result, arguments
        assert ESCAPE not in result, arguments


def test_offline_may_be_repeated(grr_coca, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    assert grr_coca("--offline", "--version", "--offline").code == 0


@pytest.mark.skipif(os.name != "posix", reason="terminals are those of POSIX")
@pytest.mark.parametrize(
    ("arguments", "environment", "is_err_terminal", "is_plain"),
    [
        (["models", "--help"], {}, True, False),
        (["models", "--help"], {"NO_COLOR": "1"}, True, True),
        (["models", "--no-such-flag"], {}, False, True),
    ],
    ids=["colours", "none are wanted", "errors go into a file"],
)
def test_tyro_uses_colours_only_in_terminals(tmp_path, arguments, environment, is_err_terminal, is_plain):
    reader, terminal = os.openpty()
    log = tmp_path / "log"
    command = [sys.executable, "-m", "grr_coca", *arguments]
    inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "PYTHON_TYRO_ANSI_CODES")}
    environment = {**inherited, "TERM": "xterm", **environment}
    with log.open("w") as file:
        err = terminal if is_err_terminal else file
        subprocess.run(command, stdout=terminal, stderr=err, env=environment, timeout=60)
    os.close(terminal)
    result = log.read_text() or os.read(reader, 2**16).decode()
    os.close(reader)
    assert "models" in result
    assert (ESCAPE not in result) == is_plain


MISSING = [
    "demo nowhere.yaml",
    "study run nowhere.yaml",
    "study status nowhere",
    "study report nowhere",
    "pretrain nowhere.yaml",
    "pretrain recipe.yaml --data nowhere",
    "pretrain recipe.yaml --preset nowhere",
    "finetune nowhere.yaml --checkpoint checkpoint",
    "finetune finetune.yaml --checkpoint nowhere",
    "evaluate nowhere --data pairs.tar",
    "evaluate checkpoint --data nowhere",
    "evaluate checkpoint --data pairs.tar --task zeroshot --labels nowhere",
    "evaluate checkpoint --data pairs.tar --task zeroshot --templates nowhere",
    "evaluate checkpoint --data pairs.tar --task probe --train nowhere",
    "compare nowhere checkpoint --data pairs.tar",
    "compare checkpoint nowhere --data pairs.tar",
    "compare checkpoint checkpoint --data nowhere",
    "adapt nowhere --out mine",
    "adapt pairs.tar --out mine -c nowhere",
    "caption nowhere.png -c checkpoint",
    "caption pairs.tar -c nowhere",
    "embed nowhere.png -c checkpoint --out a.npy",
    "embed pairs.tar -c nowhere --out a.npy",
    "embed --texts nowhere -c checkpoint --out a.npy",
    "embed --texts labels.txt -c nowhere --out a.npy",
    "classify nowhere.png -c checkpoint --labels a,b",
    "classify pairs.tar -c nowhere --labels a,b",
    "classify pairs.tar -c checkpoint --labels nowhere",
    "explain nowhere.png -c checkpoint",
    "index nowhere --out index -c checkpoint",
    "index pairs.tar --out index -c nowhere",
    "search nowhere cat",
    "serve nowhere --port 0",
    "serve -c nowhere --port 0",
    "duplicates nowhere",
    "match nowhere nowhere",
    "lint nowhere",
    "mcp nowhere",
    "data check nowhere",
    "data stats nowhere",
    "data convert nowhere out",
    "info nowhere",
    "info grr_coca nowhere",
    "import index nowhere --out new",
    "export index nowhere --out new.parquet",
    "import open_clip nowhere --out new",
    "import open_clip nowhere.bin --out new",
    "export open_clip -c nowhere --out new",
    "export onnx -c nowhere --out new",
    "export web -c nowhere --out new",
    "export web --index nowhere --out new",
    "push nowhere me/mine",
    "track nowhere --to wandb",
]


@pytest.mark.ci
def test_missing_inputs_are_named_without_an_engine(workspace):
    take_no_name = {"models", "doctor"}
    assert {line.split()[0] for line in MISSING} == {verb.split()[0] for verb in all_commands()} - take_no_name
    before = sorted(path.name for path in workspace.iterdir())
    found = answers([line.split() for line in MISSING], workspace)
    for line, (code, result, imported) in zip(MISSING, found, strict=True):
        assert not {"torch", "onnxruntime", "jaxtyping"} & set(imported), line
        assert code == (1 if "nowhere.png" in line and "explain" not in line else 2), (line, result)
        assert "nowhere" in result, line
        assert "Traceback" not in result, line
    assert sorted(path.name for path in workspace.iterdir()) == before


@pytest.mark.parametrize("engine", ["onnx", pytest.param("torch", marks=pytest.mark.ci)])
def test_caption_imports_little_and_then_collects_garbage(image_files, tmp_path, engine):
    code = """if True:
        import atexit, gc, sys
        usual, seen = gc.get_threshold(), []

        @atexit.register
        def report():
            imported, before, kept = set(sys.modules), len(seen), [[] for _ in range(300_000)]
            print(before, len(seen) > before, gc.get_threshold() == usual)
            print(*imported)

        from grr_coca.__main__ import run
        gc.callbacks.append(lambda phase, info: seen.append(phase))
        run()
    """
    command = [sys.executable, "-c", code, "caption", str(image_files[0]), "--engine", engine]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    caption, collections, modules = done.stdout.splitlines()
    assert caption.startswith(str(image_files[0]))
    assert engine == "torch" or collections == "0 True True"
    imported = set(modules.split())
    unused = {"torch", "jaxtyping", "typeguard", "asyncio", "random", "gzip"} if engine == "onnx" else {"onnxruntime"}
    assert imported & (UNUSED | HEAVY | unused) == set()
    assert [name for name in imported if name.startswith(("grr_coca.train", "grr_coca_study"))] == []


def test_progress_sends_control_codes_only_to_a_terminal(capsys, monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    with progress.bars({"captions": 10}) as shown:
        for done in range(10):
            shown.update("captions", done, "")
    result = capsys.readouterr().err
    assert ESCAPE not in result
    assert result.splitlines()[-1].startswith("captions: 90%, about ")


@pytest.mark.ci
def test_demo_needs_no_scipy():
    """The extra `[report]` brings matplotlib; scipy comes with `[study]` alone."""
    code = 'import sys; sys.modules["scipy"] = None; import grr_coca_study.demo'
    subprocess.run([sys.executable, "-c", code], check=True)
