"""Files of open_clip: every form gives one and the same checkpoint, and what cannot be read is told in one line."""

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from open_clip_files import write_hub_folder
from support import differing, snapshot, warnings_of, weights

import grr_coca
from grr_coca.common.errors import UserError
from grr_coca.data.tokenizer import Tokenizer, clip_bpe, train_bpe
from grr_coca.infer.load import load
from grr_coca.model.checkpoint import from_pretrained, save_checkpoint
from grr_coca.model.presets import open_clip_coca
from grr_coca_open_clip.checkpoints.read import read_open_clip
from grr_coca_open_clip.checkpoints.settings import Settings, make_model_cfg
from grr_coca_open_clip.checkpoints.write import write_open_clip


@pytest.fixture(scope="module")
def expected(written: Path) -> dict[str, torch.Tensor]:
    return weights(read_open_clip(written))


def saved(state: object, path: Path, **options: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    torch.save(state, path, **options)
    return path


# --- Forms


@pytest.mark.parametrize("form", ["bin", "old bin", "state_dict", "module.", "logit_scale of one", "fp16"])
def test_every_format_gives_the_same_checkpoint(theirs, expected, tmp_path, form):
    tensors, options = dict(theirs.tensors), {}
    if form == "fp16":
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
        expected = {name: tensor.half().float() for name, tensor in expected.items()}
    if form == "old bin":
        options = {"_use_new_zipfile_serialization": False}
    if form == "module.":
        tensors = {f"module.{name}": tensor for name, tensor in tensors.items()}
    if form == "logit_scale of one":
        tensors["logit_scale"] = tensors["logit_scale"].reshape(1)
    state: dict = {"epoch": 3, "state_dict": tensors} if form == "state_dict" else tensors
    path = saved(state, tmp_path / "form" / "open_clip_pytorch_model.bin", **options)
    found = read_open_clip(path if form == "bin" else path.parent)
    assert found.config == theirs.config, "told by the shapes alone"
    assert differing(weights(found), expected) == []


def test_safetensors_are_preferred_to_pickled_files(write):
    folder = write()
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"not read")
    assert read_open_clip(folder).preset == "open_clip_coca"


