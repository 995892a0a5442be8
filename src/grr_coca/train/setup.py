"""Start of a run: a new model, the pairs in training order, the fingerprint of the data, and the batches."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool

from grr_coca.common import plugins
from grr_coca.common.dict_to_dataclass import differences
from grr_coca.common.errors import UserError, count_of
from grr_coca.common.files import read_file_bytes
from grr_coca.common.ranks import Ranks
from grr_coca.data.batch import Batch
from grr_coca.data.dataset import PairDataset, make_loader
from grr_coca.data.order import (
    Blocks,
    GlobalBatches,
    Mixture,
    RankShare,
    SampleSequence,
    Shuffle,
    TrainingOrder,
    mixture_fractions,
)
from grr_coca.data.prefetch import PrefetchOrder
from grr_coca.data.random_changes import Siblings, SiblingVisits, kept_patches
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.feature_pairs import feature_header_of
from grr_coca.data.sources.features import open_features, with_features
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import (
    Chain,
    Subset,
    caption_texts,
    every_caption,
    image_numbers,
    source_digest,
    split_valid_pairs,
)
from grr_coca.data.tokenizer import Tokenizer, clip_bpe, decode_text, measure_lost_letters, train_bpe
from grr_coca.evaluate.split import frozen_input, with_computed_features
from grr_coca.model.build import build, build_without_weights, sine_cosine_positions
from grr_coca.model.checkpoint import Checkpoint, resize_checkpoint
from grr_coca.model.coca import PADDING
from grr_coca.model.config import OWN_ARCHITECTURE, CoCaConfig, find_architecture
from grr_coca.train.features import with_feature_encoder
from grr_coca.train.optimizer import freeze
from grr_coca.train.recipe import ModelRecipe, Recipe, TeacherRecipe, TokenizerRecipe

# --- State of the data


@dataclass(frozen=True)
class SourceState:
    """Number and digest (see `source_digest`) of a run's pairs from one source."""

    pairs: int
    digest: str


@dataclass(frozen=True)
class DataState:
    """Fingerprint of a run's data, which must be the same in a resumed run.

    The number and names of the pairs determine the training order, and which pairs are held out for validation. The
    keys of `sources` are `train`, `mix 1` and so on, `val`, and `teacher` (with the number of its texts) if there is
    one.
    """

    sources: dict[str, SourceState]


def data_state(recipe: Recipe, pairs: PairSource, val: PairSource) -> DataState:
    """Return the fingerprint of the pairs that `training_sources` opened for a recipe, and of its teacher.

    Raises:
        UserError: If the teacher's folder is missing or corrupt, lacks a caption, or no installed package can read it.
    """
    parts = pairs.sources if recipe.data.mix and isinstance(pairs, Chain) else [pairs]
    states = [SourceState(len(source), source_digest(source)) for source in (*parts, val)]
    if recipe.teacher is not None:
        teacher = open_teacher(recipe.teacher, pairs)
        states.append(SourceState(len(teacher), teacher.digest))
    return DataState(dict(zip(_source_paths(recipe), states, strict=True)))


def require_same_data(then: DataState, now: DataState, recipe: Recipe, point: Path) -> None:
    """Check that the data of a resumed run are the same as when the checkpoint `point` was written.

    Sources that the checkpoint does not record are not compared.

    Raises:
        UserError: If a source has changed. The message names the first one.
    """
    for name, path in _source_paths(recipe).items():
        found, before = now.sources[name], then.sources.get(name)
        if before is None or found.digest == before.digest:
            continue
        changed = "the names or sizes of its files, or the pairs that are taken from it, have changed since"
        if name == "teacher":
            changed = "its texts or embeddings have changed since"
        elif found.pairs != before.pairs:
            changed = f"it has {count_of(found.pairs, 'pair')} now, but had {before.pairs:,} when"
        raise UserError(
            f"{path}: data: {name} of the run: {changed} {point} was written; restore the old data, or start another "
            "run with another --out"
        )


