"""Progress in lines of plain text, where standard error is not a terminal."""

import pytest

from grr_coca.cli.progress import bars


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def lines(capsys) -> list[str]:
    return [line.rstrip() for line in capsys.readouterr().err.splitlines()]


def test_no_time_is_forecast_from_the_first_report(clock, capsys):
    with bars({"train": 100}) as shown:
        clock[0] += 40  # the first steps compile the model
        shown.update("train", 4, "")
        assert lines(capsys) == ["train: 4%"]
        clock[0] += 20
        shown.update("train", 14, "")
        assert lines(capsys) == ["train: 14%, about 3 min left"]


def test_durations_below_90_seconds_are_in_seconds(clock, capsys):
    with bars({"train": 100}) as shown:
        shown.update("train", 0, "")
        clock[0] += 20
        shown.update("train", 20, "loss 1.5")
    assert lines(capsys) == ["train: 20%, about 80 s left  loss 1.5"]
