"""Image encoders of transformers are equal to its own, at their own image size and at another one."""

import json

import numpy as np
import pytest
from PIL import Image

from grr_coca.common.errors import UserError
from grr_coca.infer.encoder import open_encoder

transformers = pytest.importorskip("transformers")
import torch  # noqa: E402

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TOWER = {**SIZES, "image_size": 64, "patch_size": 16}
PREPROCESSOR = {
    "do_center_crop": True,
    "crop_size": {"height": 56, "width": 56},
    "size": {"shortest_edge": 64},
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
FAMILIES = {
    # name: model, tokens before those of the patches, image sizes
    "dinov2": (lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, image_size=56)), 1, (56, 84)),
    "dinov2_with_registers": (
        lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**SIZES, image_size=56, num_register_tokens=4)
        ),
        5,
        (56, 84),
    ),
    "dinov3_vit": (
        lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**TOWER, num_register_tokens=4)), 5, (64, 96)
    ),
    "siglip_vision_model": (
        lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TOWER)), 0, (64, 96)
    ),
    "siglip": (
        lambda: transformers.SiglipModel(
            transformers.SiglipConfig(text_config={**SIZES, "vocab_size": 50}, vision_config=TOWER)
        ),
        0,
        (64, 96),
    ),
    "clip": (
        lambda: transformers.CLIPModel(
            transformers.CLIPConfig(text_config={**SIZES, "vocab_size": 50}, vision_config=TOWER)
        ),
        1,
        (64, 96),
    ),
}  # fmt: skip


def saved(folder, family):
    """A model with random weights in a folder. LayerScale begins at 1e-5, which would make it nearly the identity."""
    make, prefix, sizes = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make()
        for name, parameter in model.named_parameters():
            if "lambda" in name or "gamma" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
            elif name.endswith("bias") or "norm" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return model.eval(), prefix, sizes


def theirs(model, images, prefix):
    tower = getattr(model, "vision_model", model)
    options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in str(tower.forward.__doc__) else {}
    with torch.inference_mode():
        tokens = tower(pixel_values=images, **options).last_hidden_state
        if type(tower).__name__.startswith("CLIP"):
            tokens = tower.post_layernorm(tokens)
    return tokens[:, prefix:].numpy()


@pytest.mark.ci
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in {"dinov2", "clip"} else [pytest.mark.ci]) for name in FAMILIES]
)
def test_tokens_equal_those_of_transformers(tmp_path, family):
    model, prefix, sizes = saved(tmp_path, family)
    for size in sizes:
        pixels = np.random.default_rng(size).integers(0, 256, (2, size, size, 3), np.uint8)
        encoder = open_encoder(f"hf:{tmp_path}@{size}")
        mean, std = (torch.tensor(PREPROCESSOR[f"image_{key}"])[:, None, None] for key in ("mean", "std"))
        images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
        expected = theirs(model, images, prefix)
        found = encoder.encode(pixels)
        np.testing.assert_allclose(found.tokens, expected, atol=1e-5 * np.abs(expected).max())
        assert encoder.info.num_tokens == (size // getattr(model, "vision_model", model).config.patch_size) ** 2
        assert encoder.info.embed_dim == 32


@pytest.mark.parametrize("size", [(300, 170), (40, 90), (64, 64)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resample": 2},
        {"do_center_crop": False, "size": {"height": 48, "width": 48}, "resample": 2},
        {"do_normalize": False},
    ],
)
def test_preprocessing_equals_that_of_transformers(tmp_path, size, changes):
    saved(tmp_path, "dinov2")
    config = {**PREPROCESSOR, **changes}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    preprocess = open_encoder(f"hf:{tmp_path}").info.preprocess
    picture = Image.effect_noise(size, 80).convert("RGB")
    processor = transformers.CLIPImageProcessorPil(**config)
    expected = processor(picture, return_tensors="np")["pixel_values"][0]
    found = (preprocess(picture) / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
    np.testing.assert_allclose(found.transpose(2, 0, 1), expected, atol=1e-5)


def test_random_weights_need_only_a_config(tmp_path):
    transformers.Dinov2Config(**SIZES, image_size=56).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "dinov2"}))
    digests = {open_encoder(f"hf:{tmp_path}=random").info.digest for _ in range(2)}
    assert len(digests) == 1
    with pytest.raises(UserError, match="cannot be loaded"):
        open_encoder(f"hf:{tmp_path}")


def test_licence_equals_that_of_the_card(tmp_path):
    saved(tmp_path, "dinov2")
    assert open_encoder(f"hf:{tmp_path}").info.licence == "unknown"
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A model\n")
    assert open_encoder(f"hf:{tmp_path}").info.licence == "cc-by-nc-4.0"


def test_code_and_pickles_in_a_folder_are_not_run(tmp_path):
    model, *_ = saved(tmp_path, "dinov2")
    mark = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass C: pass\n")
    config = json.loads((tmp_path / "config.json").read_text())
    evil = {**config, "model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.C"}}
    (tmp_path / "config.json").write_text(json.dumps(evil))
    with pytest.raises(UserError, match="cannot be loaded"):
        open_encoder(f"hf:{tmp_path}")
    assert not mark.exists()
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        open_encoder(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"height": 40, "width": 60}, "do_center_crop": False}, "images must be squares, got 40 × 60"),
        ({"crop_size": {"height": 90, "width": 90}}, "crop_size must be from 1 to 64"),
        ({"do_center_crop": False}, "do_center_crop must be true"),
        ({"rescale_factor": 0.5}, "rescale_factor must be 1/255, got 0.5"),
        ({"resample": 9}, "resample must be one of"),
        ({"image_mean": [0.5]}, "not the preprocessing of an image encoder"),
        ({"image_std": [0.5, 0.5, 0.0]}, "std above 0"),
    ],
)
def test_invalid_preprocessing_raises(tmp_path, changes, message):
    saved(tmp_path, "dinov2")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSOR, **changes}))
    with pytest.raises(UserError) as raised:
        open_encoder(f"hf:{tmp_path}")
    assert message in str(raised.value)
    assert "preprocessor_config.json" in str(raised.value)


def test_unknown_names_raise(tmp_path):
    transformers.BertConfig(**SIZES).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(UserError, match="unsupported model_type 'bert'; use one of dinov2"):
        open_encoder(f"hf:{tmp_path}")
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="use hf:FOLDER"):
        open_encoder(f"hf:{tmp_path}={tmp_path / 'w.safetensors'}")
