"""The load that a model server reports at ``/metrics``.

vLLM, SGLang and llama.cpp say it, in Prometheus' text format.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from typing import TYPE_CHECKING, NamedTuple

from captioner.core.errors import EndpointFaultError, RunError
from captioner.core.types import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from captioner.endpoints.limiter import Limiter
    from captioner.endpoints.transport import AiohttpTransport

POLL_S = 5.0
"""Seconds before each question; short runs ask none."""

ANSWER_S = 5.0
"""Seconds that an answer may take."""

LONGEST = 1 << 20
"""Bytes of an answer; vLLM's has about 100 kB."""

FULL_CACHE = 0.95
"""Part of a server's cache that is in use when it is full."""

FEW = 8
"""Requests in flight that are too few to say that they are not with the model yet."""


class ServerLoad(NamedTuple):
    """The load of a server.

    Attributes:
        running: Requests that it works on.
        waiting: Requests that wait for that.
        cache: Part of its cache that is in use, 0 to 1; 0 if it does not say.
        preemptions: Requests so far that it put back because the cache was full.
    """

    running: float
    waiting: float
    cache: float = 0.0
    preemptions: float = 0.0


class _Names(NamedTuple):
    """The metrics of a kind of server, each with its older names."""

    running: str
    waiting: str
    cache: tuple[str, ...]
    preemptions: tuple[str, ...] = ()


_SERVERS = (
    _Names(
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        ("vllm:num_preemptions_total",),
    ),
    _Names(
        "sglang:num_running_reqs",
        "sglang:num_queue_reqs",
        ("sglang:token_usage",),
        ("sglang:num_retracted_requests_total", "sglang:num_retracted_reqs"),
    ),
    _Names(
        "llamacpp:requests_processing",
        "llamacpp:requests_deferred",
        ("llamacpp:kv_cache_usage_ratio",),
    ),
)

_LINE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{.*\})? +(\S+)(?: +-?\d+)?\s*")
"""A value in Prometheus' text format: its name, labels, value and time."""


def values_of(text: str, name: str) -> list[float]:
    """Return the values of a metric in Prometheus' text format, one for each set of labels."""
    found = []
    for line in text.splitlines():
        if line.startswith(name) and (value := _LINE.fullmatch(line)) and value[1] == name:
            with contextlib.suppress(ValueError):
                found.append(float(value[2]))
    return [value for value in found if math.isfinite(value)]


def read_load(text: str) -> ServerLoad | None:
    """Return the load of a server, the sum of its engines; None if the text does not say it."""
    for names in _SERVERS:
        if running := values_of(text, names.running):
            cache = [value for name in names.cache for value in values_of(text, name)]
            preemptions = [value for name in names.preemptions for value in values_of(text, name)]
            waiting = values_of(text, names.waiting)
            return ServerLoad(sum(running), sum(waiting), max(cache, default=0.0), sum(preemptions))
    return None


class ServerWatch:
    """Asks a server for its load until it is closed, and informs the limiter when it is full.

    Args:
        transport: Sends questions to the folder that holds ``/metrics``.
        limiter: That of the requests.
        unsent: Returns how many requests are not sent completely yet.
    """

    def __init__(
        self, transport: AiohttpTransport, limiter: Limiter, unsent: Callable[[], int]
    ) -> None:
        self._transport = transport
        self._limiter = limiter
        self._unsent = unsent
        self._load: ServerLoad | None = None
        self._held_by = ""
        self._asking = asyncio.create_task(self._ask())

    @property
    def is_over(self) -> bool:
        """The server does not report its load and is not asked again."""
        return self._asking.done()

    async def close(self) -> None:
        """Ask nothing any more."""
        self._asking.cancel()
        await asyncio.gather(self._asking, return_exceptions=True)
        await self._transport.close()

    async def _ask(self) -> None:
        """Ask until the server shows that it does not report its load."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                async with asyncio.timeout(ANSWER_S):
                    response = await self._transport.send(Request("GET", "/metrics"))
            except (EndpointFaultError, TimeoutError) as error:
                self.note(None)
                if isinstance(error, EndpointFaultError) and error.code == "reply_too_large":
                    return
                continue  # a server that starts again
            except RunError:
                self.note(None)
                return
            body = response.body
            text = body.decode("utf-8", "replace") if len(body) <= LONGEST else ""
            load = read_load(text) if response.status == 200 else None
            self.note(load)
            if load is None and response.status < 500:
                return

    def note(self, load: ServerLoad | None) -> None:
        """Note the load of the server; None if it is not known."""
        before, self._load = self._load, load
        self._held_by = ""
        is_full = False
        if load is not None and load.waiting:
            crowded = before is not None and load.preemptions > before.preemptions
            self._held_by = "cache" if crowded or load.cache >= FULL_CACHE else "gpu"
            # It took none of those that waited.
            is_full = before is not None and 0 < load.running <= before.running
            is_full = is_full and before is not None and before.waiting > 0
        elif load is not None and self._limiter.in_flight >= max(FEW, 2 * load.running + 1):
            self._held_by = "front_end"
        self._limiter.hold_growth(held=is_full)

    @property
    def held_by(self) -> str:
        """What holds requests back on the way and at the server; see `CAUSES`."""
        if 2 * self._unsent() > max(FEW, self._limiter.in_flight):
            return "upload"
        return self._held_by
