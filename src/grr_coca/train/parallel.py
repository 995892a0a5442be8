"""A model on several ranks: a copy on each rank (DDP), or its weights sharded over the ranks (FSDP2).

This module also has functions for tensors that may be sharded (DTensor).
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from grr_coca.common.ranks import Ranks
from grr_coca.model.coca import CoCa
from grr_coca.train.recipe import Parallelism

T = TypeVar("T")


def unshard(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor from all ranks, which must all call this.

    A tensor that is not sharded is returned unchanged.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(example: Tensor, tensor: Tensor) -> Tensor:
    """Shard a tensor like an example, on the example's device. Every rank must have the full tensor.

    The tensor stays unsharded if the example is not sharded or has another shape. This is the case for the number of
    updates in an optimizer's state, which is stored next to the moments of a sharded parameter.
    """
    if not isinstance(example, DTensor) or tensor.shape != example.shape:
        return tensor
    return distribute_tensor(tensor.to(example.device), example.device_mesh, example.placements, src_data_rank=None)


def split_by_sharding(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Split tensors into sharded and unsharded ones. Empty lists are omitted.

    PyTorch's operations on lists of tensors do not accept mixed lists. FSDP2 does not shard scalars, so a sharded model
    has both kinds.
    """
    tensors = list(tensors)
    kinds = ([t for t in tensors if isinstance(t, DTensor) is is_sharded] for is_sharded in (True, False))
    return [kind for kind in kinds if kind]


class TrainedCoCa(nn.Module):
    """Wrapper of a CoCa whose forward pass calls a function of the model, such as its loss.

    DDP requires that the function use all parameters.
    """

    def __init__(self, model: CoCa) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[CoCa], T]) -> T:
        """Call the function with the model as its argument."""
        return function(self.model)


class ParallelModel:
    """Model that is trained on all ranks. `raw` is the model without a wrapper. Weights are saved under its parameter
    names.

    Both wrappers (DDP and FSDP) average gradients over the ranks. To get the sum, the caller multiplies the loss by the
    number of ranks before `backward`. Neither wrapper exchanges the gradients of scalars such as the temperature, which
    FSDP cannot shard, so call `average_scalar_gradients` after `backward`.
    """

    def __init__(self, raw: CoCa, parallelism: Parallelism, ranks: Ranks) -> None:
        self.raw = raw
        self.ranks = ranks
        trained = TrainedCoCa(raw)
        self._forward: TrainedCoCa | DistributedDataParallel = trained
        if ranks.size > 1 and parallelism == "fsdp":
            _shard(raw, ranks)
        elif ranks.size > 1:
            self._forward = _replicate(trained)

    def __call__(self, function: Callable[[CoCa], T]) -> T:
        """Return the result of a function of the model, such as its loss. The function must use all parameters."""
        return self._forward(function)

    def average_scalar_gradients(self) -> None:
        """Average the gradients of scalar parameters over the ranks, as the wrappers do for all other parameters."""
        for scalar in scalar_parameters(self.raw):
            if scalar.grad is not None:
                self.ranks.sum(scalar.grad).div_(self.ranks.size)

    def discard_gathered_weights(self) -> None:
        """Make the next pass gather the weights again. Call this after code other than an optimizer has changed the
        weights.

        FSDP's root stays gathered after a forward pass without a backward pass, and would use its old weights in the
        next pass.
        """
        if isinstance(self.raw, FSDPModule):
            self.raw.reshard()

    @contextmanager
    def exchange(self, gradients: bool) -> Iterator[None]:
        """Set, within a context, whether backward passes exchange gradients between ranks.

        FSDP always exchanges them, because otherwise each rank would store the gradients of the whole model until the
        last micro-batch.
        """
        if isinstance(self._forward, DistributedDataParallel) and not gradients:
            with self._forward.no_sync():
                yield
            return
        yield


def scalar_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters without dimensions: the temperature and, if there is one, the bias of the sigmoid loss."""
    return [parameter for parameter in model.parameters() if parameter.ndim == 0]


def _replicate(trained: TrainedCoCa) -> DistributedDataParallel:
    # DDP's constructor takes over all parameters that require gradients, so scalars must not require them at that time.
    scalars = [scalar for scalar in scalar_parameters(trained) if scalar.requires_grad]
    for scalar in scalars:
        scalar.requires_grad_(False)
    with warnings.catch_warnings():
        # torch 2.13 has a new name for `broadcast_buffers`, which torch 2.10 does not have.
        warnings.simplefilter("ignore", FutureWarning)
        # Every rank builds or loads the same weights and tables, so nothing needs to be broadcast.
        replicated = DistributedDataParallel(
            trained, init_sync=False, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    for scalar in scalars:
        scalar.requires_grad_(True)
    return replicated


def _shard(model: CoCa, ranks: Ranks) -> None:
    """Shard the model in place. Each block is a unit that is gathered when it is needed.

    All other parts of the model form one unit, the root. It is gathered at the start of the forward pass, and stays
    gathered until the end of the backward pass, because the losses read the head's weight between the two.
    """
    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    for stack in model.stacks:
        for block in stack.blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=set(scalar_parameters(model)))
    register_fsdp_forward_method(model, "encode_image")
    register_fsdp_forward_method(model, "encode_text")
