"""`grr-coca export index`."""

from pathlib import Path
from typing import Annotated

import tyro

from grr_coca.cli.output import require_suffix, require_writable, write_output
from grr_coca.extras import require_extra
from grr_coca.search.index import open_store
from grr_coca.search.portable import export_parquet


def run(
    index: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")],
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.parquet")],
) -> None:
    """Write all that an index holds into a Parquet file, of which `import index` makes it again without the model.

    Args:
        index: folder, or http://HOST:PORT/NAME of a Milvus server.
        out: .parquet file to write.
    """
    require_suffix(out, (".parquet",))
    require_extra("parquet", "exporting an index")
    store = open_store(index)
    assert store is not None
    counts: list[int] = []
    try:
        require_writable(out)
        write_output(out, lambda file: counts.append(export_parquet(store, file)))
    finally:
        store.close()
    print(f"{counts[0]:,} pictures of {index} are in {out}")
