"""Forgets pictures by where they lie, whether anything is there any more or not.

Brings an index up to date with what some arguments mean: files, folders, patterns, shards, tables.

First everything is found and held against what the index knows, by name, size and time. Then what is new or changed is
read; bytes that the index knows under another name are not described again; the rest goes through the model. Work is
committed every few seconds, so what an interruption costs is the work since the last commit. In the end, pictures that
an argument once brought and does not bring any more are removed. Those that another argument brought are removed only
if their file is gone: a walk passes by hidden files, links to folders, and files without the suffix of an image. What
lies in a folder or shard that could not be looked through is not gone.
"""

import os
import shlex
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from glob import has_magic
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from grr_coca.data.image_files import TABLE_SUFFIXES, is_forbidden, iterate_images, require_name
from grr_coca.errors import UserError
from grr_coca.search.entry import Failure, PicturePlace, pieces, plain_fields, stamp_of
from grr_coca.search.model import DecodedPicture, Describe, Found, from_twin, make_entry
from grr_coca.search.seen import Seen
from grr_coca.search.store import Changes, Known, Store, Touch

if TYPE_CHECKING:
    import numpy as np

LOOKED_UP_AT_ONCE = 1000
SECONDS_BETWEEN_COMMITS = 5.0
MOST_UNCOMMITTED = 2000
OnProgress = Callable[[int, int, int], None]
"""Called with the number of pictures done, of all that there are to do, and of those that failed."""


class Describer(Protocol):
    """What describes pictures. It is made when there is one to describe, and not before."""

    def read(self, found: Iterator[Found], batch_size: int) -> Iterator[list[DecodedPicture | Failure]]:
        """Pictures read and decoded, batch by batch; what cannot be read as a `Failure`."""
        ...

    def describe(self, decoded: Sequence[DecodedPicture]) -> list[tuple[str, "np.ndarray"]]:
        """Caption and embedding of each picture."""
        ...


@dataclass(kw_only=True)
class Update:
    """What an update did, in numbers of pictures. `failures`: those that cannot be read, known before or not."""

    found: int = 0
    new: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    failures: list[Failure] = field(default_factory=list)


def absolute_arguments(arguments: Sequence[str]) -> list[str]:
    """Arguments as an index keeps them: valid wherever it is used from.

    Raises:
        UserError: one is empty.
    """
    for argument in arguments:
        require_name(argument)
    return list(dict.fromkeys(os.path.abspath(argument) for argument in arguments))  # noqa: PTH100 (a pattern)


def require_arguments(arguments: Sequence[str]) -> None:
    """Make sure that there is an image behind each argument. None is read.

    Raises:
        UserError: there is not; names it.
    """
    for argument in arguments:
        if not is_there(argument):
            raise UserError(f"{argument}: no such file or folder, and no file matches it as a pattern")
        next(iter(iterate_images(argument)), None)


def update_store(
    store: Store,
    arguments: Sequence[str],
    make_describer: Callable[[], Describer],
    batch_size: int = 32,
    on_progress: OnProgress = lambda *_: None,
) -> Update:
    """Bring a store up to date.

    Args:
        store: written to.
        arguments: what `grr_coca.data.image_files` takes; pictures that were found by others stay as they are.
        make_describer: loads the model, if there is anything for it.
        batch_size: pictures described at once.
        on_progress: called now and then.

    Raises:
        UserError: an argument is not there, or without pictures, or the store cannot be written to. What was
            committed before stays.
    """
    run = _Run(store, absolute_arguments(arguments), on_progress)
    try:
        run.require_there()
        store.claim()
        todo = run.survey()
        if todo:
            run.describe(todo, make_describer(), batch_size)
        run.sweep()
        store.compact()
    finally:
        run.close()
    run.update.failures = [failure for failure in store.failures() if run.brings(failure)]
    return run.update


