"""The servers of ``--serve`` and of ``captioner serve MODEL``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shlex
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from captioner.core.errors import SettingsError
from captioner.endpoints.serving import machine
from captioner.endpoints.serving.launchers import LAUNCHERS, Limits, Start, parse
from captioner.endpoints.serving.running import running_servers
from captioner.endpoints.serving.server import Server
from captioner.endpoints.serving.weights import downloaded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from captioner.core.cancellation import CancelToken
    from captioner.endpoints.serving.launchers import Launcher
    from captioner.endpoints.serving.running import ServerState
    from captioner.settings.context import RunContext

logger = logging.getLogger(__name__)

LOOK_S = 0.5
"""Seconds between two looks at a server of another process that starts."""

_PARALLEL_GPUS = re.compile(r"(?:--tensor-parallel-size|--tp-size|--tp|-tp)[= ](\d+)")
"""The argument by which one server uses several GPUs."""

_ADDRESS = re.compile(r"--(?:host|port)(?:=.*)?")
_KEY = re.compile(r"--api-key(?:-file)?(?:=.*)?")


class Plan(NamedTuple):
    """What is started for a value of ``--serve``.

    Attributes:
        launcher: The kind of server.
        program: The path of its program.
        model: The model as the server knows it.
        name: The model's name in requests.
        gpus: The GPUs of each server; one entry for each server.
    """

    launcher: Launcher
    program: str
    model: str
    name: str
    gpus: list[list[str]]


def plan(serve: str, arguments: Sequence[str], replicas: int | None, name: str | None) -> Plan:
    """Return what to start.

    Args:
        serve: The value of ``--serve``.
        arguments: Arguments of the user for the server.
        replicas: Servers to start; None is one for each GPU, or each group of GPUs that the
            arguments ask for.
        name: The model's name in requests; None for the one that suits the server.

    Raises:
        SettingsError: The server is not installed, nothing suits the model, its file is missing, or
            the arguments name an address.
    """
    if any(map(_ADDRESS.fullmatch, arguments)):
        raise SettingsError(
            "serve-args: leave --host and --port out. A run chooses them; captioner serve has "
            "--host and --port of its own"
        )
    found = machine.look()
    kind, model = parse(serve)
    if not kind:
        kind, model = machine.choose(model, found)
    elif known := next((one for one in machine.known_models() if one.name == model), None):
        model = known.name_for(kind)
        if not model:
            raise SettingsError(f"serve: {known.name} has no weights for {kind}")
    launcher = LAUNCHERS[kind]
    program = launcher.found()
    if program is None:
        raise SettingsError(
            f"serve: {launcher.program} is not installed, or not in PATH: {launcher.install}"
        )
    path = Path(model)
    if model.startswith("~/"):  # shells leave it as it is after a colon
        path = path.expanduser()
    is_path = path.exists()
    if is_path:
        model = str(path.absolute())
    elif model.startswith(("/", "~", "./", "../")) or (
        kind == "llamacpp" and model.endswith(".gguf")
    ):
        raise SettingsError(f"serve: there is no file or folder {model}")
    each = _PARALLEL_GPUS.search(" ".join(arguments))
    per_server = int(each[1]) if each else 1
    indexes = [gpu.number for gpu in found.gpus]
    count = replicas or (max(1, len(indexes) // per_server) if launcher.per_gpu else 1)
    gpus = [indexes[at * per_server : (at + 1) * per_server] for at in range(count)]
    if count == 1 or not all(gpus):
        gpus = [[] for _ in range(count)]  # the server sees all that there are
    short = path.name if is_path else model
    return Plan(launcher, program, model, (name or short) if launcher.named else model, gpus)


@contextlib.asynccontextmanager
async def started(
    serve: str,
    planned: Plan,
    arguments: Sequence[str],
    limits: Limits,
    cancel: CancelToken,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    shared: bool = False,
    tell: Callable[[str], None] = lambda _: None,
    answers: Callable[[], int] = lambda: 0,
    heard: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[list[Server]]:
    """Start servers, and stop them at the end of the context.

    Args:
        serve: The value of ``--serve``.
        planned: What to start.
        arguments: Arguments of the user for the servers.
        limits: What each server may take at once.
        cancel: Ends the wait for them.
        host: The address to listen on.
        port: The port of the first server, the next ones follow; with 0, free ones are chosen.
        shared: Other runs may use them.
        tell: Called with what happens until they are ready.
        answers: See `Server`.
        heard: See `Server`.

    Raises:
        SettingsError: A server does not start, or a port is taken.
        StoppedError: The run was cancelled first.
    """
    if planned.launcher.name == "llamacpp":
        model = await downloaded(planned.model, cancel, tell)
        planned = planned._replace(model=model)
    servers: list[Server] = []
    async with contextlib.AsyncExitStack() as stack:
        for number, gpus in enumerate(planned.gpus):
            if port:
                _check_free(host, port + number)
            at = port + number if port else _free_port()
            start = Start(planned.program, planned.model, planned.name, host, at, limits)
            try:
                server = Server(
                    planned.launcher, serve, start, arguments, gpus,
                    shared=shared, tell=tell, answers=answers, heard=heard,
                )  # fmt: skip
            except OSError as error:
                raise SettingsError(
                    f"serve: {error.filename}: {error.strerror}. The state of servers is kept "
                    "there; set XDG_STATE_HOME to another folder."
                ) from None
            stack.push_async_callback(server.close)
            servers.append(server)
        opening = [asyncio.create_task(server.open()) for server in servers]
        try:
            await cancel.race(_all(opening))
        finally:
            for task in opening:
                task.cancel()
            await asyncio.gather(*opening, return_exceptions=True)
        yield servers


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks)


@contextlib.asynccontextmanager
async def with_servers(context: RunContext, serve: str) -> AsyncIterator[RunContext]:
    """Start the servers of a run, or find those of ``captioner serve``; see `serving`."""
    settings, progress = context.settings, context.progress
    endpoint = settings.endpoint

    def with_addresses(states: Sequence[ServerState]) -> RunContext:
        urls = tuple(state.base_url for state in states)
        own = replace(endpoint, base_url=urls, model=states[0].model)
        return replace(context, settings=replace(settings, endpoint=own))

    def tell(what: str) -> None:
        progress.waiting = what

    while found := [one for one in running_servers() if one.serves(serve)]:
        if all(one.state == "ready" for one in found):
            logger.warning("using the server that captioner serve runs at %s", found[0].base_url)
            tell("")
            yield with_addresses(found)
            return
        tell("the server of captioner serve starts")
        await context.cancel.sleep(LOOK_S)
    arguments = shlex.split(endpoint.serve_args)
    if any(map(_KEY.fullmatch, arguments)):
        raise SettingsError(
            "serve-args: leave --api-key out. The server listens on this machine only, and a run "
            "sends it no key"
        )
    planned = plan(serve, arguments, endpoint.replicas, endpoint.model)
    async with started(
        serve,
        planned,
        arguments,
        limits_of(planned, settings.run.concurrency, settings.records.max_images),
        context.cancel,
        tell=tell,
        answers=lambda: progress.answers,
    ) as servers:
        yield with_addresses([server.state for server in servers])


def limits_of(planned: Plan, concurrency: int, images: int) -> Limits:
    """Return the limits of each server for a run of some requests in flight in all."""
    each = -(-concurrency // len(planned.gpus))
    launcher = planned.launcher
    return Limits(min(each, launcher.parallel), launcher.context, images)


def _check_free(host: str, port: int) -> None:
    """Raise SettingsError if a server cannot listen there.

    What listens there already may say that it is healthy, and would be taken for the server.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"cannot listen on {host}:{port}: {why}") from None


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
