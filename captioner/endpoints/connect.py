"""Finding the endpoints of a run: addresses, keys and models, from settings and environment."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from captioner.core.cancellation import CancelToken, StoppedError
from captioner.core.errors import PROXY_REFUSES, EndpointFaultError, SettingsError
from captioner.core.secrets import without_secrets
from captioner.core.types import Request
from captioner.endpoints.circuit_breaker import CircuitBreaker
from captioner.endpoints.cost_budget import CostBudget
from captioner.endpoints.limiter import Limiter, start_of
from captioner.endpoints.openai_chat import OpenAIChat
from captioner.endpoints.pool import Endpoint, EndpointPool
from captioner.endpoints.prices import FREE, Price, price_of
from captioner.endpoints.tracing import Tracing
from captioner.endpoints.transport import AiohttpTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AsyncExitStack

    from captioner.core.protocols import Dialect, Transport
    from captioner.core.types import Progress, Response
    from captioner.settings.options import EndpointSettings
    from captioner.settings.settings import Settings

logger = logging.getLogger(__name__)

KEY_NAMES = ("CAPTIONER_API_KEY", "OPENAI_API_KEY", "DF_API_KEY")
URL_NAMES = ("CAPTIONER_BASE_URL", "OPENAI_BASE_URL")
ASK_S = 15.0
"""Seconds an endpoint may take to say which models it serves."""

OFFLINE_MODEL = "captioner-offline"
OCR_MISSING = (
    "Text in images is not read: install rapidocr and onnxruntime "
    "(pip install rapidocr onnxruntime numpy)"
)


class ConnectedEndpoints(NamedTuple):
    """The endpoints of a run.

    Attributes:
        endpoints: Where requests go.
        models: The model asked for at each.
        dialect: Builds the messages, which are the same for all.
        transport: To the first of them.
    """

    endpoints: EndpointPool
    models: list[str]
    dialect: Dialect
    transport: Transport


async def connect(
    settings: Settings,
    progress: Progress,
    cancel: CancelToken,
    stack: AsyncExitStack,
    *,
    dialect: Dialect | None,
    transport: Transport | None,
    schema: dict[str, Any] | None,
    warn: Callable[[str], None],
) -> ConnectedEndpoints:
    """Connect to the endpoints of the settings, or to the built-in describer.

    Args:
        settings: Which.
        progress: Counts requests.
        cancel: Ends waits.
        stack: Closes the connections.
        dialect: Builds requests and judges replies, instead of OpenAI's chat completions.
        transport: Carries requests, instead of aiohttp.
        schema: What answers have to follow; None for text.
        warn: Called with a sentence when something is worth knowing but no error.

    Raises:
        SettingsError: There is no endpoint, or no model to ask for.
    """
    found = settings.each_endpoint
    if transport is not None:
        found = found[:1]
    elif settings.endpoint.offline:
        from captioner.endpoints.offline import ocr_available
        from captioner.endpoints.offline.process import offline_endpoint

        if not ocr_available():
            logger.warning(OCR_MISSING)
        address = await stack.enter_async_context(offline_endpoint())
        model = settings.endpoint.model or OFFLINE_MODEL
        found = [replace(settings.endpoint, base_url=(address,), model=model)]
    spending = _spending(settings, progress, warn)
    tracing = Tracing(stack, warn) if settings.run.otel else None
    made: list[Endpoint] = []
    models: list[str] = []
    languages: list[Dialect] = []
    transports: list[Transport] = []
    for one in found:
        name, carrier = "given by the caller", transport
        if carrier is None:
            name = base_url(one)
            carrier = AiohttpTransport(
                name,
                api_key=None if one.offline else api_key(one),
                timeout_s=one.timeout,
                headers=[_header(line) for line in one.header],
            )
            stack.push_async_callback(carrier.close)
        transports.append(carrier)
        models.append(one.model or ("" if dialect else await only_model(carrier, cancel)))
        if tracing is not None:
            carrier = tracing.around(carrier, without_secrets(name), models[-1])
        languages.append(dialect or _dialect(settings, one, models[-1], schema))
        made.append(
            _endpoint(
                settings,
                one,
                languages[-1],
                carrier,
                progress,
                cancel,
                name=without_secrets(name),
                warn=warn,
                spending=spending,
                price=_price(settings, one, models[-1], name),
            )
        )
    endpoints = EndpointPool(made, warn=warn)
    progress.states = endpoints.states
    return ConnectedEndpoints(endpoints, models, languages[0], transports[0])


def _endpoint(
    settings: Settings,
    endpoint: EndpointSettings,
    dialect: Dialect,
    transport: Transport,
    progress: Progress,
    cancel: CancelToken,
    *,
    name: str,
    warn: Callable[[str], None],
    spending: CostBudget | None,
    price: Price,
) -> Endpoint:
    limiter = Limiter(
        settings.run.concurrency,
        start=start_of(settings.run.concurrency),
        rpm=endpoint.rpm,
        tpm=endpoint.tpm,
        share=1 / settings.run.processes,
    )
    cancel.on_request(limiter.open)
    health = CircuitBreaker(name, max_outage_s=endpoint.max_outage, sleep=cancel.sleep)
    return Endpoint(
        name,
        dialect,
        transport,
        limiter,
        health,
        progress,
        cancel,
        weight=endpoint.weight,
        warn=warn,
        spending=spending,
        price=price,
    )


def _spending(
    settings: Settings, progress: Progress, warn: Callable[[str], None]
) -> CostBudget | None:
    """Return what counts the money, where anybody asks for it."""
    run = settings.run
    if run.budget is None and run.budget_tokens is None and run.prices is None:
        return None
    parts = run.processes
    return CostBudget(
        progress,
        most_tokens=run.budget_tokens / parts if run.budget_tokens is not None else None,
        most_money=run.budget / parts if run.budget is not None else None,
        parts=parts,
        warn=warn,
    )


def price_at(settings: Settings) -> Price | None:
    """Return what the model asked for costs, None where no price is known."""
    (endpoint, *_) = settings.each_endpoint
    if endpoint.offline:
        return FREE
    url = next(iter(endpoint.base_url), "") or os.environ.get("OPENAI_BASE_URL", "")
    try:
        return price_of(endpoint.model or "", url, settings.run.prices)
    except SettingsError:
        if settings.run.prices is not None and not settings.run.prices.is_file():
            raise
        return None


def _price(settings: Settings, endpoint: EndpointSettings, model: str, url: str) -> Price:
    """Return what an endpoint's model costs, where anybody asks for it."""
    run = settings.run
    if endpoint.offline or (run.budget is None and run.prices is None):
        return FREE
    return price_of(model, url, run.prices)


