"""Update an index from files, folders, patterns, shards and tables, or remove their images from the index.

An update has four steps. First, it finds all images, and compares their names, sizes and times with the index. Second,
it updates the metadata of images whose XMP file has changed, or which an older version indexed. Third, it reads new and
changed images: images whose bytes the index already has under another name keep their caption and embedding, and the
model describes all others. Work is committed every few seconds, so an interruption loses only the work since the last
commit. Finally, it removes images that an argument found earlier, but no longer finds. Images that another argument
found are removed only if their file no longer exists, because a walk through folders skips hidden and excluded files,
further links to the same file, and files without an image suffix. Images in a folder or shard that could not be read
are kept.
"""

import os
import shlex
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from glob import has_magic
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

from grr_coca.common.errors import UserError
from grr_coca.common.files import require_no_url, require_nonempty_path
from grr_coca.data.image_files import TABLE_SUFFIXES, is_forbidden, iterate_images, map_in_background
from grr_coca.data.images import has_more_frames
from grr_coca.data.sources.base import reader_that_owns
from grr_coca.data.walk import Exclusions
from grr_coca_search.describe import DecodedImage, FoundImage, Take, make_entry, read_metadata, sidecar_state
from grr_coca_search.entry import Failure, ImageLocation, Stamp, chunks, name_id, plain_fields, stamp_of
from grr_coca_search.store import Changes, ImageDescription, ImageState, PhotoUpdate, StampUpdate, Store

_LOOKUP_SIZE = 1000
SECONDS_BETWEEN_COMMITS = 5.0
_MAX_UNCOMMITTED = 2000
_NOTED_AT_ONCE = 256
_State = Literal["current", "unnoted", "outdated"]
"""State of an index entry: up to date (`current`), up to date except for its metadata (`unnoted`), or `outdated`."""
OnProgress = Callable[[int, int, int], None]
"""Callback that gets the numbers of finished images, of all images to process, and of failed images."""


class Describer(Protocol):
    """Interface of objects that caption and embed images. Such an object is created only when an image needs it."""

    def read(self, found: Iterator[FoundImage], batch_size: int) -> Iterator[list[DecodedImage | Failure]]:
        """Read and decode images in batches. An image that cannot be read becomes a `Failure`."""
        ...

    def describe(self, batches: Iterable[Sequence[DecodedImage]], take: Take) -> None:
        """Pass each batch to `take`, in order, with the caption and embedding of each image.

        A batch may be empty. Batches are read, and `take` is called, in the calling thread.
        """
        ...


@dataclass(kw_only=True)
class UpdateResult:
    """Result of an update. All numbers are numbers of images.

    Attributes:
        found: Images that were found, including those that cannot be read.
        new: Images whose names and bytes were not in the index.
        changed: Images in the index whose bytes or table row have changed.
        moved: Images whose file was renamed or moved. They are not counted as new or removed.
        removed: Images that were removed from the index, because they no longer exist.
        unchanged: Images that did not have to be described again.
        noted: Images of which only the metadata was updated.
        first_frames: Images with several frames or pages, of which only the first was read.
        unfamiliar: Whether each described image is unlike the training images; None if this is unknown.
        failures: Images of the arguments that cannot be read, including earlier failures.
        left_out: Files that were excluded while the update searched for images.
        scan_seconds: Duration of the search for images, in seconds.
    """

    found: int = 0
    new: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    noted: int = 0
    first_frames: int = 0
    unfamiliar: list[bool | None] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    left_out: Exclusions = field(default_factory=Exclusions)
    scan_seconds: float = 0.0


