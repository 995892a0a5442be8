"""Checkpoints: all of it comes back bitwise, nothing half-written is left, nothing untrusted is run."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_configs import model_config
from safetensors.torch import load_file, save_file
from support import differing, disk_of, snapshot, weights

import grr_coca
from grr_coca.common.errors import UserError
from grr_coca.common.files import MANIFEST, atomic_folder
from grr_coca.data.preprocess import Framing, Preprocess
from grr_coca.data.tokenizer import clip_bpe
from grr_coca.model.build import build_without_weights
from grr_coca.model.checkpoint import from_pretrained, load_tensors, save_checkpoint
from grr_coca.model.checkpoint_files import FILES, fingerprint, read_config, saved_config
from grr_coca.model.checkpoint_files import FOLDER as WEIGHTS
from grr_coca.model.presets import get_preset


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    """The checkpoint of a short run, saved again without the files of the run."""
    folder = tmp_path_factory.mktemp("saved") / "saved"
    save_checkpoint(from_pretrained(run.checkpoint), folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it to damage, without the manifest: as someone else may have put it together."""
    return shutil.copytree(saved, tmp_path / "checkpoint", ignore=shutil.ignore_patterns(MANIFEST))


# --- The round trip


def test_saved_state_is_restored_exactly(saved, tmp_path):
    first = from_pretrained(saved)
    save_checkpoint(first, tmp_path / "again")
    second = from_pretrained(tmp_path / "again")
    assert differing(weights(first), weights(second)) == []
    assert (second.config, second.preset, second.preprocess) == (first.config, first.preset, first.preprocess)
    assert second.tokenizer.to_json() == first.tokenizer.to_json()
    assert second.step == first.step == 3


def test_framing_key_exists_only_with_framing(saved, tmp_path):
    """Checkpoints without it keep their hash, and those from before it have none."""
    first = from_pretrained(saved)
    assert "framing" not in json.loads((saved / "preprocess.json").read_text())
    framed = replace(first, preprocess=replace(first.preprocess, framing=Framing(margin=0.1)))
    save_checkpoint(framed, tmp_path / "framed")
    assert from_pretrained(tmp_path / "framed").preprocess == framed.preprocess
    assert fingerprint(tmp_path / "framed") != fingerprint(saved)
    assert (tmp_path / "framed" / "config.json").read_bytes() == (saved / "config.json").read_bytes()


def test_texts_become_rows_on_the_device_of_the_model(saved):
    loaded = from_pretrained(saved)
    texts, context_length = ["a heart", "violin " * 50], loaded.config.text_decoder.context_length
    token_ids, lengths = loaded.tokenize(texts)
    rows = [row[:length].tolist() for row, length in zip(token_ids, lengths, strict=True)]
    assert rows == [loaded.tokenizer.encode_row(text, context_length) for text in texts]
    elsewhere = from_pretrained(saved, "meta")
    token_ids, lengths = elsewhere.tokenize(texts)
    assert (token_ids.device.type, lengths.device.type) == (elsewhere.model.device.type, "cpu") == ("meta", "cpu")