class _Run:
    def __init__(self, store: Store, arguments: Sequence[str], on_progress: OnProgress) -> None:
        self._store = store
        self._arguments, self._among = arguments, set(arguments)
        self._walked: list[str] = []
        self._on_progress = on_progress
        self._seen, self._copied = Seen(), Seen()
        self._shards: set[str] = set()  # those that were looked through
        self._hidden: set[str] = set()  # folders and shards that could not be
        self._pending = Changes()
        self._committed = time.monotonic()
        self.update = Update()
        self.roots = set(_roots_within(store.roots(), arguments)) | set(arguments)

    def close(self) -> None:
        self._seen.close()
        self._copied.close()

    def require_there(self) -> None:
        """A folder that was indexed and is gone may be a disk that is not mounted: its pictures are not forgotten."""
        self._walked = [argument for argument in self._arguments if not self._is_gone_picture(argument)]
        for argument in self._walked:
            if is_there(argument):
                continue
            if next(self._store.places(argument), None) is not None:
                raise UserError(
                    f"{argument}: is not there, and the index holds pictures of it; bring it back, or remove them by "
                    f"`{shlex.join(['grr-coca', 'index', '--out', self._store.location, '--forget', argument])}`"
                )
            require_arguments([argument])

    def _is_gone_picture(self, argument: str) -> bool:
        """Whether an argument is one picture of the index whose file is gone, which is a removal and no error. Where
        nothing is beside it, a disk may not be mounted."""
        if is_forbidden(argument) or Path(argument).exists() or not _holds_something(Path(argument).parent):
            return False
        names = [place.name for place in islice(self._store.places(argument), 2)]
        return names == [argument] or (not names and bool(self._store.known([argument])))

    def survey(self) -> int:
        """Look through everything, and remember what is there. Returns how many pictures are to be described."""
        todo = 0
        for piece in pieces(self._once_each(), LOOKED_UP_AT_ONCE):
            self._seen.add(found.file.name for found, _ in piece)
            known = sum(is_known for _, is_known in piece)
            self.update.found += len(piece)
            self.update.unchanged += known
            todo += len(piece) - known
        return todo

    def unknown(self) -> Iterator[Found]:
        """Pictures that the index does not know as they are now."""
        return (found for found, is_known in self._once_each() if not is_known)

    def _once_each(self) -> Iterator[tuple[Found, bool]]:
        """Every picture, however many arguments find it, and whether the index knows it as it is now."""
        met = Seen()
        for piece in pieces(self._found(), LOOKED_UP_AT_ONCE):
            once = {found.file.name: found for found in piece}
            new = set(met.missing(once))
            met.add(new)
            known = self._store.known(list(once))
            for name in (name for name in once if name in new):
                found, before = once[name], known.get(name)
                yield found, before is not None and before.stamp == found.stamp and not _is_edited(found, before)
        met.close()

    def _found(self) -> Iterator[Found]:
        for argument in self._walked:
            for file in iterate_images(argument):
                if file.span is not None and file.span.offset is not None:
                    self._shards.add(str(file.span.file))
                if file.hides_others:
                    self._hidden.add(file.name)
                yield Found(file, argument, stamp_of(file))

    def describe(self, todo: int, describer: Describer, batch_size: int) -> None:
        done = failed = 0
        try:
            for batch in describer.read(self.unknown(), batch_size):
                failures = [one for one in batch if isinstance(one, Failure)]
                self._note_arrivals([one.name if isinstance(one, Failure) else one.found.file.name for one in batch])
                self._add_failures(failures)
                self._add([one for one in batch if isinstance(one, DecodedPicture)], describer.describe)
                done, failed = done + len(batch), failed + len(failures)
                if self._is_due():
                    self._commit()
                self._on_progress(done, max(todo, done), failed)
        finally:
            self._commit()

    def _note_arrivals(self, names: Sequence[str]) -> None:
        """Pictures that came since everything was looked through are there too, and not to be swept away."""
        arrived = list(self._seen.missing(names))
        self._seen.add(arrived)
        self.update.found += len(arrived)

    def _add(self, decoded: Sequence[DecodedPicture], describe: Describe) -> None:
        names = [one.found.file.name for one in decoded]
        known = self._store.known(names)
        twins = self._store.twins(list({one.digest for one in decoded}))
        fresh = []
        for one, name in zip(decoded, names, strict=True):
            assert one.found.stamp is not None
            if name in known and known[name].digest == one.digest and not _is_edited(one.found, known[name]):
                span = one.found.file.span
                self._pending.touched.append(Touch(name, one.found.stamp, None if span is None else span.offset))
                self.update.unchanged += 1
                continue
            is_known = name in known and bool(known[name].digest)
            self.update.changed += is_known
            self.update.new += not is_known
            if one.digest in twins:
                self._copied.add([one.digest] if not is_known else [])
                self._pending.added.append(from_twin(one, twins[one.digest]))
            else:
                fresh.append(one)
        if fresh:
            described = describe(fresh)
            for one, (caption, embedding) in zip(fresh, described, strict=True):
                self._pending.added.append((make_entry(one, caption), embedding))

    def _add_failures(self, failures: Iterable[Failure]) -> None:
        self._pending.failed.extend(failures)

    def _is_due(self) -> bool:
        late = time.monotonic() - self._committed > SECONDS_BETWEEN_COMMITS
        return late or len(self._pending) >= MOST_UNCOMMITTED

    def _commit(self) -> None:
        pending, self._pending = self._pending, Changes()
        self._committed = time.monotonic()
        if len(pending):
            self._store.commit(pending)

    def sweep(self) -> None:
        """Remove what was found once by these arguments, and was not found now."""
        for root in sorted(self.roots):
            for gone in pieces(self._gone(root), LOOKED_UP_AT_ONCE):
                known = self._store.known(gone)
                for name in gone:
                    digest = known[name].digest if name in known else ""
                    is_moved = bool(digest) and self._copied.take(digest)
                    self.update.moved += is_moved
                    self.update.new -= is_moved
                    self.update.removed += bool(digest) and not is_moved
                self._store.commit(Changes(removed=gone))

    def _gone(self, root: str) -> Iterator[str]:
        for piece in pieces(self._places(root), LOOKED_UP_AT_ONCE):
            files = dict(piece)
            for name in self._seen.missing(files):
                place = PicturePlace(name, files[name])
                if not self._may_be_there(place) and (root in self._among or not self._is_left(place)):
                    yield name

    def brings(self, failure: Failure) -> bool:
        """Whether an argument of this run brings a picture that cannot be read, whichever one brought it first."""
        if failure.root in self._among:
            return True
        file = PicturePlace.of_name(failure.name).file
        return failure.name in self._among or file in self._among or is_below(file, self._among)

    def _places(self, root: str) -> Iterator[PicturePlace]:
        """Places below a root; of one that is wider than the arguments, those that lie in these alone."""
        is_whole = root in self._among or is_below(root, self._among)
        for place in self._store.places(root):
            if is_whole or place.name in self._among or is_below(place.name, self._among):
                yield place

    def _may_be_there(self, place: PicturePlace) -> bool:
        """Whether a picture that was not found lies where nothing could be looked at."""
        return place.file in self._hidden or is_below(place.file, self._hidden) or is_forbidden(place.file)

    def _is_left(self, place: PicturePlace) -> bool:
        """Whether the file of a picture is there, and nothing looked into it."""
        if os.path.lexists(place.name):  # as for a picture that is no member, although its name looks like one
            return True
        return place.file not in self._shards and os.path.lexists(place.file)


