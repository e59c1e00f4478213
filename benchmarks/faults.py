"""What faults cost: a server that fails a third of all requests, and one that goes away.

`faults`: 35 % of replies are 429, 500 or 503 in equal shares, at random; 2,000 records, 50 ms a
request. `outage`: the server closes its port for a minute in the middle of a run at 320 requests a
second. Prints what became of the records, and how long after the outage the rate was back.

usage: python benchmarks/faults.py {faults,outage} [--seconds N]
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from aiohttp import web
from quota import make

IN_FLIGHT = 64


class FaultyServer:
    """Chat completions in a thread of its own; ends with the process."""

    def __init__(self, *, latency_s: float, faults: float) -> None:
        self.latency_s = latency_s
        self.faults = faults
        self.port = 0
        self.given: list[float] = []
        self.failed = 0
        self._random = random.Random(7)
        self._ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        self._ready.wait()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await self.runner.setup()
        await self.open()
        self._ready.set()
        await asyncio.sleep(3_600)

    async def open(self) -> None:
        site = web.TCPSite(self.runner, "127.0.0.1", self.port, backlog=1024, reuse_address=True)
        await site.start()
        self.port = self.runner.addresses[0][1]

    async def close(self) -> None:
        for site in list(self.runner.sites):
            await site.stop()
        for connection in list(self.runner.server.connections):
            connection.transport.abort()

    async def away(self, after_s: float, seconds: float) -> None:
        await asyncio.sleep(after_s)
        await self.close()
        self.went = time.monotonic()
        await asyncio.sleep(seconds)
        await self.open()
        self.came = time.monotonic()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def _chat(self, request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(self.latency_s)
        if self._random.random() < self.faults:
            self.failed += 1
            status = self._random.choice((429, 500, 503))
            return web.json_response({"error": {"message": "no luck"}}, status=status)
        self.given.append(time.monotonic())
        message = {"role": "assistant", "content": "a caption"}
        return web.json_response({"choices": [{"finish_reason": "stop", "message": message}]})


def caption(source: Path, port: int) -> tuple[int, int]:
    """Run the command; return captions and failures."""
    address = f"http://127.0.0.1:{port}/v1"
    options = ["--base-url", address, "--model", "m", "--concurrency", str(IN_FLIGHT), "--no-dedup"]
    subprocess.run([sys.executable, "-m", "captioner", str(source), *options], check=False)
    done = source.with_name("in.captions.jsonl").read_text().splitlines()
    failures = source.with_name("in.captions.failed.jsonl")
    failed = len(failures.read_text().splitlines()) if failures.exists() else 0
    return sum("caption" in json.loads(line) for line in done), failed


def rate(given: list[float], at: float) -> float:
    """Captions in the second before a moment."""
    return bisect.bisect(given, at) - bisect.bisect(given, at - 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("which", choices=("faults", "outage"))
    parser.add_argument("--seconds", type=float, default=60.0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="captioner-faults-") as name:
        if chosen.which == "faults":
            server = FaultyServer(latency_s=0.05, faults=0.35)
            done, failed = caption(make(Path(name), 2_000), server.port)
            took = server.given[-1] - server.given[0]
            share = server.failed / (server.failed + len(server.given))
            print("| captioned of 2,000 | failed | faulty replies | requests for a caption | s |")
            print("| ---: | ---: | ---: | ---: | ---: |")
            calls = (server.failed + len(server.given)) / 2_000
            print(f"| {done:,} | {failed} | {share:.1%} | {calls:.2f} | {took:.1f} |")
            return
        server = FaultyServer(latency_s=0.2, faults=0.0)
        asyncio.run_coroutine_threadsafe(server.away(15.0, chosen.seconds), server.loop)
        done, failed = caption(make(Path(name), 12_000), server.port)
        before = rate(server.given, server.went)
        steps = (server.came + 0.1 * step for step in range(600))
        back = next((at for at in steps if rate(server.given, at) >= 0.9 * before), None)
        print("| captioned of 12,000 | failed | rate before, /s | back at 0.9 of it after, s |")
        print("| ---: | ---: | ---: | ---: |")
        took = f"{back - server.came:.1f}" if back else "never"
        print(f"| {done:,} | {failed} | {before:.0f} | {took} |")


if __name__ == "__main__":
    main()
