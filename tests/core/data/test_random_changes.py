"""Random choices for a training sample, and changes of its image: a function of seed, epoch and sample."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from support import PairsInMemory, real_pairs, with_caption, write_shard

from grr_coca.data.augmentation import LUMA, Augmentation, ImageChange, Shape
from grr_coca.data.dataset import PairDataset, make_loader
from grr_coca.data.isolated import decode_image
from grr_coca.data.order import GlobalBatches, SampleRef, Shuffle, TrainingOrder
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.random_changes import (
    Siblings,
    SiblingVisits,
    Stream,
    add_neighbour,
    change_images,
    kept_patches,
    mix_images,
    sample_rng,
)
from grr_coca.data.sources.open import open_source
from grr_coca.data.tokenizer import train_bpe

PAIRS = real_pairs(20)
TOKENIZER = train_bpe([pair.caption for pair in PAIRS], 320)


def dataset_of(source, **options) -> PairDataset:
    return PairDataset(source, TOKENIZER, Preprocess(16), 40, **options)


# --- Streams


def test_draws_of_a_seed_are_stable():
    ref, numbers = (
        SampleRef(epoch=2, sample=7),
        {"CAPTION": 101, "PATCHES": 1000, "MIX": 1001, "NEIGHBOUR": 1002, "SIBLING": 1003, "REPLACEMENT": 1},
    )
    assert {stream.name: stream.value for stream in Stream} == numbers
    assert sample_rng(3, ref).random() == np.random.default_rng((3, 2, 7)).random()
    for stream, number in zip(Stream, sorted(numbers.values()), strict=True):
        assert sample_rng(3, ref, stream).random() == np.random.default_rng((3, 2, 7, number)).random()


# --- Geometry and colour

STRONG = Augmentation(scale=(0.8, 1.2), shift=0.1, rotate=15, jitter=0.3, grey=0.2)


@pytest.fixture(scope="module")
def image():
    return decode_image(PAIRS[0].image, "pictogram")


@pytest.fixture(scope="module")
def visit():
    """What a visit of a sample looks like."""

    def make(seed: int, epoch: int, sample: int) -> torch.Tensor:
        return dataset_of(PairsInMemory(PAIRS[:4]), augmentation=STRONG, seed=seed)[SampleRef(epoch, sample)].image

    return make


def to_bytes(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_pixels(image: Image.Image) -> torch.Tensor:
    return to_bytes(image).float() / 255


def augmented(augmentation: Augmentation, image: Image.Image, seed: int) -> torch.Tensor:
    """Pixel values 0 … 1 of an image after one random change."""
    return change_images(to_bytes(image)[None], [augmentation.draw(np.random.default_rng(seed))])[0]


def test_default_augmentation_changes_nothing(image):
    for seed in range(10):
        assert torch.equal(augmented(Augmentation(), image, seed), to_pixels(image))


def test_transforms_depend_on_seed_epoch_and_sample(visit):
    assert torch.equal(visit(3, 5, 1), visit(3, 5, 1))
    others = [visit(4, 5, 1), visit(3, 6, 1), visit(3, 5, 2)]
    assert not any(torch.equal(visit(3, 5, 1), other) for other in others)


SETTINGS = {"scale": (0.5, 0.5), "shift": 0.5, "rotate": 45, "jitter": 0.5} | dict.fromkeys(
    ("crop", "grey", "recolour", "tint", "coarse", "shape", "paint", "jpeg"), 1.0
)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_an_effect(image, name):
    assert not torch.equal(augmented(Augmentation(**{name: SETTINGS[name]}), image, 2), to_pixels(image))


def test_given_fraction_is_cropped_and_the_rest_scaled():
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


def test_recolouring_uses_two_colours_in_either_order(drawing):
    luma = torch.tensor(LUMA)
    lighter = []
    for seed in range(40):
        pixels = augmented(Augmentation(recolour=1.0), drawing, seed)
        ink, ground = ink_and_ground(pixels)
        assert len(set(map(tuple, (pixels * 255).round().flatten(1).T.tolist()))) == 2
        assert abs((ink - ground) @ luma) > 0.34
        lighter.append(bool((ink - ground) @ luma > 0))
    assert 10 < sum(lighter) < 30


BLUE, YELLOW, WHITE = np.array([0, 0, 1.0]), np.array([1, 1, 0.0]), np.ones(3)
UNCHANGED = Augmentation().draw(np.random.default_rng(0))


def set_into(image: Image.Image, **values) -> torch.Tensor:
    shape = Shape(
        **{"side": 1.0, "icon": 0.5, "roundness": 1.0, "fill": BLUE, "ground": WHITE, "ink": YELLOW, **values}
    )
    return change_images(to_bytes(image)[None], [replace(UNCHANGED, shape=shape)])[0]


def colour_at(pixels, x, y) -> list[float]:
    return pixels[:, y, x].round(decimals=2).tolist()


def test_drawing_is_set_into_a_disc(drawing):
    pixels = set_into(drawing, shadow=0.0)
    assert colour_at(pixels, 32, 32) == YELLOW.tolist(), "the drawing"
    assert colour_at(pixels, 32, 20) == BLUE.tolist(), "its ground"
    assert colour_at(pixels, 32, 2) == BLUE.tolist(), "the disc reaches the sides"
    assert colour_at(pixels, 4, 4) == WHITE.tolist(), "and not the corners"
    area = (pixels[2] - pixels[0]).clamp(min=0).mean().item()
    assert area == pytest.approx(np.pi / 4 - (1 / 4) ** 2, abs=0.01)


def test_shape_may_have_corners_a_margin_and_a_shadow_below_it(drawing):
    square = set_into(drawing, roundness=0.0, side=0.5, shadow=0.0)
    assert colour_at(square, 17, 17) == BLUE.tolist()
    assert colour_at(square, 14, 32) == WHITE.tolist()
    shadow = set_into(drawing, roundness=0.0, side=0.5, shadow=0.5)
    assert shadow[:, 49, 32].max() < 0.9
    assert shadow[:, 14, 32].min() > 0.97
    assert colour_at(shadow, 32, 2) == WHITE.tolist()


def test_random_shapes_are_visible_discs_and_squares():
    drawn = [Augmentation(shape=1.0).draw(np.random.default_rng(seed)).shape for seed in range(300)]
    assert 0.35 < np.mean([shape.roundness == 1 for shape in drawn]) < 0.55
    assert 0.08 < np.mean([shape.roundness == 0 for shape in drawn]) < 0.25
    inked = [shape for shape in drawn if shape.ink is not None]
    assert 0.15 < 1 - len(inked) / len(drawn) < 0.35
    assert min(abs((shape.ink - shape.fill) @ np.array(LUMA)) for shape in inked) > 0.34
    half = [Augmentation(shape=0.3, recolour=0.2).draw(np.random.default_rng(seed)).shape for seed in range(400)]
    assert 0.24 < np.mean([shape is not None for shape in half]) < 0.36


def test_jpeg_artefacts_appear_only_at_edges():
    disc = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(disc).ellipse((20, 20, 44, 44), "red")
    pixels = change_images(to_bytes(disc)[None], [replace(UNCHANGED, quality=40)])[0]
    away = (pixels - to_pixels(disc)).abs().amax(dim=0)
    assert away.max() > 0.1
    assert away[:8].max() < 0.01
    small = change_images(to_bytes(disc)[None], [replace(UNCHANGED, quality=40, side=16)])[0]
    assert (small - to_pixels(disc)).abs().mean() > 2 * away.mean(), "it was made in the small size"


def test_neighbour_is_at_one_side():
    image = torch.full((3, 20, 20), 255, dtype=torch.uint8)
    image[:, 10, 10] = 7
    sides = set()
    for seed in range(40):
        found = add_neighbour(image, lambda: torch.zeros_like(image), np.random.default_rng(seed))
        assert found.shape == image.shape
        assert found[:, 10, 10].eq(7).all()
        dark = (found[0] == 0).numpy()
        rows, columns = dark.any(axis=1), dark.any(axis=0)
        assert {rows.sum(), columns.sum()} <= {*range(1, 5), 20}
        assert dark.sum() == rows.sum() * columns.sum()
        sides |= {
            name
            for name, strip in zip("nsew", (dark[0], dark[-1], dark[:, -1], dark[:, 0]), strict=True)
            if strip.all()
        }
    assert sides == set("nsew")
    assert image.eq(255).sum() == image.numel() - 3, "the image itself stays"


def images_of(dataset: PairDataset, refs: list[SampleRef]) -> torch.Tensor:
    return torch.stack([sample.image for sample in dataset.__getitems__(refs)])


def test_neighbours_depend_only_on_the_visit():
    plain, beside = (
        dataset_of(PairsInMemory(PAIRS[:8]), augmentation=Augmentation(neighbour=share)) for share in (0.0, 0.5)
    )
    refs = [SampleRef(epoch, sample) for epoch in range(30) for sample in range(8)]
    shown = images_of(beside, refs)
    changed = (images_of(plain, refs) != shown).flatten(1).any(dim=1)
    assert 0.4 < changed.float().mean() < 0.6
    again = dataset_of(PairsInMemory(PAIRS[:8]), augmentation=Augmentation(neighbour=0.5))
    assert torch.equal(images_of(again, refs[::-1]).flip(0), shown)


def test_broken_neighbour_leaves_the_image_unchanged():
    pairs = [replace(pair, image=b"<html>") if index else pair for index, pair in enumerate(PAIRS[:8])]
    plain, beside = (dataset_of(PairsInMemory(pairs), augmentation=Augmentation(neighbour=n)) for n in (0.0, 1.0))
    refs = [SampleRef(epoch, 0) for epoch in range(9)]
    assert sum(torch.equal(plain[ref].image, beside[ref].image) for ref in refs) >= 5


def test_cached_and_reread_images_give_equal_samples(monkeypatch):
    changes = Augmentation(neighbour=0.5, swap=0.5)
    kept = dataset_of(PairsInMemory(ALIKE), augmentation=changes)
    monkeypatch.setattr("grr_coca.data.dataset._MAX_CACHED_PIXELS", 0)
    read_again = dataset_of(PairsInMemory(ALIKE), augmentation=changes)
    for _ in range(2):
        for ref in (SampleRef(epoch, sample) for epoch in range(3) for sample in range(5)):
            assert torch.equal(kept[ref].image, read_again[ref].image)


def test_new_augmentations_keep_older_samples():
    plain, more = (
        Augmentation(scale=(0.8, 1.2), jitter=0.3),
        Augmentation(scale=(0.8, 1.2), jitter=0.3, coarse=1.0, jpeg=1.0),
    )
    for seed in range(5):
        first, second = (augmentation.draw(np.random.default_rng(seed)) for augmentation in (plain, more))
        assert np.array_equal(first.inverse, second.inverse)
        assert np.array_equal(first.colour, second.colour)


# --- Mixing images of equal captions


@pytest.fixture
def black_and_white():
    return torch.zeros(3, 8, 8, dtype=torch.uint8), torch.full((3, 8, 8), 255, dtype=torch.uint8)


def mixtures(augmentation: Augmentation, images) -> list[np.ndarray]:
    image, other = images
    return [mix_images(augmentation, image, lambda: other, np.random.default_rng(seed)).numpy() for seed in range(50)]


def test_blend_is_even_and_keeps_at_least_half_of_the_image(black_and_white):
    mixed = mixtures(Augmentation(blend=1.0), black_and_white)
    assert all(pixels.min() == pixels.max() <= 128 for pixels in mixed)
    assert len({int(pixels.max()) for pixels in mixed}) > 20


def test_swap_takes_complete_cells(black_and_white):
    mixed = mixtures(Augmentation(swap=1.0), black_and_white)
    for pixels in mixed:
        assert set(np.unique(pixels)) <= {0, 255}
        np.testing.assert_array_equal(pixels, pixels[:, ::2, ::2].repeat(2, 1).repeat(2, 2))
    assert 0.4 < np.mean([pixels.mean() / 255 for pixels in mixed]) < 0.6


def test_mixtures_have_the_requested_fractions(black_and_white):
    augmentation = Augmentation(blend=0.3, swap=0.3)
    (image, other), rng = black_and_white, np.random.default_rng(0)
    read = []

    def read_other() -> torch.Tensor:
        read.append(other)
        return other

    unmixed = [mix_images(augmentation, image, read_other, rng).max() == 0 for _ in range(500)]
    assert 0.33 < np.mean(unmixed) < 0.47
    assert 250 < len(read) < 350, "only what is mixed is read"


def test_uncovered_corners_are_white(image):
    black = Image.new("RGB", image.size, "black")
    shrunk = augmented(Augmentation(scale=(0.5, 0.5)), black, 0)
    assert all(shrunk[:, y, x].eq(1).all() for x in (0, 63) for y in (0, 63))
    assert shrunk[:, 32, 32].eq(0).all()


def test_grey_image_stays_rgb(image):
    grey = augmented(Augmentation(grey=1.0), image, 0)
    red, green, blue = grey
    torch.testing.assert_close(red, green)
    torch.testing.assert_close(red, blue)
    torch.testing.assert_close(red, torch.einsum("chw,c->hw", to_pixels(image), torch.tensor(LUMA)))


@pytest.mark.parametrize("size", [4, 7, 64])
def test_transform_matches_pytorchs_affine_grid(size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, size, size), generator=generator, dtype=torch.uint8)
    inverse = torch.eye(2, 3) + 0.3 * torch.randn(3, 2, 3, generator=generator)
    colour, offset = np.eye(3, dtype=np.float32), np.zeros(3, np.float32)
    changed = change_images(
        images, [ImageChange(inverse=matrix.numpy(), colour=colour, offset=offset) for matrix in inverse]
    )
    grid = F.affine_grid(inverse, [3, 3, size, size], align_corners=False)
    expected = 1 - F.grid_sample(1 - images / 255, grid, align_corners=False)
    torch.testing.assert_close(changed, expected, rtol=0, atol=1e-4)


# --- Patch dropout

KEEP = partial(kept_patches, 16, 0.5)


@pytest.fixture
def source(tmp_path):
    return open_source(str(write_shard(tmp_path / "a.tar", PAIRS)))


@given(num_patches=st.integers(1, 300), share=st.floats(0, 0.999), seed=st.integers(0, 99))
def test_dropped_fraction_is_exact_and_never_all(num_patches, share, seed):
    kept = kept_patches(num_patches, share, np.random.default_rng(seed)).tolist()
    assert len(kept) == max(1, num_patches - round(share * num_patches))
    assert kept == sorted(set(kept))
    assert set(kept) <= set(range(num_patches))


def test_every_patch_is_kept_equally_often():
    rng = np.random.default_rng(0)
    counts = torch.stack([kept_patches(16, 0.75, rng) for _ in range(4000)]).flatten().bincount(minlength=16)
    # Binomial: 1,000 ± 27 each.
    assert (counts - 1000).abs().max() < 4 * 27.4


def test_dropped_patches_depend_on_the_epoch(source):
    dataset = dataset_of(source, keep_patches=KEEP, seed=3)
    first, again = (dataset[SampleRef(1, 7)].kept_patches for _ in range(2))
    assert torch.equal(first, again)
    others = [
        dataset[SampleRef(2, 7)].kept_patches,
        dataset[SampleRef(1, 8)].kept_patches,
        dataset_of(source, keep_patches=KEEP, seed=4)[SampleRef(1, 7)].kept_patches,
    ]
    assert not any(torch.equal(first, other) for other in others)


def test_kept_patches_exist_only_with_patch_dropout(source):
    order = TrainingOrder(Shuffle(20, seed=0), GlobalBatches(4, 1))
    (batch,) = make_loader(dataset_of(source, keep_patches=KEEP), order, 0)
    assert batch.to(torch.device("meta")).kept_patches.device.type == "meta"
    assert torch.equal(batch.to(torch.device("cpu")).kept_patches, batch.kept_patches)
    (batch,) = make_loader(dataset_of(source), order, 0)
    assert batch.kept_patches is batch.to(torch.device("cpu")).kept_patches is None


# --- Siblings

ALIKE = [with_caption(pair, text) for pair, text in zip(PAIRS, ("cat", "dog", "Cat ", "cat", "cow"), strict=False)]
PLAIN, SWAPS = Augmentation(), Augmentation(swap=1.0)


@pytest.fixture
def alike(tmp_path):
    return open_source(str(write_shard(tmp_path / "alike.tar", ALIKE)))


def look(source, sample: int, augmentation: Augmentation = SWAPS, seed: int = 0) -> torch.Tensor:
    return dataset_of(source, augmentation=augmentation, seed=seed)[SampleRef(0, sample)].image


def test_siblings_share_a_caption_and_exclude_themselves(alike):
    siblings, rng = Siblings(alike), np.random.default_rng(0)
    assert {siblings.draw(0, rng) for _ in range(30)} == {2, 3}
    assert {siblings.draw(3, rng) for _ in range(30)} == {0, 2}
    assert siblings.draw(1, rng) is None


@pytest.fixture
def in_sets(tmp_path):
    keys = ("a_cat", "b_dog", "a_cat-thin", "b_cat", "a_cow")
    pairs = [replace(pair, key=key) for pair, key in zip(ALIKE, keys, strict=True)]
    return open_source(str(write_shard(tmp_path / "sets.tar", pairs)))


def test_apart_siblings_are_from_other_sets(in_sets):
    siblings, rng = Siblings(in_sets, apart=True), np.random.default_rng(0)
    assert {siblings.draw(0, rng) for _ in range(30)} == {3}
    assert {siblings.draw(3, rng) for _ in range(30)} == {0, 2}
    assert siblings.draw(4, rng) is None


def test_requested_fraction_of_samples_are_siblings(in_sets):
    plain = Shuffle(5, seed=0)
    visits = SiblingVisits(plain, Siblings(in_sets, apart=True), 0.4, seed=0)
    expected = {0: {3}, 2: {3}, 3: {0, 2}}
    shown = 0
    for position in range(1, 1000):
        before, visit = plain.at(position - 1), visits.at(position)
        if visit == plain.at(position):
            continue
        shown += 1
        assert position % 5 in (2, 4), "two of five visits, never two in a row"
        assert visit.sample in expected[before.sample]
        assert visit.epoch == before.epoch
    assert 0.4 * 1000 * 0.3 < shown < 0.4 * 1000
    again = SiblingVisits(Shuffle(5, seed=0), Siblings(in_sets, apart=True), 0.4, seed=0)
    assert [again.at(p) for p in (901, 4, 77)] == [visits.at(p) for p in (901, 4, 77)], "any position, in any order"


def test_concept_ids_come_from_first_captions():
    first, second = (replace(pair, more_captions=("pet", "beast")) for pair in ALIKE[:1] + ALIKE[3:4])
    source = PairsInMemory([first, second])
    order = TrainingOrder(Shuffle(2, seed=0), GlobalBatches(2, 20))
    batches = list(make_loader(dataset_of(source, augmentation=PLAIN, has_siblings=True), order, 0))
    assert all(batch.concept_ids[0] == batch.concept_ids[1] for batch in batches)
    assert any(batch.caption_ids[0] != batch.caption_ids[1] for batch in batches)
    (batch,) = make_loader(dataset_of(source), TrainingOrder(Shuffle(2, seed=0), GlobalBatches(2, 1)), 0)
    assert batch.concept_ids is None


def test_images_are_mixed_only_with_siblings(alike):
    plain = look(alike, 0, PLAIN)
    assert any(not torch.equal(look(alike, 0, SWAPS, seed), plain) for seed in range(3))
    assert torch.equal(look(alike, 1), look(alike, 1, PLAIN))


def test_broken_sibling_leaves_the_image_unchanged(tmp_path):
    pairs = [replace(pair, image=b"<html>") if index in (2, 3) else pair for index, pair in enumerate(ALIKE)]
    source = open_source(str(write_shard(tmp_path / "b.tar", pairs)))
    assert Siblings(source).draw(0, np.random.default_rng(0)) in (2, 3)
    assert torch.equal(look(source, 0), look(source, 0, PLAIN))


def test_samples_without_caption_have_no_siblings(tmp_path):
    pairs = [with_caption(pair, " ") if index in (0, 2) else pair for index, pair in enumerate(ALIKE)]
    siblings = Siblings(open_source(str(write_shard(tmp_path / "b.tar", pairs))))
    assert siblings.draw(0, np.random.default_rng(0)) is None
    assert siblings.draw(3, np.random.default_rng(0)) is None
