"""Damages an index, by a seed: bytes of its files, values of its tables, and files that are cut off or swapped.

`make attack-indexes` does this for an hour; tests do it with a few seeds. A seed that went wrong can be tried again:
`tests/search/damage.py --first SEED --count 1`.
"""

import argparse
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

SHARED = Path(__file__).parents[1] / "shared"
if str(SHARED) not in sys.path:  # as a script
    sys.path.append(str(SHARED))

from library import HEADER, fill, make_entry, make_vectors  # noqa: E402

from grr_coca.common.errors import UserError  # noqa: E402
from grr_coca_search.duplicates import duplicate_groups  # noqa: E402
from grr_coca_search.entry import Failure, Stamp  # noqa: E402
from grr_coca_search.filters import parse_filter  # noqa: E402
from grr_coca_search.store import (  # noqa: E402
    Changes,
    facets,
    make_store,
    open_store,
)

_VALUES = [None, -1, 2**62, 0.5, "", "x", "é" * 50, b"\xff\x00", "[]", "{", '{"a": [1]}', '[["a"]]', "null"]


def damage(folder: Path, seed: int) -> str:
    """Damage the index in a folder. Returns what was done."""
    made = random.Random(seed)
    kind = made.choice(["bytes", "bytes", "page", "cut", "grow", "value", "value", "drop"])
    file = folder / made.choice(["index.sqlite", "index.sqlite", "vectors.f16"])
    if kind in ("value", "drop"):
        return _damage_table(folder, made, kind)
    content = bytearray(file.read_bytes())
    if kind == "bytes":
        for _ in range(made.choice([1, 3, 30])):
            content[made.randrange(len(content))] = made.randrange(256)
    elif kind == "page":
        start = made.randrange(0, len(content), 512)
        content[start : start + 4096] = made.choice([bytes(4096), made.randbytes(4096), b"\xff" * 4096])
    elif kind == "cut":
        del content[made.randrange(len(content)) :]
    else:
        content += made.randbytes(5000)
    file.write_bytes(content)
    return f"{file.name}: {kind}"


def _damage_table(folder: Path, made: random.Random, kind: str) -> str:
    with closing(sqlite3.connect(folder / "index.sqlite")) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = made.choice([name for name in tables if not name.startswith("sqlite")])
        what = f"{table}: {kind}"
        with suppress(sqlite3.Error), database:  # some tables may not be changed so
            if kind == "drop":
                database.execute(made.choice([f'DROP TABLE "{table}"', f'DELETE FROM "{table}"']))
            else:
                columns = [row[1] for row in database.execute(f'PRAGMA table_info("{table}")')]
                column, value = made.choice(columns), made.choice(_VALUES)
                what = f"{table}.{column} = {value!r}"
                database.execute(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid % 3 = 0 OR 1', (value,))
    return what


def uses(folder: Path) -> dict[str, Callable[[], object]]:
    """What is done with an index, by name. Each opens it."""

    def using(work):
        def use() -> object:
            store = open_store(str(folder))
            try:
                return work(store)
            finally:
                store.close()

        return use

    def write(store) -> None:
        entry = make_entry(999)
        store.commit(Changes(added=[(entry, make_vectors(1)[0])]))
        store.compact()

    def browse(store) -> None:
        ids = store.newest_first().tolist()
        store.entries(ids[:10])
        for entry in store.entries(ids[:5]):
            assert isinstance(entry.date + entry.folder + entry.title, str)
            assert entry.all_fields is not None

    return {
        "check": using(lambda store: store.check()),
        "nearest": using(lambda store: store.nearest(make_vectors(1)[0], 5)),
        "words": using(lambda store: store.entries([m.id for m in store.word_matches("red thing", 5)])),
        "filter": using(lambda store: list(store.matching(parse_filter("width > 20", store.columns())))),
        "browse": using(browse),
        "facets": using(facets),
        "duplicates": using(duplicate_groups),
        "everything": using(lambda store: [*store.everything(), store.failures(), store.roots(), store.excluded()]),
        "known": using(lambda store: store.known([make_entry(n).name for n in range(9)])),
        "find_by_digest": using(lambda store: store.find_by_digest([make_entry(n).digest for n in range(9)])),
        "sample": using(lambda store: store.sample()),
        "places": using(lambda store: list(store.locations("/pictures"))),
        "imported": using(lambda store: store.was_imported()),
        "write": using(write),
    }


def make_good(folder: Path) -> Path:
    """An index of sixty images, of which one was removed."""
    store = make_store(str(folder), HEADER)
    fill(store, 60)
    failed = [Failure("/a", "/pictures", Stamp(1, 2), "broken")]
    store.commit(Changes(failed=failed, removed=[make_entry(1).name]))
    store.exclude(["*.gif"])
    store.close()
    return folder


def use_damaged(good: Path, folder: Path, seed: int) -> tuple[str, bool]:
    """What was damaged, and whether any use has noticed it. No use may raise anything but a `UserError`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    what, is_noticed = damage(folder, seed), False
    for name, use in uses(folder).items():
        try:
            use()
        except UserError:
            is_noticed = True
        except Exception as error:
            raise AssertionError(f"seed {seed}, {what}: {name}") from error
    return what, is_noticed


def is_silent(what: str, is_noticed: bool) -> bool:
    """True if changed embeddings were taken for those that were written. Bytes behind the last one are not read."""
    return what.startswith("vectors") and not what.endswith("grow") and not is_noticed


def main() -> None:
    """Damage indexes until the time is over, and print what became of them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=10**12)
    parser.add_argument("--seconds", type=float, default=3600)
    options = parser.parse_args()
    counts: Counter = Counter()
    wrong: list[str] = []
    end, seed = time.monotonic() + options.seconds, options.first
    with tempfile.TemporaryDirectory() as place:
        good = make_good(Path(place) / "good")
        while seed < options.first + options.count and time.monotonic() < end:
            try:
                what, is_noticed = use_damaged(good, Path(place) / "bad", seed)
                counts["noticed" if is_noticed else "works"] += 1
                if is_silent(what, is_noticed):
                    wrong.append(f"seed {seed}, {what}: silent")
            except AssertionError as error:
                wrong.append(f"{error}: {error.__cause__!r}")
            seed += 1
            if seed % 500 == 0:
                print(f"the next is {seed:,}: {dict(counts)}, wrong: {wrong or 'none'}", flush=True)
    print(f"{seed - options.first:,} indexes: {dict(counts)}, wrong: {wrong or 'none'}")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
