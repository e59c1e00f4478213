"""OpenAI's Batch API and those that speak it (https://platform.openai.com/docs/api-reference/batch)."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from captioner.core.errors import (
    EndpointFaultError,
    EndpointGaveOutError,
    EndpointRefusedError,
    LimitReachedError,
    NotFoundError,
)
from captioner.core.retry import retry_after_s, waits
from captioner.core.secrets import masked
from captioner.core.types import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from captioner.core.types import Response
    from captioner.endpoints.transport import AiohttpTransport
    from captioner.settings.context import RunContext

ENDED = frozenset({"completed", "expired", "cancelled", "failed"})
TOO_MANY_TOKENS = frozenset({"token_limit_exceeded", "enqueued_token_limit_exceeded"})


class RemoteBatch(NamedTuple):
    """How a batch is, as the provider says.

    Attributes:
        id: Its id.
        file_id: The requests it was made of.
        status: ``validating``, ``in_progress``, ``finalizing``, ``cancelling`` or one of `ENDED`.
        done: Requests done, well or not.
        output_id: The answers; empty if there are none.
        errors_id: The requests that failed; empty if there are none.
        faults: Why it was refused: code, line from 1 or 0, message.
    """

    id: str
    file_id: str
    status: str
    done: int
    output_id: str
    errors_id: str
    faults: tuple[tuple[str, int, str], ...]


class UnclearError(Exception):
    """The provider may have done it or not; asking is the way to know."""


class BatchApi:
    """Calls the API, through trouble on the way, until it answers or the run stops.

    Args:
        transport: To the endpoint.
        context: The run: its cancellation ends calls and waits by `StoppedError`, and its
            ``progress.waiting`` says what is waited for.
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
        self._transport = transport
        self._cancel = context.cancel
        self._progress = context.progress
        self._max_outage_s = max_outage_s
        self.until = until
        self._answered = False

    def _note(self, text: str) -> None:
        self._progress.waiting = text

    async def upload(self, path: Path) -> str:
        """Upload a file of requests; return its id."""
        purpose = {"purpose": "batch"}
        reply = await self._ask(lambda: self._transport.upload("/files", path, purpose))
        return _id_of(reply)

    async def create(self, file_id: str) -> RemoteBatch:
        """Submit the requests of a file, once: a second time would be paid for again.

        Raises:
            UnclearError: It may have been submitted; `find` tells.
            EndpointFaultError: It was not; the same may work later.
            NotFoundError: The provider has forgotten the file.
            EndpointRefusedError: It was not, and will not be.
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
        data = self._transport.masked(reply.body)
        if reply.status in (408, 409) or reply.status >= 500:
            raise UnclearError
        if reply.status in (425, 429):
            self._refuse_empty_account(data)
            wait = retry_after_s(reply.headers)
            raise EndpointFaultError(f"http_{reply.status}", _told(data), wait)
        if reply.status in (404, 410):
            raise NotFoundError(f"http_{reply.status}", _told(data), certain=False)
        if not 200 <= reply.status < 300:
            raise _refused(reply.status, data)
        try:
            return _remote(orjson.loads(data))
        except (orjson.JSONDecodeError, EndpointRefusedError):
            raise UnclearError from None

    async def find(self, file_id: str) -> RemoteBatch | None:
        """Return the batch that was made of a file; None if there is none."""
        after = ""
        while True:
            page = await self._get(f"/batches?limit=100{after}")
            found = page.get("data")
            found = [one for one in found if isinstance(one, dict)] if found else []
            for one in found:
                if one.get("input_file_id") == file_id:
                    return _remote(one)
            if not page.get("has_more") or not found:
                return None
            after = f"&after={found[-1].get('id')}"

    async def get(self, batch_id: str) -> RemoteBatch:
        """Return how a batch is.

        Raises:
            NotFoundError: The provider has forgotten it.
        """
        return _remote(await self._get(f"/batches/{batch_id}"))

    async def cancel(self, batch_id: str) -> RemoteBatch:
        """Ask for a batch to be cancelled; what is done stays done."""
        request = Request("POST", f"/batches/{batch_id}/cancel", (b"{}",))
        return _remote(await self._ask(lambda: self._transport.send(request)))

    async def download(self, file_id: str, target: Path) -> None:
        """Write the content of a file to disk.

        Raises:
            NotFoundError: The provider has forgotten it.
        """
        while True:
            await self._ask(
                lambda: self._transport.download(f"/files/{file_id}/content", target), parse=False
            )
            if await asyncio.to_thread(_is_whole, target):
                return
            self._note("an answer file came only in part")
            await self._cancel.sleep(1.0)

    async def delete(self, file_id: str) -> None:
        """Remove a file; that it cannot be is no trouble."""
        try:
            request = Request("DELETE", f"/files/{file_id}")
            await self._cancel.race(self._transport.send(request))
        except EndpointFaultError:
            return

    async def _get(self, path: str) -> dict[str, Any]:
        return await self._ask(lambda: self._transport.send(Request("GET", path)))

    async def _ask(
        self, call: Callable[[], Coroutine[Any, Any, Response]], *, parse: bool = True
    ) -> dict[str, Any]:
        """Return the answer to a call that may be repeated.

        Raises:
            EndpointGaveOutError: There is none for too long, or the account is empty.
            EndpointRefusedError: It is refused, and will be.
            LimitReachedError: The run may wait no longer.
            NotFoundError: What is asked for is not there.
            StoppedError: The run stops.
        """
        loop = asyncio.get_running_loop()
        pauses = waits()
        began = loop.time()
        nonsense = 0
        while True:
            wait: float | None = None
            try:
                reply = await self._cancel.race(call())
            except EndpointFaultError as error:
                trouble = error.message
            else:
                self._answered = True
                data = self._transport.masked(reply.body)
                if 200 <= reply.status < 300:
                    value = _parsed(data) if parse else {}
                    if value is not None:
                        self._note("")
                        return value
                    nonsense += 1
                    if nonsense >= NONSENSE:
                        raise EndpointRefusedError(
                            "What answers there is no batch API: its replies are no JSON objects. "
                            "Check --base-url."
                        )
                elif reply.status in (404, 410):
                    raise NotFoundError(f"http_{reply.status}", _told(data), certain=False)
                elif reply.status not in (408, 409, 425, 429) and reply.status < 500:
                    raise _refused(reply.status, data)
                self._refuse_empty_account(data)
                wait = retry_after_s(reply.headers)
                trouble = f"it answered {reply.status}"
            self._note(f"the batch API: {trouble}")
            self._check_patience(loop.time() - began, trouble)
            await self._cancel.sleep(min(LONGEST_S, next(pauses) if wait is None else wait))

    def _check_patience(self, seconds: float, trouble: str) -> None:
        longest = self._max_outage_s
        if not self._answered:
            longest = min(NEVER_ANSWERED_S, longest or NEVER_ANSWERED_S)
        if longest is not None and seconds > longest:
            raise EndpointGaveOutError(
                f"The batch API has not answered for {seconds:.0f} s ({trouble}). What was "
                "submitted is noted; run the same command again."
            )
        if asyncio.get_running_loop().time() > self.until:
            raise LimitReachedError(
                f"The batch API does not answer ({trouble}), and --batch-max-wait is over. What "
                "was submitted is noted; run the same command again."
            )

    def _refuse_empty_account(self, data: bytes) -> None:
        if b"insufficient_quota" in data or b"billing_hard_limit" in data:
            raise EndpointGaveOutError(
                f"The endpoint is out of quota or credit ({_told(data)}). Top it up and run the "
                "same command again; what was submitted is noted."
            )


NEVER_ANSWERED_S = 60.0
LONGEST_S = 60.0
NONSENSE = 5
"""Replies that are no JSON objects after which an address is taken for wrong."""


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _id_of(value: dict[str, Any]) -> str:
    found = value.get("id")
    if not isinstance(found, str) or not found:
        raise EndpointRefusedError(
            "What answers there is no batch API: its reply has no id. Check --base-url."
        )
    return found


def _is_whole(path: Path) -> bool:
    """Tell whether the last line of a file of results is one."""
    with path.open("rb") as file:
        last = b""
        for line in file:
            last = line
    return not last or _parsed(last) is not None


def _refused(status: int, data: bytes) -> EndpointRefusedError:
    return EndpointRefusedError(
        f"The batch API refused ({status}: {_told(data)}). Check --base-url, the key and the "
        "model; what was submitted is noted."
    )


def _told(body: bytes) -> str:
    try:
        error = orjson.loads(body).get("error")
        text = error.get("message") if isinstance(error, dict) else str(error)
    except (orjson.JSONDecodeError, AttributeError):
        text = body[:200].decode(errors="replace")
    return masked(str(text))[:300]


def _remote(value: dict[str, Any]) -> RemoteBatch:
    counts = value.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    errors = value.get("errors")
    faults = errors.get("data") if isinstance(errors, dict) else None
    return RemoteBatch(
        _id_of(value),
        _word(value.get("input_file_id")),
        _word(value.get("status")),
        _number(counts.get("completed")) + _number(counts.get("failed")),
        _word(value.get("output_file_id")),
        _word(value.get("error_file_id")),
        tuple(
            (
                _word(one.get("code")),
                _number(one.get("line")),
                masked(str(one.get("message") or ""))[:300],
            )
            for one in (faults if isinstance(faults, list) else [])
            if isinstance(one, dict)
        ),
    )


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
