"""Read the two sides of a match: icon sets and folders, which are rendered and embedded on demand, or an index.

Embeddings are stored in the user's cache, by a hash of the image bytes, so only new and changed images are embedded
when a library is matched again.
"""

import os
import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from grr_coca.common.errors import UserError, escape_control_chars
from grr_coca.common.files import user_cache
from grr_coca.data.image_files import ImageFile, decode_in_background, find_images
from grr_coca.data.walk import Exclusions
from grr_coca_icons.icon_names import caption_of, style_words, words_of_name
from grr_coca_icons.match.candidates import PictureSet
from grr_coca_icons.match.icon_lookup import Embed, IconLookup
from grr_coca_icons.match.label_check import is_in_vocabulary
from grr_coca_icons.match.match_numbers import MatchParameters
from grr_coca_icons.sources.open_icons import retired_icons
from grr_coca_icons.svg import is_svg
from grr_coca_search.entry import Entry, chunks
from grr_coca_search.index import IndexModel
from grr_coca_search.store import Store

_FILLED = frozenset({"fill", "filled", "solid", "bold"})
"""Style words that denote filled drawings."""
_VERSION = 1
"""Version of the rendered drawings. A change invalidates the cached embeddings."""
_BATCH = 64
OnProgress = Callable[[int, int], None]
"""Callback that receives the number of processed images, and the number of images that are not in the cache."""


@dataclass(frozen=True, kw_only=True)
class OpenPictureSet:
    """Image set and its metadata.

    Attributes:
        set: Names and embeddings of the images.
        read: Function that returns the bytes of the image in a row. It raises `UserError` if the image cannot be read.
        fields: Metadata of each image, from its set.
        further_names: Additional names of each image, as written.
        failures: One line for each excluded image.
        embed: Function that embeds a name. None if names are not compared.
    """

    set: PictureSet
    read: Callable[[int], bytes]
    fields: Sequence[dict[str, object]]
    further_names: Sequence[tuple[str, ...]]
    failures: list[str] = field(default_factory=list)
    embed: Embed | None = None

    @cached_property
    def lookup(self) -> IconLookup:
        """Lookup of the icons by their names."""
        return IconLookup(self.set, self.further_names, self.embed)


@dataclass(kw_only=True)
class _Picture:
    """Image of a set: its full name, its aliases as written, its metadata, and the source of its bytes.

    `vector` is its embedding, or None until it is embedded, or if it cannot be read.
    """

    name: str
    aliases: tuple[str, ...]
    is_icon: bool
    fields: dict[str, object]
    read: Callable[[], bytes]
    vector: np.ndarray | None = None


def read_sources(
    arguments: Sequence[str],
    model: IndexModel,
    numbers: MatchParameters | None,
    *,
    exclude: Sequence[str] = (),
    retired: bool = False,
    on_progress: OnProgress = lambda *_: None,
) -> OpenPictureSet:
    """Read, render and embed the images of icon sets, files and folders.

    Args:
        arguments: Icon sets, files and folders.
        model: Model that embeds the images and names.
        numbers: Match parameters of the model. None if the model has no such parameters.
        exclude: Patterns of files to skip, as in .gitignore.
        retired: Whether to include icons that their sets have dropped.
        on_progress: Function that is called after each batch, see `OnProgress`.

    Raises:
        UserError: If an argument does not exist or has no image, or no image can be read.
    """
    left_out = Exclusions(exclude)
    pictures: dict[str, _Picture] = {}
    failures: list[str] = []
    files: dict[str, ImageFile] = {}
    for argument in dict.fromkeys(arguments):
        for file in [*find_images([argument], left_out), *(retired_icons(argument) if retired else ())]:
            picture = _picture_of_file(file, argument)
            if picture.name in pictures:
                failures.append(f"{picture.name}: duplicate name; the first image is used")
                continue
            pictures[picture.name], files[picture.name] = picture, file
    with EmbeddingCache(model) as cache:
        failures += _embed(pictures, files, cache, on_progress)
        found = [picture for picture in pictures.values() if picture.vector is not None]
        if not found:
            raise UserError(
                f"{', '.join(arguments)}: no image can be read; the first error is: {(failures or ['none'])[0]}"
            )
        return _build_set(found, cache, numbers, failures)


