"""A provider's batch API on loopback, with every state and every failure."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from endpoint import completion

STEPS = ("validating", "in_progress", "finalizing")


class BatchStub:
    """Serves in threads of its own.

    Attributes:
        fates: What becomes of each batch in turn: completed, expired, cancelled, rejected (single
            lines), refused (all of it), or too_many (tokens); completed where none is named.
        answer: Makes the response of a request, ``(status, body)``, an error ``(None, code)``, or
            None to leave it undone.
        paid: How often each request was submitted in a batch that was taken, by its body.
        faults: Statuses that the next calls get, by ``METHOD /path`` prefix.
        hold: Batches stay in progress while it is set.
    """

    def __init__(self) -> None:
        self.fates: list[str] = []
        self.answer: Callable[[dict[str, Any]], Any] = lambda body: (
            200,
            completion("a caption of " + json.dumps(body["messages"][-1])[-40:-4]),
        )
        self.paid: Counter[str] = Counter()
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.faults: dict[str, list[int]] = {}
        self.hold = False
        self.lose_reply: dict[str, int] = {}  # calls that are done, but whose reply is lost
        self.create_status = 0  # what the next creation answers, after it was done
        self.nonsense = b""  # what everything answers
        self.hang = False
        self.after: Callable[[str], None] = lambda _: None
        self.lock = threading.RLock()
        stub = self

        class Handler(_Handler):
            pass

        Handler.stub = stub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def options(self, **more: Any) -> dict[str, Any]:
        """Options of a run that uses it."""
        return {
            "base_url": self.base_url, "model": "m", "batch_api": True, "batch_poll": 0.01, **more,
        }  # fmt: skip

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    # -- what the API does ------------------------------------------------------------------

    def create(self, file_id: str) -> dict[str, Any]:
        name = f"batch_{len(self.batches) + 1}"
        fate = self.fates.pop(0) if self.fates else "completed"
        lines = self.files[file_id].splitlines()
        self.batches[name] = {
            "id": name, "object": "batch", "input_file_id": file_id, "status": "validating",
            "fate": fate, "step": 0, "output_file_id": None, "error_file_id": None,
            "errors": None, "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
        }  # fmt: skip
        if fate not in ("too_many", "refused", "rejected"):
            for line in lines:
                self.paid[json.dumps(json.loads(line)["body"], sort_keys=True)] += 1
        return self.batches[name]

    def look(self, name: str) -> dict[str, Any]:
        batch = self.batches[name]
        if batch["status"] in (*STEPS, "cancelling"):
            cancelling = batch["status"] == "cancelling"
            batch["step"] += 1
            if cancelling or (batch["step"] >= len(STEPS) and not self.hold):
                self.end(batch, "cancelled" if cancelling else batch["fate"])
            else:
                batch["status"] = STEPS[min(batch["step"], 1 if self.hold else 2)]
        return {name: value for name, value in batch.items() if name not in ("fate", "step")}

    def end(self, batch: dict[str, Any], fate: str) -> None:
        if fate in ("too_many", "refused", "rejected"):
            batch["status"] = "failed"
            code = {"too_many": "token_limit_exceeded"}.get(fate, "invalid_json_line")
            line = 1 if fate == "rejected" else None
            batch["errors"] = {"data": [{"code": code, "line": line, "message": f"{fate} it"}]}
            return
        good, bad = [], []
        for number, line in enumerate(self.files[batch["input_file_id"]].splitlines()):
            request = json.loads(line)
            undone = fate in ("expired", "cancelled") and number % 2
            found = None if undone else self.answer(request["body"])
            head = {"id": f"r{number}", "custom_id": request["custom_id"]}
            if found is None:
                code = f"batch_{fate}"
                error = {"code": code, "message": "not done"}
                if fate == "expired":
                    bad.append({**head, "response": None, "error": error})
            elif found[0] is None:
                bad.append({**head, "response": None, "error": {"code": found[1], "message": "x"}})
            else:
                response = {"status_code": found[0], "request_id": "q", "body": found[1]}
                where = good if found[0] == 200 else bad
                where.append({**head, "response": response, "error": None})
        for name, lines in (("output_file_id", good[::-1]), ("error_file_id", bad)):
            if lines:
                batch[name] = f"file_{len(self.files) + 1}"
                data = "".join(json.dumps(line) + "\n" for line in lines)
                self.files[batch[name]] = data.encode()
        batch["request_counts"]["completed"] = len(good)
        batch["request_counts"]["failed"] = len(bad)
        batch["status"] = fate


class _Handler(BaseHTTPRequestHandler):
    stub: BatchStub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_DELETE = do_GET  # noqa: N815 - the names that http.server looks for

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(length) if length else self._chunks()
        path = self.path.removeprefix("/v1")
        stub = self.stub
        with stub.lock:
            call = f"{self.command} {path.partition('?')[0]}"
            stub.requests.append(call)
            if stub.nonsense:
                self._send(200, stub.nonsense)
                return
            for prefix, statuses in stub.faults.items():
                if call.startswith(prefix) and statuses:
                    text = f"trouble with {self.headers.get('Authorization', '')}"
                    error = json.dumps({"error": {"message": text}}).encode()
                    self._send(statuses.pop(0), error)
                    return
            status, value = self._answer(call, path, data)
            stub.after(call)
            if call == "POST /batches" and stub.create_status:
                status, stub.create_status = stub.create_status, 0
            if stub.lose_reply.get(call, 0) > 0:
                stub.lose_reply[call] -= 1
                self.close_connection = True
                return
        while stub.hang:
            time.sleep(0.01)
        self._send(status, value if isinstance(value, bytes) else json.dumps(value).encode())

    def _chunks(self) -> bytes:
        data = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return data

    def _answer(self, call: str, path: str, data: bytes) -> tuple[int, Any]:  # noqa: PLR0911
        stub = self.stub
        if call == "POST /files":
            boundary = re.search("boundary=(.+)", self.headers["Content-Type"])[1].encode()
            part = next(p for p in data.split(b"--" + boundary) if b"filename=" in p)
            name = f"file_{len(stub.files) + 1}"
            stub.files[name] = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
            return 200, {"id": name, "purpose": "batch"}
        if found := re.fullmatch("GET /files/(.+)/content", call):
            return 200, stub.files[found[1]]
        if call.startswith("DELETE /files/"):
            return 200, {"deleted": True}
        if call == "POST /batches":
            return 200, stub.create(json.loads(data)["input_file_id"])
        if call == "GET /batches":
            found = [stub.look(name) for name in stub.batches]
            return 200, {"data": found[::-1], "has_more": False}
        if found := re.fullmatch("POST /batches/(.+)/cancel", call):
            batch = stub.batches[found[1]]
            if batch["status"] in STEPS:
                batch["status"] = "cancelling"
            return 200, batch
        if found := re.fullmatch("GET /batches/(.+)", call):
            return 200, stub.look(found[1])
        return 404, {"error": {"message": f"no {call}"}}

    def _send(self, status: int, data: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def log_message(self, *_: object) -> None:
        pass
