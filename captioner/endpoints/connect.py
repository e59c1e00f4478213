"""Connect to the endpoints of a run: addresses, keys and models from settings and environment."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from captioner.core.errors import EndpointFaultError, SettingsError
from captioner.core.secrets import secrets_in, without_secrets
from captioner.endpoints.circuit_breaker import LOADING_S, CircuitBreaker
from captioner.endpoints.cost_budget import CostBudget, EndpointCosts
from captioner.endpoints.endpoint import Endpoint
from captioner.endpoints.limiter import Limiter, start_of
from captioner.endpoints.openai_chat import OpenAIChat
from captioner.endpoints.pool import EndpointPool
from captioner.endpoints.prices import FREE, Price, price_at, price_of
from captioner.endpoints.reach import models_of, only_model, patience_of, reached
from captioner.endpoints.server_load import ServerWatch
from captioner.endpoints.tracing import Tracing
from captioner.endpoints.transport import AiohttpTransport

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AsyncExitStack

    from captioner.core.cancellation import CancelToken
    from captioner.core.protocols import Dialect, Transport
    from captioner.settings.context import RunContext
    from captioner.settings.options import EndpointSettings
    from captioner.settings.settings import Settings

logger = logging.getLogger(__name__)

KEY_NAMES = ("CAPTIONER_API_KEY", "OPENAI_API_KEY", "DF_API_KEY")
URL_NAMES = ("CAPTIONER_BASE_URL", "OPENAI_BASE_URL")
OFFLINE_MODEL = "captioner-offline"
OCR_MISSING = (
    "Text in images is not read: install rapidocr and onnxruntime "
    "(pip install rapidocr onnxruntime numpy)"
)


class ConnectedEndpoints(NamedTuple):
    """The endpoints of a run.

    Attributes:
        endpoints: Where requests are sent.
        models: The model of each.
        dialect: Builds the messages, which are the same for all.
        transport: The connection to the first endpoint.
    """

    endpoints: EndpointPool
    models: list[str]
    dialect: Dialect
    transport: Transport


async def connect(
    context: RunContext,
    stack: AsyncExitStack,
    *,
    dialect: Dialect | None = None,
    transport: Transport | None = None,
    schema: dict[str, Any] | None = None,
) -> ConnectedEndpoints:
    """Connect to the endpoints of the settings, or to the built-in describer.

    Args:
        context: The run.
        stack: Closes the connections.
        dialect: Builds requests and parses responses instead of OpenAI's chat completions.
        transport: Sends requests instead of aiohttp.
        schema: JSON Schema of the captions; None for text.

    Raises:
        SettingsError: There is no endpoint, or it serves no model or several.
    """
    settings = context.settings
    found = settings.each_endpoint
    if transport is not None:
        found = found[:1]
    elif settings.endpoint.offline:
        from captioner.core.ocr import ocr_available
        from captioner.endpoints.offline.process import offline_endpoint

        if not ocr_available():
            logger.warning(OCR_MISSING)
        address = await stack.enter_async_context(offline_endpoint())
        model = settings.endpoint.model or OFFLINE_MODEL
        found = [replace(settings.endpoint, base_url=(address,), model=model)]
    budget = _budget(context)
    prices: list[Price | None] = []
    tracing = Tracing(stack) if settings.run.otel else None
    endpoints: list[Endpoint] = []
    models: list[str] = []
    dialects: list[Dialect] = []
    transports: list[Transport] = []
    for one in found:
        name, carrier = "given by the caller", transport
        patience_s = patience_of(one) if len(found) == 1 else 0.0
        if carrier is None:
            name, carrier = await _reached(one, context.cancel, stack, patience_s)
        transports.append(carrier)
        plain = carrier
        model = one.model or ""
        if not model and dialect is None:
            longest_s = LOADING_S if one.max_outage is None else one.max_outage
            model = await only_model(carrier, context.cancel, patience_s, longest_s)
        models.append(model)
        carrier = _watched(one, carrier, name, context)
        label = without_secrets(name)
        if tracing is not None:
            carrier = tracing.around(carrier, label, model)
        dialects.append(dialect or _dialect(settings, one, model, schema))
        price = await asyncio.to_thread(_price, settings, one, model, name)
        prices.append(price)
        is_counted = budget.is_limited or price is not None
        endpoints.append(
            Endpoint(
                label,
                dialects[-1],
                carrier,
                _limiter(context, one),
                CircuitBreaker(label, max_outage_s=one.max_outage, sleep=context.cancel.sleep),
                context,
                weight=one.weight,
                costs=EndpointCosts(budget, price) if is_counted else None,
            )
        )
        if isinstance(plain, AiohttpTransport) and not one.offline:
            endpoints[-1].watch = watch = _watch(one, name, endpoints[-1].limiter, plain)
            stack.push_async_callback(watch.close)
    pool = EndpointPool(endpoints)
    context.progress.states = pool.states
    if None not in prices and not settings.batch.any:
        context.progress.cost = 0.0
    return ConnectedEndpoints(pool, models, dialects[0], transports[0])


def _limiter(context: RunContext, endpoint: EndpointSettings) -> Limiter:
    settings = context.settings
    limiter = Limiter(
        settings.run.concurrency,
        start=start_of(settings.run.concurrency),
        rpm=endpoint.rpm,
        tpm=endpoint.tpm,
        share=1 / settings.run.processes,
        longest_s=endpoint.timeout,
        courtesy=endpoint.courtesy,
    )
    context.cancel.on_request(limiter.open)
    return limiter


def _budget(context: RunContext) -> CostBudget:
    run = context.settings.run
    parts = run.processes
    return CostBudget(
        context.progress,
        max_tokens=None if run.budget_tokens is None else run.budget_tokens / parts,
        max_cost=None if run.budget is None else run.budget / parts,
        parts=parts,
        per_run=run.renew_budget,
    )


def estimated_price(settings: Settings) -> Price | None:
    """Return the price of the first endpoint's model, None if it is not known."""
    (endpoint, *_) = settings.each_endpoint
    if endpoint.offline or endpoint.serve is not None:
        return FREE
    url = next(iter(endpoint.base_url), "") or os.environ.get("OPENAI_BASE_URL", "")
    try:
        return price_of(endpoint.model or "", url, settings.run.prices)
    except SettingsError:
        if settings.run.prices is not None and not settings.run.prices.is_file():
            raise
        return None


