"""Digests of what a run depends on: equal for equal runs, wherever they are done, and different for any others."""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from grr_coca.data.images import walk_visible
from grr_coca.data.sources.open import find_files, shards_of
from grr_coca.train.recipe import Recipe

HASHED_WHOLE = 64 * 2**20
HASHED_ENDS = 2**20
"""Bytes: a file up to the first size is read whole; of a larger one its size and so much from either end."""
MANY = 10_000
"""Files: those of larger folders count by their names and sizes alone."""

FREE_KEYS = ("train", "mix", "val", "test", "num_workers", "micro_batch_size")
"""Keys of `data` that are the data digest's matter, or change nothing that is learned."""


def recipe_digest(recipe: Recipe, start: str | None, variant: str | None = None) -> str:
    """Of everything in a recipe that changes what is learned and measured, its seed and its data apart.

    Keys that have their default value do not count, so that a key which is added later changes no digest.

    Args:
        recipe: without `auto`.
        start: the digest of the run that this one goes on from; None: it begins with new weights.
        variant: what is changed in the model after it was built.
    """
    bare = dataclasses.replace(recipe, model=None, seed=0, checkpoints=type(recipe.checkpoints)())
    content = _changed(dataclasses.replace(bare, health=type(recipe.health)(), parallelism="ddp"))
    data = content["data"]
    content["data"] = {key: data[key] for key in data if key not in FREE_KEYS}
    if recipe.data.mix:
        content["data"]["mix"] = list(recipe.data.mix.values())  # which pairs these are is the data's matter
    if recipe.model is not None:
        assert recipe.tokenizer is not None, "the plan was checked"
        # What a preset means is part of the run, its name is not.
        content["model"] = _changed(recipe.model.config(recipe.tokenizer.vocab_size))
        content["pixels"] = [recipe.model.pixel_mean, recipe.model.pixel_std]
    if variant is not None:
        content["variant"] = variant
    return _digest({"recipe": content, "start": start})


def data_digest(recipe: Recipe) -> str:
    """Of the files of all splits. Where their folder lies does not count."""
    data = recipe.data
    mixed = {f"mix {number}": path for number, path in enumerate(data.mix)}
    tests = {f"test {name}": path for name, path in data.test.items()}
    splits = {"train": data.train, "val": data.val, **mixed, **tests}
    return _digest({name: list(_described(path)) for name, path in splits.items() if path is not None})


def folder_digest(recipe: str, data: Collection[str]) -> str:
    """Of a run's recipe and of all data that it depends on, by their digests."""
    return _digest({"recipe": recipe, "data": sorted(data)})


def _described(path: str) -> Iterator[list[str | int]]:
    files, split = find_files(path)
    yield [split or ""]
    for file in files:
        parts = _parts(file)
        for part in parts:
            yield [part.name, part.stat().st_size, _content(part) if len(parts) <= MANY else ""]


def _parts(path: Path) -> list[Path]:
    """The files of a folder that are read as data, in order."""
    if not path.is_dir():
        return [path]
    files = (Path(folder, name) for folder, _, names in walk_visible(path) for name in names)
    return shards_of(path) or sorted(file for file in files if file.is_file())


def _content(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= HASHED_WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        start = file.read(HASHED_ENDS)
        file.seek(size - HASHED_ENDS)
        return hashlib.sha256(start + file.read()).hexdigest()


def _changed(config: Any) -> dict[str, Any]:
    """The plain tree of a dataclass without what is as its class has it."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.default is not dataclasses.MISSING and value == field.default:
            continue
        if field.default_factory is not dataclasses.MISSING and value == field.default_factory():
            continue
        found[field.name] = _changed(value) if dataclasses.is_dataclass(value) else value
    return found


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
