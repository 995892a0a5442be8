"""Commands for icons. An entry point of `grr_coca.commands` names this table of commands."""

from grr_coca.cli import Command

COMMANDS = {
    "match": Command(
        "grr_coca_icons.commands.match:run",
        "find equivalents between image libraries, such as two icon sets",
    ),
    "lint": Command(
        "grr_coca_icons.commands.lint:run",
        "find names and alternative texts that contradict their image",
    ),
    "mcp": Command("grr_coca_icons.commands.mcp:run", "serve icon indexes to agents by the Model Context Protocol"),
}
