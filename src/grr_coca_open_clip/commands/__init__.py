"""Commands for open_clip's checkpoints. An entry point of `grr_coca.commands` names this table of commands."""

from grr_coca.cli import Command

COMMANDS = {
    "import open_clip": Command(
        "grr_coca_open_clip.commands.exchange:import_open_clip", "convert a CoCa checkpoint of open_clip"
    ),
    "export open_clip": Command(
        "grr_coca_open_clip.commands.exchange:export_open_clip", "write a checkpoint that open_clip loads"
    ),
}
