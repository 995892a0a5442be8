"""The tokenizer against Stanford's, which ran in Java when the table was recorded, and runs again where it can."""

import shutil

import pytest
from caption_sets import PUNCTUATION, java_table, real_captions
from hypothesis import given
from hypothesis import strategies as st
from record import java_tokens

from grr_coca.evaluate import ptb
from grr_coca.evaluate.ptb import rules, tokenize

WORD_LISTS = ["MONTHS_AND_DAYS", "STATES", "CAPITALIZED_STATES", "COMPANIES", "TITLES", "BEFORE_NUMBERS"]
WORD_LISTS += ["SENTENCE_STARTS", "TWO_WORDS", "KEPT_APOSTROPHES", "SYMBOLS"]
TABLES = ["BRACKETS", "FRACTIONS", "CURRENCIES", "ENTITIES"]


TABLE = java_table()


def a_probe_fails(containing: str = "") -> bool:
    """True if the tokens of a recorded input, of those that contain a text, are no longer the reference's."""
    return any(tokenize(text) != result for text, result in TABLE if containing.lower() in text.lower())


def test_recorded_table_holds_line_by_line():
    assert len(TABLE) >= 450
    wrong = {text: (tokenize(text), result) for text, result in TABLE if tokenize(text) != result}
    assert not wrong


# --- Nothing in it that no probe shows


@pytest.mark.ci
@pytest.mark.parametrize("name", [each.name for each in rules()])
def test_without_any_one_rule_a_probe_fails(name, monkeypatch):
    others = tuple(each for each in rules() if each.name != name)
    assert len(others) == len(rules()) - 1, "the name is that of one rule"
    monkeypatch.setattr(ptb, "rules", lambda: others)
    assert a_probe_fails()


@pytest.mark.parametrize("name", WORD_LISTS)
def test_without_any_one_word_of_a_list_a_probe_fails(name, monkeypatch):
    words = getattr(ptb, name).split()
    try:
        for word in words:
            monkeypatch.setattr(ptb, name, " ".join(other for other in words if other != word))
            rules.cache_clear()
            assert a_probe_fails(word.replace("-", "")), word
    finally:
        monkeypatch.undo()
        rules.cache_clear()


@pytest.mark.parametrize("name", TABLES)
def test_without_any_one_entry_of_a_table_a_probe_fails(name, monkeypatch):
    table = getattr(ptb, name)
    for key in table:
        with monkeypatch.context() as patch:
            patch.setitem(table, key, "?other")
            assert a_probe_fails(key), key


def test_without_any_one_mark_that_does_not_count_a_probe_fails(monkeypatch):
    for mark in ptb.PUNCTUATION:
        with monkeypatch.context() as patch:
            patch.setattr(ptb, "PUNCTUATION", ptb.PUNCTUATION - {mark})
            assert a_probe_fails(), mark


# --- Examples


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man's dog isn't here.", "a man 's dog is n't here"),
        ("It can't, won't and shan't: cannot!", "it ca n't wo n't and sha n't can not"),
        ("“Quoted” and ‘single’ it’s", "quoted and single it 's"),
        ("wait... no -- yes – why — ok…", "wait no yes why ok"),
        ("U.S. and e.g. Mr. Smith, vs. him etc.", "u.s. and e.g. mr. smith vs. him etc."),
        ("$5 £10 €20 50% 1,000.50 12:30", "$ 5 # 10 $ 20 50 % 1,000.50 12:30"),
        ("½ cup, 3/4 cup", "1/2 cup 3/4 cup"),
        ("a (big) [cat]", "a -lrb- big -rrb- -lsb- cat -rsb-"),
        ("t-shirt black-and-white and/or", "t-shirt black-and-white and/or"),
        ("www.foo.com https://a.b/c?d=e me@foo.com #cat @dog", "www.foo.com https://a.b/c?d=e me@foo.com #cat @dog"),
        ("a cat 😀 ♥ ❤", "a cat ♥ ❤"),
        ("what?! really!!", "what ?! really !!"),
        ("caf\u00e9 na\u00efve \u6f22\u5b57 soft\u00adly", "café naïve 漢字 softly"),
        ("Gonna! I'd've y'all 'em '90s o'clock", "gon na i 'd 've y' all 'em '90s o'clock"),
    ],
)
def test_tokens_of_each_kind_of_text(caption, tokens):
    assert tokenize(caption) == tokens.split(" ")


def test_mixed_fraction_is_one_token_with_an_unbreakable_space():
    assert tokenize("1 1/2 cups") == ["1\u00a01/2", "cups"]


@pytest.mark.parametrize("nothing", ["", " ", "\n", "...", "'", "\U0001f600", "\u200b"])
def test_text_without_words_has_no_tokens(nothing):
    assert tokenize(nothing) == []


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\u2028", "\x0b"])
def test_line_break_is_a_space(newline):
    assert tokenize(f"a red{newline}cat{newline}") == ["a", "red", "cat"]


# --- Any text


# Unicode's own table of characters, which `st.text` works out, takes two seconds.
CHARACTERS = st.sampled_from([chr(code) for code in (*range(0x20, 0x2800), *range(0x1F300, 0x1F700))])


@given(st.lists(CHARACTERS, max_size=60).map("".join))
def test_any_text_gives_lower_case_tokens_without_spaces(text):
    for token in tokenize(text):
        assert token
        assert " " not in token
        assert token not in PUNCTUATION


@given(st.lists(st.sampled_from(["a", "dog", "runs", "Big", "hats"]), max_size=12))
def test_plain_words_are_their_own_tokens(words):
    assert tokenize(" ".join(words)) == [word.lower() for word in words]


# --- In Java


def counted(result: str) -> list[str]:
    return [token for token in result.split(" ") if token and token not in PUNCTUATION]


@pytest.mark.skipif(shutil.which("java") is None, reason="no Java")
def test_matches_java_on_every_caption_of_the_corpora():
    pytest.importorskip("pycocoevalcap")
    captions = real_captions()
    for caption, result in zip(captions, java_tokens(captions), strict=True):
        assert tokenize(caption) == counted(result)


@pytest.mark.skipif(shutil.which("java") is None, reason="no Java")
def test_next_line_decides_if_a_point_ends_a_sentence():
    pytest.importorskip("pycocoevalcap")
    captions = ["the letter A.", "at 5 p.m.", "etc.", "a dog."]
    alone, before_the = (list(map(counted, java_tokens(captions, between))) for between in ("x", "The cat"))
    assert list(map(tokenize, captions)) == alone
    assert before_the == [["the", "letter", "a"], *alone[1:]]
