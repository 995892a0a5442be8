"""Models are small enough for one core. Continuous integration checks every tensor shape that the package declares in
every test, as `GRR_COCA_CHECK_SHAPES=1 make test` does.

What is heavy is imported late: pytest loads this in the process, too, that only shares out the tests."""

import errno
import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import jaxtyping  # before the package, or its annotations stay unchecked
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from grr_coca.data.batch import Batch
    from grr_coca.model.config import CoCaConfig, TransformerConfig

SRC = Path(__file__).parents[1] / "src"
pytest_plugins = ["command_line"]
sys.path.append(str(SRC.with_name("scripts")))  # where each script finds those that it imports


def modules_with_shapes() -> list[str]:
    """The modules that declare shapes of tensors or arrays."""
    names = ("jaxtyping", "grr_coca.common.shapes")
    texts = {path: path.read_text(encoding="utf-8") for path in SRC.rglob("*.py")}
    files = [path for path, text in texts.items() if any(name in text for name in names)]
    return [".".join(path.relative_to(SRC).with_suffix("").parts) for path in files]


if os.environ.get("GRR_COCA_CHECK_SHAPES"):
    jaxtyping.install_import_hook(modules_with_shapes(), "shape_check.check")

gc.disable()  # until all is imported

IN_MEMORY = Path("/dev/shm")
"""Files of tests lie here if there is room: nearly 20,000 of them are flushed, and a disk takes milliseconds for each.
Docker gives 64 MB unless it is asked for more, too little."""
if os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))

settings.register_profile("one core", deadline=None, derandomize=True, max_examples=25, database=None)
settings.load_profile("one core")

BOS, EOS, CLS_SLOT = 1, 2, 0


FORKING = ("tests/core/train/", "tests/test_processes.py")
"""Tests that fork processes: from one that has imported everything, see `processes`, or from the worker itself."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `ci` are slow, too, so that `-m "not slow"` leaves them out. Cases of them that are marked `slow`
    are not `ci`. Tests that need a GPU are skipped without one. Tests of `FORKING` are the first: one worker, which is
    still small, runs them all.
    """
    import torch

    torch.set_num_threads(1)
    items.sort(key=lambda item: not item.nodeid.startswith(FORKING))
    for item in items:
        if item.get_closest_marker("slow"):
            item.own_markers = [mark for mark in item.own_markers if mark.name != "ci"]
        elif item.get_closest_marker("ci"):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU; runs by `make test-gpu`"))


def pytest_collection_finish() -> None:
    """What is imported by now stays: no search for garbage looks through its million objects again. Searches are rare:
    at their usual number, they are a twentieth of all work."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def pytest_sessionfinish() -> None:
    """Python's exit looks for garbage, too: a second."""
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., "CoCaConfig"]:
    """A preset's parts at a size that runs in milliseconds; images and text differ in width."""
    from model_configs import model_config

    def make(preset: str = "grr_coca", image_dim: int = 48, text_dim: int = 32, **poolers: object) -> "CoCaConfig":
        config = model_config(preset, "tiny")
        image, text = config.image_encoder, config.text_decoder
        multimodal = config.multimodal_decoder
        return replace(
            config,
            embed_dim=24,
            image_encoder=replace(
                image, image_size=16, patch_size=4, transformer=_shrunk(image.transformer, image_dim)
            ),
            text_decoder=replace(
                text, vocab_size=60, context_length=40, transformer=_shrunk(text.transformer, text_dim)
            ),
            multimodal_decoder=replace(multimodal, transformer=_shrunk(multimodal.transformer, text_dim)),
            poolers=replace(config.poolers, **{"num_queries": 5, "num_heads": 2, **poolers}),
        )

    return make


def _shrunk(transformer: "TransformerConfig", embed_dim: int) -> "TransformerConfig":
    hidden_dim = transformer.hidden_dim * embed_dim // transformer.embed_dim
    return replace(transformer, num_layers=2, embed_dim=embed_dim, num_heads=embed_dim // 16, hidden_dim=hidden_dim)


@pytest.fixture(scope="session", autouse=True)
def _runs_without_curves() -> Iterator[None]:
    """Do not plot the learning curves of each run, which takes a tenth of the time of all tests."""
    from grr_coca.train import logs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "MIN_VALIDATIONS", 1_000)
        yield


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run of three steps, for tests that only read it."""
    from support import finished_run

    return finished_run(tmp_path_factory.mktemp("run"), steps=3)


@pytest.fixture
def lock() -> Iterator[Callable[[Path | str], Callable[[], None]]]:
    """Locks a folder: nobody can list it or look at what is in it, not even root. Returns what unlocks it."""
    patches = pytest.MonkeyPatch()

    def run(folder: Path | str) -> Callable[[], None]:
        locked = os.path.abspath(folder)  # noqa: PTH100

        def guarded(look: Callable, *, inside: bool) -> Callable:
            def guard(path: Path | str = ".", **options: object) -> object:
                here = os.path.abspath(path)  # noqa: PTH100
                if (os.path.dirname(here) if inside else here) == locked:  # noqa: PTH120
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
                return look(path, **options)

            return guard

        patches.setattr(os, "scandir", guarded(os.scandir, inside=False))
        patches.setattr(os, "lstat", guarded(os.lstat, inside=True))
        return patches.undo

    yield run
    patches.undo()


@pytest.fixture
def filled_with_nan() -> Iterator[None]:
    """Memory of new tensors holds NaN until something is written there, so whatever is left unwritten is seen."""
    import torch

    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., "Batch"]:
    """Random images and captions of given numbers of words, for a config."""
    import torch

    from grr_coca.data.batch import Batch, pad_rows
    from grr_coca.data.dataset import find_next_tokens

    def make(config: "CoCaConfig", num_words: Sequence[int] = (3, 7, 1, 5), seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        side, vocab_size = config.image_encoder.image_size, config.text_decoder.vocab_size
        words = [torch.randint(3, vocab_size, (n,), generator=generator).tolist() for n in num_words]
        token_ids, lengths = pad_rows([[BOS, *row, EOS, CLS_SLOT] for row in words])
        return Batch(
            images=torch.randn(len(words), 3, side, side, generator=generator),
            token_ids=token_ids,
            lengths=lengths,
            next_tokens=find_next_tokens(token_ids, lengths),
            caption_ids=torch.arange(len(words)),
            image_ids=torch.arange(len(words)),
            keys=tuple(map(str, range(len(words)))),
        )

    return make
