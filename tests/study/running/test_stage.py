"""A stage is trained and measured once, and its row says what it started from, what it cost and which code ran."""

import math
import signal
import subprocess
from dataclasses import replace

import pytest
import torch

from grr_coca.common.errors import Interruption
from grr_coca.data.order import Shuffle
from grr_coca.data.sources.open import open_source
from grr_coca.model.anatomy import flops_per_pair
from grr_coca.study.ledger import read_ledger, write_digests
from grr_coca.study.plan import Plan, read_plan
from grr_coca.study.rows import RowFolder
from grr_coca.study.running import stage as stage_module
from grr_coca.study.running.stage import caption_lengths, order_hash, run_flops, run_stage, step_flops, weight_hashes
from grr_coca.train.setup import new_checkpoint
from grr_coca.train.step import Trainer
from support import ALONE, CPU, real_pairs, tiny_recipe, warnings_of, with_caption, write_shard
from synthetic_study import PRETRAINING

ARMS = ("baseline_coca", "grr_coca")
ONE_RUN = {"seeds": [0], "finetune": [], "endpoints": PRETRAINING}


def test_a_run_whose_steps_were_all_skipped_has_a_row(agenda_of, monkeypatch):
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda *arguments: step(*arguments) | {"contrastive": math.nan})
    (task,) = agenda_of("grr_coca", **ONE_RUN).open_tasks()
    row = run_stage(task, CPU, lambda _: None)
    assert [(point.step, point.train) for point in row.curve] == [(6, {})]


def test_a_run_without_a_finite_loss_on_val_has_diverged(agenda_of, monkeypatch):
    def broken(recipe, start, folder, *rest):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").touch()
        for parameter in start.model.parameters():
            parameter.data.fill_(math.nan)
        return start

    monkeypatch.setattr(stage_module, "train", broken)
    agenda = agenda_of("grr_coca", seeds=[0], finetune=["health.yaml"], endpoints=PRETRAINING)
    (task,) = agenda.open_tasks()
    with warnings_of("grr_coca.study.running.stage") as warned:
        row = run_stage(task, CPU, lambda _: None)
    assert (row.kind, row.metrics, row.values) == ("diverged", {}, {})
    assert warned == ["grr_coca, pictograms, seed 0 diverged: its loss on val is not finite"]
    agenda.add(row)
    assert agenda.open_tasks() == [], "nothing is fine-tuned from it"


def test_a_run_whose_checkpoint_cannot_be_read_starts_again(agenda_of):
    (task,) = agenda_of("grr_coca", **ONE_RUN).open_tasks()
    torn = task.folder / "checkpoints" / "step-000000003"
    torn.mkdir(parents=True)
    with warnings_of("grr_coca.study.running.stage") as warned:
        assert run_stage(task, CPU, lambda _: None).steps == 6
    assert "no checkpoint can be read" in warned[0]
    assert not torn.exists()


def test_a_broken_validation_image_is_left_out_after_training_as_during_it(agenda_of, tmp_path):
    (task,) = agenda_of("grr_coca", **ONE_RUN).open_tasks()
    sound = real_pairs(16)
    val = write_shard(tmp_path / "val.tar", [*sound, replace(sound[0], key="broken", image=b"no image")])
    task = replace(task, recipe=replace(task.recipe, data=replace(task.recipe.data, val=str(val))))
    with warnings_of("grr_coca.train.setup"):
        assert run_stage(task, CPU, lambda _: None).metrics["val"]["num_pairs"] == 16


# --- Start: both members of a pair have the same weights, and the same pairs in the same order


@pytest.fixture
def agenda(agenda_of):
    return agenda_of(*ARMS, finetune=["health.yaml"], endpoints=PRETRAINING)


