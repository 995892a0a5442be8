"""How many seeds a study needs at least. Reading this needs no scipy, which reports of single seeds do without."""

LEVEL_OF_TESTS = 0.05
"""Chance of any false finding among the primary endpoints of a study."""


def fewest_seeds(num_endpoints: int) -> int:
    """Seeds with which the exact test can pass Holm's correction at all: its smallest p is 2 / 2^seeds."""
    seeds = 2
    while num_endpoints * 2.0 ** (1 - seeds) > LEVEL_OF_TESTS:
        seeds += 1
    return seeds
