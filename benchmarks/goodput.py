"""How much three clients get out of an endpoint, each over HTTP on loopback.

The servers are those of `goodput_sim.py`, as web servers. captioner knows nothing about them.
AsyncOpenAI retries up to ten times, with as many in flight as captioner may have. aiolimiter is
given the true limit of the server as a rate, which nobody knows beforehand, and retries at once. A
run is cut after the seconds of its case, as in the simulation: the table has the captions until
then as a share of the ideal, and the share of requests that were refused, failed or given up.

usage: python benchmarks/goodput.py [CASE ...]     needs: pip install openai aiolimiter
       about four minutes for a case and client
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from aiohttp import web
from goodput_sim import CASES, Case, Server
from PIL import Image

from captioner.endpoints.goodput import REFUSAL

NAMES = ("r35", "r10", "q600", "q6000", "s32", "s32r", "step", "serial", "outage")

OPENAI = """
import asyncio, itertools, sys
import openai
url, limit, timeout_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
image = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/4AAQ"}}
messages = [{"role": "user", "content": [image, {"type": "text", "text": "Describe the image."}]}]
async def work(client):
    while True:
        try:
            await client.chat.completions.create(model="m", messages=messages)
        except openai.APIError:
            pass
async def main():
    client = openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=10, timeout=timeout_s)
    await asyncio.gather(*(work(client) for _ in range(limit)))
asyncio.run(main())
"""

AIOLIMITER = """
import asyncio, sys
import aiohttp, aiolimiter
url, limit, timeout_s, per_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
image = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/4AAQ"}}
messages = [{"role": "user", "content": [image, {"type": "text", "text": "Describe the image."}]}]
async def work(session, limiter):
    while True:
        async with limiter:
            pass
        try:
            async with session.post(url, json={"messages": messages}) as reply:
                await reply.read()
        except (aiohttp.ClientError, TimeoutError):
            pass
async def main():
    global url
    limiter = aiolimiter.AsyncLimiter(1, 1 / per_s)
    url += "/chat/completions"
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(timeout_s)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await asyncio.gather(*(work(session, limiter) for _ in range(limit)))
asyncio.run(main())
"""


class Endpoint:
    """A simulated server behind HTTP, in a thread of its own; ends with the process."""

    def __init__(self) -> None:
        self.port = 0
        self._ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        self._ready.wait()

    def reset(self, case: Case) -> None:
        self.server = Server(**case.server, seed=7)
        self.until = case.seconds
        self.began = 0.0
        self.done = self.failed = 0

    async def _serve(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await asyncio.sleep(1e6)

    async def _chat(self, request: web.Request) -> web.Response:
        await request.read()
        now = time.monotonic()
        self.began = self.began or now
        takes, weight = self.server.send(now - self.began)
        try:
            await asyncio.sleep(takes)
        except asyncio.CancelledError:
            # The client gave up; what it does when it is cut does not count.
            self.failed += time.monotonic() - self.began <= self.until
            raise
        counts = time.monotonic() - self.began <= self.until
        if weight:
            self.failed += counts
            status = 429 if weight == REFUSAL else 500
            return web.json_response({"error": {"message": "not now"}}, status=status)
        self.done += counts
        message = {"role": "assistant", "content": f"a caption of image {self.done}"}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        usage = {"prompt_tokens": 800, "completion_tokens": 50, "total_tokens": 850}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        return web.json_response({**body, "choices": choices, "usage": usage})


def command(client: str, case: Case, url: str, folder: Path) -> list[str]:
    """Return the command that runs a client, with more to do than it can in the time."""
    timeout_s = min(case.timeout_s, 300.0)
    ideal = case.ideal(case.seconds)
    if client == "captioner":
        source = folder / "in.jsonl"
        lines = (
            json.dumps({"id": n, "image": "a.jpg"}) + "\n" for n in range(int(2 * ideal) + 500)
        )
        source.write_text("".join(lines))
        words = [sys.executable, "-m", "captioner", str(source), "--base-url", url, "--model", "m"]
        words += ["--concurrency", str(case.ceiling), "--timeout", str(timeout_s), "--no-dedup"]
        return [*words, "-o", str(folder / f"{time.monotonic_ns()}.jsonl")]
    script = OPENAI if client == "AsyncOpenAI" else AIOLIMITER
    rate = [] if client == "AsyncOpenAI" else [str(ideal / case.seconds)]
    return [sys.executable, "-c", script, url, str(case.ceiling), str(timeout_s), *rate]


def main() -> None:
    endpoint = Endpoint()
    url = f"http://127.0.0.1:{endpoint.port}/v1"
    clients = ("captioner", "AsyncOpenAI", "aiolimiter")
    print("| server |", " | ".join(f"{client} | refused" for client in clients), "|")
    print("| :--- |" + " ---: |" * 2 * len(clients), flush=True)
    with tempfile.TemporaryDirectory(prefix="captioner-goodput-") as name:
        folder = Path(name)
        Image.new("RGB", (64, 64), "teal").save(folder / "a.jpg")
        for number in sys.argv[1:] or NAMES:
            case = CASES[number]
            cells = [case.about]
            for client in clients:
                endpoint.reset(case)
                words = command(client, case, url, folder)
                with subprocess.Popen(
                    words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                ) as run:
                    while run.poll() is None and not (
                        endpoint.began and time.monotonic() - endpoint.began > case.seconds
                    ):
                        time.sleep(0.2)
                    run.terminate()
                share = endpoint.done / case.ideal(case.seconds)
                failed = endpoint.failed / max(1, endpoint.done + endpoint.failed)
                cells += [f"{share:.2f}", f"{failed:.1%}"]
            print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
