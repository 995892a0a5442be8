"""`grr-coca export onnx`: the graphs give what PyTorch gives, for any number of images, captions and tokens."""

import importlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import jaxtyping
import numpy as np
import onnxruntime
import pytest
import torch
from model_configs import SET_BY_RECIPES
from onnxscript import ir
from open_clip_files import random_checkpoint, write_hub_folder
from support import next_token_logits

import grr_coca
from grr_coca.common.errors import UserError
from grr_coca.common.files import read_manifest, verify_folder
from grr_coca.data.batch import normalize
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources.open import open_source
from grr_coca.data.tokenizer import train_bpe
from grr_coca.infer.engine.onnx import OnnxEngine
from grr_coca.infer.engine.torch import TorchEngine
from grr_coca.infer.export.graphs import trace
from grr_coca.infer.export.readme import render_readme
from grr_coca.infer.export.write import write_onnx
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.model.build import build
from grr_coca.model.checkpoint import Checkpoint, from_pretrained, save_checkpoint
from grr_coca.model.checkpoint_files import GRAPHS, bundled_folder, bundled_models, fingerprint
from grr_coca.model.presets import PRESETS
from grr_coca_open_clip.checkpoints.read import read_open_clip

DRAWINGS = sorted((Path(__file__).parents[4] / "docs" / "drawings").glob("*.webp"))
SHIPPED = {name: bundled_folder(name) for name in bundled_models()}


