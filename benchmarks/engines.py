"""ONNX Runtime beside PyTorch: how fast each captions and embeds, by the size of the model and by the batch.

    python benchmarks/engines.py --models FOLDER

Takes `icons`, which ships, and `b32` with random weights, exported in fp32 and in int8. The folder keeps them, for
another run: exporting takes minutes. One thread. In each cell the engines take turns, and
what is compared are seconds of CPU time, so other work on the machine counts less. A caption has 20 new tokens, a text
15. Writes `results/engines.json`, anew after each model. The rule of `engine="auto"` follows from it
(`grr_coca.infer.load`, `tests/test_benchmarks.py`).
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import in_turn, parse, parser_of, ratio, report, seconds

from grr_coca.cli import exit_code
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.tokenizer import clip_bpe
from grr_coca.infer.engine.base import Engine
from grr_coca.infer.engine.onnx import OnnxEngine
from grr_coca.infer.engine.torch import TorchEngine
from grr_coca.infer.export.write import write_onnx
from grr_coca.infer.generate import GenerationOptions, generate
from grr_coca.model.build import build
from grr_coca.model.checkpoint import Checkpoint, from_pretrained, save_checkpoint
from grr_coca.model.checkpoint_files import DEFAULT, bundled_folder
from grr_coca.model.presets import get_preset

MODELS = (DEFAULT, "b32")
"""A model that ships, and a size of presets, with random weights."""
PRECISIONS = ("fp32", "int8")
BATCHES = (1, 8, 32)
TASKS = ("caption", "image", "text")
NEW_TOKENS = 20
TEXT_TOKENS = 15
ROUNDS = (2, 41)
SECONDS = 20.0
"""A cell has the least number of rounds at least, and then as many, up to the most, as fit into this time."""


def main() -> None:
    """Measure all models, or those asked for, and write the report."""
    parser = parser_of(__doc__, only=MODELS)
    parser.add_argument("--models", type=Path, help="folder that keeps the models")
    options = parse(parser)
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        models = options.models or Path(temporary)
        for name in MODELS[:1] if options.smoke else options.only:
            rows += _rows(name, models, smoke=options.smoke is not None)
            report("engines", rows, options.out)


def _rows(name: str, models: Path, *, smoke: bool) -> list[dict[str, object]]:
    """Return a row for each precision, task and batch."""
    precisions, batches = (PRECISIONS[:1], BATCHES[:1]) if smoke else (PRECISIONS, BATCHES)
    source = bundled_folder(name) or random_checkpoint(name, models)
    checkpoint = from_pretrained(source)
    engines: dict[str, Engine] = {"torch": TorchEngine(checkpoint.model, checkpoint.preprocess)}
    for precision in precisions:
        engines[precision] = OnnxEngine(graphs_of(source, precision, models / f"{name}-{precision}"), threads=1)
    config, rows = checkpoint.config, []
    for task in TASKS:
        for batch in batches:
            work = {side: _work(task, engine, checkpoint, batch) for side, engine in engines.items()}
            found = _in_turn(work, smoke=smoke)
            medians = {side: statistics.median(times) for side, times in found.items()}
            rows += [
                {
                    "model": name,
                    "width": max(
                        part.transformer.embed_dim for part in (config.image_encoder, config.multimodal_decoder)
                    ),
                    "precision": precision,
                    "task": task,
                    "batch": batch,
                    "torch_ms": round(1e3 * medians["torch"] / batch, 3),
                    "onnx_ms": round(1e3 * medians[precision] / batch, 3),
                    "times_as_fast": round(ratio(found["torch"], found[precision]), 2),
                    "rounds": len(found["torch"]),
                }
                for precision in precisions
            ]
    return rows


def _in_turn(work: dict[str, Callable[[], object]], *, smoke: bool) -> dict[str, list[float]]:
    """Return seconds of CPU time of each side, round after round. A first round is not counted."""
    sides = {side: partial(seconds, act, time.process_time) for side, act in work.items()}
    if smoke:
        return in_turn(sides, 1)
    in_turn(sides, 1)
    return in_turn(sides, ROUNDS[1], fewest=ROUNDS[0], within=SECONDS)


def random_checkpoint(name: str, models: Path) -> Path:
    """Return the checkpoint of a size with random weights, written if it is not there."""
    folder = models / name
    if not folder.exists():
        config, tokenizer = get_preset("grr_coca", name), clip_bpe()
        checkpoint = Checkpoint(
            model=build(config),
            config=config,
            preset="grr_coca",
            tokenizer=tokenizer,
            preprocess=Preprocess(config.image_encoder.image_size),
            step=0,
        )
        save_checkpoint(checkpoint, folder)
    return folder


def graphs_of(source: Path, precision: str, folder: Path) -> Path:
    """Return the folder of a checkpoint's graphs, written if it is not there."""
    if precision == "fp32" and (source / "step.onnx").exists():
        return source
    if not folder.exists():
        write_onnx(source, folder, precision)  # type: ignore[arg-type]
    return folder


def _work(task: str, engine: Engine, checkpoint: Checkpoint, batch: int) -> Callable[[], object]:
    """What is timed. Inputs are random, and the same for all engines."""
    random, config = np.random.default_rng(0), checkpoint.config
    if task == "text":
        ids = random.integers(3, config.text_decoder.vocab_size, (batch, TEXT_TOKENS))
        ids[:, -1] = 0
        return lambda: engine.encode_texts(ids, np.full(batch, TEXT_TOKENS))
    side = config.image_encoder.image_size
    pixels = random.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    if task == "image":
        return lambda: engine.encode_images(pixels)
    options = GenerationOptions(max_length=NEW_TOKENS, min_length=NEW_TOKENS)
    return lambda: generate(engine, checkpoint.tokenizer, pixels, options)


if __name__ == "__main__":
    sys.exit(exit_code(main))
