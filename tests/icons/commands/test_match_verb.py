"""`match` and `lint` from the command line, on tiny icon sets."""

import csv
import io
import json
import re

import pytest
from icon_packages import put_package

from grr_coca.cli import progress
from grr_coca_search.index import Index

STROKE = 'fill="none" stroke="currentColor" stroke-width="2"'
TRASH = f'<path d="M4 7h16M10 11v6M14 11v6M5 7l1 12h12l1-12M9 7V4h6v3" {STROKE}/>'
HOME = f'<path d="M3 12l9-9l9 9M5 10v10h14V10" {STROKE}/>'
MOON = f'<path d="M12 3a9 9 0 1 0 9 9a7 7 0 0 1-9-9" {STROKE}/>'
HEART = f'<path d="M12 20L4 12a5 5 0 1 1 8-6a5 5 0 1 1 8 6z" {STROKE}/>'
SCRIBBLE = f'<path d="M3 3l17 6L5 14l14 6M4 19l8-17l3 19M20 2l-9 9l2 3" {STROKE}/>'


def svg(body: str) -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24">{body}</svg>'


def icon_set(prefix: str, icons: dict[str, str], hidden: tuple[str, ...] = ()) -> str:
    bodies = {name: {"body": body, "hidden": name in hidden} for name, body in icons.items()}
    info = {"name": prefix, "license": {"spdx": "MIT"}}
    return json.dumps({"prefix": prefix, "info": info, "icons": bodies, "width": 24, "height": 24})


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """One cache for all tests: the same drawings are embedded once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "match-cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def sets(tmp_path):
    """A folder of SVG, and an Iconify set of the same things with other names."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, body in {"trash": TRASH, "home": HOME, "moon": MOON}.items():
        (folder / f"{name}.svg").write_text(svg(body))
    other = tmp_path / "other.json"
    other.write_text(icon_set("other", {"trash": TRASH, "house": HOME, "night": MOON, "like": HEART}))
    return folder, other


def test_each_icon_has_a_line_with_its_candidates(grr_coca, sets):
    result = grr_coca("match", *sets)
    assert result.code == 0
    lines = result.out.splitlines()
    assert [line.split(":")[1] for line in lines] == ["home", "moon", "trash"]
    assert re.match(r"mine:trash: other:trash \d+% shared name", lines[2])
    assert "3 images: " in result.err


def test_progress_of_each_library_ends_at_its_own_total(grr_coca, sets, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1)
    result = grr_coca("match", *sets)
    assert re.findall(r"embedded: (\d+)%", result.err) == ["100", "100"]


def test_json_lines_are_as_programs_expect_them(grr_coca, sets):
    result = grr_coca("match", *sets, "--json", "-n", 2)
    records = [json.loads(line) for line in result.out.splitlines()]
    assert [record["icon"] for record in records] == ["mine:home", "mine:moon", "mine:trash"]
    first = records[2]["matches"][0]
    assert (first["icon"], first["same_name"]) == ("other:trash", True)
    assert 0 <= first["probability"] <= 1
    assert all(len(record["matches"]) <= 2 for record in records)


def test_written_map_is_used_as_decided(grr_coca, sets, tmp_path):
    path = tmp_path / "map.json"
    assert grr_coca("match", *sets, "--out", path).code == 0
    written = json.loads(path.read_text())
    assert written["format"] == 1
    assert written["icons"]["mine:trash"] == "other:trash"
    written["icons"]["mine:trash"] = "other:like"
    written["icons"]["mine:moon"] = None
    path.write_text(json.dumps(written))
    result = grr_coca("match", *sets, "--decided", path, "--json")
    records = {record["icon"]: record["matches"] for record in map(json.loads, result.out.splitlines())}
    assert records["mine:trash"][0]["icon"] == "other:like"
    assert records["mine:moon"] == []


def test_table_has_a_row_for_each_candidate(grr_coca, sets, tmp_path):
    path = tmp_path / "matches.csv"
    grr_coca("match", *sets, "--out", path)
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert {row["icon"] for row in rows} == {"mine:home", "mine:moon", "mine:trash"}
    assert next(row["match"] for row in rows if row["icon"] == "mine:trash") == "other:trash"


