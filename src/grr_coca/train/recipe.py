"""Recipe: all settings of a run in one editable YAML file. Every run saves its recipe with all defaults.

Paths in a recipe are relative to the recipe's own folder, so the recipe works from any working directory.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from grr_coca.common.dict_to_dataclass import from_dict, read_yaml, to_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import expand_cache_prefix, is_url, require_nonempty_path, write_bytes_atomic
from grr_coca.common.remote import require_no_credentials
from grr_coca.data.augmentation import Augmentation
from grr_coca.data.order import PERIOD, mixture_fractions, visits_in_period
from grr_coca.data.preprocess import Framing
from grr_coca.model.config import CaptionsFrom, CoCaConfig, Contrastive, QKNorm, Stem
from grr_coca.model.presets import get_preset, size_of, with_captions_from, with_qk_norm

if TYPE_CHECKING:
    from grr_coca.data.preprocess import Preprocess
    from grr_coca.model.losses import LossWeights

FrozenPart = Literal["image_encoder", "image_backbone", "text_decoder", "multimodal_decoder"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
MuonPrecision = Literal["auto", "fp32", "bf16"]
Parallelism = Literal["ddp", "fsdp"]
Temperature = Literal["learned", "refitted"]
ImagePositions = Literal["random", "sine_cosine"]
CaptionScore = Literal["CIDEr", "CIDEr-D", "BLEU-4", "ROUGE-L"]
CAPTION_SCORES: tuple[str, ...] = get_args(CaptionScore)
Score = Literal[
    "coca_loss",
    "contrastive_loss",
    "captioning_loss",
    "perplexity",
    "text_to_image/R@1",
    "text_to_image/R@5",
    "text_to_image/R@10",
    "image_to_text/R@1",
    "image_to_text/R@5",
    "image_to_text/R@10",
    "mean_recall",
    CaptionScore,
]


@dataclass(frozen=True)
class ModelRecipe:
    """Preset and size of a model, and changes to them. If a field is None, the model keeps the value that preset and
    size define.

    Fine-tuning uses the model of its start checkpoint, so its recipe needs neither preset nor size, but may set
    `image_size` and a longer `context_length` (see `grr_coca.model.checkpoint.resize_checkpoint`).

    - `image_layers`, `image_dim`, `text_layers`, `text_dim`: depth and width of the image encoder, and of each half of
      the text decoder; attention heads keep their width
    - `patch_size`: side of a patch in pixels; half the size gives four times as many patch tokens
    - `stem`: `patchify` maps the pixels of each patch by one matrix; `convolutional` adds convolutions before it (arXiv
      2106.14881), and needs a `patch_size` that is a power of two
    - `num_registers`: learned tokens in addition to the patches; arXiv 2309.16588 uses 4
    - `qk_norm`: `rms` normalizes queries and keys in the self-attention of all three stacks, which keeps training
      stable at high learning rates
    - `contrastive`: `softmax`, or `sigmoid` for SigLIP's loss
    - `captions_from`: captions attend to the outputs of the captioning pooler (`queries`; the model size defines their
      number), or to the patch tokens (`patches`), which makes almost no difference in CoCa's ablation
    - `pixel_mean`, `pixel_std`: mean and standard deviation that normalize pixel values, which are between 0 and 1
      before normalization; with a mean of 1, white becomes 0
    - `framing`: framing of drawings, see `Framing`; `{}` uses the defaults, and None uses the centre square
    - `image_positions`: initial values of the learned patch positions. `sine_cosine` uses sines and cosines of row and
      column (see `sine_cosine_positions`), which `optimizer: learning_rates` can keep fixed
    """

    preset: str | None = None
    size: str | None = None
    _: KW_ONLY
    image_layers: int | None = None
    image_dim: int | None = None
    text_layers: int | None = None
    text_dim: int | None = None
    image_size: int | None = None
    patch_size: int | None = None
    stem: Stem | None = None
    context_length: int | None = None
    num_registers: int | None = None
    qk_norm: QKNorm | None = None
    contrastive: Contrastive | None = None
    captions_from: CaptionsFrom | None = None
    pixel_mean: float = 0.5
    pixel_std: float = 0.5
    framing: Framing | None = None
    image_positions: ImagePositions = "random"

    def __post_init__(self) -> None:
        positive = (
            "image_layers",
            "image_dim",
            "text_layers",
            "text_dim",
            "image_size",
            "patch_size",
            "context_length",
        )
        _require_at_least(1, **{name: getattr(self, name) for name in positive})
        _require_at_least(0, num_registers=self.num_registers)
        _require_finite(pixel_mean=self.pixel_mean, pixel_std=self.pixel_std)
        if not self.pixel_std > 0:
            raise UserError(f"pixel_std must be above 0, got {self.pixel_std}")

    def config(self, vocab_size: int) -> CoCaConfig:
        """Return the full config of the model with the given vocabulary size.

        Raises:
            UserError: If preset or size is missing or unknown, or another key has a value that the model cannot have.
        """
        if self.preset is None or self.size is None:
            raise UserError(f"key '{'size' if self.preset else 'preset'}' is missing; a new model needs both")
        size = size_of(self.size).with_sizes(
            image_layers=self.image_layers,
            image_dim=self.image_dim,
            text_layers=self.text_layers,
            text_dim=self.text_dim,
        )
        config = get_preset(self.preset, size)
        if self.captions_from == "patches" and config.poolers.arrangement == "shared":
            raise UserError(
                f"captions_from 'patches' does not match preset '{self.preset}', whose only pooler serves captions and "
                "embeddings; remove captions_from"
            )
        if self.captions_from is not None:
            config = with_captions_from(config, self.captions_from, size)
        image, text = config.own_image_encoder, config.text_decoder
        config = replace(
            config,
            image_encoder=replace(
                image,
                image_size=self.image_size or image.image_size,
                patch_size=self.patch_size or image.patch_size,
                stem=self.stem or image.stem,
                num_registers=image.num_registers if self.num_registers is None else self.num_registers,
            ),
            text_decoder=replace(
                text, vocab_size=vocab_size, context_length=self.context_length or text.context_length
            ),
            contrastive=self.contrastive or config.contrastive,
        )
        return config if self.qk_norm is None else with_qk_norm(config, self.qk_norm)

    def preprocess(self, config: CoCaConfig) -> "Preprocess":
        """Return the framing, resizing and normalization of images for a model with the given config.

        Raises:
            UserError: If the model has no image encoder.
        """
        from grr_coca.data.preprocess import Preprocess  # lazy import, because recipes can be read without torch

        return Preprocess(
            config.own_image_encoder.image_size, (self.pixel_mean,) * 3, (self.pixel_std,) * 3, framing=self.framing
        )


@dataclass(frozen=True)
class TokenizerRecipe:
    """Tokenizer of a new model.

    Attributes:
        kind: `bpe` is trained on the training captions. `clip` is CLIP's tokenizer. `file` is the tokenizer at `path`,
            whose begin and end tokens are used, or are added if they are missing.
        vocab_size: Maximum number of ids of a `bpe` tokenizer. It must not be set for the other kinds, whose ids are
            fixed (49,408 for `clip`).
        path: Path of any `tokenizer.json` in Hugging Face's format, only for the kind `file`.
    """

    kind: Literal["bpe", "clip", "file"] = "bpe"
    vocab_size: int = 2048
    path: str | None = None

    def __post_init__(self) -> None:
        if (self.kind == "file") is (self.path is None):
            raise UserError(
                "kind 'file' and path (the path of a tokenizer.json) require each other; set both or neither"
            )


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Locations of the pairs (see `open_source`), and settings for reading them.

    Attributes:
        train: Training pairs.
        mix: Paths of additional training pairs, each with the fraction of samples that come from it. The remaining
            samples come from `train`. Each source has its own epochs.
        first_caption: Fraction of the samples of an image with several captions that use its first caption. All other
            samples of the image use a random caption.
        siblings: Fraction of the samples, at most one half, that are siblings of the previous sample. A sibling is an
            image from another set with the same first caption (see `Siblings`). A batch then contains two images of
            some concepts, which `losses: sibling_weight` makes similar.
        val: Validation pairs. If None, every 20th training image is held out with all its pairs, at most 5,000 images.
            If these are too few for a validation batch, more images are held out, up to every fourth.
        test: Splits by name, used only for evaluation.
        batch_size: Number of pairs per optimizer step, over all processes.
        micro_batch_size: Size of the micro-batches into which each process splits its part of a batch. Training then
            needs less memory, but a second forward pass. The gradients stay the same.
        patch_dropout: Fraction of each image's patches that training omits (FLIP, arXiv 2212.00794). They are chosen at
            random, depending on seed, epoch and sample. Evaluation uses all patches.
        num_workers: Number of additional processes, for each training process, that read and decode pairs. With 0, the
            training process does this work.
        augmentation: Random changes of training images.

    A path that begins with `cache:` is in the user's cache, where the corpus `icons` is.
    """

    train: str
    mix: dict[str, float] = field(default_factory=dict)
    val: str | None = None
    test: dict[str, str] = field(default_factory=dict)
    first_caption: float = 0.0
    siblings: float = 0.0
    batch_size: int = 64
    micro_batch_size: int | None = None
    num_workers: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    patch_dropout: float = 0.0

    def __post_init__(self) -> None:
        _require_share(patch_dropout=self.patch_dropout, first_caption=self.first_caption)
        _require_share(**{f"mix: {path}": share for path, share in self.mix.items()})
        _require_share(mix=sum(self.mix.values()))
        if not 0 <= self.siblings <= 0.5:
            raise UserError(f"siblings must be from 0 to 0.5, got {self.siblings}")
        _require_visits(self.mix)
        _require_at_least(1, batch_size=self.batch_size, micro_batch_size=self.micro_batch_size)
        _require_at_least(0, num_workers=self.num_workers)