def is_there(argument: str) -> bool:
    """Whether an argument is a pattern, or a file or folder that exists or may exist."""
    return (
        has_magic(argument)
        or is_forbidden(argument)
        or Path(argument).exists()
        or Path(argument.partition("#")[0]).exists()
    )


def _is_edited(found: Found, known: Known) -> bool:
    """Whether the row of a picture's table has changed. That of a picture that could not be read may be broken too."""
    return bool(known.digest) and plain_fields(found.file.fields()) != known.fields


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _roots_within(roots: Iterable[str], arguments: Sequence[str]) -> Iterator[str]:
    """The roots whose pictures an argument brings, or some of them: folders above it, and what lies below it."""
    among, above = set(arguments), {folder for argument in arguments for folder in _folders_above(argument)}
    for root in roots:
        is_table = Path(root.partition("#")[0]).suffix.lower() in TABLE_SUFFIXES
        if root in above or (is_below(root, among) and not is_table and not has_magic(root)):
            yield root


def is_below(path: str, folders: Container[str]) -> bool:
    """Whether a path lies in one of the folders, at any depth."""
    return any(folder in folders for folder in _folders_above(path))


def _folders_above(path: str) -> Iterator[str]:
    while (folder := os.path.dirname(path)) != path:  # noqa: PTH120 (a text, many times as fast)
        yield folder
        path = folder


def forget_arguments(store: Store, arguments: Sequence[str]) -> int:
    """Remove what some arguments brought, and what lies below them; returns the number of pictures.

    Raises:
        UserError: the store holds nothing of one of them, and nothing is removed; or another process writes.
    """
    places = absolute_arguments(arguments)
    for place in places:
        if next(_names_at(store, place), None) is None:
            made_of = ", ".join(store.roots()[:8]) or "nothing"
            raise UserError(f"{place}: the index holds nothing of it; it is made of {made_of}")
    before = len(store)
    for place in places:
        for names in pieces(_names_at(store, place), 1000):
            store.commit(Changes(removed=names))
    store.compact()
    return before - len(store)


def _names_at(store: Store, place: str) -> Iterator[str]:
    for root in store.roots():
        is_whole = root == place or is_below(root, {place})
        for name, file in store.places(root):
            if is_whole or file == place or is_below(file, {place}):
                yield name
