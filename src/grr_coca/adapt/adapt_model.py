"""Adapt a model to a user's pairs, and write the folder of the adapted model. For example:

adapt_model(open_source("my-pairs"), "my-pairs", "icons", Path("mine"))
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from grr_coca.adapt.calibrate import CaptionFigures, fit_captions, fit_scale, fit_search
from grr_coca.adapt.fit import FitMetrics, FitResult, drop_held_out_copies, fit_images, flat_figures, measure_fit
from grr_coca.adapt.read_pairs import ImageSet, read_pairs, require_size
from grr_coca.adapt.ridge import MAX_EXACT
from grr_coca.common.errors import UserError
from grr_coca.common.files import MANIFEST, atomic_folder, read_json, read_manifest
from grr_coca.common.shapes import UInt8
from grr_coca.data.features import EncoderInfo
from grr_coca.data.sources.base import BadSample, PairSource
from grr_coca.data.sources.feature_pairs import feature_header_of
from grr_coca.data.sources.folder import read_image_file
from grr_coca.data.sources.views import Chain
from grr_coca.infer.adapted import descriptors, words
from grr_coca.infer.adapted.adaptation import (
    Adaptation,
    AdaptedHeader,
    Arrays,
    Captioning,
    read_adapted_header,
    read_features,
    write_adaptation,
)
from grr_coca.infer.adapted.beside import (
    ENCODER_GRAPH,
    MeanTokenDescriptor,
    open_extra_encoder,
    open_replacing_encoder,
    open_start,
    read_encoder_info,
    read_encoder_mean,
    take_encoder_pixels,
    write_extra_encoder,
)
from grr_coca.infer.export.encoder_graph import NUM_COMPARED
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.infer.load import load, locate_checkpoint
from grr_coca.model.checkpoint_files import (
    ADAPTED_FILES,
    FITTED_FILES,
    MODEL_FILES,
    RELEVANCE,
    fingerprint,
    is_adapted,
    read_files,
)

log = logging.getLogger(__name__)

REPORT = "report.html"
_ADAPTATION_FILES = {REPORT, *ADAPTED_FILES}


@dataclass(frozen=True, kw_only=True)
class AdaptationResult:
    """Result of `adapt_model`.

    Attributes:
        images: Images with captions, including those that were held out for measurements.
        fitted: Model fitted to the images.
        measured: Measurements of the fitted model on held-out images.
        arrays: Content of `adapted.safetensors`, in full precision.
        captions: Captioning settings, and captions of held-out images.
        header: Content of `adapted.json`.
        relevance: Content of `relevance.json`: the parameters that estimate the probability that a search result is
            correct. None if they were not fitted.
        num_reused: Number of fitted images whose features were reused from an earlier adaptation.
        seconds: Time of the adaptation in seconds, without the time to write the folder.
        source: The pairs, followed by the held-out pairs if they were given.
        model: The base model. If an image encoder is used, the model takes the pixels of that encoder.
        is_tuned: Whether the base was fine-tuned on these pairs.
        encoder: Image encoder that was used in addition to the base, or None.
        start: Name of the start model whose embedding was used as an additional feature, or None.
        graph: Line about the encoder graph in the folder, or the reason why the graph is missing. Empty if the encoder
            needs no graph.
    """

    images: ImageSet
    fitted: FitResult
    measured: FitMetrics
    arrays: Arrays
    captions: CaptionFigures
    header: AdaptedHeader
    relevance: dict[str, float] | None
    num_reused: int
    seconds: float
    source: PairSource
    model: ImageTextModel
    is_tuned: bool
    encoder: EncoderInfo | None
    start: str | None
    graph: str = ""


OnStageProgress = Callable[[str, int, int], object]
"""Callback for progress.

