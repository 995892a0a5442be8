"""`grr-coca push`."""

from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.cli.output import say
from grr_coca.inference.locate import locate_checkpoint
from grr_coca.interop.hub import README, check_hub_id, files_to_push, gather_facts, model_card, push_files, read_figures


def run(
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME|DIR")],
    hub_id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")],
    licence: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None,
    data: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None,
    figures: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    private: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    update: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Put a checkpoint on the Hugging Face hub, with a model card, in one commit.

    Weights, config, tokenizer and preprocessing go up; recipe, logs and the state of the training stay here.

    Args:
        checkpoint: checkpoint or run folder, or name of a shipped model.
        hub_id: name of the repository.
        licence: licence of the weights, such as apache-2.0.
        data: what the model was trained on, for the card.
        figures: measured numbers for the card, a file that evaluate --json wrote.
        private: make a new repository that others do not see.
        update: add a commit to a repository that is there.
        dry_run: print the card, and what would go up, and do nothing.
    """
    check_hub_id(hub_id)
    folder = locate_checkpoint(checkpoint)
    files = files_to_push(folder)
    facts = gather_facts(folder, hub_id, data, licence, None if figures is None else read_figures(figures))
    card = model_card(facts)
    if dry_run:
        sizes = {**{name: path.stat().st_size for name, path in files.items()}, README: len(card.encode())}
        say(card)
        for name, size in sizes.items():
            say(f"{name:<20} {size:>15,} bytes")
        say(f"would go up to {hub_id}; nothing was sent")
        return
    print(f"{push_files(files, card, hub_id, private=private, update=update)}\n")
    print(f'grr_coca.load("{hub_id}") loads it')
