"""`grr_coca.Index`: the index of a library of images, in a folder or on a Milvus server, and its model.

Shapes: M texts or images, E embedding width.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

from grr_coca.common import plugins
from grr_coca.common.errors import UserError, require_extra
from grr_coca.data.image_files import done_ahead
from grr_coca.data.isolated import helpers
from grr_coca.infer.load import is_on_hub, locate_checkpoint
from grr_coca.infer.on_ray import Machines
from grr_coca.model.checkpoint_files import DEFAULT, bundled_folder, fingerprint
from grr_coca_search.describe import DecodedImage, FoundImage, RayDescriber, Take, decode_found, describe_squares
from grr_coca_search.duplicates import MAX_BITS, MIN_COSINE, Group, duplicate_groups
from grr_coca_search.entry import Failure, Header, chunks
from grr_coca_search.filters import parse_filter
from grr_coca_search.query import Query, SearchOptions, SearchResult, Thesaurus, search_store
from grr_coca_search.relevance import RelevanceCurve, curve_of
from grr_coca_search.sidecars import FACTS
from grr_coca_search.store import Changes, ImageDescription, Store, find_store, make_store, open_store
from grr_coca_search.update import (
    Describer,
    OnProgress,
    UpdateResult,
    absolute_arguments,
    forget_arguments,
    update_store,
)

if TYPE_CHECKING:
    from grr_coca.infer import ImageTextModel
    from grr_coca.model.checkpoint import Checkpoint

_MAX_HITS = 10_000


class Index:
    """A library of images with their captions and embeddings, searched by words and images.

    Any number of processes can read an index, and one can write to it: the first change acquires the writer lock,
    which is held until the index is closed. Use it as a context manager, or call `close`.
    """

    def __init__(self, store: Store, model: "IndexModel") -> None:
        self.store = store
        self.model = model

    @classmethod
    def open(
        cls,
        location: str | Path,
        model: str | Path | None = None,
        *,
        create: bool = False,
        batch_size: int = 32,
        engine: str = "auto",
    ) -> Self:
        """Open an index.

        Args:
            location: Index folder, `http://HOST:PORT/NAME` of a Milvus server, or `milvus:FILE`.
            model: Checkpoint folder, name of a bundled model or `OWNER/NAME` on the hub; None: the model that created
                the index, or for a new index the default model.
            create: Create it if it does not exist.
            batch_size: Number of images in one forward pass.
            engine: Engine, see `grr_coca.load`.

        Raises:
            UserError: If the index is not found, another model or a newer version created it, or `batch_size` is below
                1.
        """
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        chosen = None
        store = find_store(str(location)) if create else open_store(str(location))
        if store is None:
            chosen = IndexModel(str(DEFAULT if model is None else model), batch_size, engine)
            store = make_store(str(location), chosen.header)
        try:
            if chosen is None:
                if model is None:
                    chosen = _model_of(store, batch_size, engine)
                else:
                    chosen = IndexModel(str(model), batch_size, engine)
            chosen.require(
                store.header, store.location
            )  # also for a new index: another process may have created it first
        except BaseException:
            store.close()
            raise
        return cls(store, chosen)

    def close(self) -> None:
        """Close files and connections, and release the writer lock."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.store)

    def add(
        self,
        images: str | Path | Iterable[str | Path],
        on_progress: OnProgress = lambda *_: None,
        on: Machines = "this",
        exclude: str | Sequence[str] | None = None,
    ) -> UpdateResult:
        """Add images, and update images that were added before.

        Known images with unchanged size and time are not read again. If a folder, shard, table or pattern was added
        before, its images that no longer exist are removed.

        Args:
            images: Files, folders, patterns, tar shards, or tables of pairs; see `grr-coca index`.
            on_progress: Called with the numbers of finished, all, and failed images.
            on: `this` describes images on this machine, `ray` on the machines of a Ray cluster.
            exclude: One or more patterns of files to exclude, as in .gitignore. The index stores them; None: the
                stored patterns.

        Raises:
            UserError: If an argument does not exist or has no image, a pattern is invalid, another process writes, or
                the disk is full.
        """
        named = [str(image) for image in ([images] if isinstance(images, str | Path) else images)]
        patterns = [exclude] if isinstance(exclude, str) else exclude

        def make_describer() -> Describer:
            return self.model if on == "this" else RayDescriber(self.model.folder, self.model.engine)

        return update_store(self.store, named, make_describer, self.model.batch_size, on_progress, patterns)

    def refresh(self, on_progress: OnProgress = lambda *_: None, on: Machines = "this") -> UpdateResult:
        """Call `add` for all arguments that were added before."""
        return self.add(self.store.roots(), on_progress, on)

    def delete(self, names: str | Path | Iterable[str | Path] = (), *, where: str | None = None) -> int:
        """Remove images from the index, but not their files. Return the number of removed images.

        Args:
            names: Paths, or names as in `Hit.path`.
            where: Filter; all images that match it are removed too.

        Raises:
            UserError: If the filter is invalid, or another process writes.
        """
        given = [names] if isinstance(names, str | Path) else list(names)
        requested = {*map(str, given), *absolute_arguments(list(map(str, given)))}
        if where is not None:
            tree = parse_filter(where, self.store.columns())
            requested |= {entry.name for entry in self.store.matching(tree)}
        before = len(self)
        for chunk in chunks(sorted(requested), 1000):
            self.store.commit(Changes(removed=chunk))
        return before - len(self)

    def forget(self, arguments: str | Path | Iterable[str | Path]) -> int:
        """Remove all images that were added through some arguments, or are inside them. Return their number.

        The arguments may no longer exist. Existing images return when a folder above them is added again.

        Args:
            arguments: Folders, files, shards, tables or patterns.

        Raises:
            UserError: If the index has no images of an argument, or another process writes.
        """
        given = [arguments] if isinstance(arguments, str | Path) else arguments
        return forget_arguments(self.store, list(map(str, given)))

    def search(
        self,
        texts: str | Sequence[str] = (),
        n: int = 20,
        *,
        image: str | Path | Image.Image | Sequence[str | Path | Image.Image] = (),
        without: str | Sequence[str] = (),
        weights: Sequence[float] = (),
        where: str | None = None,
        hybrid: bool = True,
        fold: bool = True,
        min_relevance: float = 0.0,
    ) -> SearchResult:
        """Find images.

        Args:
            texts: Descriptions of the images. Several texts are combined.
            n: Maximum number of hits.
            image: One or more images that hits should resemble.
            without: Descriptions that hits should not match.
            weights: Weight of each text.
            where: Filter such as `folder = 'logos' and width > 64`; see `grr_coca_search.filters`.
            hybrid: If the query has only texts, rank images with these names first, and add to the scores of
                the others how well the words match. An index on Milvus has no full-text index.
            fold: Merge near-duplicates into one hit.
            min_relevance: Exclude hits with a lower relevance, from 0 to 1. If relevances are not valid (`can_tell`
                of the result is False), no hit remains.

        Raises:
            UserError: If the query is empty, a number is out of range, the filter is invalid, or an image cannot be
                read.
        """
        if not 0 <= min_relevance <= 1:
            raise UserError(f"min_relevance must be from 0 to 1, got {min_relevance:g}")
        if not 1 <= n <= _MAX_HITS:
            raise UserError(f"n must be from 1 to {_MAX_HITS:,} hits, got {n}")
        query = Query(texts=_many(texts), images=_many(image), without=_many(without), weights=tuple(weights))
        options = SearchOptions(n=n, where=where, hybrid=hybrid, fold=fold, min_relevance=min_relevance)
        return search_store(query, self.store, self.model, options)

    def match(self, other: "Index | str | Path | Sequence[str | Path]", *, n: int = 5, names: bool = True) -> list[Any]:
        """Find the equivalent of each image of this index in another library, such as each icon of a set in another
        set.

        Args:
            other: Index of the same model; or icon sets, files and folders as in `grr-coca match`.
            n: Maximum number of candidates per image.
            names: Whether to also compare names, if both are icons.

        Returns:
            A `PictureMatch` per image, see `grr_coca_icons.match.candidates`.

        Raises:
            UserError: If the other index has another model, or the other library has no image.
        """
        match_index = plugins.named("grr_coca.functions", "match_index")
        if match_index is None:
            raise UserError("matching needs the package grr_coca_icons; install grr-coca again")
        matches: list[Any] = match_index(self, other, n=n, names=names)
        return matches

    def duplicates(self, *, max_distance: int = MAX_BITS, min_cosine: float = MIN_COSINE) -> list[Group]:
        """Return groups of near-duplicate images, the largest group first. See `duplicate_groups`.

        Raises:
            UserError: If a number is out of range.
        """
        return duplicate_groups(self.store, max_distance, min_cosine)


