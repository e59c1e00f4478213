from __future__ import annotations

import asyncio
import functools
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from captioner.core.cancellation import StoppedError
from captioner.core.errors import EndpointGaveOutError
from captioner.core.progress import Progress
from captioner.core.types import (
    CaptionResult,
    Completion,
    Failure,
    InputRecord,
    PreparedRecord,
    Usage,
    ValidatedCompletion,
)
from captioner.engine.dedup import MAX_WAITERS, RequestDeduplicator, dump, load
from captioner.engine.rows import Rows
from captioner.settings.settings import Settings


class Rig:
    """Sharing over a captioning that answers when it is told to."""

    def __init__(self, **options: Any) -> None:
        self.calls = 0
        self.go_on = asyncio.Event()
        self.error: Exception | None = None
        self.fails = False
        self.progress = Progress()
        rows = Rows(Settings.create(with_=("usage", "attempts")), "m", None)
        self.deduplicator = RequestDeduplicator(self, rows, self.progress, dedup=True, **options)

    async def answers(self, prepared: PreparedRecord) -> CaptionResult | Failure:
        self.calls += 1
        number = self.calls
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        if self.fails:
            return Failure(prepared.record, "filtered", "no", 3)
        completion = Completion("", "stop", "m", Usage(100, 10))
        return CaptionResult([[ValidatedCompletion(f"caption {number}", completion)]], 2)

    def begin(self, number: int, key: bytes = b"k" * 16) -> asyncio.Task[Any]:
        line = InputRecord(number, b"{}")
        return asyncio.create_task(
            self.deduplicator.outcomes(PreparedRecord(line, (), number % 2 == 0, 0, 0, key))
        )


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    yield made
    made.deduplicator.close()


async def test_equal_records_cost_one_request(rig: Rig) -> None:
    """Those that come meanwhile and later share the answer, and cost neither calls nor tokens."""
    first, second, other = rig.begin(1), rig.begin(2), rig.begin(3, b"o" * 16)
    await asyncio.sleep(0)
    assert await second == []
    rig.go_on.set()
    one, two = await first
    assert (one.record.number, two.record.number) == (1, 2)
    assert one.text == two.text == "caption 1"
    assert (one.replaces, two.replaces) == (False, True)
    assert (one.attempts, two.attempts) == (2, 0)
    assert (one.usage, two.usage) == (Usage(100, 10), Usage())
    assert dict(two.more)["caption_attempts"] == 0
    (third,) = await rig.begin(4)
    assert third.text == "caption 1"
    assert (await other)[0].text == "caption 2"
    assert (rig.calls, rig.progress.shared) == (2, 2)


async def test_a_record_that_fails_fails_for_its_equals(rig: Rig) -> None:
    """What the endpoint will never caption is not asked again for equal records under way."""
    rig.fails = True
    first, second = rig.begin(1), rig.begin(2)
    await asyncio.sleep(0)
    rig.go_on.set()
    assert await second == []
    found = await first
    assert [(one.record.number, one.code, one.attempts) for one in found] == [
        (1, "filtered", 3),
        (2, "filtered", 0),
    ]
    # It may be asked anew later: a failure is no answer that is kept.
    assert (await rig.begin(3))[0].code == "filtered"
    assert rig.calls == 2


@pytest.mark.parametrize("error", [StoppedError(), EndpointGaveOutError("away")])
async def test_a_run_that_ends_leaves_the_parked_pending(rig: Rig, error) -> None:
    """Records that waited for one that was never answered are neither captioned nor failed."""
    rig.error = error
    first, second = rig.begin(1), rig.begin(2)
    await asyncio.sleep(0)
    assert await second == []
    rig.go_on.set()
    with pytest.raises(type(error)):
        await first
    assert rig.progress.shared == 0


async def test_only_so_many_are_parked(rig: Rig) -> None:
    """A million equal records do not pile up while the first one is slow."""
    first = rig.begin(1)
    await asyncio.sleep(0)
    parked = [rig.begin(number) for number in range(2, MAX_WAITERS + 2)]
    more = [rig.begin(number) for number in range(MAX_WAITERS + 2, MAX_WAITERS + 5)]
    await asyncio.gather(*parked)
    assert not any(one.done() for one in more)
    rig.go_on.set()
    assert len(await first) == MAX_WAITERS + 1
    assert [len(found) for found in await asyncio.gather(*more)] == [1, 1, 1]
    assert rig.calls == 1


async def test_a_giver_up_lets_the_next_one_ask(rig: Rig) -> None:
    """When the one that asks is cancelled, an equal record asks for itself."""
    first = rig.begin(1)
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    rig.go_on.set()
    assert (await rig.begin(2))[0].text == "caption 2"


async def test_a_full_temporary_folder_costs_requests_only(monkeypatch, caplog) -> None:
    """When responses cannot be kept, one warning says so, and identical requests are sent."""
    full = functools.partial(Path("/dev/full").open, "wb+", buffering=0)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    rig = Rig()
    rig.go_on.set()
    for number in range(2_000):
        (found,) = await rig.begin(number, number.to_bytes(16, "big"))
        assert found.ok
    assert len(caplog.messages) == 1
    assert "No space left" in caplog.messages[0]
    assert (await rig.begin(1, (1_999).to_bytes(16, "big")))[0].attempts == 2
    rig.deduplicator.close()


async def test_what_somebody_else_wrote_into_the_cache_is_asked_for() -> None:
    """A broken entry is no answer and no reason to stop."""
    rig = Rig()
    rig.go_on.set()
    for known in (b"{", b"[]]", b"7", b'[["a"]]'):
        line = InputRecord(1, b"{}")
        (found,) = await rig.deduplicator.outcomes(
            PreparedRecord(line, (), False, 0, 0, known * 4, known)
        )
        assert found.ok
    assert (rig.calls, rig.progress.cached) == (4, 0)
    rig.deduplicator.close()


@pytest.mark.parametrize(
    "stored",
    [
        b"[]",
        b"{}",
        b"[[]]",
        b'[["a"]]',
        b"[[[1]]]",
        b'[[["v",1,"m",""]]]',
        b'[[["v","s","m","",1]]]',
        b'[[["v","s","m","","q","doubt"]]]',
        b'[[["v","s","m","","q",0.5,"more"]]]',
        b"7",
        b"{",
    ],
)
def test_what_is_no_answer_is_not_taken_for_one(stored) -> None:
    """A cache in a shared folder may hold anything."""
    with pytest.raises((ValueError, TypeError)):
        load(stored)


def test_answers_keep_their_values() -> None:
    """Text, objects, lists, flags and reasons come back as they were; requests do not."""
    completion = Completion("raw", "stop", "m", Usage(5, 5))
    each = [
        [
            ValidatedCompletion("ä\u2028", completion),
            ValidatedCompletion({"a": [1, None]}, completion, "too_long", 2.5),
        ],
        [ValidatedCompletion("", completion), ValidatedCompletion("b", completion)],
    ]
    found = load(dump(CaptionResult(each, 7)))
    assert found.attempts == 0
    assert [[(a.value, a.flag, a.completion.model) for a in several] for several in found.each] == [
        [("ä\u2028", "", "m"), ({"a": [1, None]}, "too_long", "m")],
        [("", "", "m"), ("b", "", "m")],
    ]
    assert found.each[0][0].completion.usage == Usage()