def update_store(
    store: Store,
    arguments: Sequence[str],
    make_describer: Callable[[], Describer],
    batch_size: int = 32,
    on_progress: OnProgress = lambda *_: None,
    exclude: Sequence[str] | None = None,
) -> UpdateResult:
    """Update a store from files, folders, patterns, shards and tables, as the docstring of this module describes.

    Args:
        store: The store to change.
        arguments: Files, folders, patterns, shards or tables; see `grr_coca.data.image_files`. Images that are not
            inside these arguments are not changed.
        make_describer: Function that loads the model. It is called only if an image must be described.
        batch_size: Number of images in one forward pass.
        on_progress: Called after each batch; see `OnProgress`.
        exclude: Patterns of files to exclude, which are then stored in the index. If this is None, the stored patterns
            are used.

    Raises:
        UserError: If an argument is a URL, does not exist or has no images, a pattern is invalid, another process is
            writing, or the store or the folder for temporary files cannot be written to. Errors of `make_describer` are
            passed on. Earlier commits are kept.
    """
    for argument in arguments:
        require_no_url(argument)
    remembered = store.excluded()
    left_out = Exclusions(remembered if exclude is None else [pattern for pattern in exclude if pattern])
    run = _Run(store, absolute_arguments(arguments), on_progress, left_out)
    try:
        run.require_exists()
        store.claim()
        if left_out.patterns != remembered:
            store.exclude(left_out.patterns)
        todo = run.scan_sources()
        run.note()
        if todo:
            run.describe(todo, make_describer(), batch_size)
        run.remove_missing()
        store.compact()
    except sqlite3.OperationalError as error:  # errors of `_NameMultiset`; a store converts its own errors
        raise UserError(
            f"the temporary folder cannot be written to ({error}); set SQLITE_TMPDIR to another folder; earlier "
            "commits are kept"
        ) from error
    finally:
        run.close()
    run.update.failures = [failure for failure in store.failures() if run.includes(failure)]
    return run.update


def forget_arguments(store: Store, arguments: Sequence[str]) -> int:
    """Remove all images that were found through the given arguments or are located inside them.

    The files need not exist.

    Returns:
        The number of removed images.

    Raises:
        UserError: If the store has no images of an argument (in which case no image is removed), or another process is
            writing.
    """
    places = absolute_arguments(arguments)
    for place in places:
        if next(_names_inside(store, place), None) is None:
            roots = ", ".join(store.roots()[:8])
            known = f"pass one of the indexed paths, such as {roots}" if roots else "the index is empty"
            raise UserError(f"{place}: the index has no images of this argument; {known}")
    before = len(store)
    for place in places:
        for names in chunks(_names_inside(store, place), 1000):
            store.commit(Changes(removed=names))
    store.compact()
    return before - len(store)


def absolute_arguments(arguments: Sequence[str]) -> list[str]:
    """Make arguments absolute, so that they are valid from any working folder, and remove duplicates.

    An index stores arguments in this form. Sources such as `iconify:lucide` are not changed.

    Raises:
        UserError: If an argument is empty.
    """
    for argument in arguments:
        require_nonempty_path(argument)
    return list(dict.fromkeys(one if reader_that_owns(one) else os.path.abspath(one) for one in arguments))  # noqa: PTH100


def require_arguments(arguments: Sequence[str]) -> None:
    """Check that each argument has at least one image, without reading the content of images.

    Raises:
        UserError: If an argument is empty, is a URL, does not exist, cannot be read or has no images. The message names
            it.
    """
    for argument in arguments:
        require_no_url(argument)
        if not argument_exists(argument):
            raise UserError(f"{argument}: no such file or folder; check the path")
        next(iter(iterate_images(argument)), None)


def argument_exists(argument: str) -> bool:
    """Return whether an argument is a pattern, a source such as `iconify:lucide`, or an existing file or folder.

    Files and folders that cannot be accessed because of their permissions count as existing.
    """
    return (
        reader_that_owns(argument) is not None
        or has_magic(argument)
        or is_forbidden(argument)
        or Path(argument).exists()
        or Path(argument.partition("#")[0]).exists()
    )


