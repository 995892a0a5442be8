"""`grr-coca push`, and loading what was pushed, against a hub of our own."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from fake_hub import OWNER, TOKEN, fake_hub
from huggingface_hub import constants
from support import warnings_of

from grr_coca.common.files import MANIFEST
from grr_coca.model.checkpoint_files import FILES, FITTED_FILES, FOLDER, GRAPH_FILES
from grr_coca.train.run_checkpoints import origin_of, save_origin

PICTOGRAMS = FOLDER / "pictograms"
FITTED = [name for name in FITTED_FILES if (PICTOGRAMS / name).exists()]


@pytest.fixture(scope="module")
def hub():
    with fake_hub() as hub:
        yield hub


@pytest.fixture
def push(hub, grr_coca, monkeypatch, tmp_path):
    """Run `grr-coca push ARGUMENTS` in this process, with our hub in the place of the real one."""

    def run(*arguments, token=TOKEN, address=hub.address):
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        return grr_coca("push", *arguments)

    return run


@pytest.mark.ci
def test_every_pushed_revision_can_be_loaded(hub, push, image_files, tmp_path):
    first = push(PICTOGRAMS, f"{OWNER}/emoji")
    assert first.code == 0, first.err
    assert f'grr_coca.load("{OWNER}/emoji") loads it' in first.out
    (files,) = hub.repositories[f"{OWNER}/emoji"]
    assert sorted(files) == sorted([*FILES, *GRAPH_FILES, *FITTED, MANIFEST, "README.md"])
    for name in (*FILES, *GRAPH_FILES, *FITTED):
        assert files[name] == (PICTOGRAMS / name).read_bytes()
    old, config = hub.revision(f"{OWNER}/emoji", 0), json.loads(files["config.json"])
    later, manifest = json.dumps({**config, "step": 77}).encode(), json.loads(files[MANIFEST])
    assert sorted(manifest["files"]) == sorted([*FILES, *GRAPH_FILES, *FITTED])
    manifest["files"]["config.json"] = {"bytes": len(later), "sha256": hashlib.sha256(later).hexdigest()}
    hub.commit(f"{OWNER}/emoji", {"config.json": later, MANIFEST: json.dumps(manifest).encode()})
    code = """if True:
        import sys, grr_coca
        from grr_coca.cli import main
        for name in sys.argv[2:]:
            model = grr_coca.load(name, "cpu", engine="torch")
            print(model.checkpoint.step, model.caption(sys.argv[1]))
        print(grr_coca.load(f"{sys.argv[2]}@{sys.argv[3].partition('@')[2]}", "cpu").engine.name)
        print("code", main(["caption", sys.argv[1], "-c", sys.argv[2] + "@v9"]))
    """
    names = [f"{OWNER}/emoji", f"{OWNER}/emoji@{old}", f"{OWNER}/emoji@main"]
    # In a process of its own: the client reads its address and its cache folder when it is imported.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", code, str(image_files[0]), *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *loaded, engine, unknown = done.stdout.splitlines()
    assert engine == "onnx", "the graphs are downloaded, too"
    assert [line.split()[0] for line in loaded] == ["77", str(config["step"]), "77"]
    assert len({line.partition(" ")[2] for line in loaded}) == 1
    assert unknown == "code 2"
    assert f"error: {OWNER}/emoji@v9: not a folder, and cannot be downloaded" in done.stderr


def test_card_matches_the_manifest(hub, push):
    push(PICTOGRAMS, f"{OWNER}/card", "--private")
    card = hub.repositories[f"{OWNER}/card"][0]["README.md"].decode()
    assert hub.private[f"{OWNER}/card"]
    assert f'grr_coca.load("{OWNER}/card")' in card
    assert "6,597 drawings of 1,842 concepts" in card
    assert "| test_style | text_to_image/R@1 | 0.47 (0.435 to 0.505) |" in card
    assert "license_name: weights Apache-2.0" in card
    for heading in ("Data", "Metrics", "Limits", "Licence", "Citation"):
        assert f"\n## {heading}\n" in card


def test_dry_run_lists_uploads_and_sends_nothing(grr_coca, monkeypatch):
    monkeypatch.setattr("grr_coca.model.hub.push_files", None)
    result = grr_coca("push", "pictograms", f"{OWNER}/dry", "--dry-run", "--licence", "mit", "--data", "drawings")
    assert result.code == 0
    assert "license: mit" in result.out
    assert "would be uploaded to me/dry; nothing was sent" in result.out
    for name in (*FILES, "README.md"):
        assert name in result.out


@pytest.mark.ci
def test_existing_repository_needs_update(hub, push, run):
    model = [run.checkpoint, f"{OWNER}/taken", "--licence", "mit"]
    hub.repositories[f"{OWNER}/taken"] = [{"README.md": b"before"}]
    result = push(*model)
    assert result.code == 2
    assert result.err == (
        "error: me/taken: a repository of this name exists; pass another name, or --update to add a commit to it\n"
    )
    assert len(hub.repositories[f"{OWNER}/taken"]) == 1
    assert push(*model, "--update").code == 0
    before = len(hub.repositories[f"{OWNER}/taken"])
    result = push(*model, "--update", "--private")
    assert (result.code, len(hub.repositories[f"{OWNER}/taken"])) == (2, before)
    assert "me/taken: this repository is public, so nothing was uploaded" in result.err
    assert len(hub.repositories[f"{OWNER}/taken"]) == 2


def test_card_that_the_hub_rejects_makes_no_repository(hub, push, monkeypatch):
    monkeypatch.setattr(hub, "licences", {"apache-2.0"})
    result = push(PICTOGRAMS, f"{OWNER}/refused", "--licence", "mit")
    assert result.code == 2
    assert result.err.startswith(
        f"error: {OWNER}/refused: nothing was uploaded, because the Hugging Face hub rejects the card"
    )
    assert "must be one of ['apache-2.0']" in result.err
    assert result.err.count("\n") == 1
    assert f"{OWNER}/refused" not in hub.repositories


@pytest.mark.ci
def test_failed_upload_names_the_new_repository_and_the_fix(hub, push, run, monkeypatch):
    monkeypatch.setattr(hub, "full", True)
    result = push(run.checkpoint, f"{OWNER}/begun", "--licence", "mit")
    assert result.code == 2
    assert "Storage limit reached" in result.err
    assert result.err.endswith("; the repository now exists, and is empty: retry with --update\n")
    monkeypatch.setattr(hub, "full", False)
    assert push(run.checkpoint, f"{OWNER}/begun", "--licence", "mit", "--update").code == 0


@pytest.mark.parametrize(
    ("licence", "lines"),
    [
        ("MIT", "license: mit\n"),
        ("EUPL-1.2", "license: other\nlicense_name: EUPL-1.2\n"),
        ("No", "license: other\nlicense_name: 'No'\n"),
        ("Eigene 😀 Lizenz", "license: other\nlicense_name: Eigene 😀 Lizenz\n"),
        ("caf\udce9", "license: other\nlicense_name: caf\\udce9\n"),
    ],
)
def test_unknown_licence_is_written_as_other_with_a_name(grr_coca, licence, lines):
    assert lines in grr_coca("push", "pictograms", "me/x", "--dry-run", "--licence", licence).out


def test_card_escapes_invalid_utf8_and_bars(grr_coca, run, tmp_path):
    figures = tmp_path / "figures.json"
    measured = {"CIDEr": {"value": 0.5, "low": 0.25, "high": 0.75}}
    figures.write_text(json.dumps({"a|caf\udce9": {"metrics": measured}}))
    options = ("--licence", "mit", "--data", "caf\udce9", "--figures", str(figures), "--dry-run")
    result = grr_coca("push", str(run.folder), "me/x", *options)
    assert result.code == 0, result.err
    assert r"| a\|caf\udce9 | CIDEr | 0.5 (0.25 to 0.75) |" in result.out
    assert "## Data\n\ncaf\\udce9\n" in result.out


@pytest.mark.parametrize(("name", "token"), [("somebody/else", TOKEN), (f"{OWNER}/mine", "")])
def test_without_permission_nothing_is_pushed(hub, push, name, token):
    result = push(PICTOGRAMS, name, token=token)
    assert result.code == 2
    assert result.err.startswith(f"error: {name}: no permission to write to")
    assert result.err.count("\n") == 1
    assert name not in hub.repositories


def test_unreachable_hub_reports_an_error(push):
    result = push(PICTOGRAMS, f"{OWNER}/far", address="http://127.0.0.1:9")
    assert result.code == 2
    assert result.err.startswith(f"error: {OWNER}/far: not uploaded to the Hugging Face hub")
    assert result.err.count("\n") == 1


def test_figures_without_intervals_are_rejected(refused, run, tmp_path):
    (tmp_path / "figures.json").write_text('{"split": {}}')
    options = ["--licence", "mit", "--figures", tmp_path / "figures.json"]
    assert "no intervals of 'split'" in refused("push", run.folder, "me/x", *options)


def test_splits_of_equal_name_each_have_their_figures(grr_coca, run, tmp_path):
    figures = tmp_path / "figures.json"
    splits = ("/home/a/icons/test.tar", "/home/a/emoji/test.tar", "/home/a/emoji/val.tar", "test.tar")
    measured = {
        split: {"metrics": {"CIDEr": {"value": number, "low": number, "high": number}}}
        for number, split in enumerate(splits)
    }
    figures.write_text(json.dumps(measured))
    result = grr_coca("push", str(run.folder), "me/x", "--licence", "mit", "--figures", str(figures), "--dry-run")
    for number, name in enumerate(("icons/test.tar", "emoji/test.tar", "val.tar", "test.tar")):
        assert f"| {name} | CIDEr | {number} |" in result.out
    assert "/home" not in result.out


def test_folder_named_like_a_bundled_model_is_uploaded(grr_coca, run, tmp_path, monkeypatch):
    shutil.copytree(run.checkpoint, tmp_path / "icons")
    monkeypatch.chdir(tmp_path)
    with warnings_of("grr_coca.infer.load") as warnings:
        result = grr_coca("push", "icons", "me/x", "--licence", "mit", "--dry-run")
    assert f"{run.recipe.schedule.steps} steps of training" in result.out
    assert "this folder is used" in warnings[0]


def test_corrupt_model_is_not_pushed(refused, tmp_path):
    shutil.copytree(PICTOGRAMS, tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "its size or checksum differs" in refused("push", tmp_path / "damaged", "me/x", "--dry-run")


def test_card_of_an_imported_model_counts_no_steps(grr_coca, run, tmp_path):
    shutil.copytree(run.checkpoint, tmp_path / "imported")
    (tmp_path / "imported" / "manifest.json").unlink()
    config = tmp_path / "imported" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "step": 0}))
    result = grr_coca("push", tmp_path / "imported", "me/x", "--licence", "mit", "--dry-run")
    assert "images of 16 px." in result.out
    assert "steps of training" not in result.out


def fine_tuned(run, folder, start, start_step=0):
    """A run of `run`'s model that began from `start`, as `finetune` writes it."""
    checkpoint = shutil.copytree(run.checkpoint, folder / "checkpoints" / "step-000000240")
    (checkpoint / MANIFEST).unlink()
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "step": start_step + 240}))
    save_origin(origin_of(start), folder)
    return folder


