"""Static site that runs a model and searches an index in the browser, for any web host.

| file | |
|---|---|
| `index.html`, `*.js`, `style.css` | the page; see `grr_coca_serve.page` |
| `site.json` | metadata for the page |
| `runtime/` | ONNX Runtime Web |
| `model/` | the graphs, their weights and the tokenizer |
| `library/` | the index: rows in JSON, embeddings in 8 bits |
| `thumbnails/` | the images of the index, scaled down, or as SVG |
| `drawings/` | instead of `thumbnails/`: the SVG drawings of icons |

Large files are compressed (`.gz`), and the page unpacks them, so hosts need not support compression. Each row of the
embeddings is quantized to 8-bit integers and a scale. The integers, multiplied by the scale, are a unit vector again.

Shapes: N images, E embedding width.
"""

import gzip
import hashlib
import io
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.errors import UserError, require_extra
from grr_coca.common.files import MANIFEST, atomic_folder, read_file_bytes, read_json, user_cache, verify_folder
from grr_coca.data.sources.base import PACK_SUFFIX
from grr_coca.data.tokenizer import split_name
from grr_coca.infer.adapted import words
from grr_coca.infer.adapted.adaptation import read_adaptation
from grr_coca.infer.calibration import read_calibration
from grr_coca.model.checkpoint_files import (
    FROZEN_FILES,
    GRAPH_FILES,
    GRAPHS,
    QUANTIZED_WEIGHTS,
    THESAURUS,
    WEIGHTS,
    CheckpointFiles,
    has_graphs,
    read_files,
)
from grr_coca_search import query, relevance
from grr_coca_search.duplicates import duplicate_groups
from grr_coca_search.embedded import embedded_store as embedded
from grr_coca_search.entry import MIN_COSINE, Entry, name_id
from grr_coca_search.fields import FIELDS
from grr_coca_search.relevance import RelevanceCurve
from grr_coca_search.store import SAMPLE, SAMPLE_CAPTIONS, Facet, Store, facet_fields, facets_of
from grr_coca_serve.npm import NpmPackage, fetch_archive
from grr_coca_serve.page import FILES, POLICY
from grr_coca_serve.request_error import json_bytes
from grr_coca_serve.svg_cleaning import clean_svg

CHUNK = 8192
"""Maximum number of rows (images) per file of the library."""
THUMBNAIL_SIDE = 400
"""Longest side of a thumbnail, in pixels."""

RANKING: dict[str, float] = {
    "num_decisive_hits": query.NUM_DECISIVE_HITS,
    "num_less_likely": query.NUM_LESS_LIKELY,
    "min_relevance": relevance.MIN_RELEVANCE,
    "written": relevance.MIN_WORD_MATCH_RELEVANCE,
    "prior_images": relevance.PRIOR_IMAGES,
    "max_image_cosine": relevance.MAX_IMAGE_COSINE,
    "max_caption_cosine": relevance.MAX_CAPTION_COSINE,
    "min_different": relevance.MIN_DIFFERENT,
    "min_cosine": MIN_COSINE,
    "without_weight": query.WITHOUT_WEIGHT,
    "min_deviation": query.MIN_DEVIATION,
    "title_weight": embedded.TITLE_WEIGHT,
    "caption_weight": embedded.CAPTION_WEIGHT,
    "word_weight": query.WORD_WEIGHT,
    "words_also": query.WORDS_ALSO,
    "min_images": query.MIN_IMAGES,
    "fused_at_once": query.FUSED_AT_ONCE,
    "scores_of_words": query.SCORES_OF_WORDS,
    "max_words": embedded.MAX_WORDS,
}
"""Parameters of ranking and relevance for `library.js`."""

OnProgress = Callable[[int, int], object]
"""Callback that gets the numbers of finished images and of all images."""


# --- ONNX Runtime Web


RUNTIME = NpmPackage("onnxruntime-web", "1.30.0", "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71")
_RUNTIME_FILES = {
    "ort.wasm.bundle.min.mjs": "ort.js",  # all hosts know the content type of .js files, but not of .mjs
    "ort-wasm-simd-threaded.wasm": "ort.wasm",
}


