"""OpenAI's Batch API and those that speak it (https://platform.openai.com/docs/api-reference/batch)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from captioner.errors import EndpointFaultError, EndpointRefusedError
from captioner.records import Request
from captioner.retry import retry_after_s, waits
from captioner.values import masked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from captioner.records import Response
    from captioner.stopping import Stopping
    from captioner.transport import AiohttpTransport

ENDED = frozenset({"completed", "expired", "cancelled", "failed"})
TOO_MANY_TOKENS = frozenset({"token_limit_exceeded", "enqueued_token_limit_exceeded"})


class Remote(NamedTuple):
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


class BatchApi:
    """Calls the API, through trouble on the way, until it answers or the run stops.

    Args:
        transport: To the endpoint.
        stopping: Ends waits, by `StoppedError`.
    """

    def __init__(self, transport: AiohttpTransport, stopping: Stopping) -> None:
        self._transport = transport
        self._stopping = stopping

    async def upload(self, path: Path) -> str:
        """Upload a file of requests; return its id."""
        reply = await self._ask(
            lambda: self._transport.upload("/files", path, {"purpose": "batch"})
        )
        return str(reply["id"])

    async def create(self, file_id: str) -> Remote:
        """Submit the requests of a file."""
        body = {
            "input_file_id": file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        return _remote(await self._post("/batches", body))

    async def find(self, file_id: str) -> Remote | None:
        """Return the batch that was made of a file; None if there is none."""
        after = ""
        while True:
            page = await self._get(f"/batches?limit=100{after}")
            for one in page.get("data") or []:
                if one.get("input_file_id") == file_id:
                    return _remote(one)
            if not page.get("has_more") or not page.get("data"):
                return None
            after = f"&after={page['data'][-1]['id']}"

    async def get(self, batch_id: str) -> Remote:
        """Return how a batch is."""
        return _remote(await self._get(f"/batches/{batch_id}"))

    async def cancel(self, batch_id: str) -> Remote:
        """Ask for a batch to be cancelled; what is done stays done."""
        return _remote(await self._post(f"/batches/{batch_id}/cancel", {}))

    async def download(self, file_id: str, target: Path) -> None:
        """Write the content of a file to disk."""
        await self._ask(
            lambda: self._transport.download(f"/files/{file_id}/content", target), parse=False
        )

    async def delete(self, file_id: str) -> None:
        """Remove a file; that it cannot be is no trouble."""
        try:
            await self._transport.send(Request("DELETE", f"/files/{file_id}"))
        except EndpointFaultError:
            return

    async def _get(self, path: str) -> dict[str, Any]:
        return await self._ask(lambda: self._transport.send(Request("GET", path)))

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = Request("POST", path, (orjson.dumps(body),))
        return await self._ask(lambda: self._transport.send(request))

    async def _ask(
        self, call: Callable[[], Awaitable[Response]], *, parse: bool = True
    ) -> dict[str, Any]:
        """Return the answer to a call.

        Raises:
            EndpointRefusedError: It is refused, and will be.
            StoppedError: The run stops.
        """
        pauses = waits()
        while True:
            wait: float | None = None
            try:
                reply = await call()
            except EndpointFaultError:
                reply = None
            if reply is not None:
                if 200 <= reply.status < 300:
                    value = orjson.loads(reply.body) if parse else {}
                    return value if isinstance(value, dict) else {}
                if reply.status not in (408, 409, 425, 429) and reply.status < 500:
                    raise EndpointRefusedError(
                        f"The batch API refused ({reply.status}): {_told(reply.body)}. Check "
                        "--base-url, the key and the model; what was submitted is noted."
                    )
                wait = retry_after_s(reply.headers)
            await self._stopping.sleep(next(pauses) if wait is None else wait)


def _told(body: bytes) -> str:
    try:
        error = orjson.loads(body).get("error")
        text = error.get("message") if isinstance(error, dict) else str(error)
    except (orjson.JSONDecodeError, AttributeError):
        text = body[:200].decode(errors="replace")
    return masked(str(text))[:300]


def _remote(value: dict[str, Any]) -> Remote:
    counts = value.get("request_counts") or {}
    faults = (value.get("errors") or {}).get("data") or []
    return Remote(
        str(value["id"]),
        str(value.get("input_file_id") or ""),
        str(value.get("status") or ""),
        int(counts.get("completed") or 0) + int(counts.get("failed") or 0),
        str(value.get("output_file_id") or ""),
        str(value.get("error_file_id") or ""),
        tuple(
            (
                str(one.get("code") or ""),
                int(one.get("line") or 0),
                masked(str(one.get("message") or ""))[:300],
            )
            for one in faults
            if isinstance(one, dict)
        ),
    )
