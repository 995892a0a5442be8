"""Which parameter is updated how."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from grr_coca.errors import UserError
from grr_coca.model import CoCa
from grr_coca.train.recipe import FrozenPart, OptimizerRecipe, ScheduleRecipe
from grr_coca.train.step.muon import Muon

FROZEN_MODULES: dict[FrozenPart, tuple[str, ...]] = {
    # A frozen image encoder whose poolers still learn is not frozen: its embeddings drift.
    "image_encoder": ("image_encoder", "captioning_pooler", "contrastive_pooler", "image_proj"),
    # CoCa's frozen-feature protocol (section 4.2.1): the backbone stands, the poolers adapt.
    "image_backbone": ("image_encoder",),
    "text_decoder": ("text_decoder", "text_proj"),
    "multimodal_decoder": ("multimodal_decoder",),
}


def freeze(model: CoCa, parts: Sequence[FrozenPart]) -> None:
    """Take the named parts out of training.

    Raises:
        UserError: nothing would be left to train.
    """
    for part in parts:
        for name in FROZEN_MODULES[part]:
            model.get_submodule(name).requires_grad_(False)
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not learns - {"logit_scale", "logit_bias"}:
        raise UserError(f"freeze {', '.join(parts)}: nothing is left to train")


class Optimizers:
    """One or two torch optimizers that step together under one learning-rate schedule.

    `optimizers` are torch's, for their state. Every parameter group holds its `lr_scale`: the share of the learning
    rate that layer-wise decay leaves it.
    """

    def __init__(self, model: CoCa, optimizer: OptimizerRecipe, schedule: ScheduleRecipe) -> None:
        self.optimizers = _build(model, optimizer)
        self._peak_lr = optimizer.lr
        self._schedule = schedule
        self._clip_norm = optimizer.clip_norm
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0, where layer-wise decay leaves all of it."""
        return self._peak_lr * lr_factor(step, self._schedule)

    def clip(self) -> Tensor:
        """Scale the gradients down to the norm of the recipe, taken over all shards where parameters are sharded;
        returns their norm before."""
        kinds = by_kind(self._parameters)
        norms = [nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds]
        norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
        norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
        if norm > self._clip_norm:  # else a pass over all gradients would multiply them by one
            for kind in kinds:
                nn.utils.clip_grads_with_norm_(kind, self._clip_norm, norm)
        return norm

    def update(self, step: int) -> None:
        """Apply the gradients as they are, and clear them."""
        lr = self.learning_rate(step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)


def lr_factor(step: int, schedule: ScheduleRecipe) -> float:
    """Share of the peak learning rate at a step, counted from 0."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, schedule.steps - 1 - schedule.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return schedule.final_lr_ratio + (1 - schedule.final_lr_ratio) * cosine


def parameter_groups(model: CoCa) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters as (hidden matrices, other matrices, the rest).

    Matrices, the weights of linear maps, are decayed; embeddings, queries, norms, biases and the temperature are
    not. The hidden ones are all but the head's: those are Muon's. The patch embedding is among them, because its
    inputs, neighbouring pixels, are so alike that steps of one size for each weight all but repeat each other.
    """
    outer = (model.multimodal_decoder.lm_head,)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hidden = [module.weight for module in linears if module not in outer]
    matrices = [module.weight for module in outer]
    known = {id(weight) for weight in (*hidden, *matrices)}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = ([p for p in group if p.requires_grad] for group in (hidden, matrices, rest))
    return tuple(groups)  # type: ignore[return-value]


def layer_depth(model: CoCa, name: str) -> int:
    """Layers from a parameter to the nearest head (lm_head, text_proj, image_proj), 0 for the heads themselves.

    Each stack is counted by itself from its last block down, what is embedded below its first. The poolers are one
    layer on top of the image encoder. A final norm belongs to what it feeds.
    """
    part, _, inner = name.partition(".")
    if part in ("captioning_pooler", "contrastive_pooler"):
        return 1
    if part not in ("image_encoder", "text_decoder", "multimodal_decoder"):
        return 0
    above = 1 if part == "image_encoder" else 0
    if inner.startswith(("norm.", "cls_norm.", "lm_head.")):
        return above
    num_blocks = len(model.get_submodule(part).blocks)  # type: ignore[arg-type]
    block = int(inner.split(".")[1]) if inner.startswith("blocks.") else -1
    return above + num_blocks - block


def _build(model: CoCa, recipe: OptimizerRecipe) -> list[Optimizer]:
    hidden, matrices, rest = parameter_groups(model)
    by_muon = hidden if recipe.name == "muon" else []
    lr_scales = {
        parameter: recipe.layer_decay ** layer_depth(model, name) for name, parameter in model.named_parameters()
    }
    decayed = [*(hidden if recipe.name == "adamw" else []), *matrices]
    by_adamw = _groups(decayed, lr_scales, recipe.weight_decay) + _groups(rest, lr_scales, 0.0)
    # Fused: one pass over weights, gradients and state, where the plain form makes a dozen.
    optimizers: list[Optimizer] = [AdamW(by_adamw, lr=recipe.lr, betas=recipe.betas, fused=True)]
    if by_muon:
        assert recipe.muon_precision != "auto", "it is decided before"
        groups = _groups(by_muon, lr_scales, recipe.weight_decay)
        optimizers.append(Muon(groups, lr=recipe.lr, precision=recipe.muon_precision))
    return optimizers


def _groups(parameters: list[nn.Parameter], lr_scales: dict[nn.Parameter, float], weight_decay: float) -> list[dict]:
    """Parameter groups as torch's optimizers take them, one for each scale of the learning rate."""
    by_scale = {scale: [p for p in parameters if lr_scales[p] == scale] for scale in sorted(set(lr_scales.values()))}
    return [
        {"params": kind, "lr_scale": scale, "weight_decay": weight_decay}
        for scale, group in by_scale.items()
        for kind in by_kind(group)
    ]


def by_kind(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Sharded tensors and whole ones, which no one operation takes together; a kind that is not there is left out.

    FSDP2 does not shard scalars, so a sharded model has both.
    """
    tensors = list(tensors)
    kinds = ([t for t in tensors if isinstance(t, DTensor) is is_sharded] for is_sharded in (True, False))
    return [kind for kind in kinds if kind]
