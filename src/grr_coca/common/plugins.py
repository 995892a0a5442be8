"""Plug-ins: extensions from other packages, which are found by the entry points of installed distributions.

For each group of entry points, one module documents the values of the group:

| group | value of an entry point | documented in |
|---|---|---|
| `grr_coca.commands` | a table of commands, by name | `grr_coca.cli` |
| `grr_coca.sources` | a reader of pairs and images from other sources | `grr_coca.data.sources.base` |
| `grr_coca.image_formats` | a decoder of image files that Pillow does not support | `grr_coca.data.isolated` |
| `grr_coca.models` | a provider of models by name | `grr_coca.infer.load` |
| `grr_coca.loaders` | a function that loads checkpoints of another project, by scheme | `grr_coca.load` |
| `grr_coca.architectures` | an architecture of models | `grr_coca.model.config` |
| `grr_coca.encoders` | a function that opens an image encoder, by scheme | `grr_coca.infer.encoder` |
| `grr_coca.objectives` | an additional loss of training | `grr_coca.train.setup` |
| `grr_coca.functions` | a function or class that `grr_coca` or `grr_coca.Index` passes on | `grr_coca` |
| `grr_coca.stores` | a store of an index, by the scheme of its location | `grr_coca_search.store` |
| `grr_coca.endpoints` | additional endpoints of a server | `grr_coca_serve.server` |
| `grr_coca.site` | an addition to an exported page | `grr_coca_serve.site` |

The packages of this distribution register in the same way as other packages, and their plug-ins come first. Entry
points are read without `importlib.metadata`. With 130 installed distributions, it would take 110 of the 150 ms that
`grr-coca --help` takes.
"""

import importlib
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

DISTRIBUTION = "grr-coca"
VARIABLE = "GRR_COCA_PLUGINS"
"""Environment variable with the names of the distributions whose plug-ins are loaded, separated by commas. The
plug-ins of this distribution are always loaded. If the variable is unset, all plug-ins are loaded."""


class _EntryPoint(NamedTuple):
    """Entry point of a distribution (`provider`). `value` names a module and an object in the module: `module:name`."""

    group: str
    name: str
    value: str
    provider: str

    def load(self) -> Any:
        module, _, path = self.value.partition(":")
        found: Any = importlib.import_module(module)
        for name in path.split(".") if path else ():
            found = getattr(found, name)
        return found


@cache
def own(group: str) -> Mapping[str, Any]:
    """Return the values of this distribution's entry points in a group, by name.

    The result is empty if the distribution is not installed, for example in a clone on which pip was not run.
    """
    return {entry.name: entry.load() for entry in _entries(is_own=True) if entry.group == group}


@cache
def others(group: str) -> Mapping[str, Any]:
    """Return the values of other distributions' entry points in a group, by name.

    A plug-in that cannot be imported is skipped with a warning. If two plug-ins have the same name, the first is used.
    """
    found: dict[str, Any] = {}
    for entry in _entries(is_own=False):
        if entry.group != group or entry.name in found:
            continue
        try:
            found[entry.name] = entry.load()
        except Exception as error:  # plug-ins can raise any error
            log.warning(
                "%s: plug-in '%s' cannot be imported and is skipped (%s); update or uninstall %s",
                entry.provider,
                entry.name,
                error,
                entry.provider,
            )
    return found


def values(group: str) -> Iterator[Any]:
    """Yield the values of a group from all distributions, beginning with this distribution.

    The plug-ins of other distributions are imported only if the caller iterates beyond those of this distribution.
    """
    yield from own(group).values()
    yield from others(group).values()


def find(group: str, name: str) -> Any | None:
    """Return the value of the named entry point of a group, or None if it does not exist or cannot be imported.

    If this distribution does not have the entry point, all plug-ins of the group are imported from other distributions.
    """
    for entry in _entries(is_own=True):
        if (entry.group, entry.name) == (group, name):
            return entry.load()
    return others(group).get(name)


def is_installed() -> bool:
    """Return whether the packages of this distribution are registered.

    If this is false, the distribution must be installed again.
    """
    return any(entry.group == "grr_coca.commands" for entry in _entries(is_own=True))


@cache
def _entries(*, is_own: bool) -> tuple[_EntryPoint, ...]:
    """Return the entry points of all groups whose names begin with `grr_coca.`, of this distribution or of all others.

    Most commands do not need the entry points of other distributions, so these are read separately.
    """
    return tuple(
        entry
        for provider, metadata in _distributions().items()
        if (provider == DISTRIBUTION) is is_own
        for entry in _read(metadata, provider)
    )


@cache
def _distributions() -> Mapping[str, "os.DirEntry[str]"]:
    """Return the metadata folder of each distribution whose plug-ins are loaded, by normalized name.

    If two versions of a distribution are installed, the first on the path is used.
    """
    allowed = os.environ.get(VARIABLE)
    names = None if allowed is None else {_normalize_name(name.strip()) for name in allowed.split(",")} | {DISTRIBUTION}
    found: dict[str, os.DirEntry[str]] = {}
    for folder in sys.path:
        for metadata in _metadata_folders(folder or "."):
            provider = _normalize_name(metadata.name.rpartition(".")[0].split("-")[0])
            if names is None or provider in names:
                found.setdefault(provider, metadata)
    return found


def _metadata_folders(folder: str) -> list["os.DirEntry[str]"]:
    """Return the metadata folders of distributions in a folder, or an empty list if the folder cannot be read.

    Installers write `NAME-VERSION.dist-info`, and older installers write `NAME.egg-info`.
    """
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.name.endswith((".dist-info", ".egg-info"))]
    except OSError:  # the path is an archive, or does not exist
        return []


def _read(metadata: "os.DirEntry[str]", provider: str) -> Iterator[_EntryPoint]:
    """Yield a distribution's entry points in groups whose names begin with `grr_coca.`.

    The file `entry_points.txt` in the metadata folder has a section per group, with lines `name = value`. Nothing is
    yielded if the file does not exist.
    """
    try:
        text = Path(metadata.path, "entry_points.txt").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # most distributions have no entry points
        return
    group = ""
    for line in text.splitlines() if "[grr_coca." in text else ():
        name, equals, value = (part.strip() for part in line.partition("="))
        if name.startswith("["):
            group = name.strip("[]")
        elif equals and group.startswith("grr_coca.") and not name.startswith("#"):
            yield _EntryPoint(group, name, re.sub(r"\s|\[.*", "", value), provider)  # without the extras in brackets


def _normalize_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
