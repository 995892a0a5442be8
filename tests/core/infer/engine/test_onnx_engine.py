"""The engine that computes with ONNX Runtime, with the graphs of the models that ship, against the one of PyTorch."""

import json
import lzma
import shutil
import threading
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import grr_coca
from grr_coca.common.errors import UserError
from grr_coca.common.files import MANIFEST, file_sha256
from grr_coca.infer.engine.base import Decoder, Engine
from grr_coca.infer.engine.onnx import OnnxDecoder, OnnxEngine
from grr_coca.infer.engine.torch import TorchEngine
from grr_coca.infer.generate import Caption, GenerationOptions, generate, stream_captions
from grr_coca.model.checkpoint import Checkpoint, from_pretrained
from grr_coca.model.checkpoint_files import bundled_folder, bundled_models

SRC = Path(__file__).parents[4] / "src"
DRAWINGS = sorted((SRC.parent / "docs" / "drawings").glob("*.webp"))[:10]
TEXTS = ["a red heart", "cat", "two people who walk a dog in the rain", ""]
names = pytest.mark.parametrize("name", bundled_models())


@cache
def checkpoint_of(name: str) -> Checkpoint:
    return from_pretrained(bundled_folder(name))


@cache
def torch_engine(name: str) -> TorchEngine:
    return TorchEngine(checkpoint_of(name).model, checkpoint_of(name).preprocess)


@cache
def onnx_engine(name: str) -> OnnxEngine:
    return OnnxEngine(bundled_folder(name))


@cache
def pixels_of(name: str) -> np.ndarray:
    preprocess = checkpoint_of(name).preprocess
    return np.stack([preprocess(preprocess.decode(path.read_bytes(), path.name)) for path in DRAWINGS])


# --- Equal results


@names
def test_numbers_equal_those_of_the_model(name):
    ours, theirs = onnx_engine(name), torch_engine(name)
    assert isinstance(ours, Engine)
    for number in ("embed_dim", "context_length", "vocab_size", "logit_bias"):
        assert getattr(ours, number) == getattr(theirs, number)
    assert ours.logit_scale == pytest.approx(theirs.logit_scale)
    assert (ours.name, ours.precision) == ("onnx", "fp32")


@names
@pytest.mark.parametrize("count", [1, 7])
def test_embeddings_equal_those_of_pytorch(name, count):
    pixels = pixels_of(name)[:count]
    found, target = (engine.encode_images(pixels).embedding for engine in (onnx_engine(name), torch_engine(name)))
    assert found.dtype == np.float32
    assert np.abs(found - target).max() <= 1e-5
    token_ids, lengths = (tensor.numpy() for tensor in checkpoint_of(name).tokenize(TEXTS[:count]))
    texts = [engine.encode_texts(token_ids, lengths) for engine in (onnx_engine(name), torch_engine(name))]
    assert np.abs(texts[0] - texts[1]).max() <= 1e-5


WAYS = {
    "greedy": {},
    "rules": {"min_length": 6, "repetition_penalty": 1.3, "no_repeat_ngram": 2},
    "beams": {"num_beams": 4, "num_captions": 3},
    "draws": {"temperature": 1.0, "num_captions": 3, "max_length": 12},
    "nucleus": {"temperature": 0.9, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "max_length": 12},
}


@pytest.mark.parametrize(
    ("name", "prompt", "way"),
    [*(("icons", "", way) for way in WAYS), ("icons", "a picture of", "beams"), ("pictograms", "", "greedy")],
)
def test_captions_equal_those_of_pytorch(name, way, prompt):
    tokenizer, options = checkpoint_of(name).tokenizer, GenerationOptions(**WAYS[way])
    found, target = (
        generate(engine, tokenizer, pixels_of(name)[:5], options, prompt).captions
        for engine in (onnx_engine(name), torch_engine(name))
    )
    for image, others in zip(found, target, strict=True):
        for caption, other in zip(image, others, strict=True):
            assert same_up_to_a_tie(caption, other)


def same_up_to_a_tie(caption: Caption, other: Caption) -> bool:
    """Rounding decides between tokens that are equally likely, and between captions."""
    pairs = zip(caption.token_ids, other.token_ids, caption.log_probs, other.log_probs, strict=False)
    for token, target, log_prob, expected in pairs:
        if abs(log_prob - expected) > 1e-4:
            return False
        if token != target:
            break
    return abs(sum(caption.log_probs) - sum(other.log_probs)) < 1e-3


