"""Client of OpenAI's Batch API (https://platform.openai.com/docs/api-reference/batch)."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from captioner.core.errors import (
    CaptionerError,
    EndpointFaultError,
    EndpointRefusedError,
    LimitReachedError,
    NotFoundError,
    RunError,
)
from captioner.core.humanize import sentence
from captioner.core.retry import LONGEST_WAIT_S, waits
from captioner.core.secrets import masked
from captioner.core.types import Request, Response
from captioner.endpoints.circuit_breaker import CircuitBreaker
from captioner.endpoints.replies import error_of
from captioner.executors.batch_api.results import is_complete

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from captioner.endpoints.transport import AiohttpTransport
    from captioner.settings.context import RunContext

ENDED = frozenset({"completed", "expired", "cancelled", "failed"})
TOO_MANY_TOKENS = frozenset({"token_limit_exceeded", "enqueued_token_limit_exceeded"})

MAX_UNREADABLE = 5
"""Replies that are not JSON objects after which the address is considered wrong."""


class RemoteBatch(NamedTuple):
    """A batch as the provider describes it.

    Attributes:
        file_id: Id of its file of requests.
        status: ``validating``, ``in_progress``, ``finalizing``, ``cancelling`` or one of `ENDED`.
        done: Requests completed or failed.
        output_id: Id of the file of responses; empty if there is none.
        errors_id: Id of the file of failed requests; empty if there is none.
        faults: Why the batch was refused: code, line (from 1; 0 if unknown) and message.
    """

    id: str
    file_id: str
    status: str
    done: int
    output_id: str
    errors_id: str
    faults: tuple[tuple[str, int, str], ...]


class UnclearError(Exception):
    """The provider may have created the batch or not; `BatchApi.find` finds out."""


class BatchApi:
    """Calls the API, and repeats calls that fail, until it responds or the run is cancelled.

    Args:
        transport: Transport to the endpoint.
        context: The run. Cancellation ends calls and waits with `StoppedError`, and
            ``progress.waiting`` says why nothing moves.
        max_outage_s: Seconds without a response after which to give up. None is no limit once
            there was a response.
        until: Loop time at which to stop waiting.
    """

    def __init__(
        self,
        transport: AiohttpTransport,
        context: RunContext,
        *,
        max_outage_s: float | None = None,
        until: float = math.inf,
    ) -> None:
        self.until = until
        self._transport = transport
        self._cancel = context.cancel
        self._progress = context.progress
        self._breaker = CircuitBreaker("(batch API)", max_outage_s=max_outage_s)

    async def upload(self, path: Path) -> str:
        """Upload a file of requests; return its id.

        Raises:
            EndpointRefusedError: The endpoint has no batch API.
        """
        purpose = {"purpose": "batch"}
        try:
            reply = await self._call(lambda: self._transport.upload("/files", path, purpose))
        except NotFoundError as error:
            raise EndpointRefusedError(
                f"The endpoint has no batch API. {sentence(error.message)} Run without --batch-api."
            ) from None
        return _id_of(reply)

    async def create(self, file_id: str) -> RemoteBatch:
        """Create a batch from a file. It is tried once: a second batch would be paid for again.

        Raises:
            UnclearError: The batch may have been created.
            EndpointFaultError: It was not created; the same call may work later.
            NotFoundError: The provider no longer has the file.
            RunError: It was refused.
        """
        body = {
            "input_file_id": file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        request = Request("POST", "/batches", (orjson.dumps(body),))
        try:
            reply = await self._cancel.race(self._transport.send(request))
        except EndpointFaultError as error:
            if error.code == "connection":
                raise
            raise UnclearError from None
        if reply.status in (408, 409) or reply.status >= 500:
            raise UnclearError
        if not 200 <= reply.status < 300:
            raise _error(reply)
        try:
            return _remote(orjson.loads(self._transport.masked(reply.body)))
        except (orjson.JSONDecodeError, EndpointRefusedError):
            raise UnclearError from None

    async def find(self, file_id: str) -> RemoteBatch | None:
        """Return the batch that was created from a file; None if there is none.

        Raises:
            EndpointRefusedError: The endpoint does not list its batches.
        """
        after = ""
        while True:
            try:
                page = await self._get(f"/batches?limit=100{after}")
            except NotFoundError as error:
                raise EndpointRefusedError(
                    f"The endpoint does not list its batches. {sentence(error.message)} It is not "
                    "known whether it has created one, so nothing is submitted again."
                ) from None
            found = [one for one in page.get("data") or () if isinstance(one, dict)]
            for one in found:
                if one.get("input_file_id") == file_id:
                    return _remote(one)
            if not page.get("has_more") or not found:
                return None
            after = f"&after={found[-1].get('id')}"

    async def get(self, batch_id: str) -> RemoteBatch:
        """Return a batch.

        Raises:
            NotFoundError: The provider no longer has it.
        """
        return _remote(await self._get(f"/batches/{batch_id}"))

    async def cancel(self, batch_id: str) -> RemoteBatch:
        """Request the cancellation of a batch; finished requests keep their responses."""
        request = Request("POST", f"/batches/{batch_id}/cancel", (b"{}",))
        return _remote(await self._call(lambda: self._transport.send(request)))

    async def download(self, file_id: str, target: Path, max_bytes: int) -> None:
        """Download a file of results.

        Raises:
            NotFoundError: The provider no longer has it.
            EndpointRefusedError: It is too large.
        """
        path = f"/files/{file_id}/content"
        while True:
            await self._call(lambda: self._transport.download(path, target, max_bytes), parse=False)
            if await asyncio.to_thread(is_complete, target):
                return
            self._progress.waiting = "the batch API sent an incomplete file"
            await self._cancel.sleep(1.0)

    async def delete(self, file_id: str) -> None:
        """Delete a file; an error of the endpoint is ignored."""
        request = Request("DELETE", f"/files/{file_id}")
        try:
            await self._cancel.race(self._transport.send(request))
        except EndpointFaultError:
            return

    async def _get(self, path: str) -> dict[str, Any]:
        return await self._call(lambda: self._transport.send(Request("GET", path)))

    async def _call(
        self, call: Callable[[], Coroutine[Any, Any, Response]], *, parse: bool = True
    ) -> dict[str, Any]:
        """Return the response to a call, which is repeated as long as the endpoint has a fault."""
        pauses = waits()
        unreadable = 0
        while True:
            try:
                reply = await self._cancel.race(call())
                if not 200 <= reply.status < 300:
                    raise _error(reply)
                value = _parsed(self._transport.masked(reply.body)) if parse else {}
                if value is not None:
                    self._breaker.record_success()
                    self._progress.waiting = ""
                    return value
                fault = EndpointFaultError("bad_reply", "the reply is not a JSON object")
                unreadable += 1
                if unreadable >= MAX_UNREADABLE:
                    raise EndpointRefusedError(
                        "The endpoint has no batch API: its replies are not JSON objects. Check "
                        "--base-url."
                    )
            except EndpointFaultError as error:
                fault = error
            self._progress.waiting = f"the batch API: {fault.message}"
            self._breaker.record_fault(fault, probe=False)
            if asyncio.get_running_loop().time() > self.until:
                raise LimitReachedError(
                    "The batch API does not respond, and the time of --batch-max-wait is over. "
                    f"{sentence(f'The last error: {fault.message}')} Submitted batches are noted; "
                    "run the same command again."
                )
            wait = fault.retry_after_s
            await self._cancel.sleep(min(LONGEST_WAIT_S, next(pauses) if wait is None else wait))


def _error(reply: Response) -> CaptionerError:
    """Return what a response with an error status means."""
    error = error_of(reply)
    if isinstance(error, RunError | EndpointFaultError | NotFoundError):
        return error
    return EndpointRefusedError(
        f"The batch API refused the request: {error}. Check --base-url, the key and the model; "
        "submitted batches are noted."
    )


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _id_of(value: dict[str, Any]) -> str:
    if not (found := _text(value.get("id"))):
        raise EndpointRefusedError(
            "The endpoint has no batch API: its reply has no id. Check --base-url."
        )
    return found


def _remote(value: dict[str, Any]) -> RemoteBatch:
    counts = _dict(value.get("request_counts"))
    faults = _dict(value.get("errors")).get("data")
    return RemoteBatch(
        _id_of(value),
        _text(value.get("input_file_id")),
        _text(value.get("status")),
        _number(counts.get("completed")) + _number(counts.get("failed")),
        _text(value.get("output_file_id")),
        _text(value.get("error_file_id")),
        tuple(
            (
                _text(one.get("code")),
                _number(one.get("line")),
                masked(str(one.get("message") or ""))[:300],
            )
            for one in (faults if isinstance(faults, list) else [])
            if isinstance(one, dict)
        ),
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
