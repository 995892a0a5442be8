"""open_clip's published models by name, from a hub of our own that has small models in the same layout."""

import errno
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_hub import fake_hub
from huggingface_hub import constants, file_download
from safetensors.torch import save

import grr_coca
from grr_coca.cli import main
from grr_coca.common.errors import UserError
from grr_coca.common.files import MANIFEST, atomic_folder, models_cache
from grr_coca.infer.load import locate_checkpoint
from grr_coca.model.checkpoint_files import FOLDER
from grr_coca_open_clip import published_models as published
from grr_coca_open_clip.published_models import PUBLISHED, find_published, is_cached

BASE, TUNED = PUBLISHED["coca-b32"].repository, PUBLISHED["coca-l14-captions"].repository
WEIGHTS = "open_clip_pytorch_model.bin"
IMAGE = Path(__file__).parents[2] / "docs" / "drawings" / "guitar.webp"


def pickled(tensors: dict) -> bytes:
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def packed(theirs) -> tuple[bytes, bytes]:
    """The same weights, pickled and not."""
    return pickled(theirs.tensors), save(theirs.tensors)


@pytest.fixture
def hub(theirs, packed, monkeypatch, tmp_path):
    """The hub, and a user's folders for its cache and for ours, which are empty."""
    with fake_hub() as hub:
        hub.repositories = {BASE: [], TUNED: []}
        hub.commit(BASE, {WEIGHTS: packed[0], "README.md": b"weights"})
        settings = json.dumps(theirs.settings).encode()
        tuned = {"open_clip_config.json": settings, "open_clip_model.safetensors": packed[1]}
        hub.commit(TUNED, {**tuned, WEIGHTS: b"a copy"})
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "ours"))
        yield hub


@pytest.fixture
def quick(monkeypatch):
    """Conversion that copies a model which ships: what is tested is all around it. Returns what was converted."""
    converted: list[Path] = []

    def convert(weights, origin, folder):
        converted.append(weights)
        facts = json.loads((FOLDER / "pictograms" / MANIFEST).read_text())
        with atomic_folder(folder, {**facts, "form": published._FORM}) as partial:
            for path in (FOLDER / "pictograms").iterdir():
                if path.name != MANIFEST:
                    shutil.copy(path, partial)

    monkeypatch.setattr(published, "_convert", convert)
    return converted


@pytest.mark.parametrize(
    ("name", "is_one"), [("coca-b32@v1.0", True), ("coca-b32@../x", False), ("coca-b33", False), ("coca-b32@", False)]
)
def test_name_may_have_a_revision(name, is_one):
    assert (find_published(name) is not None) is is_one


@pytest.mark.ci
def test_concurrent_processes_download_once(hub, tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}

    def run() -> subprocess.Popen:
        command = [sys.executable, "-m", "grr_coca", "caption", str(IMAGE), "-c", "coca-b32", "--engine", "onnx"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    both = [run() for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert [name for name, _ in hub.fetched] == [WEIGHTS]
    assert "downloading 1.01 GB of laion/CoCa-ViT-B-32-laion2B-s13B-b90k, which is needed only once" in "".join(
        err for _, err in outputs
    )
    record = json.loads((models_cache() / "coca-b32.json").read_text())
    assert (record["repository"], record["revision"]) == (BASE, hub.revision(BASE, 0))
    assert json.loads((models_cache() / "coca-b32" / MANIFEST).read_text())["source"] == record
    torch_engine, onnx_engine = (grr_coca.load("coca-b32", "cpu", engine=engine) for engine in ("torch", "onnx"))
    for embed, items in (("embed_images", [IMAGE, IMAGE.with_name("snowman.webp")]), ("embed_texts", ["guitar", "a"])):
        ours, graphs = (getattr(model, embed)(items) for model in (torch_engine, onnx_engine))
        np.testing.assert_allclose(graphs, ours, atol=1e-5)
    assert torch_engine.caption(IMAGE) == onnx_engine.caption(IMAGE)
    environment["HF_ENDPOINT"] = "http://127.0.0.1:1"
    shutil.rmtree(tmp_path / "home")
    code = """if True:
        import sys
        sys.modules["torch"] = sys.modules["huggingface_hub"] = None  # importing them raises an error
        import grr_coca
        model = grr_coca.load("coca-b32")
        print(model.engine.name, model.caption(sys.argv[1]), sep="\\t")
    """
    later = subprocess.run([sys.executable, "-c", code, IMAGE], capture_output=True, text=True, env=environment)
    assert (later.stdout, later.stderr) == (outputs[0][0].replace(str(IMAGE), "onnx"), "")


def test_prefers_safetensors_and_separates_revisions(hub, quick):
    old = hub.revision(TUNED, 0)
    hub.commit(TUNED, {"open_clip_model.safetensors": b"newer"})
    newest = locate_checkpoint("coca-l14-captions")
    assert locate_checkpoint(f"coca-l14-captions@{old}") != newest
    assert [weights.name for weights in quick] == ["open_clip_model.safetensors"] * 2
    assert [weights.parent.name for weights in quick] == [hub.revision(TUNED, 1), old]
    assert all((weights.parent / "open_clip_config.json").exists() for weights in quick)
    with pytest.raises(UserError, match=r"coca-b32@v9: the Hugging Face hub does not provide"):
        locate_checkpoint("coca-b32@v9")


def test_interrupted_download_resumes(hub, quick, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda _: None))  # tries again at once
    hub.cuts = 1
    locate_checkpoint("coca-b32")
    (first, begin), (again, resumed) = hub.fetched
    assert (first, begin, again) == (WEIGHTS, 0, WEIGHTS)
    assert resumed > 1000
    assert len(quick) == 1


def test_rejects_files_with_another_checksum(hub, quick):
    hub.damages = True
    with pytest.raises(UserError, match=r"corrupt: the SHA-256 is .* delete this file") as error:
        locate_checkpoint("coca-b32")
    assert not quick
    assert not is_cached("coca-b32")
    hub.damages = False
    Path(str(error.value).partition(": corrupt")[0]).unlink()
    assert locate_checkpoint("coca-b32").is_dir()


def test_checksum_of_the_first_download_is_kept(hub, quick):
    folder = locate_checkpoint("coca-b32")
    record = folder.with_name("coca-b32.json")
    record.write_text(record.read_text().replace(json.loads(record.read_text())["sha256"], "0" * 64))
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"the weights differ from the first download .* to accept them, delete"):
        locate_checkpoint("coca-b32")


