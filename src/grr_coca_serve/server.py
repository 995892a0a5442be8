"""Server process: port, start and shutdown."""

import asyncio
import contextlib
import errno
import logging
import math
import os
import signal
import socket
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

import grr_coca
from grr_coca.common.errors import UserError
from grr_coca.common.files import read_json
from grr_coca.data.isolated import DECODING, helpers
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca.model.checkpoint_files import DEFAULT, read_config
from grr_coca_search.index import Index, IndexModel
from grr_coca_search.relevance import curve_of
from grr_coca_serve.app import make_app
from grr_coca_serve.daemon_threads import DaemonThreads
from grr_coca_serve.explainer import Explainer
from grr_coca_serve.files import PictureFiles
from grr_coca_serve.guard import KEY_VARIABLE, SECONDS_TO_SEND, Guard, Key, Limits, is_loopback
from grr_coca_serve.metrics import Metrics
from grr_coca_serve.pictures import PictureReader, limits_of_helpers
from grr_coca_serve.queue import ModelQueue
from grr_coca_serve.request_error import RequestError
from grr_coca_serve.responses import error_response
from grr_coca_serve.served_index import ServedIndex
from grr_coca_serve.service import Service

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

_SECONDS_TO_STOP = 60.0
"""Maximum number of seconds for which a shutdown waits until accepted requests are answered."""
_SECONDS_TO_WAIT = 15.0
"""Maximum number of seconds for receiving the headers of a request, or the rest of a rejected body."""
_MAX_CONNECTIONS = 4096
MAX_UNREAD_BYTES = 256 * 2**20
"""Maximum total size of the answers that clients have not read yet."""
_SHARE_OF_FILES = 0.6
"""Fraction of the limit on open files that connections may use. The system counts connections as open files."""
_INDEX_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of a server.

    Attributes:
        index: Location of an index, or None.
        pictures: Folders whose images are shown. If empty, all images are shown, or none if the index was imported.
        model: Name or folder of the model. If this is None, the model of the index is used, or the default model if the
            server has no index.
        engine: Engine that runs the model; see `grr_coca.load`.
        host, port: Address to listen on. Port 0 means any free port.
        capacity: Capacity of the model's queue; see `ModelQueue`.
        opens_browser: Whether to open the page in a browser.
        plugins: Plug-ins; see `make_app`.
    """

    index: str | None
    pictures: Sequence[Path]
    model: str | None
    engine: str
    host: str
    port: int
    opens_browser: bool
    capacity: int
    limits: Limits
    plugins: Sequence[str] = ()


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket whose connections send data immediately (`TCP_NODELAY`).

    Raises:
        UserError: If the port is in use or not permitted, or the host is not an address of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        reason = reason.partition(" (while ")[0]  # `create_server` appends the address
        hint = "check --host"
        if isinstance(error, PermissionError):
            hint = "low ports need special permissions: pass a larger --port"
        elif "use" in reason:
            hint = "pass another --port"
        raise UserError(f"{host}:{port}: cannot listen ({reason}); {hint}") from error
    # An answer is written in two parts. Without this setting, the system would delay the second part until the client
    # has confirmed the first one, which takes 40 ms on a persistent connection. Connections inherit the setting.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _max_connections() -> int:
    """Return the maximum number of connections that the open-file limit allows, at most `_MAX_CONNECTIONS`.

    If the limit is too low, it is first raised for this process as far as possible.
    """
    if resource is None:
        return _MAX_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    required = math.ceil(_MAX_CONNECTIONS / _SHARE_OF_FILES)
    if resource.RLIM_INFINITY != soft < required:
        raised = required if hard == resource.RLIM_INFINITY else min(required, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    return _MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(_MAX_CONNECTIONS, int(soft * _SHARE_OF_FILES))


def _model_of(options: ServeOptions) -> tuple[IndexModel, bool]:
    """Return the model to serve, without loading it, and whether its index was imported.

    Raises:
        UserError: If the model or index does not exist, or the index belongs to another model.
    """
    if options.index is None:
        return IndexModel(options.model or DEFAULT), False
    with Index.open(options.index, options.model) as index:
        return index.model, index.store.was_imported()


def _visibility_note(folders: Sequence[Path], was_imported: bool) -> str:
    """Return a note about which images are shown, or an empty text if all are shown."""
    if folders:
        return f"only images in {', '.join(map(str, folders))} are shown"
    if was_imported:
        return (
            "no images are shown: this index was imported from a file, which may name any file of this "
            "machine; pass their folder as --pictures DIR"
        )
    return ""


class RunningServer:
    """Running server, from the opening of its port to its shutdown.

    Args:
        options: Options of the server.
        print_line: Function that prints a line for the user.

    Attributes:
        service: Shared state of the endpoints.

    Raises:
        UserError: If the port is in use, the model, index or a plug-in does not exist, the index belongs to another
            model, or the key in the environment is invalid.
    """

    def __init__(self, options: ServeOptions, print_line: Callable[[str], None]) -> None:
        self._print_line, self._opens_browser = print_line, options.opens_browser
        self._failure: BaseException | None = None
        self._listening = listen(options.host, options.port)
        try:
            self._prepare(options, *_model_of(options))
        except BaseException:
            self._listening.close()
            raise

    def _prepare(self, options: ServeOptions, model: IndexModel, was_imported: bool) -> None:
        metrics = Metrics()
        self._limits = limits_of_helpers(options.limits)
        queue = ModelQueue(
            lambda: _load_model(model.folder, options.engine),
            capacity=options.capacity,
            seconds=options.limits.seconds,
            metrics=metrics,
            on_failure=self._stop_with_error,
        )
        key = os.environ.get(KEY_VARIABLE)
        index: ServedIndex | None = None
        reader = PictureReader(options.limits.max_pixels)
        if options.index is not None:
            file = model.folder / "config.json"
            curve = curve_of(model.folder, read_config(read_json(file).get("model", {}), str(file)))
            files = PictureFiles(options.pictures if options.pictures or was_imported else None)
            metrics.show("grr_coca_late_files", "Image files that are stalled", lambda: files.num_stalled)
            index = ServedIndex(options.index, model, queue, files, curve=curve)
        self.service = Service(
            model_name=Path(model.name).name or model.name,
            title=Path(options.index or "").stem,
            queue=queue,
            reader=reader,
            explainer=Explainer(lambda: grr_coca.load(model.folder, engine="torch"), reader),
            index=index,
            metrics=metrics,
            limits=options.limits,
            key=None if key is None else Key(key),
            threads=DaemonThreads(_INDEX_THREADS, "index"),
            browsing=DaemonThreads(1, "pictures"),
            counting=DaemonThreads(1, "facets"),
            grouping=DaemonThreads(1, "duplicates"),
        )
        metrics.show("grr_coca_queue_requests", "Waiting and active requests", lambda: queue.in_use)
        metrics.show("grr_coca_queue_capacity", "Maximum number of waiting requests", lambda: queue.capacity)
        metrics.show("grr_coca_max_batch", "The largest batch", lambda: queue.max_batch)
        self._visibility_note = _visibility_note(options.pictures, was_imported)
        self._is_local = is_loopback(self._listening.getsockname()[0])
        self._guard = make_app(self.service, is_local=self._is_local, plugins=options.plugins)
        config = uvicorn.Config(
            self._guard,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(_SECONDS_TO_STOP),
            timeout_keep_alive=30,
        )
        _Protocol.max_connections = _max_connections()
        self._server = _Server(config, self._guard)

    @property
    def address(self) -> str:
        """URL of the page."""
        host, port = self._listening.getsockname()[:2]
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        return f"http://{shown}:{port}/"

    def stop(self) -> None:
        """Start the shutdown, as a signal does. A second call stops the server immediately."""
        self._server.handle_exit(signal.SIGTERM, None)

    def run(self) -> None:
        """Load the model, and serve requests until SIGTERM or Ctrl-C. Accepted requests are still answered then.

        Call this once. Afterwards, all threads and files of the server are closed.

        Raises:
            UserError: If the model cannot be loaded.
        """
        service = self.service
        before = helpers.use(self._limits)
        helpers.start(DECODING)
        service.queue.start()
        self._print_line(f"serving {self._describe()} at {self.address} (Ctrl-C stops)")
        if not self._is_local and service.key is None:
            self._print_line(
                f"anyone who can reach this machine can use the server; set {KEY_VARIABLE} to require a key"
            )
        if self._visibility_note:
            self._print_line(self._visibility_note)
        if self._opens_browser:
            webbrowser.open(self.address)
        try:
            self._server.run(sockets=[self._listening])
        finally:
            for workers in (service.browsing, service.counting, service.grouping, service.threads):
                workers.close()
            service.explainer.close()
            service.reader.close()
            helpers.use(before)
            service.queue.close()
            if service.index is not None:
                service.index.files.close()
                service.index.close()
        if self._failure is not None:
            raise self._failure
        self._print_line("stopped")

    def _describe(self) -> str:
        name, index = self.service.model_name, self.service.index
        return name if index is None else f"{index.location} with {name}"

    def _stop_with_error(self, error: BaseException) -> None:
        self._failure = error
        self._server.should_exit = True


def _load_model(folder: Path, engine: str) -> ImageTextModel:
    """Load the model, and wait until a subprocess is ready to decode the first image."""
    model = grr_coca.load(folder, engine=engine)
    helpers.wait(DECODING)
    return model


class _Server(uvicorn.Server):
    """Uvicorn server that answers accepted requests before it stops. New requests get status 503 in the meantime."""

    def __init__(self, config: uvicorn.Config, guard: Guard) -> None:
        super().__init__(config)
        self._guard = guard
        self._stopping_since = self._muted_until = 0.0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Also stop the server at SIGHUP, which a closed terminal sends.

        If the signal is already ignored, because the server was started with `nohup`, it remains ignored.
        """
        hangup = getattr(signal, "SIGHUP", None)
        is_main = threading.current_thread() is threading.main_thread()
        handles_hangup = is_main and hangup is not None and signal.getsignal(hangup) == signal.SIG_DFL
        if hangup is not None and handles_hangup:
            signal.signal(hangup, self.handle_exit)
        try:
            with super().capture_signals():
                yield
        finally:
            if hangup is not None and handles_hangup:
                signal.signal(hangup, signal.SIG_DFL)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving requests, and handle errors of the event loop with `_log_loop_error`."""
        asyncio.get_running_loop().set_exception_handler(self._log_loop_error)
        await super().startup(sockets)

    def _log_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an error of the event loop.

        If the system cannot open more connections, the loop reports up to 2,048 errors per second. Only one of them per
        minute is logged. The loop also reports its attempts to accept connections after the listening socket has been
        closed, which are not errors, and are not logged.
        """
        error = context.get("exception")
        if self.should_exit and "_start_serving" in context["message"]:
            return
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
        elif time.monotonic() >= self._muted_until:
            self._muted_until = time.monotonic() + 60
            log.warning("no connection can be accepted: %s; raise the limit (ulimit -n)", error.strerror)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Start the shutdown. A second signal stops the server immediately."""
        if self._guard.is_draining:
            self.should_exit = self.force_exit = True
        self._guard.is_draining = True
        self._stopping_since = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """Return whether the server should exit. This method is called ten times per second."""
        if self._guard.is_draining:
            is_late = time.monotonic() - self._stopping_since > _SECONDS_TO_STOP
            self.should_exit = self.should_exit or is_late or self._guard.in_flight == 0
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop the server: immediately after a second signal, and otherwise when all connections are closed."""
        aborting = asyncio.create_task(self._abort_connections())
        await super().shutdown(sockets)
        aborting.cancel()

    async def _abort_connections(self) -> None:
        """Close all connections after a second signal.

        From Python 3.12 on, the shutdown would otherwise wait for them.
        """
        while not self.force_exit:
            await asyncio.sleep(0.1)
        for connection in list(self.server_state.connections):
            connection.transport.abort()


