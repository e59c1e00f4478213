from __future__ import annotations

import asyncio

import orjson
import pytest

from captioner.core.cancellation import CancelToken, StoppedError
from captioner.core.errors import (
    EndpointFaultError,
    EndpointGaveOutError,
    EndpointRefusedError,
    SettingsError,
)
from captioner.core.types import Response
from captioner.endpoints import connect as connecting
from captioner.endpoints import reach
from captioner.endpoints.addresses import KEY_NAMES, api_key, base_url
from captioner.endpoints.connect import find_base
from captioner.endpoints.reach import only_model
from captioner.endpoints.transport import AiohttpTransport
from captioner.settings.options import EndpointSettings

SECRET = "sk-hush-1234"


class Replies:
    """Answers with one body, an error, or never."""

    def __init__(self, reply):
        self.reply = reply
        self.asked = []

    async def send(self, request):
        self.asked.append((request.method, request.path))
        if self.reply is None:
            await asyncio.Event().wait()
        if isinstance(self.reply, Exception):
            raise self.reply
        return Response(200, {}, self.reply)

    async def close(self):
        pass


def serving(*names):
    return orjson.dumps({"data": [{"id": name} for name in names]})


def test_base_url_precedence(monkeypatch):
    """The endpoint given beats the environment, and captioner's own variable the general one."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://general/v1/")
    assert base_url(EndpointSettings()) == "http://general/v1"
    monkeypatch.setenv("CAPTIONER_BASE_URL", "http://own/v1")
    assert base_url(EndpointSettings()) == "http://own/v1"
    assert base_url(EndpointSettings(base_url="http://given/v1//")) == "http://given/v1"
    monkeypatch.setenv("CAPTIONER_BASE_URL", "")  # set to nothing is not set
    assert base_url(EndpointSettings()) == "http://general/v1"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", r"no endpoint(?s:.*)--base-url(?s:.*)--offline"),  # every way to give one
        ("ftp://host/v1", "must begin with http"),
        ("localhost:8000", "must begin with http"),
        ("http://", "has no host"),
    ],
)
def test_no_base_url_or_a_bad_one(monkeypatch, url, message):
    """Without an endpoint the run says how to give one; one of the environment is checked, too."""
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(SettingsError, match=message):
        base_url(EndpointSettings())


def test_api_key_precedence(monkeypatch):
    """The variable that is named is used; else the first of the known ones that holds a key."""
    assert api_key(EndpointSettings()) is None
    for name in reversed(KEY_NAMES):
        monkeypatch.setenv(name, f" key-of-{name}\n")  # as a file may leave it
        assert api_key(EndpointSettings()) == f"key-of-{name}"
    monkeypatch.setenv("MINE", "mine")
    assert api_key(EndpointSettings(api_key_env="MINE")) == "mine"
    monkeypatch.setenv(KEY_NAMES[0], "  ")
    assert api_key(EndpointSettings()) == f"key-of-{KEY_NAMES[1]}"


def test_named_key_is_not_set(monkeypatch):
    """A variable that is named but holds nothing is an error: no other key is sent instead."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for value in (None, ""):
        if value is not None:
            monkeypatch.setenv("MINE", value)
        with pytest.raises(SettingsError, match="variable MINE is not set") as raised:
            api_key(EndpointSettings(api_key_env="MINE"))
        assert SECRET not in str(raised.value)


@pytest.mark.parametrize("key", [f"{SECRET}\nx", f"{SECRET}é", f"{SECRET}\x7f"])
def test_key_that_cannot_be_sent(monkeypatch, key):
    """A key no request can carry is named by its variable and never shown."""
    monkeypatch.setenv("MINE", key)
    monkeypatch.setenv("OPENAI_API_KEY", key)
    for name, named in (("MINE", "MINE"), ("OPENAI_API_KEY", None)):
        with pytest.raises(SettingsError, match=f"the key in {name} ") as raised:
            api_key(EndpointSettings(api_key_env=named))
        assert SECRET not in str(raised.value)