def _source_paths(recipe: Recipe) -> dict[str, str]:
    """Return the path of each source, by the keys of `DataState.sources`.

    A recipe without `val` holds out validation pairs from `train`.
    """
    data = recipe.data
    mixed = {f"mix {number}": path for number, path in enumerate(data.mix, start=1)}
    teacher = {} if recipe.teacher is None else {"teacher": recipe.teacher.path}
    return {"train": data.train, **mixed, "val": data.val or data.train, **teacher}


# --- Model and pairs

log = logging.getLogger(__name__)

HOLD_OUT_EVERY, MAX_HELD_OUT = 20, 5000
"""Interval of held-out images, and their maximum number. If a recipe has no validation split, every `HOLD_OUT_EVERY`-th
image is held out with all its pairs, at most `MAX_HELD_OUT` images."""
MIN_HOLD_OUT_EVERY = 4
"""Minimum interval of held-out images. If every `HOLD_OUT_EVERY`-th image yields too few pairs for a validation batch,
more images are held out, but at most every fourth image."""

MAX_TOKENIZER_IMAGES = 1_000_000
"""Maximum number of images, evenly spread over the source, on whose captions the tokenizer is trained."""


def new_checkpoint(recipe: Recipe, ranks: Ranks) -> Checkpoint:
    """Create a new model and its tokenizer for a pretraining recipe. All ranks must call this function.

    Args:
        recipe: Pretraining recipe.
        ranks: This process among the processes of the run.

    Raises:
        UserError: If the recipe has no model or no tokenizer, the model cannot be built, the tokenizer does not match
            the model or the captions, or the training pairs or features cannot be used.
    """
    if recipe.model is None or recipe.tokenizer is None:
        missing = "model" if recipe.model is None else "tokenizer"
        raise UserError(
            f"the recipe has no key '{missing}', which pretraining needs; add it, or use `grr-coca finetune`"
        )
    tokenizer = Tokenizer.from_json(ranks.run_on_first(lambda: _new_tokenizer(recipe).to_json()))
    config = recipe.model.config(tokenizer.largest_id + 1)
    other = None if config.architecture == OWN_ARCHITECTURE else find_architecture(config.architecture)
    if other is not None and other.reserves_padding and PADDING in (tokenizer.bos_id, tokenizer.eos_id):
        raise UserError(
            f"tokenizer: kind '{recipe.tokenizer.kind}' does not match model: preset '{recipe.model.preset}', which "
            f"uses id {PADDING} for padding; in this tokenizer, id {PADDING} begins or ends texts; set kind to 'clip'"
        )
    model, preset = build(config, recipe.seed), recipe.model.preset
    assert preset is not None, "it has a config"
    if recipe.model.image_positions == "sine_cosine":
        sine_cosine_positions(model)
    start = Checkpoint(
        model=model,
        config=config,
        preset=preset,
        tokenizer=tokenizer,
        preprocess=recipe.model.preprocess(config),
        step=0,
    )
    return start if recipe.features is None else with_feature_encoder(start, recipe)


def check_parts(recipe: Recipe, config: CoCaConfig) -> None:
    """Check that a model has all parts that a recipe names.

    Raises:
        UserError: If `learning_rates`, `freeze` or `image_positions` do not match the model.
    """
    with torch.device("meta"):
        model = build_without_weights(config)
    freeze(model, recipe.freeze, recipe.optimizer.learning_rates)
    if recipe.model is not None and recipe.model.image_positions == "sine_cosine":
        sine_cosine_positions(model)


def fit_start(start: Checkpoint, recipe: Recipe) -> Checkpoint:
    """Adapt a checkpoint to a fine-tuning recipe, which may set another image size, another context length, and
    features.

    Raises:
        UserError: If the recipe names another model, a tokenizer, a size that the model cannot have, or features that
            cannot be used.
    """
    start = _fit_start_model(start, recipe)
    return start if recipe.features is None else with_feature_encoder(start, recipe)


