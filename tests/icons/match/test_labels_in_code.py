"""Labels beside pictures in code, and the pictures that they are checked against."""

import json

import pytest
from icon_packages import put_package
from PIL import Image

import grr_coca
from grr_coca.common.errors import UserError
from grr_coca_icons.match.labelled_pictures import labelled_pictures
from grr_coca_icons.match.labels_in_code import labels_in_code

SQUARE = '<path d="M2 2h8v8h-8z"/>'


@pytest.fixture
def site(tmp_path):
    """A folder with pictures, and one beside it."""
    for name in ("site/a.png", "site/public/logo.svg", "site/docs/deep/b.png", "beside.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path / "site"


def labels(site, name: str, code: str) -> list[tuple[int, str, str]]:
    """Line, text and picture of each label of a file."""
    path = site / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")
    found = []
    for label in labels_in_code(site):
        assert label.file == str(path)
        image = label.image and label.image.resolve().relative_to(site).as_posix()
        icon = label.icon and f"{label.icon.prefix}:{label.icon.name}"
        found.append((label.line, label.text, image or icon or label.svg or ""))
    return found


@pytest.mark.parametrize(
    ("name", "code", "found"),
    [
        ("x.html", '<p>\n<img src="a.png" alt="A cat &amp;\n a dog">', [(2, "A cat & a dog", "a.png")]),
        ("x.html", "<IMG alt='a cat' class=\"big\" src='a.png?v=2#top'>", [(1, "a cat", "a.png")]),
        ("x.jsx", "<Image src={'/logo.svg'} alt={`a logo`} />", [(1, "a logo", "public/logo.svg")]),
        ("docs/x.html", '<img src="deep/b.png" title="a bird">', [(1, "a bird", "docs/deep/b.png")]),
        ("x.md", 'A\n\n![a cat](a.png "its title") ![a dog](<docs/deep/b.png>)', [(3, "a cat", "a.png"),
                                                                              (3, "a dog", "docs/deep/b.png")]),
        ("x.html", "![a cat](a.png)", []),
        ("x.html", '<img src="a.png" alt=""> <img src="a.png"> <img alt="a cat">', []),
        ("x.html", '<img src="https://example.org/a.png" alt="a"> <img src="//example.org/a.png" alt="a">', []),
        ("x.html", '<img src="gone.png" alt="a"> <img src="../gone.png" alt="a"> <img src="x.md" alt="a">', []),
        ("x.html", '<img src="../beside.png" alt="a cat"> <img src="/../beside.png" title="b">', [(1, "a cat", ""),
                                                                                               (1, "b", "")]),
        ("x.html", f'<img src="{"a" * 300}.png" alt="a"> <img src="/{"a" * 300}.png" alt="a">', []),
        ("x.jsx", '<img src={source} alt="a cat" /> <img src="a.png" alt={`a ${thing}`} />', []),
    ],
)  # fmt: skip
def test_label_of_an_image_of_the_site_is_found(site, name, code, found):
    assert labels(site, name, code) == found


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (f'<svg aria-label="a box">{SQUARE}</svg>', "a box"),
        (f"<svg><title>a box</title>{SQUARE}</svg>", "a box"),
        (f'<button class="b" aria-label="Pack">\n  <svg>{SQUARE}</svg></button>', "Pack"),
        (f'<button aria-label="Pack">text <svg>{SQUARE}</svg></button>', None),
        ('<svg aria-label="a box"><use href="#box"/></svg>', None),
        ('<svg aria-label="a box"><path d={path}/></svg>', None),
        (f"<svg>{SQUARE}</svg>", None),
    ],
)
def test_inline_svg_uses_its_label_or_its_parents(site, code, text):
    found = labels(site, "x.jsx", code)
    assert [label for _, label, _ in found] == ([] if text is None else [text])
    assert all(svg.startswith('<svg xmlns="http://www.w3.org/2000/svg"') and SQUARE in svg for _, _, svg in found)


def test_inline_svg_of_jsx_becomes_svg(site):
    code = '<svg xmlns="x" className="i" strokeWidth="2" fillRule="evenodd"><title>a</title></svg>'
    ((_, _, svg),) = labels(site, "x.jsx", code)
    assert svg.startswith('<svg xmlns="x" class="i" stroke-width="2" fill-rule="evenodd">')


def test_images_of_given_folders_and_of_the_repository_are_found(site):
    """`lint icons src` opens the icons that `src` refers to. `lint src` opens files of its repository."""
    part, beside = site / "docs", site.parent / "beside.png"
    (part / "x.jsx").write_text(
        '<img src="../../beside.png" alt="a">\n<img src="../a.png" alt="b">\n<img src="/logo.svg" alt="c">'
    )

    def found(root, *folders):
        return [label.image and label.image.resolve() for label in labels_in_code(root, (), folders)]

    assert found(part) == [None, None]
    assert found(part, site) == [None, site / "a.png", site / "public/logo.svg"]
    assert found(part, site.parent)[:2] == [beside, site / "a.png"]
    (site / ".git").mkdir()
    assert found(part) == [None, site / "a.png", site / "public/logo.svg"]
    assert found(part / "x.jsx") == found(part), "pre-commit passes files"


