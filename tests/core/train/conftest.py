"""What several files of tests of training share."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist


@pytest.fixture
def one_process() -> Iterator[None]:
    """torch.distributed with this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="session")
def averaged_run(tmp_path_factory):
    """A run of two steps with a checkpoint after each, of all the files that there can be; left as it is."""
    from support import finished_run

    from grr_coca.train.recipe import CheckpointRecipe

    checkpoints = CheckpointRecipe(interval=1)
    return finished_run(tmp_path_factory.mktemp("averaged"), steps=2, num_pairs=16, ema=0.9, checkpoints=checkpoints)