class _Run:
    """A single update.

    The steps must be called in this order: `require_exists` checks the arguments, `scan_sources` finds images, `note`
    updates metadata, `describe` adds new and changed images, and `remove_missing` removes missing images.
    """

    def __init__(self, store: Store, arguments: Sequence[str], on_progress: OnProgress, left_out: Exclusions) -> None:
        self._store = store
        self._arguments = arguments
        self._in_scope = {*arguments, *_other_versions(store.roots(), arguments)}
        self._to_walk: list[str] = []
        self._on_progress = on_progress
        self._found_names, self._copied_digests = _NameMultiset(), _NameMultiset()
        self._shards: set[str] = set()  # shards that were read up to their end
        self._unreadable: set[str] = set()  # folders and shards that could not be read
        self._pending = Changes()
        self._num_outdated_metadata = 0
        self._committed = time.monotonic()
        self.update = UpdateResult(left_out=left_out)
        self.roots = set(_roots_within(store.roots(), arguments)) | self._in_scope

    def close(self) -> None:
        self._found_names.close()
        self._copied_digests.close()

    def require_exists(self) -> None:
        """Check that all arguments still exist, except single images that were deleted, and raise a `UserError` if not.

        An argument may be missing because its disk is not mounted. Its images must then not be removed from the index.
        """
        self._to_walk = [argument for argument in self._arguments if not self._is_deleted_image(argument)]
        for argument in self._to_walk:
            if argument_exists(argument):
                continue
            if next(self._store.locations(argument), None) is not None:
                raise UserError(
                    f"{argument}: does not exist, but the index has images of it; restore it, or remove them with "
                    f"`{shlex.join(['grr-coca', 'index', '--out', self._store.location, '--forget', argument])}`"
                )
            require_arguments([argument])

    def _is_deleted_image(self, argument: str) -> bool:
        """Return whether an argument is a single image in the index whose file has been removed.

        If the folder of the file is empty or missing, a disk may not be mounted, so the result is False.
        """
        folder = Path(argument).parent
        if is_forbidden(argument) or Path(argument).exists() or not folder.is_dir() or not any(folder.iterdir()):
            return False
        names = [place.name for place in islice(self._store.locations(argument), 2)]
        return names == [argument] or (not names and bool(self._store.known([argument])))

    def scan_sources(self) -> int:
        """Find all images, record and count them, and return the number of images to read (those that are outdated)."""
        todo, began = 0, time.monotonic()
        for chunk in chunks(self._once_each(self.update.left_out), _LOOKUP_SIZE):
            self._found_names.add(found.file.name for found, _ in chunk)
            known = sum(state != "outdated" for _, state in chunk)
            self._num_outdated_metadata += sum(state == "unnoted" for _, state in chunk)
            self.update.found += len(chunk)
            self.update.unchanged += known
            todo += len(chunk) - known
        self.update.scan_seconds = time.monotonic() - began
        return todo

    def _in_state(self, wanted: _State) -> Iterator[FoundImage]:
        # a new object, because `update.left_out` has already counted all excluded files
        left_out = Exclusions(self.update.left_out.patterns)
        return (found for found, state in self._once_each(left_out) if state == wanted)

    def _once_each(self, left_out: Exclusions) -> Iterator[tuple[FoundImage, _State]]:
        """Yield each found image, with the state of its index entry. No image is yielded twice."""
        met = _NameMultiset()
        for chunk in chunks(self._found(left_out), _LOOKUP_SIZE):
            once = {found.file.name: found for found in chunk}
            new = set(met.missing(once))
            met.add(new)
            known = self._store.known(list(once))
            for name in (name for name in once if name in new):
                yield once[name], _state(once[name], known.get(name))
        met.close()

    def _found(self, left_out: Exclusions) -> Iterator[FoundImage]:
        for argument in self._to_walk:
            shard, opened = "", None
            for file in iterate_images(self._pin_version(argument), left_out):
                stamp = stamp_of(file)
                if file.part is not None and file.part.offset is not None:
                    if str(file.part.file) != shard:
                        shard, opened = str(file.part.file), stamp
                        self._shards.add(shard)
                    # The offsets belong to the shard that was opened. If another file replaces this shard, all images
                    # that are read from the new file count as outdated.
                    stamp = None if opened is None else Stamp(file.part.size or 0, opened.mtime_ns)
                if file.hides_others:
                    self._unreadable.add(file.name)
                yield FoundImage(file, argument, stamp)

    def _pin_version(self, argument: str) -> str:
        """Add the version and checksum of the package whose icons are in the index to an argument `iconify:PREFIX`.

        Other arguments are returned unchanged.
        """
        reader = reader_that_owns(argument)
        if reader is None:
            return argument
        first = next(iter(self._store.locations(argument)), None)
        known = {} if first is None else self._store.known([first.name])
        return reader.pin_version(argument, known[first.name].fields) if first and known else argument

    def note(self) -> None:
        """Update the metadata (camera data and user metadata) of known images if it has changed or was not read yet."""
        if not self._num_outdated_metadata:
            return
        for batch in map_in_background(self._in_state("unnoted"), read_metadata, _NOTED_AT_ONCE):
            read = [one for one in batch if one is not None]
            self._pending.noted.extend(read)
            self.update.noted += len(read)
            if self._is_commit_due():
                self._commit()
        self._commit()

    def describe(self, todo: int, describer: Describer, batch_size: int) -> None:
        """Read and describe new and changed images, and commit them."""
        done = failed = 0
        sizes: deque[tuple[int, int]] = deque()  # number of images and failures in each batch that is being described

        def undescribed() -> Iterator[list[DecodedImage]]:
            for batch in describer.read(self._in_state("outdated"), batch_size):
                failures = [one for one in batch if isinstance(one, Failure)]
                self._record_arrivals([one.name if isinstance(one, Failure) else one.found.file.name for one in batch])
                self._pending.failed.extend(failures)
                sizes.append((len(batch), len(failures)))
                yield self._add_known([one for one in batch if isinstance(one, DecodedImage)])

        def take(batch: Sequence[DecodedImage], described: list[ImageDescription]) -> None:
            nonlocal done, failed
            for one, description in zip(batch, described, strict=True):
                self._pending.added.append((make_entry(one, description), description.embedding))
                self.update.unfamiliar.append(description.caption_confidence.unfamiliar)
            size, num_failures = sizes.popleft()
            done, failed = done + size, failed + num_failures
            if self._is_commit_due():
                self._commit()
            self._on_progress(done, max(todo, done), failed)

        try:
            describer.describe(undescribed(), take)
        finally:
            self._commit()

    def _record_arrivals(self, names: Sequence[str]) -> None:
        """Record images that were added after `scan_sources`, so that `remove_missing` keeps them."""
        arrived = list(self._found_names.missing(names))
        self._found_names.add(arrived)
        self.update.found += len(arrived)

    def _add_known(self, decoded: Sequence[DecodedImage]) -> list[DecodedImage]:
        """Add the images whose bytes are already in the index to the pending changes, and return all other images."""
        names = [one.found.file.name for one in decoded]
        known = self._store.known(names)
        equal_images = self._store.find_by_digest(list({one.digest for one in decoded}))
        to_describe = []
        for one, name in zip(decoded, names, strict=True):
            assert one.found.stamp is not None
            self.update.first_frames += one.square is not None and has_more_frames(one.square)
            if name in known and known[name].digest == one.digest and not _is_edited(one.found, known[name]):
                span = one.found.file.span
                self._pending.touched.append(StampUpdate(name, one.found.stamp, None if span is None else span.offset))
                self._pending.noted.append(PhotoUpdate(name, one.photo, one.phash, one.pixel_signature))
                self.update.unchanged += 1
                continue
            is_known = name in known and bool(known[name].digest)
            self.update.changed += is_known
            self.update.new += not is_known
            if one.digest in equal_images:
                self._copied_digests.add([one.digest] if not is_known else [])
                equal = equal_images[one.digest]
                self._pending.added.append((make_entry(one, equal), equal.embedding))
            else:
                to_describe.append(one)
        return to_describe

    def _is_commit_due(self) -> bool:
        late = time.monotonic() - self._committed > SECONDS_BETWEEN_COMMITS
        return late or len(self._pending) >= _MAX_UNCOMMITTED

    def _commit(self) -> None:
        pending, self._pending = self._pending, Changes()
        self._committed = time.monotonic()
        if len(pending):
            self._store.commit(pending)

    def remove_missing(self) -> None:
        """Remove images that an earlier update found in the arguments, but this update did not.

        Images that may still exist, as in an unreadable folder, are kept. An image that was found under a new name
        counts as moved.
        """
        for root in sorted(self.roots):
            for gone in chunks(self._missing_names(root), _LOOKUP_SIZE):
                known = self._store.known(gone)
                for name in gone:
                    digest = known[name].digest if name in known else ""
                    is_moved = bool(digest) and self._copied_digests.take(digest)
                    self.update.moved += is_moved
                    self.update.new -= is_moved
                    self.update.removed += bool(digest) and not is_moved
                self._store.commit(Changes(removed=gone))

    def _missing_names(self, root: str) -> Iterator[str]:
        for chunk in chunks(self._locations_in_scope(root), _LOOKUP_SIZE):
            files = dict(chunk)
            for name in self._found_names.missing(files):
                place = ImageLocation(name, files[name])
                if not self._may_exist(place) and (root in self._in_scope or not self._still_exists(place)):
                    yield name

    def includes(self, failure: Failure) -> bool:
        """Return whether an argument of this update contains an unreadable image.

        The image may have been found through another argument.
        """
        if failure.root in self._in_scope:
            return True
        file = ImageLocation.of_name(failure.name).file
        return failure.name in self._in_scope or file in self._in_scope or _is_below(file, self._in_scope)

    def _locations_in_scope(self, root: str) -> Iterator[ImageLocation]:
        """Yield the locations of a root's images that lie within the paths passed to this update."""
        is_whole = root in self._in_scope or _is_below(root, self._in_scope)
        for place in self._store.locations(root):
            if is_whole or place.name in self._in_scope or _is_below(place.name, self._in_scope):
                yield place

    def _may_exist(self, place: ImageLocation) -> bool:
        """Return whether a missing image may be in a folder or shard that could not be read."""
        return place.file in self._unreadable or _is_below(place.file, self._unreadable) or is_forbidden(place.file)

    def _still_exists(self, place: ImageLocation) -> bool:
        """Return whether the file of an image still exists, although this update did not find the image."""
        if os.path.lexists(place.name):  # also true for a separate file whose name looks like that of a shard member
            return True
        return place.file not in self._shards and os.path.lexists(place.file)


