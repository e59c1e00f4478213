"""The clients that captioner is measured against, as people write them.

usage: python benchmarks/anchors.py bare|openai INPUT OUTPUT URL CONCURRENCY

`bare` is the least that aiohttp can do: a body of bytes, SIMD base64, settings that cost nothing,
no checks, no retries, nothing kept for a second run. `openai` is the loop around AsyncOpenAI that
is written by hand: a task a record, a semaphore.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path

SYSTEM = (
    "You are an image caption generator. Your task is to write a concise and informative caption "
    "of the given image content."
)


async def bare(source: Path, output: Path, url: str, concurrency: int) -> None:
    import aiohttp
    import orjson
    import pybase64
    from yarl import URL

    lines = iter(source.read_bytes().splitlines())
    target = URL(f"{url}/chat/completions")

    def body(record: dict) -> bytes:
        with open(record["image"], "rb", buffering=0) as file:  # noqa: PTH123
            image = pybase64.b64encode(file.read())
        head, tail = orjson.dumps(
            {
                "model": "m",
                "messages": [
                    {"role": "system", "content": SYSTEM},
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "image_url",
                                "image_url": {"url": "data:image/jpeg;base64,@"},
                            },
                            {"type": "text", "text": record["prompt"]},
                        ],
                    },
                ],
            }
        ).split(b"@")
        return b"".join((head, image, tail))

    async def work(session: aiohttp.ClientSession, out) -> None:
        for line in lines:
            record = orjson.loads(line)
            async with session.post(target, data=body(record)) as reply:
                answer = orjson.loads(await reply.read())
            record["caption"] = answer["choices"][0]["message"]["content"]
            out.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))

    with output.open("wb") as out:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=concurrency),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Content-Type": "application/json", "Authorization": "Bearer x"},
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as session:
            await asyncio.gather(*(work(session, out) for _ in range(concurrency)))


async def by_openai(source: Path, output: Path, url: str, concurrency: int) -> None:
    import openai

    client = openai.AsyncOpenAI(base_url=url, api_key="x")
    gate = asyncio.Semaphore(concurrency)
    records = [json.loads(line) for line in source.read_text().splitlines()]

    async def ask(record: dict) -> None:
        async with gate:
            with open(record["image"], "rb") as file:  # noqa: ASYNC230, PTH123
                image = base64.b64encode(file.read()).decode()
            answer = await client.chat.completions.create(
                model="m",
                messages=[
                    {"role": "system", "content": SYSTEM},
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "image_url",
                                "image_url": {"url": f"data:image/jpeg;base64,{image}"},
                            },
                            {"type": "text", "text": record["prompt"]},
                        ],
                    },
                ],
            )
            record["caption"] = answer.choices[0].message.content

    await asyncio.gather(*map(ask, records))
    with output.open("w") as out:
        for record in records:
            out.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    import uvloop

    client = {"bare": bare, "openai": by_openai}[sys.argv[1]]
    uvloop.run(client(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5])))