In the stage `reading images`, it gets the name of the stage, the number of images read, and the total number of images.
When a later stage begins, it gets the name of the stage, the number of the stage (from 0), and 0.
"""


def adapt_model(
    pairs: PairSource,
    name: str,
    base: str,
    out: Path,
    val: PairSource | None = None,
    is_tuned: bool = False,
    encoder: str | None = None,
    watch: OnStageProgress = lambda *_: None,
    write_more: Callable[[Path, AdaptationResult], object] = lambda *_: None,
) -> AdaptationResult:
    """Adapt a model to pairs, write its folder, and return the result.

    Args:
        pairs: The pairs.
        name: Name of the pairs in messages.
        base: Name or folder of the base model.
        out: New folder, or the folder of an earlier adaptation, which is replaced. If its base and encoder are the
            same, its stored features are reused.
        val: Pairs for choosing hyperparameters and for all measurements. They are held out from the fit, even if they
            are also among `pairs`. If None, the pairs are divided into folds.
        is_tuned: Whether the base was fine-tuned on these pairs. `val` should then be given, because the base fits its
            training pairs too well for measurements. The embedding of the base's start model, if it is available, is an
            additional feature; see `grr_coca.infer.adapted.beside`.
        encoder: Name of an additional image encoder, or the folder of its stored features. If given, it is used in
            place of the start model.
        watch: Called to report progress.
        write_more: Called with the unfinished folder and the result, to add files such as a report.

    Raises:
        UserError: If the pairs, the base or the encoder cannot be used, or the folder cannot be written, or contains
            other files.
    """
    began = time.perf_counter()
    require_size(pairs, name, "" if is_tuned else "; train on more: grr-coca finetune (docs/training.md)")
    source = pairs if val is None else Chain([pairs, val])
    folder = locate_checkpoint(base)
    if is_adapted(folder):
        raise UserError(
            f"{base}: an adapted model cannot be adapted again; pass its base model, "
            f"{read_adapted_header(folder).base}. To add pairs, pass all "
            "pairs and the same --out: stored features are reused"
        )
    require_replaceable(out)
    base_fingerprint = fingerprint(folder)
    features = feature_header_of(source)
    if features is not None and encoder is not None:
        raise UserError(f"{name}: contains features, which need no encoder; omit --encoder")
    model = load(folder)
    descriptor = None if encoder is None else open_extra_encoder(encoder, model.preprocess.framing)
    if encoder is None and is_tuned:
        descriptor = open_start(folder, load)
    if features is not None:
        descriptor = open_replacing_encoder(features)
    if descriptor is not None:
        model = ImageTextModel(*take_encoder_pixels(read_files(folder), model.engine, descriptor), folder)
    stored = _stored_features(out, base_fingerprint, descriptor)
    images = read_pairs(
        source,
        name,
        model,
        stored,
        lambda done, total: watch("reading images", done, total),
        held_from=len(pairs),
        descriptor=descriptor,
    )
    num_reused = sum(bytes(row) in stored for row in images.digests[: images.num_fit])
    if val is not None:
        images = drop_held_out_copies(images)
        if len(images) == images.num_fit:
            raise UserError(
                f"{name}: no held-out image can be used, or all of them are near-equal to images of the pairs; pass "
                "other pairs to --val"
            )
    steps = iter(range(100))

    def begin(part: str) -> None:
        watch(part, next(steps), 0)

    fitted = fit_images(images, begin, is_tuned=is_tuned)
    measured = measure_fit(images, fitted, begin)
    draft = adaptation_of(images, fitted, base, base_fingerprint)
    begin("captions")
    captions = fit_captions(images, fitted, measured, draft, source, model)
    figures = flat_figures(measured.figures)
    for mode, cider in captions.cider.items():
        figures[f"captions/{mode}"] = {"CIDEr": cider, "exact": captions.exact[mode]}
    relevance = fit_search(images, fitted, measured, draft, captions, model)
    num_texts = int(images.fitted_captions.text_ids.max()) + 1  # captions of fitted images come first
    header = replace(
        draft.header,
        captioning=captions.captioning,
        logit_scale=fit_scale(images, fitted, measured, draft),
        captions=images.captions.texts[:num_texts],
        figures=figures,
    )
    arrays = replace(fitted.arrays, caption_vectors=fitted.arrays.caption_vectors[:num_texts])
    seconds = time.perf_counter() - began
    adapted = AdaptationResult(
        images=images,
        fitted=fitted,
        measured=measured,
        arrays=arrays,
        captions=captions,
        header=header,
        relevance=relevance,
        num_reused=num_reused,
        seconds=seconds,
        source=source,
        model=model,
        is_tuned=is_tuned,
        encoder=None if descriptor is None or descriptor.is_start else descriptor.encoder.info,
        start=descriptor.encoder.info.name if descriptor is not None and descriptor.is_start else None,
    )
    return replace(adapted, graph=_write(out, folder, adapted, descriptor, write_more))


def adaptation_of(images: ImageSet, fitted: FitResult, base: str, base_fingerprint: str) -> Adaptation:
    """Return the adaptation that results from a fit.

    Its header is preliminary: captions are chosen without the decoder and without a confidence, among the captions of
    all images, including those of held-out images; the inverse temperature is 1; and there are no metrics.

    Args:
        images: Images of the fit.
        fitted: Model fitted to the images.
        base: Name of the base model.
        base_fingerprint: Fingerprint of the base.
    """
    header = AdaptedHeader(
        base=base,
        base_fingerprint=base_fingerprint,
        word_rules=words.RULES,
        image_rules=descriptors.VERSION,
        num_images=images.num_fit,
        num_landmarks=fitted.num_landmarks,
        split=fitted.split,
        values=fitted.values,
        captioning=Captioning(composed=False, beams=0, log_prob_weight=0.0, confidence=None),
        logit_scale=1.0,
        words=fitted.space.vocabulary.words,
        captions=images.captions.texts,
        figures={},
    )
    return Adaptation(header, fitted.arrays, images.features[fitted.order[: fitted.num_landmarks]])


def estimate_cost(num_images: int) -> tuple[float, float]:
    """Return the approximate time in seconds, and the memory in gigabytes, that adapting to this many images needs."""
    exact = min(num_images, MAX_EXACT)
    seconds = 3 + 0.0022 * num_images + 2.5e-11 * exact**3 + (120 if num_images > MAX_EXACT else 0)
    gigabytes = 0.3 + 1e-9 * (16 * exact**2 + 20_000 * num_images)
    return seconds, gigabytes


def _sample_images(adapted: AdaptationResult) -> UInt8[np.ndarray, "B S S 3"]:
    """Return at most `NUM_COMPARED` evenly spaced images in the form that the encoder takes.

    Images that cannot be read are omitted. If the pairs contain features in place of images, the images that are
    displayed for the features are returned.
    """
    pair_ids = adapted.images.pair_ids[:: -(-len(adapted.images) // NUM_COMPARED)]
    squares, preprocess = [], adapted.model.preprocess
    for pair_id in pair_ids:
        pair = adapted.source[pair_id]
        with suppress(BadSample):
            content = (
                pair.image if adapted.images.is_seen_by_base else read_image_file(pair.picture or Path(), pair.name)
            )
            squares.append(np.array(preprocess.decode_square(content, pair.name)))
    side = preprocess.image_size
    return np.stack(squares) if squares else np.zeros((0, side, side, 3), np.uint8)


def require_replaceable(out: Path) -> None:
    """Check that a folder is new, is empty, or contains only an adapted model, which can be replaced.

    Raises:
        UserError: If the folder has other content.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: expected a folder, found a file; pass another path to --out")
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    if not found:
        return
    try:
        listed = {*read_manifest(out), MANIFEST} if is_adapted(out) else set()
    except UserError:
        listed = {*MODEL_FILES, *_ADAPTATION_FILES, MANIFEST}
    foreign = sorted(found - listed)
    if foreign:
        raise UserError(f"{out}: contains {foreign[0]}, which would be deleted; pass a new folder to --out")


