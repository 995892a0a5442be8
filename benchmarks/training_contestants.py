"""One contestant of the training benchmarks, in a process and perhaps an environment of its own.

Setup: `name`, `threads`, `precision`, and for ours `compile`, `gradient_checkpointing` and the `size` of the model.
A step is asked for with the lengths of its captions; words and pixels are random, the same for all.
"""

import importlib.metadata
import resource
import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from workers import serve

BOS, EOS, PAD = 49406, 49407, 0
FIRST_WORD, LAST_WORD = 1_000, 49_000
CONTEXT = 76
NOT_DECAYED = ("bn", "ln", "bias", "logit_scale")
"""As open_clip's training script tells them by name."""
QUESTIONS = ("step", "flops", "peak", "forget")


def caption_rows(lengths: list[int], seed: int) -> list[list[int]]:
    """`[BOS] words [EOS]`, random words."""
    generator = torch.Generator().manual_seed(seed)
    words = [torch.randint(FIRST_WORD, LAST_WORD, (length - 2,), generator=generator) for length in lengths]
    return [[BOS, *row.tolist(), EOS] for row in words]


def padded(rows: list[list[int]], width: int | None = None) -> Tensor:
    """One tensor of ids, padded to the longest row or to `width`."""
    ids = torch.full((len(rows), width or max(map(len, rows))), PAD)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = torch.tensor(row)
    return ids


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


# Named here and not by `grr_coca.common.torch_private`: peers have an environment without grr_coca.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def flop_counter() -> FlopCounterMode:
    """Counts multiplications and additions of matrix products, convolutions and attention; causal attention in full."""
    return FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
FORGET_PEAK = "5"


def forget_peak() -> bool:
    """Count the peak from now on; False where the system does not let us, so that it is counted from the start."""
    try:
        CLEAR.write_text(FORGET_PEAK)
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """The most memory that this process had, pages of files counted."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes where there is no /proc, on macOS


class Contestant(ABC):
    """A model with its optimizer."""

    packages: tuple[str, ...]
    model: nn.Module
    image_size = 224
    padding: str
    """What it does with short captions."""

    def __init__(self, setup: dict[str, Any]) -> None:
        torch.set_num_threads(setup["threads"])
        torch.manual_seed(0)
        self.precision = setup["precision"]

    @abstractmethod
    def prepare(self, images: Tensor, rows: list[list[int]]) -> Any:
        """What the loader would give: not timed."""

    @abstractmethod
    def train(self, prepared: Any) -> float:
        """Forward, backward, update; the loss."""

    @property
    def about(self) -> dict[str, Any]:
        """Versions, parameters and how it pads."""
        versions = {package: importlib.metadata.version(package) for package in ("torch", *self.packages)}
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return {"versions": versions, "parameters": parameters, "padding": self.padding}

    def _batch(self, lengths: list[int], seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(len(lengths), 3, self.image_size, self.image_size, generator=generator)
        return self.prepare(images, caption_rows(lengths, seed))

    def step(self, lengths: list[int], seed: int) -> dict[str, float]:
        """Seconds of a step."""
        prepared = self._batch(lengths, seed)
        start = time.perf_counter()
        loss = self.train(prepared)
        return {"seconds": time.perf_counter() - start, "loss": loss}

    def flops(self, lengths: list[int], seed: int) -> dict[str, int]:
        """Counted over one more step, not compiled."""
        prepared = self._batch(lengths, seed)
        with torch.compiler.set_stance("force_eager"), flop_counter() as counter:
            self.train(prepared)
        return {"flops": counter.get_total_flops()}

    def forget(self) -> dict[str, bool]:
        """Count the peak of memory from now on."""
        return {"forgotten": forget_peak()}

    def peak(self) -> dict[str, int]:
        """Peak memory of this process."""
        return {"bytes": peak_bytes()}


class Ours(Contestant):
    """GRR-CoCa, trained as `grr-coca pretrain` does: clipping and schedule included."""

    packages = ("grr-coca",)
    padding = "nothing"

    def __init__(self, setup: dict[str, Any]) -> None:
        super().__init__(setup)
        from sizes import fresh_checkpoint, training_recipe

        from grr_coca.common.ranks import Ranks
        from grr_coca.train.step import build_trainer

        recipe = training_recipe(setup["precision"], setup["compile"], setup.get("gradient_checkpointing", 0.0))
        start = fresh_checkpoint(recipe, setup.get("size"))
        self.image_size = start.config.image_encoder.image_size
        self.vocab_size = start.config.text_decoder.vocab_size
        self.trainer = build_trainer(recipe, start, Ranks.here(torch.device("cpu")))
        self.model = start.model
        self.num_steps = 0

    def prepare(self, images: Tensor, rows: list[list[int]]) -> Any:
        """A batch as `collate` makes it."""
        from sizes import batch_of

        return batch_of(images, [[min(i, self.vocab_size - 1) for i in row] for row in rows])

    def train(self, prepared: Any) -> float:
        """The trainer's step."""
        from grr_coca.train.step import count_tokens

        metrics = self.trainer.step([prepared], count_tokens([prepared]), self.num_steps)
        self.num_steps += 1
        return metrics["coca"]


