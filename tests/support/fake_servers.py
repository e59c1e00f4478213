"""Commands that behave as `vllm`, `sglang`, `llama-server` and `ollama` do, without a model.

They take the same arguments and refuse others, write the same lines to their logs, have the same
paths and metrics, and end with the same exit status. `install` writes them into a folder for PATH.

What they do wrong is asked for by words in a request, and by variables of their environment:

- ``KILL`` in a request ends the server by SIGKILL, ``DEAD ENGINE`` as vLLM ends after its engine.
  ``STALL`` makes it work on the request for ever. ``TOO LARGE`` uses up the memory of `vllm` unless
  it keeps a tenth of it free beyond its default.
- ``FAKE_MEMORY``: tokens that fit into its memory, of all requests at once.
- ``FAKE_KILLED``: `llama-server` is killed while it loads its model.
- ``FAKE_LOG``: a file that gets a line with the process and the arguments at each start.
- ``FAKE_BROKEN``: it ends with this as its last line, before it is ready; with FAKE_BROKEN_FROM=N
  only from its start number N on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

NAMES = ("vllm", "sglang", "llama-server", "ollama")


def install(folder: Path) -> Path:
    """Write the commands into a folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{__file__}" {name} "$@"\n')
        path.chmod(0o755)
    return folder


def vllm(words: list[str]) -> None:
    parser = argparse.ArgumentParser("vllm serve")
    parser.add_argument("model")
    parser.add_argument("--served-model-name")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-model-len", type=int, default=262_144)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--limit-mm-per-prompt", type=json.loads)
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--enable-prefix-caching", action="store_true")
    parser.add_argument("--disable-uvicorn-access-log", action="store_true")
    assert words.pop(0) == "serve"
    given = parser.parse_args(words)
    say("INFO 11-29 15:00:00 [utils.py:233] non-default args: ...")
    say("INFO 11-29 15:00:01 [gpu_model_runner.py:2602] Starting to load model ...")
    memory = int(os.environ.get("FAKE_MEMORY", sys.maxsize))
    if given.max_model_len > memory:
        say(
            "(EngineCore_0 pid=7) ValueError: To serve at least one request with the models's max "
            f"seq len ({given.max_model_len}), (4.50 GiB KV cache is needed, which is larger than "
            "the available KV cache memory (2.10 GiB)."
        )
        say("RuntimeError: Engine core initialization failed. See root cause above.")
        sys.exit(1)
    if given.max_model_len * given.max_num_seqs > memory:
        say("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB.")
        sys.exit(1)
    Handler.state["small"] = given.gpu_memory_utilization <= 0.8
    Handler.slots = threading.Semaphore(given.max_num_seqs)
    serve(given.host, given.port, given.served_model_name or given.model, "vllm")


def sglang(words: list[str]) -> None:
    parser = argparse.ArgumentParser("sglang serve")
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--served-model-name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--context-length", type=int)
    parser.add_argument("--max-running-requests", type=int)
    parser.add_argument("--mem-fraction-static", type=float)
    parser.add_argument("--enable-metrics", action="store_true")
    parser.add_argument("--log-level-http", default="info")
    assert words.pop(0) == "serve"
    given = parser.parse_args(words)
    say("[2026-11-29 15:00:00] Load weight begin. avail mem=78.60 GB")
    model = given.served_model_name or given.model_path
    serve(given.host, given.port, model, "sglang" if given.enable_metrics else "")


def llama_server(words: list[str]) -> None:
    parser = argparse.ArgumentParser("llama-server")
    parser.add_argument("-m", "--model")
    parser.add_argument("-hf", "--hf-repo")
    parser.add_argument("--mmproj")
    parser.add_argument("--alias")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--ctx-size", type=int, default=0)
    parser.add_argument("--metrics", action="store_true")
    given = parser.parse_args(words)
    if given.model and not Path(given.model).is_file():
        say(f"gguf_init_from_file: failed to open GGUF file '{given.model}'")
        say("srv    load_model: failed to load model")
        sys.exit(1)
    say("srv    load_model: loading model")
    if os.environ.get("FAKE_KILLED"):  # as the system does when memory is used up
        os.kill(os.getpid(), signal.SIGKILL)
    if given.ctx_size > int(os.environ.get("FAKE_MEMORY", sys.maxsize)):
        say("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory")
        say("llama_init_from_model: failed to initialize: failed to allocate buffer for kv cache")
        sys.exit(1)
    kind = "llamacpp" if given.metrics else ""
    serve(given.host, given.port, given.alias or given.model, kind, loading=True)


def ollama(words: list[str]) -> None:
    assert words == ["serve"]
    host, _, port = os.environ["OLLAMA_HOST"].partition(":")
    say(f'time=2026-11-29T15:00:00.000Z level=INFO msg="Listening on {os.environ["OLLAMA_HOST"]}"')
    Handler.pulled = set()
    serve(host, int(port), "", "")


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


