"""Print the oldest versions that pyproject.toml allows, as pins for pip; `make test-oldest` installs them.

torch and torchvision are left out: their oldest builds on the registry are for CUDA, several GB, so the build at hand
is taken. Tools of tests and linters are left out too: they may ask for newer versions than we do.
"""

import re
import tomllib
from pathlib import Path

EXTRAS = (
    *("torch", "train", "report", "study", "hub", "parquet", "probe", "open-clip", "timm", "transformers"),
    *("icons", "serve", "mcp", "export", "photos"),
)
AT_HAND = {"torch", "torchvision"}
BOUND = re.compile(r"([\w-]+)>=([\w.]+)")


def pins(project: dict) -> list[str]:
    """`name==version` of each requirement at its lower bound."""
    optional = project["optional-dependencies"]
    requirements = project["dependencies"] + [
        line for extra in EXTRAS for line in optional[extra] if not line.startswith("grr-coca[")
    ]
    bounds = [BOUND.fullmatch(requirement) for requirement in requirements]
    unbounded = [line for line, bound in zip(requirements, bounds, strict=True) if bound is None]
    if unbounded:
        raise SystemExit(f"pyproject.toml: no lower bound, or more than one, in {', '.join(unbounded)}")
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound is not None and bound[1] not in AT_HAND]


if __name__ == "__main__":
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    print("\n".join(pins(tomllib.loads(text)["project"])))
