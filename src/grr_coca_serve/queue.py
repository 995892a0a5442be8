"""Bounded queue of the model, and the thread that runs the model.

Waiting work is done in batches. When the thread is free, it takes the oldest job and all other jobs of the same kind,
up to a maximum batch size, which was measured when the model was loaded (`_best_batch`): the smallest size with nearly
the best throughput. No job waits for a batch to fill. The number of waiting requests (`reserve_slot`), the number of
their images and their estimated waiting time (`require_capacity`) are bounded, which also bounds memory.

Shapes: S image size in pixels, N images or texts, E embedding width.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from grr_coca.common.errors import UserError
from grr_coca.common.shapes import Float, UInt8
from grr_coca.data.image_forms import to_rgb
from grr_coca.data.tokenizer import clean_query
from grr_coca.infer.generate import GREEDY, GenerationOptions, generate
from grr_coca.infer.generate.captions import require_no_nan
from grr_coca.infer.image_text_model import Description, ImageTextModel
from grr_coca.infer.tags import with_beams
from grr_coca_serve.metrics import Metrics
from grr_coca_serve.request_error import RequestError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Pixels = UInt8[np.ndarray, "S S 3"]

_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_NEARLY = 1.1
"""Factor by which the time per image may exceed that of the best batch size. The smallest such batch size is chosen,
because its images wait less.
"""
_MAX_BATCH_SECONDS = 2.0
"""Maximum duration of a batch, in seconds."""
_MAX_MEASURING_SECONDS, _MAX_STARTING_SECONDS = 5.0, 10.0
"""Number of seconds of processor time, and number of seconds of wall time, after which no larger batch is tried. Both
times are limited, because other programs may keep the processor busy.
"""
_REPEATS, _SECONDS_OF_REPEATS = 3, 0.3
"""Maximum number of measurements per batch size, and number of seconds after which no further measurement is made."""
_SHARE_OF_NEWEST = 0.1
"""Weight of the newest batch of captions in the running mean of the time per image."""


@dataclass(frozen=True)
class _Kind:
    """Kind of a job. Jobs of equal kinds can share a batch."""

    work: str
    prompt: str = ""
    options: GenerationOptions = GREEDY
    num_tags: int = 0


@dataclass(frozen=True, eq=False)
class _Job:
    """Work on one image or text.

    `expires` is the time, by the monotonic clock, after which no client waits for the result. `on_text` is called from
    the model's thread with each new piece of a caption.
    """

    kind: _Kind
    item: Any
    expires: float
    future: Future
    on_text: Callable[[str], None] | None = None


class ModelQueue:
    """Model that many requests use concurrently.

    The methods `caption`, `embed_images` and `embed_texts` can be called from any thread. They immediately return a
    future for each image or text. If a future is canceled before its batch starts, the work is not done.

    Args:
        load: Function that loads the model. It is called in the model's thread.
        capacity: Maximum number of images for which slots are reserved. A request without images counts as one image.
        seconds: Maximum waiting time of a request. Fewer than `capacity` requests are accepted if more could not be
            answered in this time.
        metrics: Metrics that count the batches.
        on_failure: Function that is called in the model's thread if the model cannot be loaded.

    Attributes:
        in_use: Number of images that requests wait for, or that are being processed.
        max_batch: Maximum number of images or texts in a batch.
        model: The model, or None until it has been loaded.
    """

    def __init__(
        self,
        load: Callable[[], ImageTextModel],
        capacity: int,
        seconds: float,
        metrics: Metrics,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.capacity = capacity
        self.seconds = seconds
        self.in_use = 0
        self.max_batch = 1
        self.model: ImageTextModel | None = None
        self._load = load
        self._metrics = metrics
        self._on_failure = on_failure
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._seconds_per_item = 0.0
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Load the model in the background. `model` is None until it is ready."""
        self._thread.start()

    def close(self) -> None:
        """End the thread after its current batch, and wait for this. Waiting jobs fail. Call `start` before."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def ready(self) -> ImageTextModel:
        """Return the loaded model.

        Raises:
            RequestError: If the model is still being loaded.
        """
        if self.model is None:
            raise RequestError(503, "the model is being loaded; try again in a moment", retry_after=1)
        return self.model

    # --- Admission

    @contextmanager
    def reserve_slot(self, weight: int = 1) -> Iterator[None]:
        """Reserve space in the queue for a request with `weight` images. Call this only from the event loop.

        Raises:
            RequestError: If the model is not ready, or the queue is full.
        """
        self.ready()
        weight = min(max(1, weight), self.capacity)
        self.require_capacity(weight)
        self.in_use += weight
        try:
            yield
        finally:
            self.in_use -= weight

    def require_capacity(self, weight: int = 1) -> None:
        """Check that the queue has space for a request.

        Raises:
            RequestError: If the queue is full, or the waiting work would exceed the maximum waiting time. The message
                states when to try again.
        """
        wait = self.in_use * self._seconds_per_item
        if self.in_use + weight > self.capacity or wait > self.seconds:
            seconds = max(1, math.ceil(wait))
            reason = f"limit {self.capacity}"
            if self.in_use + weight <= self.capacity:
                reason = f"which will take {wait:.1f} s, limit {self.seconds:g} s"
            raise RequestError(
                429,
                f"too many requests are waiting: {self.in_use} ({reason}); try again in {seconds} s",
                retry_after=seconds,
            )

    # --- Jobs

    def caption(
        self,
        pixels: Pixels,
        expires: float,
        prompt: str = "",
        options: GenerationOptions = GREEDY,
        on_text: Callable[[str], None] | None = None,
        num_tags: int = 0,
    ) -> "Future[Description]":
        """Queue an image for its caption, embedding and tags, and return the future of the result.

        Captions from beam search, and several captions per image, are not streamed, but all returned at the end.

        Args:
            pixels: Input square of the model.
            expires: Time, by the monotonic clock, after which the job fails if it has not started.
            prompt: Start of the caption.
            options: Decoding options.
            on_text: Function that gets each new piece of the caption. It is called in the model's thread.
            num_tags: Number of tags.

        Raises:
            UserError: If tags are requested for sampled captions.
            RequestError: If the server is stopping.
        """
        decoded = with_beams(options) if num_tags else options
        if decoded.num_beams > 1 or decoded.num_captions > 1:
            on_text = None
        kind = _Kind("caption", prompt, options, num_tags)
        return self._put([_Job(kind, pixels, expires, Future(), on_text)])[0]

    def embed_images(self, images: Sequence[Pixels], expires: float) -> "list[Future[np.ndarray]]":
        """Queue images, and return the future of each image's embedding, E. For `expires`, see `caption`.

        Raises:
            RequestError: If the server is stopping.
        """
        kind = _Kind("embed_images")
        return self._put([_Job(kind, pixels, expires, Future()) for pixels in images])

    def embed_texts(self, texts: Sequence[str], expires: float) -> "list[Future[np.ndarray]]":
        """Queue texts, which must not be empty, and return the future of each text's embedding, E.

        For `expires`, see `caption`.

        Raises:
            RequestError: If the server is stopping.
        """
        kind = _Kind("embed_texts")
        return self._put([_Job(kind, text, expires, Future()) for text in texts])

    def _put(self, jobs: list[_Job]) -> list[Future]:
        with self._changed:
            if self._is_closed:
                raise RequestError(503, "the server is stopping; try again in a moment")
            self._jobs.extend(jobs)
            self._changed.notify()
        return [job.future for job in jobs]

    # --- Thread of the model

    def _run(self) -> None:
        try:
            model = self._load()
            self.max_batch, self._seconds_per_item = _best_batch(model)
        except BaseException as error:
            self._on_failure(error)
            return
        self.model = model
        while batch := self._next_batch():
            self._process(batch)

    def _next_batch(self) -> list[_Job]:
        """Wait for jobs, and return the next batch, which is empty if the queue has been closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._jobs or self._is_closed)
                if self._is_closed:
                    for job in self._jobs:
                        _fail(job, RequestError(503, "the server is stopping; try again in a moment"))
                    return []
                if batch := self._take_batch(self._jobs[0].kind):
                    return batch

    def _take_batch(self, kind: _Kind) -> list[_Job]:
        """Remove and return the oldest jobs of a kind, at most `max_batch`. Expired and canceled jobs are dropped."""
        batch: list[_Job] = []
        remaining: deque[_Job] = deque()
        now = time.monotonic()
        for job in self._jobs:
            if job.future.cancelled():
                continue
            if job.expires <= now:
                _fail(job, deadline_error())
            elif job.kind == kind and len(batch) < self.max_batch:
                batch.append(job)
            else:
                remaining.append(job)
        self._jobs = remaining
        return [job for job in batch if job.future.set_running_or_notify_cancel()]

    def _process(self, batch: list[_Job]) -> None:
        """Process the jobs of a batch. Each job always gets a result or an error."""
        began = time.perf_counter()
        try:
            for job, result in zip(batch, self._results(batch), strict=True):
                job.future.set_result(result)
        except (UserError, RequestError, MemoryError) as error:
            for job in batch:
                _fail(job, error)
        except Exception as error:
            log.exception("a batch of %d failed (%s)", len(batch), batch[0].kind.work)
            for job in batch:
                _fail(job, error)
        seconds = time.perf_counter() - began
        work = batch[0].kind.work
        self._metrics.model_seconds.labels(work).observe(seconds)
        self._metrics.batch_size.labels(work).observe(len(batch))
        if work == "caption":
            newest = seconds / len(batch) - self._seconds_per_item
            self._seconds_per_item += _SHARE_OF_NEWEST * newest

    def _results(self, batch: list[_Job]) -> Iterable[object]:
        assert self.model is not None
        kind, items = batch[0].kind, [job.item for job in batch]
        if kind.work == "embed_texts":
            return self.model.embed_texts(items, batch_size=len(items))
        if kind.work == "embed_images":
            return require_no_nan(self.model.engine.encode_images(np.stack(items)).embedding)
        return self._captions(batch)

    def _captions(self, batch: list[_Job]) -> list[Description]:
        assert self.model is not None
        kind = batch[0].kind
        pixels = np.stack([job.item for job in batch])
        keys = [0] * len(batch)  # equal keys, so that the same image and seed yield the same caption in any batch

        def on_text(pieces: Sequence[str]) -> None:
            for job, piece in zip(batch, pieces, strict=True):
                if job.on_text is not None and piece:
                    job.on_text(piece)

        is_streamed = any(job.on_text for job in batch)
        return self.model.describe_pixels(
            pixels, kind.prompt, kind.options, keys, kind.num_tags, on_text if is_streamed else None
        )


