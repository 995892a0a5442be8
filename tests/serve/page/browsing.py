"""Hosts of static files, and tabs of a browser."""

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def hosted(handler: Callable[..., http.server.BaseHTTPRequestHandler], port: int = 0) -> Iterator[str]:
    """Serve on a port of this machine, or on a free one. Gives the address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class StaticHost(http.server.SimpleHTTPRequestHandler):
    """A plain host of files, and an empty page without the policy of ours, in which tests import modules."""

    def do_GET(self) -> None:
        if self.path != "/blank.html":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><html lang=en><title>blank</title><link rel=icon href=data:,>")

    def copyfile(self, source, outputfile) -> None:
        with suppress(ConnectionError):  # the browser has gone on
            super().copyfile(source, outputfile)

    def log_message(self, *_: object) -> None:
        pass


def static(folder: Path) -> Callable[..., StaticHost]:
    return functools.partial(StaticHost, directory=str(folder))


class Tab:
    """A page of the browser that remembers what went to its console."""

    def __init__(self, browser, address: str = "about:blank", **context: object) -> None:
        context.setdefault("viewport", {"width": 1280, "height": 860})
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(60_000)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on(
            "console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text)
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        if address != "about:blank":
            self.page.goto(address)

    def ready(self) -> "Tab":
        """Wait until model and index are loaded, and everything is shown."""
        self.page.wait_for_selector("body[data-state=ready]")
        return self.settled()

    def settled(self) -> "Tab":
        """Wait until the newest search is answered."""
        self.page.wait_for_selector("body:not(.busy)")
        return self

    def captioned(self) -> "Tab":
        """Wait for the caption of a picture from outside."""
        self.page.wait_for_selector("#dropped .caption:not(.running):not(:empty)")
        return self

    def ask(self, words: str) -> "Tab":
        self.page.locator("#query").fill(words)
        return self.settled()

    @property
    def status(self) -> str:
        return self.page.locator("#status").inner_text()

    def captions(self, count: int) -> list[str]:
        """Captions of the first tiles."""
        self.page.locator("#pictures li .caption").first.wait_for()
        return self.page.locator("#pictures li .caption").all_inner_texts()[:count]
