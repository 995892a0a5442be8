"""Our model with open_clip's weights is the same function as open_clip's: what it gives was recorded there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip_cases import (
    CASES,
    GRADIENTS_OF,
    SHAPES_OF_IMAGES,
    TEXTS,
    coefficients,
    draw_captions,
    draw_images,
    draw_weights,
    noise_image,
)
from safetensors.torch import load_file
from support import log_probs_token_by_token
from torch import Tensor

from grr_coca.data.batch import pad_rows, to_input
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.tokenizer import CLS_SLOT, clip_bpe
from grr_coca.infer.fast.layers import fast_copy
from grr_coca.model.build import build
from grr_coca.model.coca import CoCa, CoCaOutput
from grr_coca.model.config import CoCaConfig
from grr_coca_open_clip.checkpoints.architecture import Heads, infer_config
from grr_coca_open_clip.checkpoints.names import links, to_ours, to_theirs
from grr_coca_open_clip.checkpoints.settings import MEAN, STD

RECORDED = Path(__file__).parent / "recorded"
NAMES = json.loads((RECORDED / "names.json").read_text())


def weights_of(name: str) -> dict[str, Tensor]:
    return draw_weights({key: tuple(shape) for key, shape in NAMES["tensors"][name].items()})


def config_of(name: str) -> CoCaConfig:
    case = CASES[name]
    heads = Heads(
        image=case["vision_cfg"]["width"] // case["vision_cfg"]["head_width"],
        text=case["text_cfg"]["heads"],
        multimodal=case["multimodal_cfg"]["heads"],
        pooler=case["vision_cfg"]["attn_pooler_heads"],
    )
    return infer_config(weights_of(name), heads, name)


def imported(name: str) -> CoCa:
    config = config_of(name)
    model = build(config).double().eval()
    model.load_state_dict(to_ours(weights_of(name), config))
    return model


def inputs_of(name: str) -> tuple[Tensor, Tensor, Tensor]:
    return draw_images(CASES[name]), *pad_rows([[*caption, CLS_SLOT] for caption in draw_captions(CASES[name])])


def named(model: CoCa, output: CoCaOutput) -> dict[str, Tensor]:
    return {
        "image_embedding": output.image_embedding,
        "text_embedding": output.text_embedding,
        "logits": model.multimodal_decoder.lm_head(output.states),
    }


def recorded(name: str) -> dict[str, Tensor]:
    return load_file(RECORDED / f"{name.replace(' ', '-')}.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_embeddings_and_logits_match_open_clip(name):
    model, theirs = imported(name), recorded(name)
    with torch.no_grad():
        ours = named(model, model(*inputs_of(name)))
    assert theirs["logits"].std() > 0.3
    assert theirs["text_embedding"].std(dim=0).max() > 0.02
    for key, bound in (("image_embedding", 1e-13), ("text_embedding", 1e-13), ("logits", 1e-12)):
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=bound)


def test_gradients_of_pixels_and_of_every_tensor_match_open_clip():
    name = GRADIENTS_OF
    model, theirs = imported(name), recorded(name)
    images, ids, lengths = inputs_of(name)
    images.requires_grad_()
    outputs = named(model, model(images, ids, lengths))
    torch.stack([(tensor * coefficients(key, tensor)).sum() for key, tensor in outputs.items()]).sum().backward()
    by_name = {key: p.grad if p.grad is not None else torch.zeros_like(p) for key, p in model.named_parameters()}
    by_name["image_encoder.patch_embed.bias"].zero_()  # open_clip has none, and it would be added to the positions
    ours = {f"gradient of {key}": tensor for key, tensor in to_theirs(by_name, config_of(name)).items()}
    ours["gradient of pixels"] = images.grad
    compared = {key for key in theirs if key.startswith("gradient of ")}
    assert compared == ours.keys() - {"gradient of logit_scale"}, "nothing here depends on the temperature"
    for key in compared:
        assert (ours[key] - theirs[key]).norm() <= 1e-10 * theirs[key].norm(), key


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("num_images", [1, 8])
def test_fast_decoder_matches_predictions_of_complete_captions(name, num_images):
    model = imported(name)
    images = draw_images(CASES[name])[:num_images]
    longest = CASES[name]["text_cfg"]["context_length"] - 1
    ids = torch.randint(1, 38, (len(images), longest), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = named(model, model(images, F.pad(ids, (0, 2)), torch.full((len(ids),), longest + 2)))["logits"]
        fast = fast_copy(model.float())
        steps = log_probs_token_by_token(fast, ids, fast.encode_image(images.float()).tokens)
    expected = expected.log_softmax(dim=-1)
    torch.testing.assert_close(steps.flatten(0, 1).double(), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_mapped_once_and_round_trips(name):
    config, theirs = config_of(name), weights_of(name)
    used = [tensor for link in links(config) for tensor in link.theirs]
    names = [tensor for link in links(config) for tensor in link.ours]
    assert sorted(used) == sorted(theirs)
    assert sorted(names) == sorted(build(config).state_dict())
    back = to_theirs(to_ours(theirs, config), config)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)


def test_patch_bias_is_added_to_the_positions():
    name = "one layer"
    config, model, (images, ids, lengths) = config_of(name), imported(name), inputs_of(name)
    again = build(config).double().eval()
    with torch.no_grad():
        model.image_encoder.patch_embed.bias.normal_()
        again.load_state_dict(to_ours(to_theirs(model.state_dict(), config), config))
        ours, theirs = (each(images, ids, lengths).image_embedding for each in (model, again))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-12)
    assert not again.image_encoder.patch_embed.bias.any()


@pytest.mark.parametrize("size", SHAPES_OF_IMAGES)
def test_pixels_match_open_clip(size):
    theirs = load_file(RECORDED / "pixels.safetensors")["{}x{}".format(*size)]
    ours = to_input(noise_image(size), Preprocess(32, MEAN, STD, order="resize_then_crop"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    if size != (32, 32) and max(size) % min(size):
        assert not torch.allclose(to_input(noise_image(size), Preprocess(32, MEAN, STD)), theirs, atol=0.1)


@pytest.mark.parametrize("text", TEXTS)
def test_token_ids_match_open_clip(text):
    pytest.importorskip("ftfy")
    theirs: list[Any] = NAMES["token_ids"][text]
    row = clip_bpe(cleaning="ftfy").encode_row(text, 77)[:-1]
    assert row + [0] * (76 - len(row)) == theirs
