"""How well a request quota is used: captioner and a plain AsyncOpenAI loop on the same server.

The server grants 600 requests a minute from a bucket that begins full with 600, takes 100 ms a
request, and answers 429 beyond that. 1,500 records therefore take 90 s at the least. With
`--silent` it sends no rate-limit headers but `Retry-After: 1`.

usage: python benchmarks/quota.py [--silent] [--records N]     needs: pip install openai
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from aiohttp import web
from PIL import Image

PER_MINUTE = 600
LATENCY_S = 0.1


class QuotaServer:
    """Chat completions under a token bucket, in a thread of its own; ends with the process."""

    def __init__(self, *, silent: bool) -> None:
        self.silent = silent
        self.port = 0
        self.reset()
        self._ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        self._ready.wait()

    def reset(self) -> None:
        self.level = float(PER_MINUTE)
        self.at = time.monotonic()
        self.granted = self.rejected = 0

    async def _serve(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await asyncio.sleep(3_600)

    async def _chat(self, request: web.Request) -> web.Response:
        await request.read()
        now = time.monotonic()
        self.level = min(PER_MINUTE, self.level + (now - self.at) * PER_MINUTE / 60)
        self.at = now
        headers = {}
        if not self.silent:
            missing = PER_MINUTE - max(0.0, self.level - 1)
            headers = {
                "x-ratelimit-limit-requests": str(PER_MINUTE),
                "x-ratelimit-remaining-requests": str(max(0, int(self.level - 1))),
                "x-ratelimit-reset-requests": f"{missing * 60 / PER_MINUTE:.3f}s",
            }
        if self.level < 1:
            self.rejected += 1
            wait = 1.0 if self.silent else (1 - self.level) * 60 / PER_MINUTE
            error = {"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}
            headers["Retry-After"] = f"{wait:.3f}" if wait < 1 else "1"
            return web.json_response(error, status=429, headers=headers)
        self.level -= 1
        self.granted += 1
        await asyncio.sleep(LATENCY_S)
        message = {"role": "assistant", "content": "a caption"}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        usage = {"prompt_tokens": 800, "completion_tokens": 50, "total_tokens": 850}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        return web.json_response({**body, "choices": choices, "usage": usage}, headers=headers)


def make(folder: Path, count: int) -> Path:
    Image.new("RGB", (64, 64), "teal").save(folder / "a.jpg")
    source = folder / "in.jsonl"
    lines = (json.dumps({"id": n, "image": "a.jpg"}) + "\n" for n in range(count))
    source.write_text("".join(lines))
    return source


def run_captioner(source: Path, url: str, concurrency: int) -> int:
    arguments = ["--base-url", url, "--model", "m", "--concurrency", str(concurrency), "--no-dedup"]
    subprocess.run([sys.executable, "-m", "captioner", str(source), *arguments], check=True)
    lines = source.with_name("in.captions.jsonl").read_text().splitlines()
    return sum("caption" in json.loads(line) for line in lines)


async def run_openai(source: Path, url: str, concurrency: int) -> int:
    """What people write by hand: a task a record, a semaphore, the SDK's own retries."""
    import openai

    client = openai.AsyncOpenAI(base_url=url, api_key="x")
    gate = asyncio.Semaphore(concurrency)
    image = base64.b64encode((source.parent / "a.jpg").read_bytes()).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}}
    content = [part, {"type": "text", "text": "Describe the image."}]
    captioned = 0

    async def one() -> None:
        nonlocal captioned
        async with gate:
            try:
                reply = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": content}]
                )
            except openai.APIError:
                return
            captioned += bool(reply.choices[0].message.content)

    await asyncio.gather(*(one() for _ in source.read_text().splitlines()))
    await client.close()
    return captioned


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--silent", action="store_true")
    parser.add_argument("--records", type=int, default=1_500)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--only", choices=("captioner", "openai"))
    chosen = parser.parse_args()
    server = QuotaServer(silent=chosen.silent)
    url = f"http://127.0.0.1:{server.port}/v1"
    floor = max(0, chosen.records - PER_MINUTE) * 60 / PER_MINUTE
    print(f"| client | captioned of {chosen.records:,} | wall / floor | rejected attempts |")
    print("| --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(prefix="captioner-quota-") as name:
        source = make(Path(name), chosen.records)
        for client in ("captioner", "openai"):
            if chosen.only not in (None, client):
                continue
            server.reset()
            began = time.monotonic()
            if client == "captioner":
                captioned = run_captioner(source, url, chosen.concurrency)
            else:
                captioned = asyncio.run(run_openai(source, url, chosen.concurrency))
            wall = time.monotonic() - began
            share = server.rejected / max(1, server.granted + server.rejected)
            print(
                f"| {client} | {captioned:,} | {wall / max(floor, 0.1):.2f} | {share:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
