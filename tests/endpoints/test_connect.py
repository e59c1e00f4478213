"""Addresses as people paste them, and lists of models as servers send them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from captioner.core.cancellation import CancelToken
from captioner.core.errors import EndpointGaveOutError, SettingsError
from captioner.core.types import Request, Response
from captioner.endpoints import reach
from captioner.endpoints.addresses import base_url
from captioner.endpoints.connect import find_base
from captioner.endpoints.reach import only_model
from captioner.settings.options import EndpointSettings

ONE = b'{"object": "list", "data": [{"id": "m"}]}'


class Server:
    """Answers each path in turn, 404 where it has nothing."""

    def __init__(self, replies: Mapping[str, list[tuple[int, bytes]]]) -> None:
        self.replies = {path: list(some) for path, some in replies.items()}
        self.asked: list[str] = []

    async def send(self, request: Request) -> Response:
        self.asked.append(request.path)
        some = self.replies.get(request.path) or [(404, b"not here")]
        status, body = some.pop(0) if len(some) > 1 else some[0]
        return Response(status, {}, body)

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("pasted", "base"),
    [
        ("http://h/v1/chat/completions", "http://h/v1"),
        ("http://h/v1/chat/completions/", "http://h/v1"),
        ("http://h/v1/chat", "http://h/v1"),
        ("http://h/v1/models/", "http://h/v1"),
        ("http://h/v1/completions?a=1", "http://h/v1?a=1"),
        ("http://h/v1#section", "http://h/v1"),
        ("http://h/?x=1", "http://h?x=1"),
        ("HTTPS://h/V2", "https://h/V2"),
        ("'http://h/v1'", "http://h/v1"),
        (' "http://h/v1" ', "http://h/v1"),
        ("http://h/models", "http://h/models"),
        ("http://h/chat", "http://h/chat"),
        ("http://h/openai/deployments/chat?api-version=1", None),
    ],
)
def test_an_address_is_understood_as_it_was_pasted(monkeypatch, pasted, base) -> None:
    """What follows the base, stands around it or marks a section of a page goes."""
    monkeypatch.setenv("OPENAI_BASE_URL", pasted)
    assert base_url(EndpointSettings()) == (base or pasted)


@pytest.mark.parametrize("url", ["http://h", "http://h/api", "http://h?key=1", "http://h/api?k=1"])
@pytest.mark.parametrize("reply", [(200, ONE), (401, b"who are you?")])
async def test_v1_is_found_behind_a_path(url, reply) -> None:
    """Where the API is not at the address itself, but below it."""
    address, mark, query = url.partition("?")
    server = Server({"/v1/models": [reply]})
    assert await find_base(server, url, CancelToken()) == f"{address}/v1{mark}{query}"
    server = Server({"/models": [reply], "/v1/models": [reply]})
    assert await find_base(server, url, CancelToken()) == url


@pytest.mark.parametrize("path", ["v1", "v1beta/openai", "api/paas/v4", "openai/deployments/m"])
async def test_an_address_with_a_version_is_believed(path) -> None:
    """No request is spent on it."""
    server = Server({})
    assert await find_base(server, f"http://h/{path}", CancelToken()) == f"http://h/{path}"
    assert server.asked == []


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + ONE,
        b'{"data": [{"id": "m", "created": NaN}]}',
        b'{"data": [{"id": "m"}, {"id": "m"}]}',
        b'[{"id": "m"}]',
        b'["m"]',
        b'{"models": [{"name": "m"}]}',
    ],
)
async def test_a_list_of_one_model_is_read(body) -> None:
    """In any of the shapes that servers have."""
    assert await only_model(Server({"/models": [(200, body)]}), CancelToken()) == "m"


@pytest.mark.parametrize("status", [429, 500, 502, 504])
async def test_the_models_of_an_endpoint_in_trouble_are_asked_for_again(
    monkeypatch, status
) -> None:
    """One bad moment ends no run before its start; trouble that stays does, in its words."""
    monkeypatch.setattr(reach, "LOADING_PAUSE_S", 0.0)
    server = Server({"/models": [(status, b"busy"), (200, ONE)]})
    assert await only_model(server, CancelToken()) == "m"
    server = Server({"/models": [(status, b"busy")]})
    with pytest.raises(SettingsError, match=f"{status}: busy"):
        await only_model(server, CancelToken())
    assert len(server.asked) == reach.MODELS_TRIES


LOADING = (503, b'{"error": {"message": "Loading model"}}')


@pytest.mark.parametrize(
    ("reply", "patience_s", "longest_s"),
    [((502, b"<html><title>502 Bad Gateway</title></html>"), 0.05, 60), (LOADING, 60, 0.05)],
)
async def test_an_endpoint_whose_trouble_stays_is_given_up(
    monkeypatch, reply, patience_s, longest_s
) -> None:
    """After the time that a run with --model waits; one that loads its model is given longer."""
    monkeypatch.setattr(reach, "LOADING_PAUSE_S", 0.001)
    server = Server({"/models": [reply]})
    with pytest.raises(EndpointGaveOutError, match=r"502 Bad Gateway|Loading model") as raised:
        await only_model(server, CancelToken(), patience_s, longest_s)
    assert "<" not in str(raised.value)
    assert len(server.asked) > reach.MODELS_TRIES


async def test_an_account_without_credit_is_told_without_a_model_too() -> None:
    """As with --model, the run ends with the exit code for later."""
    body = b'{"error": {"message": "Budget has been exceeded! Current cost: 2, Max budget: 1"}}'
    with pytest.raises(EndpointGaveOutError, match="no credit or quota left"):
        await only_model(Server({"/models": [(400, body)]}), CancelToken(), 60)
