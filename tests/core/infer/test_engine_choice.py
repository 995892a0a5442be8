"""Which engine computes a model: the rule, and what is refused."""

import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from support import as_if_quantized, hide_packages

import grr_coca
from grr_coca.cli import main
from grr_coca.common.errors import UserError, install_command
from grr_coca.common.files import MANIFEST, file_sha256
from grr_coca.infer import load as choose
from grr_coca.infer.load import choose_engine
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.model.checkpoint_files import FILES, FOLDER, GRAPH_FILES, QUANTIZED_WEIGHTS, fingerprint, read_files

ICONS = FOLDER / "icons"
DRAWING = Path(__file__).parents[3] / "docs" / "drawings" / "guitar.webp"


@pytest.fixture
def folder(tmp_path):
    """A copy of a checkpoint with graphs."""
    return Path(shutil.copytree(ICONS, tmp_path / "model"))


@pytest.fixture
def without_torch(monkeypatch):
    hide_packages(monkeypatch, "torch", "jaxtyping")


def without_graphs(folder):
    """The same checkpoint, as a training run leaves it."""
    for name in GRAPH_FILES:
        (folder / name).unlink()
    rewrite_manifest(folder)
    return folder


def rewrite_manifest(folder, **facts):
    manifest = json.loads((folder / MANIFEST).read_text())
    names = [path.name for path in folder.iterdir() if path.name != MANIFEST]
    listed = {name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in names}
    (folder / MANIFEST).write_text(json.dumps({**manifest, **facts, "files": listed}))


def chosen(folder, engine="auto", device=None):
    return choose_engine(folder, read_files(folder).config, engine, device)


# --- The rule


@pytest.mark.parametrize("best", ["cpu", "cuda"])
def test_small_model_uses_onnx_runtime_unless_on_a_gpu(monkeypatch, best):
    monkeypatch.setattr(choose, "best_device", lambda: best)
    assert chosen(ICONS) == chosen(ICONS, device="cpu") == chosen(ICONS, "onnx") == "onnx"
    assert chosen(ICONS, "torch") == chosen(ICONS, device="cuda") == "torch"
    model = grr_coca.load("icons")
    assert (model.engine.name, model.device) == ("onnx", "cpu")


def test_wide_model_runs_in_torch_if_that_is_installed(monkeypatch):
    monkeypatch.setattr(choose, "MAX_ONNX_WIDTH", 1)
    assert chosen(ICONS, device="cpu") == "torch"
    hide_packages(monkeypatch, "torch")
    assert chosen(ICONS, device="cpu") == "onnx"


def test_checkpoint_without_graphs_runs_in_torch(folder):
    model = grr_coca.load(without_graphs(folder), "cpu")
    assert model.engine.name == "torch"
    assert model.fingerprint == fingerprint(ICONS), "graphs change no embedding"


