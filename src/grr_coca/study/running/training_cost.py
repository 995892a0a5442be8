"""What a run of training costs, counted and not timed: so it is the same on every machine."""

from statistics import mean

import torch

from grr_coca.checkpoint import Checkpoint
from grr_coca.data.patch_dropout import num_kept
from grr_coca.data.sources.pairs import PairSource
from grr_coca.study.forecast import training_flops
from grr_coca.train.recipe import Recipe


def run_flops(recipe: Recipe, trained: Checkpoint, val: PairSource) -> int:
    """FLOPs of all steps of a run, over the patches that patch dropout keeps, and captions of the average length of the
    validation split's."""
    kept = torch.arange(num_kept(trained.config.image_encoder.num_patches, recipe.data.patch_dropout))
    step = training_flops(trained.config, recipe.data.batch_size, _caption_length(trained, val), kept)
    return recipe.schedule.steps * step


def _caption_length(trained: Checkpoint, val: PairSource) -> int:
    context = trained.config.text_decoder.context_length
    return round(mean(len(trained.tokenizer.encode_row(val.caption(i), context)) for i in range(len(val))))
