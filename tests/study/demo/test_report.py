"""The plots of a demo, read back as SVG text."""

from grr_coca.study.demo.report import learning_curves


def test_a_line_of_the_log_without_losses_is_left_out():
    """All steps that it is the mean of were skipped."""
    train = [{"step": 10, "skipped": 10.0}, {"step": 20, "contrastive": 2.0, "captioning": 3.0, "skipped": 10.0}]
    val = [{"step": 20, "contrastive_loss": 2.0, "captioning_loss": 3.0}]
    plot = learning_curves(("a", "b"), (train, train), (val, val))
    assert plot == learning_curves(("a", "b"), (train[1:], train[1:]), (val, val))