def _price(settings: Settings, endpoint: EndpointSettings, model: str, url: str) -> Price | None:
    """Return the price of an endpoint's model, None if it is not known and not needed."""
    run = settings.run
    if endpoint.offline or endpoint.serve is not None:
        return FREE
    if run.budget is None and run.prices is None:
        return price_at(model, url, None)
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


def _transport(endpoint: EndpointSettings, url: str) -> AiohttpTransport:
    return AiohttpTransport(
        url,
        api_key=None if endpoint.offline or endpoint.serve else api_key(endpoint),
        timeout_s=endpoint.timeout,
        headers=[_header(line) for line in endpoint.header],
        secrets=tuple(secrets_in(endpoint.extra_fields())),
    )


def _watched(
    endpoint: EndpointSettings, transport: Transport, url: str, context: RunContext
) -> Transport:
    """Return the transport; to a server of ``--serve`` that which finds what kills it."""
    if endpoint.serve is None:
        return transport
    from captioner.endpoints.serving.quarantine import Quarantine

    return Quarantine(transport, urlsplit(url).port or 0, context.cancel, context.progress)


async def _reached(
    endpoint: EndpointSettings, cancel: CancelToken, stack: AsyncExitStack, patience_s: float
) -> tuple[str, AiohttpTransport]:
    """Return the address of an endpoint's API, and the connection to it."""
    url = base_url(endpoint)
    transport = _transport(endpoint, url)
    stack.push_async_callback(transport.close)
    if (found := await find_base(transport, url, cancel, patience_s)) != url:
        url, transport = found, _transport(endpoint, found)
        stack.push_async_callback(transport.close)
    return url, transport