class Peer(Contestant):
    """Trained as its own code or manual does it, without clipping; in eager mode, but for `OpenClipCompiled`."""

    optimizer: torch.optim.Optimizer

    @abstractmethod
    def loss(self, prepared: Any) -> Tensor:
        """Of a batch."""

    def train(self, prepared: Any) -> float:
        """Forward and loss under autocast, backward and update outside of it."""
        with self._autocast():
            loss = self.loss(prepared)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast("cpu", torch.bfloat16) if self.precision == "bf16" else nullcontext()


class OpenClip(Peer):
    """`coca_ViT-B-32` with the loss, the weights and the optimizer that open_clip's training script gives it."""

    packages = ("open_clip_torch",)
    padding = f"always to {CONTEXT}"

    def __init__(self, setup: dict[str, Any]) -> None:
        super().__init__(setup)
        import open_clip
        from open_clip.loss import CoCaLoss

        self.model = open_clip.create_model("coca_ViT-B-32", pretrained=None).train()
        self.coca_loss = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)
        named = list(self.model.named_parameters())
        plain = [p for n, p in named if p.ndim < 2 or any(part in n for part in NOT_DECAYED)]
        decayed = [p for _, p in named if not any(p is other for other in plain)]
        groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
        self.optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)

    def prepare(self, images: Tensor, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Its tokenizer pads to the context, whatever the captions are."""
        return images, padded(rows, CONTEXT)

    def loss(self, prepared: tuple[Tensor, Tensor]) -> Tensor:
        """Contrastive and captioning loss."""
        return sum(self.coca_loss(**self.model(*prepared), output_dict=True).values())  # type: ignore[return-value]


class OpenClipCompiled(OpenClip):
    """The same with model and loss in one `torch.compile`, as open_clip trains on its main branch alone."""

    def __init__(self, setup: dict[str, Any]) -> None:
        super().__init__(setup)
        self.compiled = torch.compile(super().loss, disable=not setup["compile"])

    def loss(self, prepared: tuple[Tensor, Tensor]) -> Tensor:
        """Contrastive and captioning loss."""
        return self.compiled(prepared)


class CoCaPytorch(Peer):
    """`coca-pytorch` with the ViT that its manual takes from `vit-pytorch`: widths and depths of ours."""

    packages = ("coca-pytorch", "vit-pytorch")
    padding = "to the longest"

    def __init__(self, setup: dict[str, Any]) -> None:
        super().__init__(setup)
        from coca_pytorch.coca_pytorch import CoCa
        from vit_pytorch.extractor import Extractor
        from vit_pytorch.simple_vit_with_patch_dropout import SimpleViT

        vit = SimpleViT(
            image_size=224,
            patch_size=32,
            num_classes=1,
            dim=768,
            depth=12,
            heads=12,
            mlp_dim=3072,
            patch_dropout=0.0,
        )
        vit.linear_head = nn.Identity()  # never used: it would only add parameters
        self.model = CoCa(
            dim=512,
            img_encoder=Extractor(vit, return_embeddings_only=True, detach=False),
            image_dim=768,
            num_tokens=49408,
            unimodal_depth=12,
            multimodal_depth=12,
            num_img_queries=256,
            dim_head=64,
            heads=8,
            caption_loss_weight=2.0,
            contrastive_loss_weight=1.0,
            pad_id=PAD,
        ).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-4)

    def prepare(self, images: Tensor, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """It has no tokenizer of its own: padded as any user would."""
        return images, padded(rows)

    def loss(self, prepared: tuple[Tensor, Tensor]) -> Tensor:
        """Contrastive and captioning loss."""
        images, ids = prepared
        return self.model(text=ids, images=images, return_loss=True)


class Blip(Peer):
    """`BlipForConditionalGeneration` at the size of the captioning benchmark. It has a captioning loss alone."""

    packages = ("transformers",)
    padding = "to the longest"

    def __init__(self, setup: dict[str, Any]) -> None:
        super().__init__(setup)
        from contestants import Blip as Captioner

        self.model = Captioner({}).model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-5)

    def prepare(self, images: Tensor, rows: list[list[int]]) -> dict[str, Tensor]:
        """As its processor gives them."""
        ids = padded(rows)
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        return {
            "pixel_values": images,
            "input_ids": ids,
            "attention_mask": mask.long(),
            "labels": ids.masked_fill(~mask, -100),
        }

    def loss(self, prepared: dict[str, Tensor]) -> Tensor:
        """Captioning loss."""
        return self.model(**prepared).loss


CONTESTANTS: dict[str, type[Contestant]] = {
    "ours": Ours,
    "open_clip": OpenClip,
    "open_clip_compiled": OpenClipCompiled,
    "coca_pytorch": CoCaPytorch,
    "blip": Blip,
}

if __name__ == "__main__":
    serve(lambda setup: CONTESTANTS[setup["name"]](setup), QUESTIONS)
