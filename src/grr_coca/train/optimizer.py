"""Optimizers: trainable parameters, update rules, learning rates, and the running average of the weights."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from grr_coca.common.errors import UserError, suggest_name
from grr_coca.common.torch_private import lerp_each, scale_each
from grr_coca.model.attention import at_least_fp32
from grr_coca.model.coca import CoCa
from grr_coca.train.muon import Muon
from grr_coca.train.parallel import split_by_sharding, unshard
from grr_coca.train.recipe import FrozenPart, OptimizerRecipe, ScheduleRecipe

FROZEN_MODULES: dict[FrozenPart, tuple[str, ...]] = {
    # The poolers are also frozen, because training them would change the image embeddings.
    "image_encoder": ("image_encoder", "feature_encoder", "captioning_pooler", "contrastive_pooler", "image_proj"),
    # CoCa's frozen-feature protocol (section 4.2.1): the backbone is frozen, and the poolers are trained.
    "image_backbone": ("image_encoder",),
    "text_decoder": ("text_decoder", "text_proj"),
    "multimodal_decoder": ("multimodal_decoder",),
}


def freeze(model: CoCa, parts: Sequence[FrozenPart], learning_rates: Mapping[str, float] | None = None) -> None:
    """Freeze the named parts of a model, and parts whose learning rate is 0, in place.

    Args:
        model: Model to change.
        parts: Names of parts; see `FROZEN_MODULES`.
        learning_rates: Peak learning rates by prefix of the parameter names; see `peak_rates`.

    Raises:
        UserError: If no trainable part remains, the model does not have one of the parts, or a learning rate applies to
            no parameter, or only to frozen parameters.
    """
    for part in parts:
        modules = [module for name, module in model.named_children() if name in FROZEN_MODULES[part]]
        if not modules:
            raise UserError(
                f"freeze: {part}: this model takes features of a frozen encoder instead; remove this part from freeze"
            )
        for module in modules:
            module.requires_grad_(False)
    own = learning_rates or {}
    rates = peak_rates(model, own, default=math.nan)
    for beginning, rate in own.items():
        if rate and not any(_begins_with(name, beginning) and p.requires_grad for name, p in model.named_parameters()):
            raise UserError(
                f"optimizer: learning_rates: {beginning} is frozen by freeze: {', '.join(parts)}; remove one of the two"
            )
    for name, parameter in model.named_parameters():
        if rates[name] == 0:
            parameter.requires_grad_(False)
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not learns - {"logit_scale", "logit_bias"}:
        frozen = [*parts, *(beginning for beginning, rate in own.items() if not rate)]
        raise UserError(f"freeze {', '.join(frozen)}: no trainable part remains; freeze fewer parts")


def peak_rates(model: nn.Module, learning_rates: Mapping[str, float], default: float) -> dict[str, float]:
    """Return the peak learning rate of each parameter, by parameter name.

    Among the prefixes in `learning_rates` that match a name, the longest determines the rate.

    Args:
        model: The model.
        learning_rates: Value of the recipe key `learning_rates`: rates by prefix.
        default: Rate of all other parameters.

    Raises:
        UserError: If no parameter has a given prefix. The message suggests the most similar prefix that exists.
    """
    names = [name for name, _ in model.named_parameters()]
    for part in learning_rates:
        if not any(_begins_with(name, part) for name in names):
            raise UserError(
                f"optimizer: learning_rates: the model has no parameters '{part}'; "
                f"{suggest_name(part, _name_prefixes(names))}"
            )
    parts = sorted(learning_rates, key=len, reverse=True)
    return {name: next((learning_rates[part] for part in parts if _begins_with(name, part)), default) for name in names}


def _begins_with(name: str, part: str) -> bool:
    """Return whether a parameter belongs to a part of the model.

    For example, `blocks.1.norm` belongs to `blocks.1`, but `blocks.10` does not.
    """
    return f"{name}.".startswith(f"{part}.")


def _name_prefixes(names: Sequence[str]) -> set[str]:
    """Return all prefixes of the parameter names, including the names themselves."""
    split = [name.split(".") for name in names]
    return {".".join(words[: end + 1]) for words in split for end in range(len(words))}


class Optimizers:
    """One or two torch optimizers that step together with one learning-rate schedule.

    Attributes:
        optimizers: The torch optimizers, for saving and loading their state. Every parameter group has a `peak_lr` and
            an `lr_scale`, which is the factor of layer-wise decay for its learning rate.
    """

    def __init__(self, model: CoCa, optimizer: OptimizerRecipe, schedule: ScheduleRecipe) -> None:
        self.optimizers = _build_optimizers(model, optimizer)
        self._peak_lr = optimizer.lr
        self._schedule = schedule
        self._clip_norm = optimizer.clip_norm
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0, before layer-wise decay.

        This rate applies to all parts without a separate learning rate.
        """
        return self._peak_lr * lr_factor(step, self._schedule)

    def gradient_norm(self) -> Tensor:
        """Return the norm of the gradients over all shards, as a tensor on their device.

        This method does not synchronize with the device.
        """
        kinds = split_by_sharding(self._parameters)
        norms = [unshard(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds]
        return norms[0] if len(norms) == 1 else torch.stack(norms).norm()

    def clip(self, norm: Tensor, value: float) -> None:
        """Clip the gradients, in place, to the maximum norm in the recipe.

        Args:
            norm: Result of `gradient_norm`.
            value: The same norm as a Python number.
        """
        if value > self._clip_norm:  # otherwise, a pass over all gradients would only multiply by 1
            for kind in split_by_sharding(self._parameters):
                nn.utils.clip_grads_with_norm_(kind, self._clip_norm, norm)

    def divide_gradients(self, divisor: float) -> None:
        """Divide all gradients by a number, in place."""
        for gradients in split_by_sharding(p.grad for p in self._parameters if p.grad is not None):
            scale_each(gradients, 1 / divisor)

    def update(self, step: int) -> None:
        """Update the weights with the gradients, at the learning rate of a step (from 0), and clear the gradients."""
        factor = lr_factor(step, self._schedule)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor * group["lr_scale"]
            optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)


