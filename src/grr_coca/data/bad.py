"""Bad samples, and the causes for which a sample is bad."""

from enum import StrEnum

from grr_coca.errors import UserError


class Cause(StrEnum):
    """What is wrong with a sample."""

    EMPTY_FILE = "empty file"
    NOT_AN_IMAGE = "not an image"
    BROKEN_IMAGE = "broken or truncated image"
    TOO_LARGE = "too large"
    NO_IMAGE = "no image"
    NO_CAPTION = "no caption"
    EMPTY_CAPTION = "empty caption"
    BAD_TEXT = "text is not UTF-8"
    BAD_RECORD = "broken record"
    DUPLICATE_KEY = "duplicate key"
    CUT_OFF = "cut off by the end of a truncated shard"
    UNREADABLE = "cannot be read"
    FORBIDDEN_PATH = "path leaves the data's folder"
    NOT_INSTALLED = "needs a package that is not installed"


class BadSample(UserError):  # noqa: N818 (it is the sample that is bad)
    """A pair that cannot be used. The message names it."""

    def __init__(self, message: str, cause: Cause = Cause.UNREADABLE) -> None:
        # The cause has a default, because torch passes only the message of an error from a worker to its parent.
        super().__init__(message)
        self.cause = cause
