"""Both members of a pair begin with the same weights, and see the same pairs in the same order."""

import signal
from dataclasses import replace

import pytest

from grr_coca.data.order import Shuffle
from grr_coca.errors import Stopped
from grr_coca.study.ledger import LedgerWriter, read_ledger, write_digests
from grr_coca.study.plan import Plan, read_plan
from grr_coca.study.running import stage as beginning
from grr_coca.study.running.agenda import Agenda, StudyPart
from grr_coca.study.running.stage import order_hash, run_stage, weight_hashes
from grr_coca.train.setup import new_checkpoint
from grr_coca.train.step import Trainer
from support import ALONE, CPU

ARMS = ("baseline_coca", "grr_coca")


@pytest.fixture
def agenda(write_study, tmp_path):
    endpoints = {"primary": ["pretraining/coca_loss"]}
    plan = read_plan(write_study(finetune=["health.yaml"], endpoints=endpoints), Plan)
    return Agenda(plan, StudyPart(ARMS), lambda *names: tmp_path.joinpath("runs", *map(str, names)), ())


@pytest.fixture
def seen(monkeypatch):
    """Keys of the pairs of each step that is trained, as the trainer gets them."""
    keys: list[tuple[str, ...]] = []
    step = Trainer.step

    def noted(trainer, micro_batches, *rest):
        keys.extend(batch.keys for batch in micro_batches)
        return step(trainer, micro_batches, *rest)

    monkeypatch.setattr(Trainer, "step", noted)
    return keys


def test_a_pair_begins_alike_and_another_seed_does_not(agenda, seen):
    rows, orders = {}, {}
    for _ in range(2):  # pretraining, and then the fine-tuning that starts from it
        for task in agenda.open_tasks():
            if task.seed == 1 and (task.arm, task.stage) != ("grr_coca", "pictograms"):
                continue
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


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("weights", "parameters have other initial values than in baseline_coca"),
        ("order", "the same pairs in the same order"),
    ],
)
def test_a_pair_that_does_not_begin_alike_is_named(agenda, tmp_path, monkeypatch, broken, said):
    with LedgerWriter(tmp_path / "runs.jsonl") as ledger:
        for task in agenda.open_tasks()[:2]:
            if task.arm == "grr_coca" and broken == "weights":
                another = lambda recipe, ranks: new_checkpoint(replace(recipe, seed=5), ranks)  # noqa: E731
                monkeypatch.setattr("grr_coca.study.running.stage.new_checkpoint", another)
            if task.arm == "grr_coca" and broken == "order":
                monkeypatch.setattr(beginning, "training_visits", lambda recipe, pairs: Shuffle(len(pairs), seed=5))
            ledger.append(run_stage(task, CPU, lambda _: None))
    write_digests(tmp_path, agenda.digests)
    (note,) = read_ledger(tmp_path).notes
    assert note.startswith("grr_coca, seed 0, pictograms: ")
    assert said in note


def test_a_run_that_was_resumed_tells_of_its_first_beginning(agenda, seen, monkeypatch):
    task, step = agenda.open_tasks()[0], Trainer.step

    def stopped(*arguments):
        if len(seen) == 2:
            signal.raise_signal(signal.SIGTERM)  # the run saves after this step
        return step(*arguments)

    with monkeypatch.context() as stopping:
        stopping.setattr(Trainer, "step", stopped)
        with pytest.raises(Stopped):
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
    monkeypatch.setattr(beginning, "_MAX_HASHED_VISITS", 5)
    assert order_hash(Shuffle(10, 0), 25) != order_hash(Shuffle(10, 0), 26)
    assert order_hash(Shuffle(10, 0), 25) != order_hash(Shuffle(10, 1), 25)
