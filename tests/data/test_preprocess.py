"""From an image to the tensor that the model sees."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as torchvision
from PIL import Image
from torchvision.transforms import InterpolationMode

from grr_coca.data.augment import change_images, mix_images
from grr_coca.data.augmentation import LUMA, Augmentation, Change
from grr_coca.data.dataset import PairDataset
from grr_coca.data.images import decode_image
from grr_coca.data.order import SampleRef
from grr_coca.data.preprocess import Preprocess, to_bytes, to_pixels
from grr_coca.data.tokenizer import train_bpe
from grr_coca.errors import UserError
from support import PairsInMemory, real_pairs

STRONG = Augmentation(scale=(0.8, 1.2), shift=0.1, rotate=15, jitter=0.3, grey=0.2)


@pytest.fixture(scope="module")
def image():
    return decode_image(real_pairs(1)[0].image, "pictogram")


@pytest.fixture
def look():
    """What a visit of a sample looks like."""
    pairs = real_pairs(4)
    tokenizer = train_bpe([pair.caption for pair in pairs], 300)

    def make(seed: int, epoch: int, sample: int, augmentation: Augmentation = STRONG) -> torch.Tensor:
        dataset = PairDataset(PairsInMemory(pairs), tokenizer, Preprocess(32), 24, augmentation=augmentation, seed=seed)
        return dataset[SampleRef(epoch, sample)].image

    return make


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (100, 37), (37, 100), (1, 10_000), (10_000, 1), (3, 2)])
def test_every_size_becomes_a_square_between_minus_one_and_one(size):
    pixels = Preprocess(32)(Image.effect_noise(size, 90).convert("RGB"))
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    assert -1 <= pixels.min() <= pixels.max() <= 1


def test_white_is_one_and_black_is_minus_one():
    image = Image.new("RGB", (8, 8), "white")
    image.paste((0, 0, 0), (0, 0, 8, 4))
    pixels = Preprocess(8)(image)
    assert pixels[:, :4].eq(-1).all()
    assert pixels[:, 4:].eq(1).all()


def test_channels_are_red_green_blue_with_their_own_mean_and_deviation():
    preprocess = Preprocess(4, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    pixels = preprocess(Image.new("RGB", (4, 4), (255, 0, 255)))
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([1.0, -1.0, 0.5]))


def test_an_image_of_the_right_size_keeps_every_pixel(image):
    restored = (Preprocess(64)(image) * 0.5 + 0.5) * 255
    np.testing.assert_array_equal(restored.round().byte().permute(1, 2, 0), np.asarray(image))


def test_the_centre_is_kept():
    image = Image.new("RGB", (300, 100), "white")
    image.paste((255, 0, 0), (100, 0, 200, 100))
    assert Preprocess(16).square(image).getcolors() == [(256, (255, 0, 0))]


@pytest.mark.parametrize("size", [(64, 64), (101, 64), (64, 101), (103, 64), (37, 300), (2000, 1501), (5, 3)])
@pytest.mark.parametrize("image_size", [16, 64])
def test_the_square_is_torchvisions_bit_by_bit(size, image_size):
    image = Image.merge("RGB", [Image.effect_noise(size, spread) for spread in (60, 90, 120)])
    expected = image
    if size != (image_size, image_size):
        expected = torchvision.center_crop(image, [min(size)])
        expected = torchvision.resize(expected, [image_size] * 2, InterpolationMode.BICUBIC, antialias=True)
    assert Preprocess(image_size).square(image).tobytes() == expected.tobytes()


def test_equal_images_give_equal_tensors(image):
    assert torch.equal(Preprocess(32)(image), Preprocess(32)(image.copy()))


# --- Augmentation


def augmented(augmentation: Augmentation, image: Image.Image, seed: int) -> torch.Tensor:
    """Pixel values 0 … 1 of an image after one random change."""
    return change_images(to_bytes(image)[None], [augmentation.draw(np.random.default_rng(seed))])[0]


def test_the_default_augmentation_changes_nothing(image):
    for seed in range(10):
        assert torch.equal(augmented(Augmentation(), image, seed), to_pixels(image))


def test_the_look_of_a_sample_is_a_function_of_seed_epoch_and_sample(look):
    assert torch.equal(look(3, 5, 1), look(3, 5, 1))
    others = [look(4, 5, 1), look(3, 6, 1), look(3, 5, 2)]
    assert not any(torch.equal(look(3, 5, 1), other) for other in others)


def test_another_seed_draws_another_change_of_the_same_image(look):
    looks = [look(seed, 0, 0) for seed in range(5)]
    assert len({tuple(pixels.flatten().tolist()) for pixels in looks}) == 5


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(scale=(0.5, 0.5)),
        Augmentation(crop=1.0),
        Augmentation(shift=0.5),
        Augmentation(rotate=45),
        Augmentation(jitter=0.5),
        Augmentation(grey=1.0),
        Augmentation(recolour=1.0),
        Augmentation(tint=1.0),
        Augmentation(coarse=1.0),
    ],
    ids=["scale", "crop", "shift", "rotate", "jitter", "grey", "recolour", "tint", "coarse"],
)
def test_every_setting_has_an_effect(image, augmentation):
    assert not torch.equal(augmented(augmentation, image, 1), to_pixels(image))


def test_so_many_images_are_cropped_and_all_others_scaled():
    augmentation = Augmentation(scale=(0.9, 1.0), crop=0.25)
    scales = np.array([1 / augmentation.draw(np.random.default_rng(seed)).inverse[0, 0] for seed in range(400)])
    assert 0.18 < np.mean(scales > 1.05) < 0.32
    assert scales[scales > 1.05].min() > 1.099
    assert 1.4 < scales.max() < 1.501
    assert scales.min() < 0.92


# --- Drawings on any ground


@pytest.fixture
def drawing():
    """A black square on white."""
    image = Image.new("RGB", (64, 64), "white")
    image.paste("black", (16, 16, 48, 48))
    return image


def ink_and_ground(pixels) -> tuple[torch.Tensor, torch.Tensor]:
    return pixels[:, 32, 32], pixels[:, 2, 2]


def test_a_recoloured_drawing_has_two_colours_light_on_dark_as_often_as_dark_on_light(drawing):
    luma = torch.tensor(LUMA)
    lighter = []
    for seed in range(60):
        pixels = augmented(Augmentation(recolour=1.0), drawing, seed)
        ink, ground = ink_and_ground(pixels)
        assert len(torch.unique((pixels * 255).round().flatten(1), dim=1).T) == 2
        assert abs((ink - ground) @ luma) > 0.34
        lighter.append(bool((ink - ground) @ luma > 0))
    assert 15 < sum(lighter) < 45


def test_a_tinted_drawing_keeps_its_black_and_has_a_light_coloured_ground(drawing):
    for seed in range(20):
        ink, ground = ink_and_ground(augmented(Augmentation(tint=1.0), drawing, seed))
        assert ink.max() < 1e-6
        assert 0.59 < ground.min() <= ground.max() <= 1


def test_the_margin_of_a_recoloured_drawing_is_of_its_ground(drawing):
    pixels = augmented(Augmentation(recolour=1.0, scale=(0.5, 0.5)), drawing, 3)
    assert torch.allclose(pixels[:, 0, 0], pixels[:, 20, 20])


def test_a_coarse_drawing_is_as_large_and_less_sharp(drawing):
    pixels = augmented(Augmentation(coarse=1.0), drawing, 2)
    assert pixels.shape == (3, 64, 64)
    assert ((pixels > 0.1) & (pixels < 0.9)).any()
    assert pixels[:, 32, 32].max() < 0.01
    assert pixels[:, 2, 2].min() > 0.99


def test_new_changes_leave_the_draws_of_older_ones_as_they_were():
    plain, more = Augmentation(scale=(0.8, 1.2), jitter=0.3), Augmentation(scale=(0.8, 1.2), jitter=0.3, coarse=1.0)
    for seed in range(5):
        first, second = (augmentation.draw(np.random.default_rng(seed)) for augmentation in (plain, more))
        assert np.array_equal(first.inverse, second.inverse)
        assert np.array_equal(first.colour, second.colour)


# --- Mixing images of equal captions


@pytest.fixture
def black_and_white():
    return torch.zeros(3, 8, 8, dtype=torch.uint8), torch.full((3, 8, 8), 255, dtype=torch.uint8)


def mixtures(augmentation: Augmentation, images) -> list[np.ndarray]:
    return [mix_images(augmentation, *images, np.random.default_rng(seed)).numpy() for seed in range(50)]


def test_a_blend_is_even_and_keeps_at_least_half_of_the_image(black_and_white):
    mixed = mixtures(Augmentation(blend=1.0), black_and_white)
    assert all(pixels.min() == pixels.max() <= 128 for pixels in mixed)
    assert len({int(pixels.max()) for pixels in mixed}) > 20


def test_a_swap_takes_whole_cells_of_the_other_image(black_and_white):
    mixed = mixtures(Augmentation(swap=1.0), black_and_white)
    for pixels in mixed:
        assert set(np.unique(pixels)) <= {0, 255}
        np.testing.assert_array_equal(pixels, pixels[:, ::2, ::2].repeat(2, 1).repeat(2, 2))
    assert 0.4 < np.mean([pixels.mean() / 255 for pixels in mixed]) < 0.6


def test_the_shares_of_mixtures_are_as_asked_for(black_and_white):
    augmentation = Augmentation(blend=0.3, swap=0.3)
    rng = np.random.default_rng(0)
    unmixed = [mix_images(augmentation, *black_and_white, rng).max() == 0 for _ in range(500)]
    assert 0.33 < np.mean(unmixed) < 0.47


def test_uncovered_corners_are_white(image):
    black = Image.new("RGB", image.size, "black")
    shrunk = augmented(Augmentation(scale=(0.5, 0.5)), black, 0)
    assert all(shrunk[:, y, x].eq(1).all() for x in (0, 63) for y in (0, 63))
    assert shrunk[:, 32, 32].eq(0).all()


def test_a_grey_image_stays_rgb(image):
    grey = augmented(Augmentation(grey=1.0), image, 0)
    red, green, blue = grey
    torch.testing.assert_close(red, green)
    torch.testing.assert_close(red, blue)
    torch.testing.assert_close(red, torch.einsum("chw,c->hw", to_pixels(image), torch.tensor(LUMA)))


def test_augmented_values_stay_between_minus_one_and_one(look):
    pixels = torch.stack([look(seed, 0, seed % 4) for seed in range(20)])
    assert -1 <= pixels.min() <= pixels.max() <= 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scale", (0.0, 1.0)),
        ("scale", (1.2, 0.8)),
        ("scale", (-1.0, 1.0)),
        ("shift", -0.1),
        ("rotate", -5.0),
        ("jitter", 1.5),
        ("jitter", -0.1),
        ("grey", 1.1),
        ("grey", -0.1),
        ("blend", -0.1),
        ("swap", 1.1),
    ],
)
def test_a_range_that_makes_no_sense_is_an_error_that_names_the_key(key, value):
    with pytest.raises(UserError, match=key):
        Augmentation(**{key: value})


@pytest.mark.parametrize("size", [4, 7, 64])
def test_a_change_takes_its_pixels_from_where_pytorchs_affine_grid_says(size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, size, size), generator=generator, dtype=torch.uint8)
    inverse = torch.eye(2, 3) + 0.3 * torch.randn(3, 2, 3, generator=generator)
    colour, offset = np.eye(3, dtype=np.float32), np.zeros(3, np.float32)
    changed = change_images(images, [Change(matrix.numpy(), colour, offset) for matrix in inverse])
    grid = F.affine_grid(inverse, [3, 3, size, size], align_corners=False)
    expected = 1 - F.grid_sample(1 - images / 255, grid, align_corners=False)
    torch.testing.assert_close(changed, expected, rtol=0, atol=1e-4)


def test_what_was_set_when_the_first_image_came_does_not_stay(image):
    preprocess = Preprocess(image_size=16, mean=(0.5, 0.4, 0.3))
    with torch.inference_mode():
        expected = preprocess(image)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(preprocess(image), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert preprocess(image).dtype == torch.float32
    assert preprocess.normalize(to_pixels(image).requires_grad_()).requires_grad
