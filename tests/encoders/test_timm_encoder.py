"""Image encoders of timm are equal to timm's own, at their own image size and at another one."""

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from grr_coca.common.errors import UserError
from grr_coca.infer.encoder import open_encoder

timm = pytest.importorskip("timm")
import torch  # noqa: E402
from timm.data import create_transform, resolve_data_config  # noqa: E402

FAMILIES = {
    # name: tokens before those of the patches, two image sizes
    "vit_tiny_patch16_224": (1, 96, 128),
    "deit_tiny_distilled_patch16_224": (2, 96, 64),
    "vit_small_patch14_reg4_dinov2": (5, 70, 98),
    "vit_small_patch16_dinov3": (5, 64, 96),
    "eva02_tiny_patch14_224": (1, 84, 70),
    "convnext_atto": (None, 64, 96),
    "swin_tiny_patch4_window7_224": (None, 224, 448),
    "mobilenetv3_small_100": (None, 64, 96),
    "efficientnet_lite0": (None, 64, 96),
    "resnet18": (None, 64, 96),
    "vit_base_patch16_siglip_224": (0, 64, 96),
}
"""None: a map of features, which swin has with the channels last."""


def image(size):
    return np.random.default_rng(size).integers(0, 256, (2, size, size, 3), np.uint8)


def with_gammas(model):
    """LayerScale begins at 1e-5, by which every block would be nearly the identity."""
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def theirs(model, pixels, size, prefix, config):
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    with torch.inference_mode():
        found = model.forward_features((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)
    if prefix is not None:
        return found[:, prefix:].numpy()
    channels = model.num_features
    rows = found if found.shape[-1] == channels else found.permute(0, 2, 3, 1)
    return rows.reshape(len(pixels), -1, channels).numpy()


@pytest.mark.ci
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in {"vit_tiny_patch16_224", "resnet18"} else [pytest.mark.ci])
        for name in FAMILIES
    ],
)
def test_tokens_equal_those_of_timm(tmp_path, name):
    prefix, *sizes = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = with_gammas(timm.create_model(name))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    config = resolve_data_config({}, model=model)
    if prefix is not None:
        dynamic = timm.create_model(name, dynamic_img_size=True)
        dynamic.load_state_dict(model.state_dict())
        model = dynamic.eval()
    for size in sizes:
        if name.startswith("swin"):
            weights, model = model.state_dict(), timm.create_model(name, img_size=size).eval()
            model.load_state_dict(weights)
        pixels = image(size)
        encoder = open_encoder(f"timm:{name}@{size}={tmp_path / 'weights.safetensors'}")
        found = encoder.encode(pixels)
        expected = theirs(model, pixels, size, prefix, config)
        np.testing.assert_allclose(found.tokens, expected, atol=1e-5 * np.abs(expected).max())
        assert found.tokens.shape[1:] == (encoder.info.num_tokens, encoder.info.embed_dim)
        assert found.mask.shape == found.tokens.shape[:2]
        assert found.mask.all()
        assert not np.allclose(found.tokens[0], found.tokens[1])


@pytest.mark.parametrize("size", [(300, 170), (40, 90), (96, 96)])
def test_preprocessing_equals_that_of_timm(size):
    encoder = open_encoder("timm:vit_tiny_patch16_224@96=random")
    config = {**resolve_data_config({}, model=timm.create_model("vit_tiny_patch16_224")), "input_size": (3, 96, 96)}
    assert config["crop_pct"] == 0.9
    picture = Image.effect_noise(size, 80).convert("RGB")
    expected = create_transform(**config, is_training=False)(picture)
    pixels = torch.from_numpy(encoder.info.preprocess(picture)).permute(2, 0, 1) / 255
    torch.testing.assert_close((pixels - 0.5) / 0.5, expected, atol=1e-6, rtol=0)


def test_random_weights_repeat_and_keep_the_random_state():
    state = torch.random.get_rng_state()
    first, second = (open_encoder("timm:vit_tiny_patch16_224@64=random") for _ in range(2))
    assert first.info.digest == second.info.digest
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(parameter.requires_grad for parameter in first.module.parameters())


def test_digest_depends_on_weights_and_size(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=64)
    digests = []
    for name in ("one", "same", "other"):
        if name == "other":
            with torch.no_grad():
                model.norm.bias += 1e-3
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
        digests.append(open_encoder(f"timm:vit_tiny_patch16_224@64={tmp_path / name}.safetensors").info.digest)
    assert digests[0] == digests[1] != digests[2]
    assert open_encoder(f"timm:vit_tiny_patch16_224@96={tmp_path / 'one'}.safetensors").info.digest != digests[0]


def test_batch_norm_stays_frozen_in_training():
    encoder = open_encoder("timm:resnet18@64=random")
    before = encoder.encode(image(64)).tokens
    encoder.encode(image(64))
    np.testing.assert_array_equal(encoder.encode(image(64)).tokens, before)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:vit_tiny_patch16_22=random", "timm has no such model; did you mean 'vit_tiny_patch16_224'?"),
        ("timm:vit_tiny_patch16_224=weights.bin", "must be a .safetensors file or 'random', got 'weights.bin'"),
        ("timm:vit_tiny_patch16_224=none.safetensors", "none.safetensors: no such file"),
        ("timm:vit_tiny_patch16_224@0=random", "the image size must be from 1 to 4096, got 0"),
        ("timm:", "the name of the model is missing"),
        ("time:vit", "unknown image encoder"),
        ("vit_tiny_patch16_224", "unknown image encoder"),
    ],
)
def test_unknown_name_raises(name, message):
    with pytest.raises(UserError) as raised:
        open_encoder(name)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_weights_of_another_model_raise(tmp_path):
    weights, path = timm.create_model("resnet18").state_dict(), tmp_path / "weights.safetensors"
    del weights["layer1.0.bn1.running_mean"]
    save_file(weights, path)
    for name, missing in (("vit_tiny_patch16_224", ""), ("resnet18", r" \(layer1.0.bn1.running_mean\)")):
        with pytest.raises(UserError, match=f"the weights belong to another model: Missing keys{missing}"):
            open_encoder(f"timm:{name}={path}")


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x80\x04\x95"])
def test_corrupt_weights_raise(tmp_path, content):
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="cannot be loaded"):
        open_encoder(f"timm:resnet18={tmp_path / 'weights.safetensors'}")


def test_weights_by_name_need_the_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"model\.safetensors of timm/.* cannot be downloaded"):
        open_encoder("timm:vit_tiny_patch16_224")
