"""The page of a model with a third-party image encoder, which runs in the browser."""

import base64
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from browsing import hosted, static
from encoder_graphs import PREPROCESSOR, write_graph
from feature_models import write_featured_model

import grr_coca
from grr_coca.cli import main
from grr_coca.common.errors import UserError
from grr_coca.infer.encoder import open_encoder
from grr_coca.model.checkpoint_files import FROZEN_FILES
from grr_coca_search.index import Index
from grr_coca_serve import site


@pytest.fixture(params=["in place", "beside"])
def exported(request, tmp_path):
    """A folder of graphs of random weights with the encoder."""
    (tmp_path / "elsewhere").mkdir()
    graph = write_graph(tmp_path / "elsewhere", kind="tokens", prefix=1)
    cropped = {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": 32, "resample": 2}
    (graph.parent / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | cropped))
    write_featured_model(tmp_path / "model", open_encoder(f"onnx:{graph}"), beside=request.param == "beside")
    command = [
        sys.executable,
        "-m",
        "grr_coca",
        "export",
        "onnx",
        "-c",
        tmp_path / "model",
        "--out",
        tmp_path / "graphs",
    ]
    subprocess.run(command, check=True, env={**os.environ, "GRR_COCA_CHECK_SHAPES": ""})  # checks disturb tracing
    return tmp_path / "graphs"


def test_dropped_picture_is_captioned_and_compared_as_in_python(exported, drawings, tab, tmp_path):
    drawing = next((drawings / "things").glob("*.webp"))
    with Index.open(tmp_path / "index", create=True, model=str(exported)) as index:
        index.add(drawings)
        expected = index.search(image=[drawing], n=10)
    assert main(["export", "web", "--index", str(tmp_path / "index"), "--out", str(tmp_path / "site")]) == 0
    with hosted(static(tmp_path / "site")) as address:
        page = tab(address).ready().page
        found, caption = page.evaluate(
            """async (data) => {
                const { backend } = await import("./app.js");
                const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
                const image = new Blob([bytes], { type: "image/webp" });
                const nothing = { texts: [], without: [], like: [], unlike: [], filters: {} };
                const found = await backend.search({ ...nothing, image, offset: 0, limit: 10 });
                return [found, (await backend.caption(image)).caption];
            }""",
            base64.b64encode(drawing.read_bytes()).decode(),
        )
    scores = {hit.path.rpartition("/")[2]: hit.score for hit in expected}
    of_page = {hit["name"].rpartition("/")[2]: hit["score"] for hit in found["hits"]}
    shared = scores.keys() & of_page.keys()
    assert len(shared) >= 5
    assert all(of_page[name] == pytest.approx(scores[name], abs=0.02) for name in shared)
    assert of_page[drawing.name] == pytest.approx(1, abs=0.02)
    assert np.ptp([*of_page.values()]) > 0
    assert caption == grr_coca.load(exported).caption(drawing)


def test_large_encoder_raises(monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    graph = write_graph(tmp_path / "elsewhere", kind="tokens", prefix=1)
    write_featured_model(tmp_path / "graphs", open_encoder(f"onnx:{graph}"))
    record, exported = (tmp_path / "graphs" / name for name in FROZEN_FILES)
    exported.write_bytes(bytes(31_000_000))
    for precision, advice in (("fp32", "pass a folder from .* --precision int8"), ("int8", "use a smaller encoder")):
        record.write_text(json.dumps({"precision": precision}))
        with pytest.raises(UserError, match=rf"encoder\.onnx: .* is 31\.0 MB, .* at most 30 MB; .*{advice}"):
            site.read_page_encoder(tmp_path / "graphs")
