"""Texts as Milvus takes them: valid UTF-8, from which a file name comes back as it was.

Python turns the bytes of a file name that are not UTF-8 into lone surrogates, U+DC80 to U+DCFF. They are moved to a
private plane of Unicode, which no name uses.
"""

PRIVATE = 0x100000
MOVED = {code: code + PRIVATE for code in range(0xDC80, 0xDD00)}
BACK = {moved: code for code, moved in MOVED.items()}


def as_utf8(text: str) -> str:
    """A text to send. Any other lone surrogate, which no file name has, is written as an escape."""
    if text.isascii():
        return text
    return text.translate(MOVED).encode("utf-8", "backslashreplace").decode()


def from_utf8(text: str) -> str:
    """A text that came, as it was before `as_utf8`."""
    return text if text.isascii() else text.translate(BACK)
