"""`grr_coca.Index`: the index of an image library, in a folder or on a Milvus server, and its model.

Shapes: M texts or images, E embedding width.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

from grr_coca.common import plugins
from grr_coca.common.errors import UserError
from grr_coca.data.image_files import map_in_background
from grr_coca.data.isolated import helpers
from grr_coca.infer.load import is_on_hub, locate_checkpoint
from grr_coca.infer.on_ray import Machines
from grr_coca.model.checkpoint_files import DEFAULT, bundled_folder, fingerprint
from grr_coca_search.describe import FACTS, DecodedImage, FoundImage, RayDescriber, Take, decode_found, describe_decoded
from grr_coca_search.duplicates import Group, duplicate_groups
from grr_coca_search.entry import MAX_BITS, MIN_COSINE, Failure, Header, chunks
from grr_coca_search.filters import parse_filter
from grr_coca_search.query import Query, SearchOptions, SearchResult, Thesaurus, search_store
from grr_coca_search.relevance import RelevanceCurve, curve_of
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

_MAX_HITS = 10_000


class Index:
    """Library of images with captions and embeddings, which can be searched by words and by images.

    `open` opens or creates an index. Use it as a context manager, or call `close`. Any number of processes can read an
    index at the same time, but only one can write to an index in a folder: the first change acquires the writer lock,
    which is held until the index is closed. On a Milvus server, several processes can write.

    Attributes:
        store: Stored images, captions and embeddings.
        model: Model of the index, which is loaded when it is first used.
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
            location: Index folder, `http://HOST:PORT/NAME` of a Milvus server, or `milvus:FILE` for Milvus Lite.
            model: Checkpoint folder, name of a bundled model, or `OWNER/NAME` on the hub. By default, the model that
                created the index, or the default model for a new index.
            create: Whether to create the index if it does not exist.
            batch_size: Number of images in one forward pass.
            engine: Engine that runs the model; see `grr_coca.load`.

        Raises:
            UserError: If the index is not found, corrupt or unreachable, if another model or a newer version created
                the index, if the model is not found, or if `batch_size` is below 1.
        """
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        chosen = None
        store = find_store(str(location)) if create else open_store(str(location))
        if store is None:
            chosen = IndexModel(str(DEFAULT if model is None else model), batch_size, engine)
            store = make_store(str(location), chosen.header)
        try:
            chosen = chosen or _model_of(store, model, batch_size, engine)
            # also for a new index, because another process may have created it first
            chosen.require(store.header, store.location)
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
        """Add images, and update images that were added earlier.

        Images in the index whose size, modification time, XMP file and table row are unchanged are not read again. If a
        folder, shard, table or pattern was added earlier, those of its images that no longer exist are removed from the
        index.

        Args:
            images: Files, folders, patterns, tar shards, or tables of pairs; see `grr-coca index`.
            on_progress: Called with the numbers of finished images, of all images, and of failed images.
            on: Where to describe images: `this` machine, or the machines of a `ray` cluster.
            exclude: One or more patterns of files to exclude, as in .gitignore. The index stores the patterns. If this
                is None, the stored patterns are used.

        Raises:
            UserError: If an argument does not exist or has no image, a pattern is invalid, another process is writing,
                the model cannot be loaded, or the disk is full.
        """
        named = [str(image) for image in ([images] if isinstance(images, str | Path) else images)]
        patterns = [exclude] if isinstance(exclude, str) else exclude

        def make_describer() -> Describer:
            return self.model if on == "this" else RayDescriber(self.model.folder, self.model.engine)

        return update_store(self.store, named, make_describer, self.model.batch_size, on_progress, patterns)

    def refresh(self, on_progress: OnProgress = lambda *_: None, on: Machines = "this") -> UpdateResult:
        """Update the index from all arguments that were added earlier; see `add`.

        Raises:
            UserError: If one of these arguments no longer exists, or for the other reasons of `add`.
        """
        return self.add(self.store.roots(), on_progress, on)

    def delete(self, names: str | Path | Iterable[str | Path] = (), *, where: str | None = None) -> int:
        """Remove images from the index, and return their number. Their files are not removed.

        Args:
            names: Paths, or names as in `Hit.path`. Names that are not in the index have no effect.
            where: Filter. All images that match it are also removed.

        Raises:
            UserError: If a name is empty, the filter is invalid, or another process is writing.
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
        """Remove all images that were added through the given arguments or are inside these, and return their number.

        The arguments need not exist any longer. Images whose files still exist are added again when a folder that
        contains them is added.

        Args:
            arguments: Folders, files, shards, tables or patterns.

        Raises:
            UserError: If the index has no images of an argument (in which case no image is removed), or another process
                is writing.
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
        """Find images by texts, by images, or by both, and return the hits, best first.

        Args:
            texts: Descriptions of the images. Several texts are combined.
            n: Maximum number of hits.
            image: One or more images that hits should resemble.
            without: Descriptions that hits should not match.
            weights: Weight of each text, above 0. By default, each text has weight 1.
            where: Filter such as `folder = 'logos' and width > 64`; see `grr_coca_search.filters`.
            hybrid: Whether a query that has only texts, without weights, also searches the full-text index. In that
                case, images whose names match the texts are ranked first, and the order of all other hits also reflects
                how well their words match. An index on Milvus does not have a full-text index.
            fold: Whether to merge near-duplicates into one hit.
            min_relevance: Minimum relevance of hits, from 0 to 1. If it is above 0 and relevances are not valid
                (`can_tell` of the result is False), the result has no hits.

        Raises:
            UserError: If the query is empty or excludes everything that it searches for, a number is out of range, the
                filter is invalid, or an image cannot be read.
        """
        if not 0 <= min_relevance <= 1:
            raise UserError(f"min_relevance must be from 0 to 1, got {min_relevance:g}")
        if not 1 <= n <= _MAX_HITS:
            raise UserError(f"n must be from 1 to {_MAX_HITS:,} hits, got {n}")
        query = Query(
            texts=_as_tuple(texts), images=_as_tuple(image), without=_as_tuple(without), weights=tuple(weights)
        )
        options = SearchOptions(n=n, where=where, hybrid=hybrid, fold=fold, min_relevance=min_relevance)
        return search_store(query, self.store, self.model, options)

    def match(self, other: "Index | str | Path | Sequence[str | Path]", *, n: int = 5, names: bool = True) -> list[Any]:
        """Find the counterparts of each image in another library, for example those of each icon of a set in another
        set.

        Args:
            other: Index that the same model created, or icon sets, files and folders as in `grr-coca match`.
            n: Maximum number of candidates per image.
            names: Whether to also compare names, if both libraries have icons.

        Returns:
            One `PictureMatch` per image; see `grr_coca_icons.match.candidates`.

        Raises:
            UserError: If the other index has another model, the other library has no images, or the package
                `grr_coca_icons` is not installed.
        """
        match_index = plugins.find("grr_coca.functions", "match_index")
        if match_index is None:
            raise UserError("matching needs the package grr_coca_icons; install grr-coca again")
        matches: list[Any] = match_index(self, other, n=n, names=names)
        return matches

    def duplicates(self, *, max_distance: int = MAX_BITS, min_cosine: float = MIN_COSINE) -> list[Group]:
        """Return groups of near-duplicate images, the largest group first; see `duplicate_groups`.

        Raises:
            UserError: If `max_distance` or `min_cosine` is out of range.
        """
        return duplicate_groups(self.store, max_distance, min_cosine)


def _model_of(store: Store, model: str | Path | None, batch_size: int, engine: str) -> "IndexModel":
    if model is not None:
        return IndexModel(str(model), batch_size, engine)
    name = store.header.model
    if store.was_imported() and is_on_hub(name):
        raise UserError(
            f"{store.location}: imported from a foreign file, which names the model {name} on the Hugging Face hub; "
            f"if you trust this model, pass -c {name}"
        )
    try:
        return IndexModel(name, batch_size, engine)
    except UserError as error:
        raise UserError(
            f"{store.location}: created with the model '{name}', which cannot be loaded ({error}); if the model has "
            "moved, pass its folder with -c"
        ) from error


def _as_tuple(one_or_many: object) -> tuple:
    if isinstance(one_or_many, list | tuple):
        return tuple(one_or_many)
    return (one_or_many,)


class IndexModel:
    """Model of an index, which is found by its name and loaded when it is first used.

    Args:
        name: Checkpoint folder, name of a model, or `OWNER/NAME` on the hub; see `locate_checkpoint`.
        batch_size: Number of images in one forward pass.
        engine: See `grr_coca.load`.

    Raises:
        UserError: If the model is not found.
    """

    def __init__(self, name: str, batch_size: int = 32, engine: str = "auto") -> None:
        self.folder = locate_checkpoint(name)
        # A name by which other processes can also find the model: the name of a bundled model, or an absolute path. For
        # the folder of a training run, it is the path of the best or newest checkpoint, because later checkpoints
        # compute other embeddings.
        is_name = bundled_folder(name) == self.folder or not Path(name).exists()
        self.name = name if is_name else str(self.folder.resolve())
        self.batch_size = batch_size
        self.engine = engine
        self._sampled: tuple[tuple[str, ...], np.ndarray] = ((), np.empty((0, 0), np.float32))

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the model's files, computed without loading the model."""
        return fingerprint(self.folder)

    @cached_property
    def loaded(self) -> "ImageTextModel":
        """Model, which is loaded at the first access. A warning is logged if it is unsuitable for an index.

        Raises:
            UserError: If the model cannot be loaded.
        """
        from grr_coca.infer.load import load  # lazy import of an engine

        model = load(self.folder, engine=self.engine)
        model.warn_if_unsuitable()  # an index uses both the embeddings and the captions of the model
        return model

    @property
    def header(self) -> Header:
        """Header for an index of this model. The model is loaded for this."""
        return Header(self.name, self.fingerprint, self.loaded.engine.embed_dim)

    @cached_property
    def curve(self) -> RelevanceCurve | None:
        """Relevance curve of the model; see `curve_of`. None if no curve was fitted to similar models.

        Raises:
            UserError: If the file with the curve's parameters is corrupt.
        """
        return curve_of(self.folder, self.loaded.config)

    def read(self, found: Iterator[FoundImage], batch_size: int) -> Iterator[list[DecodedImage | Failure]]:
        """Read and decode images in the background, in subprocesses, and yield them in batches and in order."""
        helpers.start(FACTS)  # they start while the model is being loaded
        self.loaded.open_ahead()
        preprocess = self.loaded.preprocess
        return map_in_background(found, partial(decode_found, preprocess=preprocess), batch_size)

    def describe(self, batches: Iterable[Sequence[DecodedImage]], take: Take) -> None:
        """Caption, embed and tag images, one batch at a time, and pass each batch with its descriptions to `take`."""
        model = self.loaded

        def work(batch: Sequence[DecodedImage]) -> tuple[Sequence[DecodedImage], list[ImageDescription]]:
            return batch, describe_decoded(model, batch)

        model.map_batches(batches, work, lambda done: take(*done))

    @cached_property
    def thesaurus(self) -> Thesaurus:
        """Known words to search for in place of words that the model does not know.

        Raises:
            UserError: If the file with these words cannot be read.
        """
        return Thesaurus.of_model(self.folder)

    def related_words(self, text: str) -> tuple[str, ...]:
        """Return words to search for in place of a text that the model does not know; see `Thesaurus.related`."""
        return self.thesaurus.related(text)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return the unit-length embeddings of texts, M E.

        Raises:
            UserError: If a text is empty.
        """
        return self.loaded.embed_texts(list(texts))

    def embed_captions(self, captions: Sequence[str]) -> np.ndarray:
        """Return the unit-length embeddings of captions, M E. An empty caption yields zeros."""
        vectors = np.zeros((len(captions), self.loaded.engine.embed_dim), np.float32)
        places = [place for place, caption in enumerate(captions) if caption.strip()]
        if places:
            vectors[places] = self.embed_texts([captions[place] for place in places])
        return vectors

    def embed_sample(self, captions: tuple[str, ...]) -> np.ndarray:
        """Embed captions as `embed_captions` does, and cache the last result.

        Successive queries usually have the same sample.
        """
        sampled = self._sampled  # another thread may replace the attribute
        if captions != sampled[0]:
            self._sampled = sampled = (captions, self.embed_captions(captions))
        return sampled[1]

    def embed_images(self, images: Sequence[Image.Image | Path | str]) -> np.ndarray:
        """Return the vectors with which to search for images that are similar to the given images, M E.

        Raises:
            UserError: If an image cannot be read.
        """
        return self.image_queries(self.loaded.embed_images(list(images)))

    def image_queries(self, vectors: np.ndarray) -> np.ndarray:
        """Convert the embeddings of images to the vectors with which to search for similar images, M E."""
        return self.loaded.image_queries(vectors)

    def unknown_texts(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Return the texts in which an adapted model does not know any word. For other models, return no texts."""
        return self.loaded.unknown_texts(texts)

    def require(self, header: Header, location: str) -> None:
        """Check that an index was created with this version of this model.

        Raises:
            UserError: If the models differ. The message names both models, or states how to rebuild the index.
        """
        if header.fingerprint == self.fingerprint:
            return
        if header.model == self.name:
            named = "" if self.name == DEFAULT else f" -c {self.name}"
            raise UserError(
                f"{location}: created with another version of the model '{self.name}' ({header.fingerprint[:8]}, now "
                f"{self.fingerprint[:8]}), whose embeddings are not comparable; delete the index, and rebuild it with "
                f"`grr-coca index IMAGES --out {location}{named}`"
            )
        raise UserError(
            f"{location}: this is an index of the model '{header.model}' ({header.fingerprint[:8]}), not of "
            f"'{self.name}' ({self.fingerprint[:8]}), whose embeddings are not comparable; search it with its own "
            "model, or create another index with --out"
        )