METRICS = {
    "vllm": '{head}vllm:num_requests_running{{engine="0",model_name="m"}} {running}.0\n'
    'vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}.0\n'
    'vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} 0.25\n'
    'vllm:prompt_tokens_total{{engine="0",model_name="m"}} {tokens}.0\n'
    'vllm:generation_tokens_total{{engine="0",model_name="m"}} {tokens}.0\n',
    "sglang": '{head}sglang:num_running_reqs{{model_name="m",tp_rank="0"}} {running}.0\n'
    'sglang:num_queue_reqs{{model_name="m",tp_rank="0"}} {waiting}.0\n'
    'sglang:realtime_tokens_total{{model_name="m",mode="decode"}} {tokens}.0\n'
    'sglang:prompt_tokens_total{{model_name="m"}} {tokens}.0\n'
    'sglang:generation_tokens_total{{model_name="m"}} {tokens}.0\n',
    "llamacpp": "{head}llamacpp:requests_processing {running}\n"
    "llamacpp:requests_deferred {waiting}\nllamacpp:n_decode_total {tokens}\n"
    "llamacpp:prompt_tokens_total {tokens}\nllamacpp:tokens_predicted_total {tokens}\n",
}


class Handler(BaseHTTPRequestHandler):
    """Answers as the server whose metrics and models are set."""

    protocol_version = "HTTP/1.1"
    model = ""
    metrics = ""
    pulled: set[str] | None = None
    """Models of ollama; None for other servers."""

    state: ClassVar = {"running": 0, "waiting": 0, "tokens": 0, "ready": True, "small": False}
    slots = threading.Semaphore(1 << 20)

    def log_message(self, *_: Any) -> None:
        """Write no line for each request."""

    def do_GET(self) -> None:
        if not self.state["ready"]:
            loads = {"message": "Loading model", "type": "unavailable_error", "code": 503}
            self.reply(503, {"error": loads})
        elif self.path == "/metrics" and self.metrics:
            head = "# HELP x Requests in the model.\n# TYPE x gauge\n"
            self.text(METRICS[self.metrics].format(head=head, **self.state))
        elif self.path == "/v1/models":
            self.reply(200, {"object": "list", "data": [{"id": self.model, "object": "model"}]})
        elif self.path == ("/health" if self.pulled is None else "/"):
            self.text("" if self.pulled is None else "Ollama is running")
        else:
            self.reply(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        asked = json.loads(body)["model"]
        if self.pulled is not None and self.path.startswith("/api/"):
            self.ollama_api(asked, self.pulled)
        elif asked != self.model and asked not in (self.pulled or ()):
            message = f"The model `{asked}` does not exist."
            self.reply(404, {"error": {"message": message, "type": "NotFoundError"}})
        else:
            self.complete(body, asked)

    def complete(self, body: bytes, asked: str) -> None:
        if not self.slots.acquire(blocking=False):
            self.state["waiting"] += 1
            self.slots.acquire()
            self.state["waiting"] -= 1
        self.state["running"] += 1
        if b"KILL" in body:
            os.kill(os.getpid(), signal.SIGKILL)
        if b"TOO LARGE" in body and not self.state["small"]:
            say("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.")
            os._exit(1)
        if b"DEAD ENGINE" in body:
            said = "EngineCore encountered an issue. See stack trace (above) for the root cause."
            self.reply(500, {"error": {"message": said, "type": "Internal Server Error"}})
            say("(APIServer pid=7) INFO: Shutting down")
            os._exit(0)
        if b"STALL" in body:
            time.sleep(600)
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0.01")))
        self.state["running"] -= 1
        self.slots.release()
        self.state["tokens"] += 7
        message = {"role": "assistant", "content": "A red cat sits on a grey mat."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 90, "completion_tokens": 9, "total_tokens": 99}
        kind = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": asked}
        self.reply(200, {**kind, "choices": [choice], "usage": usage})

    def ollama_api(self, name: str, models: set[str]) -> None:
        if self.path == "/api/show":
            there = name in models
            self.reply(*((200, {}) if there else (404, {"error": f"model '{name}' not found"})))
            return
        lines: list[dict[str, Any]] = [{"status": "pulling manifest"}]
        if "missing" in name:
            lines.append({"error": "pull model manifest: file does not exist"})
        else:
            models.add(name)
            layer = {"digest": "sha256:3d1f", "total": 8_000_000, "completed": 4_000_000}
            lines += [{"status": "pulling 3d1f", **layer}, {"status": "success"}]
        self.text("".join(json.dumps(line) + "\n" for line in lines))

    def reply(self, status: int, value: dict[str, Any]) -> None:
        self.text(json.dumps(value), status, "application/json")

    def text(self, text: str, status: int = 200, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def serve(host: str, port: int, model: str, metrics: str, *, loading: bool = False) -> None:
    """Serve until a signal ends it."""
    Handler.model, Handler.metrics = model, metrics
    Handler.state["ready"] = not loading
    server = Server((host, port), Handler)
    if loading:
        threading.Timer(0.5, lambda: Handler.state.update(ready=True)).start()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server.serve_forever()


def main() -> None:
    name, *words = sys.argv[1:]
    starts = 1
    if log := os.environ.get("FAKE_LOG"):
        with open(log, "a") as file:  # noqa: PTH123 - a script that starts fast
            environment = {
                key: value
                for key, value in os.environ.items()
                if key.startswith(("OLLAMA", "CUDA", "OPENAI", "HF_"))
            }
            file.write(json.dumps({"pid": os.getpid(), "argv": words, "env": environment}) + "\n")
        starts = len(Path(log).read_text().splitlines())
    if (last := os.environ.get("FAKE_BROKEN")) and starts >= int(
        os.environ.get("FAKE_BROKEN_FROM", "1")
    ):
        say(last)
        sys.exit(1)
    {"vllm": vllm, "sglang": sglang, "llama-server": llama_server, "ollama": ollama}[name](words)


if __name__ == "__main__":
    main()
