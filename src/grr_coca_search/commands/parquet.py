"""`grr-coca import index` and `export index`: import an index from Parquet, and export it to Parquet."""

from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.cli.flags import IndexArgument
from grr_coca.common.errors import UserError, count_of, require_extra
from grr_coca.common.outputs import require_suffix, require_writable


def import_index(
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.parquet")],
    out: Annotated[str, tyro.conf.arg(metavar="INDEX")],
) -> None:
    """Create an index from a Parquet file that `export index` wrote. The model and the images are not needed.

    Args:
        path: .parquet file to read.
        out: folder of the new index, or http://HOST:PORT/NAME of a Milvus server.
    """
    # lazy imports, here and below, because only index commands need them
    from grr_coca_search.portable import import_parquet

    if not path.is_file():
        raise UserError(f"{path}: not found, or not a file; pass a file from `grr-coca export index`")
    print(f"{out}: {count_of(import_parquet(path, out), 'image')} imported from {path}")


def export_index(index: IndexArgument, out: Annotated[Path, tyro.conf.arg(metavar="FILE.parquet")]) -> None:
    """Write an index to a Parquet file, from which `import index` restores it without the model.

    Args:
        index: folder, or http://HOST:PORT/NAME of a Milvus server.
        out: .parquet file to write.
    """
    from grr_coca_search.portable import export_parquet
    from grr_coca_search.store import open_store

    require_suffix(out, (".parquet",))
    require_extra("parquet", "exporting an index")
    with open_store(index) as store:
        require_writable(out)
        count = export_parquet(store, out)
    print(f"{count_of(count, 'image')} of {index} written to {out}")
