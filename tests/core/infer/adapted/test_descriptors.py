"""Descriptors of pictures."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from grr_coca.infer.adapted.descriptors import NUM_DESCRIPTORS, descriptors


def drawing(size, box, colour="black"):
    image = Image.new("RGB", (size, size), "white")
    ImageDraw.Draw(image).rectangle([side * size // 64 for side in box], fill=colour)
    return np.asarray(image)


def cosine(first, second):
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def test_parts_have_fixed_lengths():
    found = descriptors(np.stack([drawing(64, (8, 8, 40, 30)), drawing(64, (20, 4, 30, 60))]))
    assert found.shape == (2, NUM_DESCRIPTORS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.square(found).sum(axis=1), 2.25, rtol=1e-4)


def test_blank_image_has_finite_numbers():
    assert np.isfinite(descriptors(np.full((1, 64, 64, 3), 255, np.uint8))).all()


@pytest.mark.parametrize("size", [32, 96, 224])
def test_size_of_pixels_changes_little(size):
    (small,) = descriptors(drawing(64, (8, 8, 40, 30))[None])
    (other,) = descriptors(drawing(size, (8, 8, 40, 30))[None])
    assert cosine(small, other) > 0.97


def test_same_shape_is_nearer_than_another_shape():
    across, same, down = descriptors(
        np.stack([drawing(64, (8, 28, 56, 36)), drawing(64, (9, 29, 57, 37)), drawing(64, (28, 8, 36, 56))])
    )
    assert cosine(across, same) > cosine(across, down) + 0.1


def test_batch_does_not_change_descriptors():
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    np.testing.assert_allclose(descriptors(images)[1], descriptors(images[1:2])[0], atol=1e-6)
