"""What turns prepared records into outcomes: one endpoint, found, opened and wired up."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson

from captioner.budget import ByteBudget
from captioner.captioning import Endpoint
from captioner.dialects.openai_chat import OpenAIChat
from captioner.errors import EndpointFaultError, SettingsError
from captioner.health import Health
from captioner.images.load import Folders
from captioner.limiter import SLOW_START, Limiter
from captioner.pipeline import Pipeline
from captioner.prepare import Preparer
from captioner.records import Request
from captioner.settings import without_secrets
from captioner.stopping import StoppedError, Stopping
from captioner.transport import AiohttpTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from captioner.interfaces import Dialect, Sink, Transport
    from captioner.records import Outcome, Progress, Response
    from captioner.settings import EndpointSettings, Settings

KEY_NAMES = ("CAPTIONER_API_KEY", "OPENAI_API_KEY", "DF_API_KEY")
URL_NAMES = ("CAPTIONER_BASE_URL", "OPENAI_BASE_URL")
ASK_S = 15.0
"""Seconds an endpoint may take to say which models it serves."""

OFFLINE_MODEL = "captioner-offline"


class Engine:
    """An endpoint and how to prepare records for it.

    Attributes:
        model: The model asked for.
        preparer: Makes lines ready.
        endpoint: Captions them.
        budget: Bytes held by prepared records.
    """

    def __init__(
        self, model: str, preparer: Preparer, endpoint: Endpoint, budget: ByteBudget
    ) -> None:
        self.model = model
        self.preparer = preparer
        self.endpoint = endpoint
        self.budget = budget

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        settings: Settings,
        progress: Progress,
        stopping: Stopping,
        dialect: Dialect | None = None,
        transport: Transport | None = None,
    ) -> AsyncIterator[Self]:
        """Connect to the endpoint of the settings, or to the built-in describer.

        Raises:
            SettingsError: There is no endpoint, or no model to ask for.
        """
        endpoint = settings.endpoint
        async with contextlib.AsyncExitStack() as stack:
            name = "given by the caller"
            if transport is None:
                if endpoint.offline:
                    from captioner.offline.child import OfflineEndpoint

                    offline = await stack.enter_async_context(OfflineEndpoint())
                    endpoint = replace(
                        endpoint,
                        base_url=offline.base_url,
                        model=endpoint.model or OFFLINE_MODEL,
                    )
                name = base_url(endpoint)
                transport = AiohttpTransport(
                    name,
                    api_key=None if endpoint.offline else api_key(endpoint),
                    timeout_s=endpoint.timeout,
                    connections=settings.run.concurrency,
                )
                stack.push_async_callback(transport.close)
            model = endpoint.model
            if model is None:
                model = await only_model(transport, stopping) if dialect is None else ""
            prompt = settings.prompt.resolved()
            settings = replace(settings, prompt=prompt)
            dialect = dialect or OpenAIChat(
                model, max_tokens=prompt.max_tokens, temperature=prompt.temperature
            )
            limiter = Limiter(
                settings.run.concurrency, start=SLOW_START, rpm=endpoint.rpm, tpm=endpoint.tpm
            )
            stopping.then(limiter.open)
            health = Health(
                without_secrets(name), max_outage_s=endpoint.max_outage, sleep=stopping.sleep
            )
            budget = ByteBudget(settings.images.memory)
            stopping.then(budget.close)
            yield cls(
                model,
                Preparer(settings, dialect, _folders(settings), budget),
                Endpoint(
                    dialect,
                    transport,
                    limiter,
                    health,
                    progress,
                    stopping,
                    max_attempts=settings.run.max_attempts,
                ),
                budget,
            )

    def pipeline(
        self,
        settings: Settings,
        sink: Sink,
        progress: Progress,
        stopping: Stopping,
        settled: Callable[[Outcome], None] | None = None,
    ) -> Pipeline:
        """Return a pipeline from this engine into a sink."""
        return Pipeline(
            self.preparer,
            self.endpoint,
            sink,
            self.budget,
            progress,
            stopping,
            concurrency=settings.run.concurrency,
            drain_s=settings.run.drain,
            settled=settled,
        )


def base_url(endpoint: EndpointSettings) -> str:
    """Return the endpoint's base URL, from the settings or the environment.

    Raises:
        SettingsError: There is none; says how to give one.
    """
    urls = (endpoint.base_url, *(os.environ.get(name) for name in URL_NAMES))
    if url := next(filter(None, urls), None):
        replace(endpoint, base_url=url)  # what comes from the environment is checked, too
        return url.rstrip("/")
    raise SettingsError(
        "no endpoint. Give one of:\n"
        "  --base-url http://localhost:8000/v1 --model NAME    your own server\n"
        "  --base-url https://api.openai.com/v1 --model NAME   with the key in OPENAI_API_KEY\n"
        "  --offline                                           the built-in describer, to try"
    )


def api_key(endpoint: EndpointSettings) -> str | None:
    """Return the key, None where no variable holds one.

    Raises:
        SettingsError: The variable that the settings name is not set.
    """
    if endpoint.api_key_env is not None:
        if key := _key_in(endpoint.api_key_env):
            return key
        raise SettingsError(
            f"api-key-env: the environment variable {endpoint.api_key_env} is not set"
        )
    return next(filter(None, map(_key_in, KEY_NAMES)), None)


def _key_in(name: str) -> str:
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(f"the key in {name} holds characters that no request can carry")
    return key


async def only_model(transport: Transport, stopping: Stopping) -> str:
    """Return the model of an endpoint that serves just one.

    Raises:
        SettingsError: It serves several, or does not say.
        StoppedError: The run was stopped before it said.
    """
    try:
        reply = await _unless_stopped(transport.send(Request("GET", "/models")), stopping)
        served = orjson.loads(reply.body)["data"]
        models = [" ".join(str(model["id"]).split())[:80] for model in served]
    except EndpointFaultError as error:
        raise SettingsError(
            f"no model is given, and the endpoint cannot be asked: {error.message}"
        ) from None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        models = []
    if len(models) == 1:
        return models[0]
    served = f"serves {', '.join(models[:8])}{' …' if len(models) > 8 else ''}; choose one"
    raise SettingsError(
        f"no model is given, and the endpoint {served if models else 'does not say what it serves'}"
        " with --model NAME"
    )


async def _unless_stopped(sending: Coroutine[Any, Any, Response], stopping: Stopping) -> Response:
    """Return the reply, unless the run is stopped or the endpoint takes too long over it."""
    reply = asyncio.ensure_future(sending)
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait((reply, stopped), timeout=ASK_S, return_when=asyncio.FIRST_COMPLETED)
        if stopping:
            raise StoppedError
        if not reply.done():
            raise EndpointFaultError("timeout", f"no reply within {ASK_S:g} s")
        return reply.result()
    finally:
        reply.cancel()
        stopped.cancel()


def _folders(settings: Settings) -> Folders:
    root = settings.records.image_root
    here = [settings.input.parent] if settings.input is not None else []
    return Folders(
        [root] if root is not None else list(dict.fromkeys([*here, Path()])),
        bound=root is not None,
        max_bytes=settings.images.max_image_bytes,
    )