def test_review_page_is_one_file_and_escapes_icon_text(grr_coca, tmp_path):
    hostile = tmp_path / "hostile.json"
    hostile.write_text(icon_set("x", {"</script><script>alert(1)</script>": TRASH, "home": HOME}))
    other = tmp_path / "other.json"
    other.write_text(icon_set("other", {"trash": TRASH, "house": HOME}))
    page = tmp_path / "review.html"
    assert grr_coca("match", hostile, other, "--out", page).code == 0
    content = page.read_text()
    assert "alert(1)</script>" not in content
    assert content.count("<script") == 2
    assert not re.search(r"(src|href)=[\"']https?:", content)
    data = json.loads(re.search(r'id="data">(.*?)</script>', content, re.DOTALL)[1])
    assert {row["name"] for row in data["rows"]} == {"x:</script><script>alert(1)</script>", "x:home"}
    assert all(image.startswith("data:image/svg+xml;base64,") for image in data["images"])
    assert [one["name"] for one in data["others"]] == ["other:trash", "other:house"]


def test_review_counts_safe_icons_and_shows_uses(grr_coca, tmp_path, packages):
    code = tmp_path / "a.tsx"
    code.write_text("import { Heart, House, Trash2 } from 'lucide-react'\n")
    page = tmp_path / "review.html"
    decided = tmp_path / "map.json"
    decided.write_text('{"House": "home"}')
    command = ("match", "--used-in", code, "iconify:tabler", "--out", page, "--decided", decided)
    assert grr_coca(*command).code == 0
    content = page.read_text()
    rows = json.loads(re.search(r'id="data">(.*?)</script>', content, re.DOTALL)[1])["rows"]
    assert [(row["name"], row["safe"]) for row in rows] == [
        ("lucide:heart", False),
        ("lucide:trash-2", True),
        ("lucide:house", True),
    ]
    assert rows[0]["used"] == [f"{code}:1"]
    assert "2 safe, 1 to review" in content


def test_manually_written_table_is_checked(grr_coca, sets, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("from,to\nmine:trash,other:trash\nhome,hous\n")
    result = grr_coca("match", *sets, "--check", table)
    assert result.code == 1
    assert result.out == "home → hous: unknown icon 'other:hous'; did you mean 'other:house'?\n"
    table.write_text("mine:trash,other:trash\n")
    assert grr_coca("match", *sets, "--check", table).code == 0


def test_indexes_are_matched_as_sources_are(grr_coca, sets, tmp_path):
    for source, name in zip(sets, ("a", "b"), strict=True):
        assert grr_coca("index", source, "--out", tmp_path / name).code == 0
    from_sources = grr_coca("match", *sets, "--json").out
    from_indexes = grr_coca("match", tmp_path / "a", tmp_path / "b", "--json").out
    firsts = [[json.loads(line)["matches"][:1] for line in out.splitlines()] for out in (from_sources, from_indexes)]
    assert [[one["icon"] for one in first] for first in firsts[0]] == [
        [one["icon"] for one in first] for first in firsts[1]
    ]
    with Index.open(tmp_path / "a") as one, Index.open(tmp_path / "b") as other:
        assert [match.name for match in one.match(other)] == ["mine:home", "mine:moon", "mine:trash"]


def test_index_of_another_model_reports_one_line(grr_coca, sets, tmp_path):
    for model in ("icons", "pictograms"):
        assert grr_coca("index", sets[0], "--out", tmp_path / model, "-c", model).code == 0
    result = grr_coca("match", tmp_path / "icons", tmp_path / "pictograms")
    assert result.code == 2
    assert "whose embeddings are not comparable" in result.err
    assert result.err.count("\n") == 1
    of_pictograms = grr_coca("match", tmp_path / "pictograms", tmp_path / "pictograms", "--json")
    first = json.loads(of_pictograms.out.splitlines()[0])
    assert first["matches"][0] == {"icon": first["icon"], "probability": None, "same_name": False}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Packages of Iconify in the cache: lucide and tabler."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for prefix, icons in {
        "lucide": {"trash-2": TRASH, "house": HOME, "heart": HEART},
        "tabler": {"trash": TRASH, "home": HOME, "moon": MOON},
    }.items():
        put_package(json.loads(icon_set(prefix, icons)))


def test_icons_that_code_uses_are_matched_with_file_and_line(grr_coca, sets, tmp_path, packages):
    (tmp_path / "app.tsx").write_text("\nimport { Trash2, Nonsense } from 'lucide-react'\n")
    result = grr_coca("match", "--used-in", tmp_path / "app.tsx", sets[1], "--json")
    (record,) = map(json.loads, result.out.splitlines())
    assert record["icon"] == "lucide:trash-2"
    assert record["used"] == [f"{tmp_path}/app.tsx:2"]
    assert record["matches"][0]["icon"] == "other:trash"
    assert f"{tmp_path}/app.tsx:2: lucide has no icon 'Nonsense'" in result.err


