"""Clean texts, and convert captions to token ids and back.

A tokenizer is a BPE tokenizer that was trained on captions, CLIP's tokenizer, or a tokenizer from any `tokenizer.json`.
"""

import functools
import html
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Literal

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from grr_coca.common.errors import UserError, pip_install_command
from grr_coca.common.shapes import Int
from grr_coca.data.sources.base import BadSample, Cause, stable_id

# --- Texts: cleaning of captions, queries and prompts, and splitting of names into words


def clean_caption(caption: str, name: str) -> str:
    """Clean a caption: separate its words by single spaces, and remove other spaces.

    Raises:
        BadSample: If the caption is empty, or cannot be encoded as UTF-8. The message names the pair.
    """
    caption = collapse_spaces(caption, f"{name}: the caption")
    if not caption:
        raise BadSample(f"{name}: the caption is empty; add a word or remove the pair", Cause.EMPTY_CAPTION)
    return caption


def collapse_spaces(text: str, what: str) -> str:
    """Separate the words of a text by single spaces. `what` is the name of the text in messages.

    Raises:
        BadSample: If the text cannot be encoded as UTF-8, for example because it has lone surrogates.
    """
    text = " ".join(text.split())
    try:
        text.encode()
    except UnicodeEncodeError as error:  # for example, JSON can contain lone surrogates
        raise BadSample(f"{what} is not UTF-8 text ({error.reason}); correct it", Cause.BAD_TEXT) from error
    return text


def caption_id(caption: str) -> int:
    """Return the id of a cleaned caption.

    Captions have the same id if they differ only in case, in the encoding of accents (`é` can be one or two characters)
    or in the form of quotes, because some tokenizers do not distinguish such captions; see `clip_bpe`.
    """
    return stable_id(unicodedata.normalize("NFC", caption.lower()).translate(_STRAIGHT))


_STRAIGHT = str.maketrans("‘’“”", "''\"\"")


def decode_text(data: bytes, name: str) -> str:
    """Decode the bytes of a text file as UTF-8, without the byte order mark that Windows writes.

    Raises:
        BadSample: If the file is not UTF-8. The message names the file.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSample(f"{name}: not UTF-8 text ({error}); save it as UTF-8", Cause.BAD_TEXT) from error


def caption_lines(text: str) -> tuple[str, ...]:
    """Split the text of a file into captions, one per non-empty line.

    If at most one line is not empty, the entire text is the only caption.
    """
    lines = tuple(line for line in text.split("\n") if line.strip())
    return lines if len(lines) > 1 else (text,)


def clean_query(text: str, name: str) -> str:
    """Clean a text that will be embedded: separate its words by single spaces, and remove other spaces.

    `name` is the name of the text in messages.

    Raises:
        UserError: If the text has no words, or cannot be encoded as UTF-8.
    """
    if not text.strip():
        raise UserError(f"{name} is empty; add a word")
    return clean_caption(text, name)


def clean_prompt(prompt: str) -> str:
    """Clean the start of a caption, which may be empty: separate its words by single spaces, and remove other spaces.

    Training captions are cleaned in the same way, so other spaces would become tokens that the model has never seen.

    Raises:
        UserError: If the prompt cannot be encoded as UTF-8.
    """
    return collapse_spaces(prompt, "the prompt")


FUNCTION_WORDS = frozenset({"a", "an", "and", "at", "for", "in", "of", "on", "or", "the", "to", "with"})
"""Stop words, which are ignored in tags and word searches."""


def singular(word: str) -> str:
    """Remove the final s of an English word in lower case, if the word is longer than three letters.

    Words that end in "ss" are unchanged. A singular word that looks like a plural also loses its ending. Therefore,
    when two words are compared, apply this function to both of them.
    """
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def replace_surrogates(name: str) -> str:
    """Replace characters that cannot be part of a file name, such as most lone surrogates from JSON, with `?`.

    The surrogates by which Python represents the bytes of a file name that is not UTF-8 are kept, unless the name also
    has other characters that cannot be encoded.
    """
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name.encode("utf-8", "replace").decode()
    return name


def fix_encoding(text: str) -> str:
    """Repair a text that was decoded in the wrong encoding or escaped, as open_clip does before tokenization.

    Mojibake is repaired (`cafÃ©` to `café`), ligatures and full-width letters become plain letters, and HTML entities
    are replaced (`a &amp;amp; b` to `a & b`). Spaces at the ends are removed.

    Raises:
        UserError: If ftfy is not installed.
    """
    if not text:
        return text
    if find_spec("ftfy") is None:
        # The hint names only ftfy, because the extra `open-clip` also installs PyTorch, which an exported model does
        # not need.
        raise UserError(f"cleaning texts as open_clip does needs ftfy; run: {pip_install_command('ftfy')}")
    import ftfy  # lazy import, because only open_clip models need it

    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


# --- Words of names. `ShoppingCart`, `shopping-cart` and `lucide:shopping-cart` all contain the same two words

_RUNS = re.compile(r"[^\W\d_]+|\d+")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without accents.

    Words are also split where the case changes, as in `HTTPServer`, and between letters and digits.
    """
    bare = text if text.isascii() else _without_accents(text)
    return [part.lower() for run in _RUNS.findall(bare) for part in _CAMEL.findall(run)]


