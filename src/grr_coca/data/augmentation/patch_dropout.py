"""Patch dropout (FLIP, arXiv 2212.00794): a share of each image's patches is left out in training.

The choice is made when the data is read, and travels with the batch. So a batch that is run twice drops the same
patches both times. Workers, ranks and a resumed run make no difference either.
"""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def num_kept(num_patches: int, share: float) -> int:
    """How many patches are kept if `share` of them is dropped: at least one."""
    return max(1, num_patches - round(share * num_patches))


def kept_patches(num_patches: int, share: float, rng: np.random.Generator) -> Int[Tensor, " K"]:
    """The numbers of the patches that are kept if `share` of them is dropped, in ascending order."""
    return torch.from_numpy(np.sort(rng.permutation(num_patches)[: num_kept(num_patches, share)]))
