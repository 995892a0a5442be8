"""How long the page takes to answer a letter: `python benchmarks/keystroke.py --site SITE`.

A site of `grr-coca export web` is opened in Chromium. Queries are typed letter by letter, each letter once the hits of
the one before are shown. What counts is the time from the letter to its hits in the page; the browser then draws them.
Needs the extra `browser` and Chromium, and a machine that does nothing else. Writes `results/keystroke.json`.
"""

import functools
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from harness import machine, parse, parser_of, write

QUERIES = ("arrow left", "shopping cart", "trash bin", "user settings", "cloud download", "red heart", "play music")
ROUNDS = 3
TYPE = """async (text) => {
  const field = document.querySelector("#query"), { classList } = document.body;
  const began = performance.now();
  field.value = text;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  if (!classList.contains("busy")) throw new Error("the page does not search");
  await new Promise((resolve) => new MutationObserver((_, observer) => {
    if (classList.contains("busy")) return;
    observer.disconnect();
    resolve();
  }).observe(document.body, { attributeFilter: ["class"] }));
  return performance.now() - began;
}"""
"""Types a query, and returns the milliseconds until its hits are in the page."""


def main() -> None:
    """Measure, and write the results."""
    parser = parser_of(__doc__)
    parser.add_argument("--site", type=Path, help="the site")
    options = parse(parser)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None or find_spec("playwright") is None:
        print("peers are not measured: no Chromium, or without the extra `browser`", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as place:
        site = options.site or _small_site(Path(place))
        found = typed(site, chromium, QUERIES[:1] if options.smoke else QUERIES * ROUNDS)
        count = json.loads((site / "site.json").read_text(encoding="utf-8"))["count"]
    p50, p95 = np.percentile(found, (50, 95))
    results = {"icons": count, "letters": len(found), "p50_ms": round(float(p50), 1), "p95_ms": round(float(p95), 1)}
    write("keystroke", {"machine": machine(), **results}, options.out)
    print(results)


def typed(site: Path, chromium: str, queries: tuple[str, ...]) -> list[float]:
    """Return the milliseconds of each letter."""
    from playwright.sync_api import sync_playwright

    host = functools.partial(_Silent, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), host) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
        page.set_default_timeout(120_000)
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.wait_for_selector("body[data-state=ready]:not(.busy)")
        page.evaluate(TYPE, "a first query, which loads what all need")
        found = [page.evaluate(TYPE, query[:end]) for query in queries for end in range(1, len(query) + 1)]
        server.shutdown()
    return found


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def _small_site(place: Path) -> Path:
    _run("index", Path(__file__).parents[1] / "docs" / "drawings", "--out", place / "index")
    _run("export", "web", "--index", place / "index", "--out", place / "site")
    return place / "site"


def _run(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "grr_coca", *map(str, arguments)], check=True, capture_output=True)


if __name__ == "__main__":
    main()