@dataclass(frozen=True)
class OptimizerRecipe:
    """Optimizer: `adamw`; or `muon`, which is Muon for all matrices except the head's and AdamW for all other
    parameters.

    Only matrices have weight decay.

    - `lr`: peak learning rate
    - `betas`: decay rates of AdamW's two running averages
    - `clip_norm`: maximum norm of the gradients; larger ones are scaled down, and `.inf` means no clipping
    - `learning_rates`: peak learning rates of parts of the model, in place of `lr`, by prefix of the parameter names,
      such as `image_encoder.position` or `image_encoder.blocks.0`. The longest matching prefix applies. A part with a
      rate of 0 is frozen
    - `layer_decay`: factor by which the learning rate is multiplied for each layer between a parameter and the nearest
      head (see `layer_depth`). Fine-tuning with a value below 1 changes the first layers least; with 1, the rates of
      all layers are equal
    - `muon_precision`: precision of Muon's orthogonalization; `auto` uses the faster precision on this machine (see
      `grr_coca.train.step`)
    """

    name: Literal["adamw", "muon"] = "adamw"
    _: KW_ONLY
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    learning_rates: dict[str, float] = field(default_factory=dict)
    layer_decay: float = 1.0
    muon_precision: MuonPrecision = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")
        rates = {f"learning_rates: {part}": rate for part, rate in self.learning_rates.items()}
        _require_at_least(0.0, lr=self.lr, weight_decay=self.weight_decay, **rates)
        _require_finite(lr=self.lr, weight_decay=self.weight_decay, **rates)
        if not self.clip_norm > 0:  # 0 would scale every gradient to 0
            raise UserError(f"clip_norm must be above 0, or .inf for no clipping, got {self.clip_norm}")
        for beta in self.betas:
            _require_share(betas=beta)


