"""Captioning: what one image gets does not depend on its neighbours, and nothing is left changed."""

import numpy as np
import pytest
import torch

from grr_coca.data.images import decode_image
from grr_coca.infer.engine.torch import TorchDecoder, TorchEngine
from grr_coca.infer.generate import GenerationOptions, generate, warn_if_repeated
from grr_coca.model.coca import CoCa
from grr_coca.train.recipe import EvaluationRecipe, ModelRecipe, OptimizerRecipe, ScheduleRecipe
from support import BATCH_SIZE, pretrain, real_pairs, tiny_recipe, warnings_of, write_shard

# The shortest captions: learned soonest.
PAIRS = sorted(real_pairs(40), key=lambda pair: len(pair.caption))[:BATCH_SIZE]
MAX_WORDS = 29
LOGGER = "grr_coca.infer.generate.captions"


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    """A model trained on eight pairs until it knows them by heart."""
    folder = tmp_path_factory.mktemp("overfitted")
    recipe = tiny_recipe(
        write_shard(folder / "pairs.tar", PAIRS),
        schedule=ScheduleRecipe(steps=45, warmup_steps=5),
        model=ModelRecipe("grr_coca", "tiny", image_size=16, context_length=MAX_WORDS + 3),
        optimizer=OptimizerRecipe("muon", lr=4e-3),
        evaluation=EvaluationRecipe(interval=1000, batch_size=BATCH_SIZE),
    )
    return pretrain(recipe, folder / "run")


@pytest.fixture(scope="module")
def images(overfitted):
    return np.stack([overfitted.preprocess(decode_image(pair.image, pair.name)) for pair in PAIRS])


def captions_of(checkpoint, images, **options):
    engine = TorchEngine(checkpoint.model, checkpoint.preprocess)
    found = generate(engine, checkpoint.tokenizer, images, GenerationOptions(**options)).captions
    return [caption for (caption,) in found]


def texts_of(checkpoint, images):
    return [caption.text for caption in captions_of(checkpoint, images)]


@pytest.fixture
def generated(overfitted):
    """The token ids of images, greedily."""

    def run(images, **options):
        return [caption.token_ids for caption in captions_of(overfitted, images, **options)]

    return run


@pytest.fixture
def calls(monkeypatch):
    """The number of rows at each step of decoding."""
    original, steps = TorchDecoder.step, []

    def counted(self, token_ids):
        steps.append(len(token_ids))
        return original(self, token_ids)

    monkeypatch.setattr(TorchDecoder, "step", counted)
    return steps


@pytest.mark.ci
def test_a_model_that_knows_its_pairs_by_heart_captions_them_exactly(overfitted, images):
    assert texts_of(overfitted, images) == [pair.caption for pair in PAIRS]


def test_a_batch_gives_what_single_calls_give(overfitted, images):
    alone = [texts_of(overfitted, image[None])[0] for image in images]
    assert texts_of(overfitted, images) == alone
    assert len(set(alone)) == len(alone)


def test_the_order_within_a_batch_makes_no_difference(overfitted, images):
    assert texts_of(overfitted, images[::-1]) == texts_of(overfitted, images)[::-1]


def test_a_caption_stops_with_its_end_token_and_decoding_when_all_have_ended(overfitted, images, generated, calls):
    rows = generated(images)
    lengths = [len(row) for row in rows]
    assert all(row.index(overfitted.tokenizer.eos_id) == len(row) - 1 for row in rows)
    assert len(calls) == max(lengths) < MAX_WORDS
    assert min(lengths) < max(lengths), "captions of one length cannot show rows that end early"
    assert calls[0] == len(images)
    assert calls[-1] <= len(images) * 0.75, "those that have ended leave the batch"


@pytest.mark.parametrize("max_length", [1, 3])
def test_no_caption_is_longer_than_allowed(images, generated, max_length):
    assert {len(row) for row in generated(images, max_length=max_length)} == {max_length}


def test_a_caption_may_fill_the_context_and_not_more(overfitted, images, generated):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overfitted.tokenizer, "eos_id", overfitted.tokenizer.vocab_size - 1)  # never said
        (row,) = generated(images[:1])
    assert len(row) == MAX_WORDS
    assert len(overfitted.tokenizer.encode("cat " * 3)) >= 1


@pytest.mark.parametrize("training", [True, False])
def test_images_are_encoded_once_in_evaluation_mode_whatever_the_mode_of_the_model(
    overfitted, images, monkeypatch, training
):
    original, seen = CoCa.encode_image, []

    def watched(model, images):
        seen.append((any(module.training for module in model.modules()), torch.is_grad_enabled()))
        return original(model, images)

    monkeypatch.setattr(CoCa, "encode_image", watched)
    overfitted.model.train(training)
    texts_of(overfitted, images)
    assert seen == [(False, False)]
    assert {module.training for module in overfitted.model.modules()} == {training}


def test_captioning_changes_no_weight(overfitted, images):
    before = {name: tensor.clone() for name, tensor in overfitted.model.state_dict().items()}
    texts_of(overfitted, images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in overfitted.model.state_dict().items())


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
    with warnings_of(LOGGER) as messages:
        warn_if_repeated(captions)
    assert bool(messages) is warned
    assert all("'a cat'" in message for message in messages)