def test_checkpoint_stores_preprocessing_and_cleaning(theirs, write, tmp_path):
    settings = {**theirs.settings, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": 0.5, "size": 64}}
    save_checkpoint(read_open_clip(write(settings=settings)), tmp_path / "ours")
    again = from_pretrained(tmp_path / "ours")
    assert again.preprocess.mean == (0.1, 0.2, 0.3)
    assert again.preprocess.std == (0.5, 0.5, 0.5)
    assert again.preprocess.order == "resize_then_crop"
    assert again.tokenizer.cleaning == "ftfy"
    assert read_open_clip(write("usual")).preprocess.mean[0] == 0.48145466


def test_images_in_python_are_read_in_memory(write):
    model = grr_coca.load(f"open_clip:{write()}", "cpu")
    assert model.embed_texts(["a cat", "caf\u00c3\u00a9"]).shape == (2, 16)
    with pytest.raises(UserError, match="open_clip:nowhere: convert this checkpoint first: grr-coca import open_clip"):
        load("open_clip:nowhere")


def test_coco_tuned_model_warns_before_embedding(write):
    name = "mscoco_finetuned_CoCa-ViT-B-32-laion2B-s13B-b90k"
    with warnings_of("grr_coca.infer.image_text_model") as messages:
        model = grr_coca.load(f"open_clip:{write(name)}", "cpu")
        assert messages == []
        model.embed_texts("a cat")
        model.embed_texts("a dog")
        grr_coca.load(f"open_clip:{write('CoCa-ViT-B-32-laion2B-s13B-b90k')}", "cpu").embed_texts("a cat")
    (message,) = messages
    assert "0.9 %" in message


@pytest.mark.parametrize(
    ("folder", "is_tuned"),
    [
        ("mscoco/CoCa-ViT-B-32", False),
        ("mscoco_finetuned_models/CoCa-ViT-B-32", False),
        ("models/MSCOCO_finetuned_CoCa-ViT-B-32", True),
        ("models--laion--mscoco_finetuned_CoCa-ViT-B-32/snapshots/0a1b", True),
        ("models--laion--CoCa-ViT-B-32/snapshots/0a1b", False),
    ],
)
def test_only_the_models_name_marks_it_as_tuned(theirs, tmp_path, folder, is_tuned):
    (tmp_path / folder).parent.mkdir(parents=True)
    assert bool(read_open_clip(write_hub_folder(theirs, tmp_path / folder)).caution) is is_tuned


@pytest.mark.parametrize(("width", "hidden"), [(1664, 8192), (1408, 1480), (1408, 6144), (768, 3072)])
def test_ratio_gives_the_width_of_open_clip(width, hidden):
    config = open_clip_coca("b32")
    wide = replace(config.image_encoder.transformer, embed_dim=width, hidden_dim=hidden, num_heads=16)
    config = replace(config, image_encoder=replace(config.image_encoder, transformer=wide))
    assert int(width * make_model_cfg(config)["vision_cfg"]["mlp_ratio"]) == hidden
    rounded = math.ceil(hidden / width * 1e4) / 1e4
    Settings("here", {"vision_cfg": {"mlp_ratio": rounded}}, {}).check(config)
    for other in (rounded + 0.01, "4", math.nan, math.inf, 1e308):
        with pytest.raises(UserError, match=re.escape(f"mlp_ratio is {other}")):
            Settings("here", {"vision_cfg": {"mlp_ratio": other}}, {}).check(config)


def test_unspecified_heads_use_the_open_clip_default(theirs, write):
    model = copy.deepcopy(theirs.settings["model_cfg"])
    del model["text_cfg"]["heads"], model["multimodal_cfg"]["heads"]
    found = read_open_clip(write(settings={"model_cfg": model})).config
    assert found.text_decoder.transformer.num_heads == found.multimodal_decoder.transformer.num_heads == 8
    del model["vision_cfg"]["width"]
    with pytest.raises(UserError, match="vision_cfg: width is 768, but the tensors have 24"):
        read_open_clip(write("narrow", settings={"model_cfg": model}))


# --- Back to open_clip


def test_sign_of_zero_round_trips(theirs, write, tmp_path):
    from safetensors.torch import load_file

    name = "visual.positional_embedding"
    positions = theirs.tensors[name].clone()
    positions[1:3] = -0.0
    write_open_clip(read_open_clip(write(tensors={**theirs.tensors, name: positions})), tmp_path / "back")
    assert torch.signbit(load_file(tmp_path / "back" / "open_clip_model.safetensors")[name][1:3]).all()


@pytest.mark.parametrize("name", ["grr_coca", "grr_coca+stem"])
def test_rejects_export_of_a_model_unknown_to_open_clip(write, tiny_config, tmp_path, name):
    ours = replace(read_open_clip(write()), config=tiny_config(name), preset="grr_coca")
    with pytest.raises(UserError, match=r"open_clip does not support this 'grr_coca': .* must be .*, got rms"):
        write_open_clip(ours, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("vocabulary", ["a trained one", "CLIP's with two ids exchanged"])
def test_rejects_export_with_a_vocabulary_other_than_clips(write, tmp_path, vocabulary):
    other = train_bpe(["a cat"] * 3, 260)
    if vocabulary != "a trained one":
        text = json.loads(clip_bpe().to_json())
        words = text["model"]["vocab"]
        words["cat</w>"], words["dog</w>"] = words["dog</w>"], words["cat</w>"]
        other = Tokenizer.from_json(json.dumps(text))
    with pytest.raises(UserError, match="open_clip uses CLIP's vocabulary"):
        write_open_clip(replace(read_open_clip(write()), tokenizer=other), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_warns_of_another_order_of_preprocessing(write, tmp_path):
    imported = read_open_clip(write())
    with warnings_of("grr_coca_open_clip.checkpoints.write") as messages:
        write_open_clip(imported, tmp_path / "back")
        assert messages == []
        cropped_first = replace(imported.preprocess, order="crop_then_resize")
        write_open_clip(replace(imported, preprocess=cropped_first), tmp_path / "cropped")
    (message,) = messages
    assert "open_clip always resizes images before cropping" in message


# --- What cannot be read


def without(tensors: dict, name: str) -> dict:
    return {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: without(t, "text.cls_emb"), "tensor 'text.cls_emb' is missing"),
        (
            lambda t: without(t, "visual.attn_pool.query"),
            "tensor 'visual.attn_pool.query' is missing; pass an open_clip CoCa with a pooler",
        ),
        (lambda t: {**t, "visual.gamma": torch.ones(3)}, "unsupported tensor 'visual.gamma'"),
        (lambda t: {**t, "logit_bias": torch.ones(())}, "unsupported tensor 'logit_bias'"),
        (lambda t: {**t, "visual.ln_post.weight": torch.ones(5)}, r"'visual.ln_post.weight' has the shape \(5,\), but"),
        (
            lambda t: {**t, "visual.trunk.stem.weight": torch.ones(5)},
            "'visual.trunk.stem.weight': unsupported: an image tower of t",
        ),
        (lambda t: {**t, "text.transformer.embeddings.x": torch.ones(5)}, "a text tower of Hugging Face"),
        (lambda t: {**t, "visual.attn_pool_contrastive.query": torch.ones(5)}, "two poolers"),
        (
            lambda t: {**t, "visual.positional_embedding": torch.ones(4, 24)},
            "must be 1 more than a square number, got 4",
        ),
        (
            lambda t: {**t, "visual.attn_pool.query": torch.ones(5, 24)},
            "width 24, but must have the width of the text, 16",
        ),
        (lambda t: {**t, "visual.conv1.weight": torch.ones(200, 3, 4, 4)}, "width 200, which is not divisible by 3 he"),
        (lambda t: {**t, "text.token_embedding.weight": torch.ones(9, 16)}, "'text_decoder.text_projection' has the s"),
        (lambda t: {**t, "visual.conv1.weight": torch.ones(9, 16)}, "must have 4 dimensions, got the shape .9, 16."),
    ],
)
def test_unsupported_tensors_are_named(theirs, write, change, message):
    folder = write(tensors=change(theirs.tensors))
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(UserError, match=message):
        read_open_clip(folder)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("model_cfg",), 3, "'model_cfg' is missing"),
        (("model_cfg", "quick_gelu"), True, "model_cfg: quick_gelu must be False, got True"),
        (("model_cfg", "vision_cfg", "attentional_pool"), "cascade", "attentional_pool must be .*, got 'cascade'"),
        (("model_cfg", "vision_cfg", "attentional_pool"), False, "attentional_pool is not set"),
        (("model_cfg", "vision_cfg", "timm_model_name"), "vit_base", "timm_model_name must be .*, got 'vit_base'"),
        (("model_cfg", "vision_cfg", "pool_type"), "avg", "pool_type must be 'tok', got 'avg'"),
        (("model_cfg", "vision_cfg", "sparkle"), 1, "vision_cfg: unknown key sparkle"),
        (("model_cfg", "text_cfg", "hf_model_name"), "roberta-base", "hf_model_name must be .*, got 'roberta-base'"),
        (("model_cfg", "text_cfg", "correct_cls_mask"), True, "correct_cls_mask must be False, got True"),
        (("model_cfg", "text_cfg", "width"), 128, "text_cfg: width is 128, but the tensors have 16"),
        (("model_cfg", "vision_cfg", "layers"), 12, "vision_cfg: layers is 12, but the tensors have 1"),
        (("model_cfg", "multimodal_cfg", "context_length"), 77, "context_length is 77, but the tensors have 20"),
        (("model_cfg", "embed_dim"), 512, "model_cfg: embed_dim is 512, but the tensors have 16"),
        (("model_cfg", "vision_cfg", "head_width"), 0, "vision_cfg: head_width must be an integer above 0, got 0"),
        (("model_cfg", "text_cfg", "heads"), "8", "text_cfg: heads must be an integer above 0, got '8'"),
        (("model_cfg", "multimodal_cfg"), [], r"multimodal_cfg must be a mapping"),
        *(
            (("preprocess_cfg",), value, message)
            for value, message in [
                ({"interpolation": "bilinear"}, "preprocess_cfg: interpolation must be 'bicubic', got 'bilinear'"),
                ({"resize_mode": "squash"}, "resize_mode must be 'shortest', got 'squash'"),
                ({"mean": [0.5, 0.5]}, r"preprocess_cfg: mean must be one number or three, got \[0.5, 0.5\]"),
                ({"std": "half"}, "preprocess_cfg: std must be one number or three, got 'half'"),
                ({"size": 224}, "preprocess_cfg: size is 224, but the model takes 64 pixels"),
                ({"std": [0.5, 0, 0.5]}, r"preprocess_cfg: std must be above 0, got \[0.5, 0, 0.5\]"),
                ({"mean": [0.5, math.nan, 0.5]}, "mean must be finite, got"),
                ({"std": math.inf}, "std must be finite, got inf"),
                ({"mean": 10**400}, "must be one number or three"),
                ([1, 2], r"preprocess_cfg must be a mapping"),
                ("x", "preprocess_cfg must be a mapping"),
            ]
        ),
    ],
)
def test_unsupported_settings_are_named(theirs, write, keys, value, message):
    settings = section = copy.deepcopy(theirs.settings)
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    with pytest.raises(UserError, match=message):
        read_open_clip(write(settings=settings))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("coca_roberta-ViT-B-32", "unsupported: its text tower is one of Hugging Face"),
        ("coca_base", "unsupported: it has no pooler"),
        ("coca_ViT-B-23", "did you mean 'coca_ViT-B-32'"),
        ("coca_ViT-L-14", "--model coca_ViT-L-14: .* but the tensors have"),
    ],
)
def test_rejects_models_of_another_name(write, model, message):
    with pytest.raises(UserError, match=message):
        read_open_clip(write(), model)


