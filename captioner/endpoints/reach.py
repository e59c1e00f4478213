"""First requests to an endpoint, which may not have started yet."""

from __future__ import annotations

import itertools
import logging
import time
from typing import TYPE_CHECKING

from captioner.core.errors import (
    EndpointFaultError,
    EndpointGaveOutError,
    RunError,
    SettingsError,
)
from captioner.core.humanize import sentence
from captioner.core.retry import waits
from captioner.core.types import Request
from captioner.endpoints.circuit_breaker import LOADING_S, NEVER_CAPTIONED_S, unknown_host
from captioner.endpoints.error_shapes import decoded, loads
from captioner.endpoints.replies import error_of, shown

if TYPE_CHECKING:
    from captioner.core.cancellation import CancelToken
    from captioner.core.protocols import Transport
    from captioner.core.types import Response
    from captioner.settings.options import EndpointSettings

logger = logging.getLogger(__name__)

MODELS_TIMEOUT_S = 15.0
"""Seconds that an endpoint may take to list its models."""

LOADING_PAUSE_S = 2.0

MODELS_TRIES = 3
"""Requests for the models of an endpoint in trouble, if others can do its work."""

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


async def only_model(
    transport: Transport,
    cancel: CancelToken,
    patience_s: float = 0.0,
    longest_s: float = LOADING_S,
) -> str:
    """Return the model of an endpoint that serves only one.

    An endpoint in trouble is waited for, as it is when it is asked for captions.

    Args:
        transport: The connection to it.
        cancel: Ends waits.
        patience_s: Seconds to wait for it; 0 asks it `MODELS_TRIES` times.
        longest_s: The same while it loads its model, or says how long to wait.

    Raises:
        SettingsError: It serves several, or does not say.
        EndpointRefusedError: There is no host of its name.
        EndpointGaveOutError: It was not reached in time, its trouble lasted, or it has no credit.
        StoppedError: The run was cancelled first.
    """
    began = time.monotonic()
    for tries in itertools.count(1):
        try:
            response = await reached(transport, "/models", cancel, patience_s)
        except (EndpointFaultError, TimeoutError) as error:
            reason = f"no response within {MODELS_TIMEOUT_S:g} s"
            if isinstance(error, EndpointFaultError):
                reason = error.message
            raise SettingsError(
                f"no model is given, and the endpoint cannot be asked for its models: {reason}"
            ) from None
        refusal = None if 200 <= response.status < 300 else error_of(response)
        if not isinstance(refusal, EndpointFaultError):
            break
        is_told = refusal.is_loading or refusal.retry_after_s is not None
        longest = longest_s if is_told else patience_s
        waited = time.monotonic() - began
        if waited >= longest and (patience_s or tries >= MODELS_TRIES):
            break
        if tries == 1 and longest:
            logger.warning("%s; trying for %.0f s", refusal.message, longest)
        pause = max(refusal.retry_after_s or 0.0, LOADING_PAUSE_S)
        left = longest - waited if longest else pause
        await cancel.sleep(min(pause, left, MODELS_TIMEOUT_S))
    if isinstance(refusal, EndpointFaultError) and patience_s:
        raise EndpointGaveOutError(
            f"The endpoint has not listed its models for {waited:.0f} s. "
            f"{sentence(f'The last error: {refusal.message}')} Run the same command again when it "
            "works."
        )
    if isinstance(refusal, EndpointGaveOutError):
        raise refusal
    said_no = 300 <= response.status < 400 or response.status in (401, 403, 407)
    if said_no and isinstance(refusal, RunError):
        raise SettingsError(
            f"no model is given, and the endpoint cannot be asked for its models. {refusal}"
        )
    models = models_of(response.body) or []
    if len(models) == 1:
        return models[0]
    problem = f"serves {', '.join(models[:8])}{' …' if len(models) > 8 else ''}"
    if not models:
        said = shown(decoded(response.body[:4_000]))
        problem = f"does not say which models it serves ({response.status}: {said})"
    raise SettingsError(
        f"no model is given, and the endpoint {problem}; choose one with --model NAME"
    )


def models_of(body: bytes) -> list[str] | None:
    """Return the models in a response to ``/models``, None if it lists none."""
    listed = loads(body)
    if isinstance(listed, dict):
        listed = listed.get("data", listed.get("models"))
    if not isinstance(listed, list):
        return None
    names = [one.get("id") or one.get("name") for one in listed if isinstance(one, dict)]
    names += [one for one in listed if isinstance(one, str)]
    texts = (" ".join(name.split())[:80] for name in names if isinstance(name, str) and name)
    return list(dict.fromkeys(texts))
