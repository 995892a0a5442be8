"""What a run of training costs, counted and not timed: so it is the same on every machine."""

import torch
from jaxtyping import Int
from torch import Tensor

from grr_coca.checkpoint import Checkpoint
from grr_coca.config import CoCaConfig
from grr_coca.data.augmentation.patch_dropout import num_kept
from grr_coca.data.sources.pairs import PairSource
from grr_coca.study.anatomy import flops_of_pairs
from grr_coca.study.forecast import TRAINING_PASSES
from grr_coca.train.recipe import Recipe

MOST_CAPTIONS = 10_000
"""So many say how long captions are; a plan without a validation split looks at the training pairs, which may be
millions."""


def run_flops(recipe: Recipe, trained: Checkpoint, val: PairSource) -> int:
    """FLOPs of all steps of a run, over the patches that patch dropout keeps, and captions as long as the validation
    split's. Nothing is taken off for frozen parts, or added for what is computed again to save memory."""
    return recipe.schedule.steps * step_flops(recipe, trained.config, caption_lengths(trained, val))


def step_flops(recipe: Recipe, config: CoCaConfig, lengths: Int[Tensor, " N"]) -> int:
    """FLOPs of one step of a run.

    Args:
        recipe: for the size of the batch and the share of patches that are dropped.
        config: the model.
        lengths: tokens of N captions, like which those of the step are.
    """
    kept = torch.arange(num_kept(config.image_encoder.num_patches, recipe.data.patch_dropout))
    per_pair = flops_of_pairs(config, lengths, kept) / len(lengths)
    return round(TRAINING_PASSES * recipe.data.batch_size * per_pair)


def caption_lengths(checkpoint: Checkpoint, source: PairSource) -> Int[Tensor, " N"]:
    """Tokens of each of a split's captions, [BOS], [EOS] and [CLS] included: of all of them, or of N that lie evenly in
    a large split."""
    context, encode = checkpoint.config.text_decoder.context_length, checkpoint.tokenizer.encode_row
    chosen = range(0, len(source), -(-len(source) // MOST_CAPTIONS))
    return torch.tensor([len(encode(source.caption(i), context)) for i in chosen])
