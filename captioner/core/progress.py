"""Counters of a run, the state that it shows while it goes on, and its report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence  # noqa: TC003 - read by tools that inspect fields
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from captioner.core.bottleneck import Bottleneck

if TYPE_CHECKING:
    from captioner.core.types import Failure


class Spent(NamedTuple):
    """What the requests of some runs have used.

    Attributes:
        cost: US dollars, as far as prices were known.
        prompt_tokens: Input tokens.
        completion_tokens: Output tokens.
        answers: Responses.
    """

    cost: float = 0.0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    answers: float = 0.0

    def part(self, parts: int) -> Spent:
        """Return one of several equal parts."""
        return Spent(*(value / parts for value in self))

    def plus(self, counters: RequestCounters) -> Spent:
        """Return this with what a run has used."""
        return Spent(
            self.cost + (counters.cost or 0.0),
            self.prompt_tokens + counters.prompt_tokens,
            self.completion_tokens + counters.completion_tokens,
            self.answers + counters.answers,
        )


@dataclass(slots=True)
class RequestCounters:
    """Counts of requests; they add up over workers and shards.

    Attributes:
        shared: Records settled by the response to an identical request of this run.
        cached: Records settled by a response of an earlier run (``--cache``).
        calls: Requests sent, of every kind.
        retries: Requests that were not a record's first.
        cost: US dollars spent, discarded responses included; None where prices are not known.
        prompt_tokens: Input tokens as the endpoint counted them, discarded responses included.
        completion_tokens: Output tokens, likewise.
        cached_tokens: Those of the input tokens that the endpoint had in its cache.
        answers: Responses to requests for captions.
        answered_s: Seconds that all these requests took together.
    """

    shared: int = 0
    cached: int = 0
    calls: int = 0
    retries: int = 0
    cost: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    answers: int = 0
    answered_s: float = 0.0

    @classmethod
    def of(cls, counters: RequestCounters) -> Self:
        """Return a copy of the counts that this class has."""
        return cls(**{one.name: getattr(counters, one.name) for one in fields(cls)})

    def add(self, counters: RequestCounters, sign: int = 1) -> None:
        """Add other counts to these, or subtract them with ``sign=-1``."""
        for one in fields(counters):
            more = getattr(counters, one.name)
            if more is not None:
                setattr(self, one.name, (getattr(self, one.name) or 0) + sign * more)

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as a JSON-ready dictionary."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass(slots=True)
class Counters(RequestCounters):
    """Counts of records as well. They are of this run unless noted.

    Attributes:
        resumed: Found captioned by an earlier run.
        failed_before: Found failed by an earlier run and not tried again.
        skipped: Left out because an equal record came before (``--equal-records skip``).
        existing: Kept as they are because they have a caption (``--existing skip``).
        changed: Resumed by their id although their content has changed.
    """

    captioned: int = 0
    failed: int = 0
    resumed: int = 0
    failed_before: int = 0
    skipped: int = 0
    existing: int = 0
    changed: int = 0
    read: int = 0

    @property
    def settled(self) -> int:
        """Records of the input that are not pending."""
        return (
            self.captioned
            + self.failed
            + self.resumed
            + self.failed_before
            + self.skipped
            + self.existing
        )


class EndpointState(NamedTuple):
    """The state of one endpoint.

    Attributes:
        limit: Requests that may be in flight now.
        per_minute: Requests allowed in a minute; infinite if no limit is known.
        paused_s: Seconds until the next request may start, as the endpoint asked.
        circuit_open: The endpoint keeps failing, and only probes are sent.
        held_by: What holds its requests back, a name of `CAUSES`; empty if nothing does.
    """

    name: str
    in_flight: int
    limit: int
    per_minute: float
    paused_s: float
    circuit_open: bool
    held_by: str = ""


class Supply(NamedTuple):
    """How well the workers are supplied with records.

    Attributes:
        idle: Workers that wait for a record.
        fetching: Records whose images are being fetched.
    """

    idle: int = 0
    fetching: int = 0


@dataclass(slots=True)
class Progress(Counters):
    """The state of a run that goes on.

    Attributes:
        position: Bytes of the input read so far.
        size: Bytes of the whole input; 0 if unknown.
        limit: Records to process at most; 0 for all.
        complete: The whole input has been read.
        began: Monotonic time at which each request in flight was sent, in seconds.
        states: Returns the state of each endpoint.
        supply: Returns how well the workers are supplied.
        bottleneck: What holds the run back.
        codes: Failures of this run by code.
        examples: One failure for each code.
        waiting: Why the run waits, for a person; empty while it does not.
        spent_before: What earlier runs of the same output have used.
    """

    in_flight: int = 0
    position: int = 0
    size: int = 0
    limit: int = 0
    complete: bool = False
    began: dict[object, float] = field(default_factory=dict)
    states: Callable[[], Sequence[EndpointState]] = tuple
    supply: Callable[[], Supply] = Supply
    bottleneck: Bottleneck = field(default_factory=Bottleneck)
    codes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Failure] = field(default_factory=dict)
    waiting: str = ""
    spent_before: Spent = field(default_factory=Spent)
    stage: Literal[
        "starting", "captioning", "draining", "ordering", "exporting", "uploading", "finished"
    ] = "starting"

    @property
    def oldest_s(self) -> float:
        """Seconds since the oldest request in flight was sent; 0 if none is in flight."""
        return time.monotonic() - min(self.began.values()) if self.began else 0.0


@dataclass(slots=True)
class RunReport(Counters):
    """The result of a run.

    Attributes:
        failed: Records without a caption after this run, failures of earlier runs included.
        output: Path of the captions; None when they went to a sink.
        failures: Path of the failures; None when they went to a sink.
        pending: Records read but neither captioned nor failed because the run was stopped.
        complete: Every record of the input is captioned or failed.
        total_cost: US dollars that all runs of the output have cost; None where not known.
        orphans: Rows of the output whose record is no longer in the input.
        seconds: Wall time.
        codes: Failures by code, those of earlier runs included.
        examples: One failure of each code, as ``(line number, message)``.
        stopped: Why the run was stopped early, as the name of the error; else empty.
        held_by: What held the run back most, a name of `CAUSES`; empty if that is not known.
        held_share: For which part of the run, 0 to 1.
    """

    output: str | None = None
    failures: str | None = None
    pending: int = 0
    complete: bool = False
    total_cost: float | None = None
    orphans: int = 0
    seconds: float = 0.0
    codes: dict[str, int] = field(default_factory=dict)
    examples: dict[str, tuple[int, str]] = field(default_factory=dict)
    stopped: str = ""
    held_by: str = ""
    held_share: float = 0.0
