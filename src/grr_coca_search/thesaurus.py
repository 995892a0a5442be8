"""Words that a model knows for words and phrases that it does not know, such as `delete` and `trash` for "throw away".

Icon names, on which a model was trained, describe objects and few actions. A sentence encoder found the words in
advance (`scripts/fit_thesaurus.py`). They are in a text file next to the weights: sorted lines of an entry and its
words, the closest first, separated by tabs.
"""

from pathlib import Path

from grr_coca.common.errors import UserError
from grr_coca.model.checkpoint_files import THESAURUS


class Thesaurus:
    """Related words of a model.

    Args:
        lines: Content of the file.
    """

    def __init__(self, lines: str) -> None:
        self._lines = lines.rstrip("\n") + "\n"

    @classmethod
    def of_model(cls, folder: Path) -> "Thesaurus":
        """Return the related words of the model in a folder; empty if the folder has none.

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
        """Return known words close to a text, the closest first; empty if the model knows the text, or the file does
        not have it.
        """
        entry = " ".join(text.lower().split())
        low, high = 0, len(self._lines)
        while low < high:  # the lines are sorted; `low` is at the beginning of a line
            start = max(low, self._lines.rfind("\n", low, (low + high) // 2) + 1)
            end = self._lines.find("\n", start)
            found, *words = self._lines[start:end].split("\t")
            if found == entry:
                return tuple(words)
            low, high = (end + 1, high) if found < entry else (low, start)
        return ()
