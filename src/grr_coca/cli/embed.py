"""`grr-coca embed`: write embeddings with their keys, in formats that other programs read.

Shapes: N rows, E embedding width.
"""

from pathlib import Path
from typing import Annotated

import tyro

import grr_coca
from grr_coca.cli.flags import CheckpointFlag, EngineFlag, ExcludeFlag, ImageArguments, require_batch_size
from grr_coca.cli.progress import bars
from grr_coca.common.errors import UserError, count_of, require_extra
from grr_coca.common.files import read_lines
from grr_coca.infer.load import locate_checkpoint
from grr_coca.infer.on_ray import Machines
from grr_coca.infer.outputs.vector_files import VectorBuffer, check_format, check_output, write_vectors
from grr_coca.model.checkpoint_files import DEFAULT


def run(
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    checkpoint: CheckpointFlag = DEFAULT,
    images: ImageArguments = (),
    texts: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    exclude: ExcludeFlag = (),
    batch_size: int = 32,
    on: Annotated[Machines, tyro.conf.arg(metavar="this|ray")] = "this",
    engine: EngineFlag = "auto",
) -> int:
    """Embed images or texts as vectors of unit length. The dot product of two vectors is their similarity.

    Images that cannot be read are listed at the end. The exit code is 1 only if no image was embedded.

    Args:
        checkpoint: folder, name of a model (see `grr-coca models`), or OWNER/NAME on the Hugging Face hub.
        out: file to write: .safetensors or .parquet with keys inside, or .npy with keys in NAME.keys.txt next to it.
        images: image files, folders, patterns, .tar shards, or tables of images.
        texts: text file with one text per line, to embed texts instead of images.
        exclude: exclude files that match this pattern of .gitignore, such as "raw/" or "*.gif".
        batch_size: images or texts per batch.
        on: this machine, or the Ray cluster at RAY_ADDRESS, whose machines must see the same files.
        engine: onnx (on a CPU) or torch; auto chooses by a fixed rule.
    """
    if bool(images) == bool(texts):
        raise UserError("pass either images or --texts FILE" + (", not both" if texts else " to embed"))
    for flag, is_given in (("--exclude", bool(exclude)), ("--on ray", on == "ray")):
        if is_given and texts is not None:
            raise UserError(f"{flag} applies only to images; omit it to embed --texts")
    require_batch_size(batch_size)
    if on == "ray":
        require_extra("ray", "--on ray")
    check_format(out)
    if texts is None:
        from grr_coca.cli.image_work import describe_images, find_inputs  # lazy import: NumPy and Pillow

        found, folder = find_inputs(images, exclude, checkpoint)
        check_output(out, [file.name for file in found], images)
        collected = VectorBuffer(len(found))
        code = describe_images(
            found,
            folder,
            engine,
            on,
            captioning=None,
            batch_size=batch_size,
            label="embedded",
            take=lambda files, described: collected.add(files, [one.embedding for one in described]),
            show_progress=True,
        )
        keys, vectors = collected.keys, collected.vectors
    else:
        lines, folder = list(read_lines(texts).values()), locate_checkpoint(checkpoint)
        check_output(out, lines, [texts])
        model = grr_coca.load(folder, engine=engine)
        with bars({"embedded": len(lines)}) as shown:
            vectors = model.embed_texts(
                lines, batch_size=batch_size, on_progress=lambda done, _: shown.update("embedded", done, "")
            )
        keys, code = lines, 0
    if keys:
        write_vectors(out, keys, vectors)
        print(f"{count_of(len(vectors), 'embedding')} of {vectors.shape[1]} numbers written to {out}")
    return code
