"""Search for the learning rate and length of fine-tuning, based on scores of validation pairs.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943) finds the learning rate: all rates are first trained for a
quarter of the recipe's steps. Then the better half of them is trained until the number of steps has doubled, and so on.
The last trial continues until its score no longer improves, which determines the length. Until then, learning rates are
constant after the warm-up (`ScheduleRecipe.decay_steps`), so the run with the chosen recipe continues from the best
checkpoint, and no step is trained twice.

A trial is a run in `OUT/search`. All decisions follow from the logs of the trials, so a stopped search continues with
identical results.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from grr_coca.common.dict_to_dataclass import from_dict, to_dict
from grr_coca.common.errors import DiskError, DivergedError, UserError
from grr_coca.common.files import read_json, sync_folder, write_bytes_atomic
from grr_coca.common.ranks import Ranks
from grr_coca.model.checkpoint import Checkpoint, from_pretrained
from grr_coca.model.checkpoint_files import BEST_FILE, checkpoints_by_step
from grr_coca.train.logs import Progress, read_metrics, score_to_maximize
from grr_coca.train.loop import train
from grr_coca.train.recipe import CheckpointRecipe, Recipe, Score, save_recipe
from grr_coca.train.run_checkpoints import CheckpointStore, Origin, resume_point, with_numerics_of

FACTORS = (1 / 3, 1.0, 3.0, 9.0)
"""Candidate learning rates, as multiples of the recipe's learning rate."""
MAX_LENGTH = 2
"""Maximum number of steps before the decay, as a multiple of the recipe's number of steps."""
PATIENCE = 3
"""Number of validations without a better score after which the last trial ends."""
DECAY_SHARE = 0.25
"""Number of decay steps, as a fraction of the number of steps before the decay."""
SEARCH_FILE = "search.json"
TRIALS_FOLDER = "search"
"""Folder, within a run folder, for the runs of an unfinished search."""
_MIN_VALIDATIONS = 4
"""Minimum number of validations within the recipe's number of steps. If necessary, the search validates more often."""

OnTrialStep = Callable[[int, str], object]
"""Callback that rank 0 calls with the total number of finished steps of all trials and a description of the newest
step."""


@dataclass(frozen=True)
class Trial:
    """Candidate learning rate with its results.

    Attributes:
        lr: Learning rate.
        scores: Validation scores by step, counted from the start of the trial. The keys are strings, as in JSON.
        diverged: Whether the trial ended because its loss was not finite for too many steps in a row.
    """

    lr: float
    scores: dict[str, float]
    diverged: bool


