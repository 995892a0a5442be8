"""Words of file names and queries, and their effect on the ranking."""

import shutil
from dataclasses import replace

import pytest
from support import DATASETS

from grr_coca.data.tokenizer import split_name, words_of
from grr_coca_search.index import Index
from grr_coca_search.query import NameQuery, has_words, query_terms, split_identifier

DRAWINGS = DATASETS.parent / "docs" / "drawings"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ShoppingCart", ["shopping", "cart"]),
        ("shopping-cart", ["shopping", "cart"]),
        ("lucide:shopping_cart", ["lucide", "shopping", "cart"]),
        ("number72", ["number", "72"]),
        ("Café noir", ["cafe", "noir"]),
        ("北京 大学", ["北京", "大学"]),
        ("…", []),
    ],
)
def test_names_are_split_into_words(text, words):
    assert words_of(text) == words


def test_name_query_is_split_into_words():
    assert (
        split_identifier("ShoppingCart")
        == split_identifier("shopping-cart")
        == split_identifier("mdi:ShoppingCart")
        == "shopping cart"
    )
    assert split_identifier("a red T-shirt") == "a red T-shirt"
    assert split_identifier("home") == "home"
    assert NameQuery.of("mdi:home") == ("mdi", ("home",))
    assert NameQuery.of("ShoppingCart").matches_name("lucide:shopping-cart")
    assert not NameQuery.of("cart").matches_name("shopping-cart")


def test_plurals_and_stop_words_do_not_change_hits():
    assert has_words(query_terms("the boxes of a city"), ["box-city"])
    assert has_words(query_terms("cart"), ["ShoppingCarts"])
    assert has_words(query_terms("shoppingcart"), ["ShoppingCart"])
    assert not has_words(query_terms("shopping cart"), ["cart"])
    assert not has_words(frozenset(), ["cart"])


def test_only_names_without_separators_are_split():
    assert split_name("ShoppingCart") == "shopping cart"
    assert split_name("shopping-cart_2") == ""


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Drawings under names that say nothing of what they show: the search must go by the names."""
    folder = tmp_path_factory.mktemp("icons")
    pictures = sorted(DRAWINGS.glob("*.webp"))
    for name, picture in zip(
        ("lucide/ShoppingCart", "lucide/cart", "mdi/shopping-cart-off", "mdi/home", "lucide/home", "mdi/other"),
        pictures,
        strict=True,
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(picture, folder / f"{name}.webp")
    with Index.open(tmp_path_factory.mktemp("index") / "index", create=True) as index:
        index.add(folder)
        yield index


def found(index: Index, query: str) -> list[str]:
    return [f"{hit.entry.folder}/{hit.entry.title}" for hit in index.search(query, fold=False)]


@pytest.mark.parametrize("query", ["ShoppingCart", "shopping-cart", "lucide:shopping-cart", "shopping cart"])
def test_exact_names_come_first_then_names_with_all_words(named, query):
    assert found(named, query)[:2] == ["lucide/ShoppingCart", "mdi/shopping-cart-off"]


def test_user_text_ranks_above_image_content(tmp_path):
    """The guitar looks like the word, and its caption has it. A person has put the word beside the snowman."""
    for drawing, name in {"guitar": "first", "snowman": "my guitar teacher"}.items():
        shutil.copy(DRAWINGS / f"{drawing}.webp", tmp_path / f"{name}.webp")
    with Index.open(tmp_path / "index", create=True) as index:
        index.add(tmp_path)
        assert [hit.entry.title for hit in index.search("guitar")] == ["my guitar teacher", "first"]


def test_set_before_a_colon_decides_between_equal_names(named):
    assert found(named, "mdi:home")[:2] == ["mdi/home", "lucide/home"]
    assert found(named, "lucide:home")[:2] == ["lucide/home", "mdi/home"]


def test_matching_names_never_give_no_match(named):
    """The drawings look like anything but their names."""
    for query in ("shopping cart", "home"):
        result = named.search(query)
        assert result.verdict == "likely"
        assert result[0].has_words
        assert result[0].relevance >= 0.9
    assert named.search("tax return form").verdict == "nothing"


def test_hits_are_less_likely_behind_several_that_are(named):
    result = named.search("shopping cart", fold=False)
    first = result.hits[0]

    def likely(*relevances: float) -> int:
        return replace(
            result, can_tell=True, hits=tuple(replace(first, relevance=one) for one in relevances)
        ).num_likely

    assert likely(0.9, 0.05, 0.3, 0.05) == 3
    assert likely(0.9, 0.05, 0.05, 0.05, 0.05, 0.05, 0.9) == 1
    assert likely(0.05, 0.02) == 2, "none is likely: all is said above"
