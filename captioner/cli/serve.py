"""The commands ``serve`` and ``models``."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
from typing import TYPE_CHECKING

import orjson

from captioner.cli.signals import handled
from captioner.core.cancellation import CancelToken, StoppedError
from captioner.core.errors import ServerDiedError, SettingsError
from captioner.core.humanize import printable, printable_lines
from captioner.core.log import forward_warnings
from captioner.endpoints.serving.launchers import LAUNCHERS
from captioner.endpoints.serving.machine import fitting, known_models, look
from captioner.endpoints.serving.own import limits_of, plan, started

if TYPE_CHECKING:
    from captioner.endpoints.serving.own import Plan

REQUESTS = 256
"""Requests at once that a server for other runs takes, if it suits the server."""

IMAGES = 64
"""Images of one request that it takes: as many as a record may have."""


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nothing reads it; the server runs on
        print(printable_lines(text), file=sys.stderr, flush=True)


def serve_in_console(
    *, model: str, host: str, port: int, serve_args: str, replicas: int | None
) -> None:
    """Serve a model, or the built-in describer, until a signal arrives."""
    if not model:
        _describe(host, port)
        return
    try:
        arguments = shlex.split(serve_args)
    except ValueError as error:
        raise SettingsError(f"serve-args: {error}") from None
    planned = plan(model, arguments, replicas, None)
    with forward_warnings(_say):
        asyncio.run(_serve(model, planned, arguments, host, port))


def _describe(host: str, port: int) -> None:
    from captioner.endpoints.offline.server import serve

    try:
        serve(host, port)
    except OSError as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}") from None


async def _serve(model: str, planned: Plan, arguments: list[str], host: str, port: int) -> None:
    cancel = CancelToken()
    limits = limits_of(planned, REQUESTS * len(planned.gpus), IMAGES)
    with handled(lambda _: cancel.request()):
        try:
            async with started(
                model, planned, arguments, limits, cancel,
                host=host, port=port, shared=True, heard=lambda line: _say(f"  {line}"),
            ) as servers:  # fmt: skip
                for server in servers:
                    name = printable(server.state.model)
                    print(f"Serving {server.state.base_url} (model {name}; Ctrl-C stops it)")
                print(f"caption with it: captioner INPUT --serve {shlex.quote(model)}", flush=True)
                failed = await cancel.race(
                    asyncio.wait([asyncio.ensure_future(server.given_up()) for server in servers])
                )
                raise ServerDiedError(next(iter(failed[0])).result())
        except StoppedError:
            return


def models_in_console(*, as_json: bool) -> None:
    """Print the models that caption well, and which fit this machine."""
    here = look()
    rows = [(model, fitting(model, here)) for model in known_models()]
    if as_json:
        found = [{**model._asdict(), "fits_with": servers} for model, servers in rows]
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
        return
    print(f"This machine: {here}. Servers installed: {', '.join(here.installed) or 'none'}.\n")
    line = "{:<15} {:<7} {:>7} {:>6}  {:<19} {}"
    print(line.format("model", "size", "16 bits", "4 bits", "licence", "fits here with"))
    for model, servers in rows:
        memory = (f"{model.memory:g} GB", f"{model.memory_4bit:g} GB" if model.gguf else "-")
        fits = ", ".join(servers) or "-"
        print(line.format(model.name, model.size, *memory, model.licence, fits))
    print("\ncaption with one: captioner INPUT --serve MODEL")
    missing = [one for name, one in LAUNCHERS.items() if name not in here.installed]
    for launcher in missing:
        print(f"to install {launcher.name}: {launcher.install}", file=sys.stderr)
