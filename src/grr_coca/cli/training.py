"""`grr-coca pretrain` and `finetune`: train with a progress bar, or forecast a run.

No module that imports torch is imported before the arguments have been checked, so errors are reported immediately.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from grr_coca.common.errors import DiskError, UserError, require_extra
from grr_coca.infer.load import locate_checkpoint
from grr_coca.model.checkpoint_files import require_not_adapted
from grr_coca.model.presets import get_preset

if TYPE_CHECKING:
    from grr_coca.common.ranks import Ranks
    from grr_coca.model.checkpoint import Checkpoint
    from grr_coca.train.recipe import Recipe
    from grr_coca.train.run_checkpoints import Origin


def pretrain(
    recipe: Annotated[Path, tyro.conf.Positional],
    preset: str | None = None,
    data: str | None = None,
    out: Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> None:
    """Train a new model.

    Args:
        recipe: YAML file that describes the run; see recipes/.
        preset: train this preset instead of the recipe's.
        data: train on these pairs (any kind that `data check` reads) instead of all data of the recipe; every 20th
            image is held out for validation.
        out: run folder for log and checkpoints; runs/RECIPE-PRESET if not given.
        seed: use this seed instead of the recipe's.
        resume: continue the run in --out, or start it if none exists.
        dry_run: run a few batches, then print the expected memory, steps and time.
    """
    resolved = _read_recipe(recipe, data, seed)
    model = resolved.model
    if model is None:
        raise UserError(f"{recipe}: has no key 'model'; it is a recipe for fine-tuning, see `grr-coca finetune`")
    if preset is not None:
        model = replace(model, preset=preset)
    if model.preset is not None and model.size is not None:
        get_preset(model.preset, model.size)
    try:
        model.config(vocab_size=1)  # checked before a tokenizer is trained on millions of captions
    except UserError as error:
        raise UserError(f"{recipe}: model: {error}") from error
    assert model.preset is not None, "it has a config"
    resolved = replace(resolved, model=model)

    from grr_coca.train.setup import new_checkpoint  # lazy import: PyTorch

    out = out or _default_out(recipe, model.preset)
    _run(resolved, partial(new_checkpoint, resolved), out, resume, dry_run)


def finetune(
    recipe: Annotated[Path, tyro.conf.Positional],
    checkpoint: str | None = None,
    data: str | None = None,
    out: Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
    search: bool = False,
    adapt: bool = True,
) -> None:
    """Continue the training of a checkpoint on other pairs.

    At the end, `grr-coca adapt` writes OUT/adapted from the result.

    Args:
        recipe: YAML file that describes the run, without preset and size of a model; see recipes/.
        checkpoint: folder to start from, or name of a model (see `grr-coca models`).
        data: train on these pairs (any kind that `data check` reads) instead of all data of the recipe; every 20th
            image is held out for validation.
        out: run folder for log and checkpoints; runs/RECIPE-PRESET if not given.
        seed: use this seed instead of the recipe's.
        resume: continue the run in --out, or start it if none exists.
        dry_run: run a few batches, then print the expected memory, steps and time.
        search: search for the learning rate and the number of steps, starting from the recipe's values, by the scores
            of validation pairs. This takes up to 3.5 times as many steps; OUT/search.json has all trials.
        adapt: at the end, adapt the model to its training pairs in closed form, which improves retrieval.
    """
    resolved = _read_recipe(recipe, data, seed)
    if checkpoint is None:
        # Fine-tuning must not silently start from random weights, because such a model generates the same caption for
        # every image.
        raise UserError("fine-tuning starts from a checkpoint; pass --checkpoint FOLDER, or use `grr-coca pretrain`")
    folder = locate_checkpoint(checkpoint)
    require_not_adapted(folder, "finetune")

    from grr_coca.model.checkpoint import from_pretrained  # lazy import: PyTorch
    from grr_coca.train.run_checkpoints import origin_of
    from grr_coca.train.setup import fit_start

    start = fit_start(from_pretrained(folder), resolved)
    out = out or _default_out(recipe, start.preset)
    make_trial = (lambda: fit_start(from_pretrained(folder), resolved)) if search else None
    is_done = _run(resolved, lambda _: start, out, resume, dry_run, origin_of(folder), make_trial)
    if is_done and adapt:
        _adapt_run(resolved, out)


def _adapt_run(recipe: "Recipe", out: Path) -> None:
    """Adapt the model of a run to its training pairs, measured on its validation pairs, and print the report.

    Pairs of `mix` are not used. If the pairs are unsuitable, the reason is printed instead of the report.
    """
    from grr_coca.adapt.report import report_text
    from grr_coca.cli.adapt import adapt_with_report
    from grr_coca.train.setup import training_sources

    pairs, val = training_sources(replace(recipe, data=replace(recipe.data, mix={})))
    target = out / "adapted"
    try:
        adapted = adapt_with_report(pairs, recipe.data.train, str(out), target, val, is_tuned=True)
    except UserError as error:
        print(f"the trained model was not adapted to its training pairs: {error}", file=sys.stderr)
        return
    print(report_text(adapted, target))


def _read_recipe(path: Path, data: str | None, seed: int | None) -> "Recipe":
    """Read a recipe, and apply the values from the command line.

    Raises:
        UserError: If the recipe or `data` is invalid, its pairs do not exist, or a package for training is missing.
    """
    require_extra("train", "training")
    from grr_coca.data.sources.open import require_exists  # lazy import: NumPy and Pillow
    from grr_coca.train.recipe import absolute_data, load_recipe

    recipe = load_recipe(path)
    if data is not None:
        train = absolute_data(Path.cwd(), data)
        recipe = replace(recipe, data=replace(recipe.data, train=train, mix={}, val=None, test={}))
    for split in (recipe.data.train, *recipe.data.mix, recipe.data.val):
        if split is not None:
            require_exists(split)
    return recipe if seed is None else replace(recipe, seed=seed)


def _default_out(recipe: Path, preset: str) -> Path:
    return Path("runs") / f"{recipe.stem}-{preset}"


def _run(
    recipe: "Recipe",
    make_start: "Callable[[Ranks], Checkpoint]",
    out: Path,
    resume: bool,
    dry_run: bool,
    origin: "Origin | None" = None,
    make_trial: "Callable[[], Checkpoint] | None" = None,
) -> bool:
    """Train with a progress bar, or print a forecast of the training.

    Return True on rank 0 of a finished run, and False on other ranks and after a forecast.

    Args:
        recipe: the recipe of the run.
        make_start: creates the start model of a new run.
        out: the run folder.
        resume: continue the run in `out`, if it exists.
        dry_run: only print the forecast.
        origin: the start checkpoint of the run. If None, the run starts with new weights.
        make_trial: loads that checkpoint again for each trial of a search for the learning rate and the number of
            steps.
    """
    from grr_coca.cli.progress import bars
    from grr_coca.common.ranks import join_ranks
    from grr_coca.model.checkpoint import from_pretrained
    from grr_coca.train.forecast import forecast
    from grr_coca.train.loop import train

    with join_ranks() as ranks:
        recipe.require_even_shares(ranks.size)  # checked before a tokenizer is trained on millions of captions
        if dry_run:
            text = forecast(recipe, make_start(ranks), ranks)
            if ranks.is_first:
                print(text if make_trial is None else f"{text}\nsearch       {_search_cost(recipe)} before the run")
            return False
        if make_trial is not None:
            assert origin is not None
            recipe, resume = _search(recipe, make_trial, out, resume, origin, ranks), True
        point = ranks.run_on_first(lambda: _find_resume_point(out, recipe, resume, origin))
        start = make_start(ranks) if point is None else from_pretrained(point)
        if not ranks.is_first:
            train(recipe, start, out, ranks, lambda *_: None, point, origin)
            return False
        with bars({start.preset: recipe.schedule.steps}) as shown:

            def on_step(done: int, metrics: dict[str, float]) -> None:
                losses = ", ".join(
                    f"{name} {metrics[name]:.3f}" for name in ("contrastive", "captioning") if name in metrics
                )
                shown.update(start.preset, done, losses)

            with _advise_on_disk_errors():
                train(recipe, start, out, ranks, on_step, point, origin)
        print(f"checkpoint, log and recipe are in {out}")
        return True


@contextmanager
def _advise_on_disk_errors() -> Iterator[None]:
    try:
        yield
    except DiskError as error:
        raise UserError(f"{error}; free some space on this disk, and continue with --resume") from error


def _search_cost(recipe: "Recipe") -> str:
    from grr_coca.train.rate_search import FACTORS, max_total_steps

    return f"{len(FACTORS)} learning rates, {max_total_steps(recipe):,} steps in all at most,"


def _search(
    recipe: "Recipe",
    make_trial: "Callable[[], Checkpoint]",
    out: Path,
    resume: bool,
    origin: "Origin",
    ranks: "Ranks",
) -> "Recipe":
    """Search for the learning rate and the number of steps, with a progress bar.

    Returns:
        The recipe of the run, which the caller then resumes.
    """
    from grr_coca.cli.progress import bars
    from grr_coca.train.rate_search import SEARCH_FILE, TRIALS_FOLDER, max_total_steps, read_search, search_rate

    if not resume:
        ranks.run_on_first(lambda: _require_no_run(out, TRIALS_FOLDER))
    if not ranks.is_first:
        return search_rate(recipe, make_trial, out, ranks, origin, lambda *_: None)
    with bars({"search": max_total_steps(recipe)}) as shown, _advise_on_disk_errors():
        chosen = search_rate(
            recipe, make_trial, out, ranks, origin, lambda done, what: shown.update("search", done, what)
        )
    found = read_search(out)
    assert found is not None
    print(
        f"learning rate {found.lr:.3g} and {found.steps:,} steps have the best {found.score} on the validation pairs; "
        f"{out / SEARCH_FILE} has all trials"
    )
    if found.improving:
        print("the score was still improving at the limit of the search; try more steps in the recipe", file=sys.stderr)
    return chosen


def _find_resume_point(out: Path, recipe: "Recipe", resume: bool, origin: "Origin | None") -> Path | None:
    """Return the checkpoint from which a run in `out` continues, or None for a new run."""
    from grr_coca.train.run_checkpoints import resume_point

    if resume:
        return resume_point(out, recipe, origin)
    _require_no_run(out)
    return None


def _require_no_run(out: Path, *more: str) -> None:
    if any((out / name).exists() for name in ("checkpoints", *more)):
        raise UserError(f"{out}: already has a run; continue it with --resume, or pass another --out")
