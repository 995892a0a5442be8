"""Initialisation of all weights, in one place. Every parameter gets its first value here.

| parameters | drawn from |
|---|---|
| matrices | N(0, 1 / fan_in) |
| matrices that end a residual branch (`out_proj`, `down_proj` of blocks) | the same / sqrt(number of branches) |
| token and [CLS] embeddings | N(0, 1 / width) |
| learned queries | N(0, 1): as long as the normalized tokens that they attend to. Short ones would all attend alike |
| learned positions, registers, class token | N(0, 0.02²), as in ViT. `sine_cosine_positions` changes those of patches |
| biases of patches and of convolutions | the same. What is blank must not become a zero vector |
| norms; other biases | weight 1; 0 |
| `logit_scale`, `logit_bias` | softmax: CoCa's log(1 / 0.07), no bias; sigmoid: SigLIP's log 10 and -10 |

Random values depend only on the seed and the name of the parameter. So parts that two models share start equal.
"""

import hashlib
import math
from typing import cast

import torch
from torch import Tensor, nn

from grr_coca.common.errors import UserError
from grr_coca.model.attention import LearnedPosition, grid_angles
from grr_coca.model.coca import CoCa

POSITION_STD = 0.02
INITIAL_TEMPERATURE = {"softmax": 0.07, "sigmoid": 0.1}
INITIAL_LOGIT_BIAS = -10.0


@torch.no_grad()
def init_weights(model: CoCa, seed: int) -> None:
    """Give all weights of the model their first values, in place."""
    branches = _branch_ends(model)
    small = ("position.embedding", "registers", "patch_embed.bias", "conv.bias")
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    for name, parameter in model.named_parameters():
        if id(parameter) in matrices:
            num_branches = branches.get(id(parameter), 1)
            draw_normal(parameter, (parameter.shape[1] * num_branches) ** -0.5, name, seed)
        elif name == "logit_scale":
            parameter.fill_(-math.log(INITIAL_TEMPERATURE["softmax" if model.logit_bias is None else "sigmoid"]))
        elif name == "logit_bias":
            parameter.fill_(INITIAL_LOGIT_BIAS)
        elif name.endswith(("cls_embedding", "tok_embeddings.weight")):
            draw_normal(parameter, parameter.shape[-1] ** -0.5, name, seed)
        elif name.endswith("queries"):
            draw_normal(parameter, 1.0, name, seed)
        elif name.endswith(small) or ".class_token." in name:
            draw_normal(parameter, POSITION_STD, name, seed)
        elif name.endswith(("norm.weight", "affine.weight")):
            parameter.fill_(1.0)
        else:
            assert name.endswith("bias"), f"no rule initialises {name}"
            parameter.zero_()


@torch.no_grad()
def sine_cosine_positions(model: CoCa) -> None:
    """Give the learned positions of patches the sines and cosines of row and column as first values, in place.

    The angles are those of axial RoPE, over the whole width (see `grid_angles`).

    Raises:
        UserError: the model has no learned positions of patches.
    """
    position = model.image_encoder.position
    if not isinstance(position, LearnedPosition):
        raise UserError(
            "model: image_positions 'sine_cosine' fills learned positions of patches, and this preset has none; "
            "remove image_positions"
        )
    num_positions, dim = position.embedding.shape
    angles = grid_angles(math.isqrt(num_positions), dim)
    position.embedding.copy_(torch.cat([angles.sin(), angles.cos()], dim=1))


def _branch_ends(model: CoCa) -> dict[int, int]:
    """Return, for each matrix that ends a residual branch, the number of branches that add to the same tokens.

    The keys are `id`s of parameters. Both halves of the text decoder add to the same tokens.
    """
    image, text = model.image_encoder.blocks, [*model.text_decoder.blocks, *model.multimodal_decoder.blocks]
    found: dict[int, int] = {}
    for blocks in (image, text):
        ends = [_end_of(branch) for block in blocks for branch in block.branches]  # type: ignore[union-attr]
        found |= {id(end.weight): len(ends) for end in ends}
    return found


def _end_of(branch: nn.Module) -> nn.Linear:
    """Return the matrix that ends a residual branch. It is named `out_proj` or `down_proj`."""
    ends = [child for name, child in branch.named_children() if name in ("out_proj", "down_proj")]
    assert len(ends) == 1, (
        f"{type(branch).__name__} is a residual branch; name the matrix that ends it out_proj or down_proj, so that it "
        "is initialised smaller"
    )
    return cast(nn.Linear, ends[0])


def draw_normal(parameter: Tensor, std: float, name: str, seed: int) -> None:
    """Draw a parameter from N(0, std²), in place. Its values depend on `seed`, its name and its shape alone."""
    # Drawn on the CPU so that one seed gives the same weights on every device.
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