class _Protocol(H11Protocol):
    """HTTP protocol of uvicorn, with time limits for headers and unread bodies, and with errors in JSON.

    If the number of connections is too large, the connection that has been idle for the longest time is closed, so that
    idle connections cannot lock out other clients. The total size of unread responses is limited in the same way.
    """

    max_connections = _MAX_CONNECTIONS
    _last_received = 0.0
    _receive_timer: asyncio.TimerHandle | None = None
    _expected_data: Literal["headers", "end of a rejected body"] | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit for headers of a new connection, and close an idle connection if there are too many."""
        super().connection_made(transport)
        self._last_received = self.loop.time()
        self._expect("headers")
        if len(self.connections) > self.max_connections:
            self._close_idlest()

    def _close_idlest(self) -> None:
        """Close the other connection that has been idle for the longest time among those whose next request, or the
        rest of one, the server awaits."""
        idle = [
            one
            for one in self.connections
            if isinstance(one, _Protocol) and one is not self and one.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        ]
        if idle:
            silent = min(idle, key=lambda one: one._last_received)
            silent.transport.abort()
            self.connections.discard(silent)

    def data_received(self, data: bytes) -> None:
        """Handle a received part of a request, and start or stop the time limit for the next part."""
        self._last_received = self.loop.time()
        is_new = self.conn.their_state is h11.IDLE and self._expected_data is None
        super().data_received(data)
        is_between = self.conn.their_state is h11.IDLE
        if is_new and is_between:
            self._expect("headers")
        elif self._expected_data == ("end of a rejected body" if is_between else "headers"):
            self._expect(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time limits of a connection that has ended."""
        self._expect(None)
        self._stop_send_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start a time limit, because the client does not read its answer.

        When the time is over, the connection is aborted, because `close` would wait for the client.
        """
        super().pause_writing()
        self._send_timer = self.loop.call_later(SECONDS_TO_SEND, self.transport.abort)
        self._limit_unread_bytes()

    def _limit_unread_bytes(self) -> None:
        """Close the connections with the oldest unread answers while the total size of unread answers is too large."""
        unread = [one for one in self.connections if isinstance(one, _Protocol) and one._send_timer is not None]
        unread.sort(key=lambda one: one._send_timer.when() if one._send_timer is not None else 0.0)
        excess = sum(one.transport.get_write_buffer_size() for one in unread) - MAX_UNREAD_BYTES
        for one in unread:
            if excess > 0 and one is not self:
                excess -= one.transport.get_write_buffer_size()
                one.transport.abort()

    def resume_writing(self) -> None:
        """Stop the time limit, because the client is reading."""
        super().resume_writing()
        self._stop_send_timer()

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def on_response_complete(self) -> None:
        """Start the time limit for the rest of the request if its body was rejected before all of it had arrived."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._expect("end of a rejected body")

    def send_400_response(self, msg: str) -> None:
        """Reject invalid HTTP, such as headers that are too large."""
        response = error_response(RequestError(400, f"invalid HTTP request, or headers that are too large ({msg})"))
        headers = [*response.raw_headers, (b"connection", b"close")]
        with contextlib.suppress(h11.LocalProtocolError):
            self.transport.write(self.conn.send(h11.Response(status_code=400, headers=headers, reason=b"Bad Request")))
            self.transport.write(self.conn.send(h11.Data(data=bytes(response.body))))
            self.transport.write(self.conn.send(h11.EndOfMessage()))
        self.transport.close()

    def _expect(self, what: Literal["headers", "end of a rejected body"] | None) -> None:
        """Start to wait for data, and close the connection if they do not arrive in time.

        If `what` is None, stop waiting.
        """
        if self._receive_timer is not None:
            self._receive_timer.cancel()
        self._expected_data = what
        self._receive_timer = None if what is None else self.loop.call_later(_SECONDS_TO_WAIT, self.transport.close)
