"""`studies/check.py` rejects rows that differ from their plan, contradict another row or change a page."""

import copy
import math
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUDY = "adamw_long/2400_lower_rate"
NEIGHBOURS = [STUDY, "adamw_long/2400_rates"]
"""The study that is changed, and one with the same seeds."""


@pytest.fixture(scope="module")
def ledgers():
    """The module that reads and checks ledgers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "studies")
        import ledgers

        yield ledgers


@pytest.fixture
def errors_of(ledgers, monkeypatch):
    """Returns the errors that rows in place of those of `STUDY` give."""
    originals = {study: ledgers.all_rows(study) for study in NEIGHBOURS}

    def errors_of(rows):
        monkeypatch.setattr(ledgers, "studies", lambda: NEIGHBOURS)
        monkeypatch.setattr(ledgers, "all_rows", lambda study: rows if study == STUDY else originals[study])
        ledgers.rows_of.cache_clear()
        return [*ledgers.errors_of_ledger(STUDY)] or [*ledgers.errors_between_rows()]

    yield errors_of
    monkeypatch.undo()
    ledgers.rows_of.cache_clear()


def losses_of(row, split, factor):
    """Multiplies the losses of a split by a factor, consistently."""
    metrics = row["metrics"][split]
    for name in ("contrastive_loss", "captioning_loss", "coca_loss"):
        metrics[name] *= factor
    metrics["perplexity"] = math.exp(metrics["captioning_loss"])


def other_digest(row):
    name = next(iter(row["initial_weights"]))
    row["initial_weights"][name] = "0" * 12


def other_seconds(row):
    row = copy.deepcopy(row)
    row["seconds"] = 1.0
    return row


CHANGES = {
    "steps": lambda rows: rows[0].update(steps=600),
    "seed": lambda rows: rows[0].update(seed=7),
    "arm": lambda rows: rows[0].update(arm="grr_coca_0.0015"),
    "kind": lambda rows: rows[0].update(kind="note"),
    "precision": lambda rows: rows[0].update(precision="bf16"),
    "settings": lambda rows: rows[0].update(settings={"optimizer.lr": 0.1}),
    "size": lambda rows: rows[0].update(parameters=27_476_490),
    "recipe": lambda rows: rows[0].update(recipe_digest="0" * 16),
    "data": lambda rows: rows[0].update(data_digest="0" * 16),
    "order": lambda rows: rows[0].update(data_order="0" * 12),
    "weights": lambda rows: other_digest(rows[0]),
    "field": lambda rows: rows[0].pop("initial_weights"),
    "coca": lambda rows: rows[0]["metrics"]["test"].update(coca_loss=1.0),
    "val": lambda rows: losses_of(rows[0], "val", 0.9),
    "test": lambda rows: losses_of(rows[0], "test", 0.9),
    "rank": lambda rows: rows[0]["values"]["test"]["rank"].__setitem__(0, 400),
    "nats": lambda rows: rows[0]["values"]["test"]["nll"].__setitem__(0, 99.0),
    "hits": lambda rows: rows[0]["metrics"]["test"].update({"image_to_text/R@1": 0.3}),
    "curve": lambda rows: rows[0]["curve"][1]["val"].update(coca_loss=1.0),
    "missing": lambda rows: rows.pop(),
    "no metrics": lambda rows: rows[0].pop("metrics"),
    "text": lambda rows: rows[0].update(steps="600"),
    "no split": lambda rows: rows[0]["metrics"].update(test=None),
    "not finite": lambda rows: rows[0]["metrics"]["test"].update(coca_loss=math.nan),
    "no values": lambda rows: rows[0]["values"]["test"].pop("rank"),
    "no step": lambda rows: rows[0]["curve"][0].pop("step"),
    "copy": lambda rows: rows.append(copy.deepcopy(rows[0])),
    "contradiction": lambda rows: rows.append(other_seconds(rows[0])),
    "other seed": lambda rows: rows[0].update({key: rows[1][key] for key in ("metrics", "values", "curve")}),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_row_fails(ledgers, errors_of, kind):
    rows = copy.deepcopy([*ledgers.all_rows(STUDY)])
    assert errors_of(rows) == []
    CHANGES[kind](rows)
    errors = errors_of(rows)
    assert errors
    assert all(re.match(r"studies/adamw_long/2400_\w+(/runs\.jsonl:\d+: |: lacks the row of run )", e) for e in errors)


def test_line_that_is_not_a_row_is_named(ledgers, monkeypatch, tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"kind": "run"}\n[1]\n', encoding="utf-8")
    monkeypatch.setattr(ledgers, "ROOT", tmp_path)
    monkeypatch.setattr(ledgers, "ledger_of", lambda study: [path])
    ledgers.all_rows.cache_clear()
    (error,) = ledgers.errors_of_ledger(STUDY)
    ledgers.all_rows.cache_clear()
    assert error.startswith("runs.jsonl:2: not a row")


def test_val_that_moves_the_best_rate_changes_pages(ledgers, monkeypatch):
    """The losses at the lowest rate are consistent, but so low that it becomes the best one."""
    monkeypatch.syspath_prepend(ROOT / "studies")
    import check

    page, lowest = ROOT / "studies/adamw_long/2400_lower_rate/README.md", copy.deepcopy(ledgers.rows_of(STUDY))
    for row in lowest.values():
        losses_of(row, "val", 0.5)
    known, original = check.read_settings(), ledgers.rows_of
    for module in ("changes", "tables"):
        monkeypatch.setattr(f"{module}.rows_of", lambda study: lowest if study == STUDY else original(study))
    assert f"{known['long_rates']:rates}" == "0.000375 for both"
    assert check.filled(check.texts()[page], known) != page.read_text(encoding="utf-8")


@pytest.mark.ci
def test_all_ledgers_are_consistent(ledgers):
    errors = [error for study in ledgers.studies() for error in ledgers.errors_of_ledger(study)]
    assert [*errors, *ledgers.errors_between_rows()] == []


def test_filled_positions_are_one_table_at_all_seeds(ledgers, monkeypatch):
    study = "positions_under_muon/best"
    rows = copy.deepcopy([*ledgers.all_rows(study)])
    monkeypatch.setattr(ledgers, "studies", lambda: [study])
    monkeypatch.setattr(ledgers, "all_rows", lambda _: rows)
    assert [*ledgers.errors_between_rows()] == []
    row = next(row for row in rows if row["arm"] == "baseline_fixed_positions")
    row["initial_weights"]["image_encoder.position.embedding [16, 128]"] = "0" * 12
    assert any("image_encoder.position" in error for error in ledgers.errors_between_rows())
