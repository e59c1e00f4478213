"""What a user does with a chat server, on servers of other projects."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from conftest import command, jpeg, rows
from real_servers import RealServer
from waiting import LIMIT_S, wait_until
from web import http_server

SHORT = {
    "CAPTIONER_MAX_TOKENS": "12",
    "CAPTIONER_ACCEPT": "truncated",
    "CAPTIONER_CONCURRENCY": "4",
}
KEY = "sk-0123456789-wrong"


@pytest.fixture
def caption(tmp_path: Path, chat: RealServer) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Caption an input with the server to its end."""

    def run(source: object, *options: object, **environment: str) -> Any:
        return subprocess.run(
            arguments(source, tmp_path, chat, *options),
            check=False,
            timeout=LIMIT_S,
            capture_output=True,
            text=True,
            env={**os.environ, **SHORT, **key_of(chat), **environment},
        )

    return run


def arguments(source: object, folder: Path, chat: RealServer, *options: object) -> list[str]:
    common = ("-o", folder / "out.jsonl", "--base-url", chat.base_url, "--no-dedup")
    return command(source, *common, *options)


def ids(folder: Path, name: str = "out.jsonl") -> list[Any]:
    """Return the ids of the records in a file, sorted."""
    path = folder / name
    found = rows(path) if path.exists() else []
    return sorted(row.get("record", row)["id"] for row in found)


def key_of(chat: RealServer) -> dict[str, str]:
    return {"CAPTIONER_API_KEY": chat.recipe.key} if chat.recipe.key else {}


def named(chat: RealServer) -> tuple[str, ...]:
    return ("--model", chat.model)


def test_without_a_model(chat, caption, make_input, tmp_path) -> None:
    """The model of a server that has one is found; otherwise the message lists them."""
    done = caption(make_input(6))
    if done.returncode == 2:
        assert "choose one with --model NAME" in done.stderr
        assert chat.model in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert ids(tmp_path) == [*range(6)]
        assert all(row["caption"] for row in rows(tmp_path / "out.jsonl"))


def test_with_a_model(chat, caption, make_input, tmp_path) -> None:
    done = caption(make_input(6), *named(chat))
    assert done.returncode == 0, done.stderr
    assert ids(tmp_path) == [*range(6)]


def test_stream(chat, caption, make_input, tmp_path) -> None:
    """Captions come whole, and their tokens are counted."""
    done = caption(make_input(6), *named(chat), "--stream")
    assert done.returncode == 0, done.stderr
    assert ids(tmp_path) == [*range(6)]
    assert all(row["caption"] for row in rows(tmp_path / "out.jsonl"))
    assert "tokens: 0 in" not in done.stderr


def test_max_tokens(chat, caption, make_input, tmp_path) -> None:
    """A caption that the limit cut off is told from a whole one."""
    done = caption(make_input(3), *named(chat), "--max-tokens", 4)
    assert done.returncode == 0, done.stderr
    if "lengths" not in chat.recipe.can:
        pytest.skip("the server has no use for max_tokens")
    assert {row.get("caption_flag") for row in rows(tmp_path / "out.jsonl")} == {"truncated"}


def test_schema(chat, caption, make_input, tmp_path) -> None:
    """Answers that do not follow the schema are no captions, and no record vanishes."""
    schema = tmp_path / "schema.json"
    schema.write_text(
        json.dumps(
            {
                "type": "object",
                "properties": {"a": {"enum": ["b", "c"]}},
                "required": ["a"],
                "additionalProperties": False,
            }
        )
    )
    options = ("--schema", schema, "--max-tokens", 40)
    done = caption(make_input(4), *named(chat), *options, CAPTIONER_ACCEPT="")
    if "schemas" in chat.recipe.can:
        assert done.returncode == 0, done.stderr
        assert ids(tmp_path) == [*range(4)]
        assert {row["caption"]["a"] for row in rows(tmp_path / "out.jsonl")} <= {"b", "c"}
    else:
        assert done.returncode in (2, 3), done.stderr
        assert ids(tmp_path) == []
        assert done.returncode == 2 or ids(tmp_path, "out.failed.jsonl")


