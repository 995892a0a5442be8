"""One contestant of `training.py` or `gpu.py`, in a process and perhaps an environment of its own.

Setup: `name`, `threads`, `device`, `size`, `precision`, `is_compiled` and `gradient_checkpointing` for ours, `is_small`
for the smallest form, in which ours has one layer where it has twelve and nothing is compiled. A step is requested with
the lengths of its captions; words and pixels are random, the same for all.
"""

import resource
import statistics
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from contestants import about, shallow
from harness import seconds, serve
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

BOS, EOS, PAD = 49406, 49407, 0
FIRST_WORD, LAST_WORD = 1_000, 49_000
CONTEXT = 76
NOT_DECAYED = ("bn", "ln", "bias", "logit_scale")
"""As open_clip's training script tells them by name."""
QUESTIONS = ("step", "flops", "peak", "forget", "rates", "loop", "waits", "kernels")
OPEN_CLIP_SIZES = {"b32": "coca_ViT-B-32", "l14": "coca_ViT-L-14"}
SHAPES = {"4096³": (4096, 4096, 4096), "feed-forward": (1568, 768, 3072)}
"""Rows, inner width, outer width. The second: a ViT-B/32's 49 tokens of 32 images through one of its matrices."""
GPU_SHAPES = {"8192³": (8192, 8192, 8192), "feed-forward": (25088, 768, 3072)}
"""The same for 512 images."""
SMALL_SHAPES = {"256³": (256, 256, 256)}


def caption_rows(lengths: list[int], seed: int) -> list[list[int]]:
    """`[BOS] words [EOS]`, random words."""
    generator = torch.Generator().manual_seed(seed)
    words = [torch.randint(FIRST_WORD, LAST_WORD, (length - 2,), generator=generator) for length in lengths]
    return [[BOS, *row.tolist(), EOS] for row in words]


def padded(rows: list[list[int]]) -> Tensor:
    """One tensor of ids, padded to the context."""
    ids = torch.full((len(rows), CONTEXT), PAD)
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


class Contestant(ABC):
    """A model with its optimizer."""

    packages: tuple[str, ...]
    model: nn.Module

    def __init__(self, setup: dict[str, Any]) -> None:
        torch.set_num_threads(setup["threads"])
        torch.manual_seed(0)
        self.precision = setup["precision"]
        self.device = torch.device(setup["device"])

    @abstractmethod
    def prepare(self, images: Tensor, rows: list[list[int]]) -> Any:
        """Make what the loader would give, on the device: not timed."""

    @abstractmethod
    def train(self, prepared: Any) -> None:
        """Forward, backward, update."""

    @property
    def about(self) -> dict[str, Any]:
        """Versions and parameters."""
        return about(self.model, self.packages)

    def _batch(self, lengths: list[int], seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(len(lengths), 3, 224, 224, generator=generator)
        return self.prepare(images, caption_rows(lengths, seed))

    def step(self, lengths: list[int], seed: int) -> dict[str, float]:
        """Return seconds of a step."""
        prepared = self._batch(lengths, seed)

        def work() -> None:
            self.train(prepared)
            self._finish()

        self._finish()
        return {"seconds": seconds(work)}

    def _finish(self) -> None:
        """Wait for all that the device was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def flops(self, lengths: list[int], seed: int) -> dict[str, int]:
        """Counted over one more step, not compiled."""
        prepared = self._batch(lengths, seed)
        with torch.compiler.set_stance("force_eager"), flop_counter() as counter:
            self.train(prepared)
        return {"flops": counter.get_total_flops()}

    def forget(self) -> dict[str, bool]:
        """Count the peak of memory from now on; False if the system does not let us, and counts from the start."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return {"forgotten": True}
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return {"forgotten": False}
        return {"forgotten": True}

    def peak(self) -> dict[str, int]:
        """Return the most memory that this process had, pages of files counted; on a GPU, that of its tensors."""
        if self.device.type == "cuda":
            return {"bytes": torch.cuda.max_memory_allocated(self.device)}
        if (status := Path("/proc/self/status")).exists():
            line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            return {"bytes": int(line.split()[1]) * 1024}
        return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}  # in bytes on macOS, which has no /proc


