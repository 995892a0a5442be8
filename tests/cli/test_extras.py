"""Packages that only some uses need: each use says in one line which command brings what is missing."""

import re
import tomllib
from pathlib import Path

import pytest
from support import hide_packages

from grr_coca.common.errors import PACKAGES, install_command

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    """Names of packages, without their versions."""
    return {re.split(r"[<>=!\[;]", requirement)[0].strip() for requirement in requirements}


@pytest.mark.parametrize("extra", sorted(PACKAGES))
def test_extra_installs_the_requested_packages(extra):
    brought = names(PROJECT["optional-dependencies"][extra])
    if "grr-coca" in brought:  # grr-coca[torch]
        (of,) = re.findall(r"grr-coca\[(\w+)\]", str(PROJECT["optional-dependencies"][extra]))
        brought = brought - {"grr-coca"} | names(PROJECT["optional-dependencies"][of])
    assert brought == set(PACKAGES[extra].values())


def test_packages_of_an_extra_are_not_base_requirements():
    optional = {name for packages in PACKAGES.values() for name in packages.values()}
    assert optional.isdisjoint(names(PROJECT["dependencies"]))


def test_developers_get_every_extra():
    (everything,) = (line for line in PROJECT["optional-dependencies"]["dev"] if line.startswith("grr-coca["))
    # What needs a server or a cluster has its own make target, which installs it.
    assert PACKAGES.keys() - {"milvus", "ray"} <= set(everything.removeprefix("grr-coca[").rstrip("]").split(","))


CALLS = [
    ("train", "tensorboard", "pretrain {recipe}"),
    ("train", "tensorboard", "finetune {recipe} --checkpoint {run}"),
    ("train", "yaml", "demo {plan}"),
    ("report", "matplotlib", "demo {plan}"),
    ("report", "matplotlib", "explain {image} -c {run}"),
    ("torch", "torch", "explain {image}"),
    ("torch", "torch", "evaluate {run} --data {image}"),
    ("torch", "torch", "compare {run} {run} --data {image}"),
    ("torch", "torch", "caption {image} -c {run}"),
    ("torch", "torch", "caption {image} --engine torch"),
    ("torch", "torch", "info grr_coca"),
    ("torch", "torch", "export open_clip -c {run} --out new"),
    ("train", "torch", "pretrain {recipe}"),
    ("export", "torch", "export onnx -c {run} --out graphs"),
    ("train", "yaml", "study status {run}"),
    ("study", "scipy", "study report {run}"),
    ("hub", "huggingface_hub", "caption {image} -c someone/somewhere"),
    ("photos", "onnxscript", "caption {image} -c coca-b32@v1"),
    ("parquet", "pyarrow", "embed {image} -c {run} --out vectors.parquet"),
    ("parquet", "pyarrow", "data stats {table}"),
    ("parquet", "pyarrow", "import index {table} --out index"),
    ("milvus", "pymilvus", "search http://localhost:1/index cat"),
    ("ray", "ray", "index {image} --out index --on ray"),
    ("ray", "ray", "embed {image} -c {run} --out vectors.npy --on ray"),
    ("ray", "ray", "caption {image} -c {run} --on ray"),
    ("serve", "uvicorn", "serve"),
    ("export", "onnxscript", "export onnx -c {run} --out graphs"),
    ("probe", "sklearn", "evaluate {run} --data {image} --task probe --train {image}"),
]


@pytest.mark.parametrize(("extra", "module", "call"), CALLS, ids=[call for *_, call in CALLS])
def test_missing_package_error_names_the_install_command(
    refused, run, image_files, tmp_path, monkeypatch, extra, module, call
):
    table = tmp_path / "pairs.parquet"
    table.touch()
    places = {"recipe": run.folder / "recipe.yaml", "run": run.folder, "image": image_files[0], "table": table}
    places["plan"] = ROOT / "recipes" / "demo.yaml"
    hide_packages(monkeypatch, module)
    message = refused(*(word.format(**places) for word in call.split()))
    assert f"needs {PACKAGES[extra][module]}; run: {install_command(extra)}" in message