@dataclass(frozen=True)
class ScheduleRecipe:
    """Schedule: linear warm-up over `warmup_steps`, then a cosine decay to `final_lr_ratio` times the peak learning
    rate at the last step.

    If `decay_steps` is given, the cosine spans only this many final steps, and the rate is constant before it, so runs
    of all lengths have the same beginning (arXiv 2405.18392). If it is None, the cosine begins after the warm-up.
    """

    steps: int
    warmup_steps: int
    final_lr_ratio: float = 0.0
    decay_steps: int | None = None

    def __post_init__(self) -> None:
        _require_at_least(1, steps=self.steps)
        _require_at_least(0, warmup_steps=self.warmup_steps, decay_steps=self.decay_steps)
        _require_at_least(0.0, final_lr_ratio=self.final_lr_ratio)
        _require_finite(final_lr_ratio=self.final_lr_ratio)


@dataclass(frozen=True)
class LossRecipe:
    """Weights of CoCa's two losses. The defaults are those of the CoCa paper.

    Attributes:
        contrastive_weight: Weight of the contrastive loss.
        captioning_weight: Weight of the captioning loss.
        z_loss_weight: Weight of log² Z per token, which keeps logits from drifting (PaLM, arXiv 2204.02311, uses 1e-4).
            The z-loss is part of the loss that training minimizes, and is logged as `z`. In the log and in evaluation,
            `coca` is the paper's loss, without the z-loss.
        sibling_weight: Weight of the sibling loss, which makes the embeddings of images of the same concept similar
            (see `sibling_loss`). The loss needs `data: siblings`, and is logged as `sibling`. Like the z-loss, it is
            not part of `coca`.
    """

    contrastive_weight: float = 1.0
    captioning_weight: float = 2.0
    z_loss_weight: float = 0.0
    sibling_weight: float = 0.0

    def __post_init__(self) -> None:
        weights = to_dict(self)
        _require_at_least(0.0, **weights)
        _require_finite(**weights)
        if not self.contrastive_weight and not self.captioning_weight:
            raise UserError(
                "contrastive_weight and captioning_weight are both 0, so nothing is learned; set one of them above 0"
            )
        if self.z_loss_weight and not self.captioning_weight:
            raise UserError(
                "z_loss_weight needs the captioning loss, but captioning_weight is 0; set z_loss_weight to 0"
            )

    @property
    def weights(self) -> "LossWeights":
        """Weights in the form that `grr_coca.model.losses` takes."""
        from grr_coca.model.losses import LossWeights  # lazy import, because recipes can be read without torch

        return LossWeights(
            self.contrastive_weight, self.captioning_weight, self.z_loss_weight, sibling=self.sibling_weight
        )


