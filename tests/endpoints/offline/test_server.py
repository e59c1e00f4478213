from __future__ import annotations

import asyncio
import base64
import io
import json
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import aiohttp
import pytest
from PIL import Image, ImageDraw, ImageFont

from captioner.endpoints.offline.server import running


def data_uri(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


RED = data_uri(Image.new("RGB", (64, 32), "red"))
BLUE = data_uri(Image.new("RGB", (32, 64), "#0000ee"))


def overrides(*urls, text="Describe the image."):
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content = [{"type": "text", "text": text}, *images]
    return {"model": "any", "messages": [{"role": "user", "content": content}]}


@pytest.fixture
async def server():
    async with running() as base_url:
        yield base_url


@pytest.fixture
async def session():
    async with aiohttp.ClientSession() as client:
        yield client


async def post(session, server, body, path="/chat/completions"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with session.post(server + path, data=io.BytesIO(data)) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


async def test_a_data_uri_comes_back_as_a_chat_completion(server, session):
    """An OpenAI client finds every field it reads, and the caption is about its image."""
    status, answer = await post(session, server, overrides(RED, text="x" * 40))
    assert status == 200
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "captioner-offline"
    assert answer["id"]
    assert answer["created"] > 1_700_000_000
    (choice,) = answer["choices"]
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")
    assert choice["message"]["role"] == "assistant"
    content = choice["message"]["content"]
    assert "64 x 32 pixels" in content
    assert "red" in content
    usage = answer["usage"]
    assert usage["prompt_tokens"] == 40 // 4 + 2  # characters by four, and two 32 pixel patches
    assert usage["completion_tokens"] == -(-len(content) // 4)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_the_text_of_a_image_arrives_over_http(server, session):
    """OCR works inside the server's threads."""
    image = Image.new("RGB", (500, 160), "white")
    font = ImageFont.load_default(70)
    ImageDraw.Draw(image).text((20, 30), "Open Sunday", fill="black", font=font)
    bodies = [overrides(data_uri(image))] * 4
    answers = await asyncio.gather(*(post(session, server, body) for body in bodies))
    for status, answer in answers:
        assert status == 200
        assert '"Open Sunday"' in answer["choices"][0]["message"]["content"]


async def test_several_images_are_captioned_in_their_order(server, session):
    """A comparison prompt gets one caption for each image, numbered."""
    _, answer = await post(session, server, overrides(RED, BLUE))
    content = answer["choices"][0]["message"]["content"]
    first, second = content.split(" Image 2: ")
    assert first.startswith("Image 1: ")
    assert "entirely red" in first
    assert "entirely blue" in second


async def test_an_image_url_may_be_a_plain_string(server, session):
    """Clients that write image_url as a string are served too."""
    part = {"type": "image_url", "image_url": RED}
    system = {"role": "system", "content": "Be brief."}
    body = {"messages": [system, {"role": "user", "content": [part]}]}
    assert (await post(session, server, body))[0] == 200


async def test_a_streamed_reply_says_the_same(server, session):
    """A client that asks for a stream gets server-sent events with the caption and the usage."""
    _, whole = await post(session, server, overrides(RED))
    body = overrides(RED) | {"stream": True, "stream_options": {"include_usage": True}}
    async with session.post(server + "/chat/completions", json=body) as response:
        assert response.content_type == "text/event-stream"
        events = (await response.text()).strip().split("\n\n")
    assert events.pop() == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    assert text == whole["choices"][0]["message"]["content"]
    assert choices[-1]["finish_reason"] == "stop"
    assert chunks[-1]["usage"] == whole["usage"]


async def test_the_model_is_listed(server, session):
    """A client that checks first learns the model's name."""
    async with session.get(server + "/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["captioner-offline"]


NO_IMAGE = {"messages": [{"role": "user", "content": "Hello"}]}
BAD_PART = {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "x"}]}]}
NOT_AN_IMAGE = "data:image/png;base64," + base64.b64encode(b"no image").decode()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{not json", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "must be a JSON object"),
        ({}, "'messages' must be a list"),
        (NO_IMAGE, "contain no image"),
        ({"messages": ["x", {}, {"content": 5}]}, "contain no image"),
        (BAD_PART, "Every part must be"),
        ({"messages": [{"content": [{"type": ["text"]}]}]}, "Every part must be"),
        (overrides("http://127.0.0.1:9/a.png"), "takes base64 data: images only"),
        (overrides("https://example.com/a.png"), "takes base64 data: images only"),
        (overrides("file:///etc/hostname"), "takes base64 data: images only"),
        (overrides("data:image/png,abc"), "takes base64 data: images only"),
        (overrides("data:image/png;base64,@@@@"), "is damaged"),
        (overrides("data:image/png;base64,é"), "is damaged"),
        (overrides(NOT_AN_IMAGE), "not an image that can be decoded"),
    ],
)
async def test_the_error_of_a_bad_request_has_the_form_of_the_protocol(server, session, body, said):
    """Every fault of the caller's is a 400 that names it, never a 500 or a dropped connection."""
    status, answer = await post(session, server, body)
    assert status == 400
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert said in answer["error"]["message"]


async def test_a_bomb_is_a_bad_request(server, session):
    """An image that unpacks to far too many pixels is refused with 400."""
    bomb = data_uri(Image.new("1", (20_000, 20_000)))
    status, answer = await post(session, server, overrides(bomb))
    assert status == 400
    assert "80 million" in answer["error"]["message"]


async def test_a_body_over_the_cap_is_413_and_an_unknown_path_404(session):
    """The two refusals of the web framework also come in OpenAI's shape."""
    async with running(max_body=2000) as server:
        status, answer = await post(session, server, b" " * 3_000_000)
        assert (status, answer["error"]["code"]) == (413, "request_too_large")
        status, answer = await post(session, server, b"{}", path="/embeddings")
        assert status == 404
        assert "/v1/embeddings" in answer["error"]["message"]
        async with session.get(server + "/chat/completions") as response:
            assert response.status == 405
            assert (await response.json())["error"]["message"]


async def test_a_body_of_many_megabytes_is_accepted(server, session):
    """A camera's full frame fits: the web framework's default cap of 1 MiB is lifted."""
    noise = Image.effect_noise((1500, 1500), 90).convert("RGB")
    body = overrides(data_uri(noise))
    assert len(body["messages"][0]["content"][1]["image_url"]["url"]) > 2_000_000
    assert (await post(session, server, body))[0] == 200


async def test_a_port_in_use_is_an_error(server):
    """Starting twice on one port fails at once instead of serving nothing."""
    with pytest.raises(OSError, match="address already in use"):
        async with running(port=urlsplit(server).port):
            pass


async def test_a_closed_server_answers_no_more(session):
    """Close frees the port."""
    async with running() as server:
        pass
    with pytest.raises(aiohttp.ClientConnectionError):
        await post(session, server, overrides(RED))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_says_where_and_what_it_is_and_ends_by_signal(number):
    """`captioner serve` prints its URL, says that it is not a model, and stops at a signal."""
    script = "from captioner.endpoints.offline.server import serve; serve('127.0.0.1', 0)"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            first, second = process.stdout.readline(), process.stdout.readline()
            assert "http://127.0.0.1:" in first
            assert "not a vision-language model" in second
            process.send_signal(number)
            assert process.wait(timeout=20) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()
