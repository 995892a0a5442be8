"""Our model beside open_clip's own, at full size with all parameters random: where open_clip is installed.

PYTHONPATH=src .venv-peers/bin/python -m pytest -m slow -s tests/open_clip/checkpoints/test_open_clip_itself.py
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from support import log_probs_token_by_token
from torch import Tensor

from grr_coca.data.batch import pad_rows
from grr_coca.data.tokenizer import CLS_SLOT
from grr_coca.infer.engine.torch import TorchDecoder
from grr_coca.infer.fast.layers import fast_copy
from grr_coca.infer.generate import GREEDY
from grr_coca.infer.generate.captions import decode_independently
from grr_coca.model.coca import CoCa
from grr_coca_open_clip.checkpoints.read import read_open_clip
from grr_coca_open_clip.checkpoints.write import write_open_clip

open_clip = pytest.importorskip("open_clip")
pytestmark = pytest.mark.slow

SOT, EOT, PAD = 49406, 49407, 0
LENGTHS = (2, 3, 7, 20, 41, 75, 76, 12)
"""Tokens of captions, begin and end included."""
TIE = 1e-4


@pytest.fixture(scope="module", params=["coca_ViT-B-32", "coca_ViT-L-14"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    theirs = open_clip.create_model(request.param, pretrained=None).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name == "logit_scale":
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * noise)
            elif name == "text_decoder.text_projection":
                parameter.copy_(noise * 2 * len(parameter) ** -0.5)
            elif "projection" in name or name == "visual.proj":
                parameter.copy_(noise * len(parameter) ** -0.5)
            elif "embedding" in name:
                parameter.copy_(0.3 * noise)
            elif name.endswith("query"):
                parameter.copy_(noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    folder = tmp_path_factory.mktemp(request.param)
    weights = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    ours = read_open_clip(folder, request.param)
    return SimpleNamespace(name=request.param, theirs=theirs, ours=ours, folder=folder)


def images(count: int) -> Tensor:
    """Of different brightness and roughness, so that captions differ."""
    generator = torch.Generator().manual_seed(4)
    coarse = torch.randn(count, 3, 7, 7, generator=generator)
    fine = torch.randn(count, 3, 224, 224, generator=generator)
    share = torch.linspace(0, 1, count)[:, None, None, None]
    return (1 - share) * F.interpolate(coarse, 224) * 2 + share * fine


def report(both: SimpleNamespace, what: str, found: Tensor, expected: Tensor, bound: float) -> None:
    difference = (found - expected).abs().max().item()
    print(f"{both.name}  {what}: {difference:.2g} of {expected.abs().max().item():.3g}, at most {bound:g}")
    assert difference <= bound


@torch.inference_mode()
def test_embeddings_and_logits(both):
    generator = torch.Generator().manual_seed(5)
    captions = [[SOT, *torch.randint(1, SOT, (n - 2,), generator=generator).tolist(), EOT] for n in LENGTHS]
    text = torch.zeros(len(captions), 76, dtype=torch.long)
    for row, caption in zip(text, captions, strict=True):
        row[: len(caption)] = torch.tensor(caption)
    pixels, (ids, lengths) = images(len(captions)), pad_rows([[*caption, CLS_SLOT] for caption in captions])
    theirs, model = both.theirs(pixels, text), both.ours.model
    ours = model(pixels, ids, lengths)
    report(both, "image embedding", ours.image_embedding, theirs["image_features"], 1e-6)
    report(both, "text embedding", ours.text_embedding, theirs["text_features"], 1e-6)
    expected = torch.cat([rows[: n - 1] for rows, n in zip(theirs["logits"], LENGTHS, strict=True)])
    report(both, "logits, forward", model.multimodal_decoder.lm_head(ours.states), expected, 5e-5)

    length = 20
    words = torch.cat([torch.full((8, 1), SOT), torch.randint(1, SOT, (8, length - 1), generator=generator)], dim=1)
    expected = both.theirs(pixels, words, output_labels=False)["logits"]
    for batch in (1, 8):
        fast = fast_copy(model)
        tokens = fast.encode_image(pixels[:batch]).tokens
        log_probs = expected[:batch].log_softmax(dim=-1)
        best, likeliest = log_probs[:, -1].topk(9)
        prefix = TorchDecoder(fast, tokens, num_prompt=length, max_tokens=1).step(words[:batch].numpy())
        found = torch.from_numpy(prefix.log_probs_of(likeliest.numpy()))
        report(both, f"log-probabilities, prefix, batch {batch}", found, best, 5e-5)
        steps = log_probs_token_by_token(fast, words[:batch], tokens)
        report(both, f"log-probabilities, token by token, batch {batch}", steps, log_probs, 5e-5)


def their_greedy(model: Any, pixels: Tensor, tokens: int) -> list[list[int]]:
    """Token ids after the begin token; open_clip sets the last one to the end token without looking."""
    found = model.generate(pixels, seq_len=tokens + 1, min_seq_len=1, generation_type="top_k", top_k=1)
    return [ids.tolist()[1:] for ids in found]


def our_greedy(model: CoCa, pixels: Tensor, max_length: int) -> list[list[int]]:
    """Token ids after the begin token."""
    fast = fast_copy(model)
    decoder = TorchDecoder(fast, fast.encode_image(pixels).tokens, num_prompt=1, max_tokens=max_length)
    *_, captions = decode_independently(decoder, np.full((len(pixels), 1), SOT), GREEDY, max_length, EOT, None)
    return [list(best.token_ids) for best, *_ in captions.hypotheses(1)]


@torch.inference_mode()
def test_greedy_captions(both):
    pixels, tokens = images(12), 16
    expected = their_greedy(both.theirs, pixels, tokens)
    together = our_greedy(both.ours.model, pixels, tokens)
    one_by_one = [our_greedy(both.ours.model, pixels[i : i + 1], tokens)[0] for i in range(len(pixels))]
    equal = 0
    for i, ids in enumerate(expected):
        ids = ids[: ids.index(EOT)] if EOT in ids else ids
        ids = ids[: ids.index(PAD)] if PAD in ids else ids
        for ours in (together[i], one_by_one[i]):
            same = ours[: len(ids)] == ids
            equal += same
            assert same or tied(both, pixels[i : i + 1], ids, ours)
    distinct = len({tuple(ids[: tokens - 1]) for ids in together})
    print(f"{both.name}  greedy: {equal} of {2 * len(expected)} equal (batched, alone), {distinct} distinct captions")
    # With random weights, L/14 gives all images one caption, open_clip's as ours.
    assert distinct >= (6 if both.name == "coca_ViT-B-32" else 1)


def tied(both: SimpleNamespace, pixels: Tensor, theirs: list[int], ours: list[int]) -> bool:
    """Whether open_clip's two likeliest logits lie together where the captions part."""
    index = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b)
    prefix = torch.tensor([[SOT, *theirs[:index]]])
    first, second = both.theirs(pixels, prefix, output_labels=False)["logits"][0, -1].topk(2).values.tolist()
    return first - second < TIE