LUCIDE = "import { Trash2, HomeIcon } from 'lucide-react'\n"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        (LUCIDE + '<Trash2 aria-label="Delete" />', [(2, "Delete", "lucide:Trash2")]),
        (LUCIDE + '<button title="Start"><HomeIcon size={20} /></button>', [(2, "Start", "lucide:Home")]),
        (LUCIDE + '<Widget aria-label="Delete" /> <Trash2 />', []),
        ('<input aria-label="Name"> <i class="bi bi-trash3"></i>', []),
        ('<img src="gone.png" alt="A logo">\n<i class="bi bi-trash3"></i>', []),
        ("import { PhTrash } from '@phosphor-icons/vue'\n<PhTrash title=\"Delete\" />", [(2, "Delete", "ph:Trash")]),
        (
            "import { TrashIcon } from '@heroicons/react/24/solid'\n<TrashIcon title=\"Delete\" />",
            [(2, "Delete", "heroicons:Trash-solid")],
        ),
        ("import { Trash2 as Bin } from 'lucide-react'\n<Bin title=\"Delete\" />", [(2, "Delete", "lucide:Trash2")]),
        ("import { Trash2 as Icon } from 'lucide-react'\n<Icon title=\"Delete\" />", [(2, "Delete", "lucide:Trash2")]),
        ("import { Trash2 as Bin } from 'lucide-react'\n<Trash2 title=\"Delete\" />", []),
        (
            "import DeleteIcon from '@mui/icons-material/DeleteOutlined'\n<DeleteIcon title=\"Delete\" />",
            [(2, "Delete", "ic:outline-Delete")],
        ),
        ("import Home from '~icons/mdi/home-outline'\n<Home title=\"Home\" />", [(2, "Home", "mdi:home-outline")]),
        ('<a aria-label="Delete"><i class="bi bi-trash3"></i></a>', [(1, "Delete", "bi:trash3")]),
        ('<Icon icon="mdi:home" title="Home" />', [(1, "Home", "mdi:home")]),
        ('<span aria-label="Delete">x</span>', []),
    ],
)
def test_label_of_an_icon_of_a_known_set_is_found(site, code, found):
    assert labels(site, "x.jsx", code) == found


def test_bound_attributes_of_vue_are_expressions(site):
    code = "<img src='../a.png' :alt=\"$t('a')\" v-bind:title='x' :aria-label='y'><img src='../a.png' alt='A'>"
    assert labels(site, "docs/x.vue", code) == [(1, "A", "a.png")]


# --- Their pictures


@pytest.fixture(scope="module")
def model():
    return grr_coca.load("icons")


@pytest.fixture
def lucide(tmp_path, monkeypatch):
    """The user's cache with a set of two icons."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    icons = {"trash-2": {"body": SQUARE}, "house": {"body": SQUARE}}
    content = {"prefix": "lucide", "icons": icons, "aliases": {"home": {"parent": "house"}}, "width": 12, "height": 12}
    put_package(content)


def pictures(model, *sources: object) -> tuple[list[tuple[tuple[str, ...], int]], list[str]]:
    """Texts and line of each picture with a label, and what could not be read."""
    failures: list[str] = []
    outside: list[str] = []
    found = []
    for one in labelled_pictures(list(map(str, sources)), [], model, failures, outside):
        assert one.image.size == (model.preprocess.image_size,) * 2
        found.append((one.texts, one.line))
    return found, failures + [f"outside: {place}" for place in outside]


def test_icons_in_code_are_found_in_their_set_under_any_name(model, lucide, tmp_path):
    page = tmp_path / "x.jsx"
    page.write_text(
        "import { Trash2, Home, Gone } from 'lucide-react'\n"
        '<Trash2 title="Delete" />\n<Home title="Start" />\n<Gone title="Nothing" />\n'
        '<Icon icon="mdi:home" title="of a set that is not here" />\n<Icon icon="mdi:heart" title="and again" />\n'
    )
    found, failures = pictures(model, page)
    assert found == [(("Delete",), 2), (("Start",), 3)]
    (failure,) = failures
    assert failure.startswith("iconify:mdi: not on this machine"), "the set is asked for once"


def test_label_sources_of_tables_sets_and_photographs(model, lucide, tmp_path):
    for name in ("red.png", "blue.png"):
        Image.new("RGB", (20, 20), name[:-4]).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no image")
    rows = "image,caption\nred.png,A red  wall\nblue.png,\nbroken.png,a door\n"
    (tmp_path / "pairs.csv").write_text(rows)
    found, failures = pictures(model, tmp_path / "pairs.csv")
    assert found == [(("A red  wall",), 0)]
    assert len(failures) == 1
    assert "broken.png" in failures[0]
    assert pictures(model, tmp_path / "red.png") == ([], [])
    found, failures = pictures(model, "iconify:lucide")
    assert ([texts for texts, _ in found], failures) == ([("house", "home")], []), "a number tells drawings apart"
    icons = {name: {"body": SQUARE} for name in ("house-outline", "percentage-40")}
    (tmp_path / "own.json").write_text(json.dumps({"prefix": "own", "icons": icons, "width": 12, "height": 12}))
    assert pictures(model, tmp_path / "own.json") == ([(("house",), 0)], [])


def test_images_outside_are_reported_and_not_opened(model, tmp_path):
    """Also if a link inside leads outside."""
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "secret.png").write_bytes(b"an error would show that this was read")
    (site / "link.png").symlink_to(tmp_path / "secret.png")
    page = site / "x.md"
    page.write_text("![a cat](../secret.png)\n![a dog](link.png)\n![](../secret.png)\n")
    assert pictures(model, site) == ([], [f"outside: {page}:1", f"outside: {page}:2"])


def test_empty_folders_and_missing_files_are_handled(model, tmp_path):
    (tmp_path / "empty").mkdir()
    assert pictures(model, tmp_path / "empty") == ([], [])
    assert pictures(model, tmp_path / "gone.svg") == ([], [f"{tmp_path}/gone.svg: no such file"])
    with pytest.raises(UserError, match="no image"):
        pictures(model, tmp_path / "*.webp")
    page = tmp_path / "x.html"
    page.write_text('<svg aria-label="a box"><path</svg>')
    found, failures = pictures(model, page)
    assert found == []
    assert failures[0].startswith(f"{page}:1: an SVG file that cannot be drawn")
