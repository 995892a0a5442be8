"""`finetune --search`: the learning rate and the number of steps by successive halving."""

import json
from dataclasses import replace

import pytest
import yaml
from support import ALONE, BATCH_SIZE, differing, finetuning, real_pairs, silent, snapshot, weights, write_shard

from grr_coca.common.errors import DivergedError, UserError
from grr_coca.infer.load import locate_checkpoint
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.train import rate_search as searching
from grr_coca.train.logs import read_metrics
from grr_coca.train.loop import train
from grr_coca.train.rate_search import FACTORS, TRIALS_FOLDER, max_total_steps, read_search, search_rate
from grr_coca.train.recipe import CheckpointRecipe, EvaluationRecipe, FailureLimits, ScheduleRecipe, load_recipe
from grr_coca.train.run_checkpoints import origin_of, resume_point


@pytest.fixture
def job(run, tmp_path):
    """A recipe of fine-tuning, and its search in a folder."""
    shard = write_shard(tmp_path / "mine.tar", real_pairs(24, "health"))
    recipe = replace(
        finetuning(run.recipe),
        data=replace(run.recipe.data, train=str(shard), val=str(shard)),
        schedule=ScheduleRecipe(steps=4, warmup_steps=1),
        evaluation=EvaluationRecipe(interval=1, batch_size=BATCH_SIZE),
    )
    return _Job(recipe, run.checkpoint)


class _Job:
    def __init__(self, recipe, start):
        self.recipe, self.start = recipe, start

    def search(self, out, on_step=lambda *_: None):
        start = lambda: from_pretrained(self.start)  # noqa: E731
        return search_rate(self.recipe, start, out, ALONE, origin_of(self.start), on_step)

    def finish(self, out, on_step=lambda *_: None):
        chosen = self.search(out, on_step)
        point = resume_point(out, chosen, origin_of(self.start))
        train(chosen, from_pretrained(point), out, ALONE, silent, point)
        return chosen


@pytest.mark.ci
def test_run_equals_one_with_the_chosen_recipe(job, tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "FACTORS", (1.0, 2.0))
    chosen = job.finish(tmp_path / "searched")
    train(chosen, from_pretrained(job.start), tmp_path / "plain", ALONE, silent)
    first, second = (from_pretrained(locate_checkpoint(tmp_path / name)) for name in ("searched", "plain"))
    assert first.step == second.step
    assert not differing(weights(first), weights(second))
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("searched", "plain")]
    assert logs[0] == logs[1]
    assert load_recipe(tmp_path / "searched" / "recipe.yaml") == chosen


@pytest.mark.ci
def test_half_of_the_rates_continue_at_each_rung(job, tmp_path):
    done = []
    chosen = job.search(tmp_path / "run", lambda steps, _: done.append(steps))
    found = read_search(tmp_path / "run")
    by_steps = sorted(max(map(int, trial.scores)) for trial in found.trials)
    assert by_steps[:3] == [1, 1, 2]
    assert len(found.trials) == len(FACTORS)
    assert done[-1] == sum(by_steps) <= max_total_steps(job.recipe), "no step was trained twice"
    best = next(trial for trial in found.trials if trial.lr == found.lr)
    assert len(best.scores) == by_steps[-1]
    top = max(best.scores.values())
    assert best.scores[str(found.steps - found.decay_steps)] == top
    assert chosen.schedule == ScheduleRecipe(found.steps, 1, decay_steps=found.decay_steps)
    assert (chosen.optimizer.lr, chosen.checkpoints.keep_best) == (found.lr, "mean_recall")
    assert not (tmp_path / "run" / TRIALS_FOLDER).exists()