def _dialect(
    settings: Settings, endpoint: EndpointSettings, model: str, schema: dict[str, Any] | None
) -> OpenAIChat:
    prompt = settings.prompt
    return OpenAIChat(
        model,
        max_tokens=prompt.max_tokens,
        temperature=prompt.temperature,
        detail=prompt.detail,
        stream=endpoint.stream,
        schema=schema,
        extra=endpoint.extra_fields(),
    )


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def base_url(endpoint: EndpointSettings) -> str:
    """Return the endpoint's base URL, from the settings or the environment.

    Raises:
        SettingsError: There is none; says how to give one.
    """
    urls = (*endpoint.base_url, *(os.environ.get(name) for name in URL_NAMES))
    if url := next(filter(None, urls), None):
        replace(endpoint, base_url=(url,))  # what comes from the environment is checked, too
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
    for name in endpoint.api_key_env:
        if key := _key_in(name):
            return key
        shown = name if name.isupper() else f"{name[:3]}…"  # it may be the key itself
        raise SettingsError(f"api-key-env: the environment variable {shown} is not set")
    return next(filter(None, map(_key_in, KEY_NAMES)), None)


def _key_in(name: str) -> str:
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(f"the key in {name} holds characters that no request can carry")
    return key


async def only_model(transport: Transport, cancel: CancelToken) -> str:
    """Return the model of an endpoint that serves just one.

    Raises:
        SettingsError: It serves several, or does not say.
        StoppedError: The run was stopped before it said.
    """
    try:
        reply = await _unless_stopped(transport.send(Request("GET", "/models")), cancel)
        if reply.status == 407:
            raise SettingsError(PROXY_REFUSES)
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


async def _unless_stopped(sending: Coroutine[Any, Any, Response], cancel: CancelToken) -> Response:
    """Return the reply, unless the run is stopped or the endpoint takes too long over it."""
    reply = asyncio.ensure_future(sending)
    stopped = asyncio.ensure_future(cancel.wait())
    try:
        await asyncio.wait((reply, stopped), timeout=ASK_S, return_when=asyncio.FIRST_COMPLETED)
        if cancel:
            raise StoppedError
        if not reply.done():
            raise EndpointFaultError("timeout", f"no reply within {ASK_S:g} s")
        return reply.result()
    finally:
        reply.cancel()
        stopped.cancel()
