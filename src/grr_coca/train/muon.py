"""Muon optimizer: momentum with orthogonalized updates of matrices (Jordan, kellerjordan.github.io/posts/muon, 2024).

This optimizer works like `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, except that the precision of the
orthogonalization is an argument. PyTorch always uses bf16. On a CPU without bf16 instructions, products in bf16 take
eighteen times as long as in fp32.

Shapes: R rows and C columns of a matrix; N matrices of the same shape.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from grr_coca.train.parallel import shard_like, unshard
from grr_coca.train.recipe import MuonPrecision

DTYPES: dict[MuonPrecision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton-Schulz iteration. After a few steps, singular values are between 0.7 and 1.2."""
EPS = 1e-7
RMS_OF_ADAMW = 0.2
"""Usual root mean square of AdamW's updates, to which Muon's updates are scaled (Liu et al., arXiv 2502.16982, section
2.2)."""


class Muon(Optimizer):
    """Muon optimizer for matrices. Each parameter group can set `lr` and `weight_decay`. Weight decay is decoupled.

    A sharded matrix (DTensor) is gathered, orthogonalized completely on every rank, and sharded again, so the result of
    a step does not depend on the number of ranks.

    Args:
        params: Matrices, or parameter groups of matrices.
        lr: Learning rate of groups that set none.
        precision: Precision of the orthogonalization.
        momentum: Decay rate of the running mean of gradients.
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict], *, lr: float, precision: MuonPrecision, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0})
        self._dtype = DTYPES[precision]
        self._momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every matrix that has a gradient, and return the result of `closure`, or None if it is not given."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            for alike in _by_shape(matrices):
                updates = orthogonalize_all([self._momentum_update(matrix) for matrix in alike], self._dtype)
                for matrix, update in zip(alike, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(update, alpha=-group["lr"] * RMS_OF_ADAMW * math.sqrt(max(matrix.shape)))
        return loss

    def _momentum_update(self, matrix: Tensor) -> Tensor:
        """Apply Nesterov momentum, which moves the gradient towards the running mean of all gradients."""
        state, gradient = self.state[matrix], matrix.grad
        assert gradient is not None, "matrices without a gradient are skipped"
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - self._momentum)
        return gradient.lerp(mean, self._momentum)


def orthogonalize_all(matrices: Sequence[Float[Tensor, "R C"]], dtype: torch.dtype) -> list[Float[Tensor, "R C"]]:
    """Orthogonalize matrices of equal shape, which may be sharded."""
    gathered = [unshard(matrix) for matrix in matrices]
    done: Iterable[Tensor]
    if gathered[0].device.type == "cpu":
        done = [orthogonalize(matrix, dtype) for matrix in gathered]  # a batched product takes 1.2 to 1.4 times as long
    else:
        done = orthogonalize(torch.stack(gathered), dtype)  # one kernel launch for all matrices
    return [shard_like(matrix, result) for matrix, result in zip(matrices, done, strict=True)]


def orthogonalize(matrix: Float[Tensor, "*N R C"], dtype: torch.dtype) -> Float[Tensor, "*N R C"]:
    """Approximate the nearest semi-orthogonal matrix by Newton-Schulz iterations in `dtype`."""
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x = (matrix.mT if is_tall else matrix).to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)  # ensures that no singular value is above 1
    for _ in range(ITERATIONS):
        x = newton_schulz_step(x)
    return x.mT if is_tall else x


def newton_schulz_step(x: Float[Tensor, "*N R C"]) -> Float[Tensor, "*N R C"]:
    """Run a Newton-Schulz iteration, which moves all singular values closer to 1.

    The input must have R ≤ C and no singular value above 1.
    """
    a, b, c = COEFFICIENTS
    add_product = torch.addmm if x.ndim == 2 else torch.baddbmm
    gram = x @ x.mT
    polynomial = add_product(gram, gram, gram, beta=b, alpha=c)
    return add_product(x, polynomial, x, beta=a)


def _by_shape(matrices: Iterable[Tensor]) -> list[list[Tensor]]:
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for matrix in matrices:
        by_shape.setdefault(matrix.shape, []).append(matrix)
    return list(by_shape.values())
