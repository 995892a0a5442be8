"""Commands of the server and its page. An entry point in the group `grr_coca.commands` refers to this table."""

from grr_coca.cli import Command

COMMANDS = {
    "serve": Command(
        "grr_coca_serve.commands.serve:run",
        "serve captions, embeddings and search over HTTP, with a page to search pictures",
    ),
    "export web": Command(
        "grr_coca_serve.commands.export_web:run",
        "write a site that captions and searches images in the browser",
    ),
}
