"""The guard in conftest.py: tests reach nothing but this machine."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest


@pytest.mark.parametrize(
    ("url", "place"),
    [("http://192.0.2.1:9/", "192.0.2.1"), ("http://images.invalid:9/", "images.invalid")],
)
async def test_another_machine_is_refused_and_noted(only_this_machine, url, place):
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(url)
    assert place in only_this_machine
    only_this_machine.clear()


def test_a_blocking_connection_is_refused_and_noted(only_this_machine):
    with pytest.raises(OSError, match="stay on this machine"):
        socket.create_connection(("192.0.2.1", 9), timeout=1)
    assert only_this_machine == ["192.0.2.1"]
    only_this_machine.clear()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_this_machine_is_reached(only_this_machine, host):
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection(host, port)
        writer.close()
        await writer.wait_closed()
    assert only_this_machine == []