_LAST_WITH_WORDS = "f3ecb185"


@dataclass(frozen=True, kw_only=True)
class TeacherRecipe:
    """Text teacher: a larger model whose embeddings identify texts with nearly the same meaning.

    The teacher is needed only in training.

    Attributes:
        path: Folder with the teacher's embeddings of all training captions, which `scripts/text_teacher.py` writes. A
            path that begins with `cache:` is in the user's cache.
        weight: Weight of the teacher loss (see `teacher_loss`), which trains the text embeddings to have the same
            similarities as the teacher's. This loss is part of the loss that training minimizes, and is logged as
            `teacher`.
        temperature: Temperature of the similarities. With lower values, fewer texts count as similar.
        words: Must be set to 0. Up to commit f3ecb185, a training step could add words without images to its batch, and
            added 128 of them if this key was missing. A recipe without this key is therefore rejected, because its
            training would silently differ.
        soft_targets: Must be 0. Up to the same commit, the teacher could determine a fraction of the contrastive
            targets.
    """

    path: str
    weight: float = 1.0
    temperature: float = 0.1
    words: int | None = None
    soft_targets: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("weight", self.weight), ("temperature", self.temperature)):
            if not value > 0:
                raise UserError(f"{name} must be above 0, got {value}")
        _require_finite(weight=self.weight, temperature=self.temperature)
        last = f"or train with commit {_LAST_WITH_WORDS}, the last that supports this key"
        if self.words is None:
            raise UserError(f"words is missing, which once meant 128 words per step; set words: 0 for none, {last}")
        if self.words:
            raise UserError(f"words {self.words}: no longer supported; set words: 0, {last}")
        if self.soft_targets:
            raise UserError(f"soft_targets {self.soft_targets}: no longer supported; set soft_targets: 0, {last}")


