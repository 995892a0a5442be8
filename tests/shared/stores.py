"""Servers of shards on this machine: S3 by moto, and files over HTTP with faults that can be chosen."""

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError

import pytest

from grr_coca.common import remote
from grr_coca.data.sources.base import PairSource, RawPair
from grr_coca.data.sources.open import open_source, remote_shards
from grr_coca.data.sources.shards import index_remote

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"


class FileServer:
    """The files of a folder over HTTP, with ranges and etags.

    Each request for a part takes the next of `faults`, if there is one, and else `always`:

    - a number: this status
    - `stall`: no answer until the server stops
    - `cut`: half of the bytes, and the connection ends
    - `short`: half of the bytes, with the length of half
    - `long`: more bytes than asked for
    - `whole`: the whole file, as servers without ranges send it
    - `other`: as many bytes, but other ones
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder
        self.faults: deque[str] = deque()
        self.always = ""
        self.heads: deque[str] = deque()
        self.requests: list[tuple[str, str, str]] = []
        self._ends = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def ranges(self) -> list[tuple[str, str]]:
        """Name and range of each part that was asked for."""
        return [(name, part) for method, name, part in self.requests if method == "GET"]

    def stop(self) -> None:
        """Stop, as if the network was gone."""
        self._ends.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> "FileServer":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ends.is_set():
            self.stop()

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805 (the handler has a `self` of its own)
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(b"", server.heads.popleft() if server.heads else "")

            def do_GET(self) -> None:
                self._answer(None, server.faults.popleft() if server.faults else server.always)

            def _answer(self, body: bytes | None, fault: str) -> None:
                path = server.folder / self.path.lstrip("/")
                part = self.headers.get("Range", "")
                server.requests.append((self.command, path.name, part.removeprefix("bytes=")))
                if fault == "stall":
                    server._ends.wait()
                    return
                if fault.isdigit() or not path.is_file():
                    self.send_response(int(fault) if fault.isdigit() else 404)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                content, status = path.read_bytes(), 200
                etag = hashlib.md5(content).hexdigest()
                if body is None and part and fault != "whole":
                    start, _, end = part.removeprefix("bytes=").partition("-")
                    content, status = content[int(start) : int(end) + 1], 206
                if fault == "other":
                    content = bytes(255 - byte for byte in content)
                if fault in ("short", "cut"):
                    content = content[: len(content) // 2]
                if fault == "long":
                    content += b"more"
                length = len(content) * (2 if fault == "cut" else 1)
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.send_header("ETag", f'"{etag}"')
                self.end_headers()
                if body is None:
                    self.wfile.write(content)
                if fault == "cut":
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def make_impatient(monkeypatch: pytest.MonkeyPatch, cache: Path, pause: float = 0.02) -> None:
    """Keep indexes and blocks in a cache of the test, and wait for servers only a little."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(remote, "PAUSES", (pause,) * 4)
    monkeypatch.setattr(remote, "SECONDS_TO_ANSWER", 2.0)
    monkeypatch.setattr(remote, "_filesystems", {})  # the server may be another one than that of other tests


def indexed(url: str) -> PairSource:
    """The pairs behind a URL, whose files are read once."""
    for file in remote_shards(url):
        index_remote(file)
    return open_source(url)


def pairs_of(source: PairSource) -> list[tuple[str, bytes, tuple[str, ...]]]:
    """Key, image and captions of each pair."""
    return [(source[i].key, source[i].image, source[i].captions) for i in range(len(source))]


def image_cells(pairs: Sequence[RawPair]) -> list[dict[str, object]]:
    """Cells of an image column as in data sets of Hugging Face."""
    return [{"bytes": pair.image, "path": f"{pair.key}.webp"} for pair in pairs]


def write_table(path: Path, group: int = 5, compression: str = "snappy", **columns: object) -> Path:
    """Write a Parquet table, with row groups of `group` rows."""
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=group, compression=compression)
    return path


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def s3_environment(endpoint: str) -> Mapping[str, str]:
    """Variables with which clients find a server of `s3_server`."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def s3_server(core: int | None = None) -> Iterator[str]:
    """The endpoint of an S3 server in a process of its own, perhaps on one core alone."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from moto.server import main; main(sys.argv[1:])", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
    )
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()
                break
            except (URLError, OSError):
                time.sleep(0.1)
                if process.poll() is not None:
                    raise RuntimeError("the S3 server ended at once") from None
        yield endpoint
    finally:
        process.terminate()
        process.wait()


def upload(endpoint: str, bucket: str, files: Mapping[str, bytes]) -> None:
    """Put files into a bucket, which is made if it is missing."""
    import botocore.session

    client = botocore.session.get_session().create_client("s3", endpoint_url=endpoint)
    if bucket not in [one["Name"] for one in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=bucket)
    for name, content in files.items():
        client.put_object(Bucket=bucket, Key=name, Body=content)
