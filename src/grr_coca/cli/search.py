"""`grr-coca search`."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.cli.hits import hit_lines, opening_line
from grr_coca.cli.output import Lists, joined, require_suffix, require_writable, say, say_raw, to_json, write_output
from grr_coca.cli.thumbnails import thumbnail_kind, thumbnail_lines
from grr_coca.data.image_files import is_forbidden
from grr_coca.errors import UserError
from grr_coca.extras import require_extra
from grr_coca.search.answer import Hit, Query, SearchResult
from grr_coca.search.index import Index

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def run(
    index: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")],
    texts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")] = (),
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 20,
    image: Annotated[Lists[Path], tyro.conf.arg(metavar="FILE")] = (),
    without: Annotated[Lists[str], tyro.conf.arg(metavar="TEXT")] = (),
    weights: Annotated[Lists[float], tyro.conf.arg(metavar="NUMBER")] = (),
    where: Annotated[str | None, tyro.conf.arg(metavar="FILTER")] = None,
    hybrid: bool = True,
    json: Flag = False,
    null: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(aliases=["-0"])] = False,
    out: Annotated[Path | None, tyro.conf.arg(metavar="PAGE.html")] = None,
    explain: Flag = False,
    checkpoint: Annotated[str | None, tyro.conf.arg(aliases=["-c"], metavar="NAME|DIR")] = None,
) -> None:
    """Find pictures of an index by words, by a picture, or by both: rank, relevance, caption, path.

    The relevance is how likely a hit is what was asked for. If no hit is likely, that is said. Pictures that look the
    same are one hit.

    Args:
        index: folder, or http://HOST:PORT/NAME of a Milvus server.
        texts: what the pictures show; several texts are all looked for.
        n: the most hits.
        image: find what is like these pictures.
        without: what the pictures must not show.
        weights: how much each text counts, as many as there are texts.
        where: keep to pictures of which this is true, such as "folder = 'logos' and width > 64". Fields are path,
            folder, title, caption, date, size, width, height, and the columns of tables.
        hybrid: if the query is words alone, look for them in captions and file names too, and fuse both rankings. An
            index on Milvus has embeddings alone.
        json: print a list of objects with path, score, relevance, caption and copies.
        null: print paths alone, with a null byte behind each, for `xargs -0`.
        out: write a page with the pictures as well.
        explain: on the page, show which parts of each picture speak for the query (red) and against it (blue).
        checkpoint: the model, if it lies elsewhere than when the index was made.
    """
    _check(json, null, out, explain)
    images, excluded = joined(image), joined(without)
    _check_taken(texts, images, excluded)
    query = Query(texts=texts, images=images, without=excluded, weights=joined(weights))
    with Index.open(index, checkpoint) as opened:
        if out is not None:
            require_writable(out)
        answer = opened.search(
            query.texts,
            n,
            image=list(images),
            without=query.without,
            weights=query.weights,
            where=where,
            hybrid=hybrid,
        )
        if out is not None:
            _write_page(out, answer, opened, query, explain)
    _print(answer, json, null)


def _check(json: bool, null: bool, out: Path | None, explain: bool) -> None:
    if json and null:
        raise UserError("--json and --null are different ways to print the hits; give one of them")
    if explain and out is None:
        raise UserError("--explain draws heat maps on a page; give it a name by --out PAGE.html")
    if explain:
        require_extra("report", "--explain")
    if out is not None:
        require_suffix(out, (".html",))


def _check_taken(texts: tuple[str, ...], images: tuple[Path, ...], without: tuple[str, ...]) -> None:
    if without and not texts and not images:
        raise UserError("the query is empty; --without takes all that follows it, so give the texts before it")
    for image in images[1:]:
        if not is_forbidden(str(image)) and not image.exists():
            raise UserError(f"{image}: no such file; --image takes all that follows it, so give the texts before it")


def _write_page(out: Path, answer: SearchResult, index: Index, query: Query, explain: bool) -> None:
    from grr_coca.search.page import answer_page  # late: it draws

    page = answer_page(answer, query, index.model if explain else None)
    write_output(out, lambda file: file.write(page.encode("utf-8", "backslashreplace")))
    print(f"{len(answer)} pictures are in {out}", file=sys.stderr)


def _print(answer: SearchResult, json: bool, null: bool) -> None:
    if json:
        say(to_json([_record(hit, answer.can_tell) for hit in answer]))
    elif null:
        for hit in answer:
            say_raw(hit.path, "\0")
    else:
        opening = opening_line(answer)
        if opening is not None:
            print(opening, file=sys.stderr)
        kind = thumbnail_kind()
        for hit, line in zip(answer, hit_lines(answer), strict=True):
            say(line)
            if kind is not None:
                for row in thumbnail_lines(hit.entry.span, hit.path, kind):
                    say(row)


def _record(hit: Hit, can_tell: bool) -> dict[str, object]:
    return {
        "path": hit.path,
        "score": hit.score,
        "relevance": hit.relevance if can_tell else None,
        "caption": hit.caption,
        "copies": list(hit.copies),
        "is_there": hit.is_there,
    }