@pytest.fixture
def seen(monkeypatch):
    """The micro-batches of each step that is trained, as the trainer gets them: keys, images and texts."""
    batches: list[tuple] = []
    step = Trainer.step

    def noted(trainer, micro_batches, *rest):
        batches.extend((batch.keys, batch.images.sum().item(), batch.token_ids.tolist()) for batch in micro_batches)
        return step(trainer, micro_batches, *rest)

    monkeypatch.setattr(Trainer, "step", noted)
    return batches


def test_a_pair_begins_alike_and_another_seed_does_not(agenda, seen):
    rows, orders = {}, {}
    for _ in range(2):  # pretraining, and then the fine-tuning that starts from it
        for task in agenda.open_tasks():
            if task.seed == 1 and (task.arm, task.stage) != ("grr_coca", "pictograms"):
                continue  # one run is enough to see that another seed begins otherwise
            seen.clear()
            row = rows[task.arm, task.seed, task.stage] = run_stage(task, CPU, lambda _: None)
            orders[task.arm, task.seed, task.stage] = tuple(seen)
            agenda.add(row)
    for stage in ("pictograms", "health"):
        baseline, grr = ((arm, 0, stage) for arm in ARMS)
        assert orders[baseline] == orders[grr]
        assert rows[baseline].data_order == rows[grr].data_order
    baseline, grr, other_seed = (
        rows[name].initial_weights
        for name in (("baseline_coca", 0, "pictograms"), ("grr_coca", 0, "pictograms"), ("grr_coca", 1, "pictograms"))
    )
    shared = baseline.keys() & grr.keys()
    assert {name: grr[name] for name in shared} == {name: baseline[name] for name in shared}
    assert {name for name in shared if not name.startswith("image_encoder")} == {
        name for name in grr if not name.startswith("image_encoder")
    }, "the models differ in the image encoder alone"
    drawn = [name for name in shared if name.startswith("image_encoder.blocks.0.attn.") and ".weight" in name]
    assert drawn, "attention has the same shapes in both"
    assert all(grr[name] != other_seed[name] for name in drawn)
    assert len({row.data_order for row in rows.values()}) == 3, "an order for each seed and stage"
    assert {row.stage for row in rows.values() if not row.initial_weights} == {"health"}


def test_a_pair_that_does_not_begin_alike_is_named(agenda, tmp_path, monkeypatch):
    (first, second), files = agenda.open_tasks()[:2], RowFolder(tmp_path)
    files.publish(first.name, run_stage(first, CPU, lambda _: None))
    another = lambda recipe, ranks: new_checkpoint(replace(recipe, seed=5), ranks)  # noqa: E731
    monkeypatch.setattr(stage_module, "new_checkpoint", another)
    monkeypatch.setattr(stage_module, "training_visits", lambda recipe, pairs: Shuffle(len(pairs), seed=5))
    files.publish(second.name, run_stage(second, CPU, lambda _: None))
    write_digests(tmp_path, agenda.digests)
    weights, order = read_ledger(tmp_path, read_plan(tmp_path / "study.yaml", Plan)).notes
    assert weights.startswith("grr_coca, seed 0, pictograms: ")
    assert "parameters have other initial values than in baseline_coca" in weights
    assert order == "grr_coca, seed 0, pictograms: was not trained on the same pairs in the same order as baseline_coca"


def test_a_run_that_was_resumed_tells_of_its_first_beginning(agenda, seen, monkeypatch):
    task, step = agenda.open_tasks()[0], Trainer.step

    def stopped(*arguments):
        if len(seen) == 2:
            signal.raise_signal(signal.SIGTERM)  # the run saves after this step
        return step(*arguments)

    with monkeypatch.context() as stopping:
        stopping.setattr(Trainer, "step", stopped)
        with pytest.raises(Interruption):
            run_stage(task, CPU, lambda _: None)
    row = run_stage(task, CPU, lambda _: None)
    assert len(seen) == 6, "it went on with the fourth step"
    assert row.initial_weights == weight_hashes(new_checkpoint(task.recipe, ALONE).model)
    assert row.data_order == order_hash(Shuffle(24, seed=0), 6 * task.recipe.data.batch_size)


