"""The temperature that suits embeddings best, fitted when training is over.

A model with a better temperature has a lower contrastive loss, and need not have better embeddings. With the
temperature of each model fitted on the same validation split, what is left is a difference of the embeddings.
"""

from dataclasses import replace

import torch
from torch import Tensor

from grr_coca.evaluate.split import Embeddings, Scaling, batch_contrastive_losses
from grr_coca.model.coca import MAX_LOGIT_SCALE

MAX_ITERATIONS = 100


def refit_scaling(embeddings: Embeddings, scaling: Scaling, batch_size: int) -> Scaling:
    """The scale, and with a sigmoid loss the bias, of the lowest contrastive loss on a split.

    The loss is convex in the inverse temperature, and in the bias, so there is one lowest point. The temperature stays
    within the bound that training has.

    Args:
        embeddings: of a validation split.
        scaling: where to begin; the model's own.
        batch_size: pairs per contrastive batch.
    """
    in_double = replace(embeddings, image=embeddings.image.double(), text=embeddings.text.double())
    scale = scaling.logit_scale.double().clone()
    bias = None if scaling.logit_bias is None else scaling.logit_bias.double().clone()
    _fit(in_double, Scaling(scale, bias), [scale] if bias is None else [scale, bias], batch_size)
    bounded = scale.clamp(0.0, MAX_LOGIT_SCALE)
    if bias is not None and bounded != scale:  # the bias suits the scale that it was found with, and no other
        _fit(in_double, Scaling(bounded, bias), [bias], batch_size)
    dtype = scaling.logit_scale.dtype
    return Scaling(bounded.to(dtype), None if bias is None else bias.to(dtype))


def _fit(embeddings: Embeddings, scaling: Scaling, free: list[Tensor], batch_size: int) -> None:
    """Move the free numbers of a scaling, in place, to where the loss is lowest."""
    optimizer = torch.optim.LBFGS(
        free, max_iter=MAX_ITERATIONS, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = torch.stack(list(batch_contrastive_losses(embeddings, scaling, batch_size))).mean()
        total.backward()
        return total

    for number in free:
        number.requires_grad_()
    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[arg-type]
    for number in free:
        number.requires_grad_(False)
