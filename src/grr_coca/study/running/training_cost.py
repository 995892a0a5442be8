"""What a run of training costs, counted and not timed: so it is the same on every machine."""

from statistics import mean

import torch

from grr_coca.checkpoint import Checkpoint
from grr_coca.config import CoCaConfig
from grr_coca.data.augmentation.patch_dropout import num_kept
from grr_coca.data.sources.pairs import PairSource
from grr_coca.study.forecast import training_flops
from grr_coca.train.recipe import Recipe


def run_flops(recipe: Recipe, trained: Checkpoint, val: PairSource) -> int:
    """FLOPs of all steps of a run, over the patches that patch dropout keeps, and captions of the average length of the
    validation split's. Nothing is taken off for frozen parts, or added for what is computed again to save memory."""
    return recipe.schedule.steps * step_flops(recipe, trained.config, caption_length(trained, val))


def step_flops(recipe: Recipe, config: CoCaConfig, text_length: int) -> int:
    """FLOPs of one step of a run.

    Args:
        recipe: for the size of the batch and the share of patches that are dropped.
        config: the model.
        text_length: tokens of each caption.
    """
    kept = torch.arange(num_kept(config.image_encoder.num_patches, recipe.data.patch_dropout))
    return training_flops(config, recipe.data.batch_size, text_length, kept)


def caption_length(checkpoint: Checkpoint, source: PairSource) -> int:
    """Tokens of a caption on average, [BOS], [EOS] and [CLS] included."""
    context, encode = checkpoint.config.text_decoder.context_length, checkpoint.tokenizer.encode_row
    return round(mean(len(encode(source.caption(i), context)) for i in range(len(source))))