class QueuedModel:
    """Adapter that has the interface of a model, but computes through the queue. Agent tools, for example, use it.

    It may be called from any thread except the threads of the event loop and of the model. Attributes that it does not
    define are those of the model.

    Args:
        queue: Queue whose model is ready.
        seconds: Maximum time to wait for the results of a batch.
    """

    def __init__(self, queue: ModelQueue, seconds: float) -> None:
        self._queue, self._seconds = queue, seconds

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the model.

        Raises:
            RequestError: If the model is still being loaded.
        """
        return getattr(self._queue.ready(), name)

    def embed_texts(self, texts: Sequence[str], **_: object) -> Float[np.ndarray, "N E"]:
        """Embed texts; see `ImageTextModel.embed_texts`.

        Raises:
            UserError: If a text is empty, or the time has run out.
        """
        cleaned = [clean_query(text, f"text {number}") for number, text in enumerate(texts, 1)]
        return np.stack(self._run_in_batches(self._queue.embed_texts, cleaned))

    def embed_images(self, images: Sequence[Image.Image], **_: object) -> Float[np.ndarray, "N E"]:
        """Embed images; see `ImageTextModel.embed_images`.

        Raises:
            UserError: If the time has run out.
        """
        return np.stack(self._run_in_batches(self._queue.embed_images, self._pixels(images)))

    def describe_many(self, images: Sequence[Image.Image]) -> list[Description]:
        """Describe images; see `ImageTextModel.describe_many`.

        Raises:
            UserError: If the time has run out.
        """
        caption = self._queue.caption
        return self._run_in_batches(lambda some, expires: [caption(one, expires) for one in some], self._pixels(images))

    def describe(self, image: Image.Image) -> Description:
        """Describe an image; see `describe_many`, also for errors."""
        return self.describe_many([image])[0]

    def _pixels(self, images: Sequence[Image.Image]) -> list[Pixels]:
        preprocess = self._queue.ready().preprocess
        return [preprocess(to_rgb(image, "the picture", preprocess.opening)) for image in images]

    def _run_in_batches(
        self, start: "Callable[[Sequence[Any], float], list[Future[Any]]]", items: Sequence[Any]
    ) -> list[Any]:
        """Start jobs for the items, and return their results.

        Only one batch of these jobs is in the queue at a time, so that jobs of other requests can run in between.
        """
        results: list[Any] = []
        size = self._queue.max_batch
        try:
            for part in (items[place : place + size] for place in range(0, len(items), size)):
                results += [future.result() for future in start(part, time.monotonic() + self._seconds)]
        except RequestError as error:
            raise UserError(error.message) from error
        return results


def deadline_error() -> RequestError:
    """Return the error for a request whose time has run out."""
    return RequestError(
        504, "the server is too busy to answer in time; try again later, or with fewer requests at the same time"
    )


def _fail(job: _Job, error: BaseException) -> None:
    # The job may already have its result, and the event loop may cancel it at any time.
    with suppress(InvalidStateError):
        job.future.set_exception(error)


def _best_batch(model: ImageTextModel) -> tuple[int, float]:
    """Measure the throughput of several batch sizes.

    Return the smallest size with nearly the best throughput, and its seconds per image.
    """
    side = model.preprocess.image_size
    random = np.random.default_rng(0)
    options = GenerationOptions(max_length=min(8, model.engine.context_length - 3))
    # On a CPU, other programs must not affect the comparison, so the processor time of this thread is compared. The
    # engine's other threads compute for the same time. The duration of a batch is also limited, because a client waits
    # for all images of a batch.
    clock = time.thread_time if model.device == "cpu" else time.perf_counter
    measured: dict[int, tuple[float, float]] = {}
    began, started = clock(), time.perf_counter()
    for size in _BATCH_SIZES:
        pixels = random.integers(0, 256, (size, side, side, 3), np.uint8)
        work = partial(model.generate, pixels)
        if model.can_decode:
            work = partial(generate, model.engine, model.tokenizer, pixels, options)
        work()  # prepares the engine for this batch size
        cpu_seconds, wall_seconds = _measure_seconds(work, clock)
        measured[size] = cpu_seconds / size, wall_seconds / size
        is_too_slow = clock() - began > _MAX_MEASURING_SECONDS or time.perf_counter() - started > _MAX_STARTING_SECONDS
        if 2 * cpu_seconds > _MAX_BATCH_SECONDS or is_too_slow:
            break
    enough = _NEARLY * min(cpu_seconds for cpu_seconds, _ in measured.values())
    return next((size, wall_seconds) for size, (cpu_seconds, wall_seconds) in measured.items() if cpu_seconds <= enough)


def _measure_seconds(work: Callable[[], object], clock: Callable[[], float]) -> tuple[float, float]:
    """Measure some work several times. Return its minimum duration by `clock`, and by the wall clock."""
    times: list[tuple[float, float]] = []
    while len(times) < _REPEATS and sum(cpu_seconds for cpu_seconds, _ in times) < _SECONDS_OF_REPEATS:
        began, started = clock(), time.perf_counter()
        work()
        times.append((clock() - began, time.perf_counter() - started))
    cpu_seconds, wall_seconds = zip(*times, strict=True)
    return min(cpu_seconds), min(wall_seconds)


# --- Functions for requests


async def wait_for_results(futures: "Sequence[Future[Any]]") -> list[Any]:
    """Return the results of several jobs. If the request is canceled, jobs that have not started are also canceled."""
    try:
        return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))
    except BaseException:
        for future in futures:
            future.cancel()
        raise


async def caption_pieces(start: "Callable[..., Future[Description]]") -> AsyncIterator[str | Description]:
    """Yield the pieces of a caption as they are generated, followed by the result.

    Args:
        start: Function that takes `on_text`, starts the job, and returns its future.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[str | None] = asyncio.Queue()
    future = start(on_text=lambda piece: loop.call_soon_threadsafe(pieces.put_nowait, piece))
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(pieces.put_nowait, None))
    try:
        while (piece := await pieces.get()) is not None:
            yield piece
        yield future.result()
    finally:
        future.cancel()


async def wait_for_first(items: AsyncIterator[Item]) -> AsyncIterator[Item]:
    """Wait for the first item, and then return an iterator of all items.

    An error before the first item is thus raised before the response starts, and can still determine its status.
    """
    first = await anext(items)

    async def again() -> AsyncIterator[Item]:
        yield first
        async for item in items:
            yield item

    return again()
