"""`grr-coca embed`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

import grr_coca
from grr_coca.cli.image_work import describe_on_ray, report_if_none_exists, shows_progress, work_through
from grr_coca.cli.progress import bars
from grr_coca.cli.vectors import check_format, check_keys, check_places, write_vectors
from grr_coca.data.image_files import ImageFile, find_images
from grr_coca.errors import UserError
from grr_coca.extras import require_extra
from grr_coca.files import read_lines
from grr_coca.inference.locate import locate_checkpoint
from grr_coca.inference.on_ray import Machines
from grr_coca.registry import DEFAULT

if TYPE_CHECKING:
    from torch import Tensor

    from grr_coca.inference import Description


def run(
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    checkpoint: Annotated[str, tyro.conf.arg(aliases=["-c"], metavar="NAME|DIR")] = DEFAULT,
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")] = (),
    texts: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    batch_size: int = 32,
    on: Annotated[Machines, tyro.conf.arg(metavar="this|ray")] = "this",
) -> int:
    """Embed images or texts as vectors of unit length. The dot product of two vectors is their similarity.

    Images that cannot be read are listed at the end. The exit code is 1 only if no image was embedded.

    Args:
        checkpoint: folder, name of a model (see `grr-coca models`), or OWNER/NAME on the Hugging Face hub.
        out: file to write: .safetensors or .parquet with keys inside, or .npy with keys in NAME.keys.txt beside it.
        images: image files, folders, patterns, .tar shards, or tables of images.
        texts: text file with one text per line, to embed texts instead of images.
        batch_size: images or texts at once.
        on: this machine, or the machines of a Ray cluster (that of RAY_ADDRESS), which must see the same files.
    """
    if on == "ray":
        require_extra("ray", "--on ray")
    if bool(images) == bool(texts):
        raise UserError("give either images or --texts FILE" + (", not both" if texts else " to embed"))
    check_format(out)
    if texts is None:
        found = find_images(images)
        folder = locate_checkpoint(checkpoint)
        code = report_if_none_exists(found)
        if code is not None:
            return code
        check_keys(out, [file.name for file in found])
        check_places(out, images)
        keys, vectors, code = (_embed_on_ray if on == "ray" else _embed_images)(found, folder, batch_size)
    else:
        lines, folder = list(read_lines(texts).values()), locate_checkpoint(checkpoint)
        check_keys(out, lines)
        check_places(out, [texts])
        keys, vectors, code = *_embed_texts(lines, folder, batch_size), 0
    if keys:
        write_vectors(out, keys, vectors)
        print(f"{len(vectors)} embeddings of {vectors.shape[1]} numbers are in {out}")
    return code


def _embed_images(found: list[ImageFile], checkpoint: Path, batch_size: int) -> "tuple[list[str], Tensor, int]":
    import torch  # late: the command line answers without it if it can

    model = grr_coca.load(checkpoint)
    keys: list[str] = []
    rows: list[Tensor] = []

    def embed(files: list[ImageFile], pictures: list) -> None:
        rows.append(model.embed_images(pictures, batch_size=batch_size))
        keys.extend(file.name for file in files)

    code = work_through(found, model.checkpoint.preprocess, batch_size, "embedded", embed, shows_progress(prints=False))
    return keys, torch.cat(rows) if rows else torch.empty(0, 0), code


def _embed_on_ray(found: list[ImageFile], checkpoint: Path, batch_size: int) -> "tuple[list[str], Tensor, int]":
    import torch

    keys: list[str] = []
    rows: list[Tensor] = []

    def take(files: list[ImageFile], described: "list[Description]") -> None:
        keys.extend(file.name for file in files)
        rows.extend(one.embedding for one in described)

    code = describe_on_ray(
        found,
        checkpoint,
        captioning=None,
        batch_size=batch_size,
        label="embedded",
        take=take,
        show_progress=shows_progress(prints=False),
    )
    return keys, torch.stack(rows) if rows else torch.empty(0, 0), code


def _embed_texts(lines: list[str], checkpoint: Path, batch_size: int) -> "tuple[list[str], Tensor]":
    model = grr_coca.load(checkpoint)
    with bars({"embedded": len(lines)}) as shown:
        vectors = model.embed_texts(
            lines, batch_size=batch_size, on_progress=lambda done, _: shown.update("embedded", done, "")
        )
    return lines, vectors
