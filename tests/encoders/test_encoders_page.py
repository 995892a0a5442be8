"""Every command of the page about image encoders runs, in its order, with random weights."""

import json
import re
import shlex
from pathlib import Path

import pytest
from support import real_pairs, write_shard
from test_feature_pairs import write_slides

from grr_coca import load
from grr_coca.cli import main
from grr_coca_serve.server import RunningServer

PAGE = Path(__file__).parents[2] / "docs" / "encoders.md"
BLOCK = re.compile(r"^```(?P<kind>\w*)\n(?P<lines>.*?)^```$", re.MULTILINE | re.DOTALL)
PLACES = {
    "PAIRS": "pairs.tar",
    "TEST": "pairs.tar",
    "IMAGES…": "images",
    "INDEX": "index",
    "FEATURES": "features",
    "TOKENS": "tokens",
    "MINE": "features/00000.npy",
    "timm:vit_small_patch14_dinov2@224": "timm:vit_tiny_patch16_224@32=random",
}


def commands():
    blocks = BLOCK.finditer(PAGE.read_text(encoding="utf-8"))
    lines = "".join(block["lines"] for block in blocks if not block["kind"]).splitlines()
    return [[PLACES.get(word, word) for word in shlex.split(line.partition("#")[0])] for line in lines]


@pytest.mark.ci
def test_commands_on_the_page_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("timm")
    pairs = real_pairs(24, "glyphs")
    write_shard(tmp_path / "pairs.tar", pairs)
    (tmp_path / "images").mkdir()
    for pair in pairs[:4]:
        (tmp_path / "images" / f"{pair.key}.webp").write_bytes(pair.image)
    for name, first, count in (("", 0, 40), ("new", 40, 5), ("test", 50, 20)):
        write_slides(tmp_path / f"{name}-slides", first, count)
        (tmp_path / f"{name}-slides" / "slides").rename(tmp_path / (name or "slides"))
        (tmp_path / f"{name}-slides" / "reports.csv").rename(tmp_path / f"{name or 'reports'}.csv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webbrowser.open", lambda _: True)
    serve = RunningServer.run
    monkeypatch.setattr(RunningServer, "run", lambda server: (server.stop(), serve(server)))
    done = []
    for name, *words in commands():
        assert name == "grr-coca"
        if words[0] == "finetune":  # takes minutes; test_frozen_training.py trains by such recipes
            continue
        assert main(words) == 0, f"{words}: {capsys.readouterr().err}"
        done.append(words[0])
    assert {"adapt", "caption", "compare", "data", "evaluate", "index", "search", "serve"} <= set(done)
    assert load("mine").engine.descriptor is not None
    assert load("pathology").adaptation.is_without_images


def test_example_of_preprocessing_is_read(tmp_path):
    from encoder_graphs import write_graph

    from grr_coca.infer.encoder import open_encoder

    (example,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    path = write_graph(tmp_path, side="S")
    (tmp_path / "preprocessor_config.json").write_text(example)
    preprocess = open_encoder(f"onnx:{path}").info.preprocess
    assert (preprocess.image_size, preprocess.crop, preprocess.fit) == (224, 224 / 256, "crop")
    assert preprocess.mean == tuple(json.loads(example)["image_mean"])