@dataclass(frozen=True, kw_only=True)
class FeaturesRecipe:
    """Features that replace or supplement images as the training input: tokens of a frozen third-party image encoder.

    Attributes:
        encoder: `timm:NAME`, `hf:NAME` or `onnx:FILE`, an encoder that runs at every step. None if features are
            stored.
        caches: Folders that `grr-coca data features` has written, one for the pairs of each path in `data`. Without
            caches and encoder, the paths in `data` themselves are such folders, and no image is read.
        beside: Whether the model keeps its own image encoder, whose tokens are concatenated with the features. If
            False, the features replace this encoder.
        layers: Number of transformer blocks that process the features. `optimizer: learning_rates: feature_encoder` can
            set their peak learning rate.
    """

    encoder: str | None = None
    caches: tuple[str, ...] = ()
    beside: bool = False
    layers: int = 1

    def __post_init__(self) -> None:
        if self.encoder is not None and self.caches:
            raise UserError("encoder and caches (folders of features) cannot be combined; set only one of them")
        if self.beside and self.encoder is None and not self.caches:
            raise UserError("beside: true needs both images and features; set encoder or caches")
        _require_at_least(1, layers=self.layers)

    def with_absolute_paths(self, absolute: Callable[[str], str]) -> "FeaturesRecipe":
        """Return the settings with absolute paths.

        Args:
            absolute: Function that converts a path to an absolute path.
        """
        encoder = self.encoder
        if encoder is not None:
            scheme, _, name = encoder.partition(":")
            model, equals, weights = name.partition("=")
            if scheme == "onnx":
                encoder = f"{scheme}:{absolute(name)}"
            elif weights.endswith(".safetensors"):
                encoder = f"{scheme}:{model}{equals}{absolute(weights)}"
        return replace(self, encoder=encoder, caches=tuple(map(absolute, self.caches)))


@dataclass(frozen=True)
class EvaluationRecipe:
    """Validation, which runs every `interval` steps, and after the last step.

    Attributes:
        interval: Number of steps from one validation to the next.
        batch_size: Exact size of the batches on which contrastive losses are computed. The losses grow with the batch
            size, so the batch size is always reported with them.
        num_captions: Number of images that the model captions at each validation. The captions are scored (CIDEr and
            other scores). The images are always the same, because scores of different images cannot be compared. With
            0, no captions are generated.
    """

    interval: int = 500
    batch_size: int = 64
    num_captions: int = 0

    def __post_init__(self) -> None:
        _require_at_least(1, interval=self.interval, batch_size=self.batch_size)
        _require_at_least(0, num_captions=self.num_captions)


@dataclass(frozen=True)
class CheckpointRecipe:
    """Checkpoints, which are written at intervals of steps and of time, when a signal stops the run, and at the end.

    Attributes:
        interval: Number of steps from one checkpoint to the next. If None, a checkpoint is written at every validation.
        minutes: Maximum time since the last checkpoint, in minutes.
        keep_last: Number of the newest checkpoints that are kept.
        keep_best: Score on the validation split. The checkpoint with its best value is written and kept in addition.
            `mean_recall` is the mean of R@1, R@5 and R@10 in both directions. None keeps no best checkpoint.
        copy_to: URL of a folder in an object store, such as `s3://bucket/runs/mine`, to which the run folder is copied
            after each checkpoint. If None, the folder is not copied.
    """

    interval: int | None = None
    minutes: float = 30.0
    keep_last: int = 2
    keep_best: Score | None = None
    copy_to: str | None = None

    def __post_init__(self) -> None:
        if self.copy_to is not None and is_url(self.copy_to):
            require_no_credentials(self.copy_to)  # before the message below, which contains the URL
        if self.copy_to is not None and (not is_url(self.copy_to) or self.copy_to.startswith("http")):
            raise UserError(
                f"copy_to must be the URL of a folder in an object store, such as s3://BUCKET/RUN, got {self.copy_to}"
            )
        _require_at_least(1, interval=self.interval, keep_last=self.keep_last)
        _require_at_least(0.0, minutes=self.minutes)


