"""`grr-coca import index`."""

from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.errors import UserError
from grr_coca.search.portable import import_parquet


def run(
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.parquet")],
    out: Annotated[str, tyro.conf.arg(metavar="INDEX")],
) -> None:
    """Make an index of a Parquet file that `export index` wrote. No model is needed, and no picture is read.

    Args:
        path: .parquet file.
        out: folder of the new index, or http://HOST:PORT/NAME of a Milvus server.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    print(f"{out}: {import_parquet(path, out):,} pictures of {path}")