def test_fine_tuned_card_names_data_and_licence_of_its_start(grr_coca, refused, run, tmp_path):
    icons = json.loads((FOLDER / "icons" / "config.json").read_text())["step"]
    moved = shutil.copytree(FOLDER / "icons", tmp_path / "elsewhere")  # known by its files, wherever they are
    folder = fine_tuned(run, tmp_path / "mine", moved, icons)
    card = grr_coca("push", folder, "me/x", "--licence", "mit", "--data", "my photographs", "--dry-run").out
    assert ", 240 steps of training from `icons`.\n" in card
    assert f"my photographs\n\nTraining started from the weights of `icons`, trained for {icons:,} steps.\n" in card
    assert "238,000 drawings of 150 open sets" in card
    assert "Its licences: weights Apache-2.0; drawings under MIT" in card
    assert "base_model" not in card, "icons is not on the hub"
    assert "started from icons: weights Apache-2.0" in refused("push", folder, "me/x", "--dry-run")


def test_card_of_a_fine_tuned_run_names_its_start_on_the_hub(grr_coca, run, tmp_path):
    cached = tmp_path / "models--some-one--photos--large" / "snapshots" / "abc"
    shutil.copytree(run.checkpoint, cached)
    step = json.loads((cached / "config.json").read_text())["step"]
    folder = fine_tuned(run, tmp_path / "mine", cached, step)
    card = grr_coca("push", folder, "me/x", "--licence", "mit", "--dry-run").out
    assert "\nbase_model: some-one/photos--large\n" in card
    assert ", 240 steps of training from `some-one/photos--large`.\n" in card


def test_card_names_a_local_start_without_its_path(grr_coca, run, tmp_path):
    start = tmp_path / "secret" / "first-run" / "checkpoints" / "step-000000007"
    shutil.copytree(run.checkpoint, start)
    folder = fine_tuned(run, tmp_path / "mine", start)
    shutil.rmtree(tmp_path / "secret")
    card = grr_coca("push", folder, "me/x", "--licence", "mit", "--dry-run").out
    assert ", from `first-run`.\n" in card
    assert "secret" not in card
    assert "steps of training" not in card, "how many were of this run is unknown"