def read_file(entry: Entry) -> bytes:
    """Return the bytes of an image in an index.

    Raises:
        UserError: If the file of the image cannot be read.
    """
    return entry.span.read()


def read_index(
    store: Store, model: IndexModel, numbers: MatchParameters | None, read: Callable[[Entry], bytes] = read_file
) -> OpenPictureSet:
    """Return the images of an index, with the embeddings that the index stores.

    Args:
        store: The index.
        model: Model of the index.
        numbers: Match parameters of the model. None if the model has no such parameters.
        read: Function that returns the bytes of an image. It is called only when the image is shown.

    Raises:
        UserError: If the index has no images.
    """
    with store.snapshot():
        pictures = [
            _picture_of_entry(entry, np.asarray(vector, np.float32), read) for entry, vector in store.everything()
        ]
    if not pictures:
        raise UserError(f"{store.location}: this index has no images; add some with `grr-coca index`")
    once = {picture.name: picture for picture in reversed(pictures)}
    failures = [f"{store.location}: {len(pictures) - len(once):,} images have duplicate names"]
    with EmbeddingCache(model) as cache:
        found = list(reversed(once.values()))
        return _build_set(found, cache, numbers, failures if len(once) < len(pictures) else [])


def make_picture_set(
    names: Sequence[str],
    aliases: Sequence[Sequence[str]],
    vectors: np.ndarray,
    numbers: MatchParameters,
    model: IndexModel | None = None,
) -> PictureSet:
    """Create an image set of icons that are already embedded.

    Args:
        names: Full names, such as `lucide:trash-2`.
        aliases: Additional names of each icon, without the prefix.
        vectors: Embeddings (N E) of the icons.
        numbers: Match parameters of the model that computed the embeddings.
        model: Model that embeds the names. If None, only images are compared.
    """
    found = [
        _Picture(name=name, aliases=tuple(further), is_icon=True, fields={}, read=bytes, vector=vector)
        for name, further, vector in zip(names, aliases, np.asarray(vectors, np.float32), strict=True)
    ]
    if model is None:
        return _build_set(found, None, numbers, []).set
    with EmbeddingCache(model) as cache:
        return _build_set(found, cache, numbers, []).set


def _picture_of_file(file: ImageFile, argument: str) -> _Picture:
    fields = dict(file.fields())
    path = file.path
    if "icon" in fields:
        name = str(fields["icon"])
    elif path is not None:
        # Every folder is a set: `icons/arrow/left.svg` is `icons:arrow/left`.
        root = Path(argument) if Path(argument).is_dir() else path.parent
        inner = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
        name = f"{root.resolve().name or 'icons'}:{inner.with_suffix('').as_posix()}"
    else:
        name = file.name
    is_icon = "icon" in fields or (path is not None and path.suffix.lower() == ".svg")
    return _Picture(
        name=escape_control_chars(name), aliases=aliases_in(fields), is_icon=is_icon, fields=fields, read=file.read
    )


def aliases_in(fields: Mapping[str, object]) -> tuple[str, ...]:
    """Return the additional names of an icon in the metadata of its set."""
    return tuple(filter(None, str(fields.get("aliases", "")).split(", ")))


def name_of(entry: Entry) -> str:
    """Return the name by which matches refer to an image of an index.

    This is the full name of an icon (`lucide:trash-2`), `FOLDER:trash-2` for an SVG file, or else the image's path.
    """
    icon = entry.fields.get("icon")
    if icon is not None:
        return str(icon)
    if not _is_svg_file(entry):
        return entry.name
    root = entry.root if os.path.isdir(entry.root) else os.path.dirname(entry.name)  # noqa: PTH112, PTH120
    inner = os.path.relpath(entry.name, root) if entry.name.startswith(root) else entry.title
    return f"{Path(root).name or 'icons'}:{os.path.splitext(inner)[0]}"  # noqa: PTH122


def _is_svg_file(entry: Entry) -> bool:
    return entry.file.lower().endswith(".svg")


def _picture_of_entry(entry: Entry, vector: np.ndarray, read: Callable[[Entry], bytes]) -> _Picture:
    fields: dict[str, object] = dict(entry.all_fields)
    return _Picture(
        name=name_of(entry),
        aliases=aliases_in(fields),
        is_icon=_is_svg_file(entry) or "icon" in fields,
        fields=fields,
        read=partial(read, entry),
        vector=vector,
    )