@dataclass(frozen=True, kw_only=True)
class RateSearchResult:
    """Content of `search.json`.

    Attributes:
        score: Name of the validation score.
        trials: Trials of all candidate rates.
        lr: Chosen rate.
        steps: Chosen number of steps, including the decay.
        decay_steps: Number of decay steps.
        improving: Whether the score was still improving when the maximum number of steps was reached.
    """

    score: str
    trials: tuple[Trial, ...]
    lr: float
    steps: int
    decay_steps: int
    improving: bool

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return a copy of a recipe with the chosen values. A run with the copy also keeps its best checkpoint."""
        schedule = replace(recipe.schedule, steps=self.steps, decay_steps=self.decay_steps)
        checkpoints = replace(recipe.checkpoints, keep_best=_score(recipe))
        return replace(_with_rate(recipe, self.lr), schedule=schedule, checkpoints=checkpoints)


def max_total_steps(recipe: Recipe) -> int:
    """Return the maximum total number of steps of all trials, without the decay of the run after the search."""
    rung, trained, before, count = _first_rung(recipe), 0, 0, len(FACTORS)
    while count > 1:
        trained, before, rung, count = trained + count * (rung - before), rung, 2 * rung, -(-count // 2)
    return trained + max(0, _max_trial_steps(recipe) - before)


def search_rate(
    recipe: Recipe, make_start: Callable[[], Checkpoint], out: Path, ranks: Ranks, origin: Origin, on_step: OnTrialStep
) -> Recipe:
    """Find the learning rate and the number of steps, and create the run that uses them, with its first steps already
    trained.

    If the search has already finished, its result is used. All ranks must call this function.

    Args:
        recipe: Recipe with the initial rate and number of steps.
        make_start: Function that loads the start checkpoint.
        out: Run folder. If it contains an unfinished search, the search continues.
        ranks: This process among the processes of the run.
        origin: Start checkpoint of the run.
        on_step: Function that is called to report progress.

    Returns:
        Recipe of the run in `out`, with which the run can be resumed.

    Raises:
        UserError: If the rate is 0, no rate has a finite score, `out` contains a run without a search, or `train`
            raises it for another reason than divergence.
        Interruption: If a signal stopped the search. The state of the search is saved.
    """
    if not recipe.optimizer.lr:
        raise UserError("optimizer: lr must be above 0 for a search, got 0")
    found = ranks.run_on_first(lambda: read_search(out))
    if found is None:
        found = _Search(
            recipe=recipe,
            make_start=make_start,
            folder=out / TRIALS_FOLDER,
            ranks=ranks,
            origin=origin,
            on_step=on_step,
        ).run()
    return ranks.run_on_first(lambda: _begin_run(recipe, found, out))


def read_search(out: Path) -> RateSearchResult | None:
    """Return the result of a run's search, or None if the search has not finished.

    Raises:
        UserError: If the file is corrupt, or the folder contains a run without a search.
    """
    path = out / SEARCH_FILE
    if path.exists():
        return from_dict(RateSearchResult, read_json(path), str(path))
    if checkpoints_by_step(out / "checkpoints"):
        raise UserError(f"{out}: contains a run without a search; continue it without --search, or pass another --out")
    return None


@dataclass(kw_only=True)
class _Search:
    """Search in progress on one rank."""

    recipe: Recipe
    make_start: Callable[[], Checkpoint]
    folder: Path
    ranks: Ranks
    origin: Origin
    on_step: OnTrialStep
    trials: dict[float, Trial] = field(default_factory=dict)
    trained: dict[float, int] = field(default_factory=dict)

    def run(self) -> RateSearchResult:
        """Run the search, or continue it, and return its result.

        Raises:
            DivergedError: If no learning rate has a finite score.
            UserError, Interruption: See `train`. A trial that diverges ends only itself.
        """
        rates, rung = [factor * self.recipe.optimizer.lr for factor in FACTORS], _first_rung(self.recipe)
        while len(rates) > 1:
            for rate in rates:
                self._train(rate, lambda progress, steps=rung: progress.step >= steps)  # type: ignore[misc]
            rates.sort(key=lambda rate: self._trial_score(rate, rung), reverse=True)
            rates, rung = rates[: -(-len(rates) // 2)], 2 * rung
        (rate,) = rates
        limit, patience = _max_trial_steps(self.recipe), PATIENCE * _validation_interval(self.recipe)
        first_step = self.make_start().step

        def is_done(progress: Progress) -> bool:
            best = 0 if progress.best_step is None else progress.best_step - first_step
            return progress.step >= limit or progress.step - best >= patience

        self._train(rate, is_done)
        scores = self.trials[rate].scores
        best = max(map(int, scores), key=lambda step: self._trial_score(rate, step), default=0)
        if self._trial_score(rate, best) == -math.inf:
            raise DivergedError("no learning rate in the search has a finite score; lower optimizer: lr in the recipe")
        decay = max(1, round(DECAY_SHARE * best))
        improving = max(map(int, scores)) - best < patience
        return RateSearchResult(
            score=_score(self.recipe),
            trials=tuple(self.trials.values()),
            lr=rate,
            steps=best + decay,
            decay_steps=decay,
            improving=improving,
        )

    def _trial_score(self, rate: float, step: int) -> float:
        trial = self.trials[rate]
        return score_to_maximize(
            _score(self.recipe), math.nan if trial.diverged else trial.scores.get(str(step), math.nan)
        )

    def _train(self, rate: float, stop: Callable[[Progress], bool]) -> None:
        """Start or continue the trial of a learning rate, until `stop` returns True or the trial diverges."""
        out = _trial_folder(self.folder, rate)
        recipe = self.ranks.run_on_first(lambda: self._with_known_numerics(_trial_recipe(self.recipe, rate)))
        point = self.ranks.run_on_first(lambda: resume_point(out, recipe, self.origin))
        start = self.make_start() if point is None else from_pretrained(point)
        diverged = False

        def on_step(done: int, metrics: dict[str, float]) -> None:
            self.trained[rate] = done
            shown = f"learning rate {rate:.3g}, step {done}, loss {metrics.get('coca', math.nan):.3f}"
            self.on_step(sum(self.trained.values()), shown)

        try:
            train(recipe, start, out, self.ranks, on_step, point, self.origin, stop)
        except DivergedError:
            diverged = True
        rows = self.ranks.run_on_first(lambda: read_metrics(out, "val"))
        self.trials[rate] = Trial(rate, {str(int(row["step"])): row[_score(self.recipe)] for row in rows}, diverged)

    def _with_known_numerics(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the precisions that the first trial chose, or unchanged before the first trial."""
        for factor in FACTORS:
            folder = _trial_folder(self.folder, factor * self.recipe.optimizer.lr) / "checkpoints"
            if (point := CheckpointStore(folder, keep_last=1).newest()) is not None:
                return with_numerics_of(recipe, point)
        return recipe


