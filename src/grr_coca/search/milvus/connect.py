"""Connects to a Milvus server, and makes or opens the collections of an index."""

import re
from importlib.util import find_spec
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from grr_coca.errors import UserError
from grr_coca.extras import require_extra
from grr_coca.search.entry import VERSION, Header
from grr_coca.search.milvus.notes import NOTES, Notes, noted_header, notes_of
from grr_coca.search.milvus.rows import COLUMNS, NUMBERS, TEXTS
from grr_coca.search.milvus.store import MilvusStore, server_errors

SECONDS_TO_CONNECT = 20.0
DEFAULT_NAME = "grr_coca"
NAME = re.compile(r"[A-Za-z_]\w{0,200}", re.ASCII)


class ServerPlace(NamedTuple):
    """The address of a server, or the path of a file of Milvus Lite, and the name of the collection."""

    uri: str
    name: str


def parse_location(location: str) -> ServerPlace:
    """Take `http://HOST:PORT/NAME` or `milvus:FILE` apart.

    Raises:
        UserError: Milvus does not take the name.
    """
    if location.startswith("milvus:"):
        return ServerPlace(location.removeprefix("milvus:"), DEFAULT_NAME)
    parts = urlsplit(location)
    name = parts.path.strip("/") or DEFAULT_NAME
    if not NAME.fullmatch(name):
        raise UserError(f"{location}: '{name}' is no name of a collection; give letters, digits and _")
    return ServerPlace(f"{parts.scheme}://{parts.netloc}", name)


def open_collection(location: str, is_optional: bool) -> MilvusStore | None:
    """The index of this name; None if there is none and it is optional.

    Raises:
        UserError: the server cannot be reached, or there is no index, or a newer version wrote it.
    """
    place, client = _connected(location)
    try:
        with server_errors(location):
            _require_ours(location, client, place.name)
            header = noted_header(client, place.name)
        if header is None and is_optional:
            client.close()
            return None
        if header is None:
            raise UserError(f"{location}: no index of this name; make one by grr-coca index IMAGES… --out {location}")
        if header.version > VERSION:
            raise UserError(
                f"{location}: written by a newer grr-coca (format {header.version}; this one reads {VERSION})"
            )
    except BaseException:
        client.close()
        raise
    return MilvusStore(location, client, place.name, header, Notes(client, place.name))


def create_collection(location: str, header: Header) -> MilvusStore:
    """A new index.

    Raises:
        UserError: the server cannot be reached, or refuses.
    """
    place, client = _connected(location)
    with server_errors(location):
        _require_ours(location, client, place.name)
        for name in (place.name, notes_of(place.name)):
            if client.has_collection(name):  # left behind by an interruption: without a header it holds no picture
                client.drop_collection(name)
        _create_pictures(client, place.name, header.embed_dim)
        notes = Notes.create(client, place.name)
        notes.write_header(header)
    return MilvusStore(location, client, place.name, header, notes)


def drop_collections(location: str) -> None:
    """Remove an index, finished or not.

    Raises:
        UserError: the server cannot be reached, or a collection is of something else.
    """
    place, client = _connected(location)
    try:
        with server_errors(location):
            _require_ours(location, client, place.name)
            for name in (place.name, notes_of(place.name)):
                client.drop_collection(name)
    finally:
        client.close()


def _require_ours(location: str, client: Any, name: str) -> None:
    """Make sure that collections of these names, if there are any, are those of an index.

    Raises:
        UserError: one is of something else, which nothing here may touch.
    """
    for one, columns in ((name, COLUMNS), (notes_of(name), NOTES)):
        if client.has_collection(one):
            found = {field["name"] for field in client.describe_collection(one)["fields"]}
            if found != columns:
                raise UserError(f"{location}: '{one}' is a collection of something else; give another name")


def _create_pictures(client: Any, name: str, width: int) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    for column, length in TEXTS.items():
        schema.add_field(column, DataType.VARCHAR, max_length=length * 4)
    for column in NUMBERS:
        schema.add_field(column, DataType.INT64)
    for column in ("fields", "kinds"):
        schema.add_field(column, DataType.JSON)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=width)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="IP")  # exact
    client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")


def _connected(location: str) -> tuple[ServerPlace, Any]:
    place = parse_location(location)
    require_extra("milvus", f"{location}: an index on a Milvus server")
    if location.startswith("milvus:") and find_spec("milvus_lite") is None:
        raise UserError(f"{location}: Milvus Lite is not installed; pip install 'pymilvus[milvus_lite]'")
    from pymilvus import MilvusClient

    with server_errors(location):
        return place, MilvusClient(place.uri, timeout=SECONDS_TO_CONNECT)
