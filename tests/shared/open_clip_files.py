"""A checkpoint of open_clip with CLIP's vocabulary and little else, as the hub lays it out."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from grr_coca.model.build import build
from grr_coca.model.config import CoCaConfig
from grr_coca.model.presets import get_preset
from grr_coca_open_clip.checkpoints.names import to_theirs
from grr_coca_open_clip.checkpoints.settings import make_model_cfg


def small_config() -> CoCaConfig:
    config = get_preset("open_clip_coca", "b32")
    image, text, multimodal = config.image_encoder, config.text_decoder, config.multimodal_decoder

    def shrunk(transformer, width):
        return replace(transformer, num_layers=1, embed_dim=width, num_heads=1, hidden_dim=2 * width)

    return replace(
        config,
        embed_dim=16,
        image_encoder=replace(image, image_size=64, transformer=shrunk(image.transformer, 24)),
        text_decoder=replace(text, context_length=21, transformer=shrunk(text.transformer, 16)),
        multimodal_decoder=replace(multimodal, transformer=shrunk(multimodal.transformer, 16)),
        poolers=replace(config.poolers, num_queries=7),
    )


def random_checkpoint() -> SimpleNamespace:
    """Tensors and settings of a model whose tensors are all random, norms and biases too."""
    config = small_config()
    model = build(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        model.image_encoder.patch_embed.bias.zero_()
    tensors = {key: tensor.contiguous() for key, tensor in to_theirs(model.state_dict(), config).items()}
    return SimpleNamespace(config=config, tensors=tensors, settings={"model_cfg": make_model_cfg(config)})


def write_hub_folder(checkpoint: SimpleNamespace, folder: Path) -> Path:
    """A folder as the hub lays it out."""
    folder.mkdir()
    save_file(checkpoint.tensors, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(checkpoint.settings))
    return folder