# --- Recipes of trials


def _score(recipe: Recipe) -> Score:
    return recipe.checkpoints.keep_best or "mean_recall"


def _validation_interval(recipe: Recipe) -> int:
    return min(recipe.evaluation.interval, max(1, recipe.schedule.steps // _MIN_VALIDATIONS))


def _first_rung(recipe: Recipe) -> int:
    """Return the number of steps before the rates are first compared.

    This is about a quarter of the recipe's steps, rounded to a multiple of the validation interval.
    """
    interval = _validation_interval(recipe)
    return interval * max(1, round(recipe.schedule.steps / 4 / interval))


def _max_trial_steps(recipe: Recipe) -> int:
    """Return the maximum number of steps of a trial, which is a multiple of the validation interval."""
    interval = _validation_interval(recipe)
    return interval * max(1, MAX_LENGTH * recipe.schedule.steps // interval)


def _trial_folder(folder: Path, rate: float) -> Path:
    return folder / f"lr-{rate:.3g}"


def _trial_recipe(recipe: Recipe, rate: float) -> Recipe:
    """Return the recipe of a trial.

    A trial ends before the last step of this recipe, because a run does additional work at its last step.
    """
    schedule = replace(recipe.schedule, steps=_max_trial_steps(recipe) + 1, decay_steps=0)
    checkpoints = CheckpointRecipe(minutes=recipe.checkpoints.minutes, keep_last=1, keep_best=_score(recipe))
    return replace(_with_rate(recipe, rate), schedule=schedule, checkpoints=checkpoints)


def _with_rate(recipe: Recipe, rate: float) -> Recipe:
    """Return a recipe with another learning rate. The learning rates of parts change by the same factor."""
    optimizer = recipe.optimizer
    parts = {part: own * (rate / optimizer.lr) for part, own in optimizer.learning_rates.items()}
    evaluation = replace(recipe.evaluation, interval=_validation_interval(recipe))
    return replace(recipe, optimizer=replace(optimizer, lr=rate, learning_rates=parts), evaluation=evaluation)


# --- Files


def _begin_run(recipe: Recipe, found: RateSearchResult, out: Path) -> Recipe:
    """Create the run in `out` from the best checkpoint of the best trial, and return the run's recipe.

    The trials are removed. If the run already exists, it is kept.

    Raises:
        DiskError: If the disk is full or cannot be written to.
    """
    chosen = found.recipe(recipe)
    try:
        write_bytes_atomic(out / SEARCH_FILE, json.dumps(to_dict(found), indent=1).encode())
        steps = checkpoints_by_step(out / "checkpoints")
        if not steps:
            trial = _trial_folder(out / TRIALS_FOLDER, found.lr)
            best = checkpoints_by_step(trial / "checkpoints")[read_json(trial / "checkpoints" / BEST_FILE)["step"]]
            chosen = with_numerics_of(chosen, best)
            shutil.copytree(trial, out, ignore=shutil.ignore_patterns("checkpoints"), dirs_exist_ok=True)
            save_recipe(chosen, out / "recipe.yaml")
            (out / "checkpoints").mkdir(exist_ok=True)
            best.rename(out / "checkpoints" / best.name)
            sync_folder(out / "checkpoints")
        shutil.rmtree(out / TRIALS_FOLDER, ignore_errors=True)
    except OSError as error:
        raise DiskError(f"{out}: the results of the search cannot be written ({error.strerror or error})") from error
    return chosen
