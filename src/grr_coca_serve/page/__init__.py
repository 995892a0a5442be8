"""The page that searches an index and captions pictures: static files, for a server or for a site of its own.

`files/app.js` says what the page needs of a backend. `files/http.js` asks a server; `files/graphs.js` runs the ONNX
graphs of a model in the browser.
"""

from pathlib import Path

FILES = Path(__file__).with_name("files")
"""The folder of the files. They are served as they are."""

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
"""The Content-Security-Policy of the page: everything comes from its own host, and no script stands in its HTML."""