def test_the_order_of_another_length_or_seed_has_another_hash():
    hashes = [order_hash(Shuffle(10, seed), length) for seed, length in ((0, 25), (0, 24), (1, 25))]
    assert len(set(hashes)) == 3
    assert order_hash(Shuffle(10, 0), 25) == hashes[0]


def test_of_a_long_run_the_first_visits_and_the_length_are_hashed(monkeypatch):
    monkeypatch.setattr(stage_module, "_MAX_HASHED_VISITS", 5)
    assert order_hash(Shuffle(10, 0), 25) != order_hash(Shuffle(10, 0), 26)
    assert order_hash(Shuffle(10, 0), 25) != order_hash(Shuffle(10, 1), 25)


# --- Cost


def test_a_caption_counts_its_words_and_three_tokens_more(tmp_path):
    pairs = [with_caption(pair, "cat " * count) for pair, count in zip(real_pairs(3), (1, 2, 9), strict=True)]
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", pairs))
    start = new_checkpoint(recipe, ALONE)
    source = open_source(recipe.data.train)
    lengths = [len(start.tokenizer.encode_row(source.caption(i), 1000)) for i in range(3)]
    assert lengths[1] > lengths[0] >= 4
    context = start.config.text_decoder.context_length
    assert caption_lengths(start, source).tolist() == [min(length, context) for length in lengths]


def test_of_a_large_split_some_captions_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(stage_module, "_MAX_CAPTIONS", 3)
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", real_pairs(8)))
    start, source = new_checkpoint(recipe, ALONE), open_source(recipe.data.train)
    context = start.config.text_decoder.context_length
    expected = [len(start.tokenizer.encode_row(source.caption(i), context)) for i in (0, 3, 6)]
    assert caption_lengths(start, source).tolist() == expected


def test_a_run_costs_three_passes_over_each_pair_of_each_step(tmp_path):
    pairs = [with_caption(pair, "cat") for pair in real_pairs(16)]
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", pairs), steps=5)
    recipe = replace(recipe, model=replace(recipe.model, patch_size=4))
    start = new_checkpoint(recipe, ALONE)
    source = open_source(recipe.data.train)
    lengths = caption_lengths(start, source)
    by_hand = 5 * recipe.data.batch_size * 3 * flops_per_pair(start.config, int(lengths[0]))
    assert run_flops(recipe, start, source) == by_hand
    half = replace(recipe, data=replace(recipe.data, patch_dropout=0.5))
    assert step_flops(half, start.config, lengths) < by_hand / 5


def test_captions_of_different_lengths_cost_what_each_of_them_costs(tmp_path):
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", real_pairs(8)))
    config = new_checkpoint(recipe, ALONE).config
    short, long = (step_flops(recipe, config, torch.full((32,), length)) for length in (5, 15))
    both = step_flops(recipe, config, torch.tensor([5, 15] * 16))
    assert both == pytest.approx((short + long) / 2, rel=0.02)


# --- Code


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with one commit and a package folder in it; returns git and the folder."""
    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setattr(stage_module, "_PACKAGE", package)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    stage_module.code_commit.cache_clear()
    (package / "__init__.py").write_text("")

    def git(*arguments):
        command = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    yield git, package
    stage_module.code_commit.cache_clear()


def test_the_commit_is_that_of_the_package_and_a_changed_file_is_marked(repository):
    git, package = repository
    git("add", ".")
    git("commit", "-q", "-m", "a")
    commit = git("rev-parse", "--short=12", "HEAD")
    assert stage_module.code_commit() == commit
    (package / "__init__.py").write_text("changed = True")
    stage_module.code_commit.cache_clear()
    assert stage_module.code_commit() == f"{commit}+"


def test_a_package_that_is_installed_in_a_repository_of_the_users_tells_its_version(repository):
    git, _ = repository
    git("commit", "-q", "--allow-empty", "-m", "the user's own")
    assert stage_module.code_commit().startswith("version ")
