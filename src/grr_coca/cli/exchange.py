"""`grr-coca import`, `export` and `push`: checkpoints and indexes for other programs and for the Hugging Face hub."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from grr_coca.cli.flags import CheckpointFlag, Flag, IndexArgument, OptionalCheckpointFlag, PicturesFlag
from grr_coca.cli.output import require_free, say
from grr_coca.cli.progress import bars
from grr_coca.common.errors import UserError
from grr_coca.common.extras import require_extra
from grr_coca.common.files import is_within
from grr_coca.common.outputs import require_suffix, require_writable, write_output
from grr_coca.infer.locate import locate_checkpoint
from grr_coca.model import hub
from grr_coca.model.open_clip_checkpoints import find_weights
from grr_coca.model.shipped_models import DEFAULT


def import_open_clip(
    path: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    model: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    as_stored: Flag = False,
) -> None:
    """Convert a CoCa checkpoint of open_clip to one that every verb accepts.

    Args:
        path: folder in the hub's layout, or a file of weights: .safetensors or .bin. No code in it is run.
        out: new folder for the checkpoint.
        model: open_clip's name of the architecture, such as coca_ViT-B-32; if not given, read from
            open_clip_config.json or from the shapes of the weights.
        as_stored: open images as open_clip does: ignore EXIF rotation and transparency.
    """
    find_weights(path)
    require_free(out)
    require_extra("open-clip", "converting a checkpoint of open_clip")

    from grr_coca.model.checkpoint import save_checkpoint  # late: imports torch
    from grr_coca.model.open_clip_checkpoints.read import read_open_clip

    checkpoint = read_open_clip(path, model)
    if as_stored:
        checkpoint = replace(checkpoint, preprocess=replace(checkpoint.preprocess, opening="as_stored"))
    save_checkpoint(checkpoint, out)
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    print(
        f"open_clip's CoCa of {parameters / 1e6:.1f} M parameters, {checkpoint.preprocess.image_size} px, is in {out}"
    )
    if checkpoint.caution:
        print(f"caution: {checkpoint.caution}")


def export_open_clip(
    checkpoint: CheckpointFlag,
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")],
) -> None:
    """Write a checkpoint that open_clip loads. The model must have open_clip's architecture.

    Args:
        checkpoint: folder, or OWNER/NAME on the Hugging Face hub.
        out: new folder for open_clip_model.safetensors and open_clip_config.json.
    """
    folder = locate_checkpoint(checkpoint)
    require_free(out)
    require_extra("torch", "exporting to open_clip")

    from grr_coca.model.checkpoint import from_pretrained  # late: imports torch
    from grr_coca.model.open_clip_checkpoints.write import write_open_clip

    write_open_clip(from_pretrained(folder), out)
    print(f"open_clip loads it: open_clip.create_model_and_transforms('local-dir:{out}')")


def export_onnx(
    checkpoint: CheckpointFlag,
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")],
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
) -> None:
    """Write a checkpoint as ONNX graphs, which caption and embed without PyTorch. FOLDER/README.md shows how.

    Args:
        checkpoint: checkpoint or run folder, name of a shipped model, or OWNER/NAME on the Hugging Face hub.
        out: new folder for the graphs, weights, tokenizer and preprocessing.
        precision: of the weights. fp32 keeps them as they are stored, fp16 rounds them to half the size. int8 is
            smallest and fastest, and changes results slightly.
    """
    folder = locate_checkpoint(checkpoint)
    require_free(out)
    require_extra("export", "exporting to ONNX")

    from grr_coca.infer.export.write import write_onnx  # late: imports torch

    write_onnx(folder, out, precision)
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"{size:.1f} MB, {precision}, are in {out}; {out / 'README.md'} shows how to use them")


def export_web(
    out: Annotated[Path, tyro.conf.arg(metavar="SITE")],
    checkpoint: OptionalCheckpointFlag = None,
    index: Annotated[str | None, tyro.conf.arg(metavar="INDEX")] = None,
    title: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None,
    runtime: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    pictures: PicturesFlag = (),
) -> None:
    """Write a folder of static files for any web host: a page that captions and searches images in the browser.

    Nothing is sent to a server, and the page works offline once it is loaded. Images of the index come with it, scaled
    down; their paths are written relative to the folder that all of them are in.

    Args:
        out: new folder for the site.
        checkpoint: checkpoint or run folder, name of a shipped model, OWNER/NAME on the hub, or a folder that
            export onnx wrote, also in int8; if not given, the model of the index, or icons.
        index: the images that can be searched; if not given, the page captions images only.
        title: name of the site; if not given, that of the index.
        runtime: archive of the npm package onnxruntime-web; if not given, npm fetches it once.
        pictures: show only pictures in this folder. An index that `import index` made shows none without it.
    """
    from grr_coca.model.checkpoint_without_weights import read_files
    from grr_coca.search.index_model import IndexModel
    from grr_coca.search.relevance import curve_of
    from grr_coca.search.stores import open_store
    from grr_coca.serve import site  # late, as below: other verbs need none of this

    require_free(out)
    library: site.Library | None = None
    with nullcontext() if index is None else open_store(index) as store:
        named = checkpoint or (DEFAULT if store is None else store.header.model)
        folder, model = locate_checkpoint(named), IndexModel(named)
        if store is not None:
            model.require(store.header, store.location)
        files = site.find_runtime(runtime)
        curve = curve_of(folder, read_files(folder).config)
        if store is not None:
            library = site.read_library(store, curve)
            if pictures or store.was_imported():
                entries = [one if is_within(one.file, pictures) else replace(one, file="") for one in library.entries]
                library = replace(library, entries=entries)
            library = site.with_others(library, model)
    images = 0 if library is None else len(library.entries)
    with site.graphs_of(folder) as graphs, bars({"images": images}) as shown:
        site.write_site(
            graphs,
            out,
            files,
            library,
            title=title or (Path(named).name if index is None else Path(index.rstrip("/")).stem),
            model=Path(named).name,
            on_progress=lambda done, _: shown.update("images", done, ""),
        )
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    print(f"{size:.1f} MB, {images:,} images, are in {out}; try it: python -m http.server --directory {out}")


def import_index(
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.parquet")],
    out: Annotated[str, tyro.conf.arg(metavar="INDEX")],
) -> None:
    """Make an index from a Parquet file that `export index` wrote. This needs no model and reads no images.

    Args:
        path: .parquet file.
        out: folder of the new index, or http://HOST:PORT/NAME of a Milvus server.
    """
    from grr_coca.search.portable import import_parquet  # late, as below: only verbs of indexes need it

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    print(f"{out}: {import_parquet(path, out):,} images of {path}")


def export_index(
    index: IndexArgument,
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.parquet")],
) -> None:
    """Write an index to a Parquet file, from which `import index` restores it without the model.

    Args:
        index: folder, or http://HOST:PORT/NAME of a Milvus server.
        out: .parquet file to write.
    """
    from grr_coca.search.portable import export_parquet
    from grr_coca.search.stores import open_store

    require_suffix(out, (".parquet",))
    require_extra("parquet", "exporting an index")
    counts: list[int] = []
    with open_store(index) as store:
        require_writable(out)
        write_output(out, lambda file: counts.append(export_parquet(store, file)))
    print(f"{counts[0]:,} images of {index} are in {out}")


def push(
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME|DIR")],
    hub_id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")],
    licence: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None,
    data: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None,
    figures: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    private: Flag = False,
    update: Flag = False,
    dry_run: Flag = False,
) -> None:
    """Upload a checkpoint to the Hugging Face hub, with a model card, in one commit.

    Weights, config, tokenizer and preprocessing are uploaded. Recipe, logs and training state are not.

    Args:
        checkpoint: checkpoint or run folder, or name of a shipped model.
        hub_id: name of the repository.
        licence: licence of the weights, such as apache-2.0.
        data: what the model was trained on, for the card.
        figures: measured numbers for the card, a file that evaluate --json wrote.
        private: make a new repository private, and refuse to update a public one.
        update: add a commit to an existing repository.
        dry_run: print the card and the files, and upload nothing.
    """
    hub.check_hub_id(hub_id)
    folder = locate_checkpoint(checkpoint)
    files = hub.files_to_push(folder)
    facts = hub.gather_facts(folder, hub_id, data, licence, None if figures is None else hub.read_figures(figures))
    card = hub.model_card(facts)
    if dry_run:
        sizes = {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in {**files, hub.README: card.encode()}.items()
        }
        say(card)
        for name, size in sizes.items():
            say(f"{name:<20} {size:>15,} bytes")
        say(f"would be uploaded to {hub_id}; nothing was sent")
        return
    print(f"{hub.push_files(files, card, hub_id, private=private, update=update)}\n")
    print(f'grr_coca.load("{hub_id}") loads it')
