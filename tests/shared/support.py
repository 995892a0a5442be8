"""Small real data and small runs, for the tests of the upper floors."""

import errno
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.files import MANIFEST, file_sha256
from grr_coca.common.ranks import Ranks
from grr_coca.data.batch import Batch
from grr_coca.data.sources.base import PairSource, RawPair
from grr_coca.data.sources.shards import TarShards
from grr_coca.evaluate.split import QueryRanks, rank_of_first_hit
from grr_coca.infer.engine.torch import TorchDecoder
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.model.checkpoint_files import GRAPH_FILES, QUANTIZED_WEIGHTS, WEIGHTS
from grr_coca.model.coca import CoCa, CoCaOutput
from grr_coca.model.losses import LossWeights, batch_loss
from grr_coca.train.loop import OnStep, train
from grr_coca.train.optimizer import Optimizers
from grr_coca.train.parallel import ParallelModel
from grr_coca.train.recipe import DataRecipe, EvaluationRecipe, ModelRecipe, Recipe, ScheduleRecipe, TokenizerRecipe
from grr_coca.train.setup import new_checkpoint
from grr_coca.train.step import Trainer

DATASETS = Path(__file__).parents[2] / "datasets"
CPU = torch.device("cpu")
ALONE = Ranks.current(CPU)
BATCH_SIZE = 8


@cache
def real_pairs(count: int, corpus: str = "pictograms", split: str = "train") -> tuple[RawPair, ...]:
    """The first pairs of a corpus that comes with the code."""
    shard = _shard(corpus, split)
    return tuple(shard[i] for i in range(count))