def lr_factor(step: int, schedule: ScheduleRecipe) -> float:
    """Return the learning rate of a step (counted from 0) as a fraction of the peak."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    last, begin = schedule.steps - 1, schedule.warmup_steps
    if schedule.decay_steps is not None:
        begin = max(begin, last - schedule.decay_steps)
    progress = (step - begin) / max(1, last - begin)
    cosine = (1 + math.cos(math.pi * min(1.0, max(0.0, progress)))) / 2
    return schedule.final_lr_ratio + (1 - schedule.final_lr_ratio) * cosine


class ParameterKinds(NamedTuple):
    """Trainable parameters of a model, grouped by update rule.

    Matrices are the weights of linear maps, and have weight decay. All other parameters (embeddings, queries, norms,
    biases and the temperature) have no weight decay. The hidden matrices are all matrices except the head's, and Muon
    updates them. They include the patch embedding and the kernels of a convolutional stem, which are stored as
    matrices. Their inputs are neighbouring pixels, which are so similar that AdamW, with a step of about the same size
    for each weight, would move all of these weights in the same way.
    """

    hidden: list[nn.Parameter]
    other_matrices: list[nn.Parameter]
    rest: list[nn.Parameter]


def parameter_kinds(model: CoCa) -> ParameterKinds:
    """Group the trainable parameters of a model by kind. Each parameter has exactly one kind."""
    head = model.multimodal_decoder.lm_head.weight
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return ParameterKinds(
        hidden=[parameter for parameter in trained if id(parameter) in matrices and parameter is not head],
        other_matrices=[parameter for parameter in trained if parameter is head],
        rest=[parameter for parameter in trained if id(parameter) not in matrices],
    )


def layer_depth(model: CoCa, name: str) -> int:
    """Return the number of layers from a parameter to the nearest head (lm_head, text_proj, image_proj), or 0 for a
    head.

    Each stack is counted separately, from its last block down. Embeddings count as one layer below the first block. The
    poolers are one layer above the image encoder. A final norm belongs to the layer after it.
    """
    part, _, inner = name.partition(".")
    if part in ("captioning_pooler", "contrastive_pooler"):
        return 1
    if part not in ("image_encoder", "feature_encoder", "text_decoder", "multimodal_decoder"):
        return 0
    above = 1 if part.endswith("_encoder") else 0
    if inner.startswith(("norm.", "cls_norm.", "lm_head.")):
        return above
    num_blocks = len(model.get_submodule(part).blocks)  # type: ignore[arg-type]
    block = int(inner.split(".")[1]) if inner.startswith("blocks.") else -1
    return above + num_blocks - block


def _build_optimizers(model: CoCa, recipe: OptimizerRecipe) -> list[Optimizer]:
    kinds = parameter_kinds(model)
    by_muon = kinds.hidden if recipe.name == "muon" else []
    peaks = peak_rates(model, recipe.learning_rates, recipe.lr)
    rates = {
        parameter: _Rate(peaks[name], recipe.layer_decay ** layer_depth(model, name))
        for name, parameter in model.named_parameters()
    }
    decayed = [*(kinds.hidden if recipe.name == "adamw" else []), *kinds.other_matrices]
    by_adamw = _groups(decayed, rates, recipe.weight_decay) + _groups(kinds.rest, rates, 0.0)
    # `fused` makes one pass over weights, gradients and state instead of a dozen passes.
    optimizers: list[Optimizer] = [AdamW(by_adamw, lr=recipe.lr, betas=recipe.betas, fused=True)]
    if by_muon:
        assert recipe.muon_precision != "auto", "`resolve_precision` has replaced it"
        groups = _groups(by_muon, rates, recipe.weight_decay)
        optimizers.append(Muon(groups, lr=recipe.lr, precision=recipe.muon_precision))
    return optimizers


class _Rate(NamedTuple):
    """Learning rate of a parameter: its peak, and the factor of layer-wise decay."""

    peak_lr: float
    lr_scale: float


def _groups(parameters: list[nn.Parameter], rates: dict[nn.Parameter, _Rate], weight_decay: float) -> list[dict]:
    """Return parameter groups for torch's optimizers, one per learning rate."""
    by_rate = {rate: [p for p in parameters if rates[p] == rate] for rate in sorted(set(rates.values()))}
    return [
        {"params": kind, **rate._asdict(), "weight_decay": weight_decay}
        for rate, group in by_rate.items()
        for kind in split_by_sharding(group)
    ]


