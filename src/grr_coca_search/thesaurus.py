"""Words that a model knows for words and phrases that it does not know, such as `delete` and `trash` for "throw away".

The names of icons, which a model was trained on, name things, and few actions. A sentence encoder found the words in
advance (`scripts/fit_thesaurus.py`). They are in a text file beside the weights: sorted lines of an entry and its
words, the closest first, separated by tabs.
"""

from pathlib import Path

from grr_coca.common.errors import UserError
from grr_coca.model.checkpoint_files import THESAURUS


class Thesaurus:
    """The words of a model.

    Args:
        lines: Content of the file.
    """

    def __init__(self, lines: str) -> None:
        self._lines = f"\n{lines}"

    @classmethod
    def of_model(cls, folder: Path) -> "Thesaurus":
        """Return the words of the model in a folder; without entries if the folder has none.

        Raises:
            UserError: If the file cannot be read.
        """
        path = folder / THESAURUS
        try:
            return cls(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls("")
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error

    def related(self, text: str) -> tuple[str, ...]:
        """Return known words close to a text, the closest first; none if the model knows the text, or the file does not
        have it."""
        entry = " ".join(text.lower().split())
        _, _, after = self._lines.partition(f"\n{entry}\t")
        return tuple(after.partition("\n")[0].split("\t")) if after else ()
