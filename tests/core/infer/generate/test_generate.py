"""Generation as a whole on small models: what comes out, and what it does not depend on."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support import next_token_logits, warnings_of
from torch import Tensor

from grr_coca.common.errors import UserError
from grr_coca.data.batch import to_input
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.tokenizer import Tokenizer, train_bpe
from grr_coca.infer.engine.torch import TorchDecoder, TorchEngine
from grr_coca.infer.generate import GeneratedCaptions, GenerationOptions, generate, stream_captions, warn_if_repeated
from grr_coca.infer.generate.captions import ArrayLogits, uniform_draws
from grr_coca.model.build import build
from grr_coca.model.coca import CoCa
from grr_coca.model.config import CoCaConfig

PREPROCESS = Preprocess(16, std=(0.25, 0.25, 0.25))
"""Pixels differ as much as normal noise, so that captions do."""
NUM_IMAGES = 6
CONTEXT = 40
WAYS = {
    "greedy": {},
    "sampling": {"temperature": 0.8, "top_p": 0.95},
    "draws": {"temperature": 1.0, "top_k": 20, "num_captions": 3},
    "beams": {"num_beams": 4, "num_captions": 2},
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
def engine(model: CoCa) -> TorchEngine:
    return TorchEngine(model, PREPROCESS)


def random_images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return random_images(NUM_IMAGES)


def _as_input(images: np.ndarray) -> Tensor:
    return torch.stack([to_input(Image.fromarray(image), PREPROCESS) for image in images])


def _ids(generated: GeneratedCaptions) -> list[list[tuple[int, ...]]]:
    return [[caption.token_ids for caption in captions] for captions in generated.captions]


def test_greedy_is_the_loop_that_anybody_would_write(engine, model, tokenizer, images):
    found = generate(engine, tokenizer, images[:2], GenerationOptions(max_length=12))
    for image, (ids,) in zip(images[:2], _ids(found), strict=True):
        tokens = model.encode_image(_as_input(image[None])).tokens
        row = [tokenizer.bos_id]
        while len(row) < 13 and row[-1] != tokenizer.eos_id:
            row.append(int(next_token_logits(model, torch.tensor([row]), tokens)[0, -1].argmax()))
        assert list(ids) == row[1:]


@ways
def test_log_probs_equal_those_of_the_teacher_forced_caption(engine, model, tokenizer, images, way):
    prompt = "a photo"
    before = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    encoded = model.encode_image(_as_input(images[:2]))
    captions = generate(engine, tokenizer, images[:2], GenerationOptions(max_length=16, **way), prompt).captions
    for i, image in enumerate(captions):
        for caption in image:
            row = torch.tensor([[*before, *caption.token_ids]])
            logits = next_token_logits(model, row, encoded.tokens[i : i + 1])[0]
            log_probs = logits.log_softmax(dim=-1)[len(before) - 1 : -1]
            expected = log_probs.gather(1, torch.tensor(caption.token_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(caption.log_probs), expected, rtol=0, atol=1e-4)


def test_prompt_that_is_not_utf8_raises(engine, tokenizer, images):
    with pytest.raises(UserError, match="the prompt is not UTF-8 text"):
        generate(engine, tokenizer, images, prompt="caf\udce9")


def test_key_that_is_not_utf8_has_separate_draws():
    """Keys are names of files."""
    draws = uniform_draws(0, ["caf\udce9.png", "caf\udce8.png", "caf.png"], 1, 2)
    assert len({tuple(row) for row in draws.tolist()}) == 3


@ways
def test_batch_equals_single_calls(engine, tokenizer, images, way):
    options = GenerationOptions(max_length=12, **way)
    together = _ids(generate(engine, tokenizer, images, options))
    alone = [generate(engine, tokenizer, images[i : i + 1], options, keys=[i]) for i in range(3)]
    assert together[:3] == [_ids(one)[0] for one in alone]
    lengths = {len(ids) for captions in together for ids in captions}
    assert min(lengths) < max(lengths), "captions of one length cannot show rows that end early"


@ways
def test_captions_are_as_many_and_as_ordered_as_promised(engine, tokenizer, images, way):
    generated = generate(engine, tokenizer, images, GenerationOptions(**way))
    assert len(generated.captions) == NUM_IMAGES
    for captions in generated.captions:
        assert len(captions) == way.get("num_captions", 1)
        means = [sum(caption.log_probs) / len(caption.log_probs) for caption in captions]
        assert means == sorted(means, reverse=True)
        for caption in captions:
            assert tokenizer.eos_id not in caption.token_ids[:-1]
            assert len(caption.token_ids) <= CONTEXT - 3


def test_samples_differ_and_the_first_equals_a_single_one(engine, tokenizer, images):
    many = generate(engine, tokenizer, images[:2], GenerationOptions(temperature=1.0, num_captions=4))
    single = generate(engine, tokenizer, images[:2], GenerationOptions(temperature=1.0))
    for captions, (one,) in zip(_ids(many), _ids(single), strict=True):
        assert len(set(captions)) == 4
        assert one in captions


@pytest.mark.parametrize("min_length", [0, 6])
def test_lengths_count_new_tokens_and_not_the_prompt(engine, tokenizer, min_length):
    prompt = "a photo of a"
    images = random_images(16)
    for way in ({}, {"temperature": 1.0}, {"num_beams": 3}):
        options = GenerationOptions(min_length=min_length, max_length=16, **way)
        captions = [caption for (caption,) in generate(engine, tokenizer, images, options, prompt).captions]
        lengths = {len(caption.token_ids) for caption in captions}
        ended = {caption.token_ids[-1] for caption in captions}
        assert max(lengths) <= 16
        assert tokenizer.eos_id in ended
        if min_length:
            assert min(lengths) > min_length, "the end token comes behind min_length others"
        else:
            assert min(lengths) <= 6


def test_caption_begins_with_its_prompt_and_continues_from_it(engine, tokenizer, images):
    options = GenerationOptions(max_length=6)
    for (caption,) in generate(engine, tokenizer, images, options, "a photo of").captions:
        assert caption.text.startswith("a photo of")
        assert caption.text == tokenizer.decode([*tokenizer.encode("a photo of"), *caption.token_ids])
    assert _ids(generate(engine, tokenizer, images, options, "a photo of")) != _ids(
        generate(engine, tokenizer, images, options)
    )


@pytest.mark.parametrize("prompt", ["a photo of ", " a photo of", "a  photo\tof\n"])
def test_spaces_around_the_words_of_a_prompt_change_nothing(engine, tokenizer, images, prompt):
    options = GenerationOptions(max_length=6)
    expected = generate(engine, tokenizer, images, options, prompt="a photo of").captions
    assert generate(engine, tokenizer, images, options, prompt=prompt).captions == expected


def test_no_image_no_caption(engine, tokenizer, images):
    with pytest.raises(UserError, match="no image"):
        generate(engine, tokenizer, images[:0])


@pytest.mark.parametrize(
    ("options", "prompt", "keys", "message"),
    [
        ({}, "x " * 60, None, "the prompt has .* tokens; use at most 36"),
        ({"max_length": CONTEXT}, "", None, "max_length must be at most 37, .* 40 tokens"),
        ({"max_length": 37}, "a", None, "max_length must be at most .* prompt takes [1-9]"),
        ({"min_length": 38}, "", None, "min_length must be at most 37, got 38: of the model"),
        ({"no_repeat_ngram": 1, "min_length": 37}, "", [0] * 3, "keys: expected one key per image, 6, got 3"),
    ],
)
def test_mismatched_arguments_are_named(engine, tokenizer, images, options, prompt, keys, message):
    with pytest.raises(UserError, match=message):
        generate(engine, tokenizer, images, GenerationOptions(**options), prompt, keys)


def test_longest_prompt_leaves_room_for_one_token(engine, tokenizer, images):
    prompt = "x" * (CONTEXT - 4 - (len(tokenizer.encode("x")) - 1))
    assert len(tokenizer.encode(prompt)) == CONTEXT - 4
    for options in (GenerationOptions(), GenerationOptions(num_beams=2)):
        generated = generate(engine, tokenizer, images, options, prompt)
        assert {len(caption.token_ids) for (caption,) in generated.captions} == {1}


def test_finished_captions_leave_the_batch(engine, tokenizer, monkeypatch):
    original, steps = TorchDecoder.step, []
    monkeypatch.setattr(TorchDecoder, "step", lambda self, ids: steps.append(len(ids)) or original(self, ids))
    rows = [ids for (ids,) in _ids(generate(engine, tokenizer, random_images(16)))]
    lengths = [len(row) for row in rows]
    assert all(tokenizer.eos_id not in row[:-1] for row in rows)
    assert len(steps) == max(lengths)
    assert all(rows >= sum(length > step for length in lengths) for step, rows in enumerate(steps))
    assert (steps[0], steps[-1] <= 12) == (16, True), "those that have ended leave the batch, some at a time"
    assert min(lengths) < max(lengths), "captions of one length cannot show rows that end early"


def test_caption_may_fill_the_context_and_not_more(engine, tokenizer, images, monkeypatch):
    monkeypatch.setattr(tokenizer, "eos_id", 299)  # never generated
    assert {len(ids) for (ids,) in _ids(generate(engine, tokenizer, images))} == {CONTEXT - 3}


def test_captioning_restores_the_training_mode(model, tokenizer, images, monkeypatch):
    original, seen = CoCa.encode_image, []
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def watched(model, images):
        seen.append((any(module.training for module in model.modules()), torch.is_grad_enabled()))
        return original(model, images)

    monkeypatch.setattr(CoCa, "encode_image", watched)
    model.train()
    try:
        generate(TorchEngine(model, PREPROCESS), tokenizer, images[:2])
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert seen == [(False, False)]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


# --- Captions that come word by word


@pytest.mark.parametrize("way", ["greedy", "sampling", "rules"])
def test_pieces_of_a_stream_are_the_caption(engine, tokenizer, images, way):
    arguments = (engine, tokenizer, images[:3], GenerationOptions(**WAYS[way]), "a photo")
    expected = generate(*arguments)
    stream, pieces = stream_captions(*arguments), []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            generated = end.value
            break
    assert generated.captions == expected.captions
    assert np.array_equal(generated.image_embedding, expected.image_embedding)
    assert ["".join(parts) for parts in zip(*pieces, strict=True)] == [one.text for (one,) in expected.captions]
    assert len(pieces) == max(len(caption.token_ids) for (caption,) in expected.captions)
    assert all(piece.startswith("a photo") for piece in pieces[0])
    assert sum(bool(piece) for parts in pieces for piece in parts) > 9, "not all words at the end"


def test_character_of_several_tokens_comes_whole(engine, monkeypatch):
    tokenizer = train_bpe(["a photo"] * 3, 270)
    token_ids = [*tokenizer.encode("é€"), *tokenizer.encode(" 🐈 x"), tokenizer.eos_id]
    assert len(token_ids) > 9
    says(monkeypatch, token_ids)
    pieces = [piece for (piece,) in stream_captions(engine, tokenizer, random_images(1))]
    assert "".join(pieces) == "é€ 🐈 x"
    assert "�" not in "".join(pieces)


def test_invalid_bytes_sort_last(engine, monkeypatch):
    tokenizer = train_bpe(["a photo"] * 3, 270)
    euro = tokenizer.encode("€")
    says(monkeypatch, [*tokenizer.encode("a"), *euro[:-1], tokenizer.eos_id])
    pieces = [piece for (piece,) in stream_captions(engine, tokenizer, random_images(1))]
    (expected,) = generate(engine, tokenizer, random_images(1)).captions[0]
    assert "".join(pieces) == expected.text
    assert expected.text.startswith("a")
    assert expected.text.endswith("�")


def says(monkeypatch: pytest.MonkeyPatch, token_ids: list[int]) -> None:
    """Every caption is this one."""

    def step(decoder: TorchDecoder, ids: np.ndarray) -> ArrayLogits:
        position = decoder.position
        decoder.position += 1
        return ArrayLogits(np.eye(300, dtype=np.float32)[[token_ids[position]] * len(ids)])

    monkeypatch.setattr(TorchDecoder, "step", step)


@pytest.mark.parametrize("way", ["draws", "beams"])
def test_ranked_captions_cannot_be_streamed(engine, tokenizer, images, way):
    with pytest.raises(UserError, match="set both to 1"):
        next(stream_captions(engine, tokenizer, images, GenerationOptions(**WAYS[way])))


# --- One caption for all


@pytest.mark.parametrize(
    ("captions", "warned"),
    [
        (["a cat"] * 8, True),
        (["a cat"] * 5 + ["b", "c", "d"], True),
        (["a cat"] * 4 + ["b", "c", "d", "e"], False),
        (["a cat"] * 7, False),
        ([], False),
    ],
)
def test_one_caption_for_most_of_many_images_is_warned_of(captions, warned):
    with warnings_of("grr_coca.infer.generate.captions") as messages:
        warn_if_repeated(captions)
    assert bool(messages) is warned
    assert all("'a cat'" in message for message in messages)