def test_torch_is_not_imported_without_a_gpu_driver(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(choose, "_may_have_gpu", lambda: False)
    assert choose.best_device() == "cpu"
    assert "torch" not in sys.modules


# --- What is refused


@pytest.mark.parametrize(
    ("engine", "device", "message"),
    [
        ("onxn", None, r"unknown engine 'onxn'; did you mean 'onnx'\?"),
        ("onnx", "cuda", "device 'cuda': the engine 'onnx' runs only on the CPU; omit the device"),
        ("auto", "toaster", "device 'toaster' cannot be used here"),
    ],
)
def test_invalid_combinations_are_named(engine, device, message):
    with pytest.raises(UserError, match=message):
        grr_coca.load("icons", device, engine)


def test_open_clip_checkpoint_runs_only_in_torch():
    with pytest.raises(UserError, match=r"open_clip:a\.bin: engine 'onnx' cannot run this checkpoint"):
        grr_coca.load("open_clip:a.bin", engine="onnx")


def test_checkpoint_without_graphs_needs_torch_in_one_line(folder, without_torch, capsys):
    without_graphs(folder)
    assert main(["caption", str(DRAWING), "-c", str(folder)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"{folder}: has no ONNX graphs (grr-coca export onnx writes them), so it needs torch" in message
    assert install_command("torch") in message


@pytest.mark.parametrize(("engine", "device"), [("torch", None), ("auto", "cuda")])
def test_missing_torch_error_names_the_install_command(without_torch, engine, device):
    with pytest.raises(UserError, match=rf"needs torch(, jaxtyping)?; run: {re.escape(install_command('torch'))}"):
        grr_coca.load("icons", device, engine)


def test_file_that_is_cut_short_or_has_a_flipped_bit_is_named(folder):
    for name in (*FILES, *GRAPH_FILES):
        content = (folder / name).read_bytes()
        for damaged in (content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1])):
            (folder / name).write_bytes(damaged)
            with pytest.raises(UserError, match=f"{name}: corrupt: its size or checksum differs from the manifest"):
                grr_coca.load(folder)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_rejects_graphs_of_another_checkpoint(folder, precision):
    """As after a training whose weights were copied over those that the graphs were made of."""
    shutil.copyfile(FOLDER / "pictograms" / "model.safetensors", folder / "model.safetensors")
    rewrite_manifest(folder, precision=precision)
    with pytest.raises(UserError, match="another checkpoint"):
        grr_coca.load(folder).caption(DRAWING)


@pytest.mark.parametrize("length", [10**20, 0, -3, float("inf"), "many", None, []])
def test_impossible_size_in_manifest_is_corrupt(folder, length):
    model = json.loads((folder / MANIFEST).read_text())["model"]
    rewrite_manifest(folder, model=length if length == [] else {**model, "context_length": length})
    with pytest.raises(UserError, match=r"manifest\.json: corrupt \("):
        grr_coca.load(folder, engine="onnx")


def test_model_in_onnx_runtime_has_no_weights_in_torch():
    model = grr_coca.load("icons", engine="onnx")
    for use in (lambda: model.checkpoint, model.refresh):
        with pytest.raises(UserError, match=r"so it has no PyTorch model; load its checkpoint with engine='torch'"):
            use()


# --- Both engines


def test_model_in_onnx_runtime_can_be_sent_to_another_process():
    model = grr_coca.load("icons", engine="onnx")
    (expected,) = model.describe_many([DRAWING])
    (found,) = pickle.loads(pickle.dumps(model)).describe_many([DRAWING])
    assert found.captions == expected.captions
    assert np.array_equal(found.embedding, expected.embedding)


# --- int8


def test_int8_model_runs_only_in_onnx_runtime(folder):
    as_if_quantized(folder)
    model = grr_coca.load(folder)
    assert model.engine.name == "onnx"
    assert model.caption(DRAWING) == grr_coca.load("icons", engine="onnx").caption(DRAWING)
    for use in (lambda: grr_coca.load(folder, engine="torch"), lambda: from_pretrained(folder)):
        with pytest.raises(UserError, match="an int8 model, which runs only in ONNX Runtime"):
            use()
    with pytest.raises(UserError, match="device 'cuda': a model in int8 runs only on the CPU"):
        grr_coca.load(folder, "cuda")


@pytest.mark.parametrize("name", [QUANTIZED_WEIGHTS, "config.json", "step.onnx"])
def test_missing_file_of_a_model_in_int8_is_named(folder, name):
    (as_if_quantized(folder) / name).unlink()
    with pytest.raises(UserError, match=f"this int8 model has no {name}; run `grr-coca export onnx` again"):
        grr_coca.load(folder)


def test_model_in_int8_has_another_fingerprint(folder):
    assert fingerprint(folder) == fingerprint(ICONS)
    assert fingerprint(as_if_quantized(folder)) != fingerprint(ICONS)


def test_index_of_the_checkpoint_rejects_the_model_in_int8(folder, tmp_path, capsys):
    index = str(tmp_path / "index")
    assert main(["index", str(DRAWING), "--out", index]) == 0
    as_if_quantized(folder)
    for command in (["search", index, "guitar"], ["index", str(DRAWING), "--out", index]):
        capsys.readouterr()
        assert main([*command, "-c", str(folder)]) == 2
        assert "whose embeddings are not comparable" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    ["evaluate {model} --data {drawing}", "explain {drawing} -c {model}", "export open_clip -c {model} --out x"],
)
def test_int8_error_states_that_torch_weights_are_missing(folder, capsys, command):
    as_if_quantized(folder)
    assert main([word.format(model=folder, drawing=DRAWING) for word in command.split()]) == 2
    assert "pass its source checkpoint" in capsys.readouterr().err