def test_all_weights_are_loaded_without_being_initialized_first(saved, filled_with_nan):
    loaded = from_pretrained(saved)
    built = build_without_weights(loaded.config)
    assert any(parameter.isnan().all() for parameter in built.parameters()), "the memory was filled"
    assert differing(weights(loaded), load_file(saved / "model.safetensors")) == []
    assert not any(parameter.isnan().any() for parameter in loaded.model.parameters())
    for (name, ours), (_, theirs) in zip(loaded.model.named_buffers(), built.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name
        assert not ours.isnan().any(), name


def test_saving_is_reproducible_with_default_permissions(saved, tmp_path):
    save_checkpoint(from_pretrained(saved), tmp_path / "again")
    assert snapshot(tmp_path / "again") == snapshot(saved)
    assert sorted(path.name for path in saved.iterdir()) == sorted([*FILES, MANIFEST])
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1


def test_loading_does_not_touch_the_checkpoint(folder):
    before = snapshot(folder)
    from_pretrained(folder)
    assert snapshot(folder) == before


# --- Which folder


def test_run_folder_stands_for_its_newest_checkpoint(saved, tmp_path):
    checkpoint = from_pretrained(saved)
    for step in (90, 100, 1000):
        save_checkpoint(replace(checkpoint, step=step), tmp_path / "checkpoints" / f"step-{step:09d}")
    (tmp_path / "checkpoints" / ".step-000002000.partial").mkdir()
    assert from_pretrained(tmp_path).step == 1000


def test_missing_tensors_are_not_called_corrupt(tmp_path):
    with pytest.raises(UserError, match=r"optimizer\.safetensors: no such file"):
        load_tensors(tmp_path / "optimizer.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        load_tensors(tmp_path)


def test_missing_folder_error_describes_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder; pass .* a folder that contains model\.safe"):
        from_pretrained(tmp_path / "nowhere")


def test_folder_of_something_else_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"not a checkpoint \(it has no model\.safetensors, config\.json"):
        from_pretrained(tmp_path)


# --- Damage


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [None, 0.0, 0.5, b"\xff\xfe\x00", b"[1, 2]", b"null"], ids=str)
def test_missing_truncated_and_wrong_files_are_named(folder, name, content):
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else whole[: int(len(whole) * content)])
    expected_message = f"not a checkpoint (it has no {name})" if content is None else str(folder / name)
    with pytest.raises(UserError, match=re.escape(expected_message)):
        from_pretrained(folder)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_one_flipped_bit_is_found_and_its_file_named(saved, tmp_path, name):
    folder = shutil.copytree(saved, tmp_path / "checkpoint")
    data = (folder / name).read_bytes()
    for position in (len(data) // 3, len(data) - 2):
        flipped = bytearray(data)
        flipped[position] ^= 1
        (folder / name).write_bytes(flipped)
        with pytest.raises(UserError, match=re.escape(str(folder))):
            from_pretrained(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda t: t.update({"image_proj.weight": torch.zeros(3, 5)}),
            r"'image_proj\.weight' \(expected \(128, 64\), found \(3, 5\)",
        ),
        (lambda t: t.pop("image_proj.weight"), r"'image_proj\.weight' \(expected \(128, 64\), found none"),
        (lambda t: t.update({"extra.weight": torch.zeros(2)}), r"'extra\.weight' \(expected none"),
    ],
    ids=["shape", "missing", "too many"],
)
def test_wrong_tensor_is_named_with_both_shapes(folder, edit, message):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"1 wrong tensor, .*{message}"):
        from_pretrained(folder)


def test_config_is_saved_as_in_earlier_checkpoints():
    header = json.loads((WEIGHTS / "icons" / "config.json").read_text())
    config = read_config(header["model"], "model")
    assert json.dumps(saved_config(config)) == json.dumps(header["model"])


def test_stem_is_saved_only_if_it_is_not_the_default():
    for name, stem in (("grr_coca", None), ("grr_coca+stem", "convolutional")):
        config = model_config(name, "tiny")
        saved = json.loads(json.dumps(saved_config(config)))
        assert saved["image_encoder"].get("stem") == stem
        assert read_config(saved, "model") == config


OPEN_CLIP = {
    "image_encoder.transformer.attention_bias": "all",
    "image_encoder.class_token": "kept",
    "image_encoder.pre_norm": "before_blocks",
    "text_decoder.transformer.attention_bias": "all",
    "text_decoder.cls": "last_position",
    "multimodal_decoder.transformer.attention_bias": "all",
    "multimodal_decoder.layer": "two_feed_forwards",
    "multimodal_decoder.image_tokens": "normalized",
    "poolers.queries": "normalized",
    "poolers.attention_bias": "all",
}
"""Keys of `config.json` that checkpoints of open_clip's CoCa always had."""


def section(config, key):
    *path, last = key.split(".")
    for name in path:
        config = config[name]
    return config, last


def test_open_clip_config_keeps_its_earlier_keys():
    config = get_preset("open_clip_coca", "tiny")
    saved = saved_config(config)
    for key, value in OPEN_CLIP.items():
        within, last = section(saved, key)
        assert within[last] == value
    assert "architecture" not in saved
    assert read_config(saved, "model") == config


