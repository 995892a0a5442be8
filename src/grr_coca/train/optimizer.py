"""Which parameter is updated how."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from grr_coca.errors import UserError
from grr_coca.model import CoCa
from grr_coca.train.clip import clip_gradients
from grr_coca.train.ranks import Ranks
from grr_coca.train.recipe import FrozenPart, OptimizerRecipe, ScheduleRecipe

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
    if not any(parameter.requires_grad for name, parameter in model.named_parameters() if name != "logit_scale"):
        raise UserError(f"freeze {', '.join(parts)}: nothing is left to train")


class Optimizers:
    """One or two torch optimizers that step together under one learning-rate schedule."""

    def __init__(self, model: CoCa, optimizer: OptimizerRecipe, schedule: ScheduleRecipe) -> None:
        self._peak_lr = optimizer.lr
        self._schedule = schedule
        self._clip_norm = optimizer.clip_norm
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizers = _build(model, optimizer)

    def clip(self, ranks: Ranks) -> Tensor:
        """Bound the gradients' norm; returns what it was."""
        return clip_gradients(self._parameters, self._clip_norm, ranks)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self._peak_lr * lr_factor(step, self._schedule)

    def step(self, step: int) -> None:
        """Update the parameters."""
        lr = self.learning_rate(step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None


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
    not. The hidden ones lie between the patch embedding and the head: those are Muon's.
    """
    outer = (model.image_encoder.patch_embed, model.multimodal_decoder.lm_head)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hidden = [module.weight for module in linears if module not in outer]
    matrices = [module.weight for module in outer]
    known = {id(weight) for weight in (*hidden, *matrices)}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = ([p for p in group if p.requires_grad] for group in (hidden, matrices, rest))
    return tuple(groups)  # type: ignore[return-value]


def _build(model: CoCa, recipe: OptimizerRecipe) -> list[Optimizer]:
    hidden, matrices, rest = parameter_groups(model)
    by_muon = hidden if recipe.name == "muon" else []
    by_adamw = [
        {"params": [*(hidden if recipe.name == "adamw" else []), *matrices], "weight_decay": recipe.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    optimizers: list[Optimizer] = [AdamW([g for g in by_adamw if g["params"]], lr=recipe.lr, betas=recipe.betas)]
    if by_muon:
        # This scaling gives Muon's update the size of AdamW's, so that one learning rate serves both.
        optimizers.append(Muon(by_muon, lr=recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers
