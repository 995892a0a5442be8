"""Puts the pictures of a study's showcase beside its ledger."""

import contextlib
from pathlib import Path

from grr_coca.data.bad import BadSample
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.pairs import RawPair
from grr_coca.errors import UserError
from grr_coca.files import write_whole
from grr_coca.study.plan.plan import Plan, showcase_of, stage_names
from grr_coca.study.plan.stages import stage_recipe
from grr_coca.study.running.measured import drawn_examples
from grr_coca.study.showcase import picture_path
from grr_coca.study.thumbnails import thumbnail


def write_showcase(plan: Plan, out: Path) -> None:
    """Write the pictures that are not there yet: of the images that every model of the study captions.

    Raises:
        UserError: the folder cannot be written to.
    """
    for stage in stage_names(plan):
        split, count = showcase_of(plan, stage)
        path = stage_recipe(plan, plan.arms[0], stage, 0, {}).data.test.get(split)
        if path is None or count == 0:
            continue
        source = open_source(path)
        for index in drawn_examples(source, count):
            with contextlib.suppress(BadSample):  # an image that cannot be read has no picture
                _write(source[index], out, stage)


def _write(pair: RawPair, out: Path, stage: str) -> None:
    picture = picture_path(out, stage, pair.key)
    if picture.exists():
        return
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_whole(picture, thumbnail(pair))
    except OSError as error:
        raise UserError(f"{picture}: cannot be written ({error.strerror or error})") from error
