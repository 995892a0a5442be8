"""Evaluation of a checkpoint on a source of pairs."""

from grr_coca.checkpoint import Checkpoint
from grr_coca.data.dataset import PairDataset, make_loader
from grr_coca.data.order import EvaluationOrder
from grr_coca.data.pairs import PairSource
from grr_coca.errors import UserError
from grr_coca.evaluate.split import Evaluation, evaluate_split


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    source: PairSource,
    batch_size: int,
    contrastive_weight: float,
    captioning_weight: float,
) -> Evaluation:
    """Losses and retrieval on a split, seen through the checkpoint's own tokenizer and preprocessing.

    Args:
        checkpoint: the model; its training mode is left as it was.
        source: the split.
        batch_size: pairs per contrastive batch; the contrastive loss depends on it.
        contrastive_weight: weight in `coca_loss`.
        captioning_weight: weight in `coca_loss`.

    Raises:
        UserError: a pair is broken, or the split has fewer pairs than `batch_size`.
    """
    require_pairs(source, batch_size)
    dataset = as_dataset(checkpoint, source)
    loader = make_loader(dataset, EvaluationOrder(len(dataset), batch_size), num_workers=0)
    return evaluate_split(checkpoint.model, loader, batch_size, contrastive_weight, captioning_weight)


def as_dataset(checkpoint: Checkpoint, source: PairSource) -> PairDataset:
    """The pairs as the checkpoint's model takes them, without augmentation."""
    context_length = checkpoint.config.text_decoder.context_length
    return PairDataset(source, checkpoint.tokenizer, checkpoint.preprocess, context_length)


def require_pairs(source: PairSource, batch_size: int) -> None:
    """Make sure that a split fills one contrastive batch.

    Raises:
        UserError: it does not.
    """
    if batch_size < 1:
        raise UserError(f"evaluation batch size {batch_size}: give 1 or more")
    if len(source) < batch_size:
        where = f"{source.name(0)} and the pairs beside it" if len(source) else "an empty split"
        raise UserError(
            f"{where}: a contrastive loss at batch size {batch_size} needs as many pairs, here are {len(source)}; "
            f"use a batch size (in a recipe evaluation: batch_size) of {len(source)} or less"
        )
