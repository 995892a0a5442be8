"""Page that searches an index and captions images: static files for a server or a separate site.

`files/app.js` defines the backend interface of the page. `files/http.js` calls a server; `files/graphs.js` runs the
ONNX graphs of a model in the browser.
"""

from pathlib import Path

FILES = Path(__file__).with_name("files")
"""Folder of the page's files, which are served unchanged."""

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self' 'wasm-unsafe-eval'",
        "worker-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob: data:",
        "style-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
    ]
)
"""Content-Security-Policy of the page: everything is loaded from the page's own host, without inline scripts."""