def _build_set(
    found: Sequence[_Picture], cache: "EmbeddingCache | None", numbers: MatchParameters | None, failures: list[str]
) -> OpenPictureSet:
    words, concepts = _words_and_concepts(found)
    are_icons = 2 * sum(picture.is_icon for picture in found) > len(found)
    if not are_icons or numbers is None:
        cache = None  # names are not compared
    model = None if cache is None else cache.model
    seen = frozenset(numbers.seen_sets) if numbers else frozenset()
    made = PictureSet(
        names=[picture.name for picture in found],
        words=words,
        concepts=concepts,
        vectors=np.array([picture.vector for picture in found], np.float32),
        name_vectors=np.empty((0, 0)) if cache is None else cache.embed_texts([own[0] if own else "" for own in words]),
        is_seen=np.array([picture.name.partition(":")[0] in seen for picture in found]),
        is_filled=np.array([not _FILLED.isdisjoint(picture.name.split("-")) for picture in found]),
    )
    return OpenPictureSet(
        set=made,
        read=lambda row: found[row].read(),
        fields=[picture.fields for picture in found],
        further_names=[picture.aliases for picture in found],
        failures=failures,
        embed=None if model is None else partial(_embed_name, model),
    )


def _embed_name(model: IndexModel, text: str) -> np.ndarray | None:
    """Return the embedding (E) of the words of a name, or None if the model does not know these words."""
    if not is_in_vocabulary(model.loaded, text):
        return None
    with EmbeddingCache(model) as cache:
        return cache.embed_texts([text])[0]


