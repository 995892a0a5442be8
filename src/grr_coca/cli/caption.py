"""`grr-coca caption`: caption images, to standard output or to files.

A file of rows grows row by row, so an interrupted job can continue.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from grr_coca.cli.flags import CheckpointFlag, EngineFlag, ExcludeFlag, Flag, ImageArguments, require_batch_size
from grr_coca.cli.output import close_and_report, print_line, report_unfamiliar
from grr_coca.common.errors import UserError, escape_control_chars, require_extra
from grr_coca.common.outputs import require_not_an_input, to_json
from grr_coca.infer.generate.options import GenerationOptions
from grr_coca.infer.on_ray import Machines
from grr_coca.infer.outputs.caption_files import CaptionFile, CaptionOutput, TextFiles, XmpFiles, caption_rows
from grr_coca.model.checkpoint_files import DEFAULT

if TYPE_CHECKING:
    from grr_coca.data.image_files import ImageFile
    from grr_coca.infer import Description


SidecarKind = Literal["txt", "xmp"]


@dataclass(frozen=True)
class Decoding(GenerationOptions):
    """Decoding options as flags.

    `checked` validates them after parsing, so that errors are reported in this program's format.
    """

    def __post_init__(self) -> None: ...

    def checked(self) -> GenerationOptions:
        """Return the validated options.

        Raises:
            UserError: If a value is out of range, or two options contradict each other.
        """
        return GenerationOptions(**vars(self))


def run(
    checkpoint: CheckpointFlag = DEFAULT,
    images: ImageArguments = (),
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    sidecar: Annotated[SidecarKind | None, tyro.conf.arg(metavar="txt|xmp")] = None,
    overwrite: Flag = False,
    json: Flag = False,
    tags: Annotated[int, tyro.conf.arg(metavar="N")] = 0,
    prompt: Annotated[str, tyro.conf.arg(metavar="TEXT")] = "",
    exclude: ExcludeFlag = (),
    batch_size: int = 32,
    on: Annotated[Machines, tyro.conf.arg(metavar="this|ray")] = "this",
    engine: EngineFlag = "auto",
    decoding: Annotated[Decoding, tyro.conf.OmitArgPrefixes] = Decoding(),
) -> int:
    """Caption images. Each output line is: image, tab, caption.

    Images that cannot be read are listed at the end. The exit code is 1 only if no image was captioned.

    Args:
        checkpoint: folder, name of a model (see `grr-coca models`), or OWNER/NAME on the Hugging Face hub.
        images: image files, folders, patterns, .tar shards, or tables of images.
        out: write rows to this .jsonl or .csv file; images that are already in it are not captioned again.
        sidecar: write a caption next to each image without one: into NAME.txt, or into NAME.jpg.xmp, which photo
            managers read; other content of such a file is kept. Images unlike the training images get no caption.
        overwrite: with --sidecar, also replace existing captions.
        json: print JSON lines, also with the probability that a caption is exactly right (confidence), and whether the
            image is unlike the training images (unfamiliar); null means unknown.
        tags: also print this many words for each image, the most likely first, with their probabilities in --json.
            Captions then come from beam search.
        prompt: text that every caption begins with.
        exclude: exclude files that match this pattern of .gitignore, such as "raw/" or "*.gif".
        batch_size: images per batch.
        on: this machine, or the Ray cluster at RAY_ADDRESS, whose machines must see the same files.
        engine: onnx (on a CPU) or torch; auto chooses by a fixed rule.
        decoding: Greedy by default. Lengths are in tokens, without the prompt.
    """
    options = decoding.checked()
    require_batch_size(batch_size)
    _require_tags(tags, is_printed=out is None and sidecar is None and on == "this")
    if out is not None:
        require_not_an_input(out, images)
    if on == "ray":
        require_extra("ray", "--on ray")
    from grr_coca.cli.image_work import (  # lazy import: NumPy and Pillow
        describe_images,
        find_inputs,
        shows_progress,
    )

    found, folder = find_inputs(images, exclude, checkpoint)
    with close_and_report(_open_output(out, sidecar, overwrite, json, found, options.num_captions)) as output:
        num_captioned = sum(image.name in output.done for image in found)
        if num_captioned:
            print(f"{num_captioned} of {len(found)} images already have captions", file=sys.stderr)
        remaining = [image for image in found if image.name not in output.done and image.name not in output.unusable]
        if not remaining:
            return int(not num_captioned)
        best: list[str] = []
        names: list[str] = []
        unfamiliar: list[bool | None] = []

        def write(files: "list[ImageFile]", described: "list[Description]") -> None:
            nonlocal num_captioned
            for file, description in zip(files, described, strict=True):
                names.append(file.name)
                unfamiliar.append(description.unfamiliar)
                if sidecar is not None and description.unfamiliar:
                    continue
                output.write(file, description)
                num_captioned += file.name not in output.unusable
                best.append(description.captions[0].text)

        shown = shows_progress(prints=out is None and sidecar is None)
        describe_images(
            remaining,
            folder,
            engine,
            on,
            captioning=(prompt, options),
            num_tags=tags,
            batch_size=batch_size,
            label="captions",
            take=write,
            show_progress=shown,
        )
    from grr_coca.infer.generate import warn_if_repeated
    from grr_coca.infer.image_text_model import warn_if_unfamiliar

    warn_if_repeated(best)
    if sidecar is None:
        warn_if_unfamiliar(unfamiliar, names)
    else:
        report_unfamiliar(unfamiliar)
    return int(not num_captioned)


def _require_tags(count: int, *, is_printed: bool) -> None:
    """Check that the number of tags is valid and that the output can have tags.

    Raises:
        UserError: If it is invalid, or the output cannot have tags.
    """
    from grr_coca.infer.tags import MAX_TAGS  # lazy import: NumPy

    if not 0 <= count <= MAX_TAGS:
        raise UserError(f"--tags must be from 0 to {MAX_TAGS}, got {count}")
    if count and not is_printed:
        raise UserError("--tags cannot be combined with --out, --sidecar or --on ray; use --json for programs")


def _open_output(
    out: Path | None,
    sidecar: SidecarKind | None,
    overwrite: bool,
    json: bool,
    images: "Sequence[ImageFile]",
    num_captions: int,
) -> CaptionOutput:
    """Return the output that the flags select.

    Raises:
        UserError: If the flags select two outputs, or an output that these images cannot have.
    """
    outputs = [name for name, is_set in (("--out", out), ("--sidecar", sidecar), ("--json", json)) if is_set]
    if len(outputs) > 1:
        raise UserError(f"{' and '.join(outputs)} cannot be combined; use one of them")
    if overwrite and sidecar is None:
        raise UserError("--overwrite replaces captions next to images; add --sidecar txt or --sidecar xmp")
    if out is not None:
        return CaptionFile(out, images, num_captions)
    if sidecar is not None:
        return {"txt": TextFiles, "xmp": XmpFiles}[sidecar](images, overwrite=overwrite, instead="--out FILE")
    return _StandardOutput(json)


class _StandardOutput(CaptionOutput):
    """Captions on standard output, one line each: image, tab, caption and, if requested, another tab and the tags; or
    JSON."""

    def __init__(self, json: bool) -> None:
        super().__init__()
        self._json = json

    def write(self, image: "ImageFile", description: "Description") -> None:
        for row, (confidence, unfamiliar) in zip(
            caption_rows(image, description.captions), description.caption_confidences, strict=True
        ):
            shown = None if confidence is None else round(confidence, 4)
            record = {**row._asdict(), "confidence": shown, "unfamiliar": unfamiliar, "engine": description.engine}
            if description.tags:
                record["tags"] = [{"tag": tag, "probability": round(p, 4)} for tag, p in description.tags]
            words = f"\t{', '.join(tag.text for tag in description.tags)}" if description.tags else ""
            print_line(to_json(record) if self._json else f"{escape_control_chars(row.image)}\t{row.caption}{words}")
