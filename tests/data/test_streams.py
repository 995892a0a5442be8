"""The numbers of the streams are part of what a seed means, and no two draws of a sample share one."""

import numpy as np

from grr_coca.data.augment import MAX_REPLACEMENTS, Stream, sample_rng
from grr_coca.data.order import SampleRef


def test_a_draw_is_what_its_seed_always_gave():
    ref, numbers = SampleRef(epoch=2, sample=7), {"CAPTION": 101, "PATCHES": 1000, "MIX": 1001, "STAND_IN": 1}
    assert {stream.name: stream.value for stream in Stream} == numbers
    assert sample_rng(3, ref).random() == np.random.default_rng((3, 2, 7)).random()
    for stream, number in zip(Stream, sorted(numbers.values()), strict=True):
        assert sample_rng(3, ref, stream).random() == np.random.default_rng((3, 2, 7, number)).random()


def test_no_two_draws_of_a_sample_have_the_same_numbers():
    attempts = [Stream.STAND_IN + attempt for attempt in range(MAX_REPLACEMENTS)]
    streams = [None, *attempts, Stream.CAPTION, Stream.PATCHES, Stream.MIX]
    assert len({sample_rng(0, SampleRef(0, 0), stream).random() for stream in streams}) == len(streams)
