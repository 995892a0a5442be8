"""Models, batches and losses whose gradients are compared, and what a rank makes of them."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from feature_models import random_features, with_features
from safetensors.torch import save_file
from support import by_caption
from torch import Tensor

from grr_coca.common.ranks import Ranks, join_ranks
from grr_coca.data.batch import Batch, FeatureTokens, pad_rows
from grr_coca.data.dataset import find_next_tokens
from grr_coca.model.build import build
from grr_coca.model.coca import CoCa
from grr_coca.model.config import CoCaConfig, Stem, TransformerConfig
from grr_coca.model.losses import LossWeights
from grr_coca.model.presets import get_preset
from grr_coca.train.blocks import checkpoint_blocks
from grr_coca.train.micro_batches import embed_pairs
from grr_coca.train.optimizer import Ema, Optimizers, freeze
from grr_coca.train.parallel import ParallelModel
from grr_coca.train.recipe import FrozenPart, OptimizerRecipe, Parallelism, ScheduleRecipe
from grr_coca.train.run_checkpoints import unsharded_tensors
from grr_coca.train.step import Trainer, compute_gradients, count_tokens

NUM_WORDS = (3, 9, 1, 2, 12, 5, 2, 20)
"""Words of each caption: the second half, which a second rank gets, has more than twice as many as the first."""

CAPTION_IDS = (0, 1, 2, 3, 4, 1, 6, 7)
"""The same caption on both halves."""

IMAGE_IDS = (0, 1, 2, 2, 4, 5, 6, 0)
"""The same image twice in a half, and on both."""

THING_IDS = (0, 1, 2, 2, 1, 1, 6, 2)
"""Three of one thing, of which two are the same image, and three of another; two things alone."""


NUM_FEATURES = (3, 7, 1, 7, 2, 5, 4, 6)
"""Feature tokens of each image."""


@dataclass(frozen=True)
class Case:
    """What is trained, and how."""

    preset: str = "grr_coca"
    losses: LossWeights = field(default_factory=LossWeights)
    contrastive: str = "softmax"
    stem: Stem = "patchify"
    patch_dropout: bool = False
    checkpointing: bool = False
    frozen: tuple[FrozenPart, ...] = ()
    features: bool | None = None
    """Features of different numbers of tokens: False: in place of the image encoder, True: beside it."""


CASES = {
    "grr_coca": Case(),
    "coca": Case("coca"),
    "open_clip_coca": Case("open_clip_coca"),
    "z-loss": Case(losses=LossWeights(1.0, 2.0, 0.1)),
    "sigmoid": Case(contrastive="sigmoid"),
    "patch dropout": Case(patch_dropout=True),
    "convolutional stem": Case(stem="convolutional", patch_dropout=True, checkpointing=True),
    "checkpointed blocks": Case(checkpointing=True),
    "teacher": Case(losses=LossWeights(1.0, 2.0, teacher=0.7, teacher_temperature=0.3)),
    "teacher, coca": Case("coca", losses=LossWeights(0.5, 2.0, teacher=0.7, teacher_temperature=0.3)),
    "teacher, sigmoid": Case(contrastive="sigmoid", losses=LossWeights(teacher=0.7, teacher_temperature=0.3)),
    "siblings": Case(losses=LossWeights(sibling=0.6)),
    "siblings, teacher, sigmoid": Case(contrastive="sigmoid", losses=LossWeights(1.0, 2.0, teacher=0.7, sibling=0.6)),
    "captioning alone": Case(losses=LossWeights(0.0, 2.0)),
    "contrast alone": Case(losses=LossWeights(1.0, 0.0)),
    "frozen image encoder": Case(frozen=("image_encoder",)),
    "frozen text decoder, checkpointed": Case(frozen=("text_decoder",), checkpointing=True),
    "features": Case(features=False),
    "features beside, checkpointed": Case(features=True, checkpointing=True),
}


class Task(NamedTuple):
    """One thing that ranks are to compute: a case, in micro-batches of `size`."""

    parallelism: Parallelism
    case: str
    dtype: torch.dtype
    size: int

    def __str__(self) -> str:
        return "-".join(map(str, self))


def make_model(case: Case, dtype: torch.dtype) -> CoCa:
    """A model of some thousand weights, images and text of different width, none of its weights at zero."""
    model = build(_config(case), seed=0).to(dtype).train()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter += (0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)).to(dtype)
    freeze(model, case.frozen)
    if case.checkpointing:
        checkpoint_blocks(model)
    return model


def make_batch(case: Case, dtype: torch.dtype) -> Batch:
    """Eight pairs."""
    generator = torch.Generator().manual_seed(2)
    rows = [[1, *torch.randint(3, 60, (n,), generator=generator).tolist(), 2, 0] for n in NUM_WORDS]
    token_ids, lengths = pad_rows(rows)
    order = torch.rand(len(rows), 16, generator=generator).argsort()
    return Batch(
        images=torch.randn(len(rows), 3, 16, 16, generator=generator, dtype=torch.float64).to(dtype),
        token_ids=token_ids,
        lengths=lengths,
        next_tokens=find_next_tokens(token_ids, lengths),
        caption_ids=torch.tensor(CAPTION_IDS),
        image_ids=torch.tensor(IMAGE_IDS),
        keys=tuple(map(str, range(len(rows)))),
        kept_patches=order[:, :9].sort().values if case.patch_dropout else None,
        teacher=_teacher(CAPTION_IDS, dtype) if case.losses.teacher else None,
        concept_ids=torch.tensor(THING_IDS) if case.losses.sibling else None,
        features=None if case.features is None else _features(dtype),
    )


def _features(dtype: torch.dtype) -> FeatureTokens:
    features = random_features(NUM_FEATURES)
    return features._replace(tokens=features.tokens.to(dtype))


def _teacher(ids: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Embeddings of unit length, wider than ours. Equal texts have equal ones."""
    table = torch.randn(200, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return F.normalize(table[list(ids)], dim=1).to(dtype)


def cut(batch: Batch, first: int, last: int) -> Batch:
    """Some rows of a batch, padded to the longest caption among them, as a loader would have it."""
    rows = slice(first, last)
    longest = int(batch.lengths[rows].max())
    return Batch(
        images=batch.images[rows],
        token_ids=batch.token_ids[rows, :longest],
        lengths=batch.lengths[rows],
        next_tokens=find_next_tokens(batch.token_ids[rows, :longest], batch.lengths[rows]),
        caption_ids=batch.caption_ids[rows],
        image_ids=batch.image_ids[rows],
        keys=batch.keys[rows],
        kept_patches=None if batch.kept_patches is None else batch.kept_patches[rows],
        teacher=None if batch.teacher is None else batch.teacher[rows],
        concept_ids=None if batch.concept_ids is None else batch.concept_ids[rows],
        features=None if batch.features is None else batch.features.map_tensors(lambda tensor: tensor[rows]),
    )


def pieces(batch: Batch, size: int) -> list[Batch]:
    """Micro-batches of so many pairs, of which the last may be smaller."""
    return [cut(batch, first, min(first + size, len(batch))) for first in range(0, len(batch), size)]


def gradients_of(model: CoCa) -> dict[str, Tensor]:
    """Those of a plain model, by parameter."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@cache
def reference(case: Case, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients and losses of the whole batch on one process, the losses written out again from their papers."""
    model, batch = make_model(case, dtype), make_batch(case, dtype)
    output = model(batch.images, batch.token_ids, batch.lengths, batch.kept_patches, features=batch.features)
    count = len(batch)

    others = torch.zeros(count, count, dtype=torch.bool)
    for i in range(count):
        for j in range(count):
            is_sibling = bool(case.losses.sibling) and THING_IDS[i] == THING_IDS[j]
            others[i, j] = i != j and (CAPTION_IDS[i] == CAPTION_IDS[j] or IMAGE_IDS[i] == IMAGE_IDS[j] or is_sibling)
    similarity = output.image_embedding @ output.text_embedding.T * model.logit_scale.exp()
    targets = torch.eye(count, dtype=dtype)
    if model.logit_bias is not None:
        logits = similarity + model.logit_bias
        log_likelihood = targets * F.logsigmoid(logits) + (1 - targets) * F.logsigmoid(-logits)
        contrastive = -(log_likelihood * ~others).sum() / count
    else:
        kept = similarity.masked_fill(others, -torch.inf)
        log_probs = [kept.log_softmax(1).masked_fill(others, 0), kept.log_softmax(0).T.masked_fill(others, 0)]
        contrastive = -sum((targets * log_prob).sum() / count for log_prob in log_probs) / 2

    nll, z, num_tokens = torch.zeros((), dtype=dtype), torch.zeros((), dtype=dtype), 0
    for row, length in enumerate(batch.lengths.tolist()):
        for position in range(length - 2):
            logits = by_caption(model, output, batch.lengths)[row][position]
            nll = nll - logits.log_softmax(0)[batch.token_ids[row, position + 1]]
            z = z + logits.logsumexp(0) ** 2
            num_tokens += 1
    captioning, z = nll / num_tokens, z / num_tokens
    weights = case.losses
    captions = weights.captioning * captioning + weights.z * z
    total, losses = weights.contrastive * contrastive + captions, {}
    if weights.teacher:
        teacher = _teacher_loss(batch, output.text_embedding, weights.teacher_temperature)
        total, losses = total + weights.teacher * teacher, {"teacher": teacher.item()}
    if weights.sibling:
        sibling = _sibling_loss(output.image_embedding)
        total, losses = total + weights.sibling * sibling, {**losses, "sibling": sibling.item()}
    total.backward()
    return gradients_of(model), {"contrastive": contrastive.item(), "captioning": captioning.item(), **losses}


def _teacher_loss(batch: Batch, text_embedding: Tensor, temperature: float) -> Tensor:
    """The mean over captions of Σ p log(p / q), over all captions that are not the same, caption by caption."""
    total = torch.zeros((), dtype=text_embedding.dtype)
    for i, caption in enumerate(CAPTION_IDS):
        others = [j for j, other in enumerate(CAPTION_IDS) if other != caption]
        p, q = (torch.softmax(x[others] @ x[i] / temperature, 0) for x in (batch.teacher, text_embedding))
        total = total + (p * (p / q).log()).sum()
    return total / len(CAPTION_IDS)


def _sibling_loss(image_embedding: Tensor) -> Tensor:
    """The mean over images of the mean of -log p(sibling) over its siblings, among all that are not the same image."""
    total = torch.zeros((), dtype=image_embedding.dtype)
    for i, (thing, image) in enumerate(zip(THING_IDS, IMAGE_IDS, strict=True)):
        others = [j for j, other in enumerate(IMAGE_IDS) if other != image]
        p = torch.softmax(image_embedding[others] @ image_embedding[i] / 0.1, 0)
        parts = [-p[place].log() for place, j in enumerate(others) if THING_IDS[j] == thing]
        total = total + (torch.stack(parts).mean() if parts else 0.0)
    return total / len(IMAGE_IDS)


@cache
def computed(case: Case, dtype: torch.dtype, size: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients and losses as the engine has them on one process, in micro-batches."""
    model, batches = make_model(case, dtype), pieces(make_batch(case, dtype), size)
    parallel = ParallelModel(model, "ddp", Ranks.current(torch.device("cpu")))
    losses = compute_gradients(parallel, batches, count_tokens(batches), case.losses, nullcontext())
    return gradients_of(model), {name: value.item() for name, value in losses._asdict().items()}


def on_a_rank(tasks: Sequence[Task], folder: Path) -> None:
    """What this rank makes of its share of the batch: whole gradients, and the losses that it sees; and what its model
    computes before, during and after an evaluation with the average."""
    with join_ranks() as ranks:
        seen = {}
        for task in tasks:
            whole, seen[str(task)] = _gradients_on(ranks, task)
            if ranks.is_first:
                save_file(whole, folder / f"{task}.safetensors")
        (folder / f"losses-{ranks.rank}.json").write_text(json.dumps(seen))
        save_file(_evaluated_with_the_average(ranks), folder / f"passes-{ranks.rank}.safetensors")
        _meet(ranks)


def _gradients_on(ranks: Ranks, task: Task) -> tuple[dict[str, Tensor], dict[str, float]]:
    case = CASES[task.case]
    batch, model = make_batch(case, task.dtype), make_model(case, task.dtype)
    share = len(batch) // ranks.size
    batches = pieces(cut(batch, ranks.rank * share, (ranks.rank + 1) * share), task.size)
    num_tokens = int(ranks.sum(torch.tensor(count_tokens(batches))))
    parallel = ParallelModel(model, task.parallelism, ranks)
    losses = compute_gradients(parallel, batches, num_tokens, case.losses, nullcontext())
    whole = unsharded_tensors([(name, p.grad) for name, p in model.named_parameters() if p.grad is not None], ranks)
    return whole, {key: value.item() for key, value in losses._asdict().items()}


def _evaluated_with_the_average(ranks: Ranks) -> dict[str, Tensor]:
    """What this rank's sharded model computes before, during and after it has its running average for weights."""
    case = CASES["grr_coca"]
    model, batch = make_model(case, torch.float64), make_batch(case, torch.float64)
    parallel = ParallelModel(model, "fsdp", ranks)
    ema = Ema(model, 0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    optimizers = Optimizers(model, OptimizerRecipe(), ScheduleRecipe(steps=1, warmup_steps=0))
    trainer = Trainer(parallel, optimizers, case.losses, nullcontext(), ema)
    passes = {"before": embed_pairs(model, batch).image}
    with trainer.averaged():
        passes["during"] = embed_pairs(model, batch).image
    passes["after"] = embed_pairs(model, batch).image
    return passes


def _meet(ranks: Ranks) -> None:
    """Wait for the other ranks, so that none closes its connections while another still works."""
    ranks.sum(torch.zeros(1))


def _config(case: Case) -> CoCaConfig:
    config = get_preset(case.preset, "tiny")
    image, text, multimodal = config.image_encoder, config.text_decoder, config.multimodal_decoder
    transformer = _shrunk(image.transformer, 2, 48)
    made = replace(
        config,
        embed_dim=24,
        image_encoder=replace(image, image_size=16, patch_size=4, transformer=transformer, stem=case.stem),
        text_decoder=replace(text, vocab_size=60, context_length=40, transformer=_shrunk(text.transformer, 1, 32)),
        multimodal_decoder=replace(multimodal, transformer=_shrunk(multimodal.transformer, 1, 32)),
        poolers=replace(config.poolers, num_queries=5 if case.features is None else None, num_heads=2),
        contrastive=case.contrastive,
    )
    return made if case.features is None else with_features(made, beside=case.features, num_tokens=None)


def _shrunk(transformer: TransformerConfig, num_layers: int, embed_dim: int) -> TransformerConfig:
    return replace(
        transformer, num_layers=num_layers, embed_dim=embed_dim, num_heads=embed_dim // 16, hidden_dim=2 * embed_dim
    )
