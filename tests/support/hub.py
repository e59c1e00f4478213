"""As much of the Hugging Face hub as reading one data set or model takes, on loopback."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

SHA = "a" * 40


class _Hub(BaseHTTPRequestHandler):
    repo: ClassVar[str]
    kind: ClassVar[str]
    files: ClassVar[dict[str, bytes]]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        folder = "" if self.kind == "models" else f"/{self.kind}"
        if path.startswith(f"/api/{self.kind}/{self.repo}/tree/{SHA}"):
            self._json(tree(self.files, path.partition(SHA)[2].strip("/")))
        elif path.startswith(f"/api/{self.kind}/{self.repo}"):
            siblings = [{"rfilename": name} for name in self.files]
            self._json({"id": self.repo, "sha": SHA, "siblings": siblings})
        elif path.startswith(f"{folder}/{self.repo}/resolve/"):
            self._file(path.partition("/resolve/")[2].partition("/")[2])
        else:
            self.send_error(404)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def do_POST(self) -> None:
        """Tell about some paths: the one POST that reading takes."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._json([one for one in every(self.files) if one["path"] in asked.get("paths", [])])

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str) -> None:
        if name not in self.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = self.files[name]
        headers = {"ETag": f'"{oid(data)}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        status = 200
        if wanted := self.headers.get("Range"):
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            last = min(int(end), len(data) - 1) if end else len(data) - 1
            headers["Content-Range"] = f"bytes {begin}-{last}/{len(data)}"
            data, status = data[int(begin) : last + 1], 206
        self._send(data, headers, status)

    def _send(self, data: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(repo: str, files: dict[str, bytes], kind: str = "datasets") -> Iterator[str]:
    """Serve the files of a data set, or of models; yield what HF_ENDPOINT is to be."""

    hub = type("Hub", (_Hub,), {"repo": repo, "files": files, "kind": kind})
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def every(files: dict[str, bytes]) -> list[dict[str, object]]:
    """All files and folders."""
    folders = {name.rpartition("/")[0] for name in files} - {""}
    return [
        *({"type": "directory", "path": name, "oid": SHA, "size": 0} for name in sorted(folders)),
        *(
            {"type": "file", "path": name, "size": len(data), "oid": oid(data)}
            for name, data in files.items()
        ),
    ]


def tree(files: dict[str, bytes], folder: str) -> list[dict[str, object]]:
    """What lies in a folder; for the root all that there is."""
    inside = f"{folder}/" if folder else ""
    return [one for one in every(files) if str(one["path"]).startswith(inside)]
