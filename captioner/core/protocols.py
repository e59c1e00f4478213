"""The seams: what source, sink, dialect and transport promise. Any of them can be passed in."""

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
    """Where records come from. Iterating again starts again: finishing reads the input twice."""

    @property
    def size(self) -> int:
        """Bytes of the whole input, 0 if unknown; `Line.end` counts towards it."""
        ...

    def batches(self) -> AsyncIterator[list[InputRecord]]:
        """Yield the records in order, some at a time.

        A record that cannot be read is a `InputRecord` with a ``fault``, never an exception.
        """
        ...


class Sink(Protocol):
    """Where outcomes go."""

    async def put(self, outcomes: Sequence[Outcome]) -> None:
        """Return once the outcomes are out of our hands: a kill after that loses nothing.

        Raises:
            DiskError: It cannot be written; the run has to stop.
        """
        ...


class Dialect(Protocol):
    """An endpoint's language: builds requests and judges replies. Pure, no I/O."""

    @property
    def version(self) -> int:
        """Number of adaptations so far."""
        ...

    def messages(self, turns: Sequence[Turn], images: Sequence[EncodedImage]) -> tuple[bytes, ...]:
        """Return the messages as JSON, in pieces; ``images`` are those of the turns, in order."""
        ...

    def request(self, messages: tuple[bytes, ...], overrides: RequestOverrides) -> Request:
        """Return the request that asks for one caption."""
        ...

    def judge(self, response: Response) -> Completion:
        """Return the answer in a reply, or raise what the reply means.

        Raises:
            RefusedError: This record will never be captioned.
            BadReplyError: This reply is no answer; another may be.
            ParameterError: It may be, if a parameter is left out or named otherwise.
            ImageError: It may be, if the images are made otherwise.
            NotFoundError: There is no such model, or the body is too large for a gateway.
            EndpointFaultError: The endpoint is in trouble.
            RunError: No record will be captioned.
        """
        ...

    def adapt(self, parameter: str) -> str:
        """Build requests otherwise from now on, for an endpoint that refuses a parameter.

        Returns:
            What was changed, in words; empty if nothing can be.
        """
        ...


class Transport(Protocol):
    """Carries one request to one endpoint."""

    async def send(self, request: Request) -> Response:
        """Return the reply, whatever its status.

        Raises:
            EndpointFaultError: There was no complete response within the deadline.
        """
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
