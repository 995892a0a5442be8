"""Words that a model knows, in place of a text that it does not know."""

import numpy as np
import pytest

from grr_coca.common.errors import UserError
from grr_coca.model.checkpoint_files import THESAURUS, bundled_folder
from grr_coca_search.index import Index
from grr_coca_search.query import Thesaurus

LINES = "fall asleep\tsleep\tbed\nthrow away\tdelete\ttrash\nthrow away food\twaste\n"


def test_text_is_looked_up_whole():
    words = Thesaurus(LINES)
    assert words.related("throw away") == ("delete", "trash")
    assert words.related("  Throw   AWAY ") == ("delete", "trash")
    assert words.related("fall asleep") == ("sleep", "bed")
    assert words.related("throw away food") == ("waste",)
    assert [words.related(text) for text in ("throw", "away", "delete", "asleep", "", "throw away f")] == [()] * 6


def test_each_entry_is_found_at_any_position():
    path = bundled_folder("icons") / THESAURUS
    text = path.read_text(encoding="utf-8")
    for words in (Thesaurus(text), Thesaurus(text.rstrip("\n"))):
        for line in text.splitlines()[::97] + text.splitlines()[-1:]:
            entry, *related = line.split("\t")
            assert words.related(entry) == tuple(related)


def test_model_may_lack_the_file(tmp_path):
    assert Thesaurus.of_model(tmp_path).related("throw away") == ()
    (tmp_path / THESAURUS).write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"thesaurus\.txt: cannot be read as UTF-8 text"):
        Thesaurus.of_model(tmp_path)


def test_bundled_file_has_six_words_for_each_entry():
    path = bundled_folder("icons") / THESAURUS
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    entries = [entry for entry, *_ in rows]
    assert entries == sorted(set(entries))
    assert {len(set(words)) for _, *words in rows} == {6}
    assert "trash" not in entries  # the model knows it


def test_bundled_file_associates_nothing_with_people():
    """A sentence encoder finds a religion close to crimes, and an origin close to animals."""
    text = (bundled_folder("icons") / THESAURUS).read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()]
    assert not {"terrorist", "mexican", "jew", "savage", "cripple"} & {entry for entry, *_ in rows}
    related = {word for _, *captions in rows for caption in captions for word in caption.split()}
    assert not related & {"muslim", "islam", "jewish", "transgender", "race", "chinese", "woman", "disabled"}


def test_phrase_finds_the_same_as_its_words(tmp_path):
    """A set of four icons, whose file names say nothing."""
    shapes = {
        "1": '<path d="M6 18V6l4 6 4-6v12"/>',
        "2": '<path d="M3 6h18M8 6V4h8v2M5 6l1 15h12l1-15M10 11v6M14 11v6"/>',
        "3": '<path d="M3 11l9-8 9 8v10h-6v-7h-6v7H3z"/>',
        "4": '<circle cx="11" cy="11" r="8"/><path d="M21 21l-4-4"/>',
        "5": '<path d="M12 21C5 15 3 12 3 8a5 5 0 0 1 9-2 5 5 0 0 1 9 2c0 4-2 7-9 13z"/>',
        "6": '<path d="M20 6L9 17l-5-5"/>',
    }
    for name, shape in shapes.items():
        style = 'viewBox="0 0 24 24" fill="none" stroke="black" stroke-width="2"'
        (tmp_path / f"{name}.svg").write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {style}>{shape}</svg>')
    with Index.open(tmp_path / "index", create=True) as index:
        index.add(tmp_path)
        found = index.search("throw away", n=6)
        index.model.thesaurus = Thesaurus("")
        without = index.search("throw away", n=6)
    place = [next(number for number, hit in enumerate(hits) if hit.path.endswith("2.svg")) for hits in (found, without)]
    assert place[0] == 0 < place[1]
    assert np.linalg.norm(found.vector) == pytest.approx(1, abs=1e-5)