def test_config_without_these_keys_is_a_coca_config():
    config = get_preset("grr_coca", "tiny")
    saved = saved_config(config)
    for key in OPEN_CLIP:
        within, last = section(saved, key)
        del within[last]
    assert read_config(saved, "model") == config


@pytest.mark.parametrize(
    ("preset", "key", "value", "message"),
    [
        (
            "grr_coca",
            "image_encoder.class_token",
            "keep",
            "model: image_encoder.class_token: must be 'kept' or 'none', got 'keep'",
        ),
        (
            "grr_coca",
            "text_decoder.cls",
            "last_position",
            "but text_decoder.cls does not; use the values of one architecture",
        ),
        ("open_clip_coca", "poolers.queries", "free", "model: poolers.queries has the value of the architecture CoCa"),
        ("grr_coca", "architecture", "coca", "model: unknown key 'architecture'"),
    ],
)
def test_rejects_a_mix_of_coca_and_open_clip_parts(preset, key, value, message):
    saved = saved_config(get_preset(preset, "tiny"))
    within, last = section(saved, key)
    within[last] = value
    with pytest.raises(UserError, match=message):
        read_config(saved, "model")


def test_suggestions_are_valid_config_keys():
    saved = saved_config(get_preset("grr_coca", "tiny"))
    with pytest.raises(UserError, match=r"unknown key 'architectur'; valid names: contrastive, embed_dim, feature_e"):
        read_config({**saved, "architectur": "coca"}, "model")


# --- A disk that is full


def assert_nothing_was_lost(target: Path, before: dict[str, bytes]) -> None:
    assert snapshot(target) == before
    assert from_pretrained(target).step == 3
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_full_disk_leaves_the_earlier_checkpoint(saved, tmp_path):
    checkpoint = replace(from_pretrained(saved), step=4)
    size = sum(len(content) for content in snapshot(saved).values())
    with disk_of(int(1.5 * size), tmp_path / "disk") as disk:
        target = shutil.copytree(saved, disk / "step-000000002")
        before = snapshot(target)
        with pytest.raises(UserError, match=f"^{target}: the checkpoint cannot be written"):
            save_checkpoint(checkpoint, target)
        assert_nothing_was_lost(target, before)