def _without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.category(c).startswith("M"))


def split_name(name: str) -> str:
    """Return the words of a name, or an empty text if a full-text index can split the name without help.

    An index cannot split a name such as `ShoppingCart`.
    """
    split = words_of(name)
    return "" if split == [word for word in re.split(r"[\W_]+", name.lower()) if word] else " ".join(split)


# --- Tokens

Cleaning = Literal["none", "ftfy"]
"""Cleaning of texts before tokenization: no cleaning, or the same as in open_clip (see `fix_encoding`)."""

_BOS, _EOS = "[BOS]", "[EOS]"
_CLIP_BOS, _CLIP_EOS = "<|startoftext|>", "<|endoftext|>"
_ENDS = (
    (_BOS, _EOS),
    (_CLIP_BOS, _CLIP_EOS),
    ("<s>", "</s>"),
    ("<bos>", "<eos>"),
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("[CLS]", "[SEP]"),
)
"""Begin and end tokens of known vocabularies. The first pair that exists in the tokenizer's vocabulary is used."""
CLS_SLOT = 0
"""Id at the position of [CLS] and in padding. The end of the real tokens is determined by the length of the row, not by
this id."""
NUM_SPECIAL_TOKENS = 3
"""Number of positions in a row in addition to the caption's tokens: [BOS], [EOS] and [CLS]."""

# CLIP's word pattern (arXiv 2103.00020): contractions, runs of letters, single digits, and runs of other characters.
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_MERGES = 49152 - 256 - 2


class Tokenizer:
    """Tokenizer with a begin and an end token. A byte-level BPE from `train_bpe` encodes any text, and ignores case.

    Args:
        backend: Tokenizer of the library `tokenizers`. Its setting `encode_special_tokens` is changed.
        cleaning: Cleaning of captions before they are encoded.

    Raises:
        UserError: If the backend has no begin and end tokens, or ordinary text can produce them.
    """

    def __init__(self, backend: tokenizers.Tokenizer, cleaning: Cleaning = "none") -> None:
        self._backend = backend
        self.cleaning = cleaning
        backend.encode_special_tokens = True  # "[EOS]" in a caption is text, and does not end the caption
        ends = _find_ends(backend)
        if ends is None:
            known = ", ".join(" and ".join(pair) for pair in _ENDS)
            raise UserError(f"the tokenizer has no begin and end token; expected one of {known}")
        self.bos_id, self.eos_id = ends

    @property
    def vocab_size(self) -> int:
        """Number of ids in the vocabulary."""
        return self._backend.get_vocab_size()

    @property
    def largest_id(self) -> int:
        """Largest id: `vocab_size` minus one, unless the ids have gaps."""
        return max(self._backend.get_vocab().values())

    def encode(self, caption: str) -> list[int]:
        """Return the ids of a caption's tokens, without begin and end tokens.

        Raises:
            UserError: If `cleaning` is `ftfy`, but ftfy is not installed.
        """
        text = fix_encoding(caption) if self.cleaning == "ftfy" else caption
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_row(self, caption: str, context_length: int) -> list[int]:
        """Return the row of a caption: `[BOS] caption [EOS]`, followed by the slot of [CLS].

        A long caption is truncated so that the row has at most `context_length` positions.
        """
        return self.row(self.encode(caption), context_length)

    def row(self, words: Sequence[int], context_length: int) -> list[int]:
        """Return the row of an encoded caption; see `encode_row`."""
        return [self.bos_id, *words[: context_length - NUM_SPECIAL_TOKENS], self.eos_id, CLS_SLOT]

    def encode_rows(
        self, captions: Sequence[str], context_length: int
    ) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, " B"]]:
        """Return the rows of captions, padded with id 0 to the longest row (T positions), and the lengths of the rows.

        `encode_row` describes the content of a row.
        """
        rows = [self.encode_row(caption, context_length) for caption in captions]
        lengths = np.array([len(row) for row in rows])
        token_ids = np.zeros((len(rows), max(lengths)), np.int64)
        for padded, row in zip(token_ids, rows, strict=True):
            padded[: len(row)] = row
        return token_ids, lengths

    def decode(self, ids: Sequence[int]) -> str:
        """Convert the ids before the first end token to a text without begin tokens and outer spaces."""
        ids = list(ids)
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        return self._backend.decode([i for i in ids if i != self.bos_id]).strip()

    def has_vocabulary_of(self, other: "Tokenizer") -> bool:
        """Return whether both tokenizers have the same model, that is, the same words and merges with the same ids."""
        model, others = (json.loads(tokenizer.to_json())["model"] for tokenizer in (self, other))
        return bool(model == others)

    def to_json(self) -> str:
        """Return the content of a `tokenizer.json`, Hugging Face's format."""
        return self._backend.to_str(pretty=True)

    @classmethod
    def from_json(cls, text: str, cleaning: Cleaning = "none") -> "Tokenizer":
        """Read a `tokenizer.json` that `to_json` returned, or any other such file that has begin and end tokens.

        Raises:
            UserError: If the file cannot be read, or has no begin and end tokens.
        """
        return cls(_read_backend(text), cleaning)

    @classmethod
    def from_foreign(cls, text: str) -> "Tokenizer":
        """Read any `tokenizer.json`, and add begin and end tokens if they are missing.

        Raises:
            UserError: If the file cannot be read, or if the tokens cannot be added because the ids have gaps.
        """
        backend = _read_backend(text)
        backend.encode_special_tokens = True
        if _find_ends(backend) is None:
            backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (_BOS, _EOS)])
        ids = list(backend.get_vocab().values())
        if len(set(ids)) < len(ids):
            raise UserError(
                f"{_BOS} and {_EOS} cannot be added, because the ids have gaps; save the tokenizer without gaps"
            )
        return cls(backend)


