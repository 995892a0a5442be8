"""Hits as a person sees them on a terminal."""

import os
from collections.abc import Iterator

from grr_coca.messages import on_one_line
from grr_coca.search.answer import Hit, SearchResult

LONGEST_CAPTION = 40


def shown_path(name: str) -> str:
    """A path as it is seen from this folder, if it lies in it."""
    here = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118 (a prefix of a string, which may not be a path)
    return on_one_line(name.removeprefix(here))


def hit_lines(answer: SearchResult) -> Iterator[str]:
    """A line for each hit: rank, relevance, caption, path."""
    width = min(LONGEST_CAPTION, max((len(hit.caption) for hit in answer), default=0))
    for rank, hit in enumerate(answer, 1):
        caption = f"{_cut(on_one_line(hit.caption), width):<{width}}"
        yield f"{rank:>3}  {answer.shown_relevance(hit):>4}  {caption}  {shown_path(hit.path)}{_notes(hit)}"


def opening_line(answer: SearchResult) -> str | None:
    """What to say before the hits, if there is something to say."""
    if not answer.hits:
        return f"no hit among {answer.searched:,} pictures"
    if not answer.can_tell:
        return f"too few different pictures to tell how likely a hit is; the nearest of {answer.searched:,}:"
    if not answer.is_likely:
        return f"nothing here looks like that; the nearest of {answer.searched:,} pictures:"
    return None


def _notes(hit: Hit) -> str:
    notes = []
    if hit.copies:
        notes.append(f"{len(hit.copies)} more that look the same")
    if not hit.is_there:
        notes.append("gone since it was indexed")
    return f"  ({'; '.join(notes)})" if notes else ""


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