def test_folder_that_cannot_be_created_is_named(saved, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file/step-1: the checkpoint cannot be written"):
        save_checkpoint(from_pretrained(saved), tmp_path / "file" / "step-1")


def test_partial_folder_of_a_run_that_was_killed_is_replaced(saved, tmp_path):
    partial = tmp_path / ".step-000000002.partial"
    partial.mkdir()
    (partial / "rubbish").write_text("half")
    save_checkpoint(from_pretrained(saved), tmp_path / "step-000000002")
    assert snapshot(tmp_path / "step-000000002") == snapshot(saved)
    assert not partial.exists()


# --- What is there already


def test_checkpoint_takes_the_place_of_an_earlier_one(saved, tmp_path):
    target = shutil.copytree(saved, tmp_path / "checkpoint")
    save_checkpoint(replace(from_pretrained(saved), step=4), target)
    assert from_pretrained(target).step == 4
    (tmp_path / "empty").mkdir()
    save_checkpoint(from_pretrained(saved), tmp_path / "empty")
    assert snapshot(tmp_path / "empty") == snapshot(saved)


def refuses_to_replace(checkpoint, target, message):
    before = snapshot(target)
    with pytest.raises(UserError, match=f"^{target}: {message}"):
        save_checkpoint(checkpoint, target)
    assert snapshot(target) == before
    assert [path.name for path in target.parent.glob(".*")] == []


@pytest.mark.parametrize("name", ["thesis.tex", "photos/cat.jpg", ".git/config"])
def test_folder_with_other_files_is_not_replaced(saved, tmp_path, name):
    checkpoint = from_pretrained(saved)
    target = tmp_path / "work"
    (target / name).parent.mkdir(parents=True)
    (target / name).write_text("precious")
    refuses_to_replace(checkpoint, target, rf"contains {name}, which is not part of a checkpoint .* pass a new folder")
    shutil.copytree(saved, target, dirs_exist_ok=True)
    refuses_to_replace(checkpoint, target, rf"contains {name}, which is not part of a checkpoint")


def test_another_folder_with_a_manifest_is_not_replaced(saved, tmp_path):
    with atomic_folder(tmp_path / "corpus") as partial:
        (partial / "train-00000.tar").write_bytes(b"pairs")
    refuses_to_replace(from_pretrained(saved), tmp_path / "corpus", "contains manifest.json, which is not part of")


def test_file_is_not_replaced(saved, tmp_path):
    (tmp_path / "notes").write_text("precious")
    with pytest.raises(UserError, match=f"^{tmp_path / 'notes'}: expected a checkpoint folder, found a file"):
        save_checkpoint(from_pretrained(saved), tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "precious"


# --- Trust


FORBIDDEN = re.compile(
    r"\b(torch\.load|pickle|dill|joblib|yaml\.load\(|unsafe_load|np\.load(?!.*allow_pickle=False)|exec\()"
)
SRC = Path(grr_coca.__file__).parents[1]
READS_OTHERS = SRC / "grr_coca_open_clip" / "checkpoints" / "read.py"
"""open_clip's older checkpoints are pickled."""
PARENT, HELPER = SRC / "grr_coca" / "data" / "isolated.py", SRC / "grr_coca" / "data" / "isolated_program.py"
"""Calls of a helper program are pickled by its parent. Answers of helpers, which read hostile files, are not."""


def test_nothing_in_the_package_unpickles_files():
    packages = [path for path in SRC.iterdir() if path.name.startswith("grr_coca")]
    sources = [path for package in packages for path in package.rglob("*.py")]
    sources = [path for path in sources if path not in (READS_OTHERS, PARENT, HELPER)]
    assert len(packages) > 1
    found = [(path.name, match.group()) for path in sources for match in FORBIDDEN.finditer(path.read_text())]
    assert found == []


def test_only_calls_of_the_parent_are_unpickled():
    assert not re.search(r"pickle\.loads?\b|Unpickler", PARENT.read_text())
    assert re.findall(r"pickle\.loads?\(.*|Unpickler", HELPER.read_text()) == [
        "pickle.loads(requests.read(size_of_call))  # sent by the parent"
    ]


def test_unpickling_creates_only_tensors():
    calls = re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", READS_OTHERS.read_text())
    assert len(calls) == READS_OTHERS.read_text().count("torch.load") == 1
    assert "weights_only=True" in calls[0]
    assert not re.search(r"pickle\.loads?\b|Unpickler", READS_OTHERS.read_text())


@pytest.mark.ci  # importing the compiler takes ten seconds
def test_compiled_model_is_saved_like_an_uncompiled_one(saved, tmp_path):
    checkpoint = from_pretrained(saved)
    compiled = torch.compile(checkpoint.model, backend="eager")
    object.__setattr__(checkpoint, "model", compiled)  # tests check types, and users need not
    save_checkpoint(checkpoint, str(tmp_path / "again"))
    assert snapshot(tmp_path / "again") == snapshot(saved)


def test_model_of_another_grid_is_not_saved(saved, tmp_path):
    """With RoPE, no weight has the size of the grid: loaded with this config, every patch would get a wrong angle."""
    checkpoint = from_pretrained(saved)
    image = checkpoint.config.image_encoder
    assert image.transformer.position == "rope_2d"
    other = replace(checkpoint.config, image_encoder=replace(image, image_size=2 * image.image_size))
    preprocess = replace(checkpoint.preprocess, image_size=2 * image.image_size)
    with pytest.raises(UserError, match=r"rotary\.cos_sin is \(\d+, \d+, 2\), but its config .*nothing was written"):
        save_checkpoint(replace(checkpoint, config=other, preprocess=preprocess), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_weights_that_could_not_be_loaded_again_are_not_saved(saved, tmp_path):
    checkpoint = from_pretrained(saved)
    checkpoint.model.text_proj = torch.nn.Linear(3, 5, bias=False)
    with pytest.raises(UserError, match=r"model's text_proj.weight is \(5, 3\), but its config expects \(128, 64\)"):
        save_checkpoint(checkpoint, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_does_not_save_a_mismatched_tokenizer_or_size(saved, tmp_path):
    checkpoint = from_pretrained(saved)
    strange = {
        r"preprocess\.json: image_size is 32, but": replace(checkpoint, preprocess=Preprocess(32)),
        r"tokenizer\.json: contains token id 49,407, but": replace(checkpoint, tokenizer=clip_bpe()),
    }
    for message, other in strange.items():
        with pytest.raises(UserError, match=message):
            save_checkpoint(other, tmp_path / "again")
        assert not (tmp_path / "again").exists()


def test_padding_and_cutting_of_a_tokenizer_file_do_not_count(folder):
    path = folder / "tokenizer.json"
    before = from_pretrained(folder).tokenizer.encode("a red heart")
    content = json.loads(path.read_text())
    content["padding"] = {
        "strategy": {"Fixed": 32}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 3, "pad_type_id": 0,
        "pad_token": "x",
    }  # fmt: skip
    content["truncation"] = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(content))
    assert from_pretrained(folder).tokenizer.encode("a red heart") == before


def test_token_id_out_of_vocabulary_raises(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = 9319
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"tokenizer\.json: contains token id 9,319, but the model's largest id is"):
        from_pretrained(folder)


def test_model_too_large_for_memory_reports_one_line(folder, monkeypatch):
    def refuse(config):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes\nframe #0: 0x1")

    monkeypatch.setattr("grr_coca.model.checkpoint.build_without_weights", refuse)
    with pytest.raises(UserError, match=r"does not fit into memory \(DefaultCPUAllocator.* 4 bytes\); use a"):
        from_pretrained(folder)


def test_fingerprint_names_a_missing_file(folder):
    for name in ("manifest.json", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot be read \(No such file"):
        fingerprint(folder)


@pytest.mark.parametrize(
    ("file", "place", "value", "message"),
    [
        ("config", "modle", 4, "'modle'"),
        ("config", "model.embed_dims", 4, "'embed_dims'"),
        ("config", "model.image_encoder", 4, "image_encoder: expected a mapping of keys to values, found 4"),
        ("config", "model.image_encoder.mlp_ratio", 4, "'mlp_ratio'"),
        ("config", "model.embed_dim", 10**400, "embed_dim must be at most 16,777,216"),
        ("config", "model.image_encoder.transformer.embed_dim", 10**30, "embed_dim must be at most 16,777,216"),
        ("config", "model.image_encoder.transformer.num_layers", 10**5, "num_layers must be at most 1,000"),
        ("config", "model.text_decoder.transformer.num_layers", 999, "which has at least .* parameters; the file has"),
        ("config", "model.image_encoder.image_size", 10**6, "makes .* patches; the maximum is 262,144"),
        ("config", "model.text_decoder.context_length", 10**30, "context_length must be at most 16,777,216"),
        ("config", "model.text_decoder.vocab_size", 10**15, "vocab_size must be at most 16,777,216"),
        ("preprocess", "image_size", 0, "image_size is 0, but the model uses images of 16 pixels"),
        ("preprocess", "std", [0.5, 0, 0.5], "mean and std must be finite"),
        ("preprocess", "mean", [0.5, "nan", 0.5], "mean and std must be finite"),
    ],
)
def test_invalid_config_value_raises_before_building(folder, monkeypatch, file, place, value, message):
    content = json.loads((folder / f"{file}.json").read_text())
    within, last = section(content, place)
    within[last] = value
    (folder / f"{file}.json").write_text(json.dumps(content))
    if file == "config":
        monkeypatch.setattr("grr_coca.model.checkpoint.build_without_weights", lambda _: pytest.fail("built"))
    with pytest.raises(UserError, match=rf"{file}\.json.*{message}"):
        from_pretrained(folder)