def _fit_start_model(start: Checkpoint, recipe: Recipe) -> Checkpoint:
    if recipe.tokenizer is not None:
        raise UserError("fine-tuning keeps the tokenizer of its checkpoint; remove the key 'tokenizer' from the recipe")
    requested = recipe.model
    if requested is None:
        return start
    if requested.image_positions != "random":
        raise UserError(
            "fine-tuning keeps the positions of its checkpoint; remove model: image_positions from the recipe"
        )
    if requested.preset is None and requested.size is None:
        _require_only_sizes(requested)
    try:
        start = resize_checkpoint(start, requested.image_size, requested.context_length)
        if requested.preset is None and requested.size is None:
            return start
        config = requested.config(start.tokenizer.vocab_size)
    except UserError as error:
        raise UserError(f"model: {error}") from error
    differing = differences(config, start.config) + differences(requested.preprocess(config), start.preprocess)
    if differing:
        key, value, found = differing[0]
        raise UserError(
            f"the checkpoint contains a '{start.preset}', not the '{requested.preset}' of size '{requested.size}' "
            f"that the recipe requests: {key} is {found}, not {value}; remove the key 'model' from the recipe to "
            "use the checkpoint's model"
        )
    return start


def _require_only_sizes(model: ModelRecipe) -> None:
    """Check that a recipe without a preset changes only parts of the model that fine-tuning can change.

    Raises:
        UserError: If it changes another part. The message names the first one.
    """
    for key, value, _ in differences(
        model, ModelRecipe(image_size=model.image_size, context_length=model.context_length)
    ):
        raise UserError(
            f"model: {key} {value}: fine-tuning keeps the model of its checkpoint, and can change only image_size and "
            "context_length; remove this key"
        )


def training_sources(recipe: Recipe) -> tuple[PairSource, PairSource]:
    """Return the training pairs and the validation pairs.

    In the validation pairs, each caption of an image is a separate pair.

    Raises:
        UserError: If a source cannot be opened, has other features than the recipe, or no training pair remains.
    """
    open_ = partial(_open_source, recipe)
    pairs = open_(recipe.data.train)
    if recipe.data.val is not None:
        val = open_(recipe.data.val)
    else:
        is_held_out = _held_out_mask(pairs, recipe.evaluation.batch_size)
        pairs, val = Subset(pairs, np.flatnonzero(~is_held_out)), Subset(pairs, np.flatnonzero(is_held_out))
    if not len(pairs):
        raise UserError(f"{recipe.data.train}: no training pair remains; add pairs, or set data: val")
    if recipe.data.mix:
        pairs = Chain([pairs, *map(open_, recipe.data.mix)])
    return pairs, every_caption(val)


def _open_source(recipe: Recipe, path: str) -> PairSource:
    """Open a source of pairs, with their features if the recipe names folders of stored features.

    Raises:
        UserError: If the source cannot be opened, or its features and those of the recipe do not match.
    """
    source, features = open_source(path), recipe.features
    if features is not None and features.caches:
        return with_features(source, features.caches)
    if features is not None and features.encoder is None:
        first = open_features(recipe.data.train).header
        open_features(path, first.encoder, first.keep)
    elif feature_header_of(source) is not None:
        raise UserError(
            f"{path}: contains features instead of images; set the key 'features' to {{}}, without an encoder"
        )
    return source


@runtime_checkable
class CaptionTeacher(Protocol):
    """Embeddings of the training captions by another model. The class is registered in `grr_coca.objectives` as
    `teacher`.
    """

    @classmethod
    def read(cls, path: str) -> "CaptionTeacher":
        """Read and check a teacher's folder.

        Raises:
            UserError: If the folder is missing or corrupt.
        """
        ...

    @property
    def digest(self) -> str:
        """Digest of the content, by which a resumed run recognizes its teacher."""
        ...

    def __len__(self) -> int: ...

    def require_captions(self, pairs: PairSource) -> None:
        """Check that the teacher has embedded the captions of all pairs.

        Raises:
            UserError: If the embedding of a caption is missing.
        """
        ...

    def teach(self, batch: Batch) -> Batch:
        """Return the batch with the teacher's embeddings of its captions."""
        ...