def find_runtime(given: Path | None = None) -> dict[str, bytes]:
    """Return the files of ONNX Runtime Web that a site needs, by their names on the site.

    Args:
        given: Archive of the npm package. By default, the archive in the user's cache is used, which npm downloads if
            it is missing.

    Raises:
        UserError: If the archive is unavailable, or is not that of the pinned version. The message describes how to get
            the right archive.
    """
    path = given or user_cache() / "packages" / RUNTIME.archive
    if given is None and not path.exists():
        fetch_archive(f"{RUNTIME.name}@{RUNTIME.version}", path.parent, _manual_download())
    content = read_file_bytes(path)
    if hashlib.sha256(content).hexdigest() != RUNTIME.sha256:
        again = "delete it to download it again" if given is None else _manual_download()
        raise UserError(f"{path}: not {RUNTIME.archive}, or corrupt: the SHA-256 must be {RUNTIME.sha256}; {again}")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = {ours: archive.extractfile(f"package/dist/{theirs}") for theirs, ours in _RUNTIME_FILES.items()}
        files = {name: member.read() for name, member in members.items() if member is not None}
    licence = resources.files("grr_coca_serve").joinpath("onnxruntime_web_licence.txt").read_text("utf-8")
    return files | {"LICENSE.txt": licence.format(name=RUNTIME.name, version=RUNTIME.version).encode()}


def _manual_download() -> str:
    return (
        f"on a machine with a network, run `npm pack {RUNTIME.name}@{RUNTIME.version}`, and pass the file "
        f"{RUNTIME.archive} to --runtime"
    )


# --- The index


@dataclass(frozen=True, kw_only=True)
class Library:
    """Searchable content of a site.

    Attributes:
        entries, vectors: Images in display order, with their embeddings, N E.
        facets: Fields by which images can be filtered, with their values.
        groups: Groups of near-duplicates, as lists of positions.
        others: Positions of each image's equivalents in other icon sets, with their probabilities. None if unknown.
        drawings: SVG drawing of each image, as its view box and its body, which the page displays and copies. If this
            is None, the page displays thumbnails.
        drawn_order: Order in which the drawings are stored. Drawings that are close in this order are loaded together.
        words: Search words of each image, in addition to its caption. By default, its file name and keywords.
        curve: Relevance curve. None if the model has no relevance parameters, or the captions are not from the model.
    """

    entries: Sequence[Entry]
    vectors: np.ndarray
    facets: Sequence[Facet]
    groups: Sequence[Sequence[int]] = ()
    others: Sequence[Sequence[tuple[int, float]]] | None = None
    drawings: Sequence[tuple[Sequence[float], str]] | None = None
    drawn_order: Sequence[int] | None = None
    words: Sequence[str] | None = None
    curve: RelevanceCurve | None = None


def read_library(store: Store, curve: RelevanceCurve | None) -> Library:
    """Read the images of an index, newest first.

    The locations of photographs are omitted, because a site may be public.

    Args:
        store: The index.
        curve: Relevance curve; see `Library`.

    Raises:
        UserError: If the index has no images, or cannot be read.
    """
    with store.snapshot():
        everything = list(store.everything())
        groups = duplicate_groups(store)
    if not everything:
        raise UserError(
            f"{store.location}: this index has no images; add some with grr-coca index IMAGES… --out {store.location}"
        )
    everything.sort(key=lambda pair: pair[0].name)
    everything.sort(key=lambda pair: pair[0].date, reverse=True)
    entries = [_remove_private_fields(entry) for entry, _ in everything]
    rows = {entry.name: row for row, entry in enumerate(entries)}
    return Library(
        entries=entries,
        vectors=np.array([vector for _, vector in everything]),
        facets=facets_of(entries, facet_fields({field for entry in entries for field in entry.fields})),
        groups=[[rows[entry.name] for entry in group.entries] for group in groups],
        curve=curve,
    )