@dataclass(frozen=True)
class FailureLimits:
    """Limits at which a run is aborted.

    Attributes:
        max_skipped: Number of steps in a row, all skipped because the loss or a gradient is not finite, after which the
            run is aborted.
        max_bad_share: Maximum fraction of invalid samples among about the last 10,000 samples.
    """

    max_skipped: int = 10
    max_bad_share: float = 0.1

    def __post_init__(self) -> None:
        _require_at_least(1, max_skipped=self.max_skipped)
        _require_at_least(0.0, max_bad_share=self.max_bad_share)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a run. Pretraining needs `model` and `tokenizer`; fine-tuning takes both from its checkpoint.

    A recipe with an invalid value, or with values that contradict each other, raises a `UserError` when it is created.

    - `teacher`: a text teacher, or None
    - `features`: features of a frozen encoder; None means that there is only the model's own image encoder
    - `freeze`: parts whose weights do not change
    - `precision`: precision of the forward and backward passes. `auto` is bf16 if that is faster on this machine; fp16
      on a GPU that has no bf16 but fast fp16 (V100, T4); and otherwise fp32. In fp16, the loss is scaled, see
      `LossScale`
    - `parallelism`: `ddp` copies the model to every process; `fsdp` shards it over the processes
    - `temperature`: `refitted` replaces the temperature after the last step by the best one for the validation pairs
      (see `refit_scaling`). The learned temperature fits the training pairs; if these are few, it is too sharp for
      other pairs. All validations report losses with a refitted temperature. Checkpoints of earlier steps keep the
      learned temperature
    - `ema`: decay of a running average of the weights (see `Ema`), which is then evaluated and saved; None means no
      average
    - `compile`: whether to compile the blocks during the first steps. This takes about a minute, and needs a C++
      compiler on a CPU, or Triton, a C compiler and Python's headers on a GPU
    - `gradient_checkpointing`: fraction of the blocks' intermediate results that are recomputed in the backward pass
      instead of stored. With 1, only the inputs of blocks are kept, which needs the least memory, but one more forward
      pass. A value between 0 and 1 needs `compile`, because the compiler first drops the results that are cheapest to
      recompute; 0.75 is a good value
    - `seed`: seed of the initial weights, the order of the pairs, and all random changes
    """

    data: DataRecipe
    schedule: ScheduleRecipe
    model: ModelRecipe | None = None
    tokenizer: TokenizerRecipe | None = None
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    losses: LossRecipe = field(default_factory=LossRecipe)
    teacher: TeacherRecipe | None = None
    features: FeaturesRecipe | None = None
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)
    checkpoints: CheckpointRecipe = field(default_factory=CheckpointRecipe)
    health: FailureLimits = field(default_factory=FailureLimits)
    freeze: tuple[FrozenPart, ...] = ()
    precision: Precision = "auto"
    parallelism: Parallelism = "ddp"
    temperature: Temperature = "learned"
    ema: float | None = None
    compile: bool = False
    gradient_checkpointing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ema is not None:
            _require_share(ema=self.ema)
        self._check_gradient_checkpointing()
        self._check_features()
        _require_at_least(0, seed=self.seed)
        if self.losses.sibling_weight and not self.data.siblings:
            raise UserError(
                "losses: sibling_weight needs batches with siblings; set data: siblings, or sibling_weight: 0"
            )
        if self.checkpoints.keep_best in CAPTION_SCORES and not self.evaluation.num_captions:
            raise UserError(
                f"checkpoints: keep_best {self.checkpoints.keep_best} needs captions; set evaluation: num_captions "
                "above 0"
            )

    @property
    def loss_weights(self) -> "LossWeights":
        """Weights of all losses, including the teacher's, in the form that `grr_coca.model.losses` takes."""
        weights, teacher = self.losses.weights, self.teacher
        if teacher is None:
            return weights
        return replace(weights, teacher=teacher.weight, teacher_temperature=teacher.temperature)

    def require_even_shares(self, num_processes: int) -> None:
        """Check that a batch can be divided evenly among the given number of processes.

        Raises:
            UserError: If the batch cannot be divided evenly.
        """
        count = self.data.batch_size
        if count % num_processes:
            lower = count // num_processes * num_processes
            fitting = " or ".join(str(size) for size in (lower, lower + num_processes) if size)
            raise UserError(
                f"data: batch_size {count} cannot be shared evenly among {num_processes} processes; use {fitting}"
            )

    def _check_features(self) -> None:
        """Check that there are no keys for the image encoder if features replace it.

        Raises:
            UserError: If there is such a key.
        """
        if self.features is None or self.features.beside:
            return
        model, plain = self.model or ModelRecipe(), ModelRecipe()
        keys = ("image_layers", "image_size", "patch_size", "stem", "num_registers", "pixel_mean", "pixel_std")
        unused = [f"model: {key}" for key in (*keys, "image_positions") if getattr(model, key) != getattr(plain, key)]
        unused += ["data: patch_dropout"] if self.data.patch_dropout else []
        unused += ["data: augmentation"] if self.data.augmentation != Augmentation() else []
        if unused:
            raise UserError(
                f"{unused[0]}: features replace the image encoder; remove this key, or set features: beside: true"
            )

    def _check_gradient_checkpointing(self) -> None:
        share = self.gradient_checkpointing
        if not 0 <= share <= 1:
            raise UserError(f"gradient_checkpointing must be from 0 to 1, got {share}")
        if 0 < share < 1 and not self.compile:
            raise UserError(
                f"gradient_checkpointing {share}: a value between 0 and 1 needs the compiler; set compile: true, "
                "or gradient_checkpointing: 1, which stores only the inputs of blocks"
            )


