"""Text processing: cleaning of captions, queries, prompts, and texts for open_clip models; words of names."""

import html
import re
import unicodedata
from importlib.util import find_spec

from grr_coca.common.errors import UserError
from grr_coca.data.sources.base import BadSample, Cause, stable_id


def clean_caption(caption: str, name: str) -> str:
    """Clean a caption: single spaces between words.

    Raises:
        BadSample: If the caption is empty, or cannot be written as UTF-8; the message names the pair.
    """
    caption = single_spaced(caption, f"{name}: the caption")
    if not caption:
        raise BadSample(f"{name}: the caption is empty; add a word or remove the pair", Cause.EMPTY_CAPTION)
    return caption


def single_spaced(text: str, what: str) -> str:
    """Put single spaces between the words of a text. `what`: Name of the text in messages.

    Raises:
        BadSample: If the text cannot be written as UTF-8.
    """
    text = " ".join(text.split())
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON with a lone surrogate, or a command line in another encoding
        raise BadSample(f"{what} is not UTF-8 text ({error.reason})", Cause.BAD_TEXT) from error
    return text


def caption_id(caption: str) -> int:
    """Return the id of a cleaned caption. Captions that differ only in case, in the form of their accents (`é` is one
    or two characters) or in the form of their quotes have the same id: a tokenizer may not distinguish them, see
    `clip_bpe`.
    """
    return stable_id(unicodedata.normalize("NFC", caption.lower()).translate(_STRAIGHT))


_STRAIGHT = str.maketrans("‘’“”", "''\"\"")


def decode_text(data: bytes, name: str) -> str:
    """Decode the bytes of a text file as UTF-8, without the byte order mark that Windows writes.

    Raises:
        BadSample: If the file is not UTF-8; the message names it.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSample(f"{name}: not UTF-8 text ({error})", Cause.BAD_TEXT) from error


def caption_lines(text: str) -> tuple[str, ...]:
    """Split the text of a file into captions, one per line that is not empty. With at most one such line, the text is
    the caption."""
    lines = tuple(line for line in text.split("\n") if line.strip())
    return lines if len(lines) > 1 else (text,)


def clean_query(text: str, name: str) -> str:
    """Clean a text to embed: single spaces between words.

    Raises:
        UserError: If the text is empty.
    """
    if not text.strip():
        raise UserError(f"{name} is empty; add a word")
    return clean_caption(text, name)


def clean_prompt(prompt: str) -> str:
    """Clean the start of a caption, which may be empty: single spaces between words, and none at the ends.

    Training captions are cleaned like this: other spaces would be tokens that the model has never seen.

    Raises:
        UserError: If the prompt cannot be written as UTF-8.
    """
    return single_spaced(prompt, "the prompt")


FUNCTION_WORDS = frozenset({"a", "an", "and", "at", "for", "in", "of", "on", "or", "the", "to", "with"})
"""Stop words, which tags and word searches ignore."""


def singular(word: str) -> str:
    """Return an English word without the ending of a regular plural.

    Words that look like plurals also lose their ending, so compare both sides.
    """
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def writable(name: str) -> str:
    """Return a name without characters that cannot be written, such as lone surrogates in JSON. They are replaced by
    `?`.
    """
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name.encode("utf-8", "replace").decode()
    return name


def fix_encoding(text: str) -> str:
    """Repair a text that was decoded wrongly or escaped, as open_clip does before tokenization.

    Mojibake is repaired (`cafÃ©` to `café`), ligatures and full-width letters become plain letters, and HTML entities
    are replaced (`a &amp;amp; b` to `a & b`).

    Raises:
        UserError: If ftfy is not installed.
    """
    if not text:
        return text
    if find_spec("ftfy") is None:
        # Suggests only ftfy: the extra `open-clip` also installs PyTorch, which an exported model does not need.
        raise UserError("cleaning texts as open_clip does needs ftfy; pip install ftfy")
    import ftfy  # late: only open_clip models need it

    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


# --- Words of names: `ShoppingCart`, `shopping-cart` and `lucide:shopping-cart` are two words

_RUNS = re.compile(r"[^\W\d_]+|\d+")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without accents.

    Names are split where case, letters and digits change.
    """
    bare = "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.category(c).startswith("M"))
    return [part.lower() for run in _RUNS.findall(bare) for part in _CAMEL.findall(run)]


def split_name(name: str) -> str:
    """Return the words of a name, for a full-text index that cannot split `ShoppingCart`; empty if it splits
    it.
    """
    split = words_of(name)
    return "" if split == [word for word in re.split(r"[\W_]+", name.lower()) if word] else " ".join(split)
