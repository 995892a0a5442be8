"""Endpoints of the server. Each module defines a `router`, and the schemas of its requests and answers."""

from importlib import import_module
from pkgutil import iter_modules

from fastapi import APIRouter


def all_routers() -> list[APIRouter]:
    """Return the routers of all endpoint modules."""
    return [import_module(f"{__name__}.{module.name}").router for module in iter_modules(__path__)]