def _read_backend(text: str) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises no more specific class
        raise UserError(f"not a readable tokenizer.json ({error}); export it again") from error
    backend.no_padding()  # `Tokenizer.row` and `pad_rows` do this instead
    backend.no_truncation()
    return backend


def _find_ends(backend: tokenizers.Tokenizer) -> tuple[int, int] | None:
    """Return the ids of the begin and end tokens, or None if they are missing or ordinary text can produce them."""
    for names in _ENDS:
        bos_id, eos_id = (backend.token_to_id(name) for name in names)
        if bos_id is None or eos_id is None:
            continue
        written = backend.encode(" ".join(names), add_special_tokens=False).ids
        if not {bos_id, eos_id} & set(written):
            return bos_id, eos_id
    return None


def measure_lost_letters(tokenizer: Tokenizer, captions: Iterable[str]) -> tuple[float, str]:
    """Return the fraction of the letters and digits in captions that a tokenizer cannot represent.

    Also return the caption that loses the most letters and digits. Case and accents are ignored.
    """
    lost = total = most = 0
    worst = ""
    for caption in captions:
        before, after = _count_letters(caption), _count_letters(tokenizer.decode(tokenizer.encode(caption)))
        missing = (before - after).total()
        total, lost = total + before.total(), lost + missing
        if missing > most:
            most, worst = missing, caption
    return lost / max(total, 1), worst


def _count_letters(text: str) -> Counter[str]:
    return Counter(c for c in unicodedata.normalize("NFKD", text.casefold()) if unicodedata.category(c)[0] in "LN")


def train_bpe(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE with at most `vocab_size` ids on captions.

    Raises:
        UserError: If `vocab_size` is below 258, for the 256 bytes and two special tokens.
    """
    if vocab_size < 258:
        raise UserError(f"vocab_size must be at least 258, for the bytes and the two special tokens, got {vocab_size}")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[_BOS, _EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer)
    return Tokenizer(backend)


def clip_bpe(cleaning: Cleaning = "none") -> Tokenizer:
    """Return CLIP's tokenizer, which has 49,408 ids, from the merges file in this package."""
    return Tokenizer(_clip_backend(), cleaning)


@functools.cache
def _clip_backend() -> tokenizers.Tokenizer:
    """Build CLIP's tokenizer without cleaning. This takes a tenth of a second, so the result is cached."""
    import gzip  # lazy imports, because other tokenizers do not need them
    from importlib import resources

    packed = resources.files("grr_coca.data").joinpath("clip_vocabulary.txt.gz").read_bytes()
    # the first line of the file is a version
    lines = gzip.decompress(packed).decode().split("\n")[1 : _CLIP_MERGES + 1]
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    alphabet = _clip_alphabet()
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(merge) for merge in merges)]
    vocabulary = {word: i for i, word in enumerate([*words, _CLIP_BOS, _CLIP_EOS])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex("[‘’]"), "'"),  # CLIP converts typographic quotes to straight ones
            normalizers.Replace(Regex("[“”]"), '"'),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.Sequence([decoders.Replace("</w>", "Ġ"), decoders.Fuse(), decoders.ByteLevel()])
    backend.add_special_tokens([AddedToken(_CLIP_BOS, special=True), AddedToken(_CLIP_EOS, special=True)])
    return backend


def _clip_alphabet() -> list[str]:
    """Return the letters that represent the 256 bytes in CLIP's vocabulary, printable bytes first.

    A printable byte is represented by its own character, and all other bytes by the characters from code 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
