"""Stored features of an adapted model."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from grr_coca.common.errors import UserError
from grr_coca.infer.adapted.adaptation import FEATURES, read_features

FEATURES_OF_IMAGES = np.ones((2, 3), np.float16)
DIGESTS = np.arange(64, dtype=np.uint8).reshape(2, 32)


def test_read_features_maps_digests_to_features(tmp_path):
    save_file({"features": FEATURES_OF_IMAGES, "digests": DIGESTS}, tmp_path / FEATURES)
    assert {digest: row.tolist() for digest, row in read_features(tmp_path).items()} == {
        bytes(digest): [1, 1, 1] for digest in DIGESTS
    }


@pytest.mark.parametrize("arrays", [{"features": FEATURES_OF_IMAGES}, {"digests": DIGESTS}, {"x": DIGESTS}])
def test_read_features_of_incomplete_file_raises(tmp_path, arrays):
    save_file(arrays, tmp_path / FEATURES)
    with pytest.raises(UserError, match="digests and features do not match"):
        read_features(tmp_path)


def test_read_features_of_other_number_of_digests_raises(tmp_path):
    save_file({"features": FEATURES_OF_IMAGES, "digests": DIGESTS[:1]}, tmp_path / FEATURES)
    with pytest.raises(UserError, match="digests and features do not match"):
        read_features(tmp_path)
