"""A run's numbers for Prometheus, on loopback."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aiohttp import web

from captioner.core.errors import SettingsError
from captioner.outputs.visitors import ServerThread, Visitors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from captioner.core.progress import Progress

ADDRESS = "127.0.0.1"


class Metrics:
    """Serves the counters of a run on a port of loopback until it is closed; 0 is a free port.

    Raises:
        SettingsError: The library is not installed, or the port is taken.
    """

    def __init__(self, progress: Progress, port: int) -> None:
        library = import_module("prometheus_client")
        self._core = import_module("prometheus_client.core")
        self._encoder = import_module("prometheus_client.exposition").choose_encoder
        self._progress = progress
        self._registry = library.CollectorRegistry()
        self._registry.register(self)
        app = web.Application(client_max_size=1)
        app.router.add_get("/{path:.*}", self._answer)
        server = Visitors(app, ADDRESS, port)
        try:
            self._thread = ServerThread(server, "captioner-metrics")
        except OSError as error:
            raise SettingsError(
                f"metrics-port: cannot listen on {port}: {error.strerror}"
            ) from None
        self.port = server.port

    async def _answer(self, request: web.Request) -> web.Response:
        encode, content_type = self._encoder(request.headers.get("Accept", ""))
        headers = {"Content-Type": content_type}
        return web.Response(body=encode(self._registry), headers=headers)

    def close(self) -> None:
        """Stop the server."""
        self._thread.close()

    def collect(self) -> Iterator[Any]:
        """Yield the current metrics. The library calls it for each request."""
        now = self._progress
        counter, gauge = self._core.CounterMetricFamily, self._core.GaugeMetricFamily
        records = counter("captioner_records", "Records by state.", labels=["state"])
        for state in ("captioned", "failed", "resumed", "failed_before", "skipped", "existing"):
            records.add_metric([state], getattr(now, state))
        yield records
        failures = counter("captioner_failures", "Failures of this run by code.", labels=["code"])
        for code, count in dict(now.codes).items():
            failures.add_metric([code], count)
        yield failures
        for name, value, text in (
            ("requests", now.calls, "Requests sent."),
            ("retries", now.retries, "Requests that were not a record's first."),
            ("prompt_tokens", now.prompt_tokens, "Input tokens."),
            ("completion_tokens", now.completion_tokens, "Output tokens."),
            ("cached_tokens", now.cached_tokens, "Input tokens from the endpoint's cache."),
            ("cost_dollars", now.cost, "US dollars spent; missing where no price is known."),
            ("shared", now.shared, "Records settled by the answer to an equal one."),
            ("cached", now.cached, "Records settled from the cache."),
            ("read", now.read, "Records read from the input."),
            ("answers", now.answers, "Replies to requests for captions."),
            ("answer_seconds", now.answered_s, "Total seconds of those requests."),
        ):
            if value is not None:
                yield counter(f"captioner_{name}", text, value=value)
        yield gauge("captioner_in_flight", "Requests in flight.", value=now.in_flight)
        yield gauge(
            "captioner_oldest_seconds", "Age of the oldest request in flight.", value=now.oldest_s
        )
        limits = gauge("captioner_endpoint_limit", "Requests allowed at once.", labels=["endpoint"])
        in_flight = gauge(
            "captioner_endpoint_in_flight", "Requests in flight.", labels=["endpoint"]
        )
        for endpoint in now.states():
            limits.add_metric([endpoint.name], endpoint.limit)
            in_flight.add_metric([endpoint.name], endpoint.in_flight)
        yield limits
        yield in_flight
        yield gauge("captioner_waiting", "1 while nothing moves.", value=1 if now.waiting else 0)