def test_code_is_rewritten_as_decided_and_as_is_likely(grr_coca, tmp_path, packages):
    code = tmp_path / "app" / "a.tsx"
    code.parent.mkdir()
    code.write_text("import { Heart, House, Trash2 } from 'lucide-react'\n")
    decided = tmp_path / "map.json"
    decided.write_text('{"lucide:house": "tabler:moon"}')
    command = ("match", "--used-in", code.parent, "iconify:tabler", "--decided", decided, "--apply")
    after = "import { Heart } from 'lucide-react'\nimport { IconMoon, IconTrash } from '@tabler/icons-react'\n"
    shown = grr_coca(*command, "--dry-run")
    assert "".join(f"+{line}\n" for line in after.splitlines()) in shown.out
    assert re.search(r"a\.tsx:1: lucide:heart → (none|tabler:\w+ \d+%, not applied)\n", shown.out)
    assert "would replace 2 names in 1 file; unchanged: 1 location, listed above" in shown.err
    assert code.read_text() == "import { Heart, House, Trash2 } from 'lucide-react'\n"
    assert grr_coca(*command).code == 0
    assert code.read_text() == after
    assert "replaced 0 names in 0 files" in grr_coca(*command).err
    code.write_text(after.partition("\n")[2])
    assert grr_coca(*command).err == "nothing to match: the code uses only icons of tabler\n"


def test_two_icons_of_a_file_that_become_one_are_named(grr_coca, tmp_path, packages):
    code = tmp_path / "app" / "a.tsx"
    code.parent.mkdir()
    code.write_text("import { House, Trash2 } from 'lucide-react'\n")
    decided = tmp_path / "map.json"
    decided.write_text('{"lucide:house": "tabler:trash"}')
    result = grr_coca("match", "--used-in", code.parent, "iconify:tabler", "--decided", decided, "--apply", "--dry-run")
    assert f"{code}: lucide:house and lucide:trash-2 become one icon, tabler:trash\n" in result.out


def test_retired_icons_are_replaced_but_never_suggested(grr_coca, tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(icon_set("old", {"trash": TRASH, "home": HOME, "moon": MOON}, hidden=("trash",)))
    theirs = {"bin": TRASH, "trash": TRASH, "house": HOME, "night": MOON, "like": HEART}
    new.write_text(icon_set("new", theirs, hidden=("bin",)))
    result = grr_coca("match", old, new, "--json")
    found = {one["icon"]: one["matches"] for one in map(json.loads, result.out.splitlines())}
    assert found["old:trash"][0]["icon"] == "new:trash"
    assert "new:bin" not in result.out
    table = tmp_path / "table.csv"
    table.write_text("Trash,new:Trash\n")
    assert grr_coca("match", old, new, "--check", table).code == 0


def test_apply_options_without_apply_report_one_line(grr_coca, sets):
    assert "require --apply" in grr_coca("match", *sets, "--dry-run").err
    assert "--used-in" in grr_coca("match", *sets, "--apply").err
    assert "from 0 to 1" in grr_coca("match", *sets, "--min-probability", 2).err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{mine}", "iconify:luicde"], "did you mean 'lucide'"),
        (["{mine}", "{other}", "--decided", "{foreign}"], "this map is for other icons"),
        (["{mine}", "{empty}"], "empty drawing"),
    ],
)
def test_invalid_use_reports_one_line(grr_coca, sets, tmp_path, arguments, message):
    (tmp_path / "empty.svg").write_text(svg(""))
    (tmp_path / "foreign.json").write_text('{"mdi:home": "ph:house"}')
    places = {"mine": sets[0], "other": sets[1], "empty": tmp_path / "empty.svg", "foreign": tmp_path / "foreign.json"}
    result = grr_coca("match", *(word.format(**places) for word in arguments))
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


def test_duplicate_icon_names_are_reported(grr_coca, sets, tmp_path):
    again = tmp_path / "again.json"
    again.write_text(icon_set("other", {"trash": HEART, "new": HEART}))
    result = grr_coca("match", *sets, again, "--json")
    assert "other:trash: duplicate name; the first image is used" in result.err


def test_shadcn_map_has_components_of_likely_and_chosen_pairs(grr_coca, sets, tmp_path):
    lucide, tabler = tmp_path / "lucide.json", tmp_path / "tabler.json"
    lucide.write_text(icon_set("lucide", {"trash-2": TRASH, "house": HOME, "heart": HEART}))
    tabler.write_text(icon_set("tabler", {"trash": TRASH, "home": HOME, "moon": MOON}))
    decided = tmp_path / "map.json"
    decided.write_text(json.dumps({"lucide:heart": None, "lucide:house": "tabler:moon"}))
    out = tmp_path / "icons" / "index.json"
    out.parent.mkdir()
    assert grr_coca("match", lucide, tabler, "--decided", decided, "--out", out).code == 0
    assert json.loads(out.read_text()) == {
        "House": {"lucide": "House", "tabler": "IconMoon"},
        "Trash2": {"lucide": "Trash2", "tabler": "IconTrash"},
    }
    result = grr_coca("match", lucide, sets[1], "--out", out)
    assert result.code == 2
    assert "shadcn supports only icons of lucide, tabler, ph, ri, radix-icons" in result.err


