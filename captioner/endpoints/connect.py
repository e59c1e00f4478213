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
from captioner.endpoints.addresses import URL_NAMES, api_key, base_url
from captioner.endpoints.circuit_breaker import LOADING_S, CircuitBreaker
from captioner.endpoints.cost_budget import CostBudget, EndpointCosts
from captioner.endpoints.endpoint import Endpoint
from captioner.endpoints.hedge import Hedge
from captioner.endpoints.limiter import Limiter, start_of
from captioner.endpoints.openai_chat import OpenAIChat
from captioner.endpoints.pool import EndpointPool
from captioner.endpoints.prices import FREE, Price, is_local, price_at, price_of
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

LOGPROBS = {"logprobs": True, "top_logprobs": 5}
"""Fields of a request for the probabilities of tokens."""

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


class Connector:
    """Connects to the endpoints of a run.

    Endpoints with the same address, key and model share their limits and their circuit breaker,
    whatever else is asked of them.

    Args:
        context: The run.
        stack: Closes the connections.
        dialect: Builds requests and parses responses instead of OpenAI's chat completions.
        transport: Sends requests instead of aiohttp.

    Attributes:
        budget: What all endpoints may cost.
    """

    def __init__(
        self,
        context: RunContext,
        stack: AsyncExitStack,
        dialect: Dialect | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._context = context
        self._stack = stack
        self._given_dialect = dialect
        self._given_transport = transport
        self.budget = _budget(context)
        self._tracing = Tracing(stack) if context.settings.run.otel else None
        self._offline: str | None = None
        self._reached: dict[tuple[object, ...], _Reached] = {}
        self._endpoints: dict[int, Endpoint] = {}  # one for each that was reached

    @property
    def limiters(self) -> list[Limiter]:
        """The limiter of each endpoint that was reached."""
        return [endpoint.limiter for endpoint in self._endpoints.values()]

    async def connect(
        self,
        settings: Settings,
        schema: dict[str, Any] | None = None,
        *,
        logprobs: bool = False,
    ) -> ConnectedEndpoints:
        """Connect to the endpoints of some settings, or to the built-in describer.

        Args:
            settings: Those of the run, or of one of its stages.
            schema: JSON Schema of the answers; None for text.
            logprobs: Ask for the probabilities of tokens.

        Raises:
            SettingsError: There is no endpoint, or it serves no model or several.
        """
        found = settings.each_endpoint
        if self._given_transport is not None:
            found = found[:1]
        elif settings.endpoint.offline:
            found = [await self._describer(settings)]
        endpoints: list[Endpoint] = []
        models: list[str] = []
        dialects: list[Dialect] = []
        transports: list[Transport] = []
        for one in found:
            at = await self._reach(settings, one, alone=len(found) == 1)
            models.append(at.model)
            transports.append(at.plain)
            own = _dialect(settings, one, at.model, schema, logprobs=logprobs)
            dialects.append(self._given_dialect or own)
            is_counted = self.budget.is_limited or at.price is not None
            endpoints.append(
                Endpoint(
                    at.label,
                    dialects[-1],
                    at.transport,
                    at.limiter,
                    at.breaker,
                    self._context,
                    weight=one.weight,
                    costs=EndpointCosts(self.budget, at.price) if is_counted else None,
                )
            )
            endpoints[-1].watch = at.watch
            self._endpoints.setdefault(id(at.limiter), endpoints[-1])
        progress = self._context.progress
        progress.states = lambda: [endpoint.state for endpoint in self._endpoints.values()]
        prices = [reached.price for reached in self._reached.values()]
        progress.cost = None if None in prices or settings.batch.any else 0.0
        pool = _pool(self._context, self._stack, endpoints, prices)
        return ConnectedEndpoints(pool, models, dialects[0], transports[0])

    async def _describer(self, settings: Settings) -> EndpointSettings:
        """Return the built-in describer, started once."""
        if self._offline is None:
            from captioner.core.ocr import ocr_available
            from captioner.endpoints.offline.process import offline_endpoint

            if not ocr_available():
                logger.warning(OCR_MISSING)
            self._offline = await self._stack.enter_async_context(offline_endpoint())
        model = settings.endpoint.model or OFFLINE_MODEL
        return replace(settings.endpoint, base_url=(self._offline,), model=model)

    async def _reach(self, settings: Settings, one: EndpointSettings, *, alone: bool) -> _Reached:
        """Return an endpoint, found out once for each address, key and model."""
        context, name, transport = self._context, "given by the caller", self._given_transport
        if transport is None:
            name = base_url(one)
        same = (
            name, one.api_key_env, one.header, one.model, one.rpm, one.tpm, one.timeout,
            one.extra_body, one.stream,
        )  # fmt: skip
        if same in self._reached:
            return self._reached[same]
        patience_s = patience_of(one) if alone else 0.0
        if transport is None:
            transport = self._transport(one, name)
            found_at = await find_base(transport, name, context.cancel, patience_s)
            if found_at != name:
                name, transport = found_at, self._transport(one, found_at)
        model = one.model or ""
        if not model and self._given_dialect is None:
            longest_s = LOADING_S if one.max_outage is None else one.max_outage
            model = await only_model(transport, context.cancel, patience_s, longest_s)
        label = without_secrets(name)
        watched = _watched(one, transport, name, context)
        if self._tracing is not None:
            watched = self._tracing.around(watched, label, model)
        price = await asyncio.to_thread(_price, settings, one, model, name)
        breaker = CircuitBreaker(label, max_outage_s=one.max_outage, sleep=context.cancel.sleep)
        limiter = _limiter(context, one)
        watch = None
        if isinstance(transport, AiohttpTransport) and not one.offline:
            watch = self._watch(one, name, limiter, transport)
        reached = _Reached(label, model, transport, watched, limiter, breaker, price, watch)
        self._reached[same] = reached
        return reached

    def _transport(self, one: EndpointSettings, url: str) -> AiohttpTransport:
        """Return a connection; the keys of the environment are for the hosts of the run alone."""
        run = self._context.settings
        urls = [url for each in run.each_endpoint for url in each.base_url]
        urls += [os.environ.get(name, "") for name in URL_NAMES]
        is_own = urlsplit(url).hostname in {urlsplit(each).hostname for each in urls}
        transport = _transport(one, url, has_key=is_own or bool(one.api_key_env))
        self._stack.push_async_callback(transport.close)
        return transport

    def _watch(
        self, one: EndpointSettings, url: str, limiter: Limiter, transport: AiohttpTransport
    ) -> ServerWatch:
        """Return what asks a server for its load; ``/metrics`` is beside ``/v1``."""
        asking = self._transport(one, re.sub(r"/v\d+/*(?=\?|\Z)", "", url))
        watch = ServerWatch(asking, limiter, transport.unsent)
        self._stack.push_async_callback(watch.close)
        return watch


class _Reached(NamedTuple):
    """An endpoint that was reached: ``plain`` is its connection, ``transport`` that to send by."""

    label: str
    model: str
    plain: Transport
    transport: Transport
    limiter: Limiter
    breaker: CircuitBreaker
    price: Price | None
    watch: ServerWatch | None


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


def _pool(
    context: RunContext,
    stack: AsyncExitStack,
    endpoints: list[Endpoint],
    prices: Iterable[Price | None],
) -> EndpointPool:
    """Return the endpoints as one; stragglers are sent again unless that may cost money."""
    pool = EndpointPool(endpoints)
    wanted = context.settings.run.hedge
    is_free = all(price in (None, FREE) for price in prices)
    names = [endpoint.name for endpoint in endpoints]
    is_free = is_free and all(name.startswith("http") and is_local(name) for name in names)
    if wanted == "on" or (wanted == "auto" and is_free):
        pool.hedge = Hedge(context.progress, lambda: pool.limiters)
        stack.push_async_callback(pool.hedge.close)
    return pool


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
    settings: Settings,
    endpoint: EndpointSettings,
    model: str,
    schema: dict[str, Any] | None,
    *,
    logprobs: bool,
) -> OpenAIChat:
    prompt = settings.prompt
    return OpenAIChat(
        model,
        max_tokens=prompt.max_tokens,
        temperature=prompt.temperature,
        detail=prompt.detail,
        stream=endpoint.stream,
        schema=schema,
        extra={**(LOGPROBS if logprobs else {}), **endpoint.extra_fields()},
    )


def _transport(endpoint: EndpointSettings, url: str, *, has_key: bool = True) -> AiohttpTransport:
    without = endpoint.offline or endpoint.serve or not has_key
    return AiohttpTransport(
        url,
        api_key=None if without else api_key(endpoint),
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


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


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