NUM_UPDATES = "num_updates"


class Ema:
    """Exponential moving average of a model's trainable parameters, in fp32 or better.

    A model with the averaged weights is often better than with the current weights, especially while the learning rate
    is high. After each step, average ← d · average + (1 - d) · weights. For update n, counted from 0, d = min(decay, (1
    + n) / (10 + n)). Because d is small at first, the random initial weights soon vanish from the average. Parameters
    may be sharded (DTensor).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._num_updates = 0
        self._weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._average = {name: at_least_fp32(weight.detach()).clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights to the average. Call this once after every step of the optimizer."""
        decay = min(self._decay, (1 + self._num_updates) / (10 + self._num_updates))
        weights = (at_least_fp32(weight.detach()) for weight in self._weights.values())
        for average, weight in zip(split_by_sharding(self._average.values()), split_by_sharding(weights), strict=True):
            lerp_each(average, weight, 1 - decay)
        self._num_updates += 1

    def set(self, name: str, value: Tensor) -> None:
        """Replace the average of the parameter with the given name."""
        self._average[name].copy_(value)

    def apply(self) -> None:
        """Replace the model's weights by their average, permanently."""
        self._copy(self._average, self._weights)

    @contextmanager
    def use_average(self) -> Iterator[None]:
        """Replace the weights by their average within the context.

        Afterwards, even after an exception, the weights are restored bit for bit.
        """
        own = {name: weight.detach().clone() for name, weight in self._weights.items()}
        try:
            self.apply()
            yield
        finally:
            self._copy(own, self._weights)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average by parameter name, and the number of updates. All values are tensors."""
        return {**self._average, NUM_UPDATES: torch.tensor(self._num_updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state_dict` of the same model.

        Raises:
            ValueError: If the state and the model have different parameters. The message names the first difference.
        """
        differing = sorted(state.keys() ^ {*self._average, NUM_UPDATES})
        if differing:
            raise ValueError(f"the state does not match the model: parameter {differing[0]} is in only one of them")
        self._copy(state, self._average)
        self._num_updates = int(state[NUM_UPDATES])

    @staticmethod
    @torch.no_grad()
    def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
        for name, tensor in target.items():
            tensor.copy_(source[name])