def _stored_features(
    out: Path, base_fingerprint: str, descriptor: MeanTokenDescriptor | None
) -> Mapping[bytes, np.ndarray]:
    """Return the features that an earlier adaptation of the same base with the same encoder stored, by file digest.

    If the stored features cannot be used, the result is empty. Otherwise, the domain mean of that adaptation is
    assigned to the descriptor.
    """
    if not is_adapted(out):
        return {}
    try:
        before, now = read_encoder_info(out), None if descriptor is None else descriptor.encoder.info
        header, is_same = read_adapted_header(out), (before and before.digest) == (now and now.digest)
        is_in_place = descriptor is not None and descriptor.is_in_place
        if header.base_fingerprint != base_fingerprint or not is_same or (header.split[1] == 0) != is_in_place:
            return {}
        stored = read_features(out)
        if descriptor is not None:
            descriptor.mean = read_encoder_mean(out)
        return stored
    except UserError:
        return {}


def _write(
    out: Path,
    base: Path,
    adapted: AdaptationResult,
    descriptor: MeanTokenDescriptor | None,
    write_more: Callable[[Path, AdaptationResult], object],
) -> str:
    """Write the folder of the adapted model, and return the value of `AdaptationResult.graph`.

    If the encoder's graph could not be written, the reason is logged as a warning.

    Raises:
        UserError: If the disk is full or cannot be written to.
    """
    manifest, line = {}, ""
    if (base / MANIFEST).is_file():
        manifest = {key: value for key, value in read_json(base / MANIFEST).items() if key != "files"}
    try:
        with atomic_folder(out, manifest) as partial:
            for name in MODEL_FILES:
                if name not in FITTED_FILES and (base / name).is_file():
                    shutil.copyfile(base / name, partial / name)
            order = adapted.fitted.order
            write_adaptation(
                partial,
                adapted.header,
                adapted.arrays,
                adapted.images.features[order],
                adapted.images.digests[order],
            )
            if descriptor is not None:
                line = write_extra_encoder(descriptor, partial, _sample_images(adapted))
                if line and not (partial / ENCODER_GRAPH).exists():
                    log.warning("%s: %s", out, line)
            if adapted.relevance is not None:
                (partial / RELEVANCE).write_bytes(json.dumps(adapted.relevance, indent=1).encode())
            write_more(partial, adapted)
    except OSError as error:
        raise UserError(
            f"{out}: the model cannot be written ({error.strerror or error}); free some space, or pass another --out"
        ) from error
    return line
