"""`grr-coca caption`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

import grr_coca
from grr_coca.cli.caption_output import open_output
from grr_coca.cli.image_work import describe_on_ray, report_if_none_exists, shows_progress, work_through
from grr_coca.data.image_files import ImageFile, find_images
from grr_coca.errors import UserError
from grr_coca.extras import require_extra
from grr_coca.generate.options import GenerationOptions
from grr_coca.inference.locate import locate_checkpoint
from grr_coca.inference.on_ray import Machines
from grr_coca.registry import DEFAULT

if TYPE_CHECKING:
    from grr_coca.inference import Description


@dataclass(frozen=True)
class Decoding(GenerationOptions):
    """The options as flags. They are checked after parsing, because the parser would print a conflict in its own
    style."""

    def __post_init__(self) -> None: ...

    def checked(self) -> GenerationOptions:
        """The options.

        Raises:
            UserError: a value is out of range, or two options contradict each other.
        """
        return GenerationOptions(**vars(self))


def run(
    checkpoint: Annotated[str, tyro.conf.arg(aliases=["-c"], metavar="NAME|DIR")] = DEFAULT,
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")] = (),
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    sidecar: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    prompt: Annotated[str, tyro.conf.arg(metavar="TEXT")] = "",
    batch_size: int = 32,
    on: Annotated[Machines, tyro.conf.arg(metavar="this|ray")] = "this",
    decoding: Annotated[Decoding, tyro.conf.OmitArgPrefixes] = Decoding(),
) -> int:
    """Caption images, with a line for each: the image, a tab, the caption.

    Images that cannot be read are listed at the end. The exit code is 1 only if no image was captioned.

    Args:
        checkpoint: folder, name of a model (see `grr-coca models`), or OWNER/NAME on the Hugging Face hub.
        images: image files, folders, patterns, .tar shards, or tables of images.
        out: write rows to this .jsonl or .csv file; images that are in it already are not captioned again.
        sidecar: write NAME.txt beside each image that does not have one.
        json: print JSON lines.
        prompt: words that every caption begins with.
        batch_size: images at once.
        on: this machine, or the machines of a Ray cluster (that of RAY_ADDRESS), which must see the same files.
        decoding: Greedy by default. Lengths are in tokens and do not count the prompt.
    """
    options = decoding.checked()
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: give 1 or more")
    if on == "ray":
        require_extra("ray", "--on ray")
    found = find_images(images)
    folder = locate_checkpoint(checkpoint)
    code = report_if_none_exists(found)
    if code is not None:
        return code
    with open_output(out, sidecar, json, found, options.num_captions) as output:
        wanted = [image for image in found if image.name not in output.done]
        if len(wanted) < len(found):
            print(f"{len(found) - len(wanted)} of {len(found)} images have captions already", file=sys.stderr)
        if not wanted:
            return 0
        best: list[str] = []

        def write(files: list[ImageFile], described: "list[Description]") -> None:
            for file, description in zip(files, described, strict=True):
                output.write(file, description.captions)
                best.append(description.captions[0].text)

        shown = shows_progress(prints=out is None and not sidecar)
        if on == "ray":
            code = describe_on_ray(
                wanted,
                folder,
                captioning=(prompt, options),
                batch_size=batch_size,
                label="captions",
                take=write,
                show_progress=shown,
            )
        else:
            model = grr_coca.load(folder)

            def caption(files: list[ImageFile], pictures: list) -> None:
                names = [file.name for file in files]
                write(files, model.describe_many(pictures, prompt, options, batch_size, keys=names))

            code = work_through(wanted, model.checkpoint.preprocess, batch_size, "captions", caption, shown)
    from grr_coca.generate import warn_if_repeated  # late, as `load` is: torch comes with it

    warn_if_repeated(best)
    return code if len(wanted) == len(found) else 0
