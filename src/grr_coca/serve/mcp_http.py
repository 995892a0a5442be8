"""The Model Context Protocol over HTTP, at `/mcp`: each request is answered by itself, behind the guard of the server.

The SDK is imported, and the index opened, at the first request: most servers never get one.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grr_coca.serve.refusal import Refusal, error_headers, json_bytes

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class McpEndpoint:
    """An ASGI application for one path.

    Args:
        location: of the index that the tools answer from; None: there is none.
    """

    def __init__(self, location: str | None) -> None:
        self._location = location
        self._manager: StreamableHTTPSessionManager | None = None
        self._starting = asyncio.Lock()
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if self._location is None or find_spec("mcp") is None:
            why = (
                "needs an index"
                if self._location is None
                else "needs mcp, which is not installed on the server (extra `mcp`)"
            )
            await _refuse(Refusal(404, f"/mcp {why}"), send)
            return
        async with self._starting:
            if self._manager is None:
                self._manager = await self._start(self._location)
        await self._manager.handle_request(scope, receive, send)

    async def _start(self, location: str) -> "StreamableHTTPSessionManager":
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager  # late: it needs an extra

        from grr_coca.search.index import Index
        from grr_coca.serve.icon_tools import IconTools
        from grr_coca.serve.mcp import make_mcp_server

        name = Path(location).name.removesuffix(".index") or "icons"
        index = await asyncio.to_thread(Index.open, location)
        server = make_mcp_server(IconTools({name: index}, reads_files=False), reads_files=False)
        manager = StreamableHTTPSessionManager(app=server, json_response=True, stateless=True)
        started = asyncio.Event()

        async def run() -> None:
            # The task group of the manager must be left by the task that entered it.
            with suppress(asyncio.CancelledError):
                async with manager.run():
                    started.set()
                    await asyncio.Event().wait()

        self._running = asyncio.create_task(run())
        await started.wait()
        return manager


async def _refuse(refusal: Refusal, send: Send) -> None:
    content = json_bytes(refusal.content)
    await send({"type": "http.response.start", "status": refusal.status, "headers": error_headers(refusal, content)})
    await send({"type": "http.response.body", "body": content})
