"""A folder of images, each with its caption in a text file of the same name beside it."""

from pathlib import Path

from grr_coca.data.images import IMAGE_SUFFIXES
from grr_coca.data.pairs import RawPair
from grr_coca.errors import UserError


class ImageFolder:
    """Pairs `NAME.jpg` and `NAME.txt` of a folder and the folders in it, sorted by path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._images = [path for path in sorted(root.rglob("*")) if _is_image(path)]
        if not self._images:
            raise UserError(f"{root}: no images; expected NAME.jpg (or .png, .webp …) beside NAME.txt, or .tar shards")
        missing = next((path for path in self._images if not path.with_suffix(".txt").is_file()), None)
        if missing is not None:
            raise UserError(f"{missing}: no caption; expected it in {missing.with_suffix('.txt').name} beside it")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> RawPair:
        """Read one pair."""
        path = self._images[index]
        key = path.relative_to(self.root).with_suffix("").as_posix()
        return RawPair(key, str(path), path.read_bytes(), self.caption(index))

    def name(self, index: int) -> str:
        """Where a pair lies, for messages."""
        return str(self._images[index])

    def caption(self, index: int) -> str:
        """Read one caption, and not its image."""
        path = self._images[index].with_suffix(".txt")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text ({error})") from error


def _is_image(path: Path) -> bool:
    return path.suffix[1:].lower() in IMAGE_SUFFIXES and path.is_file()