def _read_teacher(recipe: TeacherRecipe) -> CaptionTeacher:
    kind: type[CaptionTeacher] | None = plugins.find("grr_coca.objectives", "teacher")
    if kind is None:
        raise UserError("the recipe has a teacher, which needs the package grr_coca_icons; install grr-coca again")
    return kind.read(recipe.path)


def open_teacher(recipe: TeacherRecipe, pairs: PairSource) -> CaptionTeacher:
    """Open a teacher, which must have embedded the captions of the given pairs.

    Raises:
        UserError: If the teacher's folder is missing or corrupt, lacks a caption, or no installed package can read it.
    """
    teacher = _read_teacher(recipe)
    teacher.require_captions(pairs)
    return teacher


_NUM_COMPARED_CAPTIONS = 200


def warn_of_equal_captions(pairs: PairSource) -> None:
    """Log a warning if all captions in a sample of the pairs are equal."""
    found = list(islice(caption_texts(pairs, limit=_NUM_COMPARED_CAPTIONS), _NUM_COMPARED_CAPTIONS))
    if len(found) > 1 and len(set(found)) == 1:
        log.warning(
            "all captions that were read are equal ('%s'), so there is nothing to learn; use captions that differ",
            found[0][:100],
        )


def _held_out_mask(pairs: PairSource, batch_size: int) -> Bool[np.ndarray, " N"]:
    """Return a mask of the pairs that are held out for validation.

    Pairs are held out by image, so all captions of an image are in the same split. If the usual interval holds out
    fewer than `batch_size` pairs, a smaller interval is chosen. If possible, the number of held-out images then exceeds
    `batch_size` by a quarter, because some pairs may be invalid.
    """
    images = image_numbers(pairs)
    num_images = int(images.max(initial=-1)) + 1
    usual = images % max(HOLD_OUT_EVERY, -(-num_images // MAX_HELD_OUT)) == 0
    if usual.sum() >= batch_size or len(every_caption(Subset(pairs, np.flatnonzero(usual)))) >= batch_size:
        return usual
    return images % min(HOLD_OUT_EVERY, max(MIN_HOLD_OUT_EVERY, 4 * num_images // (5 * batch_size))) == 0


def readable_validation(val: PairSource, ranks: Ranks) -> PairSource:
    """Return the validation pairs that can be read, because an invalid pair would end a long run at its first
    validation.

    Each rank reads a different part of the pairs, because with intermittent disk errors, two ranks could disagree about
    a pair. All ranks must call this function. Excluded pairs are reported in a warning.

    Raises:
        UserError: If no pair can be read.
    """
    start, end = (len(val) * number // ranks.size for number in (ranks.rank, ranks.rank + 1))
    mine, errors = split_valid_pairs(Subset(val, range(start, end)))
    parts = ranks.gather_objects((start + np.asarray(mine, np.int64), list(map(str, errors))))
    readable = np.concatenate([found for found, _ in parts])
    bad = [error for _, found in parts for error in found]
    if bad and not len(readable):
        raise UserError(
            f"no validation pair can be read; the first error is: {bad[0]}; run `grr-coca data check` to "
            "list all errors"
        )
    if bad and ranks.is_first:
        log.warning("excluding invalid validation pairs: %d of %d; the first error is: %s", len(bad), len(val), bad[0])
    return Subset(val, readable)


def training_batches(
    recipe: Recipe, start: Checkpoint, pairs: PairSource, ranks: Ranks, first_step: int = 0
) -> Iterator[list[Batch]]:
    """Yield this rank's part of each global batch, as micro-batches, from step `first_step` to the recipe's last step.

    Steps are counted from 0. Samples that cannot be read are replaced, and recorded in the batch.
    """
    data, keep_patches = recipe.data, None
    if data.patch_dropout:
        keep_patches = partial(kept_patches, start.config.own_image_encoder.num_patches, data.patch_dropout)
    blocks = Blocks(pairs.lengths if data.mix and isinstance(pairs, Chain) else [len(pairs)])
    dataset = PairDataset(
        pairs,
        start.tokenizer,
        start.preprocess,
        start.config.text_decoder.context_length,
        augmentation=data.augmentation,
        seed=recipe.seed,
        keep_patches=keep_patches,
        first_caption=data.first_caption,
        has_siblings=data.siblings > 0,
        blocks=blocks,
        frozen=frozen_input(start),
    )
    global_batches = GlobalBatches(data.batch_size, recipe.schedule.steps, first_step)
    order = TrainingOrder(
        training_visits(recipe, pairs), global_batches, RankShare(ranks.rank, ranks.size), data.micro_batch_size
    )
    teacher = None if recipe.teacher is None else _read_teacher(recipe.teacher)
    share = data.batch_size // ranks.size
    num_micro_batches = -(-share // (data.micro_batch_size or share))
    ahead = PrefetchOrder(order, _visits_without_siblings(recipe, pairs), blocks) if pairs.is_remote else None
    batches = with_computed_features(make_loader(dataset, ahead or order, data.num_workers), start)
    while micro_batches := list(islice(batches, num_micro_batches)):
        yield micro_batches if teacher is None else list(map(teacher.teach, micro_batches))


def training_visits(recipe: Recipe, pairs: PairSource) -> SampleSequence:
    """Return the random order in which training visits the pairs of one source, or of the recipe's mixture of several
    sources.

    The visits include siblings if the recipe requests them.
    """
    visits = _visits_without_siblings(recipe, pairs)
    if not recipe.data.siblings:
        return visits
    return SiblingVisits(visits, Siblings(pairs, apart=True), recipe.data.siblings, recipe.seed)


def _visits_without_siblings(recipe: Recipe, pairs: PairSource) -> SampleSequence:
    if not recipe.data.mix:
        return Shuffle(len(pairs), recipe.seed)
    assert isinstance(pairs, Chain)
    return Mixture(pairs.lengths, mixture_fractions(recipe.data.mix), recipe.seed)


_MAX_LOST_LETTERS = 0.05
_NUM_CHECKED_CAPTIONS = 2_000
"""Maximum fraction of letters that a tokenizer from a file may lose, and the number of training captions to check."""


def _new_tokenizer(recipe: Recipe) -> Tokenizer:
    assert recipe.tokenizer is not None
    kind, path = recipe.tokenizer.kind, recipe.tokenizer.path
    if kind != "bpe":
        _require_no_vocab_size(recipe.tokenizer)
    if kind == "clip":
        return clip_bpe()
    source, _ = training_sources(recipe)
    if path is None:
        return train_bpe(caption_texts(source, limit=MAX_TOKENIZER_IMAGES), recipe.tokenizer.vocab_size)
    text = decode_text(read_file_bytes(path), path)
    try:
        tokenizer = Tokenizer.from_foreign(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    share, caption = measure_lost_letters(tokenizer, caption_texts(source, limit=_NUM_CHECKED_CAPTIONS))
    if share > _MAX_LOST_LETTERS:
        raise UserError(
            f"{path}: cannot represent {share:.0%} of the letters in the captions, such as in "
            f"'{caption[:100]}'; use a tokenizer for their language, or kind 'bpe'"
        )
    return tokenizer


def _require_no_vocab_size(tokenizer: TokenizerRecipe) -> None:
    """Reject a size for a fixed vocabulary. The default is accepted, because every run writes it to its recipe.

    Only a new run needs a tokenizer, so an existing run with such a recipe can still be resumed and read.
    """
    if tokenizer.vocab_size != TokenizerRecipe.vocab_size:
        fixed = (
            "whose vocabulary has 49,408 ids" if tokenizer.kind == "clip" else "whose vocabulary is fixed by the file"
        )
        raise UserError(
            f"tokenizer: vocab_size {tokenizer.vocab_size} does not match kind '{tokenizer.kind}', {fixed}; "
            "remove vocab_size, or set kind to 'bpe'"
        )
