"""`grr-coca search` and `duplicates`: find images in an index, and print them."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from grr_coca.cli.flags import EngineFlag, Flag, IndexArgument, Lists, OptionalCheckpointFlag, join_lists
from grr_coca.cli.output import print_line
from grr_coca.common.errors import UserError, count_of, escape_control_chars
from grr_coca.common.outputs import to_json
from grr_coca_search.fields import FIELDS

if TYPE_CHECKING:
    from grr_coca_search.query import Hit, SearchResult

_WHERE = (
    "only images that match this filter, such as \"folder = 'logos' and width > 64\". Fields are "
    f"{', '.join(FIELDS)}, and the columns of tables."
)
_MAX_CAPTION = 40
"""Maximum number of characters of a caption in the line that is printed for a hit."""


def search_index(
    index: IndexArgument,
    texts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")] = (),
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 20,
    image: Annotated[Lists[Path], tyro.conf.arg(metavar="FILE")] = (),
    without: Annotated[Lists[str], tyro.conf.arg(metavar="TEXT")] = (),
    weights: Annotated[Lists[float], tyro.conf.arg(metavar="NUMBER")] = (),
    where: Annotated[str | None, tyro.conf.arg(metavar="FILTER", help=_WHERE)] = None,
    min_relevance: Annotated[float, tyro.conf.arg(metavar="0…1")] = 0.0,
    hybrid: bool = True,
    json: Flag = False,
    null: Annotated[Flag, tyro.conf.arg(aliases=["-0"])] = False,
    checkpoint: OptionalCheckpointFlag = None,
    engine: EngineFlag = "auto",
) -> None:
    """Find images in an index by text, by image, or by both. Each hit is a line: rank, relevance, caption, path.

    The relevance is the estimated probability that a hit matches the query. If all hits are unlikely, or relevance is
    unavailable, a message precedes the hits. Images that look the same count as one hit.

    Args:
        index: folder, or http://HOST:PORT/NAME of a Milvus server.
        texts: descriptions of the images; several texts are combined into one query.
        n: maximum number of hits.
        image: find images that are similar to these images.
        without: descriptions that the images should not match.
        weights: weights of the texts, one per text, above 0; by default, each is 1.
        where: only images that match this filter. The help lists the fields.
        min_relevance: only hits with at least this relevance; no hits if relevance is unavailable.
        hybrid: also search file names, titles, keywords and captions for the words of the query, and rank images higher
            that contain them; only for queries without --image, --without and --weights, and not on Milvus.
        json: print a list of objects with path, score, relevance, caption, copies, is_there (whether the file still
            exists), fields and engine.
        null: print only paths, each followed by a null byte, for `xargs -0`.
        checkpoint: the model, if it has been moved since the index was created.
        engine: onnx (on a CPU) or torch; auto chooses by a fixed rule.
    """
    from grr_coca_search.index import Index
    from grr_coca_search.query import Query  # lazy import: NumPy and Pillow

    if json and null:
        raise UserError("--json and --null are different formats; pass one of them")
    images, excluded = join_lists(image), join_lists(without)
    _require_separated(texts, images, excluded)
    query = Query(texts=texts, images=images, without=excluded, weights=join_lists(weights))
    with Index.open(index, checkpoint, engine=engine) as opened:
        answer = opened.search(
            query.texts,
            n,
            image=list(images),
            without=query.without,
            weights=query.weights,
            where=where,
            hybrid=hybrid,
            min_relevance=min_relevance,
        )
        runs_in = opened.model.loaded.engine.name if json else ""
    if min_relevance > 0 and not answer.hits:
        print(_no_hit_reason(answer, min_relevance, where), file=sys.stderr)
        if json:
            print_line("[]")
        return
    if where is not None and not answer.hits and not json and not null:
        print(f"no image matches --where (searched: {answer.searched:,})", file=sys.stderr)
        return
    _print(answer, json, null, runs_in)


def list_duplicates(
    index: IndexArgument,
    max_distance: Annotated[int, tyro.conf.arg(metavar="BITS")] = 6,
    min_cosine: Annotated[float, tyro.conf.arg(metavar="0…1")] = 0.95,
    json: Flag = False,
) -> None:
    """List the near-duplicate images in an index, and state which of them are exact copies.

    In each group, the largest image comes first. Images are near-duplicates if their perceptual hashes, their
    embeddings and small copies of them are nearly equal; files with equal bytes are exact copies.

    Args:
        index: folder, or http://HOST:PORT/NAME of a Milvus server.
        max_distance: maximum number of bits in which two 64-bit perceptual hashes may differ; up to 16, and slower
            above 6.
        min_cosine: minimum cosine similarity of two embeddings.
        json: print JSON lines, each with the paths of a group, and its exact copies with their originals.
    """
    from grr_coca_search.duplicates import duplicate_groups  # lazy import: NumPy and Pillow
    from grr_coca_search.store import open_store

    with open_store(index) as store:
        groups = duplicate_groups(store, max_distance, min_cosine)
    for group in groups:
        paths, exact = [entry.name for entry in group.entries], group.exact_copies
        if json:
            print_line(to_json({"paths": paths, "exact_copies": exact}))
            continue
        lines = [_display_path(paths[0])]
        for path in paths[1:]:
            original = exact.get(path)
            of = "" if original == paths[0] or original is None else f" of {_display_path(original)}"
            lines.append(f"    {_display_path(path)}" + ("" if original is None else f"  (exact copy{of})"))
        print_line("\n".join(lines))
    if not json:
        spare = sum(len(group.entries) - 1 for group in groups)
        num_exact = sum(len(group.exact_copies) for group in groups)
        exactly = f" (exact copies: {num_exact:,})" if num_exact else ""
        surplus = f"{count_of(spare, 'surplus image')}{exactly}"
        print_line(f"{count_of(len(groups), 'group')} with {surplus} in {Path(index).name or index}")


def _require_separated(texts: tuple[str, ...], images: tuple[Path, ...], without: tuple[str, ...]) -> None:
    if without and not texts and not images:
        raise UserError("the query is empty; --without takes all arguments after it, so pass the texts before it")
    from grr_coca.data.image_files import is_forbidden

    for image in images[1:]:
        if not is_forbidden(str(image)) and not image.exists():
            raise UserError(f"{image}: no such file; --image takes all arguments after it, so pass the texts before it")


def _print(answer: "SearchResult", json: bool, null: bool, engine: str) -> None:
    if json:
        print_line(to_json([{**_record(hit, answer.can_tell), "engine": engine} for hit in answer]))
    elif null:
        for hit in answer:
            print_line(hit.path, "\0")
    else:
        opening = _opening_line(answer)
        if opening is not None:
            print(opening, file=sys.stderr)
        for line in hit_lines(answer):
            print_line(line)


def _record(hit: "Hit", can_tell: bool) -> dict[str, object]:
    return {
        "path": hit.path,
        "score": hit.score,
        "relevance": hit.relevance if can_tell else None,
        "caption": hit.caption,
        "copies": list(hit.copies),
        "is_there": hit.is_there,
        "fields": hit.entry.shown_fields,
    }


def _display_path(name: str) -> str:
    """Return a path for display: relative if it is inside the current folder, and with escaped control characters."""
    here = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118 (a prefix of a string, which may not be a path)
    return escape_control_chars(name.removeprefix(here))


def hit_lines(answer: "SearchResult") -> Iterator[str]:
    """Yield one line per hit: rank, relevance, caption (truncated if long), path, and notes if there are any.

    The demo also prints these lines.
    """
    width = min(_MAX_CAPTION, max((len(hit.caption) for hit in answer), default=0))
    for rank, hit in enumerate(answer, 1):
        caption = f"{_truncate(escape_control_chars(hit.caption), width):<{width}}"
        yield f"{rank:>3}  {answer.format_relevance(hit):>4}  {caption}  {_display_path(hit.path)}{_notes(hit)}"


def _opening_line(answer: "SearchResult") -> str | None:
    """Return the message to print before the hits, or in place of hits if there are none.

    Return None if no message is needed, because some hits are likely.
    """
    if not answer.hits:
        return f"no hit among {answer.searched:,} images"
    images = " images" if answer.can_tell else ""
    return f"{answer.opening} of {answer.searched:,}{images}:" if answer.opening else None


def _no_hit_reason(answer: "SearchResult", min_relevance: float, where: str | None) -> str:
    if not answer.can_tell:
        return f"{answer.why_no_relevance}, so no hit is known to reach {min_relevance:.0%}"
    matching = "" if where is None else ", or none of them matches --where"
    return f"no hit reaches {min_relevance:.0%} among {answer.searched:,} images{matching}"


def _notes(hit: "Hit") -> str:
    notes = []
    if hit.copies:
        notes.append(f"{len(hit.copies)} more that look the same")
    if not hit.is_there and hit.entry.file:  # features have no file to show
        notes.append("gone since it was indexed")
    return f"  ({'; '.join(notes)})" if notes else ""


def _truncate(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
