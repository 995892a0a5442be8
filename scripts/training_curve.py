"""Draw the validation curve of a training log: R@1 and perplexity by step.

python scripts/training_curve.py LOG.jsonl OUT.svg
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from grr_coca.cli import exit_code


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="`metrics.jsonl` of a run, or its validation lines")
    parser.add_argument("out", type=Path, help="the picture")
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.log.read_text(encoding="utf-8").splitlines()]
    validations = [line for line in lines if line["split"] == "val"]
    plt.rcParams["svg.hashsalt"] = "training_curve"  # the same bytes each time
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
    titles = {
        "text_to_image/R@1": "R@1, text to image",
        "contrastive_loss": "contrastive loss",
        "perplexity": "perplexity",
    }
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        axis.plot([line["step"] / 1000 for line in validations], [line[name] for line in validations], marker=".")
        axis.set(title=title, xlabel="thousand steps", ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(options.out, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(exit_code(main))