def _watch(
    endpoint: EndpointSettings,
    url: str,
    limiter: Limiter,
    transport: AiohttpTransport,
) -> ServerWatch:
    """Return what asks a server for its load; ``/metrics`` is beside ``/v1``."""
    asking = _transport(endpoint, re.sub(r"/v\d+/*(?=\?|\Z)", "", url))
    return ServerWatch(asking, limiter, transport.unsent)


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def base_url(endpoint: EndpointSettings) -> str:
    """Return the endpoint's base URL, from the settings or the environment.

    Raises:
        SettingsError: There is none. The message says how to give one.
    """
    urls = (*endpoint.base_url, *(os.environ.get(name) for name in URL_NAMES))
    if url := next(filter(None, urls), None):
        scheme, colon, rest = url.strip(_AROUND).partition(":")
        url = f"{scheme.lower()}{colon}{rest}"
        replace(endpoint, base_url=(url,))  # checks a URL of the environment, too
        address, mark, query = url.partition("#")[0].partition("?")
        address = re.sub(_PASTED, "", address)
        return f"{address}{mark}{query}"
    from captioner.endpoints.serving.machine import look, propose

    here = look()
    serve, install = propose(here)
    how = f"first: {install}" if install else "a model on this machine"
    raise SettingsError(
        "no endpoint. Give one of:\n"
        f"  {f'--serve {serve}':<52}{how} ({here})\n"
        "  --base-url http://localhost:8000/v1 --model NAME    your own server\n"
        "  --base-url https://api.openai.com/v1 --model NAME   with the key in OPENAI_API_KEY\n"
        "  --offline                                           the built-in describer, to try"
    )


def api_key(endpoint: EndpointSettings) -> str | None:
    """Return the key, None if no environment variable holds one.

    Raises:
        SettingsError: The variable that the settings name is not set.
    """
    for name in endpoint.api_key_env:
        if key := _key_in(name):
            return key
        shown = name if name.isupper() else f"{name[:3]}…"  # it may be the key itself
        raise SettingsError(f"api-key-env: the environment variable {shown} is not set")
    return next(filter(None, map(_key_in, KEY_NAMES)), None)


def variables_of(endpoints: Iterable[EndpointSettings]) -> set[str]:
    """Return the names of the environment variables from which endpoints get address and key."""
    found: set[str] = set()
    for one in endpoints:
        if not one.offline:
            found.update(one.api_key_env or KEY_NAMES)
            found.update(() if one.base_url else URL_NAMES)
    return found


_AROUND = " \t\r\n\ufeff\u00a0\"'"
"""What surrounds keys and addresses that were copied from a page or an .env file."""

_PASTED = r"(?:/+chat)?/+completions/*\Z|(?<=/v\d)/+(?:chat|models)/*\Z|/+\Z"
"""What follows the base in an address of one of the API's calls."""


def _key_in(name: str) -> str:
    key = os.environ.get(name, "").strip(_AROUND).removeprefix("Bearer ").strip(_AROUND)
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(f"the key in {name} has characters that cannot be sent in a header")
    return key


async def find_base(
    transport: AiohttpTransport, url: str, cancel: CancelToken, patience_s: float = 0.0
) -> str:
    """Return a base URL, with ``/v1`` added if the API is there and not at the URL itself.

    Only a URL whose path has no version is questioned.

    Args:
        transport: The connection to the URL.
        url: The URL.
        cancel: Ends waits.
        patience_s: Seconds to wait for an endpoint that cannot be reached.

    Raises:
        EndpointRefusedError: There is no host of its name.
        EndpointGaveOutError: It was not reached in time.
    """
    if re.search(r"/v\d|/deployments/", urlsplit(url).path):
        return url
    address, mark, query = url.partition("?")
    for path, found in (("/models", url), ("/v1/models", f"{address}/v1{mark}{query}")):
        try:
            response = await reached(transport, path, cancel, patience_s)
        except (EndpointFaultError, TimeoutError):
            return url
        if response.status in (401, 403) or models_of(response.body) is not None:
            if found != url:
                logger.warning("the API is at %s", without_secrets(found))
            return found
    return url
