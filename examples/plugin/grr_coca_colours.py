"""A plug-in for GRR-CoCa: the source of pairs `colours:red,green`, a command that prints captions, and an endpoint."""

import io
from pathlib import Path

from PIL import Image

from grr_coca.cli import Command
from grr_coca.data.sources.base import PairSource, RawPair

COMMANDS = {"colours": Command("grr_coca_colours:print_captions", "print the captions of a source of pairs")}


def print_captions(source: str) -> None:
    """Print the captions of a source.

    Args:
        source: source of pairs, such as colours:red,green.
    """
    from grr_coca.data.sources.open import open_source

    pairs = open_source(source)
    print(*(pairs.caption(index) for index in range(len(pairs))))


class Colours(PairSource):
    """One square for each colour, with the name of the colour as its caption."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> RawPair:
        file = io.BytesIO()
        Image.new("RGB", (64, 64), self.names[index]).save(file, "PNG")
        return RawPair(self.names[index], self.name(index), file.getvalue(), self.names[index])

    def captions(self, index: int) -> tuple[str, ...]:
        return (self.names[index],)

    def name(self, index: int) -> str:
        return f"colours:{self.names[index]}"

    def container(self, index: int) -> str:
        return "colours"


class Reader:
    """A `grr_coca.data.sources.base.SourceReader`, which opens the sources that begin with `colours:`."""

    def owns(self, argument: str) -> bool:
        return argument.startswith("colours:")

    def open(self, argument: str) -> Colours | None:
        return Colours(argument.removeprefix("colours:").split(",")) if self.owns(argument) else None

    def images(self, argument: str) -> None:
        """Return None, because the sources contain only pairs: `caption` and `index` cannot read them."""

    def find_file(self, argument: str) -> Path:
        return Path(__file__)

    def pin_version(self, argument: str, fields: object) -> str:
        return argument

    def remove_version(self, argument: str) -> str:
        return argument


READER = Reader()


def endpoints(service):
    """Return the routes that `serve --plugin colours` adds: `/pixels`, the number of pixels of a model image."""
    from fastapi import APIRouter

    router = APIRouter()

    @router.get("/pixels")
    async def pixels() -> dict[str, int]:
        return {"pixels": service.queue.ready().preprocess.image_size ** 2}

    return router.routes