# --- lint


@pytest.fixture
def swapped(tmp_path):
    folder = tmp_path / "icons"
    folder.mkdir()
    for name, body in {"trash": TRASH, "home": HOME, "moon": MOON, "shopping-cart": HEART}.items():
        (folder / f"{name}.svg").write_text(svg(body))
    return folder


def test_name_that_contradicts_its_image_is_found(grr_coca, swapped):
    result = grr_coca("lint", swapped, "--json")
    assert result.code == 1
    (found,) = map(json.loads, result.out.splitlines())
    assert found["label"] == "shopping cart"
    assert found["file"].endswith("shopping-cart.svg")
    assert found["suggestions"]
    (swapped / "shopping-cart.svg").rename(swapped / "heart.svg")
    assert grr_coca("lint", swapped).code == 0


def test_unknown_words_and_images_are_skipped(grr_coca, swapped):
    (swapped / "shopping-cart.svg").rename(swapped / "heart.svg")
    (swapped / "shopping-cart.svg").write_text(svg(SCRIBBLE))
    (swapped / "peerlist.svg").write_text(svg(HOME))
    result = grr_coca("lint", swapped)
    assert result.code == 0
    assert "image: 0 of 5; with words or images that the model does not know: 1\n" in result.err


def test_words_that_training_had_only_as_tags_are_not_judged(grr_coca, tmp_path):
    """The name of a tick may express what it means."""
    for name in ("yes", "check"):
        (tmp_path / f"{name}.svg").write_text(svg(f'<path d="M20 6L9 17l-5-5" {STROKE}/>'))
    result = grr_coca("lint", tmp_path)
    assert result.code == 0
    assert "image: 0 of 1; with words or images that the model does not know: 1\n" in result.err


def test_labels_in_code_are_checked_and_empty_ones_skipped(grr_coca, swapped, tmp_path):
    (swapped / "shopping-cart.svg").rename(swapped / "heart.svg")
    page = tmp_path / "icons" / "page.html"
    page.write_text(
        '<img src="home.svg" alt="shopping cart">\n<img src="home.svg" alt="">\n<img src="home.svg" alt="home">\n'
        f'<button aria-label="trash">{svg(TRASH)}</button>\n'
        f'<button aria-label="user">{svg(HEART)}</button>\n<img src="https://example.org/a.png" alt="bicycle">\n'
    )
    result = grr_coca("lint", page, "--json")
    found = [json.loads(line) for line in result.out.splitlines()]
    assert [(one["label"], one["line"]) for one in found] == [("shopping cart", 1), ("user", 5)]


def test_images_that_are_not_in_the_given_folders_are_counted(grr_coca, swapped, tmp_path):
    code = tmp_path / "src" / "app.jsx"
    code.parent.mkdir()
    code.write_text('<img src="../icons/home.svg" alt="shopping cart"/>\n<img src="../icons/home.svg" alt="home"/>')
    result = grr_coca("lint", code.parent)
    assert result.code == 0
    assert f"0 of 0; not checked, with images outside the given folders: 2 ({code}:1, …)\n" in result.err
    result = grr_coca("lint", swapped, code.parent)
    assert result.code == 1
    assert f"{code}:1: “shopping cart” does not match" in result.out
    assert "image: 2 of 6\n" in result.err


@pytest.mark.ci
def test_known_findings_are_excluded(grr_coca, swapped, tmp_path):
    baseline = tmp_path / "known.json"
    assert grr_coca("lint", swapped, "--baseline", baseline, "--update-baseline").code == 0
    result = grr_coca("lint", swapped, "--baseline", baseline)
    assert result.code == 0
    assert "labels that contradict their image: 0 of 4; in the baseline: 1" in result.err


def test_findings_as_sarif(grr_coca, swapped, tmp_path):
    path = tmp_path / "lint.sarif"
    grr_coca("lint", swapped, "--out", path)
    content = json.loads(path.read_text())
    assert content["version"] == "2.1.0"
    (result,) = content["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].endswith("shopping-cart.svg")
    assert result["ruleId"] == content["runs"][0]["tool"]["driver"]["rules"][0]["id"]
