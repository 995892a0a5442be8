"""Captions to token ids and back."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import hide_packages, real_pairs

from grr_coca.common.errors import UserError
from grr_coca.data.tokenizer import CLS_SLOT, Tokenizer, clip_bpe, train_bpe

CAPTIONS = [pair.caption for pair in real_pairs(60)]
PRINTABLE = st.characters(exclude_categories=("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(CAPTIONS, 400)


@pytest.fixture(scope="module")
def clip():
    return clip_bpe()


@pytest.fixture(params=["bpe", "clip"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def folded(text: str) -> str:
    """What a tokenizer keeps of a text: no case, one form of each letter, single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


# --- BPE trained on the captions at hand


@given(st.text(PRINTABLE, max_size=40).map(folded))
@example("don't stop: it's 25% off (€3.50)")
@example("japanese “prohibited” button, seven o’clock 🐱 \u0301 日本語")
def test_printable_text_round_trips(bpe, text):
    assert folded(bpe.decode(bpe.encode(text))) == folded(text)


def test_case_and_accent_encoding_are_ignored(bpe):
    assert bpe.encode("CAFE\u0301") == bpe.encode("caf\u00e9")


def test_training_twice_gives_the_same_file():
    assert train_bpe(CAPTIONS, 400).to_json() == train_bpe(iter(CAPTIONS), 400).to_json()


@pytest.mark.parametrize("vocab_size", [258, 300, 400])
def test_training_creates_at_most_the_requested_ids(vocab_size):
    assert 258 <= train_bpe(CAPTIONS, vocab_size).vocab_size <= vocab_size


@pytest.mark.parametrize("vocab_size", [-1, 0, 257])
def test_vocabulary_too_small_for_the_bytes_is_an_error(vocab_size):
    with pytest.raises(UserError, match=f"vocab_size must be at least 258, .* got {vocab_size}"):
        train_bpe(CAPTIONS, vocab_size)


# --- CLIP's vocabulary


@pytest.mark.parametrize(
    ("caption", "ids"),
    [
        # From open_clip's SimpleTokenizer, version 2.32.
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("Hello, World!", [3306, 267, 1002, 256]),
        ("  two   spaces\n", [1237, 9006]),
        ("don't stop: it's 25% off (€3.50)", [847, 713, 1691, 281, 585, 568, 273, 276, 260,
         1007, 7, 6309, 274, 269, 276, 271, 264]),
        ("i'm you're we've he'll they'd", [328, 880, 592, 982, 649, 1200, 797, 1342, 889, 1896]),
        ("café crème brûlée", [15304, 1075, 12138, 614, 711, 127, 119, 75, 13489]),
        ("naïve Ångström", [1097, 35689, 563, 23176, 10352, 807, 7255, 332]),
        ("a 🐱 cat 😀", [320, 22979, 2368, 7334]),
        ("👨\u200d👩\u200d👧 family", [25023, 26304, 964, 356, 1315]),
        ("日本語の本", [39121, 44353, 34002, 252, 21575, 19277, 361]),
        ("__init__.py @home", [3838, 42670, 2355, 269, 7504, 287, 1137]),
        ("½ x² ①", [33613, 343, 41175, 158, 239, 510]),
        ("men’s “shoes”", [1656, 568, 257, 4079, 257]),
        ("eight o’clock", [7910, 334, 262, 6716]),
    ],
)  # fmt: skip
def test_clip_ids_equal_those_of_clip(clip, caption, ids):
    assert clip.encode(caption) == ids


def test_clip_has_its_49408_ids_and_its_special_tokens(clip):
    assert (clip.vocab_size, clip.bos_id, clip.eos_id) == (49_408, 49_406, 49_407)


def test_clip_decodes_words_with_their_spaces(clip):
    assert clip.decode(clip.encode("A photo of a  café")) == "a photo of a café"


# --- Both


@pytest.mark.parametrize("caption", ["", "the [EOS] sign", "[BOS]", "<|endoftext|> <|startoftext|>"])
def test_special_tokens_in_captions_are_plain_text(tokenizer, caption):
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(tokenizer.encode(caption))


def test_row_is_begin_words_end_and_the_slot_of_cls(tokenizer):
    words = tokenizer.encode("red heart")
    assert tokenizer.encode_row("red heart", 40) == [tokenizer.bos_id, *words, tokenizer.eos_id, CLS_SLOT]


@pytest.mark.parametrize("context_length", [4, 5, 12])
def test_truncation_keeps_the_end_token_and_the_first_words(tokenizer, context_length):
    row = tokenizer.encode_row("violin " * 50, context_length)
    assert len(row) == context_length
    assert row[-2:] == [tokenizer.eos_id, CLS_SLOT]
    assert row[1:-2] == tokenizer.encode("violin " * 50)[: context_length - 3]


def test_caption_that_just_fits_is_not_cut(tokenizer):
    words = tokenizer.encode("red heart")
    assert tokenizer.encode_row("red heart", len(words) + 3)[1:-2] == words


def test_decoding_stops_at_the_first_end_token(tokenizer):
    ids = [tokenizer.bos_id, *tokenizer.encode("red"), tokenizer.eos_id, *tokenizer.encode("heart"), tokenizer.eos_id]
    assert tokenizer.decode(ids) == "red"


def test_json_form_gives_the_same_tokenizer_back(tokenizer):
    again = Tokenizer.from_json(tokenizer.to_json())
    assert (again.bos_id, again.eos_id, again.vocab_size) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size)
    for caption in CAPTIONS[:20]:
        assert again.encode(caption) == tokenizer.encode(caption)
        assert again.decode(again.encode(caption)) == tokenizer.decode(tokenizer.encode(caption))
    assert again.to_json() == tokenizer.to_json()


def test_rejects_a_tokenizer_without_an_end_token(bpe):
    with pytest.raises(UserError, match=r"no begin and end token; expected one of \[BOS\] and \[EOS\], "):
        Tokenizer.from_json(bpe.to_json().replace("[EOS]", "[END]"))


@pytest.mark.parametrize("text", ["", "{}", "not JSON"])
def test_corrupt_tokenizer_file_is_a_user_error(text):
    with pytest.raises(UserError, match="tokenizer"):
        Tokenizer.from_json(text)


def test_cleaning_as_open_clip_needs_ftfy_and_no_torch(monkeypatch):
    hide_packages(monkeypatch, "ftfy", "torch", "jaxtyping")
    with pytest.raises(UserError, match=r"cleaning texts as open_clip does needs ftfy; run: .* -m pip install ftfy$"):
        clip_bpe("ftfy").encode("a cat")


def test_rows_are_padded_to_the_longest_and_cut_at_the_context(tokenizer):
    captions = ["a cat", "a red heart " * 30, ""]
    token_ids, lengths = tokenizer.encode_rows(captions, 12)
    assert (token_ids.shape, token_ids.dtype.kind, lengths[1]) == ((3, 12), "i", 12)
    for row, length, caption in zip(token_ids.tolist(), lengths.tolist(), captions, strict=True):
        assert row[:length] == tokenizer.encode_row(caption, 12)
        assert set(row[length:]) <= {CLS_SLOT}
