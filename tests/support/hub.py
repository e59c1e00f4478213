"""As much of the Hugging Face hub as reading, or writing, one data set or model takes."""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler
from typing import ClassVar

from web import http_server

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

    def _json(self, value: object, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

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


class WritableHub(_Hub):
    """The hub for the owner of a data set: makes it, stores large files, and takes commits."""

    token: ClassVar[str]
    made: ClassVar[list[dict[str, object]]]
    stored: ClassVar[dict[str, bytes]]

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        if self.headers["Authorization"] != f"Bearer {self.token}":
            self._json({"error": "Invalid credentials in Authorization header"}, 401)
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(data)
            if f"{asked['organization']}/{asked['name']}" != self.repo:
                self._json({"error": "You don't have the rights to create a dataset"}, 403)
                return
            self.made.append(asked)
            self._json({"url": f"{self._origin}/datasets/{self.repo}"}, 409 if self.files else 200)
        elif path == f"/api/datasets/{self.repo}/preupload/main":
            self._json({"files": [self._way(one["path"]) for one in json.loads(data)["files"]]})
        elif path == f"/datasets/{self.repo}.git/info/lfs/objects/batch":
            self._json({"objects": [self._stores(**one) for one in json.loads(data)["objects"]]})
        elif path == f"/api/datasets/{self.repo}/commit/main":
            for line in data.splitlines():
                self._commit(**json.loads(line))
            url = f"{self._origin}/datasets/{self.repo}/commit/{SHA}"
            self._json({"commitUrl": url, "commitOid": SHA})
        elif path == f"/api/datasets/{self.repo}/paths-info/{SHA}":
            names = json.loads(data)["paths"]
            self._json([one for one in every(self.files) if one["path"] in names])
        else:
            self.send_error(404)

    def do_PUT(self) -> None:
        """Store a large file: the address is its digest."""
        data = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(data).hexdigest() == self.path.rpartition("/")[2]
        self.stored[self.path.rpartition("/")[2]] = data
        self._send(b"", {})

    def do_GET(self) -> None:
        self.path = self.path.replace("/tree/main", f"/tree/{SHA}")
        super().do_GET()

    do_HEAD = do_GET  # noqa: N815 - as above

    @property
    def _origin(self) -> str:
        return f"http://{self.headers['Host']}"

    def _way(self, path: str) -> dict[str, object]:
        large = path.endswith(".parquet")
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _stores(self, oid: str, size: int) -> dict[str, object]:
        upload = {"href": f"{self._origin}/store/{oid}"}
        missing = {} if oid in self.stored else {"actions": {"upload": upload}}
        return {"oid": oid, "size": size, **missing}

    def _commit(self, key: str, value: dict[str, str]) -> None:
        if key == "file":
            self.files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            self.files[value["path"]] = self.stored[value["oid"]]
        elif key == "deletedFile":
            del self.files[value["path"]]


def serving(
    repo: str, files: dict[str, bytes], kind: str = "datasets"
) -> AbstractContextManager[str]:
    """Serve the files of a data set, or of models; yield what HF_ENDPOINT is to be."""
    return http_server(type("Hub", (_Hub,), {"repo": repo, "files": files, "kind": kind}))


def taking(
    repo: str, files: dict[str, bytes], token: str, made: list[dict[str, object]]
) -> AbstractContextManager[str]:
    """Serve a data set that the owner of a token may write.

    Its files change with each commit; ``made`` gets what was asked for to make it.
    """
    own = {"repo": repo, "files": files, "kind": "datasets", "token": token, "made": made}
    return http_server(type("Hub", (WritableHub,), {**own, "stored": {}}))


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
