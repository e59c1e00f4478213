"""Protocols of the parts that callers can supply: source, sink, dialect and transport."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from captioner.core.types import (
        Completion,
        EncodedImage,
        InputRecord,
        Outcome,
        Request,
        RequestOverrides,
        Response,
        Turn,
    )


class Source(Protocol):
    """Supplies records. `batches` can be called again: finishing reads the input twice."""

    @property
    def size(self) -> int:
        """Bytes of the whole input, 0 if unknown; `InputRecord.end` counts up to it."""
        ...

    def batches(self) -> AsyncIterator[list[InputRecord]]:
        """Yield the records in order, several at a time.

        An unreadable record is an `InputRecord` with a ``fault``, not an exception.
        """
        ...


class Sink(Protocol):
    """Receives outcomes."""

    async def put(self, outcomes: Sequence[Outcome]) -> None:
        """Return once the outcomes are stored, so that a kill loses none of them.

        Raises:
            DiskError: They cannot be written; the run stops.
        """
        ...


class Dialect(Protocol):
    """An API format: builds requests and interprets replies. Does no I/O."""

    @property
    def version(self) -> int:
        """Number of adaptations so far."""
        ...

    def messages(self, turns: Sequence[Turn], images: Sequence[EncodedImage]) -> tuple[bytes, ...]:
        """Return the messages as pieces of JSON; ``images`` are those of the turns, in order."""
        ...

    def request(self, messages: tuple[bytes, ...], overrides: RequestOverrides) -> Request:
        """Return the request that asks for one caption."""
        ...

    def judge(self, response: Response) -> Completion:
        """Return the completion in a reply, or raise the error that it means.

        Raises:
            RefusedError: This record will never be captioned.
            BadReplyError: The reply is not a caption; a retry may help.
            ParameterError: The endpoint does not support a parameter.
            ImageRejectedError: The endpoint does not accept the images as they were sent.
            NotFoundError: There is no such model, or the body is too large for a gateway.
            EndpointFaultError: The endpoint is overloaded or broken.
            RunError: No record can be captioned.
        """
        ...

    def adapt(self, parameter: str) -> str:
        """Change later requests for an endpoint that refuses a parameter.

        Returns:
            A description of the change; empty if no change is possible.
        """
        ...


class Transport(Protocol):
    """Sends requests to one endpoint."""

    async def send(self, request: Request) -> Response:
        """Return the reply, whatever its status.

        Raises:
            EndpointFaultError: There was no complete response within the deadline.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...
