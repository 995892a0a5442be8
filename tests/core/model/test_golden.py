"""Golden losses: a change that should not alter numbers must not.

If a change *should* alter them, say why in its commit and record them anew:

    PYTHONPATH=tests/shared python tests/core/model/test_golden.py
"""

import json
from pathlib import Path

import pytest
import torch
from model_configs import model_config
from support import make_trainer

from grr_coca.data.batch import Batch, pad_rows
from grr_coca.data.dataset import find_next_tokens
from grr_coca.model.build import build
from grr_coca.model.config import CoCaConfig
from grr_coca.train.optimizer import Optimizers
from grr_coca.train.recipe import OptimizerRecipe, ScheduleRecipe
from grr_coca.train.step import count_tokens

GOLDEN = Path(__file__).parents[1] / "golden"
PRESETS = ("grr_coca", "baseline_coca", "grr_coca+stem")
STEPS, BATCH_SIZE, MAX_WORDS = 20, 8, 12
BOS, EOS, CLS_SLOT = 1, 2, 0


def random_batch(config: CoCaConfig, generator: torch.Generator) -> Batch:
    """Noise with captions of 1 to 12 words; two of the pairs share their caption."""
    side, vocab_size = config.image_encoder.image_size, config.text_decoder.vocab_size
    num_words = torch.randint(1, MAX_WORDS + 1, (BATCH_SIZE,), generator=generator).tolist()
    rows = [torch.randint(3, vocab_size, (n,), generator=generator).tolist() for n in num_words]
    rows[1] = rows[0]
    token_ids, lengths = pad_rows([[BOS, *row, EOS, CLS_SLOT] for row in rows])
    return Batch(
        images=torch.randn(BATCH_SIZE, 3, side, side, generator=generator),
        token_ids=token_ids,
        lengths=lengths,
        next_tokens=find_next_tokens(token_ids, lengths),
        caption_ids=torch.tensor([0, 0, *range(2, BATCH_SIZE)]),
        image_ids=torch.arange(BATCH_SIZE),
        keys=tuple(map(str, range(BATCH_SIZE))),
    )


def train(preset: str, steps: int = STEPS) -> dict[str, list[float]]:
    """Losses of the first steps of a run on the CPU in fp32."""
    config = model_config(preset, "tiny")
    model = build(config, seed=0)
    optimizers = Optimizers(model, OptimizerRecipe(lr=3e-4), ScheduleRecipe(steps=STEPS, warmup_steps=4))
    trainer = make_trainer(model, optimizers)
    generator = torch.Generator().manual_seed(0)
    history: dict[str, list[float]] = {"contrastive": [], "captioning": [], "coca": []}
    for step in range(steps):
        batch = random_batch(config, generator)
        metrics = trainer.step([batch], count_tokens([batch]), step)
        for name, values in history.items():
            values.append(metrics[name])
    return history


@pytest.mark.parametrize("steps", [6, pytest.param(STEPS, marks=pytest.mark.ci)])
@pytest.mark.parametrize("preset", PRESETS)
def test_losses_equal_recorded_ones(preset, steps):
    recorded = json.loads((GOLDEN / f"{preset}.json").read_text())
    for name, values in train(preset, steps).items():
        assert values == pytest.approx(recorded[name][:steps], rel=1e-4), (
            f"the {name} loss of {preset} is not the one on record; if that is meant, run python {__file__}"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    GOLDEN.mkdir(exist_ok=True)
    for name in PRESETS:
        (GOLDEN / f"{name}.json").write_text(json.dumps(train(name), indent=1) + "\n")
        print(GOLDEN / f"{name}.json")
