"""`grr-coca track`: send the log of a run to Weights & Biases or MLflow."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from grr_coca.cli.flags import Flag
from grr_coca.common.errors import UserError, count_of


def run(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    to: Literal["wandb", "mlflow"],
    project: str = "grr-coca",
    follow: Flag = False,
) -> None:
    """Send the log of a run to Weights & Biases or MLflow. Lines are sent only once.

    Set the address and credentials in the environment variables of the service, such as WANDB_API_KEY,
    WANDB_MODE=offline and MLFLOW_TRACKING_URI.

    Args:
        folder: run folder.
        to: the service.
        project: project of Weights & Biases, or experiment of MLflow.
        follow: continue until the run ends or you press Ctrl-C.
    """
    if not (folder / "metrics.jsonl").is_file():
        raise UserError(f"{folder}: not a run folder (it has no metrics.jsonl); pass the folder of a run")
    from grr_coca.train.trackers import send_log  # lazy import: the recipe imports PyTorch

    number = send_log(folder, to, project, follow=follow)
    print(f"sent {count_of(number, 'line')} of the log to {to}")
