"""A model that knows eight pairs by heart says their captions."""

import numpy as np
import pytest
from support import BATCH_SIZE, pretrain, real_pairs, tiny_recipe, write_shard

from grr_coca.data.isolated import decode_image
from grr_coca.infer.engine.torch import TorchEngine
from grr_coca.infer.generate import generate
from grr_coca.train.recipe import EvaluationRecipe, ModelRecipe, OptimizerRecipe, ScheduleRecipe


@pytest.mark.ci
def test_overfitted_model_repeats_its_captions(tmp_path):
    pairs = sorted(real_pairs(40), key=lambda pair: len(pair.caption))[:BATCH_SIZE]  # the shortest are learned soonest
    recipe = tiny_recipe(
        write_shard(tmp_path / "pairs.tar", pairs),
        schedule=ScheduleRecipe(steps=45, warmup_steps=5),
        model=ModelRecipe("grr_coca", "tiny", image_size=16, context_length=32),
        optimizer=OptimizerRecipe("muon", lr=4e-3),
        evaluation=EvaluationRecipe(interval=1000, batch_size=BATCH_SIZE),
    )
    learned = pretrain(recipe, tmp_path / "run")
    images = np.stack([learned.preprocess(decode_image(pair.image, pair.name)) for pair in pairs])
    found = generate(TorchEngine(learned.model, learned.preprocess), learned.tokenizer, images).captions
    assert [caption.text for (caption,) in found] == [pair.caption for pair in pairs]
