"""A hub on this machine: what huggingface_hub asks of huggingface.co to find and download a repository, and no more of it."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """One repository: its files by name, and which commit each of its branches and tags is."""

    files: dict[str, bytes]
    refs: dict[str, str] = field(default_factory=lambda: {"main": "a" * 40})
    kind: str = "model"
    is_gated: bool = False
    breaks_off: set[str] = field(default_factory=set)
    """Files of which half is sent, and then the connection ends."""


@dataclass
class Hub:
    """The repositories of a hub by name, and every request that it was sent."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def downloads(self) -> list[str]:
        """The names of the files that were downloaded, in the order in which it happened."""
        return [
            path.rpartition("/")[2]
            for request in self.requests
            for verb, path in [request.split(" ")]
            if verb == "GET" and "/resolve/" in path
        ]


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that listens on this machine until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        served = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.served.requests.append(f"{self.command} /{path}")
        kind, parts = "model", path.split("/")
        if parts[0] == "api":
            kind, parts = parts[1].removesuffix("s"), parts[2:]
        elif parts[0] == "datasets":
            kind, parts = "dataset", parts[1:]
        name, rest = "/".join(parts[:2]), parts[2:]
        repository = self.served.repositories.get(name)
        if repository is None or repository.kind != kind:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        if path.startswith("api/"):
            return self._tell(name, repository, rest)
        return self._deliver(repository, revision=rest[1], file="/".join(rest[2:]), with_body=with_body)

    def _tell(self, name: str, repository: Repository, rest: list[str]) -> None:
        verb, revision = (rest[0], rest[1]) if rest else ("revision", "main")
        if rest and verb == "revision":
            revision = "/".join(rest[1:])
        commit = self._commit(repository, revision)
        if commit is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        entries = [
            {"type": "file", "path": file, "size": len(content), "oid": _etag(content)}
            for file, content in repository.files.items()
        ]
        if verb == "tree":
            return self._send_json(entries)
        if verb == "paths-info":
            return self._send_json([entry for entry in entries if entry["path"] in self.body["paths"]])
        return self._send_json(
            {
                "id": name,
                "sha": commit,
                "siblings": [{"rfilename": file} for file in repository.files],
                "private": False,
                "tags": [],
            }
        )

    def _deliver(self, repository: Repository, revision: str, file: str, with_body: bool) -> None:
        commit = self._commit(repository, revision)
        if repository.is_gated:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        if commit is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if file not in repository.files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = repository.files[file]
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": commit}
        start, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        wanted = content[int(start or 0) : int(end) + 1 if end else None]
        if file in repository.breaks_off and with_body:
            self._head(200, len(content), headers)
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return None
        return self._send(206 if "Range" in self.headers else 200, wanted, headers)

    @staticmethod
    def _commit(repository: Repository, revision: str) -> str | None:
        return repository.refs.get(revision, revision if revision in repository.refs.values() else None)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._head(status, len(body), headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
