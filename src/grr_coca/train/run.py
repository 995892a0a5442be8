"""A run: from a recipe to a checkpoint. Pretraining and fine-tuning differ in where the model comes from."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from grr_coca.checkpoint import Checkpoint, save_checkpoint
from grr_coca.data.dataset import PairDataset, clean_caption, make_loader
from grr_coca.data.order import TrainingOrder
from grr_coca.data.pairs import PairSource, Subset
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources import open_source
from grr_coca.data.tokenizer import Tokenizer, clip_bpe, train_bpe
from grr_coca.errors import UserError
from grr_coca.evaluate.checkpoint import evaluate_checkpoint, require_pairs
from grr_coca.evaluate.split import Evaluation
from grr_coca.model import build
from grr_coca.structure import differences
from grr_coca.train.logs import MetricLog, Window
from grr_coca.train.optimizer import Optimizers, freeze
from grr_coca.train.recipe import Recipe, save_recipe
from grr_coca.train.step import autocast, resolve_precision, train_step

LOG_INTERVAL = 10
"""Steps whose mean makes one line of the log."""

HOLD_OUT_EVERY = 20
"""Where a recipe names no validation split, one pair in so many becomes it."""

OnStep = Callable[[int, dict[str, float]], None]
"""Called after every logged step with the number of steps done and the newest metrics."""


def new_checkpoint(recipe: Recipe) -> Checkpoint:
    """A fresh model with its tokenizer, as a pretraining recipe asks for.

    Raises:
        UserError: the recipe names no model or no tokenizer.
    """
    if recipe.model is None or recipe.tokenizer is None:
        raise UserError("pretraining needs the keys 'model' and 'tokenizer'; this recipe is one for fine-tuning")
    tokenizer = _new_tokenizer(recipe)
    config = recipe.model.config(tokenizer.vocab_size)
    return Checkpoint(
        model=build(config, recipe.seed),
        config=config,
        preset=recipe.model.preset,
        tokenizer=tokenizer,
        preprocess=Preprocess(config.image_encoder.image_size),
        step=0,
    )


def check_start(start: Checkpoint, recipe: Recipe) -> None:
    """Hold a fine-tuning recipe against the checkpoint that it is to start from.

    Raises:
        UserError: the recipe asks for another model, or for another tokenizer.
    """
    if recipe.tokenizer is not None:
        raise UserError("fine-tuning keeps the tokenizer of its checkpoint; remove the key 'tokenizer' from the recipe")
    if recipe.model is None:
        return
    differing = differences(recipe.model.config(start.tokenizer.vocab_size), start.config)
    if differing:
        key, wanted, found = differing[0]
        raise UserError(
            f"the checkpoint holds a '{start.preset}', not the '{recipe.model.preset}' of size '{recipe.model.size}' "
            f"that the recipe asks for: {key} is {found}, not {wanted}; remove the key 'model' from the recipe to "
            "take what the checkpoint holds"
        )


def train(recipe: Recipe, start: Checkpoint, out: Path, device: torch.device, on_step: OnStep) -> Checkpoint:
    """Train from `start` to the recipe's last step; leaves recipe, log and checkpoint in `out`.

    Raises:
        UserError: data or disk are at fault, or the loss is not a number any more.
    """
    width = start.config.image_encoder.transformer.embed_dim
    recipe = replace(recipe, precision=resolve_precision(recipe.precision, device, width))
    pairs, val = training_sources(recipe)
    if not len(pairs):
        raise UserError(f"{recipe.data.train}: no pair is left to train on; give more pairs, or data: val")
    require_pairs(val, recipe.evaluation.batch_size)
    _open_folder(out, recipe)
    model = start.model.to(device).train()
    freeze(model, recipe.freeze)
    optimizers = Optimizers(model, recipe.optimizer, recipe.schedule)
    precision = autocast(recipe.precision, device)
    steps = recipe.schedule.steps
    window = Window(recipe.data.batch_size)
    with MetricLog(out) as log:
        for done, batch in enumerate(training_loader(recipe, start, pairs), start=1):
            window.add(train_step(model, batch.to(device), optimizers, recipe.losses, precision, done - 1))
            is_due = done % recipe.evaluation.interval == 0 or done == steps
            if is_due or done % LOG_INTERVAL == 0:
                metrics = window.close()
                _require_finite(metrics, done)
                log.write(done, "train", metrics)
                on_step(done, metrics)
            if is_due:
                _save(replace(start, step=start.step + done), out)
                log.write(done, "val", evaluate(start, val, recipe).flat())
    return replace(start, step=start.step + steps)


def training_sources(recipe: Recipe) -> tuple[PairSource, PairSource]:
    """The pairs to train on and those to validate on."""
    pairs = open_source(recipe.data.train)
    if recipe.data.val is not None:
        return pairs, open_source(recipe.data.val)
    held_out = range(0, len(pairs), HOLD_OUT_EVERY)
    kept = [i for i in range(len(pairs)) if i % HOLD_OUT_EVERY]
    return Subset(pairs, kept), Subset(pairs, held_out)


def training_loader(recipe: Recipe, start: Checkpoint, pairs: PairSource) -> torch.utils.data.DataLoader:
    """The batches of a run, in order."""
    dataset = PairDataset(
        pairs,
        start.tokenizer,
        start.preprocess,
        start.config.text_decoder.context_length,
        recipe.data.augmentation,
        recipe.seed,
    )
    order = TrainingOrder(len(dataset), recipe.data.batch_size, recipe.schedule.steps, recipe.seed)
    return make_loader(dataset, order, recipe.data.num_workers)


def evaluate(checkpoint: Checkpoint, source: PairSource, recipe: Recipe) -> Evaluation:
    """Evaluate with a recipe's batch size and loss weights."""
    weights = recipe.losses
    return evaluate_checkpoint(
        checkpoint, source, recipe.evaluation.batch_size, weights.contrastive_weight, weights.captioning_weight
    )


def _new_tokenizer(recipe: Recipe) -> Tokenizer:
    assert recipe.tokenizer is not None
    if recipe.tokenizer.kind == "clip":
        return clip_bpe()
    source, _ = training_sources(recipe)
    captions = (clean_caption(source.caption(i), source.name(i)) for i in range(len(source)))
    return train_bpe(captions, recipe.tokenizer.vocab_size)


def _open_folder(out: Path, recipe: Recipe) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_recipe(recipe, out / "recipe.yaml")
    except OSError as error:
        raise UserError(f"{out}: the run folder cannot be written to ({error.strerror})") from error


def _require_finite(metrics: dict[str, float], step: int) -> None:
    if not math.isfinite(metrics["coca"]):
        raise UserError(f"the loss is not a number at step {step}; lower optimizer: lr, or lengthen the warm-up")


def _save(checkpoint: Checkpoint, out: Path) -> None:
    folder = out / "checkpoints" / f"step-{checkpoint.step:09d}"
    save_checkpoint(checkpoint, folder)
    for older in folder.parent.glob("step-*"):
        if older != folder:
            shutil.rmtree(older)
