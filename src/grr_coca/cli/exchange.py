"""`grr-coca export onnx` and `push`: a checkpoint for other programs and for the Hugging Face hub."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import tyro

from grr_coca.cli.flags import CheckpointFlag, Flag
from grr_coca.cli.output import print_line, require_new_folder
from grr_coca.common.errors import UserError, require_extra
from grr_coca.infer.load import locate_checkpoint
from grr_coca.model import hub
from grr_coca.model.checkpoint_files import ENCODER_FILES, FROZEN_FILES, START_MODEL, is_adapted, read_files


def export_onnx(
    checkpoint: CheckpointFlag,
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")],
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
) -> None:
    """Write a checkpoint as ONNX graphs, which caption and embed without PyTorch. FOLDER/README.md describes their use.

    Args:
        checkpoint: checkpoint or run folder, name of a bundled model, or OWNER/NAME on the Hugging Face hub.
        out: new folder for the graphs, weights, tokenizer and preprocessing.
        precision: weight precision. fp32 keeps the stored weights, fp16 rounds them to half the size. int8 is smallest
            and fastest, and changes results slightly.
    """
    folder = locate_checkpoint(checkpoint)
    require_new_folder(out)
    require_extra("export", "exporting to ONNX")

    from grr_coca.infer.export.write import write_onnx  # lazy import: PyTorch

    line = write_onnx(folder, out, precision, _validation_images(folder))
    if line:
        print(line, file=sys.stderr)
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"graphs in {precision} ({size:.1f} MB) are in {out}; see {out / 'README.md'} for how to use them")


def _validation_images(folder: Path) -> list[bytes]:
    """Return at most `NUM_COMPARED` validation images of a checkpoint's run, to choose the frozen encoder's precision.

    The list is empty if the model takes no features, or the images are not known or not on this machine.
    """
    recipe = folder.parent.parent / "recipe.yaml"
    if read_files(folder).encoder is None or not recipe.is_file():
        return []
    from grr_coca.data.sources.base import BadSample  # lazy imports, here and below: NumPy and PyTorch
    from grr_coca.infer.export.encoder_graph import NUM_COMPARED
    from grr_coca.train.recipe import load_recipe
    from grr_coca.train.setup import training_sources

    found: list[bytes] = []
    try:
        _, held = training_sources(load_recipe(recipe))
        for index in range(0, len(held), max(1, len(held) // NUM_COMPARED)):
            with suppress(BadSample):
                found.append(held[index].image)
    except UserError:  # the data of the run are not on this machine
        pass
    return found[:NUM_COMPARED]


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

    All files of the model are uploaded, with ONNX graphs, if any. Recipe, logs and training state are not.

    Args:
        checkpoint: checkpoint or run folder, or name of a bundled model.
        hub_id: name of the repository.
        licence: licence of the weights, such as apache-2.0.
        data: training data of the model, for the card.
        figures: metrics for the card: a file written by evaluate --json.
        private: make a new repository private, and reject updates of a public one.
        update: add a commit to an existing repository.
        dry_run: print the card and the files, and upload nothing.
    """
    hub.check_hub_id(hub_id)
    folder = locate_checkpoint(checkpoint)
    if is_adapted(folder):
        print(
            "the upload includes captions and image features of the pairs that this model was adapted to",
            file=sys.stderr,
        )
    from grr_coca.infer.adapted.beside import read_encoder_info  # lazy imports, here and below: NumPy
    from grr_coca.infer.export.encoder_graph import name_without_folders

    encoders = (read_encoder_info(folder), ENCODER_FILES[2]), (read_files(folder).encoder, FROZEN_FILES[1])
    for info, graph in encoders:
        if info is not None and (folder / START_MODEL).is_dir():
            print(f"the upload includes {info.name}, from which this model was fine-tuned", file=sys.stderr)
        elif info is not None:
            if not (folder / graph).exists() and name_without_folders(info.name) != info.name:
                raise UserError(
                    f"{folder}: cannot be pushed, because it needs the image encoder {info.name}, which is a file on "
                    "this machine; use a public encoder"
                )
            verb = "includes" if (folder / graph).exists() else "only names"
            print(
                f"the upload {verb} the image encoder {info.name} (licence of its weights: {info.licence})",
                file=sys.stderr,
            )
    files = hub.files_to_push(folder)
    card = hub.model_card(folder, hub_id, data, licence, None if figures is None else hub.read_figures(figures))
    if dry_run:
        sizes = {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in {**files, hub.README: card.encode()}.items()
        }
        print_line(card)
        for name, size in sizes.items():
            print_line(f"{name:<20} {size:>15,} bytes")
        print_line(f"would be uploaded to {hub_id}; nothing was sent")
        return
    print(f"{hub.push_files(files, card, hub_id, private=private, update=update)}\n")
    print(f'grr_coca.load("{hub_id}") loads it')
