"""Follow a page of the docs that changes the code, on a copy of the code."""

import re
from pathlib import Path

_STEP = re.compile(r"^`(?P<path>\S+)`:$|^```(?P<kind>python|diff)\n(?P<block>.*?)^```$", re.MULTILINE | re.DOTALL)


def follow(page: Path, root: Path) -> list[str]:
    """Apply the blocks of a page to the files named above them. Returns the files, in order."""
    paths: list[str] = []
    for step in _STEP.finditer(page.read_text(encoding="utf-8")):
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
