"""Plug-ins: what packages beside the core provide, found by the entry points of installed distributions.

A group is asked for by one place in the core, which documents what its values are:

| group | an entry point names | asked for by |
|---|---|---|
| `grr_coca.commands` | a table of commands, by name | `grr_coca.cli` |
| `grr_coca.sources` | a reader of pairs and images from other sources | `grr_coca.data.sources.plugins` |
| `grr_coca.image_formats` | a decoder of image files that Pillow does not know | `grr_coca.data.images` |
| `grr_coca.models` | a provider of models by name | `grr_coca.infer.load` |
| `grr_coca.loaders` | a function that loads checkpoints of another project, by scheme | `grr_coca.load` |
| `grr_coca.architectures` | an architecture of models | `grr_coca.model.config` |
| `grr_coca.objectives` | an additional loss of training | `grr_coca.train.setup` |
| `grr_coca.functions` | a function or class that `grr_coca` or `grr_coca.Index` hands on | `grr_coca` |
| `grr_coca.stores` | a store of an index, by the scheme of its location | `grr_coca_search.stores` |
| `grr_coca.endpoints` | additional endpoints of a server | `grr_coca_serve.server` |
| `grr_coca.site` | an addition to an exported page | `grr_coca_serve.site` |

The packages of this distribution register in the same way as those of others. Its entry points are read first, in a
fraction of a millisecond. Other distributions are scanned only for names that these do not have, in about 15 ms.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, distributions
from typing import Any

log = logging.getLogger(__name__)

DISTRIBUTION = "grr-coca"
VARIABLE = "GRR_COCA_PLUGINS"
"""Environment variable with the names of the distributions whose plug-ins are loaded, separated by commas. If it is not
set, all are; if it is empty, only those of this distribution."""


@cache
def own(group: str) -> Mapping[str, Any]:
    """Return what the packages of this distribution provide, by the names of their entry points.

    The result is empty if the distribution is not installed, as in a bare checkout.
    """
    return {entry.name: entry.load() for entry in _own_entries() if entry.group == group}


@cache
def others(group: str) -> Mapping[str, Any]:
    """Return what other distributions provide, by the names of their entry points.

    A plug-in that cannot be imported is left out, with one warning. Of two with the same name, the first counts.
    """
    found: dict[str, Any] = {}
    for entry, provider in _other_entries():
        if entry.group != group or entry.name in found:
            continue
        try:
            found[entry.name] = entry.load()
        except Exception as error:  # a plug-in may raise anything
            log.warning("%s: plug-in '%s' cannot be imported, and is skipped (%s)", provider, entry.name, error)
    return found


def values(group: str) -> Iterator[Any]:
    """Yield what all distributions provide, this one first. Others are scanned only if the caller takes more."""
    yield from own(group).values()
    yield from others(group).values()


def named(group: str, name: str) -> Any | None:
    """Return what the entry point of this name provides; None if there is none."""
    for entry in _own_entries():
        if (entry.group, entry.name) == (group, name):
            return entry.load()
    return others(group).get(name)


def is_installed() -> bool:
    """Return whether the packages of this distribution are registered. If not, it must be installed again."""
    return any(entry.group == "grr_coca.commands" for entry in _own_entries())


@cache
def _own_entries() -> tuple[EntryPoint, ...]:
    try:
        return tuple(distribution(DISTRIBUTION).entry_points)
    except PackageNotFoundError:
        return ()


@cache
def _other_entries() -> tuple[tuple[EntryPoint, str], ...]:
    """The entry points of other distributions, with the name of each distribution."""
    allowed = os.environ.get(VARIABLE)
    names = None if allowed is None else {name.strip() for name in allowed.split(",")}
    return tuple(
        (entry, provider.name)
        for provider in _distributions()
        if provider.name != DISTRIBUTION and (names is None or provider.name in names)
        for entry in provider.entry_points
        if entry.group.startswith("grr_coca.")
    )


def _distributions() -> Iterator[Distribution]:
    """Installed distributions. Of two versions of one, the first on the path is the one that Python imports."""
    seen: set[str] = set()
    for one in distributions():
        if one.name not in seen:
            seen.add(one.name)
            yield one
