"""Our side of the training benchmarks: recipe, model and batches."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grr_coca.data.batch import Batch, pad_rows
from grr_coca.data.dataset import next_token_labels
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.tokenizer import CLS_SLOT, clip_bpe
from grr_coca.model.build import build
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.model.config import CoCaConfig
from grr_coca.model.presets import get_preset
from grr_coca.train.recipe import DataRecipe, ModelRecipe, Recipe, ScheduleRecipe, TokenizerRecipe

CONTEXT = 77
"""open_clip puts its [CLS] behind 76 tokens; our context counts ours, so 77 holds the same captions."""


SMALLEST = {"width": 64, "depth": 1, "image_size": 64}
"""See `sized`: a model for the smallest form of a benchmark."""


def training_recipe(precision: str, compiled: bool, gradient_checkpointing: float) -> Recipe:
    """`b32` with CLIP's vocabulary and AdamW."""
    return Recipe(
        data=DataRecipe(train="random"),
        schedule=ScheduleRecipe(steps=1000, warmup_steps=100),
        model=ModelRecipe("grr_coca", "b32", context_length=CONTEXT),
        tokenizer=TokenizerRecipe("clip"),
        precision=precision,  # type: ignore[arg-type]
        compile=compiled,
        gradient_checkpointing=gradient_checkpointing,
    )


def fresh_checkpoint(recipe: Recipe, size: dict[str, Any] | None) -> Checkpoint:
    """A model of the recipe's size, or of `size` (see `sized`)."""
    assert recipe.model is not None
    tokenizer = clip_bpe()
    config = recipe.model.config(tokenizer.vocab_size) if size is None else sized(**size)
    preprocess = Preprocess(config.image_encoder.image_size)
    return Checkpoint(
        model=build(config),
        config=config,
        preset=recipe.model.preset,
        tokenizer=tokenizer,
        preprocess=preprocess,
        step=0,
    )


def sized(width: int, depth: int, image_size: int) -> CoCaConfig:
    """GRR-CoCa with one width and one depth for all of its stacks, heads of 64 channels, and 64 queries."""
    config = get_preset("grr_coca", "base")
    image, text, multimodal = config.image_encoder, config.text_decoder, config.multimodal_decoder
    # 8/3 of the width, as GEGLU has it for matched parameters: equal proportions at every width.
    shape = {"num_layers": depth, "embed_dim": width, "num_heads": width // 64, "hidden_dim": width * 8 // 3}
    return replace(
        config,
        embed_dim=width,
        image_encoder=replace(
            image,
            image_size=image_size,
            patch_size=32,
            transformer=replace(image.transformer, **shape),
        ),
        text_decoder=replace(
            text,
            vocab_size=8192,
            context_length=CONTEXT,
            transformer=replace(text.transformer, **shape),
        ),
        multimodal_decoder=replace(multimodal, transformer=replace(multimodal.transformer, **shape)),
        poolers=replace(config.poolers, num_queries=64, num_heads=width // 64),
    )


def batch_of(images: Tensor, captions: list[list[int]]) -> Batch:
    """Rows `[BOS] words [EOS]` and their images; every pair says something else."""
    token_ids, lengths = pad_rows([[*row, CLS_SLOT] for row in captions])
    numbers = torch.arange(len(captions))
    return Batch(
        images=images,
        token_ids=token_ids,
        lengths=lengths,
        labels=next_token_labels(token_ids, lengths),
        caption_ids=numbers,
        image_ids=numbers,
        keys=tuple(map(str, range(len(captions)))),
    )
