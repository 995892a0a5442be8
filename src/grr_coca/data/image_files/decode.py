"""Images decoded in the background, batch by batch, while the batch before is worked on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from PIL import Image

from grr_coca.data.image_files.find import ImageFile
from grr_coca.errors import UserError

if TYPE_CHECKING:
    from grr_coca.data.preprocess import Preprocess

Decoded = tuple[ImageFile, Image.Image | UserError]
Item = TypeVar("Item")
Done = TypeVar("Done")


def decoded(files: Iterable[ImageFile], preprocess: "Preprocess", batch_size: int) -> Iterator[list[Decoded]]:
    """Batches of images, cut to the model's size, or what is wrong with each; in order."""

    def decode(file: ImageFile) -> Decoded:
        try:
            # Scaled to the model's size at once, because two batches of large photographs would fill the memory.
            return file, preprocess.square(preprocess.decode(file.read(), file.name))
        except UserError as error:
            return file, error

    return done_ahead(files, decode, batch_size)


def done_ahead(items: Iterable[Item], work: Callable[[Item], Done], batch_size: int) -> Iterator[list[Done]]:
    """Results of `work` in batches and in order; threads do the next batch while the caller has one in hand.

    No more than two batches are taken from `items` ahead of what was given.
    """
    waiting: deque[list[Future[Done]]] = deque()
    source = iter(items)
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(source, batch_size)):
            waiting.append([pool.submit(work, item) for item in batch])
            if len(waiting) > 1:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