def test_wrong_model(chat, caption, make_input, tmp_path) -> None:
    """It is wrong use, and said at once with the server's own words."""
    done = caption(make_input(40), "--model", "no-such-model")
    if "models" not in chat.recipe.can:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 2, done.stderr
    assert "no-such-model" in done.stderr
    assert "--model" in done.stderr
    assert ids(tmp_path) == ids(tmp_path, "out.failed.jsonl") == []


def test_wrong_key(chat, caption, make_input, tmp_path) -> None:
    """A key that the server refuses ends the run; no message shows it."""
    done = caption(make_input(8), *named(chat), CAPTIONER_API_KEY=KEY)
    assert done.returncode == (2 if "keys" in chat.recipe.can else 0), done.stderr
    assert KEY not in done.stderr + done.stdout
    assert ids(tmp_path, "out.failed.jsonl") == []


@pytest.fixture
def begun(make_input, tmp_path, chat) -> Iterator[subprocess.Popen[bytes]]:
    """A run of 80 records that has some captions."""
    line = arguments(make_input(80), tmp_path, chat, *named(chat))
    with (tmp_path / "told").open("wb") as told:
        process = subprocess.Popen(line, stderr=told, env={**os.environ, **SHORT, **key_of(chat)})
    wait_until(lambda: len(_lines(tmp_path)) > 4, process)
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()


def _lines(folder: Path) -> list[bytes]:
    path = folder / "out.jsonl"
    return path.read_bytes().splitlines() if path.exists() else []


def test_server_killed_in_mid_run(chat, begun, tmp_path) -> None:
    """The run goes on as soon as the server is back."""
    chat.kill()
    chat.start()
    assert begun.wait(LIMIT_S) == 0, (tmp_path / "told").read_text()
    assert ids(tmp_path) == [*range(80)]


def test_captioner_killed_in_mid_run(chat, begun, caption, tmp_path) -> None:
    """The same command goes on: no record is lost, none is there twice."""
    begun.kill()
    begun.wait()
    done = caption(tmp_path / "input.jsonl", *named(chat))
    assert done.returncode == 0, done.stderr
    assert ids(tmp_path) == [*range(80)]


class _Files(BaseHTTPRequestHandler):
    """Serves one JPEG, and text that claims to be one."""

    def do_GET(self) -> None:
        body = jpeg(1) if self.path == "/good.jpg" else b"no image\n" * 100
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def files() -> Iterator[str]:
    with http_server(_Files) as address:
        yield address


def test_image_that_the_server_cannot_read(chat, caption, files, tmp_path) -> None:
    """Only its own record fails."""
    if "fetching" not in chat.recipe.can:
        pytest.skip("the server fetches no images")
    source = tmp_path / "in.jsonl"
    names = ["good", "bad", *["good"] * 30]
    lines = [{"id": number, "image": f"{files}/{name}.jpg"} for number, name in enumerate(names)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = caption(source, *named(chat), "--pass-urls")
    assert done.returncode == 3, done.stderr
    assert ids(tmp_path) == [0, *range(2, 32)]
    assert ids(tmp_path, "out.failed.jsonl") == [1]


def test_context_overflow(chat, caption, make_input, tmp_path) -> None:
    """A text that alone exceeds the context costs one request, and its record."""
    if "context" not in chat.recipe.can:
        pytest.skip("the server takes prompts of any length")
    source = make_input(3)
    long = {"id": 3, "image": "images/0.jpg", "prompt": "word " * 20_000}
    source.write_text(source.read_text() + json.dumps(long) + "\n")
    done = caption(source, *named(chat), "--concurrency", 1)
    assert done.returncode == 3, done.stderr
    assert ids(tmp_path) == [0, 1, 2]
    (failed,) = rows(tmp_path / "out.failed.jsonl")
    assert failed["attempts"] == 1