def _model_of(store: Store, batch_size: int, engine: str) -> "IndexModel":
    name = store.header.model
    if store.was_imported() and is_on_hub(name):
        raise UserError(
            f"{store.location}: imported from a foreign file, which names the model {name} on the Hugging Face hub; "
            f"if you trust it, pass -c {name}"
        )
    try:
        return IndexModel(store.header.model, batch_size, engine)
    except UserError as error:
        raise UserError(
            f"{store.location}: created with the model '{store.header.model}', which no longer exists; if it has "
            f"moved, pass its folder with -c ({error})"
        ) from error


def _many(one_or_many: object) -> tuple:
    if isinstance(one_or_many, list | tuple):
        return tuple(one_or_many)
    return (one_or_many,)


class IndexModel:
    """The model of an index, found by its name and loaded at first use.

    Raises:
        UserError: If the model is unknown.
    """

    def __init__(self, name: str, batch_size: int = 32, engine: str = "auto") -> None:
        self.folder = locate_checkpoint(name)
        # A name that other processes can find, too: the name of a bundled model, or an absolute path. For a run, the
        # path of its best or newest checkpoint, because later checkpoints have other embeddings.
        is_name = bundled_folder(name) == self.folder or not Path(name).exists()
        self.name = name if is_name else str(self.folder.resolve())
        self.batch_size = batch_size
        self.engine = engine
        self._sampled: tuple[tuple[str, ...], np.ndarray] = ((), np.empty((0, 0), np.float32))

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of its files, computed without loading the model."""
        return fingerprint(self.folder)

    @cached_property
    def loaded(self) -> "ImageTextModel":
        """The loaded model."""
        from grr_coca.infer.load import load  # late: it imports an engine

        model = load(self.folder, engine=self.engine)
        model.warn_if_unsuitable()  # an index uses both its embeddings and its captions
        return model

    @cached_property
    def checkpoint(self) -> "Checkpoint":
        """The model in PyTorch, for heat maps.

        Raises:
            UserError: If PyTorch is not installed, or the model is in int8.
        """
        require_extra("torch", "a heat map")
        from grr_coca.model.checkpoint import from_pretrained

        return from_pretrained(self.folder)

    @property
    def header(self) -> Header:
        """The header of an index of this model."""
        return Header(self.name, self.fingerprint, self.loaded.engine.embed_dim)

    @cached_property
    def curve(self) -> RelevanceCurve | None:
        """The relevance curve; None if there is none.

        Raises:
            UserError: If the file with its parameters is corrupt.
        """
        return curve_of(self.folder, self.loaded.config)

    def read(self, found: Iterator[FoundImage], batch_size: int) -> Iterator[list[DecodedImage | Failure]]:
        """Read and decode images in the background."""
        helpers.start(FACTS)  # while the model is loaded
        self.loaded.open_ahead()
        preprocess = self.loaded.preprocess
        return done_ahead(found, partial(decode_found, preprocess=preprocess), batch_size)

    def describe(self, batches: Iterable[Sequence[DecodedImage]], take: Take) -> None:
        """Caption and embed images in one forward pass per batch."""
        model = self.loaded

        def work(batch: Sequence[DecodedImage]) -> tuple[Sequence[DecodedImage], list[ImageDescription]]:
            squares = [one.square for one in batch if one.square is not None]
            return batch, describe_squares(model, squares)

        model.map_batches(batches, work, lambda done: take(*done))

    @cached_property
    def thesaurus(self) -> Thesaurus:
        """Known words for unknown ones.

        Raises:
            UserError: If their file cannot be read.
        """
        return Thesaurus.of_model(self.folder)

    def related_words(self, text: str) -> tuple[str, ...]:
        """Return words to search for instead of a text that the model does not know; see `Thesaurus.related`."""
        return self.thesaurus.related(text)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return embeddings of texts, M E.

        Raises:
            UserError: If a text is empty.
        """
        return self.loaded.embed_texts(list(texts))

    def embed_captions(self, captions: Sequence[str]) -> np.ndarray:
        """Return embeddings of captions, M E. An empty caption yields zeros."""
        vectors = np.zeros((len(captions), self.loaded.engine.embed_dim), np.float32)
        places = [place for place, caption in enumerate(captions) if caption.strip()]
        if places:
            vectors[places] = self.embed_texts([captions[place] for place in places])
        return vectors

    def embed_sample(self, captions: tuple[str, ...]) -> np.ndarray:
        """Embed captions as `embed_captions`, with a cached last result, as successive queries have the same library
        sample.
        """
        if captions != self._sampled[0]:
            self._sampled = (captions, self.embed_captions(captions))
        return self._sampled[1]

    def describe_images(self, images: Sequence[Image.Image | Path | str]) -> list[tuple[str, np.ndarray]]:
        """Return caption and embedding of each image.

        Raises:
            UserError: If an image cannot be read.
        """
        described = self.loaded.describe_many(list(images))
        queries = self.picture_queries(np.stack([one.embedding for one in described]))
        return [(one.captions[0].text, query) for one, query in zip(described, queries, strict=True)]

    def embed_images(self, images: Sequence[Image.Image | Path | str]) -> np.ndarray:
        """Return embeddings of images, M E.

        Raises:
            UserError: If an image cannot be read.
        """
        return self.picture_queries(self.loaded.embed_images(list(images)))

    def picture_queries(self, vectors: np.ndarray) -> np.ndarray:
        """Return queries for images similar to given images, from their embeddings, M E."""
        return self.loaded.picture_queries(vectors)

    def unknown_texts(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Return the texts without a word that an adapted model knows."""
        return self.loaded.unknown_texts(texts)

    def require(self, header: Header, location: str) -> None:
        """Raise an error if an index was created with another model, or with another version of this model.

        Raises:
            UserError: If the models differ. The message names both, or how to rebuild the index.
        """
        if header.fingerprint == self.fingerprint:
            return
        if header.model == self.name:
            named = "" if self.name == DEFAULT else f" -c {self.name}"
            raise UserError(
                f"{location}: created with another version of the model '{self.name}' ({header.fingerprint[:8]}, now "
                f"{self.fingerprint[:8]}), whose embeddings are not comparable; rebuild it: delete it, then "
                f"`grr-coca index IMAGES --out {location}{named}`"
            )
        raise UserError(
            f"{location}: an index of the model '{header.model}' ({header.fingerprint[:8]}), not of "
            f"'{self.name}' ({self.fingerprint[:8]}), whose embeddings are not comparable; search it with its own "
            "model, or create another index with --out"
        )
