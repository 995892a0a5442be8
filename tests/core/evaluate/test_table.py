"""The table's arithmetic, worked out by hand."""

import pytest

from grr_coca.evaluate.split import Evaluation
from grr_coca.evaluate.table import Row, average_row, format_table, row, row_metrics


def metrics(contrastive: float, perplexity: float, coca: float, recall: float = 0.5) -> dict[str, float]:
    return {"contrastive_loss": contrastive, "perplexity": perplexity, "coca_loss": coca, "R@1": recall, "chance": 0.01}


FIRST = Row("a/test", metrics(1.5, 3.0, 6.0, 0.4), metrics(2.0, 4.0, 8.0, 0.2))
SECOND = Row("b/test", metrics(0.5, 6.0, 9.0, 0.6), metrics(2.0, 6.0, 10.0, 0.4))


def test_change_is_a_share_of_the_baseline():
    changes = [FIRST.change(loss) for loss in ("contrastive_loss", "perplexity", "coca_loss")]
    assert changes == pytest.approx([-0.25, -0.25, -0.25])
    assert SECOND.change("perplexity") == 0.0
    assert Row("worse", metrics(3, 1, 1), metrics(2, 1, 1)).change("contrastive_loss") == pytest.approx(0.5)


def test_change_from_a_baseline_of_0_is_undefined():
    line = format_table([Row("one image", metrics(0, 3, 6), metrics(0, 4, 8))], ("mine", "theirs")).splitlines()[-1]
    assert line.replace("│", " ").split()[2:5] == ["0.000", "0.000", "–"]
    assert line.count("-25.00%") == 2


def test_average_is_the_mean_of_each_metric_over_rows():
    average = average_row("average", [FIRST, SECOND])
    assert average.model == pytest.approx(metrics(1.0, 4.5, 7.5, 0.5))
    assert average.baseline == pytest.approx(metrics(2.0, 5.0, 9.0, 0.3))


def test_row_takes_text_to_image_recall_and_its_chance():
    def evaluation(scale: float) -> Evaluation:
        return Evaluation(
            num_pairs=20,
            contrastive_batch_size=8,
            contrastive_loss=1.0 * scale,
            captioning_loss=2.0,
            perplexity=3.0 * scale,
            coca_loss=4.0 * scale,
            text_to_image={"R@1": 0.1 * scale, "R@5": 0.9, "R@10": 0.9},
            image_to_text={"R@1": 0.8, "R@5": 0.9, "R@10": 0.9},
            chance={"R@1": 0.05, "R@5": 0.2, "R@10": 0.5},
            median_rank={},
        )

    made = row("test", row_metrics(evaluation(1.0)), row_metrics(evaluation(2.0)))
    assert made.model == pytest.approx(metrics(1.0, 3.0, 4.0, 0.1) | {"chance": 0.05})
    assert made.baseline == pytest.approx(metrics(2.0, 6.0, 8.0, 0.2) | {"chance": 0.05})


def test_table_has_aligned_columns():
    lines = format_table([FIRST, SECOND], ("grr_coca", "baseline_coca")).splitlines()
    assert len({len(line) for line in lines}) == 1
    (line,) = (line for line in lines if line.startswith("a/test"))
    losses = ["1.500", "2.000", "-25.00%", "3.000", "4.000", "-25.00%", "6.000", "8.000", "-25.00%"]
    assert line.replace("│", " ").split() == ["a/test", *losses, "40.0%", "20.0%", "1.00%"]
    assert "contrastive" in lines[0]
    assert any("grr" in head and "baseline" in head for head in lines[:2])