def test_error_of_a_corrupt_copy_names_the_fix(hub, quick):
    folder = locate_checkpoint("coca-b32")
    config = folder / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(UserError, match=rf"its size or checksum differs from the manifest; delete {folder}"):
        published_load("coca-b32")
    shutil.rmtree(folder)
    assert published_load("coca-b32").engine.name == "onnx"
    assert len(hub.fetched) == 1, "the hub's cache has it"


def published_load(name: str):
    from grr_coca.infer.load import load

    return load(name, engine="onnx")


def test_older_cache_is_rebuilt_from_the_same_revision(hub, quick, monkeypatch):
    locate_checkpoint("coca-b32")
    hub.commit(BASE, {WEIGHTS: b"newer weights of the same name"})
    monkeypatch.setattr(published, "_FORM", published._FORM + 1)
    assert not is_cached("coca-b32")
    folder = locate_checkpoint("coca-b32")
    assert [weights.parent.name for weights in quick] == [hub.revision(BASE, 0)] * 2
    assert json.loads((folder / MANIFEST).read_text())["form"] == published._FORM


def test_offline_raises_before_any_request(hub, quick, capsys, caplog):
    assert main(["caption", str(IMAGE), "-c", "coca-b32", "--offline"]) == 2
    assert "coca-b32: not on this machine; to download 1.01 GB of" in capsys.readouterr().err
    assert hub.fetched == []
    os.environ["HF_HUB_OFFLINE"] = "0"
    with caplog.at_level(logging.INFO):
        locate_checkpoint("coca-b32")
    assert "once" in caplog.text
    assert main(["caption", str(IMAGE), "-c", "coca-b32", "--offline"]) == 0


def test_missing_network_reports_one_line(hub, quick, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between attempts
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:1/{repo_id}/resolve/{revision}/{filename}"
    )
    with pytest.raises(UserError, match=r"coca-b32: downloading 1.01 GB .* failed .*; check the connection") as error:
        locate_checkpoint("coca-b32")
    assert "\n" not in str(error.value)


def test_full_disk_raises_before_the_import(hub, quick, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    full = usage._replace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full if Path(path) == models_cache() else usage)
    with pytest.raises(UserError, match=r"0.00 GB are free, but importing needs .* XDG_CACHE_HOME"):
        locate_checkpoint("coca-b32")
    assert not quick


def test_disk_that_fills_up_leaves_no_files(hub, monkeypatch):
    def convert(weights, origin, folder):
        with atomic_folder(folder) as partial:
            (partial / "model.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(published, "_convert", convert)
    with pytest.raises(UserError, match=r"cannot be written .No space left on device"):
        locate_checkpoint("coca-b32")
    assert sorted(path.name for path in models_cache().iterdir()) == [".coca-b32.lock", "coca-b32.json"]


def test_folder_of_the_same_name_wins_with_a_note(hub, quick, monkeypatch, tmp_path, caplog):
    shutil.copytree(FOLDER / "pictograms", tmp_path / "coca-b32")
    monkeypatch.chdir(tmp_path)
    assert locate_checkpoint("coca-b32") == Path("coca-b32")
    assert "this folder is used, not the published model of the same name" in caplog.text
    assert hub.fetched == []


def test_models_lists_them_and_their_cache_state(hub, quick, capsys):
    locate_checkpoint("coca-b32")
    capsys.readouterr()
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {name: rows[name]["is_here"] for name in PUBLISHED} == {name: name == "coca-b32" for name in PUBLISHED}
    assert rows["coca-b32"]["engine"] == "onnx"
    assert main(["models"]) == 0
    outputs = capsys.readouterr().out
    for model in PUBLISHED.values():
        for fact in (
            model.name,
            model.repository,
            model.good_for,
            model.licence,
            f"{model.bytes / 1e9:.2f} GB",
            model.data,
        ):
            assert fact in outputs