async def test_only_model():
    """An endpoint that serves one model needs no --model."""
    transport = Replies(serving("org/vlm"))
    assert await only_model(transport, CancelToken()) == "org/vlm"
    assert transport.asked == [("GET", "/models")]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (serving("a", "b"), "the endpoint serves a, b; choose one with --model NAME"),
        (serving(*"abcdefghij"), "serves a, b, c, d, e, f, g, h …; choose one"),
        (serving(), "does not say which models it serves"),
        (b"<html>", "does not say which models it serves"),
        (b'{"data":[{}]}', "does not say which models it serves"),
        (b"[]", "does not say which models it serves"),
        (b'{"data":null}', "does not say which models it serves"),
        (EndpointFaultError("away", "it is away"), "cannot be asked for its models: it is away"),
        (None, "cannot be asked for its models: no response within 0.01 s"),
    ],
)
async def test_no_only_model(monkeypatch, reply, message):
    """Where the model cannot be known by asking, the message says why, and that none is given."""
    monkeypatch.setattr(reach, "MODELS_TIMEOUT_S", 0.01)
    with pytest.raises(SettingsError) as raised:
        await only_model(Replies(reply), CancelToken())
    text = str(raised.value)
    assert text.startswith("no model is given")
    assert message in text


class Starting(Replies):
    """Cannot be reached for a while."""

    def __init__(self, reply, faults):
        super().__init__(reply)
        self.faults = faults

    async def send(self, request):
        if self.faults:
            raise self.faults.pop(0)
        return await super().send(request)


def unreachable(*, unknown=False):
    fault = EndpointFaultError("connection", "cannot connect to h:1: refused")
    fault.is_unknown_host = unknown
    return fault


@pytest.fixture
def _instant(monkeypatch):
    monkeypatch.setattr(reach, "LONGEST_PAUSE_S", 0)


@pytest.mark.usefixtures("_instant")
async def test_an_endpoint_that_starts_is_waited_for():
    """Without --model a run waits for its endpoint as it does with it."""
    transport = Starting(serving("m"), [unreachable() for _ in range(5)])
    assert await only_model(transport, CancelToken(), 60) == "m"
    transport = Starting(serving("m"), [unreachable() for _ in range(5)])
    assert await find_base(transport, "http://h:1", CancelToken(), 60) == "http://h:1"
    for ask in (
        lambda transport: only_model(transport, CancelToken(), 1e-9),
        lambda transport: find_base(transport, "http://h:1", CancelToken(), 1e-9),
    ):
        with pytest.raises(EndpointGaveOutError, match="cannot connect to h:1: refused"):
            await ask(Starting(None, [unreachable()]))
        with pytest.raises(EndpointRefusedError, match="no host of that name"):
            await ask(Starting(None, [unreachable(unknown=True)]))


@pytest.mark.usefixtures("_instant")
async def test_one_of_several_endpoints_is_not_waited_for():
    """The others can do its work."""
    transport = Starting(None, [unreachable(unknown=True)])
    assert await find_base(transport, "http://h:1", CancelToken()) == "http://h:1"


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (401, {}, "The endpoint will caption no record. The endpoint responded 401: no key."),
        (403, {}, "The endpoint will caption no record. The endpoint responded 403: no key."),
        (301, {"location": "https://h/v1"}, "The endpoint redirects to https://h/v1."),
        (407, {}, "The proxy rejected the user and password (407)."),
    ],
)
async def test_what_a_status_means_is_said_without_a_model_too(status, headers, message):
    """The words are those of a run with --model."""

    class Refusing(Replies):
        async def send(self, _):
            return Response(status, headers, self.reply)

    with pytest.raises(SettingsError, match=r"^no model is given") as raised:
        await only_model(Refusing(b'{"error":{"message":"no key"}}'), CancelToken())
    assert message in str(raised.value)


async def test_stopped_while_asking():
    """Ctrl-C while the endpoint is asked ends the run at once."""
    cancel = CancelToken()
    asyncio.get_running_loop().call_soon(cancel.set)
    with pytest.raises(StoppedError):
        await only_model(Replies(None), cancel)


async def test_secrets_in_the_address():
    """A password, key or query in the address never shows up in a message."""
    url = f"http://me:{SECRET}@127.0.0.1:9/v1?key={SECRET}"
    shown = connecting.without_secrets(url)
    assert shown == "http://127.0.0.1:9/v1"
    transport = AiohttpTransport(url, api_key=None, timeout_s=5)
    try:
        with pytest.raises(SettingsError, match="cannot be asked") as raised:
            await only_model(transport, CancelToken())
    finally:
        await transport.close()
    assert SECRET not in str(raised.value)
