"""Generation as a whole on small models: what comes out, and what it does not depend on."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from grr_coca.config import CoCaConfig
from grr_coca.data.tokenizer import Tokenizer, train_bpe
from grr_coca.errors import UserError
from grr_coca.generate import Generated, GenerationOptions, generate
from grr_coca.generate.sampling import uniform_draws
from grr_coca.model import CoCa, build
from support import next_token_logits

NUM_IMAGES = 6
CONTEXT = 40
WAYS = {
    "greedy": {},
    "sampling": {"temperature": 0.8, "top_p": 0.95},
    "draws": {"temperature": 1.0, "top_k": 20, "num_captions": 3},
    "beams": {"num_beams": 4, "num_captions": 2},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "num_captions": 3},
    "rules": {"min_length": 4, "repetition_penalty": 1.3, "no_repeat_ngram": 2},
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["a photo of a cat", "a red bird in the snow"] * 3, 290)


@pytest.fixture(scope="module")
def model(tiny_config: Callable[..., CoCaConfig], tokenizer: Tokenizer) -> CoCa:
    config = tiny_config()
    model = build(replace(config, text_decoder=replace(config.text_decoder, vocab_size=300)), seed=1)
    with torch.no_grad():
        model.multimodal_decoder.lm_head.weight.mul_(3)  # some tokens likely, as in a model that was trained
        model.multimodal_decoder.lm_head.weight[tokenizer.eos_id].mul_(2)  # and captions that end
    return model.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(NUM_IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def _ids(generated: Generated) -> list[list[tuple[int, ...]]]:
    return [[caption.token_ids for caption in captions] for captions in generated.captions]


def test_greedy_is_the_loop_that_anybody_would_write(model: CoCa, tokenizer: Tokenizer, images: Tensor) -> None:
    for image, (ids,) in zip(images[:2], _ids(generate(model, tokenizer, images[:2])), strict=True):
        tokens = model.encode_image(image[None]).tokens
        row = [tokenizer.bos_id]
        while len(row) < CONTEXT - 2 and row[-1] != tokenizer.eos_id:
            row.append(int(next_token_logits(model, torch.tensor([row]), tokens)[0, -1].argmax()))
        assert list(ids) == row[1:]


@ways
def test_log_probs_are_those_of_the_model_reading_the_caption(
    model: CoCa, tokenizer: Tokenizer, images: Tensor, way: dict
) -> None:
    prompt = "a photo"
    before = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    encoded = model.encode_image(images[:2])
    captions = generate(model, tokenizer, images[:2], GenerationOptions(**way), prompt).captions
    for i, image in enumerate(captions):
        for caption in image:
            row = torch.tensor([[*before, *caption.token_ids]])
            logits = next_token_logits(model, row, encoded.tokens[i : i + 1])[0]
            log_probs = logits.log_softmax(dim=-1)[len(before) - 1 : -1]
            expected = log_probs.gather(1, torch.tensor(caption.token_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(caption.log_probs), expected, rtol=0, atol=1e-4)


def test_a_prompt_that_utf8_cannot_hold_is_told(model: CoCa, tokenizer: Tokenizer, images: Tensor) -> None:
    with pytest.raises(UserError, match="the prompt is not UTF-8 text"):
        generate(model, tokenizer, images, prompt="caf\udce9")


def test_a_key_that_is_no_utf8_has_draws_of_its_own() -> None:
    """Keys are names of files."""
    draws = uniform_draws(0, ["caf\udce9.png", "caf\udce8.png", "caf.png"], 1, 2)
    assert len({tuple(row) for row in draws.tolist()}) == 3


@ways
def test_a_batch_gives_what_single_calls_give(model: CoCa, tokenizer: Tokenizer, images: Tensor, way: dict) -> None:
    options = GenerationOptions(max_length=12, **way)
    together = _ids(generate(model, tokenizer, images, options))
    alone = [generate(model, tokenizer, images[i : i + 1], options, keys=[i]) for i in range(3)]
    assert together[:3] == [_ids(one)[0] for one in alone]
    lengths = {len(ids) for captions in together for ids in captions}
    assert min(lengths) < max(lengths), "captions of one length cannot show rows that end early"


@ways
def test_captions_are_as_many_and_as_ordered_as_promised(
    model: CoCa, tokenizer: Tokenizer, images: Tensor, way: dict
) -> None:
    generated = generate(model, tokenizer, images, GenerationOptions(**way))
    assert len(generated.captions) == NUM_IMAGES
    for captions in generated.captions:
        assert len(captions) == way.get("num_captions", 1)
        means = [sum(caption.log_probs) / len(caption.log_probs) for caption in captions]
        assert means == sorted(means, reverse=True)
        for caption in captions:
            assert tokenizer.eos_id not in caption.token_ids[:-1]
            assert len(caption.token_ids) <= CONTEXT - 3


def test_draws_depend_on_the_seed_and_the_key(model: CoCa, tokenizer: Tokenizer, images: Tensor) -> None:
    same = images[:1].expand(3, -1, -1, -1)

    def ids(seed: int, keys: list[str]) -> list[list[tuple[int, ...]]]:
        options = GenerationOptions(temperature=1.0, seed=seed, max_length=12)
        return _ids(generate(model, tokenizer, same, options, keys=keys))

    first = ids(0, ["a", "b", "c"])
    assert first == ids(0, ["a", "b", "c"])
    assert first == ids(0, ["c", "b", "a"])[::-1]
    assert len({tuple(captions) for captions in first}) == 3
    assert first != ids(1, ["a", "b", "c"])


def test_several_draws_of_an_image_differ_and_the_first_is_the_single_one(
    model: CoCa, tokenizer: Tokenizer, images: Tensor
) -> None:
    many = generate(model, tokenizer, images[:2], GenerationOptions(temperature=1.0, num_captions=4))
    single = generate(model, tokenizer, images[:2], GenerationOptions(temperature=1.0))
    for captions, (one,) in zip(_ids(many), _ids(single), strict=True):
        assert len(set(captions)) == 4
        assert one in captions


@pytest.mark.parametrize("min_length", [0, 6])
def test_lengths_count_new_tokens_and_not_the_prompt(model: CoCa, tokenizer: Tokenizer, min_length: int) -> None:
    prompt = "a photo of a"
    images = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for way in ({}, {"temperature": 1.0}, {"num_beams": 3}):
        options = GenerationOptions(min_length=min_length, max_length=16, **way)
        captions = [caption for (caption,) in generate(model, tokenizer, images, options, prompt).captions]
        lengths = {len(caption.token_ids) for caption in captions}
        ended = {caption.token_ids[-1] for caption in captions}
        assert max(lengths) <= 16
        assert tokenizer.eos_id in ended
        if min_length:
            assert min(lengths) > min_length, "the end token comes behind min_length others"
        else:
            assert min(lengths) < 6


def test_a_caption_begins_with_its_prompt_and_goes_on_from_it(
    model: CoCa, tokenizer: Tokenizer, images: Tensor
) -> None:
    options = GenerationOptions(max_length=6)
    for (caption,) in generate(model, tokenizer, images, options, "a photo of").captions:
        assert caption.text.startswith("a photo of")
        assert caption.text == tokenizer.decode([*tokenizer.encode("a photo of"), *caption.token_ids])
    assert _ids(generate(model, tokenizer, images, options, "a photo of")) != _ids(
        generate(model, tokenizer, images, options)
    )


@pytest.mark.parametrize("prompt", ["a photo of ", " a photo of", "a  photo\tof\n"])
def test_spaces_around_the_words_of_a_prompt_change_nothing(
    model: CoCa, tokenizer: Tokenizer, images: Tensor, prompt: str
) -> None:
    options = GenerationOptions(max_length=6)
    expected = generate(model, tokenizer, images, options, prompt="a photo of").captions
    assert generate(model, tokenizer, images, options, prompt=prompt).captions == expected


def test_one_pass_gives_captions_and_embeddings(
    model: CoCa, tokenizer: Tokenizer, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = model.encode_image(images)
    original, passes = CoCa.encode_image, []
    monkeypatch.setattr(CoCa, "encode_image", lambda *args: passes.append(1) or original(*args))
    generated = generate(model, tokenizer, images)
    assert len(passes) == 1
    torch.testing.assert_close(generated.image_embedding, encoded.embedding, rtol=0, atol=1e-5)
    assert not generated.image_embedding.is_inference()


def test_images_take_the_precision_of_the_model(model: CoCa, tokenizer: Tokenizer, images: Tensor) -> None:
    rounded = copy.deepcopy(model).bfloat16()
    options = GenerationOptions(max_length=3)
    expected = generate(rounded, tokenizer, images.bfloat16(), options)
    assert generate(rounded, tokenizer, images, options).captions == expected.captions


def test_no_image_no_caption(model: CoCa, tokenizer: Tokenizer, images: Tensor) -> None:
    with pytest.raises(UserError, match="no image"):
        generate(model, tokenizer, images[:0])


@pytest.mark.parametrize(
    ("options", "prompt", "keys", "message"),
    [
        ({}, "x " * 60, None, "the prompt has .* tokens; give 36 at most"),
        ({"max_length": CONTEXT}, "", None, "max_length 40 is more than the 37 .* context of 40"),
        ({"max_length": 37}, "a", None, "max_length 37 is more than .* prompt of [1-9]"),
        ({"min_length": 38}, "", None, "min_length 38 is more than the 37"),
        ({"no_repeat_ngram": 1, "min_length": 37}, "", [0] * 3, "3 keys for 6 images"),
    ],
)
def test_what_does_not_fit_is_named(
    model: CoCa, tokenizer: Tokenizer, images: Tensor, options: dict, prompt: str, keys: list | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        generate(model, tokenizer, images, GenerationOptions(**options), prompt, keys)


def test_the_longest_prompt_leaves_room_for_one_token(model: CoCa, tokenizer: Tokenizer, images: Tensor) -> None:
    prompt = "x" * (CONTEXT - 4 - (len(tokenizer.encode("x")) - 1))
    assert len(tokenizer.encode(prompt)) == CONTEXT - 4
    for options in (GenerationOptions(), GenerationOptions(num_beams=2)):
        generated = generate(model, tokenizer, images, options, prompt)
        assert {len(caption.token_ids) for (caption,) in generated.captions} == {1}
