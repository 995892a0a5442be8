"""`grr-coca classify`: find the labels that match images best."""

from contextlib import nullcontext
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

import grr_coca
from grr_coca.cli.flags import (
    CheckpointFlag,
    EngineFlag,
    ExcludeFlag,
    Flag,
    ImageArguments,
    Lists,
    join_lists,
    require_batch_size,
)
from grr_coca.cli.output import close_and_report, print_line, report_unfamiliar
from grr_coca.common.errors import UserError, escape_control_chars
from grr_coca.common.outputs import to_json
from grr_coca.infer.class_names import BARE_NAME, check_class_names, read_class_names
from grr_coca.infer.outputs.caption_files import XmpFiles
from grr_coca.model.checkpoint_files import DEFAULT

if TYPE_CHECKING:
    from grr_coca.data.image_files import ImageFile
    from grr_coca.infer.image_text_model import LabelProbability

_MIN_PROBABILITY = 0.5
"""Default minimum probability for adding a label as a keyword."""


def run(
    labels: Annotated[str, tyro.conf.arg(metavar="A,B,…|FILE")],
    checkpoint: CheckpointFlag = DEFAULT,
    images: ImageArguments = (),
    templates: Annotated[Lists[str], tyro.conf.arg(metavar="TEXT")] = (),
    top: int = 5,
    sidecar: Annotated[Literal["xmp"] | None, tyro.conf.arg(metavar="xmp")] = None,
    min_probability: Annotated[float | None, tyro.conf.arg(metavar="0…1")] = None,
    json: Flag = False,
    exclude: ExcludeFlag = (),
    batch_size: int = 32,
    engine: EngineFlag = "auto",
) -> int:
    """Find the best matching labels of images. Any labels work: the model need not be trained on them (zero-shot).

    Images that cannot be read are listed at the end. The exit code is 1 only if no image was classified.

    Args:
        checkpoint: folder, name of a model (see `grr-coca models`), or OWNER/NAME on the Hugging Face hub.
        labels: two or more labels, separated by commas, or a text file with one label per line.
        images: image files, folders, patterns, .tar shards, or tables of images.
        templates: texts with {} in place of the label, such as "a drawing of a {}"; their embeddings are averaged.
            If none is given, only the label is used.
        top: number of labels to show for each image, most likely first.
        sidecar: also add labels as keywords to the XMP file next to each image, which photo managers read. Images
            unlike the training images get no keywords.
        min_probability: with --sidecar, a label is added if it has at least this probability; if not given, 0.5.
        json: print JSON lines.
        exclude: exclude files that match this pattern of .gitignore, such as "raw/" or "*.gif".
        batch_size: images per batch.
        engine: onnx (on a CPU) or torch; auto chooses by a fixed rule.
    """
    if top < 1:
        raise UserError(f"--top must be at least 1, got {top}")
    if min_probability is not None and sidecar is None:
        raise UserError("--min-probability applies only to keywords in XMP files; add --sidecar xmp")
    min_share = _MIN_PROBABILITY if min_probability is None else min_probability
    if not 0 <= min_share <= 1:
        raise UserError(f"--min-probability must be from 0 to 1, got {min_share:g}")
    require_batch_size(batch_size)
    names = _class_names(labels)
    if not images and templates:
        raise UserError("no images given; --templates takes all arguments after it, so pass the images before it")
    from grr_coca.cli.image_work import (  # lazy import: NumPy and Pillow
        find_inputs,
        process_images,
        shows_progress,
    )

    found, folder = find_inputs(images, exclude, checkpoint)
    sidecars = XmpFiles(found, instead="--json") if sidecar == "xmp" else None
    model = grr_coca.load(folder, engine=engine)
    classifier = model.classifier(names, join_lists(templates) or BARE_NAME)

    unfamiliar: list[bool | None] = []

    def classify(_: "list[ImageFile]", opened: list) -> "list[tuple[list[LabelProbability], bool | None]]":
        ranked = model.rank_labels(classifier, model.embed_images(opened, batch_size=batch_size))
        judged = opened if sidecars is not None else []
        return list(zip_longest(ranked, model.are_unfamiliar(judged, batch_size=batch_size)))

    def write(files: "list[ImageFile]", ranked: "list[tuple[list[LabelProbability], bool | None]]") -> None:
        for file, (all_labels, is_unfamiliar) in zip(files, ranked, strict=True):
            unfamiliar.append(is_unfamiliar)
            best = all_labels[:top]
            shown = "   ".join(f"{share:.1%} {label}" for label, share in best)
            choices = [choice._asdict() for choice in best]
            record = {"image": file.name, "labels": choices, "engine": model.engine.name}
            print_line(to_json(record) if json else f"{escape_control_chars(file.name)}\t{shown}")
            keywords = [label for label, share in all_labels if share >= min_share]
            if sidecars is not None and keywords and not is_unfamiliar:
                sidecars.add_keywords(file, keywords)

    with nullcontext() if sidecars is None else close_and_report(sidecars):
        code = process_images(found, model, batch_size, "classified", classify, write, shows_progress(prints=True))
        if sidecars is not None:
            report_unfamiliar(unfamiliar)
    return code


def _class_names(argument: str) -> tuple[str, ...]:
    path = Path(argument)
    names = [name.strip() for name in argument.split(",") if name.strip()]
    try:
        is_file = path.exists() and not path.is_dir()  # the argument may also be a pipe, such as `<(command)`
    except OSError:
        if len(names) < 2:
            raise
        is_file = False  # the list of labels is too long for a file name
    if is_file:
        return read_class_names(path)
    if len(names) < 2:
        raise UserError(
            f"--labels '{argument}': neither a file nor two labels; pass a file, or labels separated by commas"
        )
    return check_class_names(names, "--labels")
