"""An adapted model, its pairs, and images that it has not seen with their index."""

from pathlib import Path

from support import real_pairs, write_shard

from grr_coca.adapt import calibrate
from grr_coca.cli import main

NUM_PAIRS, NUM_UNSEEN = 150, 60


def write_adapted(folder: Path) -> None:
    """Write `pairs.tar`, the model `mine`, and of other images `unseen.tar`, the folder `unseen` and `index`."""
    pairs = real_pairs(NUM_PAIRS + NUM_UNSEEN, "glyphs")
    write_shard(folder / "pairs.tar", pairs[:NUM_PAIRS])
    write_shard(folder / "unseen.tar", pairs[NUM_PAIRS:])
    (folder / "unseen").mkdir()
    for pair in pairs[NUM_PAIRS:]:
        (folder / "unseen" / f"{pair.key}.webp").write_bytes(pair.image)
    before, calibrate._MAX_COMPARED = calibrate._MAX_COMPARED, 8  # beams take most of the time of a small fit
    try:
        assert main(["adapt", str(folder / "pairs.tar"), "--out", str(folder / "mine")]) == 0
    finally:
        calibrate._MAX_COMPARED = before
    assert main(["index", str(folder / "unseen"), "--out", str(folder / "index"), "-c", str(folder / "mine")]) == 0


def unseen_pairs(folder: Path) -> tuple[list[Path], list[str]]:
    """The images of the index, and their captions."""
    pairs = real_pairs(NUM_PAIRS + NUM_UNSEEN, "glyphs")[NUM_PAIRS:]
    return [folder / "unseen" / f"{pair.key}.webp" for pair in pairs], [pair.caption for pair in pairs]
