"""Table of the commands for indexes, to which an entry point in the group `grr_coca.commands` refers."""

from grr_coca.cli import Command

COMMANDS = {
    "index": Command(
        "grr_coca_search.commands.index:run",
        "index images for search, or update an index",
        "grr_coca_search.picture_facts",
    ),
    "search": Command("grr_coca_search.commands.search:search_index", "find images of an index by text or by image"),
    "duplicates": Command(
        "grr_coca_search.commands.search:list_duplicates", "list the images of an index that look the same"
    ),
    "import index": Command(
        "grr_coca_search.commands.parquet:import_index", "make an index from a Parquet file that export index wrote"
    ),
    "export index": Command("grr_coca_search.commands.parquet:export_index", "write an index into a Parquet file"),
}