class Ours(Contestant):
    """GRR-CoCa with CLIP's vocabulary, trained as `grr-coca pretrain` does: clipping and schedule included."""

    packages = ("grr-coca",)

    def __init__(self, setup: dict[str, Any]) -> None:
        super().__init__(setup)
        from grr_coca.common.ranks import Ranks
        from grr_coca.data.preprocess import Preprocess
        from grr_coca.data.tokenizer import clip_bpe
        from grr_coca.model.build import build
        from grr_coca.model.checkpoint import Checkpoint
        from grr_coca.train.recipe import DataRecipe, ModelRecipe, Recipe, ScheduleRecipe, TokenizerRecipe
        from grr_coca.train.step import build_trainer

        # open_clip puts its [CLS] behind 76 tokens; our context counts ours, so 77 holds the same captions.
        size = ModelRecipe("grr_coca", setup["size"], context_length=CONTEXT + 1)
        recipe = Recipe(
            data=DataRecipe(train="random"),
            schedule=ScheduleRecipe(steps=1000, warmup_steps=100),
            model=size,
            tokenizer=TokenizerRecipe("clip"),
            precision=setup["precision"],
            compile=setup["is_compiled"] and not setup["is_small"],
            gradient_checkpointing=setup["gradient_checkpointing"],
        )
        tokenizer = clip_bpe()
        config = size.config(tokenizer.vocab_size)
        config = shallow(config) if setup["is_small"] else config
        self.model = build(config)
        start = Checkpoint(
            model=self.model,
            config=config,
            preset=size.preset,
            tokenizer=tokenizer,
            preprocess=Preprocess(config.image_encoder.image_size),
            step=0,
        )
        self.trainer = build_trainer(recipe, start, Ranks.current(self.device))
        self.num_steps = 0

    def prepare(self, images: Tensor, rows: list[list[int]]) -> Any:
        """Make a batch as `collate` does; no two pairs have a caption in common."""
        return self._collated(images, rows).to(self.device)

    def _collated(self, images: Tensor, rows: list[list[int]]) -> Any:
        from grr_coca.data.batch import Batch, pad_rows
        from grr_coca.data.dataset import find_next_tokens
        from grr_coca.data.tokenizer import CLS_SLOT

        token_ids, lengths = pad_rows([[*row, CLS_SLOT] for row in rows])
        numbers = torch.arange(len(rows))
        return Batch(
            images=images,
            token_ids=token_ids,
            lengths=lengths,
            next_tokens=find_next_tokens(token_ids, lengths),
            caption_ids=numbers,
            image_ids=numbers,
            keys=tuple(map(str, range(len(rows)))),
        )

    def train(self, prepared: Any) -> None:
        """The trainer's step."""
        from grr_coca.train.step import count_tokens

        self.trainer.step([prepared], count_tokens([prepared]), self.num_steps)
        self.num_steps += 1

    def loop(self, lengths: list[int], seed: int, steps: int) -> dict[str, float]:
        """Return seconds of a step whose batch is copied to the device while the step before it runs, as in a run."""
        from grr_coca.data.batch import copy_ahead

        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(len(lengths), 3, 224, 224, generator=generator)
        batch = self._collated(images, caption_rows(lengths, seed))
        batch = batch.pin_memory() if self.device.type == "cuda" else batch

        def work() -> None:
            for (copied,) in copy_ahead(([batch] for _ in range(steps)), self.device):
                self.train(copied)
            self._finish()

        return {"seconds": seconds(work) / steps}

    def waits(self, lengths: list[int], seed: int) -> dict[str, int | None]:
        """Return how often a step waits for its GPU; None on a CPU."""
        if self.device.type != "cuda":
            return {"waits": None}
        prepared = self._batch(lengths, seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self.train(prepared)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return {"waits": sum("synchronizing" in str(warning.message) for warning in caught)}

    def kernels(self, lengths: list[int], seed: int, most: int) -> dict[str, Any]:
        """What a step spends the time of its device on: seconds of the step, those in which the device computes, and
        the kernels that take most of them, as [name, seconds, calls]."""
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        prepared, is_gpu = self._batch(lengths, seed), self.device.type == "cuda"
        self._finish()
        with profile(activities=[ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]) as profiled:
            spent = seconds(lambda: (self.train(prepared), self._finish()))
        kind = DeviceType.CUDA if is_gpu else DeviceType.CPU
        rows = [row for row in profiled.key_averages() if row.device_type == kind]
        busy = {row.key: (row.self_device_time_total if is_gpu else row.self_cpu_time_total) / 1e6 for row in rows}
        calls = {row.key: row.count for row in rows}
        largest = sorted(busy, key=lambda key: -busy[key])[:most]
        return {
            "seconds": spent,
            "busy": sum(busy.values()),
            "top": [[key[:120], busy[key], calls[key]] for key in largest],
        }


class OpenClip(Contestant):
    """open_clip's model of this size with the loss, weights and optimizer of open_clip's training script, without
    clipping; in eager mode, or with model and loss in one `torch.compile`, as only its main branch trains."""

    packages = ("open_clip_torch",)

    def __init__(self, setup: dict[str, Any]) -> None:
        super().__init__(setup)
        from open_clip.loss import CoCaLoss

        import open_clip

        self.model = open_clip.create_model(OPEN_CLIP_SIZES[setup["size"]], pretrained=None).to(self.device).train()
        self.coca_loss = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)
        named = list(self.model.named_parameters())
        plain = [p for n, p in named if p.ndim < 2 or any(part in n for part in NOT_DECAYED)]
        decayed = [p for _, p in named if not any(p is other for other in plain)]
        groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
        self.optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)
        is_compiled = setup["name"] == "open_clip_compiled" and not setup["is_small"]
        self.loss = torch.compile(self._loss, disable=not is_compiled)

    def prepare(self, images: Tensor, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Its tokenizer pads to the context, whatever the captions are."""
        return images.to(self.device), padded(rows).to(self.device)

    def _loss(self, prepared: tuple[Tensor, Tensor]) -> Tensor:
        return sum(self.coca_loss(**self.model(*prepared), output_dict=True).values())  # type: ignore[return-value]

    def train(self, prepared: tuple[Tensor, Tensor]) -> None:
        """Forward and loss under autocast, backward and update outside of it."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.loss(prepared)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Gemm:
    """The ceiling: what matrix products reach here through torch."""

    def __init__(self, setup: dict[str, Any]) -> None:
        torch.set_num_threads(setup["threads"])
        self.device = torch.device(setup["device"])
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[setup["precision"]]
        self.shapes = SMALL_SHAPES if setup["is_small"] else GPU_SHAPES if self.device.type == "cuda" else SHAPES
        self.about = {"torch": torch.__version__}

    def rates(self) -> dict[str, float]:
        """FLOP/s of `F.linear`, by shape: the median of a few runs, after one that does not count."""
        found = {}
        for name, (rows, inner, outer) in self.shapes.items():
            x, weight = (torch.randn(size, inner, device=self.device).to(self.dtype) for size in (rows, outer))
            times = [seconds(lambda: self._multiply(x, weight)) for _ in range(6)]  # noqa: B023
            found[name] = 2 * rows * inner * outer / statistics.median(times[1:])
        return found

    def _multiply(self, x: Tensor, weight: Tensor) -> None:
        F.linear(x, weight)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


CONTESTANTS: dict[str, type[Contestant | Gemm]] = {
    "ours": Ours,
    "open_clip": OpenClip,
    "open_clip_compiled": OpenClip,
    "gemm": Gemm,
}

if __name__ == "__main__":
    serve(lambda setup: CONTESTANTS[setup["name"]](setup), QUESTIONS)