def _words_and_concepts(pictures: Sequence[_Picture]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return `PictureSet.words` and `PictureSet.concepts` of images.

    The concept of an icon is its set and the words of its name. Any other image is a separate concept.
    """
    by_set: dict[str, list[int]] = defaultdict(list)
    own = []
    for row, picture in enumerate(pictures):
        by_set[picture.name.partition(":")[0]].append(row)
        own.append(_kebab_case(picture.name.partition(":")[2].rpartition("/")[2] or picture.name))
    words: list[tuple[str, ...]] = [()] * len(pictures)
    concepts = [""] * len(pictures)
    for prefix, rows in by_set.items():
        known = {own[row] for row in rows}
        styles = style_words([own[row] for row in rows], ())
        for row in rows:
            names = [
                own[row],
                *_logo_names(own[row], known),
                *(_kebab_case(alias) for alias in pictures[row].aliases),
            ]
            words[row] = tuple(dict.fromkeys(name for name in (caption_of(name, styles) for name in names) if name))
            is_named = pictures[row].is_icon and words[row]
            concepts[row] = f"{prefix}:{words[row][0]}" if is_named else pictures[row].name
    return words, concepts


_LOGO = re.compile(r"(?:brand|logo)-(?P<first>.+)|(?P<last>.+?)-logo(?:-\w+)?")


def _logo_names(name: str, known: Collection[str]) -> list[str]:
    """Return the brand in the name of a logo, such as `github` in `brand-github`, as a list of one name.

    The list is empty if the name is not a logo's, or another icon has the brand's name.
    """
    found = _LOGO.fullmatch(name)
    bare = (found["first"] or found["last"]) if found else ""
    return [bare] if bare and bare not in known else []


def _kebab_case(name: str) -> str:
    return words_of_name(name).replace(" ", "-")


# --- EmbeddingCache


def _embed(
    pictures: dict[str, _Picture], files: dict[str, ImageFile], cache: "EmbeddingCache", on_progress: OnProgress
) -> list[str]:
    """Set `vector` of each image, from the cache or by the model, and return an error message for each image that
    cannot be read or is an empty drawing.
    """
    failures: list[str] = []
    digests: dict[str, bytes] = {}
    for name, file in files.items():
        try:
            digests[name] = blake2b(file.read(), digest_size=16).digest()
        except UserError as error:
            failures.append(str(error))
    known = cache.read("pictures", digests.values())
    missing = [name for name, digest in digests.items() if digest not in known]
    names = {files[name].name: name for name in missing}
    made: dict[bytes, np.ndarray] = {}

    def work(batch: "list[tuple[ImageFile, Image.Image | UserError]]") -> list[tuple[str, np.ndarray | str]]:
        shown: list[tuple[str, Image.Image]] = []
        results: list[tuple[str, np.ndarray | str]] = []
        for file, image in batch:
            name = names[file.name]
            if isinstance(image, UserError):
                results.append((name, str(image)))
            elif _is_blank(image) and is_svg(file.read()):
                results.append((name, f"{file.name}: empty drawing"))
            else:
                shown.append((name, image))
        images = [image for _, image in shown]
        vectors = list(cache.model.loaded.embed_images(images, batch_size=_BATCH)) if shown else []
        return [*results, *((name, vector) for (name, _), vector in zip(shown, vectors, strict=True))]

    done = 0

    def store_results(results: list[tuple[str, np.ndarray | str]]) -> None:
        nonlocal done
        for name, result in results:
            if isinstance(result, str):
                failures.append(result)
            else:
                made[digests[name]] = np.asarray(result, np.float16)
        done += len(results)
        on_progress(done, len(missing))

    if missing:
        batches = decode_in_background([files[name] for name in missing], cache.model.loaded.preprocess, _BATCH)
        cache.model.loaded.map_batches(batches, work, store_results)
        cache.save("pictures", made)
    for name, digest in digests.items():
        vector = known.get(digest, made.get(digest))
        pictures[name].vector = None if vector is None else np.asarray(vector, np.float32)
    return failures


def _is_blank(image: Image.Image) -> bool:
    return all(low == high for low, high in image.getextrema())  # type: ignore[misc]


class EmbeddingCache:
    """Cache of a model's embeddings of images and texts in fp16, in the user's cache folder. Used as a context manager.

    If the cache cannot be opened, read or written, embeddings are computed again each time.

    Args:
        model: Model that computes the embeddings.
    """

    def __init__(self, model: IndexModel) -> None:
        self.model = model
        self._database: sqlite3.Connection | None = None

    def __enter__(self) -> "EmbeddingCache":
        """Open the cache."""
        path = user_cache() / "match" / f"{self.model.fingerprint}.v{_VERSION}.sqlite"
        with suppress(OSError, sqlite3.Error):
            path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(path, timeout=10)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            for table in ("pictures", "texts"):
                database.execute(
                    f"CREATE TABLE IF NOT EXISTS {table} (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID"
                )
            self._database = database
        return self

    def __exit__(self, *_: object) -> None:
        """Close the cache."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings (N E, float32) of texts, and cache new ones. The embeddings of empty texts are zero."""
        keys = {text: text.encode("utf-8", "surrogatepass") for text in dict.fromkeys(texts) if text.strip()}
        known = self.read("texts", keys.values())
        missing = [text for text, key in keys.items() if key not in known]
        if missing:
            made = self.model.loaded.embed_texts(missing)
            new = {keys[text]: np.asarray(vector, np.float16) for text, vector in zip(missing, made, strict=True)}
            self.save("texts", new)
            known |= new
        width = len(next(iter(known.values()))) if known else 1
        rows = np.zeros((len(texts), width), np.float32)
        for row, text in enumerate(texts):
            if text in keys:
                rows[row] = known[keys[text]]
        return rows

    def read(self, table: Literal["pictures", "texts"], keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Return the cached embeddings (E, float16) by key; keys that are not in the cache are omitted.

        Args:
            table: Kind of embeddings.
            keys: Digests of the images' bytes, or texts in UTF-8.
        """
        found: list[tuple[bytes, bytes]] = []
        if self._database is None:
            return {}
        with suppress(sqlite3.Error):
            for chunk in chunks(keys, 500):
                marks = ", ".join("?" * len(chunk))
                statement = f"SELECT key, vector FROM {table} WHERE key IN ({marks})"
                found += self._database.execute(statement, chunk).fetchall()
        return {key: np.frombuffer(vector, np.float16) for key, vector in found}

    def save(self, table: Literal["pictures", "texts"], vectors: dict[bytes, np.ndarray]) -> None:
        """Store embeddings (E, float16) under the keys of `read`. Errors are ignored."""
        if self._database is None:
            return
        rows = ((key, vector.tobytes()) for key, vector in vectors.items())
        with suppress(sqlite3.Error), self._database:
            self._database.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", rows)
