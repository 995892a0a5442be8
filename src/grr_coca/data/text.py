"""Captions: from bytes to clean text."""

from grr_coca.data.bad import BadSample, Cause


def clean_caption(caption: str, name: str) -> str:
    """The caption with single spaces.

    Raises:
        BadSample: nothing is left; names the pair.
    """
    caption = " ".join(caption.split())
    if not caption:
        raise BadSample(f"{name}: the caption is empty; give it a word or remove the pair", Cause.EMPTY_CAPTION)
    return caption


def decode_text(data: bytes, name: str) -> str:
    """Text from the bytes of a file.

    Raises:
        BadSample: not UTF-8; names the file.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadSample(f"{name}: not UTF-8 text ({error})", Cause.BAD_TEXT) from error
