"""A model that learns can learn one batch by heart: captions word for word, and each pair apart from all others."""

import pytest
import torch
from support import query_ranks

from grr_coca.model.build import build
from grr_coca.model.losses import batch_loss
from grr_coca.train.optimizer import Optimizers
from grr_coca.train.recipe import OptimizerRecipe, ScheduleRecipe

STEPS = 80


@pytest.mark.ci
@pytest.mark.parametrize(
    ("preset", "name"), [("grr_coca", "adamw"), pytest.param("baseline_coca", "muon", marks=pytest.mark.slow)]
)
def test_one_batch_is_learned_by_heart(tiny_config, make_batch, preset, name):
    config = tiny_config(preset)
    model, batch = build(config), make_batch(config, num_words=[3, 6, 9, 5] * 2)
    recipe = OptimizerRecipe(name=name, lr=4e-3, weight_decay=0.0, muon_precision="fp32")
    optimizers = Optimizers(model, recipe, ScheduleRecipe(steps=STEPS, warmup_steps=10))
    for step in range(STEPS):
        batch_loss(model, batch).total.backward()
        optimizers.update(step)
        model.clamp_logit_scale()
    with torch.no_grad():
        output = model(batch.images, batch.token_ids, batch.lengths)
        losses = batch_loss(model, batch)
    similarity, itself = output.image_embedding @ output.text_embedding.T, torch.eye(8, dtype=torch.bool)
    assert losses.captioning < 0.05
    assert query_ranks(similarity, itself).recall(1) == 1.0
    assert query_ranks(similarity.T, itself).recall(1) == 1.0
