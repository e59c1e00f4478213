"""OpenTelemetry: a span for each request, made by a transport around the transport."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from captioner.core.errors import EndpointFaultError
from captioner.core.extras import needed

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from captioner.core.protocols import Transport
    from captioner.core.types import Request, Response

logger = logging.getLogger(__name__)

FLUSH_S = 5.0
"""Seconds that the last spans may take to be exported at the end of a run."""

_PACKAGES = "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"


class Tracing:
    """Exports spans to the application's provider if it has one, else as OTEL_* says.

    Args:
        stack: Exports the remaining spans when it is closed.

    Raises:
        SettingsError: The libraries are not installed.
    """

    def __init__(self, stack: AsyncExitStack) -> None:
        self._trace = needed("opentelemetry.trace", _PACKAGES)
        sdk = needed("opentelemetry.sdk.trace", _PACKAGES)
        handler = _Forward()
        otel = logging.getLogger("opentelemetry")
        otel.addHandler(handler)
        stack.callback(otel.removeHandler, handler)  # after the last spans: the stack is LIFO
        provider = self._trace.get_tracer_provider()
        if not isinstance(provider, sdk.TracerProvider):
            exporter = needed("opentelemetry.exporter.otlp.proto.http.trace_exporter", _PACKAGES)
            batches = needed("opentelemetry.sdk.trace.export", _PACKAGES)
            resources = needed("opentelemetry.sdk.resources", _PACKAGES)
            # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence.
            ours = resources.Resource.create({"service.name": "captioner"})
            named = ours.merge(resources.OTELResourceDetector().detect())
            provider = sdk.TracerProvider(resource=named, shutdown_on_exit=False)
            provider.add_span_processor(batches.BatchSpanProcessor(exporter.OTLPSpanExporter()))
            stack.push_async_callback(_end, provider)
        self._tracer = provider.get_tracer("captioner")

    def around(self, transport: Transport, url: str, model: str) -> Transport:
        """Return a transport that makes a span for each request.

        Args:
            transport: Sends the requests.
            url: The base URL, or words if the transport is the caller's own.
            model: The requested model.
        """
        return _Traced(transport, self._tracer, self._trace, url, model)


async def _end(provider: Any) -> None:
    """Export the remaining spans; a collector that does not respond is not waited for."""
    ending = threading.Thread(target=provider.shutdown, name="captioner-spans", daemon=True)
    ending.start()
    await asyncio.to_thread(ending.join, FLUSH_S)


class _Traced:
    """Names and attributes are those of the conventions for generative AI.

    https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
    """

    def __init__(self, transport: Transport, tracer: Any, trace: Any, url: str, model: str) -> None:
        self._transport = transport
        self._tracer = tracer
        self._kind = trace.SpanKind.CLIENT
        self._error = trace.StatusCode.ERROR
        self._name = f"chat {model}"
        self._attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": model,
            **_server_of(url),
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
            span.set_attributes(_attributes_of(reply))
            if reply.status >= 400:
                span.set_attribute("error.type", str(reply.status))
                span.set_status(self._error)
            return reply
        finally:
            span.end()

    async def close(self) -> None:
        await self._transport.close()


def _server_of(url: str) -> dict[str, str | int]:
    """Return host and port of a URL, nothing if it has no host."""
    parts = urlsplit(url)
    if not parts.hostname:
        return {}
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return {"server.address": parts.hostname, "server.port": port}


def _attributes_of(reply: Response) -> dict[str, Any]:
    """Return the attributes of a response, without the caption."""
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
        return status  # a stream, or no JSON
    known = {name: value for name, value in found.items() if isinstance(value, str | int)}
    return {**status, **known}


class _Forward(logging.Handler):
    """Logs each complaint of the OpenTelemetry library once, without its stack trace."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if (key := f"{record.name}: {record.msg}") not in self._seen:
            self._seen.add(key)
            logger.warning("spans: %s", " ".join(record.getMessage().split())[:300])
