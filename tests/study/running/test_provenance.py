"""A row says what its run started from and which code ran: both members of a pair begin alike."""

import signal
import subprocess
from dataclasses import replace

import pytest
from support import ALONE, CPU, real_pairs, tiny_recipe, write_shard
from synthetic_study import PRETRAINING

from grr_coca.common.errors import DiskError, Interruption
from grr_coca.data.order import Shuffle
from grr_coca.train.setup import new_checkpoint
from grr_coca.train.step import Trainer
from grr_coca_study.running import provenance
from grr_coca_study.running.provenance import order_hash, weight_hashes, write_start_hashes
from grr_coca_study.running.stage import run_stage

ARMS = ("baseline_coca", "grr_coca")


@pytest.fixture
def agenda(agenda_of):
    return agenda_of(*ARMS, finetune=["health.yaml"], endpoints=PRETRAINING)


@pytest.fixture
def trained_batches(monkeypatch):
    """The micro-batches of each step that is trained, as the trainer gets them: keys, images and texts."""
    batches: list[tuple] = []
    step = Trainer.step

    def record_batches(trainer, micro_batches, *rest):
        batches.extend((batch.keys, batch.images.sum().item(), batch.token_ids.tolist()) for batch in micro_batches)
        return step(trainer, micro_batches, *rest)

    monkeypatch.setattr(Trainer, "step", record_batches)
    return batches


@pytest.mark.ci
def test_pair_shares_its_start_and_another_seed_does_not(agenda, trained_batches):
    rows, orders = {}, {}
    for _ in range(2):  # pretraining, and then the fine-tuning that starts from it
        for task in agenda.open_tasks():
            if task.seed == 1 and (task.arm, task.stage) != ("grr_coca", "pictograms"):
                continue  # one run is enough to see that another seed begins otherwise
            trained_batches.clear()
            row = rows[task.arm, task.seed, task.stage] = run_stage(task, CPU, lambda _: None)
            orders[task.arm, task.seed, task.stage] = tuple(trained_batches)
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


@pytest.mark.ci
def test_resumed_run_records_its_first_start(agenda, trained_batches, monkeypatch):
    task, step = agenda.open_tasks()[0], Trainer.step

    def stopped(*arguments):
        if len(trained_batches) == 2:
            signal.raise_signal(signal.SIGTERM)  # the run saves after this step
        return step(*arguments)

    with monkeypatch.context() as stopping:
        stopping.setattr(Trainer, "step", stopped)
        with pytest.raises(Interruption):
            run_stage(task, CPU, lambda _: None)
    row = run_stage(task, CPU, lambda _: None)
    assert len(trained_batches) == 6, "it went on with the fourth step"
    assert row.initial_weights == weight_hashes(new_checkpoint(task.recipe, ALONE).model)
    assert row.data_order == order_hash(Shuffle(24, seed=0), 6 * task.recipe.data.batch_size)


def test_order_of_another_length_or_seed_has_another_hash(monkeypatch):
    """Of a long run, the first visits and the length are hashed."""
    for num_hashed in (1_000_000, 5):
        monkeypatch.setattr(provenance, "_MAX_HASHED_VISITS", num_hashed)
        hashes = [order_hash(Shuffle(10, seed), length) for seed, length in ((0, 25), (0, 24), (1, 25))]
        assert len(set(hashes)) == 3
        assert order_hash(Shuffle(10, 0), 25) == hashes[0]


def test_unwritable_run_folder_raises(tmp_path):
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", real_pairs(24)))
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"file/run: the run folder cannot be written to \(Not a directory\)"):
        write_start_hashes(recipe, new_checkpoint(recipe, ALONE), tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("name", "muon", "precision"),
    [("muon", "fp32", "fp32"), ("muon", "bf16", "fp32, Muon in bf16"), ("adamw", "bf16", "fp32")],
)
def test_other_muon_precision_is_recorded(name, muon, precision):
    recipe = tiny_recipe("pairs.tar", precision="fp32")
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, name=name, muon_precision=muon))
    assert provenance._precision_name(recipe) == precision


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with one commit and the folder of the packages in it; returns git and the folder."""
    source = tmp_path / "src"
    (source / "grr_coca").mkdir(parents=True)
    monkeypatch.setattr(provenance, "_SOURCE", source)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    provenance.code_commit.cache_clear()
    (source / "grr_coca" / "__init__.py").write_text("")

    def git(*arguments):
        command = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    yield git, source
    provenance.code_commit.cache_clear()


def test_commit_is_the_packages_and_marks_changes(repository):
    git, source = repository
    git("add", ".")
    git("commit", "-q", "-m", "a")
    commit = git("rev-parse", "--short=12", "HEAD")
    assert provenance.code_commit() == commit
    (source / "another.py").write_text("changed = True")
    provenance.code_commit.cache_clear()
    assert provenance.code_commit() == f"{commit}+"


def test_installed_package_reports_its_version(repository):
    git, _ = repository
    git("commit", "-q", "--allow-empty", "-m", "the user's own")
    assert provenance.code_commit().startswith("version ")
