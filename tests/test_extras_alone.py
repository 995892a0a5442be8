"""Each extra by itself: with its packages and what these need, and no others, what it is for works."""

import os
import subprocess
import sys
import textwrap
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support import real_pairs, with_caption, write_shard
from synthetic_study import plan, rows_of, write_study

from grr_coca.common.errors import PACKAGES

ROOT = Path(__file__).parents[1]
GUITAR = ROOT / "docs" / "drawings" / "guitar.webp"
ARMS = ("baseline_coca", "grr_coca")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ALONE = """
import sys
from importlib.machinery import PathFinder
find, missing = PathFinder.find_spec, set({missing!r})
PathFinder.find_spec = lambda name, *more: None if name.partition(".")[0] in missing else find(name, *more)
from grr_coca.cli import main
import grr_coca
def cli(*arguments):
    code = main([str(argument) for argument in arguments])
    assert code == 0, (arguments, code)
"""
CAPTION = "assert grr_coca.load('icons', engine='torch').caption({guitar!r}) == 'guitar'"
USES = {
    "": "assert grr_coca.load('icons').caption({guitar!r}) == 'guitar'",
    "torch": CAPTION,
    "train": "cli('pretrain', {recipe!r}, '--out', 'run')",
    "study": "cli('study', 'report', {study!r}, '--out', 'report')",
    "parquet": """
        cli('index', {guitar!r}, '--out', 'index')
        cli('export', 'index', 'index', '--out', 'index.parquet')
        cli('import', 'index', 'index.parquet', '--out', 'again')
    """,
    "s3": """
        import functools, http.server, pathlib, threading
        place = pathlib.Path({labelled!r})
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=place.parent)
        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cli('data', 'index', f'http://127.0.0.1:{{server.server_port}}/{{place.name}}')
        import s3fs
    """,
    "probe": "cli('evaluate', {run!r}, '--data', {labelled!r}, '--task', 'probe', '--train', {labelled!r})",
    "open-clip": """
        from grr_coca.data.tokenizer import clip_bpe
        assert clip_bpe('ftfy').encode('caf\\u00c3\\u00a9') == clip_bpe('ftfy').encode('caf\\u00e9')
    """,
    "timm": """
        from grr_coca.infer.encoder import open_encoder
        assert open_encoder('timm:vit_tiny_patch16_224@32=random').info.num_tokens == 4
    """,
    "transformers": """
        from pathlib import Path
        from grr_coca.infer.encoder import open_encoder
        sizes = '"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14'
        Path('config.json').write_text('{{"model_type": "dinov2", ' + sizes + '}}')
        assert open_encoder('hf:.=random').info.num_tokens == 4
    """,
    "icons": "assert grr_coca.load('icons').caption({svg!r})",
    "codemod": """
        from grr_coca_icons.codemod.rewrite import Replacements, rewrite
        icons = Replacements({{('lucide', 'x'): 'tabler:x'}})
        assert rewrite('"lucide:x"', 'ts', icons).text == '"tabler:x"'
    """,
    "photos": CAPTION + "\nassert grr_coca.load('icons', engine='torch').caption({heic!r})",
    "export": "cli('export', 'onnx', '-c', {run!r}, '--out', 'graphs')",
    "serve": """
        from grr_coca_serve.server import RunningServer
        served = RunningServer.run
        RunningServer.run = lambda server: (server.stop(), served(server))
        cli('serve', '--port', '0')
    """,
    "mcp": """
        from grr_coca_icons.tools.icon_tools import IconTools
        from grr_coca_icons.tools.mcp import make_mcp_server
        cli('index', {svg!r}, '--out', 'index')
        with grr_coca.Index.open('index') as index:
            make_mcp_server(IconTools({{'index': index}}, reads_files=True))
    """,
}
NEEDS_MORE = {
    "report": "it draws for `demo`, `explain` and pages of hits, which need PyTorch",
    "hub": "there is no hub in tests; tests/core/cli/test_push.py plays one",
    "wandb": "it sends logs that the extra train makes: tests/core/train/test_trackers.py",
    "mlflow": "it sends logs that the extra train makes: tests/core/train/test_trackers.py",
    "milvus": "it needs a server: `make test-milvus`",
    "ray": "it needs a cluster: `make test-ray`",
}


@cache
def closure(requirement: str) -> frozenset[str]:
    """A package with all that it needs here, by canonical name."""
    found, todo, seen = set(), [Requirement(requirement)], set()
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        key = (name, frozenset(one.extras))
        if key in seen:
            continue
        seen.add(key)
        found.add(name)
        if name == "grr-coca":
            ours = [line for extra in one.extras for line in PROJECT["optional-dependencies"][extra]]
            todo += map(Requirement, [*PROJECT["dependencies"], *ours])
            continue
        try:
            needed = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            continue
        for other in needed:
            environments = [{"extra": extra} for extra in one.extras or {""}]
            if other.marker is None or any(map(other.marker.evaluate, environments)):
                todo.append(other)
    return frozenset(found)


def hidden(extra: str) -> list[str]:
    """Modules of all packages that are installed here and would not be with this extra alone."""
    allowed = closure(f"grr-coca[{extra}]" if extra else "grr-coca")
    return sorted(
        module
        for module, packages in packages_distributions().items()
        if not allowed & {canonicalize_name(package) for package in packages}
    )


def test_every_extra_is_tried():
    assert USES.keys() - {""} | NEEDS_MORE.keys() == PACKAGES.keys()


@pytest.mark.ci
@pytest.mark.parametrize("extra", USES, ids=lambda extra: extra or "none")
def test_extra_installs_all_that_its_use_needs(run, tmp_path, extra):
    missing = hidden(extra)
    assert {"pytest", "hypothesis"} <= set(missing)
    places = {
        "guitar": str(GUITAR),
        "run": str(run.folder),
        "recipe": str(run.folder / "recipe.yaml"),
        "study": str(write_study(tmp_path / "study", plan(ARMS, 2), rows_of(ARMS, range(2)))),
        "svg": str(tmp_path / "ring.svg"),
        "labelled": str(tmp_path / "labelled.tar"),
        "heic": str(ROOT / "tests" / "core" / "data" / "pictures" / "libheif.heic"),
    }
    Path(places["svg"]).write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle r="8"/></svg>')
    write_shard(tmp_path / "labelled.tar", [with_caption(pair, "ab"[i % 2]) for i, pair in enumerate(real_pairs(24))])
    code = ALONE.format(missing=missing) + textwrap.dedent(USES[extra]).format(**places)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