def _state(found: FoundImage, before: ImageState | None) -> _State:
    if before is None or before.stamp != found.stamp or _is_edited(found, before):
        return "outdated"
    has_current_metadata = not before.digest or before.sidecars == sidecar_state(found.file)
    return "current" if has_current_metadata else "unnoted"


def _is_edited(found: FoundImage, known: ImageState) -> bool:
    """Return whether the table row of an image has changed.

    The result is False if the image could not be read before.
    """
    return bool(known.digest) and plain_fields(found.file.fields()) != known.fields


def _roots_within(roots: Iterable[str], arguments: Sequence[str]) -> Iterator[str]:
    """Yield the roots of the index that may share images with the arguments: folders that contain an argument, and
    roots inside an argument. Tables inside an argument are excluded, because a folder does not cover their images."""
    among, above = set(arguments), {folder for argument in arguments for folder in _folders_above(argument)}
    for root in roots:
        is_table = Path(root.partition("#")[0]).suffix.lower() in TABLE_SUFFIXES
        if root in above or (_is_below(root, among) and not is_table):
            yield root


def _other_versions(roots: Iterable[str], arguments: Sequence[str]) -> Iterator[str]:
    """Return the roots of the index that are other versions of sources among the arguments.

    The arguments replace these roots.
    """
    sets = set(map(_unversioned, arguments)) - {None}
    return (root for root in roots if _unversioned(root) in sets)