def load_recipe(path: Path) -> Recipe:
    """Read a recipe and make its paths absolute.

    Raises:
        UserError: If the file does not exist, is not YAML, or has an invalid key or value.
    """
    recipe = from_dict(Recipe, read_yaml(path, "recipe"), str(path))
    try:
        return with_absolute_paths(recipe, path.resolve().parent)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def with_absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with absolute paths. Relative paths are relative to `folder`.

    Raises:
        UserError: If a path is empty or may contain a credential, or two paths of `mix` are the same.
    """
    absolute, data, teacher = partial(absolute_data, folder), recipe.data, recipe.teacher
    mix: dict[str, float] = {}
    for source, share in data.mix.items():
        if absolute(source) in mix:
            raise UserError(
                f"data: mix: {source} is a duplicate in another spelling; keep one of them, with the sum "
                "of their fractions"
            )
        mix[absolute(source)] = share
    data = replace(
        data,
        train=absolute(data.train),
        mix=mix,
        val=None if data.val is None else absolute(data.val),
        test={name: absolute(split) for name, split in data.test.items()},
    )
    teacher = None if teacher is None else replace(teacher, path=absolute(teacher.path))
    tokenizer = recipe.tokenizer
    if tokenizer is not None and tokenizer.path is not None:
        tokenizer = replace(tokenizer, path=absolute(tokenizer.path))
    features = None if recipe.features is None else recipe.features.with_absolute_paths(absolute)
    return replace(recipe, data=data, teacher=teacher, tokenizer=tokenizer, features=features)


def absolute_data(folder: Path, path: str) -> str:
    """Return the absolute, normalized path of pairs, a teacher or a tokenizer. A URL is returned unchanged.

    When a run is resumed, its paths are compared in this form.

    Args:
        folder: Base folder of relative paths.
        path: Path in the recipe; `cache:` represents the user's cache.

    Raises:
        UserError: If the path is empty, or a URL that may contain a credential.
    """
    require_nonempty_path(path)
    if is_url(path):
        return require_no_credentials(path)
    return os.path.normpath(folder / expand_cache_prefix(path))


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as YAML, with all defaults. An existing file is replaced atomically.

    Raises:
        OSError: If the disk is full or cannot be written to.
    """
    import yaml  # lazy import, because the extra [train] installs it, but this module is also used without it

    write_bytes_atomic(path, yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True).encode())


# --- Checks of numbers. Each number is passed as a keyword argument with the name of its recipe key, which the message
# contains.


def _require_at_least(bound: float, **numbers: float | None) -> None:
    """Reject NaN and numbers below the bound. None represents a missing key."""
    for name, number in numbers.items():
        if number is not None and not number >= bound:
            raise UserError(f"{name} must be at least {bound}, got {number}")


def _require_share(**numbers: float) -> None:
    """Reject numbers outside [0, 1)."""
    for name, number in numbers.items():
        if not 0 <= number < 1:
            raise UserError(f"{name} must be at least 0 and below 1, got {number}")


def _require_finite(**numbers: float) -> None:
    """Reject infinity and NaN."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise UserError(f"{name} must be finite, got {number}")


def _require_visits(mix: Mapping[str, float]) -> None:
    """Reject a mixture if a fraction is so small that training would use no sample from that source.

    Args:
        mix: Fraction of the samples from each additional source, by path. The remaining samples come from `train`.
    """
    shares = mixture_fractions(mix)
    of_train, *of_others = visits_in_period(shares)
    never, minimum = f"none of {PERIOD:,} samples would be from it", f"more than {1 / PERIOD:g}"
    if not of_train:
        raise UserError(f"mix: the fraction left for train, {shares[0]:g}, is too small: {never}; leave {minimum}")
    for (path, share), visits in zip(mix.items(), of_others, strict=True):
        if not visits:
            raise UserError(f"mix: {path} {share:g} is too small: {never}; set {minimum}, or remove it")
