"""`grr-coca export web`: write a page that searches images in the browser, as static files."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.cli.flags import OptionalCheckpointFlag, PicturesFlag
from grr_coca.cli.output import require_new_folder
from grr_coca.cli.progress import bars
from grr_coca.common import plugins
from grr_coca.common.errors import UserError, count_of
from grr_coca.common.files import is_within
from grr_coca.infer.load import locate_checkpoint
from grr_coca.model.checkpoint_files import DEFAULT, is_adapted


def run(
    out: Annotated[Path, tyro.conf.arg(metavar="SITE")],
    checkpoint: OptionalCheckpointFlag = None,
    index: Annotated[str | None, tyro.conf.arg(metavar="INDEX")] = None,
    title: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None,
    runtime: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    pictures: PicturesFlag = (),
) -> None:
    """Write a folder of static files for any web host: a page that captions and searches images in the browser.

    No data is sent to a server, and the page works offline once it has been loaded. The images of the index are
    included, scaled down, and their paths are relative to their common folder. If the model is adapted, its base model
    captions the images that users drop on the page. If the model was trained with a third-party image encoder, the page
    also runs this encoder, up to 30 MB. Without the encoder's graph, or if the model was adapted to features in place
    of images, images can be searched only by text.

    Args:
        out: new folder for the site.
        checkpoint: checkpoint or run folder, name of a bundled model, OWNER/NAME on the hub, or a folder that export
            onnx has written, even in int8; default: the model of the index, or icons.
        index: index of the images to search; without an index, the page only captions images.
        title: name of the site; default: name of the index.
        runtime: archive of the npm package onnxruntime-web; default: npm downloads it once.
        pictures: show only pictures in this folder. Required to show images of an index from `import index`.
    """
    from grr_coca.infer.adapted.beside import replacing_encoder, takes_pixels
    from grr_coca.model.checkpoint_files import read_files
    from grr_coca_search.index import IndexModel
    from grr_coca_search.relevance import curve_of
    from grr_coca_search.store import open_store
    from grr_coca_serve import site  # lazy imports, here and below, because other commands need none of these

    require_new_folder(out)
    library: site.Library | None = None
    with nullcontext() if index is None else open_store(index) as store:
        named = checkpoint or (DEFAULT if store is None else store.header.model)
        folder, model = locate_checkpoint(named), IndexModel(named)
        features = replacing_encoder(folder)
        without_encoder = UserError(
            f"{named}: a page cannot compute the image encoder{f' {features.name}' if features else ''} of this model; "
            "pass --index to search images by text, or use grr-coca serve"
        )
        if store is None and not takes_pixels(folder):
            raise without_encoder
        site.require_tokenizer(folder)
        if store is not None:
            model.require(store.header, store.location)
        files = site.find_runtime(runtime)
        curve = curve_of(folder, read_files(folder).config)
        if store is not None:
            library = site.read_library(store, curve)
            if pictures or store.was_imported():
                entries = [one if is_within(one.file, pictures) else replace(one, file="") for one in library.entries]
                library = replace(library, entries=entries)
            for extended in plugins.values("grr_coca.site"):
                library = extended(library, model)
    images = 0 if library is None else len(library.entries)
    with site.graphs_of(folder) as graphs, bars({"images": images}) as shown:
        takes_images = features is None or (takes_pixels(folder) and site.read_page_encoder(graphs) is not None)
        if library is None and not takes_images:
            raise without_encoder
        site.write_site(
            graphs,
            out,
            files,
            library,
            adapted=folder if is_adapted(folder) else None,
            takes_images=takes_images,
            title=title or (Path(named).name if index is None else Path(index.rstrip("/")).stem),
            model=Path(named).name,
            on_progress=lambda done, _: shown.update("images", done, ""),
        )
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    print(
        f"page with {count_of(images, 'image')} ({size:.1f} MB) written to {out}; "
        f"to try the page, run: python -m http.server --directory {out}"
    )
