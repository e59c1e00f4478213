"""First requests to an endpoint, which may not have started yet."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from captioner.core.errors import EndpointFaultError, EndpointGaveOutError
from captioner.core.humanize import sentence
from captioner.core.retry import waits
from captioner.core.types import Request
from captioner.endpoints.circuit_breaker import NEVER_CAPTIONED_S, unknown_host

if TYPE_CHECKING:
    from captioner.core.cancellation import CancelToken
    from captioner.core.protocols import Transport
    from captioner.core.types import Response
    from captioner.settings.options import EndpointSettings

logger = logging.getLogger(__name__)

MODELS_TIMEOUT_S = 15.0
"""Seconds that an endpoint may take to list its models."""

LONGEST_PAUSE_S = 5.0
"""Longest pause between two attempts to reach an endpoint."""


def patience_of(endpoint: EndpointSettings) -> float:
    """Return the seconds that a run waits for an endpoint that has given no caption."""
    return NEVER_CAPTIONED_S if endpoint.max_outage is None else endpoint.max_outage


async def reached(
    transport: Transport, path: str, cancel: CancelToken, patience_s: float
) -> Response:
    """Return the response to a GET. An endpoint that cannot be reached is waited for.

    Raises:
        EndpointRefusedError: There is no host of its name.
        EndpointGaveOutError: It was not reached in time.
        EndpointFaultError: There is no response.
        TimeoutError: There is none within `MODELS_TIMEOUT_S`.
    """
    until = time.monotonic() + patience_s
    for number, pause in enumerate(waits(LONGEST_PAUSE_S)):
        try:
            request = transport.send(Request("GET", path))
            return await cancel.race(request, timeout_s=MODELS_TIMEOUT_S)
        except EndpointFaultError as error:
            if error.is_unknown_host and patience_s:
                raise unknown_host(error) from None
            if error.code != "connection" or not patience_s:
                raise
            if (left := until - time.monotonic()) <= 0:
                raise EndpointGaveOutError(
                    f"The endpoint could not be reached for {patience_s:.0f} s. "
                    f"{sentence(f'The last error: {error.message}')} Run the same command again "
                    "when it works."
                ) from None
            if not number:
                logger.warning("%s; trying for %.0f s", error.message, patience_s)
        await cancel.sleep(min(pause, left))
    raise AssertionError("the pauses have no end")