def test_clip_is_not_a_coca(theirs, write):
    model = {key: value for key, value in theirs.settings["model_cfg"].items() if key != "multimodal_cfg"}
    with pytest.raises(UserError, match="'multimodal_cfg' is missing, so this is a CLIP"):
        read_open_clip(write(settings={"model_cfg": model}))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_rejects_a_pickled_call_without_running_it(theirs, tmp_path):
    went_off = tmp_path / "went-off"
    path = saved({**theirs.tensors, "text.cls_emb": Bomb(went_off)}, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match="rejected, because it contains objects other than tensors") as error:
        read_open_clip(path)
    assert "\n" not in str(error.value)
    assert not went_off.exists()


def test_no_advice_to_run_files_without_weights(tmp_path):
    path = tmp_path / "open_clip_pytorch_model.bin"
    path.write_bytes(b"not read")
    with pytest.raises(UserError, match="or no weights") as error:
        read_open_clip(path)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("content", [b"\x80\x02.", b"\x80\x02M", b"\x80\x02}a."])
def test_any_reader_failure_is_reported_as_corruption(tmp_path, content):
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(UserError, match="corrupt, or its download was truncated"):
        read_open_clip(tmp_path / "model.bin")


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("share", [0.0, 0.99])
def test_truncated_download_raises(theirs, write, tmp_path, name, share):
    whole = write() / name if name.endswith("safetensors") else saved(theirs.tensors, tmp_path / "whole.bin")
    content = whole.read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="corrupt, or its download was truncated") as error:
        read_open_clip(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([torch.ones(3)], "expected named tensors, got list"),
        ({}, "contains no tensors"),
        ({"state_dict": {"a": 3}}, "'a' is not a tensor"),
        ({"a": torch.ones(1), "module.a": torch.ones(1)}, "with and without the prefix 'module.'"),
    ],
)
def test_file_with_other_content_raises(tmp_path, state, message):
    with pytest.raises(UserError, match=message):
        read_open_clip(saved(state, tmp_path / "model.bin"))


