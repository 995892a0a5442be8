"""Builds the corpus `scenes` in the user's cache, in seconds: shards and cards, the same bytes on every machine."""

import hashlib
import io
import itertools
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

from grr_coca.data.corpus.place import is_built
from grr_coca.data.corpus.scenes.card import write_scene_cards
from grr_coca.data.corpus.scenes.drawing import draw_scene
from grr_coca.data.corpus.scenes.scene import Scene, SceneCounts, split_scenes
from grr_coca.errors import UserError
from grr_coca.files import user_cache, whole_folder

NAME = "scenes"

PUBLISHED = "e5b4ff37fff234581b58c5402a852bbabdc4cd9280e04ab757ff70b1b20d55ed"
"""The sha256 of the corpus's `card.json`, which has those of all shards."""

PAIRS_PER_SHARD = 4_000

ALL = SceneCounts()
"""What everybody builds; tests build fewer."""

OnProgress = Callable[[str, int], None]
"""Told the stage (a name of STAGES) and how many of its steps are done."""

STAGES = {"drawings": 16_560}
"""How many pictures there are."""

Picture = tuple[Scene, int]
"""A scene, and which of its pictures."""


def build_scenes(on_progress: OnProgress, folder: Path | None = None, counts: SceneCounts = ALL) -> Path:
    """Draw and write the corpus; returns its folder.

    Args:
        on_progress: told how far it is.
        folder: where it goes; None: into the user's cache.
        counts: how many scenes and pictures there are.

    Raises:
        UserError: the folder holds something else, or cannot be written to.
    """
    folder = folder or user_cache() / NAME
    if is_built(folder, NAME):
        return folder
    try:
        with whole_folder(folder) as partial:
            splits, scenes = {}, split_scenes(counts)
            done = itertools.count(1)
            for split in scenes:
                pictures = _pictures(scenes[split], split, counts)
                shards = _write_shards(partial, split, pictures, lambda: on_progress("drawings", next(done)))
                splits[split] = {"count": len(pictures), "shards": shards}
            write_scene_cards(partial, splits, scenes)
    except OSError as error:
        raise UserError(f"{folder}: cannot be built ({error.strerror or error})") from error
    return folder


def are_published_scenes(folder: Path) -> bool:
    """True if a corpus is to the byte what this version of the builder makes everywhere."""
    return hashlib.sha256((folder / "card.json").read_bytes()).hexdigest() == PUBLISHED


def _pictures(scenes: Iterable[Scene], split: str, counts: SceneCounts) -> list[Picture]:
    """Several of each training scene, in a fixed shuffle; one of each other scene, in the order of the scenes."""
    if split != "train":
        return [(scene, 0) for scene in scenes]
    pictures = [(scene, number) for scene in scenes for number in range(counts.pictures)]
    return sorted(pictures, key=lambda picture: hashlib.sha256(f"{picture[0].caption} {picture[1]}".encode()).digest())


def _write_shards(folder: Path, split: str, pictures: list[Picture], on_picture: Callable[[], None]) -> dict[str, str]:
    """Write `SPLIT-00000.tar` …; returns the sha256 of each by its name."""
    shards = {}
    for number, start in enumerate(range(0, len(pictures), PAIRS_PER_SHARD)):
        path = folder / f"{split}-{number:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for index, (scene, picture) in enumerate(pictures[start : start + PAIRS_PER_SHARD], start):
                _add(tar, f"{split}-{index:05d}.png", draw_scene(scene, picture))
                _add(tar, f"{split}-{index:05d}.txt", scene.caption.encode())
                on_picture()
        shards[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return shards


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))