def test_open_clip_loads_exported_checkpoints(both, tmp_path_factory):
    folder = tmp_path_factory.mktemp("back") / "coca"
    write_open_clip(both.ours, folder)
    back = load_file(folder / "open_clip_model.safetensors")
    expected = both.theirs.state_dict()
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], expected[name]) for name in expected)
    again = open_clip.create_model(f"local-dir:{folder}").eval()
    with torch.inference_mode():
        pixels = images(2)
        assert torch.equal(again.encode_image(pixels), both.theirs.encode_image(pixels))


def test_trained_model_matches_open_clip(both, tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("trained") / "coca", torch.Generator().manual_seed(6)
    with torch.no_grad():  # steps of training, as far as weights are concerned
        for parameter in both.ours.model.parameters():
            parameter += 0.02 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator)
            parameter += 0.001 * torch.randn(parameter.shape, generator=generator)
    write_open_clip(both.ours, folder)
    trained = open_clip.create_model(f"local-dir:{folder}").eval()
    pixels, text = images(2), torch.zeros(2, 76, dtype=torch.long)
    text[:, :5] = torch.tensor([SOT, 320, 1125, 539, EOT])
    with torch.inference_mode():
        ours = both.ours.model(pixels, text[:, :6], torch.tensor([6, 6]))
        theirs = trained(pixels, text)
        logits = both.ours.model.multimodal_decoder.lm_head(ours.states)
    report(both, "trained, image embedding", ours.image_embedding, theirs["image_features"], 1e-6)
    report(both, "trained, text embedding", ours.text_embedding, theirs["text_features"], 1e-6)
    report(both, "trained, logits", logits, theirs["logits"][:, :4].flatten(0, 1), 5e-5)
