"""Captions of a split: each image once, all its references, the same however they are batched."""

import json
from dataclasses import replace

import pytest
from support import BATCH_SIZE, PairsInMemory, real_pairs

from grr_coca.common.errors import UserError
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.caption_split import CaptionedSplit, caption_split, write_captions


class SeveralCaptions(PairsInMemory):
    """Pairs of which the first three are of one image."""

    def __init__(self, count: int) -> None:
        super().__init__(
            [replace(pair, name="one" if i < 3 else pair.name) for i, pair in enumerate(real_pairs(count))]
        )


class AllAtOnce(SeveralCaptions):
    """A source that tells all captions of an image."""

    def captions(self, index: int) -> tuple[str, ...]:
        return (self.pairs[index].caption, f"another of {index}")


@pytest.fixture(scope="module")
def checkpoint(run):
    from grr_coca.model.checkpoint import from_pretrained

    return from_pretrained(run.folder)


@pytest.fixture
def source(run):
    return open_source(str(run.shard))


def test_captions_each_image_once_with_all_references(checkpoint):
    source = SeveralCaptions(6)
    captioned = caption_split(checkpoint, source)
    assert captioned.names == ("one", *(source.name(i) for i in range(3, 6)))
    assert captioned.references[0] == tuple(source.caption(i) for i in range(3))
    assert len(captioned.hypotheses) == 4


def test_rows_of_a_table_that_name_one_file_are_one_image(checkpoint, tmp_path):
    for name, pair in zip(("0.webp", "1.webp"), real_pairs(2), strict=True):
        (tmp_path / name).write_bytes(pair.image)
    rows = [f"{path},seen {way}" for way in ("once", "twice") for path in ("0.webp", "./1.webp", "1.webp")]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,caption", *rows]))
    captioned = caption_split(checkpoint, open_source(str(tmp_path / "pairs.csv")))
    assert captioned.references == (("seen once", "seen twice"), ("seen once", "seen once", "seen twice", "seen twice"))
    assert captioned.names == (f"{tmp_path}/pairs.csv: row 1, 0.webp", f"{tmp_path}/pairs.csv: row 2, ./1.webp")


def test_all_captions_of_an_image_are_references(checkpoint):
    source = AllAtOnce(4)
    captioned = caption_split(checkpoint, source)
    assert captioned.references[1] == (source.caption(3), "another of 3")
    assert len(captioned.references[0]) == 6


def test_batching_of_images_does_not_change_results(checkpoint):
    source = PairsInMemory(real_pairs(5))
    expected = caption_split(checkpoint, source)
    assert [caption_split(checkpoint, source, batch_size=batch_size) for batch_size in (1, 2)] == [expected] * 2


def test_subset_is_fixed_and_spread_over_the_split(checkpoint, source):
    subset = caption_split(checkpoint, source, max_images=4)
    assert subset.names == tuple(source.name(i) for i in (0, 10, 20, 30))
    few = PairsInMemory(real_pairs(3))
    assert caption_split(checkpoint, few, max_images=1000) == caption_split(checkpoint, few)


def test_mode_of_the_model_is_restored(checkpoint, source):
    checkpoint.model.train()
    caption_split(checkpoint, source, max_images=BATCH_SIZE)
    assert checkpoint.model.training
    checkpoint.model.eval()


def test_rejects_an_empty_split(checkpoint):
    with pytest.raises(UserError, match="split is empty"):
        caption_split(checkpoint, SeveralCaptions(0))


def test_broken_image_is_named(checkpoint):
    source = SeveralCaptions(4)
    source.pairs[3] = replace(source.pairs[3], image=b"no image")
    with pytest.raises(UserError, match=source.name(3)):
        caption_split(checkpoint, source)


# --- The file


def test_captions_are_written_a_line_each(tmp_path):
    captioned = CaptionedSplit(("a.png", "b.png"), ("ein Käse", 'a "cat"'), (("x",), ("y", "z")))
    write_captions(captioned, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[0] == {"image": "a.png", "caption": "ein Käse", "references": ["x"]}
    assert rows[1]["references"] == ["y", "z"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_name_of_an_image_that_is_not_utf8_is_escaped(tmp_path):
    write_captions(CaptionedSplit(("caf\udce9.png",), ("a cup",), (("x",),)), tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))["image"] == "caf\udce9.png"


def test_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        write_captions(CaptionedSplit(("a",), ("b",), (("c",),)), tmp_path / "nowhere" / "out.jsonl")


def test_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    path.write_text("old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(UserError, match="No space left"):
        write_captions(CaptionedSplit(("a",), ("b",), (("c",),)), path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("numbers", [{"max_images": 0}, {"max_images": -1}, {"batch_size": 0}])
def test_rejects_numbers_below_one(checkpoint, source, numbers):
    with pytest.raises(UserError, match="must be at least 1"):
        caption_split(checkpoint, source, **numbers)
