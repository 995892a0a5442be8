"""What a model knows of its own answers: confidence and unfamiliar images, of the models that ship and in the index."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import warnings_of

import grr_coca
from grr_coca.cli import main
from grr_coca.common.errors import UserError
from grr_coca.infer.calibration import (
    NUM_STATISTICS,
    UNKNOWN,
    Calibration,
    CaptionConfidence,
    read_calibration,
    statistics,
)
from grr_coca.infer.image_text_model import warn_if_unfamiliar
from grr_coca.model.checkpoint_files import CONFIDENCE, DEFAULT, FOLDER, bundled_models
from grr_coca_search import Index

DRAWINGS = sorted((Path(__file__).parents[3] / "docs" / "drawings").glob("*.webp"))
NAMES = sorted(bundled_models())


def noise(seed: int = 0) -> Image.Image:
    """Nothing that anyone has drawn."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8))


@pytest.fixture(scope="module")
def icons():
    return grr_coca.load(DEFAULT, engine="onnx")


def square(side: int = 8) -> np.ndarray:
    """White, with a black square of half the side in the middle."""
    pixels = np.full((1, side, side, 3), 255, np.uint8)
    pixels[:, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 0
    return pixels


def test_statistics_equal_manual_counts():
    same, entropy, on_border, everywhere, roughness, spread = statistics(square())[0]
    assert same == pytest.approx(1 - 8 / 56), "of 56 pairs across, two of each of four rows differ"
    assert entropy == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert (on_border, everywhere, spread) == (1, 0.75, 0)
    assert roughness == pytest.approx(np.log1p(2 * 255 * 8 / 56))


def test_statistics_do_not_depend_on_the_batch():
    batch = np.concatenate([square(64), np.asarray(noise())[None], square(64) // 2])
    alone = np.concatenate([statistics(batch[one : one + 1]) for one in range(3)])
    np.testing.assert_allclose(statistics(batch), alone)


def test_distance_and_confidence_match_their_formulas():
    fitted = Calibration(
        slope=2.0,
        offset=1.0,
        mean=(0.0,) * NUM_STATISTICS,
        precision=tuple(tuple(float(3 * (i == j)) for j in range(NUM_STATISTICS)) for i in range(NUM_STATISTICS)),
        max_distance=1.0,
        fitted_on="nothing",
    )
    assert fitted.confidence([-0.25, -0.25]) == pytest.approx(0.5)
    assert fitted.confidence([-1e6]) < 1e-200
    assert fitted.distances(square()) == pytest.approx(3 * np.square(statistics(square())).sum(axis=1))
    assert fitted.are_unfamiliar(square()) == [True]


@pytest.mark.parametrize("name", NAMES)
def test_bundled_model_distinguishes_drawings_from_noise(name):
    images = [Image.open(path) for path in DRAWINGS] + [noise()]
    found = {engine: grr_coca.load(name, engine=engine).describe(images) for engine in ("onnx", "torch")}
    for described in found.values():
        assert [one.unfamiliar for one in described] == [False] * len(DRAWINGS) + [True]
        assert all(0 < one.confidence < 1 for one in described[:-1])
        assert described[-1].confidence is None
    onnx, torch = ([one.confidence for one in described[:-1]] for described in found.values())
    assert onnx == pytest.approx(torch, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_card_has_the_requested_values(name):
    figures = bundled_models()[name].figures
    assert figures["photographs, other"]["unfamiliar"].value >= 0.9
    assert figures["photographs, other"]["images"].value >= 30
    drawn = [split for split, found in figures.items() if split.startswith("test") and "unfamiliar" in found]
    assert len(drawn) >= 3
    assert all(figures[split]["unfamiliar"].high <= 0.1 for split in drawn)
    assert "## Confidence and unfamiliar images" in (FOLDER / name / "card.md").read_text()


def test_with_a_prompt_and_for_other_captions(icons):
    assert [one.confidence for one in icons.describe(DRAWINGS[:2], "red")] == [None, None]
    several = icons.describe(DRAWINGS[0], num_beams=3, num_captions=3)
    assert len(several.caption_confidences) == 3
    assert several.caption_confidences[0].confidence == several.confidence != several.caption_confidences[1].confidence


def test_truncated_caption_has_no_confidence(icons):
    for length, is_known in ((1, False), (20, True)):
        described = icons.describe(DRAWINGS[0], max_length=length)
        assert (described.confidence is not None) is is_known
        assert described.unfamiliar is False


def test_model_without_a_fit_cannot_tell(model, files):
    described = model.describe(files)
    assert [(one.confidence, one.unfamiliar) for one in described] == [UNKNOWN] * len(files)


def test_new_weights_have_no_fit(icons):
    model = grr_coca.load(DEFAULT, engine="torch")
    assert model.describe(DRAWINGS[0]).unfamiliar is False
    model.refresh()
    assert model.describe(DRAWINGS[0]).unfamiliar is None


FIT = json.loads((FOLDER / DEFAULT / CONFIDENCE).read_text())


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"slope": 1}',
        json.dumps({**FIT, "mean": [1.0]}),
        json.dumps({**FIT, "precision": [*FIT["precision"][1:], [1.0]]}),
        json.dumps({**FIT, "precision": FIT["precision"][1:]}),
    ],
    ids=["empty", "keys", "mean", "ragged", "rows"],
)
def test_corrupt_fit_names_its_file(tmp_path, content):
    (tmp_path / CONFIDENCE).write_text(content)
    with pytest.raises(UserError, match=CONFIDENCE):
        read_calibration(tmp_path)


# --- Messages


def test_json_has_it_and_a_note_names_the_photograph_model(tmp_path, capsys):
    for number in range(3):
        noise(number).save(tmp_path / f"{number}.png")
    shutil.copy(DRAWINGS[0], tmp_path)
    with warnings_of("grr_coca.infer.image_text_model") as messages:
        assert main(["caption", str(tmp_path), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["unfamiliar"] for row in rows] == [True, True, True, False]
    assert [row["confidence"] is None for row in rows] == [True, True, True, False]
    (line,) = messages
    named = ", ".join(str(tmp_path / f"{number}.png") for number in range(3))
    assert line.startswith(
        f"3 of 4 images ({named}) are unlike the images that this model was trained on; for photographs, add -c coca"
    )


@pytest.mark.parametrize(
    "arguments", [["caption", "--sidecar", "txt"], ["caption", "--sidecar", "xmp"], ["classify", "--sidecar", "xmp"]]
)
def test_writes_no_sidecars_for_unfamiliar_images(tmp_path, capsys, arguments):
    verb, *sidecar = arguments
    labels = ["--labels", "guitar,boat", "--min-probability", "0"] if verb == "classify" else []
    noise().save(tmp_path / "noise.png")
    shutil.copy(DRAWINGS[0], tmp_path)
    assert main([verb, str(tmp_path), *labels, *sidecar]) == 0
    written = {path.name for path in tmp_path.iterdir()} - {"noise.png", DRAWINGS[0].name}
    assert len(written) == 1
    assert "noise" not in written.pop()
    assert "wrote nothing for 1 of 2 images, because this model was trained on different" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "start"),
    [([], None), ([True, False], None), ([False], None), ([None, None], None), ([True], "the image is unlike")],
)
def test_warns_only_if_most_images_are_unfamiliar(flags, start):
    with warnings_of("grr_coca.infer.image_text_model") as messages:
        warn_if_unfamiliar(flags)
    assert [message[: len(start or "")] for message in messages] == ([] if start is None else [start])


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("000", None),
        ("0?", None),
        ("1", "the image is unlike the images that this model was trained on; "),
        ("11", "2 of 2 images are unlike the images that this model was trained on; "),
        ("001", "1 of 3 images (2.png) is unlike the images that this model was trained on; "),
        ("0111?", "3 of 5 images (1.png, 2.png, 3.png) are unlike the images that this model was trained on; "),
        ("11110", "4 of 5 images (0.png, 1.png, 2.png, …) are unlike the images that this model was trained on; "),
    ],
)
def test_warning_names_the_unfamiliar_images(flags, text):
    with warnings_of("grr_coca.infer.image_text_model") as messages:
        warn_if_unfamiliar(
            [None if flag == "?" else flag == "1" for flag in flags], [f"{i}.png" for i in range(len(flags))]
        )
    assert messages == ([] if text is None else [f"{text}for photographs, add -c coca-l14-captions"])


