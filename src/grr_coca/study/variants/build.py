"""Changes that make an arm of a study out of a preset's model."""

from collections.abc import Callable
from functools import partial

from grr_coca.checkpoint import ChangeModel
from grr_coca.config import CoCaConfig
from grr_coca.model import CoCa
from grr_coca.study.plan.plan import Variant
from grr_coca.study.variants.input_rope import with_input_rope
from grr_coca.study.variants.mixed_rope import with_mixed_rope

VARIANTS: dict[Variant, Callable[[CoCa, CoCaConfig, int], None]] = {
    "input_rope": with_input_rope,
    "mixed_rope": with_mixed_rope,
}
"""What may be changed in a model that was built. Weights that both have stay as they were drawn."""


def change_of(variant: Variant | None, seed: int) -> ChangeModel | None:
    """What makes a variant of a preset's model; what it has besides is drawn from `seed`. None: nothing is changed."""
    return None if variant is None else partial(_change, variant, seed)


def _change(variant: Variant, seed: int, model: CoCa, config: CoCaConfig) -> None:
    VARIANTS[variant](model, config, seed)
