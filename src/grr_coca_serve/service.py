"""State that all endpoints share: the model with its queue, the index, and the image decoder."""

from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import Depends, Request
from fastapi.routing import APIRoute

from grr_coca.common.shapes import Float, UInt8
from grr_coca.data.tokenizer import clean_query
from grr_coca.infer.class_names import check_class_names, fill_templates
from grr_coca.infer.classifier import ZeroShotClassifier, make_classifier
from grr_coca_search.entry import chunks
from grr_coca_serve.daemon_threads import DaemonThreads
from grr_coca_serve.explainer import Explainer
from grr_coca_serve.guard import DEADLINE, Key, Limits
from grr_coca_serve.lru_cache import LruCache
from grr_coca_serve.metrics import Metrics
from grr_coca_serve.pictures import PictureReader
from grr_coca_serve.queue import ModelQueue, wait_for_results
from grr_coca_serve.request_error import RequestError
from grr_coca_serve.served_index import ServedIndex

Result = TypeVar("Result")

_MAX_CLASSIFIERS = 2**24
"""Maximum total size of cached classifiers, in characters and bytes."""
_MAX_PIXELS_HELD = 64
"""Maximum number of images in a request whose pixels are in memory at the same time."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """State of a server.

    Attributes:
        model_name: Name that clients use for the model.
        queue: Queue of the model.
        reader: Decoder of images in requests.
        explainer: Explainer that computes heat maps.
        index: Served index, or None.
        key: Key that requests must send, or None.
        threads: Threads for searches and short reads of the index.
        browsing, counting, grouping: Threads that compute lists of images, facets and duplicates. This work reads the
            entire index, and may take minutes.
        title: Name of the index without its suffix. Empty without an index.
        classifiers: Cache of zero-shot classifiers, by their labels and templates.
    """

    model_name: str
    queue: ModelQueue
    reader: PictureReader
    explainer: Explainer
    index: ServedIndex | None
    metrics: Metrics
    limits: Limits
    key: Key | None
    threads: DaemonThreads
    browsing: DaemonThreads
    counting: DaemonThreads
    grouping: DaemonThreads
    title: str
    classifiers: LruCache[tuple, ZeroShotClassifier] = field(default_factory=partial(LruCache, _MAX_CLASSIFIERS))

    def require_index(self) -> ServedIndex:
        """Return the index.

        Raises:
            RequestError: If the server has no index.
        """
        if self.index is None:
            raise RequestError(404, "this server has no index; start it with grr-coca serve INDEX")
        return self.index

    async def run_in_thread(self, work: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        """Run short work on the index in a thread."""
        return await self.threads.do(partial(work, *arguments, **named))

    async def square(self, data: bytes) -> UInt8[np.ndarray, "S S 3"]:
        """Decode an image to the pixels that the model takes as its input.

        Raises:
            RequestError: If there are no data, or the model is still being loaded.
            UserError: If the data are not an image, or the image exceeds a limit.
        """
        return await self.reader.square(data, self.queue.ready().preprocess)

    def num_tokens(self, text: str) -> int:
        """Return the number of tokens in a text, without special tokens such as [BOS]."""
        return len(self.queue.ready().tokenizer.encode(text)) if text else 0

    def max_tokens_after(self, prompt: str) -> int:
        """Return the maximum number of tokens that a caption may have after a prompt.

        The context also contains [BOS], [EOS] and [CLS].
        """
        return max(1, self.queue.ready().engine.context_length - self.num_tokens(prompt) - 3)

    async def classifier(self, labels: list[str], templates: list[str], expires: float) -> ZeroShotClassifier:
        """Return the zero-shot classifier for some labels. Recent classifiers are cached, because labels often recur.

        Raises:
            UserError: If there are duplicate labels, or a template has no `{}`.
            RequestError: If the texts were not embedded by the time `expires`, or the server is stopping.
        """
        key = (tuple(labels), tuple(templates))
        known = self.classifiers.get(key)
        if known is None:
            # Each text is a separate job in the queue, so that thousands of labels do not block other requests.
            texts = fill_templates(check_class_names(labels, "labels"), templates)
            embedded = np.stack(await wait_for_results(self.queue.embed_texts(texts, expires)))
            known = make_classifier(lambda _: embedded, labels, templates)
            self.classifiers.put(key, known, sum(map(len, (*labels, *templates))) + embedded.nbytes // len(templates))
        return known

    async def embedded(self, inputs: "list[str | bytes]", expires: float) -> Float[np.ndarray, "N E"]:
        """Return the embeddings of texts, and of images (given as bytes), in the same order.

        Raises:
            UserError: If a text is empty, or an image cannot be read.
            RequestError: If the inputs were not embedded by the time `expires`, or the server is stopping.
        """
        cleaned = [clean_query(one, f"input {n}") if isinstance(one, str) else one for n, one in enumerate(inputs)]
        rows: dict[int, np.ndarray] = {}
        for chunk in chunks(list(enumerate(cleaned)), _MAX_PIXELS_HELD):
            texts = {place: one for place, one in chunk if isinstance(one, str)}
            squares = {place: await self.square(one) for place, one in chunk if isinstance(one, bytes)}
            futures = [
                *self.queue.embed_texts(list(texts.values()), expires),
                *self.queue.embed_images(list(squares.values()), expires),
            ]
            rows |= zip([*texts, *squares], await wait_for_results(futures), strict=True)
        return np.stack([rows[place] for place in range(len(inputs))])


# --- Dependencies of endpoints


async def _service_of(request: Request) -> Service:
    return request.app.state.service  # type: ignore[no-any-return]


ThisService = Annotated[Service, Depends(_service_of)]
"""State of the server that handles a request."""


class QueueSlot:
    """Slot of a request in the model's queue, from the call of `take` until the response is complete.

    An endpoint takes the slot after it has validated the request. While the queue is full, the guard rejects such
    requests before it reads their bodies.
    """

    def __init__(self, queue: ModelQueue, held: ExitStack) -> None:
        self._queue, self._held = queue, held

    def take(self, weight: int = 1) -> None:
        """Take the slot. `weight` is the number of images in the request. A request without images has weight 1.

        Raises:
            RequestError: If the queue is full, or the model is still being loaded.
        """
        self._held.enter_context(self._queue.reserve_slot(weight))


class QueuedRoute(APIRoute):
    """Route of an endpoint that takes a slot in the model's queue, through a parameter annotated with `Place`.

    `APIRouter(route_class=QueuedRoute)` creates such routes.

    While the model's queue is full, the guard rejects requests to this route before it reads their bodies.
    """


async def _place_of(request: Request, service: ThisService) -> AsyncIterator[QueueSlot]:
    route = request.scope["route"]
    assert isinstance(route, QueuedRoute), f"{route.path} takes a Place: use APIRouter(route_class=QueuedRoute)"
    with ExitStack() as held:
        yield QueueSlot(service.queue, held)


Place = Annotated[QueueSlot, Depends(_place_of)]
"""Slot in the model's queue, for endpoints whose route is a `QueuedRoute`."""


def deadline_of(request: Request) -> float:
    """Return the deadline for starting the response to a request, by the monotonic clock."""
    return request.scope["state"][DEADLINE]
