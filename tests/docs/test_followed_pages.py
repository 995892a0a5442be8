"""Pages that change the code are followed step by step, on a copy of the code."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEP = re.compile(r"^`(?P<path>\S+)`:$|^```(?P<kind>python|diff)\n(?P<block>.*?)^```$", re.MULTILINE | re.DOTALL)
CHANGED = {
    "adding-a-part": ["model/sine.py", "model/config.py", "model/build.py", "model/presets.py"],
    "adding": [
        "cli/similarity.py",
        "cli/__init__.py",
        "../grr_coca_serve/endpoints/similarity.py",
        "../grr_coca_search/fields.py",
        "../grr_coca_search/photo.py",
    ],
}
"""Files of the package that each page changes, in order."""
TESTS = {
    "adding-a-part": ["core/model/test_presets.py", "core/model/test_sine.py"],
    "adding": [
        *("cli/test_flags.py", "cli/test_startup.py", "core/cli/test_similarity.py"),
        *("serve/test_serve_similarity.py", "search/test_iso.py"),
    ],
}
"""Test files to run after the changes."""
SELECTED = (
    "sine or parts_of_their_names or every_choice or similarity or explained_in_the_help or iso or missing_inputs"
)


def follow(page: Path, root: Path) -> list[str]:
    """Apply the blocks of a page to the files named above them. Returns the files, in order."""
    paths: list[str] = []
    for step in STEP.finditer(page.read_text(encoding="utf-8")):
        if step["path"]:
            paths.append(step["path"])
            continue
        path = root / paths[-1]
        if step["kind"] == "python":
            assert not path.exists(), f"{paths[-1]} must be new"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step["block"], encoding="utf-8")
        else:
            lines = step["block"].splitlines(keepends=True)
            before, after = ("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
            code = path.read_text(encoding="utf-8")
            assert code.count(before) == 1, f"{page.name} changes lines that {paths[-1]} does not have:\n{before}"
            path.write_text(code.replace(before, after), encoding="utf-8")
    return paths


@pytest.mark.ci
@pytest.mark.parametrize("page", CHANGED)
def test_code_passes_its_tests_after_following_the_page(tmp_path, page):
    package = tmp_path / "src" / "grr_coca"
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    (package / "model" / "weights").symlink_to(ROOT / "src" / "grr_coca" / "model" / "weights")
    for folder in ("docs", "datasets"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    shutil.copytree(ROOT / "tests" / "shared", tmp_path / "tests" / "shared")
    for name in ("conftest.py", *TESTS[page]):
        if (ROOT / "tests" / name).exists():
            (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "tests" / name, tmp_path / "tests" / name)

    touched = follow(ROOT / "docs" / f"{page}.md", tmp_path)
    assert [Path(path) for path in touched if path.startswith("src")] == [
        Path(os.path.normpath(f"src/grr_coca/{name}")) for name in CHANGED[page]
    ]
    options = ["-v", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(tmp_path), "-k", SELECTED]
    # PYTHONPATH, because pytest imports the plug-in of conftest.py before it reads the option `pythonpath`
    places = os.pathsep.join(str(tmp_path / place) for place in ("src", "tests/shared"))
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert {name for name in TESTS[page] if f"{name}::" in result.stdout} == {*TESTS[page]}
