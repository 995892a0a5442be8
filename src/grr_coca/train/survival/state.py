"""Weights and optimizer state as whole tensors by name, as a checkpoint holds them.

A checkpoint does not depend on the number of ranks that wrote it, or on whether they sharded the model. Every tensor in
it is whole, under the name of its parameter. So a model must fit into the memory of one machine.
"""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from grr_coca.ranks import Ranks
from grr_coca.train.step.sharding import shard_like, whole


def whole_tensors(named: Iterable[tuple[str, Tensor]], ranks: Ranks) -> dict[str, Tensor]:
    """Whole copies of tensors, on the CPU of the first rank. Other ranks get nothing, but all ranks must call this."""
    copies = {}
    for name, tensor in named:
        gathered = whole(tensor)
        if ranks.is_first:
            copies[name] = gathered.detach().to("cpu", copy=True).contiguous()
    return copies


def optimizer_tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[tuple[str, Tensor]]:
    """The state of the optimizers as `PARAMETER.STATE`, such as `text_proj.weight.exp_avg`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return [
        (f"{names[parameter]}.{key}", value)
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    ]


def lay_out(tensors: Mapping[str, Tensor], examples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shard whole tensors like the examples of the same names."""
    return {name: shard_like(examples[name], tensor) for name, tensor in tensors.items()}


def load_optimizers(model: nn.Module, optimizers: Sequence[Optimizer], tensors: dict[str, Tensor]) -> None:
    """Load into the optimizers a state of whole tensors with the names of `optimizer_tensors`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter_name, _, key = name.rpartition(".")
        by_parameter.setdefault(parameter_name, {})[key] = tensor
    for optimizer in optimizers:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = {
            i: {key: shard_like(parameter, tensor) for key, tensor in by_parameter[names[parameter]].items()}
            for i, parameter in enumerate(parameters)
            if names[parameter] in by_parameter
        }
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
