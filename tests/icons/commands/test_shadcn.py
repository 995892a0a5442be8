"""npm's shadcn migrates an app by a map of `match` from a registry on this machine. `make test-clients` installs it."""

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_match_verb import HEART, HOME, TRASH, icon_set

PYTHON = os.environ.get("GRR_COCA_TEST_CLIENTS")
FOLDER = Path(PYTHON or sys.executable).absolute().parents[1] / "node_modules"
SHADCN = FOLDER / "shadcn" / "dist" / "index.js"

pytestmark = pytest.mark.skipif(not SHADCN.exists(), reason="run `make test-clients`, which installs npm's shadcn")

CODE = """import { Heart, House, Trash2 } from "lucide-react"

export const Bar = () => <p><Heart /><House /><Trash2 /></p>
"""
COMPONENTS = {
    "style": "new-york",
    "tailwind": {"config": "", "css": "src/index.css", "baseColor": "neutral", "cssVariables": True},
    "rsc": False,
    "tsx": True,
    "aliases": {"components": "@/components", "utils": "@/lib/utils", "ui": "@/ui"},
    "iconLibrary": "lucide",
}


@contextmanager
def registry(folder: Path):
    """Serve a folder on this machine."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_shadcn_migrates_icons_by_the_map(grr_coca, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for prefix, icons in {
        "lucide": {"trash-2": TRASH, "house": HOME, "heart": HEART},
        "tabler": {"trash": TRASH, "home": HOME},
    }.items():
        (tmp_path / f"{prefix}.json").write_text(icon_set(prefix, icons))
    out = tmp_path / "registry" / "icons" / "index.json"
    out.parent.mkdir(parents=True)
    decided = tmp_path / "map.json"
    decided.write_text(json.dumps({"lucide:trash-2": "tabler:trash", "lucide:house": "tabler:home"}))
    sets = (tmp_path / "lucide.json", tmp_path / "tabler.json")
    assert grr_coca("match", *sets, "--decided", decided, "--out", out).code == 0
    app = tmp_path / "app"
    (app / "src" / "ui").mkdir(parents=True)
    code = app / "src" / "ui" / "bar.tsx"
    code.write_text(CODE)
    (app / "src" / "index.css").touch()
    (app / "components.json").write_text(json.dumps(COMPONENTS))
    (app / "package.json").write_text(json.dumps({"name": "app", "dependencies": {"lucide-react": "1.81.0"}}))
    (app / "tsconfig.json").write_text(json.dumps({"compilerOptions": {"baseUrl": ".", "paths": {"@/*": ["./src/*"]}}}))
    npm = tmp_path / "programs" / "npm"  # which would fetch the package
    npm.parent.mkdir()
    npm.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/called"\n')
    npm.chmod(0o755)
    path = os.pathsep.join([str(npm.parent), str(FOLDER / ".bin"), os.environ["PATH"]])
    with registry(tmp_path / "registry") as address:
        done = subprocess.run(
            ["node", SHADCN, "migrate", "icons", "--yes", "--from", "lucide", "--to", "tabler"],
            cwd=app,
            env={**os.environ, "PATH": path, "REGISTRY_URL": address, "NO_PROXY": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    migrated = code.read_text()
    assert "IconTrash" in migrated
    assert "<IconHome />" in migrated
    assert "<Heart />" in migrated, "what has no equivalent stays"
    assert "@tabler/icons-react" in (tmp_path / "called").read_text()