def _unversioned(argument: str) -> str | None:
    reader = reader_that_owns(argument)
    return None if reader is None else reader.remove_version(argument)


def _is_below(path: str, folders: Container[str]) -> bool:
    """Return whether a path is inside one of the folders, at any depth."""
    return any(folder in folders for folder in _folders_above(path))


def _folders_above(path: str) -> Iterator[str]:
    while (folder := os.path.dirname(path)) != path:  # noqa: PTH120 (many times as fast as pathlib)
        yield folder
        path = folder


def _names_inside(store: Store, place: str) -> Iterator[str]:
    for root in store.roots():
        is_whole = root == place or _is_below(root, {place})
        for name, file in store.locations(root):
            if is_whole or file == place or _is_below(file, {place}):
                yield name


class _NameMultiset:
    """Multiset of names, stored as 63-bit hashes.

    A large multiset is stored on disk, so that memory does not grow with the number of images.
    """

    def __init__(self) -> None:
        # SQLite keeps a database without a name in memory until it is large, and then moves it to a temporary file.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE seen (id INTEGER PRIMARY KEY, times INTEGER NOT NULL)")

    def add(self, names: Iterable[str]) -> None:
        """Add names."""
        self._database.execute("BEGIN")
        statement = "INSERT INTO seen VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET times = times + 1"
        self._database.executemany(statement, ((name_id(name),) for name in names))
        self._database.execute("COMMIT")

    def missing(self, names: Iterable[str]) -> Iterable[str]:
        """Yield those of the given names that were never added."""
        for chunk in chunks(names, 500):
            marks = ", ".join("?" * len(chunk))
            ids = [name_id(name) for name in chunk]
            found = {row for (row,) in self._database.execute(f"SELECT id FROM seen WHERE id IN ({marks})", ids)}
            yield from (name for name, identity in zip(chunk, ids, strict=True) if identity not in found)

    def take(self, name: str) -> bool:
        """Remove one occurrence of a name. Return False if the multiset does not have another occurrence."""
        statement = "UPDATE seen SET times = times - 1 WHERE id = ? AND times > 0"
        return self._database.execute(statement, (name_id(name),)).rowcount > 0

    def close(self) -> None:
        """Delete all names, and close the database."""
        self._database.close()
