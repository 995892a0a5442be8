"""Commands for icons. An entry point of `grr_coca.commands` names this table."""

from grr_coca.cli import Command

COMMANDS = {
    "match": Command(
        "grr_coca_icons.commands.match:run",
        "find the equivalent of each picture of a library in another, such as icons of two sets",
    ),
    "lint": Command(
        "grr_coca_icons.commands.lint:run",
        "find names and alternative texts that contradict their picture",
    ),
    "mcp": Command("grr_coca_icons.commands.mcp:run", "serve indexes of icons to agents by the Model Context Protocol"),
}