def test_single_weights_file_may_have_any_name(write, expected):
    folder = write()
    (weights,) = folder.glob("*.safetensors")
    weights.rename(folder / "mine.safetensors")
    assert differing(read_open_clip(folder).model.state_dict(), expected) == []


def test_unwritable_path_raises(write, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/model: cannot be written \(Not a directory\)"):
        write_open_clip(read_open_clip(write()), tmp_path / "file" / "model")


def test_path_without_weights_raises(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"no file of weights; expected open_clip_model\.safetensors"):
        read_open_clip(tmp_path)
    with pytest.raises(UserError, match="not a weights file; pass one of"):
        read_open_clip(tmp_path / "notes.txt")
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="2 files of weights, none of them with a usual name"):
        read_open_clip(tmp_path)


def test_rejects_another_vocabulary(theirs, write):
    names = ("text.token_embedding.weight", "text_decoder.text_projection")
    embedding, head = (theirs.tensors[name] for name in names)
    changed = dict(zip(names, (embedding[:99].clone(), head[:, :99].clone()), strict=True))
    folder = write(tensors={**theirs.tensors, **changed})
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(UserError, match="has 99 rows, but CLIP's vocabulary has 49408"):
        read_open_clip(folder)


def test_no_file_is_written_next_to_input_files(write):
    folder = write()
    before = snapshot(folder)
    read_open_clip(folder)
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"visual.transformer.resblocks.999.x": torch.ones(1)}), "blocks up to 999, but some"),
        (lambda t: t.update({"visual.positional_embedding": torch.ones(0, 64)}), "which is empty"),
        (
            lambda t: t.update({"logit_scale": torch.ones(()).reshape(1).to_sparse()}),
            "'logit_scale' is sparse or expanded",
        ),
        (
            lambda t: t.update({"visual.proj": torch.ones(1, 1).expand(10**4, 10**4)}),
            "'visual.proj' is sparse or expanded",
        ),
    ],
)
def test_rejects_tensors_larger_than_their_storage(theirs, tmp_path, change, message):
    tensors = dict(theirs.tensors)
    change(tensors)
    torch.save(tensors, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match=message):
        read_open_clip(tmp_path / "open_clip_pytorch_model.bin")
