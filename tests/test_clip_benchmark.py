"""clip_benchmark's own loaders and metrics on our checkpoint, over a small set in its layout."""

import json
import sys
from pathlib import Path
from types import ModuleType

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

from grr_coca.common.errors import UserError
from grr_coca.data.images import decode_image
from grr_coca.evaluate.retrieval import make_gallery, retrieve
from grr_coca.evaluate.zeroshot import classifier_of, classify_labelled, embed_texts
from grr_coca.model.checkpoint import from_pretrained
from support import real_pairs, write_tar

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
jaxtyping.install_import_hook(["run_clip_benchmark"], "shape_check.check")

from run_clip_benchmark import (  # noqa: E402
    ClipModel,
    load_grr_coca,
    main,
    make_transform,
    repair_accuracy,
    top_k_accuracy,
)

pytestmark = pytest.mark.ci

CLASSES = ("heart", "star", "face", "flag", "hand", "moon")
TEMPLATES = ("a picture of a {c}.", "{c}")
NUM_IMAGES = 24


@pytest.fixture(scope="module")
def loaded(run):
    return load_grr_coca("grr_coca", str(run.folder))


@pytest.fixture(scope="module")
def checkpoint(run):
    return from_pretrained(run.folder)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A classification and a retrieval set, each `test/0.tar` and text files beside."""
    root = tmp_path_factory.mktemp("wds")
    classification, retrieval = {}, {}
    for number, pair in enumerate(real_pairs(NUM_IMAGES)):
        classification[f"{number:04}.webp"] = retrieval[f"{number:04}.webp"] = pair.image
        classification[f"{number:04}.cls"] = str(number % len(CLASSES)).encode()
        retrieval[f"{number:04}.txt"] = f"{pair.caption}\nthe second of {number}".encode()
    for name, members in (("classes", classification), ("captions", retrieval)):
        write_tar(root / name / "test" / "0.tar", members)
        (root / name / "test" / "nshards.txt").write_text("1")
    (root / "classes" / "classnames.txt").write_text("\n".join(CLASSES))
    (root / "classes" / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES))
    (root / "captions" / "dataset_type.txt").write_text("retrieval")
    return root


def wds_loader(root, transform):
    builder = pytest.importorskip("clip_benchmark.datasets.builder", exc_type=ImportError)
    pytest.importorskip("webdataset")
    dataset = builder.build_wds_dataset("any", transform, split="test", data_dir=str(root))
    loader = torch.utils.data.DataLoader(dataset.batched(7), batch_size=None, shuffle=False)
    loader.dataset.classes, loader.dataset.templates = dataset.classes, dataset.templates
    return loader


def embedded_images(checkpoint):
    pixels = [checkpoint.pixels(decode_image(pair.image, pair.name)) for pair in real_pairs(NUM_IMAGES)]
    with torch.inference_mode():
        return checkpoint.model.encode_image(torch.stack(pixels)).embedding


# --- Their metrics


@pytest.mark.filterwarnings("ignore")
def test_their_zero_shot_accuracy_is_ours(loaded, checkpoint, sets):
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification", exc_type=ImportError)
    model, transform, tokenize = loaded
    repair_accuracy()
    loader = wds_loader(sets / "classes", transform)
    metrics = theirs.evaluate(
        model, loader, tokenize, loader.dataset.classes, loader.dataset.templates, "cpu", amp=False
    )
    templates = [template.replace("{c}", "{}") for template in TEMPLATES]
    targets = [number % len(CLASSES) for number in range(NUM_IMAGES)]
    classifier = classifier_of(checkpoint, CLASSES, templates)
    found = classify_labelled(classifier, embedded_images(checkpoint), targets).measures()
    assert metrics["acc1"] == pytest.approx(found["top-1"].value())
    assert metrics["acc5"] == pytest.approx(found["top-5"].value())
    assert metrics["mean_per_class_recall"] == pytest.approx(found["mean_per_class"].value())


@pytest.mark.filterwarnings("ignore")
def test_their_retrieval_recall_is_ours(loaded, checkpoint, sets):
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval", exc_type=ImportError)
    model, transform, tokenize = loaded
    loader = wds_loader(sets / "captions", transform)
    metrics = theirs.evaluate(model, loader, tokenize, "cpu", amp=False, recall_k_list=[1, 5])
    texts = [text for i, pair in enumerate(real_pairs(NUM_IMAGES)) for text in (pair.caption, f"the second of {i}")]
    image_ids = torch.arange(NUM_IMAGES).repeat_interleave(2)
    images = embedded_images(checkpoint)[image_ids]
    found = retrieve(make_gallery(images, embed_texts(checkpoint, texts), torch.arange(len(texts)), image_ids), "own")
    for k in (1, 5):
        assert metrics[f"image_retrieval_recall@{k}"] == pytest.approx(found.text_to_image.recall(k))
        assert metrics[f"text_retrieval_recall@{k}"] == pytest.approx(found.image_to_text.recall(k))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "task"), [("classes", "zeroshot_classification"), ("captions", "zeroshot_retrieval")])
def test_their_command_line_runs_our_checkpoint(run, sets, tmp_path, name, task, monkeypatch):
    pytest.importorskip("clip_benchmark.cli", exc_type=ImportError)
    out = tmp_path / "result.json"
    before = list(sys.argv)
    flags = ["--dataset", f"wds/{name}", "--dataset_root", str(sets / name), "--task", task, "--num_workers", "0"]
    main(["eval", "--pretrained", str(run.folder), *flags, "--no_amp", "--output", str(out), "--quiet"])
    result = json.loads(out.read_text())
    assert result["model"] == "grr_coca"
    assert all(0 <= value <= 1 for value in result["metrics"].values())
    assert sys.argv == before


# --- The adapter itself


@pytest.fixture
def called(monkeypatch) -> list:
    """What clip_benchmark's command line is called with, in place of itself."""
    names = ("clip_benchmark", "clip_benchmark.models", "clip_benchmark.cli", "clip_benchmark.metrics")
    modules = {name: ModuleType(name) for name in (*names, "clip_benchmark.metrics.zeroshot_classification")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(modules[parent], own, module)
    models, calls = modules["clip_benchmark.models"], []
    models.TYPE2FUNC, models.MODEL_TYPES = {}, ["open_clip"]
    modules["clip_benchmark.cli"].main = lambda: calls.append(sys.argv[1:])
    return calls


@pytest.mark.parametrize("given", [["--model_type", "open_clip"], ["--model_type=open_clip"]])
def test_a_model_type_that_is_given_is_kept(called, given):
    main(["eval", *given, "--model=ViT-B-32"])
    main(["eval"])
    assert called == [
        ["eval", *given, "--model=ViT-B-32"],
        ["eval", "--model_type", "grr_coca", "--model", "grr_coca"],
    ]


def test_padding_does_not_change_a_text(loaded):
    model, _, tokenize = loaded
    short, long = "a cat", "a red heart with an arrow"
    together = model.encode_text(tokenize([short, long]))
    assert torch.allclose(together[0], model.encode_text(tokenize([short]))[0], atol=1e-6)
    assert torch.allclose(together[1], model.encode_text(tokenize([long]))[0], atol=1e-6)


def test_texts_are_embedded_as_the_model_embeds_them(loaded, checkpoint):
    model, _, tokenize = loaded
    texts = ["a cat", "", "a red heart " * 30]
    assert torch.allclose(model.encode_text(tokenize(texts)), embed_texts(checkpoint, texts), atol=1e-6)


def test_images_of_any_mode_are_seen_as_in_training(checkpoint):
    transform = make_transform(checkpoint)
    clear = Image.fromarray(np.zeros((8, 8, 4), dtype=np.uint8))
    assert torch.equal(transform(clear), transform(Image.new("RGB", (8, 8), "white")))
    assert transform(Image.new("L", (8, 8))).shape == (3, 16, 16)
    deep = Image.fromarray(np.full((8, 8), 32_896, dtype=np.uint16))
    assert torch.equal(transform(deep), transform(Image.new("L", (8, 8), 128)))


def test_top_k_accuracy_by_hand():
    output = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    assert top_k_accuracy(output, torch.tensor([0, 2, 0]), (1, 2)) == pytest.approx([1 / 3, 2 / 3])


def test_the_model_is_in_evaluation_mode(loaded):
    assert isinstance(loaded[0], ClipModel)
    assert not any(module.training for module in loaded[0].modules())


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "clip_benchmark", None)
    with pytest.raises(UserError, match="pip install clip-benchmark webdataset"):
        main(["eval"])


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_grr_coca("grr_coca", str(tmp_path / "nowhere"))