def test_stream_equals_that_of_pytorch():
    tokenizer, pixels = checkpoint_of("icons").tokenizer, pixels_of("icons")
    ours, theirs = (list(stream_captions(engine("icons"), tokenizer, pixels)) for engine in (onnx_engine, torch_engine))
    assert ours == theirs
    assert len(ours) > 3


# --- Decoding


def decoders(**options: object) -> tuple[OnnxDecoder, Decoder]:
    options = {"num_prompt": 2, "max_tokens": 20, **options}
    ours, theirs = (
        engine("icons").decoder(engine("icons").encode_images(pixels_of("icons")[:4]), **options)
        for engine in (onnx_engine, torch_engine)
    )
    return ours, theirs


def test_moved_rows_keep_their_history():
    both = decoders(num_captions=3, beams=True)
    chance = np.random.default_rng(0)
    orders = [np.arange(4).repeat(3), np.array([1, 0, 0, 3, 4, 5, 7, 8, 6, 11, 11, 11]), np.array([2, 0, 1, 9, 9, 10])]
    token_ids = chance.integers(2, 4000, (4, 2))
    for rows in orders:
        probed = chance.integers(0, 4096, (len(token_ids), 50))
        found, target = (decoder.step(token_ids).log_probs_of(probed) for decoder in both)
        assert np.abs(found - target).max() <= 1e-4
        for decoder in both:
            decoder.reorder(rows)
        token_ids = chance.integers(2, 4000, (len(rows), 1))
    found, target = (decoder.step(token_ids).largest(9) for decoder in both)
    assert np.array_equal(found[1], target[1])
    assert isinstance(both[0], Decoder)


def test_logits_outlive_their_decoder():
    decoder, _ = decoders()
    logits = decoder.step(np.ones((4, 2), dtype=np.int64))
    before = logits.largest(5)
    del decoder
    for _ in range(5):
        onnx_engine("icons").encode_images(pixels_of("icons"))
    assert np.array_equal(logits.largest(5)[1], before[1])


# --- What is opened, and how


def test_texts_and_captions_open_only_their_graphs():
    engine = OnnxEngine(bundled_folder("icons"))
    engine.encode_texts(np.array([[0, 5, 1, 0]]), np.array([4]))
    assert set(engine._graphs) == {"text"}
    other = OnnxEngine(bundled_folder("icons"))
    generate(other, checkpoint_of("icons").tokenizer, pixels_of("icons")[:1])
    assert set(other._graphs) == {"image", "step"}


def test_graphs_opened_ahead_are_those_of_captions():
    model = grr_coca.load("icons", engine="onnx")
    model.open_ahead()
    for thread in threading.enumerate():
        if thread.name.startswith("open "):
            thread.join()
    assert set(model.engine._graphs) == {"image", "step"}
    opened = dict(model.engine._graphs)
    assert model.generate(pixels_of("icons")[:1]).captions[0][0].text
    assert model.engine._graphs == opened