def hide_packages(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make packages look as if they were not installed. `None` in `sys.modules` would not do: tyro looks there."""
    find = PathFinder.find_spec
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(PathFinder, "find_spec", lambda name, *more: None if name in names else find(name, *more))


def as_if_quantized(folder: Path) -> Path:
    """Make a copy of a bundled model a folder in the form of int8: its graphs have weights of their own."""
    import onnx

    (folder / WEIGHTS).rename(folder / QUANTIZED_WEIGHTS)
    for name in GRAPH_FILES:
        graph = onnx.load(folder / name, load_external_data=False)
        for tensor in graph.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = QUANTIZED_WEIGHTS
        (folder / name).write_bytes(graph.SerializeToString())
    manifest = json.loads((folder / MANIFEST).read_text())
    paths = [path for path in folder.iterdir() if path.name != MANIFEST]
    files = {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in paths}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "precision": "int8", "files": files}))
    return folder


@cache
def _shard(corpus: str, split: str) -> TarShards:
    """The first shard of a split, whose many members are looked for once."""
    return TarShards([DATASETS / corpus / f"{split}-00000.tar"])


@dataclass(frozen=True)
class PairsInMemory(PairSource):
    """A source of pairs that are there already."""

    pairs: Sequence[RawPair]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> RawPair:
        return self.pairs[index]

    def captions(self, index: int) -> tuple[str, ...]:
        return self.pairs[index].captions

    def name(self, index: int) -> str:
        return self.pairs[index].name

    def image_name(self, index: int) -> str:
        return self.pairs[index].image_name or self.pairs[index].name

    def container(self, index: int) -> str:
        return "memory"


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    """A tar file of named contents, in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def shard_members(pairs: Sequence[RawPair]) -> dict[str, bytes]:
    """The members of a shard, as `datasets/` has them."""
    members = {}
    for pair in pairs:
        members[f"{pair.key}.webp"] = pair.image
        members[f"{pair.key}.txt"] = pair.caption.encode()
    return members


def write_shard(path: Path, pairs: Sequence[RawPair]) -> Path:
    """A shard of pairs."""
    return write_tar(path, shard_members(pairs))


def with_caption(pair: RawPair, caption: str) -> RawPair:
    return replace(pair, caption=caption)


def encode_image(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiny_recipe(train_shard: Path, steps: int = 6, **changes: object) -> Recipe:
    """A run of a second: one patch, short captions, a validation split equal to the training split."""
    recipe = Recipe(
        data=DataRecipe(train=str(train_shard), val=str(train_shard), batch_size=BATCH_SIZE),
        schedule=ScheduleRecipe(steps=steps, warmup_steps=1),
        model=ModelRecipe(
            "grr_coca",
            "tiny",
            image_layers=2,
            image_dim=64,
            text_layers=1,
            text_dim=64,
            image_size=16,
            context_length=24,
        ),
        tokenizer=TokenizerRecipe("bpe", 320),
        evaluation=EvaluationRecipe(interval=100, batch_size=BATCH_SIZE),
        precision="fp32",
    )
    return replace(recipe, **changes)


def with_key(recipe: Recipe, path: str, value: object) -> Recipe:
    """The recipe with one key changed, as if its file had been edited."""
    data = to_dict(recipe)
    *parents, key = path.split(".")
    section = data
    for parent in parents:
        section = section[parent]
    section[key] = value
    return from_dict(Recipe, data)


def finetuning(recipe: Recipe, **changes: object) -> Recipe:
    """The same run as a fine-tuning recipe."""
    return replace(recipe, model=None, tokenizer=None, **changes)


def silent(done: int, metrics: dict[str, float]) -> None:
    """An `on_step` that tells nobody."""


def pretrain(recipe: Recipe, out: Path, on_step: OnStep = silent) -> Checkpoint:
    """Train a fresh model."""
    return train(recipe, new_checkpoint(recipe, ALONE), out, ALONE, on_step)


def saved_bytes(model: CoCa, batch: Batch) -> int:
    """What autograd keeps of a forward pass, weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = batch_loss(model, batch)
    assert losses.total.requires_grad
    return sum(saved.values())


def by_caption(model: CoCa, output: CoCaOutput, lengths: Tensor) -> list[Tensor]:
    """The logits of each caption, of its length less [EOS] and [CLS]."""
    return list(model.multimodal_decoder.lm_head(output.states).split((lengths - 2).tolist()))


def next_token_logits(model: CoCa, token_ids: Tensor, image_tokens: Tensor) -> Tensor:
    """Logits after each token of captions that have not ended, without a cache: R T V."""
    num_captions, num_tokens = token_ids.shape
    text = model.text_decoder.pack(F.pad(token_ids, (0, 2)), torch.full((num_captions,), num_tokens + 2))
    states = model.multimodal_decoder(model.text_decoder(text).tokens, image_tokens, text.predicting_layout)
    return model.multimodal_decoder.lm_head(states).unflatten(0, token_ids.shape)


def log_probs_token_by_token(model: CoCa, token_ids: Tensor, image_tokens: Tensor) -> Tensor:
    """Log-probabilities after each token of captions, decoded with a cache, one token at every step: R T V."""
    num_captions, num_tokens = token_ids.shape
    decoder = TorchDecoder(model, image_tokens, num_prompt=1, max_tokens=num_tokens)
    every = np.arange(len(model.text_decoder.tok_embeddings.weight))[None].repeat(num_captions, axis=0)
    return torch.stack(
        [torch.from_numpy(decoder.step(ids[:, None].numpy()).log_probs_of(every)) for ids in token_ids.T], dim=1
    )


def make_trainer(model: CoCa, optimizers: Optimizers, weights: LossWeights | None = None) -> Trainer:
    """The training step of one process in fp32 or fp64."""
    return Trainer(ParallelModel(model, "ddp", ALONE), optimizers, weights or LossWeights(), nullcontext(), ema=None)


def query_ranks(similarity: Tensor, relevant: Tensor) -> QueryRanks:
    """What retrieval makes of similarities (queries × candidates), of which some candidates are right."""
    return QueryRanks(rank_of_first_hit(similarity, relevant), relevant.sum(dim=1), relevant.shape[1])


def weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that are not bitwise equal."""
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


@dataclass(frozen=True)
class Run:
    """A finished run and what went in."""

    folder: Path
    recipe: Recipe
    shard: Path

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint of the run."""
        return sorted((self.folder / "checkpoints").iterdir())[-1]


def finished_run(folder: Path, steps: int = 6, num_pairs: int = 40, **changes: object) -> Run:
    """Pretrain on the first real pairs."""
    shard = write_shard(folder / "pairs.tar", real_pairs(num_pairs))
    recipe = tiny_recipe(shard, steps, **changes)
    pretrain(recipe, folder / "run")
    return Run(folder / "run", recipe, shard)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextmanager
def warnings_of(name: str) -> Iterator[list[str]]:
    """Collect what a logger warns of, even where pytest's own capture is off."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def refusals(path: Path) -> list[tuple[str, str]]:
    """What a file of refusals holds: what is asked for, and in the next line what is said of it."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return list(zip(lines[::2], lines[1::2], strict=True))


def no_space_left(*_: object, **__: object) -> None:
    """A function of the system on a disk that is full."""
    raise OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def disk_of(num_bytes: int, folder: Path) -> Iterator[Path]:
    """A small disk of its own, where this may be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root alone")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def syncs_and_renames(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is flushed to the disk and what gets its name from now on, in this order: `sync` or `rename`, and a path."""
    done: list[tuple[str, str]] = []
    sync, rename, put = os.fsync, os.rename, os.replace
    opened = Path("/proc/self/fd")
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(("sync", str((opened / str(fd)).readlink()))), sync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append(("rename", str(b))), rename(a, b)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(("rename", str(b))), put(a, b)))
    return done