def write_unchecked(*arguments):
    """`write_onnx` without the tests' checks of shapes, which would ask for the sizes that are to vary."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        write_onnx(*arguments)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@dataclass(frozen=True)
class Exported:
    """A checkpoint and its graphs."""

    checkpoint: Checkpoint
    source: Path
    folder: Path

    def run(self, name, **inputs):
        """The outputs of a graph by name."""
        graph = session(self.folder / f"{name}.onnx")
        values = graph.run(None, {given.name: inputs[given.name] for given in graph.get_inputs()})
        return dict(zip((output.name for output in graph.get_outputs()), values, strict=True))

    def empty_past(self, rows):
        given = session(self.folder / "step.onnx").get_inputs()
        return {i.name: np.zeros((rows, i.shape[1], 0, i.shape[3]), np.float32) for i in given if "past" in i.name}


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


def as_past(outputs):
    return {name.replace("present", "past"): value for name, value in outputs.items() if "present" in name}


@pytest.fixture(scope="module")
def export(tiny_config, tmp_path_factory):
    """Exports a model by name, once."""
    done, traced, patched = {}, {}, pytest.MonkeyPatch()

    def run(name, precision="fp32"):
        key = (name, precision)
        if key not in done:
            if name in SHIPPED and precision == "fp32":  # its graphs lie beside its weights
                done[key] = Exported(from_pretrained(SHIPPED[name]), SHIPPED[name], SHIPPED[name])
                return done[key]
            folder = tmp_path_factory.mktemp("onnx")
            source = SHIPPED[name] if name in SHIPPED else make_checkpoint(name, folder, tiny_config)

            def trace_once(model, config, preprocess, graph):
                """Weights are the same in fp32 and int8, and tracing takes most of the time."""
                key = (name, precision == "fp16", graph)
                if key not in traced:
                    traced[key] = ir.to_proto(trace(model, config, preprocess, graph))
                return ir.from_proto(traced[key])

            patched.setattr("grr_coca.infer.export.write.trace", trace_once)
            write_unchecked(source, folder / "graphs", precision)
            done[key] = Exported(from_pretrained(source), source, folder / "graphs")
        return done[key]

    yield run
    patched.undo()


def make_checkpoint(name, folder, tiny_config):
    """A checkpoint with random weights and one layer in each stack."""
    source = folder / "checkpoint"
    if name == "imported":  # a checkpoint of open_clip, with CLIP's vocabulary
        checkpoint = read_open_clip(write_hub_folder(random_checkpoint(), folder / "hub"), None)
    else:
        config = tiny_config(name, num_queries=None if "plus" in name else 5)
        stacks = {
            stack: replace(
                getattr(config, stack), transformer=replace(getattr(config, stack).transformer, num_layers=1)
            )
            for stack in ("image_encoder", "text_decoder", "multimodal_decoder")
        }
        stacks["text_decoder"] = replace(stacks["text_decoder"], vocab_size=270, context_length=130)
        config = replace(config, **stacks)
        model = build(config)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        checkpoint = Checkpoint(
            model=model,
            config=config,
            preset=name,
            tokenizer=train_bpe(["a red heart", "a red house"], 270),
            preprocess=Preprocess(config.image_encoder.image_size, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
            step=0,
        )
    save_checkpoint(checkpoint, source)
    return source


# The parts that graphs may differ in: norms, feed-forwards, positions, poolers, and all of open_clip's.
# Tracing a model takes half a minute; of open_clip's, test_published.py tells that the graphs are the model.
OTHERS = ["imported", *(name for name in (*PRESETS, *SET_BY_RECIPES) if name != "grr_coca")]
TRACED = pytest.param("grr_coca", marks=pytest.mark.ci)
MODELS = [
    TRACED,
    *(name if name == "icons" else pytest.param(name, marks=pytest.mark.ci) for name in SHIPPED),
    *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS),
]


def random_pixels(checkpoint, count):
    side = checkpoint.config.image_encoder.image_size
    return np.random.default_rng(count).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def encode(checkpoint, pixels):
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return checkpoint.model.encode_image(normalize(images, checkpoint.preprocess))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_images_have_the_embeddings_of_pytorch(export, name):
    exported = export(name)
    for count in (1, 3):
        pixels = random_pixels(exported.checkpoint, count)
        embedding = encode(exported.checkpoint, pixels).embedding
        assert np.abs(exported.run("image", pixels=pixels)["image_embedding"] - embedding.numpy()).max() <= 1e-5


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_texts_have_the_embeddings_of_pytorch(export, name):
    exported = export(name)
    config, random = exported.checkpoint.config.text_decoder, np.random.default_rng(0)
    for count, longest in ((1, 3), (1, 4), (3, 4), (3, 9), (1, config.context_length - 1), (3, config.context_length)):
        lengths = random.integers(3, longest + 1, count)
        lengths[0] = longest
        token_ids = random.integers(0, config.vocab_size, (count, longest))
        token_ids[np.arange(longest) >= lengths[:, None] - 1] = 0
        embedding = exported.checkpoint.model.encode_text(torch.from_numpy(token_ids), torch.from_numpy(lengths))
        found = exported.run("text", token_ids=token_ids, lengths=lengths)["text_embedding"]
        assert np.abs(found - embedding.numpy()).max() <= 1e-5, (count, longest)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("count", "num_captions"), [(1, 1), (3, 1), (1, 5), (3, 5)])
@torch.no_grad()
def test_step_matches_pytorch_with_and_without_a_cache(export, name, count, num_captions):
    """Several captions of an image, as in beam search, share its keys and values."""
    exported = export(name)
    config, pixels = exported.checkpoint.config.text_decoder, random_pixels(exported.checkpoint, count)
    length, rows = config.context_length - 2, count * num_captions
    token_ids = np.random.default_rng(rows).integers(3, config.vocab_size, (rows, length))
    tokens = encode(exported.checkpoint, pixels).tokens.repeat_interleave(num_captions, dim=0)
    expected = next_token_logits(exported.checkpoint.model, torch.from_numpy(token_ids), tokens).numpy()

    image = exported.run("image", pixels=pixels)
    whole = exported.run("step", token_ids=token_ids, **image, **exported.empty_past(rows))["logits"]
    assert whole.shape == expected.shape
    assert np.abs(whole - expected).max() <= 1e-4

    past, start = exported.empty_past(rows), 0
    for end in (2, 3, 4, 8, length):
        outputs = exported.run("step", token_ids=np.ascontiguousarray(token_ids[:, start:end]), **image, **past)
        assert np.abs(outputs["logits"] - expected[:, start:end]).max() <= 1e-4, (start, end)
        past, start = as_past(outputs), end


@pytest.mark.ci
@torch.no_grad()
def test_batch_size_that_is_held_for_a_constant_is_an_error(tiny_config):
    """The exporter by itself would write a graph for this batch size alone."""
    config = tiny_config("grr_coca")
    model = build(config).eval()
    norm = model.image_encoder.norm

    class Fixed(torch.nn.Module):
        def forward(self, x):
            return norm(x) * torch.ones(len(x), 1, 1)

    model.image_encoder.norm = Fixed()
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(Exception, match=r"Constraints violated \(B\)"):
            trace(model, config, Preprocess(16), "image")
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_has_standard_operators_and_no_local_paths(export, name):
    path = export("icons").folder / f"{name}.onnx"
    model = ir.load(path)
    assert {node.domain for node in model.graph} == {""}
    content = path.read_bytes()
    assert b"site-packages" not in content
    assert str(Path(__file__).parents[4]).encode() not in content


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("icons", "fp32"),
        *(pytest.param("grr_coca", precision, marks=pytest.mark.ci) for precision in ("fp32", "int8")),
        pytest.param("imported", "fp32", marks=pytest.mark.slow),
        *(pytest.param("grr_coca+stem", precision, marks=pytest.mark.slow) for precision in ("fp32", "int8")),
    ],
)
def test_weights_are_written_once(export, name, precision):
    """All graphs read one file, and hold small tensors alone."""
    exported = export(name, precision)
    weights = "weights.safetensors" if precision == "int8" else "model.safetensors"
    if precision == "fp32":
        assert (exported.folder / weights).read_bytes() == (exported.source / weights).read_bytes()
    used = set()
    for graph in GRAPHS:
        for value in ir.load(exported.folder / f"{graph}.onnx").graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                assert tensor.location == weights
                used.add((tensor.offset, tensor.length))
            else:
                assert tensor.nbytes < 8192, value.name
    assert sum(length for _, length in used) <= (exported.folder / weights).stat().st_size
    assert used


@pytest.mark.ci
def test_folder_is_complete_and_describes_itself(export):
    exported = export("grr_coca")
    verify_folder(exported.folder)
    listed = read_manifest(exported.folder)
    assert {path.name for path in exported.folder.iterdir()} == {*listed, "manifest.json"}
    assert (exported.folder / "README.md").read_text() == render_readme(exported.checkpoint, "fp32")
    manifest = json.loads((exported.folder / "manifest.json").read_text())
    assert manifest["precision"] == "fp32"
    assert manifest["checkpoint"] == fingerprint(exported.source) == fingerprint(exported.folder)
    assert manifest["model"]["context_length"] == exported.checkpoint.config.text_decoder.context_length
    assert manifest["model"]["logit_scale"] == pytest.approx(exported.checkpoint.model.logit_scale.exp().item())
    for name in ("tokenizer.json", "preprocess.json", "config.json"):
        assert (exported.folder / name).read_bytes() == (exported.source / name).read_bytes()
    again = from_pretrained(exported.folder)
    assert again.config == exported.checkpoint.config


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grr_coca", "grr_coca+stem"])
@torch.no_grad()
def test_half_precision_halves_the_weights_and_computes_in_fp32(export, name):
    full, half = export(name), export(name, "fp16")
    sizes = [(exported.folder / "model.safetensors").stat().st_size for exported in (full, half)]
    assert sizes[1] < 0.6 * sizes[0]
    rounded = from_pretrained(half.folder)
    assert json.loads((half.folder / "manifest.json").read_text())["checkpoint"] == fingerprint(half.folder)
    pixels = random_pixels(rounded, 2)
    expected = encode(rounded, pixels).embedding.numpy()
    assert np.abs(half.run("image", pixels=pixels)["image_embedding"] - expected).max() <= 1e-5
    assert np.abs(full.run("image", pixels=pixels)["image_embedding"] - expected).max() > 1e-5


@pytest.mark.ci
def test_int8_is_smaller_and_close(export):
    full, quantized = export("grr_coca"), export("grr_coca", "int8")
    pixels = random_pixels(full.checkpoint, 3)
    embeddings = [exported.run("image", pixels=pixels)["image_embedding"] for exported in (full, quantized)]
    cosines = (embeddings[0] * embeddings[1]).sum(axis=-1)
    assert 0.99 < cosines.min() < 1 - 1e-6
    assert not (quantized.folder / "model.safetensors").exists(), "the folder is no checkpoint"
    with pytest.raises(UserError, match="an int8 model, which runs only in ONNX Runtime"):
        from_pretrained(quantized.folder)
    for name, num_down_proj in {"image": 1, "text": 1, "step": 2}.items():
        graph = ir.load(quantized.folder / f"{name}.onnx").graph
        assert [node.op_type for node in graph].count("ReduceMax") == num_down_proj, "each token has its own scale"
        for node in graph:
            if node.op_type == "MatMulInteger":
                matrix = node.inputs[1].const_value.numpy()
                assert matrix.dtype == np.int8
                assert np.abs(matrix).max() <= 64, "a sum of two products must fit into 16 bits on AVX2"


@pytest.mark.slow
def test_int8_leaves_convolutions_as_they_are(export):
    full, quantized = export("grr_coca+stem"), export("grr_coca+stem", "int8")
    pixels = random_pixels(full.checkpoint, 3)
    embeddings = [exported.run("image", pixels=pixels)["image_embedding"] for exported in (full, quantized)]
    assert 0.99 < (embeddings[0] * embeddings[1]).sum(axis=-1).min() < 1 - 1e-6
    graphs = [ir.load(exported.folder / "image.onnx").graph for exported in (full, quantized)]
    assert [[node.op_type for node in graph].count("Conv") for graph in graphs] == [2, 2]
    assert "MatMulInteger" in {node.op_type for node in graphs[1]}


@pytest.mark.parametrize("name", SHIPPED)
def test_graphs_that_ship_belong_to_the_weights_that_ship(name):
    manifest = json.loads((SHIPPED[name] / "manifest.json").read_text())
    verify_folder(SHIPPED[name])
    assert manifest["files"].keys() >= {"image.onnx", "text.onnx", "step.onnx"}
    assert manifest["checkpoint"] == fingerprint(SHIPPED[name])
    for graph in GRAPHS:
        assert (SHIPPED[name] / f"{graph}.onnx").stat().st_size < 100_000, "weights are read from model.safetensors"


@pytest.mark.parametrize("name", ["icons", pytest.param("imported", marks=pytest.mark.slow)])
def test_program_of_the_readme_runs_without_pytorch(export, tmp_path, name):
    exported = export(name)
    image = DRAWINGS[0]
    page = render_readme(exported.checkpoint, "fp32")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    program = "import sys\nsys.modules['torch'] = sys.modules['grr_coca'] = None\n" + program
    command = [sys.executable, "-c", program, str(image)]
    done = subprocess.run(command, cwd=exported.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    caption, cosine = done.stdout.splitlines()
    model = grr_coca.load(exported.source, device="cpu", engine="torch")
    assert caption == model.caption(image)
    assert float(cosine) == pytest.approx(model.similarity(image, "a red heart").item(), abs=1e-5)


def test_int8_readme_states_the_measurements(export):
    """`make bench-precision` measures it."""
    path = Path(__file__).parents[4] / "benchmarks" / "results" / "precision.json"
    row = json.loads(path.read_text())["rows"][0]
    assert (row["model"], row["images"]) == ("icons", 895)
    page = " ".join(render_readme(from_pretrained(SHIPPED["icons"]), "int8").split())
    assert f"{row['int8_alone_as_in_a_batch']:.0%} are the same in batches of 1 and of 64".replace("%", " %") in page
    assert f"{row['int8_as_fp32']:.0%} are those of fp32".replace("%", " %") in page
    least = int(1000 * min(row["int8_cosine"], row["int8_alone_cosine"])) / 1000
    assert f"cosines of the embeddings are at least {least:.3f}." in page


TEST_STYLE = str(Path(__file__).parents[4] / "datasets" / "pictograms" / "test_style-*.tar")


@pytest.fixture
def precision(monkeypatch):
    """The benchmark that measures what int8 changes."""
    monkeypatch.syspath_prepend(Path(__file__).parents[4] / "benchmarks")
    return importlib.import_module("precision")


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_int8_describes_drawings_as_well(export, precision, name):
    """895 drawings in styles that no model has seen. In fp32, all captions are those of PyTorch."""
    checkpoint = from_pretrained(SHIPPED[name])
    split = precision.read(open_source(TEST_STYLE), checkpoint)
    engines = {
        "torch": TorchEngine(checkpoint.model, checkpoint.preprocess),
        "fp32": OnnxEngine(SHIPPED[name], threads=1),
        "int8": OnnxEngine(export(name, "int8").folder, threads=1),
    }
    result = {
        side: precision.describe(ImageTextModel(checkpoint, engine), split, 64) for side, engine in engines.items()
    }
    assert result["fp32"].token_ids == result["torch"].token_ids
    full, quantized = (precision.figures(result[side], split) for side in ("fp32", "int8"))
    assert quantized["exact"] == pytest.approx(full["exact"], abs=0.01)
    assert quantized["R@1"] == pytest.approx(full["R@1"], abs=0.01)
    assert quantized["CIDEr-D"] == pytest.approx(full["CIDEr-D"], abs=full["CIDEr-D"] / 100)
    assert precision.same(result["int8"].token_ids, result["fp32"].token_ids) >= 0.88