@pytest.mark.ci
def test_killed_search_continues_exactly(job, tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "FACTORS", (1.0, 2.0))
    job.finish(tmp_path / "whole")
    kills = 0
    for _ in range(100):
        begun = 0

        def killed(_done, _what):
            nonlocal begun
            begun += 1
            if begun == 2:  # the first one may repeat a step that was not saved
                raise KeyboardInterrupt

        try:
            job.finish(tmp_path / "killed", killed)
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills > 3
    for name in ("search.json", "metrics.jsonl", "recipe.yaml"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    first, second = (from_pretrained(locate_checkpoint(tmp_path / name)) for name in ("whole", "killed"))
    assert not differing(weights(first), weights(second))


@pytest.mark.ci
def test_rate_that_diverges_is_dropped(job, tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "FACTORS", (1e36, 2.0))
    optimizer = replace(job.recipe.optimizer, learning_rates={"logit_scale": 0.01})
    evaluation = EvaluationRecipe(interval=2, batch_size=BATCH_SIZE)  # the loss of the second step is not finite
    changes = {"health": FailureLimits(max_skipped=1), "schedule": ScheduleRecipe(8, 1), "evaluation": evaluation}
    job.recipe = replace(job.recipe, optimizer=optimizer, **changes)
    chosen = job.search(tmp_path / "run")
    assert [trial.diverged for trial in read_search(tmp_path / "run").trials] == [True, False]
    assert chosen.optimizer.learning_rates == {"logit_scale": 0.02}
    monkeypatch.setattr(searching, "FACTORS", (1e36, 1e37))
    with pytest.raises(DivergedError, match="lower optimizer: lr"):
        job.search(tmp_path / "other")


@pytest.mark.ci
def test_score_of_keep_best_decides(job, tmp_path):
    job.recipe = replace(job.recipe, checkpoints=CheckpointRecipe(keep_best="captioning_loss"))
    job.search(tmp_path / "run")
    found = read_search(tmp_path / "run")
    best = next(trial for trial in found.trials if trial.lr == found.lr)
    assert found.score == "captioning_loss"
    assert best.scores[str(found.steps - found.decay_steps)] == min(best.scores.values())
    rows = read_metrics(tmp_path / "run", "val")
    assert [row["captioning_loss"] for row in rows] == [best.scores[str(row["step"])] for row in rows]


def test_search_needs_a_rate_above_0(job, tmp_path):
    job.recipe = replace(job.recipe, optimizer=replace(job.recipe.optimizer, lr=0.0))
    with pytest.raises(UserError, match="lr must be above 0 for a search, got 0"):
        job.search(tmp_path / "run")


@pytest.mark.ci
def test_trial_ends_at_a_validation(job, tmp_path):
    evaluation = EvaluationRecipe(interval=3, batch_size=BATCH_SIZE)
    job.recipe = replace(job.recipe, evaluation=evaluation, schedule=ScheduleRecipe(13, 1))
    done = []
    job.search(tmp_path / "run", lambda steps, _: done.append(steps))
    trials = read_search(tmp_path / "run").trials
    assert done[-1] == sum(max(map(int, trial.scores)) for trial in trials)


def test_run_without_a_search_is_not_searched(job, tmp_path):
    train(job.recipe, from_pretrained(job.start), tmp_path / "run", ALONE, silent)
    with pytest.raises(UserError, match="without a search; continue it without --search"):
        job.search(tmp_path / "run")


@pytest.mark.ci
def test_command_names_the_chosen_values(grr_coca, refused, job, tmp_path):
    from grr_coca.train.recipe import save_recipe

    save_recipe(job.recipe, tmp_path / "mine.yaml")
    command = ["finetune", tmp_path / "mine.yaml", "--checkpoint", job.start, "--out", tmp_path / "run", "--search"]
    forecast = grr_coca(*command, "--dry-run")
    assert f"search       4 learning rates, {max_total_steps(job.recipe)} steps in all at most, before" in forecast.out
    assert not (tmp_path / "run").exists()
    result = grr_coca(*command, "--no-adapt")
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "run" / "search.json").read_text())
    assert f"learning rate {found['lr']:.3g} and {found['steps']} steps have the best mean_recall" in result.out
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (written["optimizer"]["lr"], written["schedule"]["steps"]) == (found["lr"], found["steps"])
    before = snapshot(tmp_path / "run" / "checkpoints")
    assert "already has a run" in refused(*command)
    assert grr_coca(*command, "--no-adapt", "--resume").code == 0
    assert snapshot(tmp_path / "run" / "checkpoints") == before