def test_errors_of_graphs_opened_ahead_come_with_their_use(folder, capfd):
    (folder / "step.onnx").unlink()
    engine = OnnxEngine(folder)
    engine.open_ahead("image", "step")
    assert engine.encode_images(pixels_of("icons")[:1]).embedding.shape == (1, engine.embed_dim)
    with pytest.raises(UserError, match=r"step\.onnx: missing"):
        engine.session("step")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("given", "variable", "threads", "workers"),
    [(None, None, 1, 5), (None, "2", 1, 2), (None, "99", 1, 8), (3, "2", 3, 1)],
)
def test_threads_are_few_and_do_not_spin(given, variable, threads, workers, monkeypatch):
    """A small model is no faster with two, but does two batches at the same time. Its workers have one thread each.
    A thread that spins slows down whatever shares its core."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(5))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    engine = OnnxEngine(bundled_folder("icons"), given)
    assert engine.workers == workers
    options = engine.session("text").get_session_options()
    assert options.intra_op_num_threads == threads
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_large_model_takes_all_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("grr_coca.infer.engine.onnx.num_threads", lambda: 5)
    monkeypatch.setattr("grr_coca.infer.engine.onnx.SMALL_MODEL", 1000)
    engine = OnnxEngine(bundled_folder("icons"))
    assert (engine.threads, engine.workers) == (5, 1)


# --- Folders that are damaged, or of others


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundled_folder("icons"), tmp_path / "icons"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def take_from_another(path: Path) -> None:
    shutil.copyfile(bundled_folder("pictograms") / path.name, path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("text.onnx", cut, r"text\.onnx: corrupt, or from another model"),
        ("text.onnx", take_from_another, r"text\.onnx: corrupt, or from another model"),
        ("text.onnx", Path.unlink, r"text\.onnx: missing, or cannot be read"),
        ("model.safetensors", cut, r"model\.safetensors: corrupt, or from another model"),
        ("model.safetensors", Path.unlink, r"model\.safetensors: missing, or cannot be read"),
    ],
)
def test_file_that_is_corrupt_missing_or_exchanged_is_named(folder, name, damage, message, capfd):
    engine = OnnxEngine(folder)
    damage(folder / name)
    with pytest.raises(UserError, match=f"{message}.*grr-coca export onnx"):
        engine.encode_texts(np.array([[0, 5, 1, 0]]), np.array([4]))
    assert capfd.readouterr() == ("", "")


def relist(folder: Path, name: str) -> None:
    """Write a changed file into the manifest."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_earlier_export_still_runs(tmp_path):
    """Its graph appends to caches by operators beside attention. Inputs, outputs and results are the same."""
    folder = Path(shutil.copytree(bundled_folder("pictograms"), tmp_path / "pictograms"))
    before = Path(__file__).parent / "recorded" / "pictograms-step.onnx.xz"
    (folder / "step.onnx").write_bytes(lzma.decompress(before.read_bytes()))
    relist(folder, "step.onnx")
    found, target = (
        generate(
            engine, checkpoint_of("pictograms").tokenizer, pixels_of("pictograms")[:4], GenerationOptions(num_beams=3)
        )
        for engine in (OnnxEngine(folder), onnx_engine("pictograms"))
    )
    for (caption, *_), (expected, *_) in zip(found.captions, target.captions, strict=True):
        assert caption.token_ids == expected.token_ids
        assert np.abs(np.array(caption.log_probs) - expected.log_probs).max() <= 1e-5


@pytest.mark.parametrize("version", ["opset", "ir"])
def test_old_onnx_runtime_error_names_the_upgrade(folder, version, capfd):
    graph = onnx.load(folder / "text.onnx", load_external_data=False)
    if version == "opset":
        graph.opset_import[0].version = 999
    else:
        graph.ir_version = 999
    (folder / "text.onnx").write_bytes(graph.SerializeToString())
    relist(folder, "text.onnx")
    message = f"needs a newer ONNX Runtime than {onnxruntime.__version__}; run: .* -m pip install -U onnxruntime$"
    with pytest.raises(UserError, match=message):
        OnnxEngine(folder).session("text")
    assert capfd.readouterr() == ("", "")


def test_corrupt_graph_reports_one_line(folder, capfd):
    cut(folder / "text.onnx")
    relist(folder, "text.onnx")
    with pytest.raises(UserError, match=r"text\.onnx: cannot be opened \(.*\); write the folder again") as error:
        OnnxEngine(folder).session("text")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_missing_graphs_error_names_the_export_command(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({"files": manifest["files"]}))
    with pytest.raises(UserError, match=r"has no ONNX graphs .*grr-coca export onnx"):
        OnnxEngine(folder)
    del manifest["files"]["text.onnx"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json does not list text\.onnx; .*grr-coca export onnx"):
        OnnxEngine(folder).session("text")


def test_links_to_files_of_one_folder_are_followed(folder, tmp_path):
    """So the Hugging Face hub keeps what was downloaded."""
    links = tmp_path / "links"
    links.mkdir()
    for path in folder.iterdir():
        (links / path.name).symlink_to(path)
    found, target = (OnnxEngine(f).encode_texts(np.array([[0, 5, 1, 0]]), np.array([4])) for f in (links, folder))
    assert np.array_equal(found, target)
