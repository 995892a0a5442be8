"""One contestant of `captioning.py` and `imported.py`, in a process and perhaps an environment of its own.

Setup: `name`, `threads`, the `folder` of weights or graphs for those that need one, and `is_small` for the smallest
form, in which ours has one layer where it has twelve.
"""

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import serve

NUM_BEAMS, NUM_GROUPS = 6, 3
TOP_K = 50
Setup = dict[str, Any]
Cell = dict[str, Any]
"""`method`: sampling, beam or greedy; `batch`: images; `tokens`: new tokens of each caption."""


def about(model: torch.nn.Module, packages: tuple[str, ...]) -> dict[str, Any]:
    """Versions and parameters."""
    versions = {package: importlib.metadata.version(package) for package in ("torch", *packages)}
    return {"versions": versions, "parameters": sum(parameter.numel() for parameter in model.parameters())}


def shallow(config: Any) -> Any:
    """Return a model of one layer in each stack."""

    def cut(part: Any) -> Any:
        return replace(part, transformer=replace(part.transformer, num_layers=1))

    names = ("image_encoder", "text_decoder", "multimodal_decoder")
    return replace(config, **{name: cut(getattr(config, name)) for name in names})


class Ours:
    """GRR-CoCa, size `b32`."""

    packages = ("grr-coca",)

    def __init__(self, setup: Setup) -> None:
        from grr_coca.data.tokenizer import clip_bpe
        from grr_coca.model.build import build
        from grr_coca.model.presets import get_preset

        self.tokenizer = clip_bpe()
        config = get_preset("grr_coca", "b32")
        self.model = build(shallow(config) if setup.get("is_small") else config).eval()

    @cached_property
    def engine(self) -> Any:
        """The engine that serves all cells, made when the model has its precision."""
        from grr_coca.data.preprocess import Preprocess
        from grr_coca.infer.engine.torch import TorchEngine

        return TorchEngine(self.model, Preprocess(224))

    def run(self, cell: Cell, images: torch.Tensor) -> int:
        """Caption as many images; the number of new tokens of each. An engine takes bytes, and normalizes them."""
        from grr_coca.infer.generate import GenerationOptions, generate

        how: dict[str, Any] = {
            "sampling": {"temperature": 1.0, "top_k": TOP_K},
            # Ours has no groups. open_clip's have no penalty: as many beams, which find less.
            "beam": {"num_beams": NUM_BEAMS},
            "greedy": {},
        }[cell["method"]]
        options = GenerationOptions(max_length=cell["tokens"], min_length=cell["tokens"], **how)
        pixels = np.random.default_rng(0).integers(0, 256, (len(images), 224, 224, 3), dtype=np.uint8)
        captions = generate(self.engine, self.tokenizer, pixels, options).captions
        (length,) = {len(caption.token_ids) for image in captions for caption in image}
        return length


class Quantized(Ours):
    """The same size in int8, computed by ONNX Runtime from the graphs in the folder."""

    packages = ("grr-coca", "onnxruntime")

    def __init__(self, setup: Setup) -> None:
        self.folder = setup["folder"]
        with torch.device("meta"):  # parameters that can be counted, and take no memory
            super().__init__(setup)

    @cached_property
    def engine(self) -> Any:
        """The graphs, on as many threads as the others have."""
        from grr_coca.infer.engine.onnx import OnnxEngine

        return OnnxEngine(self.folder, threads=torch.get_num_threads())


class Imported(Ours):
    """open_clip's own weights in our engine, read from `open_clip-b32.safetensors` in the folder."""

    def __init__(self, setup: Setup) -> None:
        from grr_coca_open_clip.checkpoints.read import read_open_clip

        checkpoint = read_open_clip(Path(setup["folder"]) / "open_clip-b32.safetensors", "coca_ViT-B-32")
        self.tokenizer, self.model = checkpoint.tokenizer, checkpoint.model


class OpenClip:
    """`coca_ViT-B-32` of open_clip."""

    packages = ("open_clip_torch", "transformers")

    def __init__(self, _: Setup) -> None:
        from open_clip.coca_model import _has_transformers

        import open_clip

        if not _has_transformers:
            raise ImportError("open_clip cannot caption with this version of transformers")
        self.model = open_clip.create_model("coca_ViT-B-32", pretrained=None).eval()

    def run(self, cell: Cell, images: torch.Tensor) -> int:
        """Its length counts the begin token; its last token is an end token that it sets without looking."""
        how = {
            "greedy": {"generation_type": "top_k", "top_k": 1},
            "sampling": {"generation_type": "top_k", "top_k": TOP_K},
            "beam": {"generation_type": "beam_search", "num_beams": NUM_BEAMS, "num_beam_groups": NUM_GROUPS},
        }[cell["method"]]
        tokens = cell["tokens"]
        with torch.inference_mode():
            ids = self.model.generate(images, seq_len=tokens + 1, min_seq_len=tokens, **how)
        return ids.shape[1] - 1


class Blip:
    """`BlipForConditionalGeneration` of transformers with a ViT-B/32 and 12 text layers of 768, all with
    cross-attention, and as many words as the others."""

    packages = ("transformers",)

    def __init__(self, _: Setup) -> None:
        from transformers import BlipConfig, BlipForConditionalGeneration

        torch.manual_seed(0)
        config = BlipConfig(
            vision_config={"hidden_size": 768, "num_hidden_layers": 12, "image_size": 224, "patch_size": 32},
            text_config={
                "hidden_size": 768,
                "encoder_hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "vocab_size": 49408,
                "bos_token_id": 49406,
                "eos_token_id": 49407,
                "sep_token_id": 49407,
                "pad_token_id": 0,
            },
        )
        self.model = BlipForConditionalGeneration(config).eval()

    def run(self, cell: Cell, images: torch.Tensor) -> int:
        """Greedy, with its cache."""
        tokens = cell["tokens"]
        with torch.inference_mode():
            ids = self.model.generate(
                images, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, num_beams=1, use_cache=True
            )
        return ids.shape[1] - 1


class Exported(OpenClip):
    """The same, which writes its weights into the folder, for `Imported` to read."""

    def __init__(self, setup: Setup) -> None:
        from safetensors.torch import save_file

        super().__init__(setup)
        weights = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(weights, Path(setup["folder"]) / "open_clip-b32.safetensors")


CONTESTANTS: dict[str, Callable[[Setup], Any]] = {
    "ours": Ours,
    "quantized": Quantized,
    "open_clip": OpenClip,
    "blip": Blip,
    "imported": Imported,
    "exported": Exported,
}


class Captioner:
    """A contestant that answers in a process of its own."""

    def __init__(self, setup: dict[str, Any]) -> None:
        torch.set_num_threads(setup["threads"])
        self.contestant = CONTESTANTS[setup["name"]](setup)
        self.about = about(self.contestant.model, self.contestant.packages)

    def caption(self, **cell: Any) -> dict[str, Any]:
        """Return the time of a cell on the clock and of the processor."""
        images = torch.randn(cell["batch"], 3, 224, 224, generator=torch.Generator().manual_seed(0))
        start, cpu_start = time.perf_counter(), time.process_time()
        made = self.contestant.run(cell, images)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        assert made == cell["tokens"], f"made {made} tokens, not {cell['tokens']}"
        return {"seconds": seconds, "cpu_seconds": cpu_seconds}


if __name__ == "__main__":
    serve(Captioner, ("caption",))
