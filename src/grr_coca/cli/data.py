"""`grr-coca data`: check, count, convert or index pairs, or compute features of their images."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from grr_coca.cli.flags import Flag
from grr_coca.cli.output import print_first, print_line
from grr_coca.cli.progress import bars
from grr_coca.common.errors import UserError, count_of, escape_control_chars
from grr_coca.common.outputs import require_not_an_input, require_suffix, require_writable, to_json, write_output

if TYPE_CHECKING:
    from grr_coca.data.dataset_stats import DatasetStats
    from grr_coca.data.given_features import GivenFeatures
    from grr_coca.data.sources.base import PairSource
    from grr_coca.data.sources.views import ByImage
    from grr_coca.infer.encoder import VisionEncoder

_NUM_SIZES_SHOWN = 5
_MAX_INDEXING_THREADS = 4
_PAIRS = (
    ".tar shards (file, pattern, folder, s3:, https:), COCO's or Karpathy's JSON (dataset_coco.json#val), Flickr30K's "
    "or ROCO's files, a CSV, TSV, Parquet or JSON-lines table of paths and captions, or images next to .txt files."
)
_PairsArgument = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PAIRS", help=_PAIRS)]


@dataclass(frozen=True)
class Check:
    """Read and decode every pair. Report invalid pairs by cause, caption lengths and duplicates.

    The exit code is 1 if a pair is invalid or a shard is truncated.

    Args:
        sheet: draw some pairs into this PNG file.
        json: print JSON.
    """

    path: _PairsArgument
    sheet: Path | None = None
    json: bool = False


@dataclass(frozen=True)
class Stats:
    """Count pairs, and the words and image sizes of a sample, in seconds.

    Args:
        json: print JSON.
    """

    path: _PairsArgument
    json: bool = False


@dataclass(frozen=True)
class Convert:
    """Write tar shards in the layout of img2dataset. Captions of the same image become one pair.

    Invalid pairs are excluded and counted. The same command continues an interrupted conversion.

    Args:
        out: a new folder for the shards.
        pairs_per_shard: images of the source per shard.
        image_size: scale larger images down to this shorter side, as JPEG; if not given, images are not changed.
    """

    path: _PairsArgument
    out: tyro.conf.Positional[Path]
    pairs_per_shard: int = 10_000
    image_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Features:
    """Compute the features of all images by an external image encoder, or import existing ones.

    OUT can then replace PAIRS or images (`adapt OUT`, `index OUT`), or the encoder (`adapt PAIRS --encoder OUT`).
    Running the command again continues an interrupted job. Several processes that run it at the same time share the
    work.

    Args:
        out: new folder for the features.
        encoder: timm:NAME, hf:NAME or onnx:FILE; see docs/encoders.md. For features of an encoder that cannot run here,
            pass given:NAME with a name of your choice; PAIRS are then names with captions, or the features.
        keep: store the mean token of each image, or all of its tokens, which need a hundred times the space.
        precision: fp32 keeps all digits, in twice the space.
        frame: frame drawings first, as `icons` does: their empty border is cropped. Photographs are not changed.
        given: features that ENCODER has computed elsewhere: .npy, Parquet, HDF5, or a folder with one file per image;
            see docs/encoders.md. Images without features are encoded.
    """

    path: _PairsArgument
    out: tyro.conf.Positional[Path]
    encoder: Annotated[str, tyro.conf.arg(metavar="ENCODER")]
    keep: Literal["mean", "tokens"] = "mean"
    precision: Literal["fp16", "fp32"] = "fp16"
    frame: Flag = False
    given: Path | None = None


@dataclass(frozen=True)
class IndexShards:
    """Read tar shards or Parquet in an object store or on a web server once, to know where each pair is. Captions are
    stored, too.

    Training then reads images from the shards. Shards that have not changed since the last time are not read again.
    """

    url: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="URL", help="files, such as 's3://BUCKET/{00000..01242}.tar' or https://…/a.parquet."),
    ]


def run(
    action: Annotated[
        Annotated[Check, tyro.conf.subcommand("check")]
        | Annotated[Stats, tyro.conf.subcommand("stats")]
        | Annotated[Convert, tyro.conf.subcommand("convert")]
        | Annotated[Features, tyro.conf.subcommand("features")]
        | Annotated[IndexShards, tyro.conf.subcommand("index")],
        tyro.conf.arg(name=""),
    ],
) -> int:
    """Check, count, convert or index image-text pairs, or compute features of their images.

    Args:
        action: the work to do.
    """
    if isinstance(action, Check):
        return _check(action)
    if isinstance(action, Convert):
        return _convert(action)
    if isinstance(action, Features):
        return _features(action)
    if isinstance(action, IndexShards):
        return _index(action)
    from grr_coca.data.dataset_stats import sample_source
    from grr_coca.data.sources.open import open_source  # lazy import: NumPy and Pillow

    stats = sample_source(open_source(action.path))
    print_line(_as_json(stats) if action.json else _format_stats(stats))
    return 0


def _check(action: Check) -> int:
    from grr_coca.data.dataset_stats import check_source, draw_contact_sheet
    from grr_coca.data.sources.open import open_source

    source = open_source(action.path)
    sheet = _sheet_path(action, source)
    with bars({"check": len(source)}) as shown:
        stats = check_source(source, lambda done: shown.update("check", done, ""))
    print_line(_as_json(stats) if action.json else _format_stats(stats))
    if sheet is not None:
        drawn = draw_contact_sheet(source)
        write_output(sheet, lambda file: drawn.save(file, "PNG"))
        print(f"contact sheet     {sheet}", file=sys.stderr if action.json else sys.stdout)
    return int(bool(stats.broken or stats.truncated_shards))


def _sheet_path(action: Check, source: "PairSource") -> Path | None:
    """Return the writable file for the contact sheet, or None if no sheet was requested.

    Raises:
        UserError: If the file is among the pairs, is not a PNG file, or cannot be written to.
    """
    from grr_coca.data.sources.folder import ImageFolder

    sheet = action.sheet
    if sheet is None:
        return None
    if isinstance(source, ImageFolder) and sheet.resolve().is_relative_to(source.root.resolve()):
        raise UserError(
            f"{sheet}: the sheet would be in the folder of images, and would count as one of them; pass a path "
            "outside that folder to --sheet"
        )
    if not sheet.parent.is_dir():
        raise UserError(f"{sheet}: its folder does not exist; pass another --sheet")
    if sheet.is_dir():
        raise UserError(f"{sheet}: expected a PNG file, found a folder; pass a file name to --sheet")
    require_suffix(sheet, (".png",))
    require_not_an_input(sheet, [action.path])
    require_writable(sheet)
    return sheet


def _convert(action: Convert) -> int:
    for name in ("pairs_per_shard", "image_size"):
        value: int | None = getattr(action, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    from grr_coca.common.files import is_url
    from grr_coca.data.convert import Conversion, convert, source_state
    from grr_coca.data.sources.open import open_source
    from grr_coca.data.sources.views import ByImage

    source = open_source(action.path)
    images = ByImage(source)
    size, changed = source_state(source)
    conversion = Conversion(
        action.path if is_url(action.path) else str(Path(action.path).absolute()),
        len(images),
        action.pairs_per_shard,
        action.image_size,
        source_bytes=size,
        source_changed_ns=changed,
    )
    with bars({"convert": len(images)}) as shown:
        counts = convert(images, conversion, action.out, lambda done: shown.update("convert", done, ""))
    written = counts.pop("written", 0)
    excluded = ", ".join(f"{number:,} {cause}" for cause, number in counts.most_common())
    print(f"{count_of(written, 'image')} written to {action.out}" + (f"; excluded: {excluded}" if excluded else ""))
    return int(not written)


def _features(action: Features) -> int:
    from grr_coca.data.given_features import open_given_features
    from grr_coca.data.preprocess import Framing
    from grr_coca.data.sources.open import open_source
    from grr_coca.data.sources.views import ByImage
    from grr_coca.infer.encoder import GIVEN, open_encoder, with_framing
    from grr_coca.infer.write_features import feature_header, write_features

    given: GivenFeatures | None
    if action.encoder.startswith(f"{GIVEN}:"):
        images, encoder, given = _open_only_given(action)
    else:
        images = ByImage(open_source(action.path))
        encoder = open_encoder(action.encoder)
        if action.frame:
            encoder = with_framing(encoder, Framing())
        given = None if action.given is None else open_given_features(action.given)
    header = feature_header(images, encoder, action.keep, action.precision)
    size = "per token" if header.varies else f"each, {header.num_images * header.row_bytes / 1e6:,.1f} MB"
    print(f"{count_of(header.num_images, 'image')}, {header.row_bytes:,} bytes {size}", file=sys.stderr)
    began = time.perf_counter()
    with bars({"features": len(images)}) as shown:
        written = write_features(
            images,
            encoder,
            action.keep,
            action.out,
            lambda done: shown.update("features", done, ""),
            given=given,
            precision=action.precision,
        )
    milliseconds = 1000 * (time.perf_counter() - began) / max(written.num_written, 1)
    line = f"{written.num_written:,} images encoded to {action.out}"
    line += f", {milliseconds:.1f} ms each" if written.num_written else ""
    line += f"; features of {written.num_given:,} taken from {given.path}" if given else ""
    line += f"; other processes work on {written.num_taken:,}" if written.num_taken else ""
    print(line)
    if written.bad:
        print(f"images without features, because they cannot be read ({len(written.bad):,}):", file=sys.stderr)
        print_first(written.bad)
    return int(len(written.bad) == len(images))


def _open_only_given(action: Features) -> "tuple[ByImage, VisionEncoder, GivenFeatures]":
    """Open features whose encoder cannot run here, together with the names and captions of their images.

    Raises:
        UserError: If the features or the names cannot be read, or `--frame` was passed.
    """
    from grr_coca.data.given_features import open_given_features
    from grr_coca.data.image_files import TABLE_SUFFIXES
    from grr_coca.data.sources.feature_pairs import pairs_of_features
    from grr_coca.data.sources.open import open_source
    from grr_coca.data.sources.views import ByImage
    from grr_coca.infer.encoder import make_given_encoder

    if action.frame:
        raise UserError(f"--frame: {action.encoder} cannot encode images; omit --frame")
    path = Path(action.path)
    given = open_given_features(action.given or path)
    if path.suffix.lower() in TABLE_SUFFIXES:
        try:
            source = open_source(action.path, needs_images=False)
        except UserError:  # indexing and captioning need no captions
            source = open_source(action.path, needs_captions=False, needs_images=False)
    else:
        source = pairs_of_features(path, given.names if action.given is None else ())
    first = given.first()
    num_tokens = None if action.keep == "tokens" else 1  # the number of tokens may differ between images
    return ByImage(source), make_given_encoder(action.encoder, first.shape[1], num_tokens), given


def _index(action: IndexShards) -> int:
    from grr_coca.common.files import is_url
    from grr_coca.data.sources.open import remote_shards
    from grr_coca.data.sources.shards import TarShards, index_remote

    if not is_url(action.url):
        raise UserError(
            f"{action.url}: not a URL; pass a URL (shards on this machine are indexed when they are opened)"
        )
    files = remote_shards(action.url)
    with bars({"index": len(files)}) as shown, ThreadPoolExecutor(_MAX_INDEXING_THREADS) as threads:
        num_read = 0
        try:
            for number, was_read in enumerate(threads.map(index_remote, files), start=1):
                num_read += was_read
                shown.update("index", number, "")
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    pairs, shards = count_of(len(TarShards(files)), "pair"), count_of(len(files), "shard")
    print(f"{pairs} in {shards}; shards read now: {num_read:,}")
    return 0


def _format_stats(stats: "DatasetStats") -> str:
    """Return the statistics as text."""
    sampled = "" if stats.num_read == stats.num_pairs else f", {stats.num_read:,} of them inspected"
    lines = [f"pairs             {stats.num_pairs:,}{sampled}"]
    if stats.num_images is not None:
        lines.append(f"images            {stats.num_images:,}")
    lines.append(f"captions          {stats.num_captions:,}")
    if stats.shards is not None:
        lines.append(f"shards            {stats.shards:,}, truncated: {', '.join(stats.truncated_shards) or 'none'}")
    for cause, count in stats.broken.most_common():
        lines.append(f"broken            {count:,} × {cause}")
        lines += [f"                  {escape_control_chars(example)}" for example in stats.examples[cause]]
    if not stats.broken:
        lines.append("broken            none")
    for name, number in (("captions", stats.duplicate_captions), ("images", stats.duplicate_images)):
        if number is not None:
            lines.append(f"duplicate {name:<8} {number:,}")
    if stats.vocabulary is not None:
        lines.append(f"different words   {stats.vocabulary:,}")
    lines.append("words per caption")
    largest = max(stats.word_histogram().values(), default=1)
    for words, count in stats.word_histogram().items():
        lines.append(f"  {words:>7}  {count:>9,}  {'█' * round(40 * count / max(largest, 1))}")
    sizes = ", ".join(f"{w}×{h} ({number:,})" for (w, h), number in stats.image_sizes.most_common(_NUM_SIZES_SHOWN))
    lines.append(f"image sizes       {len(stats.image_sizes):,} different; most frequent {sizes or 'none'}")
    return "\n".join(lines)


def _as_json(stats: "DatasetStats") -> str:
    content = asdict(stats)
    content["broken"] = dict(stats.broken)  # `asdict` cannot copy a Counter
    content["caption_words"] = stats.word_histogram()
    content["image_sizes"] = {f"{w}x{h}": number for (w, h), number in stats.image_sizes.most_common()}
    return to_json(content, indent=2)
