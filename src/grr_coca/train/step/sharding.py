"""Tensors that FSDP2 shards over the ranks (DTensor), and whole ones beside them."""

from collections.abc import Iterable

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor gathered from all ranks, which must all call this. One that is not sharded is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(example: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, which every rank has, sharded like the example and on its device.

    It stays whole if the example is, or has another shape. So the number of updates in an optimizer's state stays whole
    beside the moments of a sharded parameter.
    """
    if not isinstance(example, DTensor) or tensor.shape != example.shape:
        return tensor
    return distribute_tensor(tensor.to(example.device), example.device_mesh, example.placements, src_data_rank=None)


def by_kind(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """The tensors in up to two lists: sharded ones and whole ones. An empty list is left out.

    No operation on many tensors takes both kinds together. FSDP2 does not shard scalars, so a sharded model has both.
    """
    tensors = list(tensors)
    kinds = ([t for t in tensors if isinstance(t, DTensor) is is_sharded] for is_sharded in (True, False))
    return [kind for kind in kinds if kind]
