"""A hub of one process: as much of the Hugging Face hub's HTTP interface as pushing and loading a model takes."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN, OWNER = "hf_writes_for_me", "me"


class FakeHub:
    """Repositories by name, each a list of commits, of which each holds its files; `requests`: what was asked for.

    It takes cards of the licences `licences`, and no commit while it is `full`. `fetched`: names of the files that were
    asked for, and from which byte on. The next `cuts` downloads break off half-way. While it `damages`, files have
    other bytes than their checksums say.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.address = ""
        self.licences = {"apache-2.0", "mit", "other"}
        self.full = False
        self.fetched: list[tuple[str, int]] = []
        self.cuts = 0
        self.damages = False

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """Add a commit; the revision."""
        commits = self.repositories[repository]
        commits.append({**(commits[-1] if commits else {}), **files})
        return self.revision(repository, len(commits) - 1)

    def revision(self, repository: str, index: int) -> str:
        return hashlib.sha1(f"{repository} {index}".encode()).hexdigest()

    def find(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Revision and files of a branch or a commit."""
        commits = self.repositories[repository]
        for index, files in enumerate(commits):
            name = self.revision(repository, index)
            if revision == name or (revision == "main" and index == len(commits) - 1):
                return name, files
        return None


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that answers until the context ends."""
    hub = FakeHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_POST(self) -> None:
        body, path = self._body(), self.path.partition("?")[0]
        if path != "/api/validate-yaml" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if match := re.fullmatch(r"/api/models/(.+)/preupload/.+", path):
            return self._preupload(json.loads(body))
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body))
        if match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            return self._commit(match[1], body)
        return self._answer(404, {"error": "no such place"})

    def do_PUT(self) -> None:
        content = self._body()
        self.hub.large[hashlib.sha256(content).hexdigest()] = content
        self._answer(200, {})

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def _get(self) -> None:
        path = self.path.partition("?")[0]
        place = r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.+))?)?"
        if match := re.fullmatch(place, path):
            return self._describe(match[1], match[2] or "revision", match[3] or "main", match[4] or "")
        if match := re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*match.groups())
        return self._answer(404, {"error": "no such place"})

    def _validate(self, card: str) -> None:
        if re.search(r"^license: (.*)$", card, re.MULTILINE)[1] in self.hub.licences:
            return self._answer(200, {"errors": [], "warnings": []})
        errors = [{"message": f'"license" must be one of {sorted(self.hub.licences)}'}]
        return self._answer(400, {"errors": errors, "warnings": []})

    def _create(self, asked: dict[str, Any]) -> None:
        owner = asked.get("organization") or OWNER
        name = f"{owner}/{asked['name']}"
        if owner != OWNER:
            return self._answer(403, {"error": f"You don't have the rights to create a model under {owner}"})
        if name in self.hub.repositories:
            return self._answer(409, {"error": "You already created this model repo", "url": self._url(name)})
        self.hub.repositories[name] = []
        self.hub.private[name] = bool(asked.get("private") or asked.get("visibility") == "private")
        return self._answer(200, {"url": self._url(name), "name": name, "id": name})

    def _preupload(self, asked: dict[str, Any]) -> None:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in asked["files"]
        ]
        self._answer(200, {"files": modes})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.hub.address}/large/{wanted['oid']}"}}}
            for wanted in asked["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repository: str, body: bytes) -> None:
        if self.hub.full:
            return self._answer(413, {"error": "Storage limit reached"})
        files = {}
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                files[entry["value"]["path"]] = self.hub.large[entry["value"]["oid"]]
        revision = self.hub.commit(repository, files)
        self._answer(
            200, {"success": True, "commitOid": revision, "commitUrl": f"{self._url(repository)}/commit/{revision}"}
        )

    def _describe(self, repository: str, what: str, revision: str, folder: str) -> None:
        found = self._found(repository, revision)
        if found is None:
            return
        name, files = found
        if what == "tree":
            tree = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
                if path.startswith(folder)
            ]
            if "recursive=false" in self.path and not folder:
                folders = dict.fromkeys(path.partition("/")[0] for path in files if "/" in path)
                tree = [one for one in tree if "/" not in str(one["path"])]
                tree += [{"type": "directory", "path": path, "oid": name} for path in folders]
            return self._answer(200, tree)
        siblings = [{"rfilename": path} for path in files]
        return self._answer(
            200,
            {
                "_id": "1",
                "id": repository,
                "modelId": repository,
                "private": self.hub.private.get(repository, False),
                "sha": name,
                "siblings": siblings,
                "tags": [],
            },
        )

    def _file(self, repository: str, revision: str, path: str) -> None:
        found = self._found(repository, revision)
        if found is None:
            return
        name, files = found
        if path not in files:
            return self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha256(files[path]).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": name, "Accept-Ranges": "bytes"}
        content = files[path]
        if self.command == "HEAD":
            return self._send(200, content, headers)
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        begin, end = (int(asked[1]), int(asked[2] or len(content) - 1) + 1) if asked else (0, len(content))
        self.hub.fetched.append((path, begin))
        if self.hub.damages:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if asked:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
        return self._send(206 if asked else 200, content[begin:end], headers)

    def _found(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if repository not in self.hub.repositories:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        found = self.hub.find(repository, revision)
        if found is None:
            self._answer(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
        return found

    def _url(self, name: str) -> str:
        return f"{self.hub.address}/{name}"

    def _body(self) -> bytes:
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        told = {"X-Error-Message": str(content["error"])} if isinstance(content, dict) and "error" in content else {}
        self._send(
            status, json.dumps(content).encode(), {"Content-Type": "application/json", **told, **(headers or {})}
        )

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cuts and len(content) > 1000:
            self.hub.cuts -= 1
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)
