"""Serve the Model Context Protocol over HTTP at `/mcp`. Each request is stateless, and passes the server's guard.

The SDK is imported, and the index is opened, at the first request to `/mcp`, because most servers never receive such a
request.
"""

import asyncio
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.types import Message, Receive, Scope, Send

from grr_coca.common.errors import UserError
from grr_coca_serve.request_error import MAX_BYTES, RequestError
from grr_coca_serve.responses import error_response

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

    from grr_coca_search.index import Index
    from grr_coca_serve.queue import ModelQueue
    from grr_coca_serve.served_index import ServedIndex


class McpEndpoint:
    """ASGI application that serves the MCP tools.

    Args:
        index: Index that the tools search, or None if the server has none. The tools can read the images that the
            server serves.
        queue: Queue of the model, in which each request takes a slot. Tool calls run one at a time.
    """

    def __init__(self, index: "ServedIndex | None", queue: "ModelQueue") -> None:
        self._index, self._queue = index, queue
        self._manager: StreamableHTTPSessionManager | None = None
        self._starting = asyncio.Lock()
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request.

        Raises:
            RequestError: If the server has no index or no package mcp, the method is not POST, the queue is full, or
                the index is unavailable.
        """
        if self._index is None:
            raise RequestError(404, "/mcp needs an index; pass one to grr-coca serve")
        if find_spec("mcp") is None:
            raise RequestError(404, "/mcp needs the package mcp; install the extra `mcp` on the server")
        if scope["method"] != "POST":  # the server sends nothing unprompted, and has no sessions to end
            raise RequestError(405, f"/mcp does not accept {scope['method'][:20]}; use POST")
        with self._queue.reserve_slot():
            async with self._starting:
                if self._manager is None or self._running is None or self._running.done():
                    self._manager = await self._start(self._index)
            await self._manager.handle_request(scope, receive, _with_short_errors(send))

    async def _start(self, served: "ServedIndex") -> "StreamableHTTPSessionManager":
        # This runs in a thread, because importing the SDK takes half a second.
        try:
            manager, index = await asyncio.to_thread(_make_manager, served)
        except UserError as error:
            raise RequestError(503, f"the index is unavailable: {error}", retry_after=5) from error
        started = asyncio.get_running_loop().create_future()

        async def run() -> None:
            # The manager's task group must be exited by the task that entered it.
            try:
                with index:
                    async with manager.run():
                        started.set_result(manager)
                        await asyncio.Event().wait()
            except Exception as error:
                if started.done():
                    raise
                started.set_exception(error)

        self._running = asyncio.create_task(run())
        return await started


def _make_manager(served: "ServedIndex") -> "tuple[StreamableHTTPSessionManager, Index]":
    # lazy import, because it needs an extra
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

    from grr_coca_icons.tools.icon_tools import IconTools
    from grr_coca_icons.tools.mcp import make_mcp_server

    name = Path(served.location).name.removesuffix(".index") or "icons"
    files = served.files
    index = served.open_for_tools()
    tools = IconTools({name: index}, reads_files=False, read=files.read_now, decode=files.decode)
    return StreamableHTTPSessionManager(app=make_mcp_server(tools), json_response=True, stateless=True), index


def _with_short_errors(send: Send) -> Send:
    """Wrap `send` to convert long or plain-text errors of the SDK to short JSON errors."""
    held: list[Message] = []

    async def send_short(message: Message) -> None:
        if message["type"] == "http.response.start":
            held.append(message)
            return
        if held:
            start = held.pop()
            is_json = any(name == b"content-type" and b"json" in value for name, value in start["headers"])
            is_long = len(message.get("body", b"")) > MAX_BYTES
            if start["status"] >= HTTPStatus.BAD_REQUEST and (is_long or not is_json):
                short = error_response(RequestError(start["status"], message["body"].decode("utf-8", "replace")))
                start["headers"], message["body"] = short.raw_headers, short.body
            await send(start)
        await send(message)

    return send_short
