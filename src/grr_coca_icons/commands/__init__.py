"""Commands for icons. An entry point of `grr_coca.commands` names this table."""

from grr_coca.cli import Command

COMMANDS = {
    "match": Command(
        "grr_coca.cli.match:run",
        "find the equivalent of each picture of a library in another, such as icons of two sets",
    ),
    "lint": Command("grr_coca.cli.lint:run", "find names and alternative texts that contradict their picture"),
    "mcp": Command("grr_coca.cli.mcp:run", "serve indexes of icons to agents by the Model Context Protocol"),
}