@pytest.mark.parametrize("out", [[], ["--out", "captions.csv"]])
def test_caption_warns_of_a_few_unfamiliar_images(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    for path in DRAWINGS[:2]:
        shutil.copy(path, tmp_path)
    noise().save("noise.png")
    with warnings_of("grr_coca.infer.image_text_model") as messages:
        assert main(["caption", ".", *out]) == 0
    assert [message.partition(";")[0] for message in messages] == [
        "1 of 3 images (noise.png) is unlike the images that this model was trained on"
    ]


# --- Kept


def test_index_stores_and_returns_confidence(tmp_path, icons):
    folder = tmp_path / "images"
    folder.mkdir()
    noise().save(folder / "noise.png")
    shutil.copy(DRAWINGS[0], folder)
    shutil.copy(DRAWINGS[0], folder / "copy.webp")
    expected = icons.describe(DRAWINGS[0])
    with Index.open(tmp_path / "index", DEFAULT, create=True) as index:
        update = index.add([str(folder)])
        assert sorted(map(bool, update.unfamiliar)) in ([False, True], [False, False, True])
        entries = {entry.title: entry for entry, _ in index.store.everything()}
    assert entries["noise"].caption_confidence == CaptionConfidence(None, True)
    for name in ("copy", DRAWINGS[0].stem):
        assert entries[name].caption_confidence.unfamiliar is False
        assert entries[name].caption_confidence.confidence == pytest.approx(expected.confidence, abs=1e-4)
    assert entries["copy"].all_fields == {
        "confidence": entries["copy"].caption_confidence.confidence,
        "unfamiliar": "no",
        "tags": ", ".join(entries["copy"].tags),
    }
    with Index.open(tmp_path / "index") as index:
        for where, found in (("unfamiliar = 'yes'", 1), ("confidence > 0", 2), ("confidence > 0.9999", 0)):
            assert len(index.search("guitar", where=where, fold=False).hits) == found, where
