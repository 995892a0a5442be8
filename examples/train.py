"""Train a small GRR-CoCa in plain PyTorch: the first file to read if you want to change the model or its training.

    python examples/train.py "datasets/pictograms/train-*.tar" my-model
    grr-coca caption docs/drawings/guitar.webp -c my-model

This script uses one process and AdamW, without validation, resuming or mixed precision. `grr-coca pretrain` adds these
and more. With the same settings, both take the same steps; a test checks that their losses are equal.

- The model: change a value in `make_model`, or use your own module for a part in `grr_coca/model/build.py`.
- The losses: `batch_loss` is in `grr_coca/model/losses.py`. You can add any scalar that depends on the model to its
  `total`.
- The data: any function that yields `grr_coca.data.batch.Batch` can replace `make_batches`.
"""

import argparse
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from grr_coca.data.batch import Batch
from grr_coca.data.dataset import PairDataset, make_loader
from grr_coca.data.order import GlobalBatches, Shuffle, TrainingOrder
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import caption_texts
from grr_coca.data.tokenizer import train_bpe
from grr_coca.model.build import build
from grr_coca.model.checkpoint import Checkpoint, save_checkpoint
from grr_coca.model.coca import CoCa
from grr_coca.model.losses import batch_loss
from grr_coca.model.presets import get_preset

BATCH_SIZE, STEPS, WARMUP_STEPS = 64, 300, 20
LEARNING_RATE, WEIGHT_DECAY, BETAS, CLIP_NORM = 1e-3, 0.05, (0.9, 0.98), 1.0
VOCAB_SIZE, PRESET, SIZE, SEED = 2048, "grr_coca", "tiny", 0


def main() -> None:
    """Train on the pairs that the command line names, and write a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", help="tar shards, a folder or a table of images with captions (docs/training.md)")
    parser.add_argument("out", type=Path, help="folder of the checkpoint to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()

    pairs = open_source(options.pairs)
    checkpoint = make_model(pairs)
    for step, loss in enumerate(train(checkpoint.model, make_batches(pairs, checkpoint, options.steps), options.steps)):
        if step % 10 == 0 or step == options.steps - 1:
            print(f"step {step + 1:4d}   loss {loss:.3f}", flush=True)
    save_checkpoint(replace(checkpoint, step=options.steps), options.out)
    print(options.out)


def make_model(pairs: PairSource) -> Checkpoint:
    """Return a checkpoint of a new model, with a tokenizer trained on the captions of the pairs."""
    tokenizer = train_bpe(caption_texts(pairs), VOCAB_SIZE)
    config = get_preset(PRESET, SIZE)
    config = replace(config, text_decoder=replace(config.text_decoder, vocab_size=tokenizer.vocab_size))
    preprocess = Preprocess(config.image_encoder.image_size)
    return Checkpoint(
        model=build(config, SEED),
        config=config,
        preset=PRESET,
        tokenizer=tokenizer,
        preprocess=preprocess,
        step=0,
    )


def make_batches(pairs: PairSource, checkpoint: Checkpoint, steps: int) -> Iterable[Batch]:
    """Return batches of pairs in random order, epoch after epoch, each padded to its longest caption."""
    context_length = checkpoint.config.text_decoder.context_length
    dataset = PairDataset(pairs, checkpoint.tokenizer, checkpoint.preprocess, context_length, seed=SEED)
    order = TrainingOrder(Shuffle(len(pairs), SEED), GlobalBatches(BATCH_SIZE, steps))
    return make_loader(dataset, order, num_workers=0)


def train(model: CoCa, batches: Iterable[Batch], steps: int) -> Iterable[float]:
    """Train the model, and yield the loss of each step before its update."""
    model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=LEARNING_RATE, betas=BETAS)
    for step, batch in enumerate(batches):
        loss = batch_loss(model, batch).total
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        model.clamp_logit_scale()
        yield loss.item()


def parameter_groups(model: CoCa) -> list[dict]:
    """Return two groups: the matrices of linear layers, with weight decay, and all other parameters, without."""
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    decayed = [parameter for parameter in model.parameters() if id(parameter) in matrices]
    others = [parameter for parameter in model.parameters() if id(parameter) not in matrices]
    return [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]


def learning_rate(step: int, steps: int) -> float:
    """Return the rate of a step, counted from 0: linear warm-up, then a cosine that ends at 0 at the last step."""
    if step < WARMUP_STEPS:
        return LEARNING_RATE * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, steps - 1 - WARMUP_STEPS)
    return LEARNING_RATE * (1 + math.cos(math.pi * progress)) / 2


if __name__ == "__main__":
    main()