def _remove_private_fields(entry: Entry) -> Entry:
    if entry.photo is None:
        return entry
    shown = {name: value for name, value in entry.photo.fields.items() if not FIELDS[name].is_private}
    return replace(entry, photo=replace(entry.photo, fields=shown))


def quantized(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize unit vectors, N E, to 8-bit integers, N E, and scales, N.

    Each row of integers has length 1 after it has been multiplied by its scale.
    """
    largest = np.abs(vectors).max(axis=1, keepdims=True).clip(min=1e-12)
    levels = np.rint(vectors / largest * 127).astype(np.int8)
    lengths = np.sqrt(np.square(levels.astype(np.float32)).sum(axis=1))
    return levels, (1 / lengths.clip(min=1)).astype(np.float32)


def _write_library(library: Library, site: Path, on_progress: OnProgress) -> dict[str, str]:
    """Write `library/`, and `thumbnails/` or `drawings/`. Return the value of `thumbnails` in `site.json`."""
    folder = site / "library"
    folder.mkdir()
    count, width = library.vectors.shape
    places = None
    if library.drawings is None:
        there, vectors = _write_thumbnails(library.entries, site / "thumbnails", on_progress)
        thumbnails = {"kind": "files", "folder": "thumbnails"}
    else:
        there, vectors = [True] * count, [False] * count
        places = _write_drawings(library, site / "drawings")
        thumbnails = {"kind": "svg", "folder": "drawings"}
    names = [entry.name for entry in library.entries]
    if library.drawings is None:
        names = _shown_names(library.entries)
    chunks, words = [], library.words
    for number, start in enumerate(range(0, count, CHUNK)):
        rows = slice(start, start + CHUNK)
        columns = {"name": names[rows], **_columns(library.entries[rows], there[rows], vectors[rows])}
        if places is not None:
            columns["drawing"] = places[rows]
        columns["words"] = list(map(_words, library.entries[rows])) if words is None else words[rows]
        levels, scales = quantized(library.vectors[rows].astype(np.float32))
        files = {"rows": f"{number:04}.json.gz", "vectors": f"{number:04}.bin.gz"}
        packed = {key: _pack_column(column) for key, column in columns.items()}
        _write_gz(folder / files["rows"], json_bytes(packed))
        if library.others is not None:
            files["others"] = f"others-{number:04}.json.gz"
            equivalents = [[[place, round(share, 3)] for place, share in found] for found in library.others[rows]]
            _write_gz(folder / files["others"], json_bytes(equivalents))
        _write_gz(folder / files["vectors"], scales.astype("<f4").tobytes() + levels.tobytes())
        chunks.append(files)
    drawn = sorted(range(count), key=lambda row: name_id(library.entries[row].name))[:SAMPLE]
    about = {
        "count": count,
        "width": width,
        "chunk": CHUNK,
        "chunks": chunks,
        "curve": None if library.curve is None else to_dict(library.curve),
        "ranking": RANKING,
        "sample": drawn,
        "captions": [library.entries[row].caption for row in drawn[:SAMPLE_CAPTIONS]],
        "facets": list(library.facets),
        "groups": [list(group) for group in library.groups],
    }
    _write_gz(folder / "library.json.gz", json_bytes(about))
    return thumbnails


def _words(entry: Entry) -> str:
    return "\n".join(filter(None, (*entry.user_texts, split_name(entry.title))))


def _columns(entries: Sequence[Entry], there: Sequence[bool], vectors: Sequence[bool]) -> dict[str, Any]:
    known = [entry.shown_fields for entry in entries]
    fields = sorted({field for values in known for field in values})
    return {
        "caption": [entry.caption for entry in entries],
        "folder": [entry.folder for entry in entries],
        "date": [entry.date for entry in entries],
        "size": [entry.stamp.size for entry in entries],
        "width": [entry.width for entry in entries],
        "height": [entry.height for entry in entries],
        "is_there": list(there),
        "is_vector": list(vectors),
        "fields": {field: [values.get(field) for values in known] for field in fields},
    }


def _pack_column(column: Any) -> Any:
    """Return a column in the form in which it is written.

    If texts in the column often repeat, this is the list of different texts (`of`), and the index of each row's text in
    this list (`at`). If the column is a dictionary of columns, each of these is converted. Other columns are unchanged.
    """
    if isinstance(column, dict):
        return {key: _pack_column(values) for key, values in column.items()}
    if not column or not all(isinstance(value, str | None) for value in column):
        return column
    distinct = list(dict.fromkeys(column))
    if len(distinct) * 2 > len(column):
        return column
    place = {value: index for index, value in enumerate(distinct)}
    return {"of": distinct, "at": [place[value] for value in column]}


def _shown_names(entries: Sequence[Entry]) -> list[str]:
    """Return the names of images relative to their common folder, so that the names do not contain local folders.

    If they have no common folder, names are relative to the parents of the indexed folders. Equal names get a number.
    """
    folders = {folder for entry in entries if (folder := _folder_of(entry))}
    try:
        common = os.path.commonpath(folders) if folders else ""
    except ValueError:  # the paths are on several drives
        common = ""
    is_root = os.path.dirname(common) == common  # noqa: PTH120
    outer = [os.path.dirname(entry.root) if is_root else common for entry in entries]  # noqa: PTH120
    names = [
        entry.name.removeprefix(os.path.join(folder, "")) if folder else entry.name  # noqa: PTH118
        for entry, folder in zip(entries, outer, strict=True)
    ]
    seen: Counter[str] = Counter()
    for place, name in enumerate(names):
        seen[name] += 1
        if seen[name] > 1:  # two folders with the same name were indexed
            names[place] = f"{name} ({seen[name]})"
    return names


def _folder_of(entry: Entry) -> str:
    """Return the folder of an image's file, or an empty text if the path is not absolute, as for icons of a package."""
    file = entry.name.partition(": ")[0] if entry.file.endswith(PACK_SUFFIX) else entry.file or entry.name
    return os.path.dirname(file) if os.path.isabs(file) else ""  # noqa: PTH117, PTH120


def _write_thumbnails(entries: Sequence[Entry], folder: Path, on_progress: OnProgress) -> tuple[list[bool], list[bool]]:
    """Write a thumbnail of each entry whose file still exists. If the file is SVG, its cleaned copy is the thumbnail.

    Return for each entry whether it has a thumbnail, and whether the thumbnail is SVG.
    """
    from grr_coca.data.isolated import decode_image

    there, vectors = [], []
    for row, entry in enumerate(entries):
        image, svg = None, None
        try:
            content = entry.span.read() if entry.is_there else b""
            svg = clean_svg(content) if entry.is_vector else None
            if entry.is_there and svg is None:
                image = decode_image(content, entry.name, to_srgb=True, side=THUMBNAIL_SIDE)
        except UserError:
            pass
        there.append(image is not None or svg is not None)
        vectors.append(svg is not None)
        path = folder / str(row // 1000) / f"{row}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        if svg is not None:
            path.with_suffix(".svg").write_bytes(svg)
        elif image is not None:
            image.save(path, "WEBP", quality=82)
        on_progress(row + 1, len(entries))
    return there, vectors


DRAWINGS_PER_FILE = 64


def _write_drawings(library: Library, folder: Path) -> list[list[int]]:
    """Write the drawings. Return for each drawing the number of its file, and its position in the file."""
    assert library.drawings is not None
    folder.mkdir()
    order = range(len(library.drawings)) if library.drawn_order is None else library.drawn_order
    places = [[0, 0] for _ in library.drawings]
    for number, start in enumerate(range(0, len(order), DRAWINGS_PER_FILE)):
        rows = order[start : start + DRAWINGS_PER_FILE]
        drawings = [library.drawings[row] for row in rows]
        content = [{"box": list(box), "body": body} for box, body in drawings]
        _write_gz(folder / f"{number}.json.gz", json_bytes(content))
        for place, row in enumerate(rows):
            places[row] = [number, place]
    return places


# --- The site


@contextmanager
def graphs_of(checkpoint: Path) -> Iterator[Path]:
    """Provide a folder with the graphs of a checkpoint: the checkpoint itself, or a temporary folder that PyTorch
    writes.

    Raises:
        UserError: If the checkpoint has no graphs, and the export packages are not installed.
    """
    if has_graphs(checkpoint):
        yield checkpoint
        return
    require_extra("export", f"{checkpoint}: a checkpoint without graphs; exporting it to ONNX")
    from grr_coca.infer.export.write import write_onnx  # lazy import: PyTorch

    with TemporaryDirectory() as folder:
        write_onnx(checkpoint, Path(folder) / "graphs")
        yield Path(folder) / "graphs"


MAX_ENCODER_BYTES = 30_000_000
"""Maximum size, in bytes, of the graph of a third-party image encoder that a page loads."""


def read_page_encoder(graphs: Path) -> CheckpointFiles | None:
    """Return the checkpoint files of a model if its third-party image encoder is a graph next to its own graphs.

    Return None if the folder does not have such a graph.

    Args:
        graphs: Folder of the graphs; see `write_site`.

    Raises:
        UserError: If the page cannot run the encoder.
    """
    path = graphs / FROZEN_FILES[1]
    if not path.is_file():
        return None
    files = read_files(graphs)
    assert files.encoder is not None
    name, size = files.encoder.name, path.stat().st_size
    if size > MAX_ENCODER_BYTES:
        is_small = read_json(graphs / FROZEN_FILES[0]).get("precision") != "fp32"
        smaller = "use a smaller encoder" if is_small else "pass a folder from grr-coca export onnx --precision int8"
        raise UserError(
            f"{name}: the size of this image encoder's graph is {size / 1e6:.1f} MB, but a page loads at most "
            f"{MAX_ENCODER_BYTES / 1e6:.0f} MB; {smaller}, or use grr-coca serve"
        )
    if files.encoder.preprocess.interpolation == "nearest":
        raise UserError(
            f"{name}: a page does not support resizing to the nearest pixel, which this image encoder "
            "needs; use grr-coca serve"
        )
    return files


def write_site(
    graphs: Path,
    out: Path,
    runtime: Mapping[str, bytes],
    library: Library | None = None,
    *,
    adapted: Path | None = None,
    takes_images: bool = True,
    title: str,
    about: Mapping[str, str] | None = None,
    model: str,
    more: Mapping[str, bytes] | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> None:
    """Write a site atomically.

    Args:
        graphs: Folder that `export onnx` has written, or another checkpoint with graphs.
        out: New folder.
        runtime: Files of ONNX Runtime Web; see `find_runtime`.
        library: Searchable content. If None, the page only captions images.
        adapted: Folder of the adapted model. The graphs are then those of its base. None if the model is not adapted.
        takes_images: Whether the model takes images. If it takes features instead, the page searches only by text.
        title: Name of the site.
        about: Additional content of `site.json`: `about`, a line about the site, and the `placeholder` of the search
            field.
        model: Name of the model.
        more: Additional files, by name.
        on_progress: Called while thumbnails are written.

    Raises:
        UserError: If the graphs are corrupt, if the page does not support the tokenizer or the image encoder of the
            model, or if the disk is full or cannot be written to.
    """
    verify_folder(graphs)
    manifest = read_json(graphs / MANIFEST)
    require_tokenizer(graphs)
    weights = QUANTIZED_WEIGHTS if manifest["precision"] == "int8" else WEIGHTS
    try:
        with atomic_folder(out) as site:
            _write_page(site)
            for name, content in {
                **{f"runtime/{name}": content for name, content in runtime.items() if name != "ort.wasm"},
                **(more or {}),
            }.items():
                (site / name).parent.mkdir(parents=True, exist_ok=True)
                (site / name).write_bytes(content)
            (site / "model").mkdir()
            _write_gz(site / "runtime" / "ort.wasm.gz", runtime["ort.wasm"])
            has_thesaurus = adapted is None and (graphs / THESAURUS).exists()
            encoder = read_page_encoder(graphs) if takes_images else None
            graph_files = GRAPH_FILES if takes_images else ("text.onnx",)
            frozen = () if encoder is None else (FROZEN_FILES[1],)
            for name in (*graph_files, *frozen, weights, "tokenizer.json", *([THESAURUS] if has_thesaurus else [])):
                _write_gz(site / "model" / f"{name}.gz", (graphs / name).read_bytes())
            metadata = {
                "title": title,
                **(about or {}),
                **_describe_model(graphs, manifest, weights, model, library, takes_images),
            }
            if encoder is not None:
                _add_encoder(metadata, encoder)
            metadata["thesaurus"] = f"model/{THESAURUS}.gz" if has_thesaurus else None
            if adapted is not None:
                metadata["adapted"] = _write_adapted(adapted, site)
            if library is not None:
                metadata["thumbnails"] = _write_library(library, site, on_progress)
            metadata["bytes"] = _count_loaded_bytes(site)
            (site / "site.json").write_bytes(json_bytes(metadata))
            _set_version(site)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error


_BPE_OPTIONS = ("byte_fallback", "ignore_merges", "continuing_subword_prefix")
_STEPS = {
    "normalizer": ("normalizers", ("NFC", "Lowercase", "Replace")),
    "pre_tokenizer": ("pretokenizers", ("ByteLevel", "Split")),
    "decoder": ("decoders", ("ByteLevel", "Replace", "Fuse")),
}
"""Parts of a `tokenizer.json`, each with the key of its list of steps, and with the steps that
`page/files/tokenizer.js` supports."""


def require_tokenizer(folder: Path) -> None:
    """Check that a page can read the tokenizer of a model.

    Raises:
        UserError: If the page does not support the tokenizer. The message names the part.
    """
    path = folder / "tokenizer.json"
    if problem := _unsupported_tokenizer_part(read_json(path)):
        raise UserError(f"{path}: the page does not support {problem}; use `grr-coca serve` instead")


def _unsupported_tokenizer_part(tokenizer: Mapping[str, Any]) -> str:
    """Return a part of a `tokenizer.json` that the page does not support, or an empty text if it supports all parts."""
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE":
        return f"a tokenizer of type {model.get('type')}, only byte-level BPE"
    for option in _BPE_OPTIONS:
        if model.get(option):
            return f"the tokenizer's option {option}"
    names: list[str] = []
    for part, (key, known) in _STEPS.items():
        whole = tokenizer.get(part) or {"type": "Sequence", key: []}
        for step in whole[key] if whole["type"] == "Sequence" else [whole]:
            is_other_split = step["type"] == "Split" and (step["behavior"] != "Removed" or not step["invert"])
            if step["type"] not in known or is_other_split:
                return f"the tokenizer's {part} {step['type']}"
            names.append(f"{part} {step['type']}")
    missing = [name for name in ("pre_tokenizer ByteLevel", "decoder ByteLevel") if name not in names]
    return f"a tokenizer without the {missing[0]}" if missing else ""


def _describe_model(
    graphs: Path, manifest: Mapping[str, Any], weights: str, model: str, library: Library | None, takes_images: bool
) -> dict[str, object]:
    """Return the content of `site.json` that describes the model and the capabilities of the page."""
    names = GRAPHS if takes_images else ("text",)
    can = [
        *(["caption"] if takes_images else []),
        *(["search"] if library else []),
        *(["duplicates"] if library and library.groups else []),
    ]
    return {
        "can": can,
        "count": None if library is None else len(library.entries),
        "engine": f"{manifest['precision']}, ONNX Runtime Web {RUNTIME.version}, in this browser",
        "model": {"name": model, **manifest["model"]},
        "preprocess": read_json(graphs / "preprocess.json"),
        "calibration": _calibration(graphs),
        "graphs": {name: f"model/{name}.onnx.gz" for name in names},
        "weights": dict.fromkeys(names, f"model/{weights}.gz"),
        "tokenizer": "model/tokenizer.json.gz",
        "runtime": {"module": "runtime/ort.js", "wasm": "runtime/ort.wasm.gz"},
        "library": None if library is None else "library/library.json.gz",
        "thumbnails": {"kind": "files", "folder": "thumbnails"},
        "version": version("grr-coca"),
    }


def _add_encoder(metadata: dict[str, Any], files: CheckpointFiles) -> None:
    """Add a third-party image encoder to the content of `site.json`.

    The page then preprocesses pixels for this encoder.
    """
    info, features, config = files.encoder, files.config.feature_encoder, files.config
    assert info is not None
    assert features is not None
    own = None if config.image_encoder is None else metadata["preprocess"]
    metadata["preprocess"] = to_dict(info.preprocess)
    metadata["encoder"] = {"keep": features.keep, "own": own}
    metadata["graphs"]["encoder"] = f"model/{FROZEN_FILES[1]}.gz"


_ADAPTED = ("text_mean", "image_mean", "plain_map", "word_map", "word_offset")
"""Arrays of an adapted model that the page needs. The features and captions of the adaptation's pairs are not
published."""


def _write_adapted(folder: Path, site: Path) -> dict[str, str]:
    """Write the files for `adapted.js`, and return their entries in `site.json`."""
    adaptation = read_adaptation(folder)
    arrays = {name: np.asarray(getattr(adaptation.arrays, name), np.float16) for name in _ADAPTED}
    header = adaptation.header
    about = {
        "rules": header.word_rules,
        "words": header.words,
        "rarities": adaptation.vocabulary.rarities.tolist(),
        "unspaced": words.UNSPACED,
        "split": header.split,
        "text_weight": header.values.text_weight,
        "plain_share": header.values.plain_share,
        "shapes": {name: array.shape for name, array in arrays.items()},
    }
    files = {"about": "model/adapted.json.gz", "arrays": "model/adapted.bin.gz"}
    _write_gz(site / files["about"], json_bytes(about))
    _write_gz(site / files["arrays"], b"".join(array.tobytes() for array in arrays.values()))
    return files


def _count_loaded_bytes(site: Path) -> int:
    """Return the number of bytes that a browser loads before it can search, apart from the page's own files.

    These are the files of the runtime, the model and the library, except for licences, scripts, and lists of
    equivalents in other icon sets.
    """
    loaded = (path for part in ("runtime", "model", "library") for path in (site / part).glob("*"))
    later = (".txt", ".js")
    return sum(p.stat().st_size for p in loaded if p.suffix not in later and not p.name.startswith("others-"))


def _calibration(graphs: Path) -> dict[str, object] | None:
    """Return the parameters with which the page detects unfamiliar images, or None if the model does not have them."""
    known = read_calibration(graphs)
    if known is None:
        return None
    photographs = None if known.photographs is None else to_dict(known.photographs)
    parameters = {"mean": known.mean, "precision": known.precision, "max_distance": known.max_distance}
    return {**parameters, "photographs": photographs}


def _write_page(site: Path) -> None:
    """Write the page with graphs as its backend.

    The page contains its own Content-Security-Policy, because some hosts do not send it as a header.
    """
    for path in FILES.iterdir():
        shutil.copyfile(path, site / path.name)
    index = site / "index.html"
    page = index.read_text("utf-8")
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}" />'
    changed = page.replace('data-backend="http"', 'data-backend="graphs"')
    changed = changed.replace('<meta charset="utf-8" />', f'<meta charset="utf-8" />\n    {policy}')
    assert changed.count(policy) == 1
    assert 'data-backend="graphs"' in changed
    index.write_bytes(changed.encode())


def _set_version(site: Path) -> None:
    """Give the service worker a version that depends on the content of the site.

    Browsers then replace an earlier version of the site in their caches.
    """
    digest = hashlib.sha256()
    for path in sorted(site.rglob("*")):
        if path.is_file() and "thumbnails" not in path.parts and "drawings" not in path.parts:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    worker = site / "offline.js"
    code = worker.read_text("utf-8")
    assert '"site"' in code
    worker.write_bytes(code.replace('"site"', f'"{digest.hexdigest()[:16]}"').encode())


def _write_gz(path: Path, content: bytes) -> None:
    """Write a compressed file, which `packed.js` unpacks. Not all hosts compress responses themselves."""
    path.write_bytes(gzip.compress(content, 6, mtime=0))
