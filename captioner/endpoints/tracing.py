"""A span for each request with OpenTelemetry: a transport around the transport."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import EndpointFaultError
from captioner.core.extras import needed

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack

    from captioner.core.protocols import Transport
    from captioner.core.types import Request, Response

FLUSH_S = 5.0
"""Seconds that the last spans may take to be exported when a run is over."""


class Tracing:
    """Where spans go: to the application's provider if it has one, else where OTEL_* says.

    Args:
        stack: Sends what is left when it is closed.
        warn: Called with a sentence when spans cannot be exported, once for each.

    Raises:
        SettingsError: The libraries are not installed.
    """

    def __init__(self, stack: AsyncExitStack, warn: Callable[[str], None]) -> None:
        self._trace = needed("opentelemetry.trace", "otel")
        sdk = needed("opentelemetry.sdk.trace", "otel")
        handler = _Handler(warn)
        logger = logging.getLogger("opentelemetry")
        logger.addHandler(handler)
        stack.callback(logger.removeHandler, handler)  # after the last spans: the stack is LIFO
        provider = self._trace.get_tracer_provider()
        if not isinstance(provider, sdk.TracerProvider):
            exporter = needed("opentelemetry.exporter.otlp.proto.http.trace_exporter", "otel")
            batches = needed("opentelemetry.sdk.trace.export", "otel")
            resources = needed("opentelemetry.sdk.resources", "otel")
            # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before ours.
            ours = resources.Resource.create({"service.name": "captioner"})
            named = ours.merge(resources.OTELResourceDetector().detect())
            provider = sdk.TracerProvider(resource=named, shutdown_on_exit=False)
            provider.add_span_processor(batches.BatchSpanProcessor(exporter.OTLPSpanExporter()))
            stack.push_async_callback(_end, provider)
        self._tracer = provider.get_tracer("captioner")

    def around(self, transport: Transport, name: str, model: str) -> Transport:
        """Return a transport that makes a span of each request.

        Args:
            transport: Carries them.
            name: The endpoint as the user knows it.
            model: The model asked for.
        """
        return _Traced(transport, self._tracer, self._trace, name, model)


async def _end(provider: Any) -> None:
    """Export what is left, but wait no longer than that for a collector that does not answer."""
    ending = threading.Thread(target=provider.shutdown, name="captioner-spans", daemon=True)
    ending.start()
    await asyncio.to_thread(ending.join, FLUSH_S)


class _Traced:
    """Names and attributes are those of the conventions for generative AI.

    https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
    """

    def __init__(
        self, transport: Transport, tracer: Any, trace: Any, name: str, model: str
    ) -> None:
        self._transport = transport
        self._tracer = tracer
        self._kind = trace.SpanKind.CLIENT
        self._error = trace.StatusCode.ERROR
        self._name = f"chat {model}"
        self._attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": model,
            "server.address": name,
        }

    async def send(self, request: Request) -> Response:
        if request.method != "POST":
            return await self._transport.send(request)
        span = self._tracer.start_span(self._name, kind=self._kind, attributes=self._attributes)
        try:
            reply = await self._transport.send(request)
        except EndpointFaultError as error:
            span.set_attribute("error.type", error.code)
            span.set_status(self._error, error.message)
            raise
        else:
            span.set_attributes(_said(reply))
            if reply.status >= 400:
                span.set_attribute("error.type", str(reply.status))
                span.set_status(self._error)
            return reply
        finally:
            span.end()

    async def close(self) -> None:
        await self._transport.close()


def _said(reply: Response) -> dict[str, Any]:
    """Return what a reply says of itself; nothing of the caption."""
    status = {"http.response.status_code": reply.status}
    try:
        body = orjson.loads(reply.body)
        usage = body.get("usage") or {}
        found = {
            "gen_ai.response.model": body.get("model"),
            "gen_ai.response.id": body.get("id"),
            "gen_ai.usage.input_tokens": usage.get("prompt_tokens"),
            "gen_ai.usage.output_tokens": usage.get("completion_tokens"),
        }
    except (orjson.JSONDecodeError, AttributeError):
        return status  # a stream, or no JSON: what is in it is for others to judge
    said = {name: value for name, value in found.items() if isinstance(value, str | int)}
    return {**status, **said}


class _Handler(logging.Handler):
    """Passes on, once each, what the library has to complain of, without its traces."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._warn = warn
        self._loop = asyncio.get_running_loop()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if (text := f"{record.name}: {record.msg}") not in self._said:
            self._said.add(text)
            told = f"spans: {' '.join(record.getMessage().split())[:300]}"
            with contextlib.suppress(
                RuntimeError
            ):  # it comes from a thread, and the run may be over
                self._loop.call_soon_threadsafe(self._warn, told)
