from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from endpoint import completion

from captioner.core.cancellation import CancelToken, StoppedError
from captioner.core.errors import (
    EndpointFaultError,
    EndpointGaveOutError,
    EndpointRefusedError,
)
from captioner.core.progress import Progress
from captioner.core.types import (
    Caption,
    Failure,
    ImageOverrides,
    InputRecord,
    PreparedRecord,
    Request,
    Response,
    Turn,
    Usage,
)
from captioner.endpoints.blame import POISON_FAULTS, POISON_SUCCESSES, STOP_FIRST, STOP_VERDICT
from captioner.endpoints.circuit_breaker import CircuitBreaker
from captioner.endpoints.endpoint import Endpoint
from captioner.endpoints.limiter import Limiter
from captioner.endpoints.openai_chat import OpenAIChat
from captioner.endpoints.pool import EndpointPool
from captioner.engine.attempts import RecordAttempts
from captioner.engine.caption_checks import CaptionRules
from captioner.engine.dedup import RequestDeduplicator
from captioner.engine.rows import Rows
from captioner.settings.context import RunContext
from captioner.settings.settings import Settings

DIALECT = OpenAIChat("m")
GOOD = Response(200, {}, orjson.dumps(completion("a cat")))
EMPTY = Response(200, {}, orjson.dumps(completion("")))
REFUSAL = Response(200, {}, orjson.dumps(completion(None, finish_reason="content_filter")))
DISCONNECTED = EndpointFaultError("disconnected", "the connection broke")
UNREACHABLE = EndpointFaultError("connection", "cannot connect")
TIMEOUT = EndpointFaultError("timeout", "no whole reply")

ValidatedCompletion = Response | Exception


def status(code: int, **headers: str) -> Response:
    return Response(code, {k.replace("_", "-"): v for k, v in headers.items()}, b"{}")


class Instant(CancelToken):
    """Waits are noted and over at once."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []
        self.during: Callable[[], None] = lambda: None

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.during()
        await asyncio.sleep(0)
        if self:
            raise StoppedError


class Script:
    """A transport that answers each question with what is written down for it, then well."""

    def __init__(self) -> None:
        self.answers: dict[str, list[ValidatedCompletion]] = {}
        self.always: dict[str, ValidatedCompletion] = {}
        self.models: ValidatedCompletion = status(200)
        self.sent: list[str] = []
        self.asked = 0
        self.before: Callable[[str], Awaitable[None]] | None = None

    async def send(self, request: Request) -> Response:
        if request.method == "GET":
            assert request.path == "/models"
            self.asked += 1
            answer = self.models
        else:
            question = orjson.loads(b"".join(request.pieces))["messages"][0]["content"]
            self.sent.append(question)
            if self.before is not None:
                await self.before(question)
            left = self.answers.get(question)
            answer = left.pop(0) if left else self.always.get(question, GOOD)
        await asyncio.sleep(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        pass


class Rig:
    """An endpoint with everything around it."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        limit: int = 4,
        max_attempts: int = 5,
        max_outage_s: float | None = None,
        probes: bool = True,
    ) -> None:
        self.script = script or Script()
        self.cancel = Instant()
        self.progress = Progress()
        self.limiter = Limiter(limit)
        sleep = self.cancel.sleep if probes else self.until_cancelled
        self.breaker = CircuitBreaker("http://x/v1", max_outage_s=max_outage_s, sleep=sleep)
        self.cancel.on_request(self.limiter.open)
        self.remade: list[ImageOverrides] = []
        self.endpoint = Endpoint(
            "http://x/v1",
            DIALECT,
            self.script,
            self.limiter,
            self.breaker,
            RunContext(Settings(), self.progress, self.cancel),
        )
        self.attempts = RecordAttempts(
            EndpointPool([self.endpoint]),
            self.prepare_again,
            self.cancel,
            rules=CaptionRules(max_attempts=max_attempts),
        )

    async def until_cancelled(self, _: float) -> None:
        await self.cancel.wait()
        raise StoppedError

    async def prepare_again(
        self, prepared: PreparedRecord, image_overrides: ImageOverrides
    ) -> PreparedRecord:
        line = prepared.record
        self.remade.append(image_overrides)
        question = line.raw.decode()
        return PreparedRecord(
            line, (DIALECT.messages([Turn("user", (question,))], []),), False, 0, 100
        )

    async def caption(self, question: str = "q", replaces: bool = False) -> Any:
        messages = DIALECT.messages([Turn("user", (question,))], [])
        line = InputRecord(1, question.encode())
        rows = Rows(Settings(), "m", None)
        deduplicator = RequestDeduplicator(self.attempts, rows, self.progress, dedup=False)
        outcome = await deduplicator.caption(PreparedRecord(line, (messages,), replaces, 0, 100))
        assert outcome.record is line
        return outcome

    def others(self, count: int) -> None:
        """Let so many other records be captioned."""
        for _ in range(count):
            self.breaker.record_success()

    def at_rest(self) -> None:
        """Nothing is held, nothing is counted as under way."""
        assert (self.limiter.in_flight, self.progress.in_flight) == (0, 0)


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


@pytest.mark.parametrize("replaces", [False, True])
async def test_a_caption_at_once(replaces):
    """A good reply is the record's caption, with its tokens, after one request and no wait."""
    rig = Rig()
    caption = await rig.caption(replaces=replaces)
    assert caption == Caption(caption.record, "a cat", replaces, 1, Usage(100, 10))
    assert (rig.progress.calls, rig.progress.retries, rig.breaker.successes) == (1, 0, 1)
    assert rig.cancel.slept == []
    rig.at_rest()


async def test_a_refusal_is_final():
    """A record that the endpoint refuses is failed after one request, never asked again."""
    for answer, code in (
        (REFUSAL, "filtered"),
        (status(400), "http_400"),
        (status(422), "http_422"),
    ):
        rig = Rig()
        rig.script.always["q"] = answer
        failure = await rig.caption()
        assert isinstance(failure, Failure)
        assert (failure.code, failure.attempts) == (code, 1)
        assert rig.script.sent == ["q"]
        rig.at_rest()


@pytest.mark.parametrize("attempts", [1, 2, 5])
async def test_replies_that_are_no_captions_spend_attempts(attempts):
    """Empty replies are asked for again as often as allowed; then the record is failed."""
    rig = Rig(max_attempts=attempts)
    rig.script.always["q"] = EMPTY
    failure = await rig.caption()
    assert (failure.ok, failure.code, failure.attempts) == (False, "empty", attempts)
    assert rig.script.sent == ["q"] * attempts
    assert len(rig.cancel.slept) == attempts - 1
    assert (rig.progress.calls, rig.progress.retries) == (attempts, attempts - 1)
    rig.at_rest()


async def test_the_last_attempt_counts():
    """A caption that comes with the last attempt allowed is taken."""
    rig = Rig(max_attempts=3)
    rig.script.answers["q"] = [EMPTY, EMPTY]
    caption = await rig.caption()
    assert (caption.ok, caption.attempts) == (True, 3)


@pytest.mark.parametrize(
    "fault",
    [status(500), status(503), status(429), status(502), DISCONNECTED, UNREACHABLE, TIMEOUT],
)
async def test_faults_spend_time_not_attempts(fault):
    """However often the endpoint itself is in trouble, a record keeps its attempts."""
    rig = Rig(max_attempts=3)
    rig.script.models = status(503)
    rig.script.answers["q"] = [*[fault] * 40, EMPTY, *[fault] * 5, EMPTY]
    caption = await rig.caption()
    assert (caption.ok, caption.text, caption.attempts) == (True, "a cat", 48)
    sent = 3 if fault is UNREACHABLE else 48  # a connection that was not made is no request
    assert (rig.progress.calls, rig.progress.retries) == (sent, sent - 1)
    assert len(rig.cancel.slept) >= 47
    rig.at_rest()


@pytest.mark.parametrize(("fault", "more"), [(status(500), 1), (DISCONNECTED, 2), (TIMEOUT, 1)])
async def test_one_that_breaks_a_healthy_endpoint(fault, more):
    """A record that alone breaks the endpoint while others go through is failed.

    A connection that breaks may mean that the body is too large, so three smaller sizes are tried.
    """
    rig = Rig(max_attempts=100)
    rig.script.always["q"] = fault
    rig.cancel.during = lambda: rig.others(POISON_SUCCESSES)
    failure = await rig.caption()
    assert failure.ok is False
    assert failure.attempts == POISON_FAULTS * more
    assert f"{POISON_FAULTS * more} times" in failure.message
    assert rig.script.asked == 0
    rig.at_rest()


@pytest.mark.parametrize(("used", "attempts"), [(20_000, 1), (4_500, 4)])
async def test_a_prompt_above_the_context(used, attempts):
    """Smaller images are tried only where they can help, so a long text costs one request."""
    said = f"maximum context length is 4000 tokens. Your messages resulted in {used} tokens."
    rig = Rig()
    await rig.caption("good")
    rig.script.always["q"] = Response(400, {}, orjson.dumps({"error": {"message": said}}))
    failure = await rig.caption()
    assert (failure.code, failure.attempts) == ("too_large", attempts)
    assert len(rig.remade) == attempts - 1


@pytest.mark.parametrize("others", [0, POISON_SUCCESSES - 1])
async def test_a_few_others_do_not_tell(others):
    """Before enough others went through, a record is not blamed for three faults."""
    rig = Rig()
    rig.script.answers["q"] = [status(500)] * 4
    rig.others(1000)  # long before its first fault: they tell nothing

    def once() -> None:
        rig.others(others)
        rig.cancel.during = lambda: None

    rig.cancel.during = once
    caption = await rig.caption()
    assert (caption.ok, caption.attempts) == (True, 5)


async def test_the_last_one_is_told_by_a_known_good_request():
    """The last record of a run cannot hold it for ever: a request that worked is sent again."""
    rig = Rig()
    assert (await rig.caption("good")).ok
    rig.script.always["q"] = status(500)
    failure = await rig.caption()
    assert (failure.ok, failure.code) == (False, "http_500")
    assert failure.attempts == rig.script.sent.count("q") <= 30
    assert 2 <= rig.script.sent.count("good") < 10
    rig.at_rest()


async def test_no_caption_for_a_minute_stops_the_run(skip):
    """An endpoint that never captioned anything is given a minute, and no record is blamed."""
    rig = Rig()
    rig.script.always["q"] = status(500)
    rig.cancel.during = lambda: skip(5)
    with pytest.raises(EndpointGaveOutError, match="no caption"):
        await rig.caption()
    rig.at_rest()


@pytest.mark.parametrize("fault", [status(429), status(503), status(529), UNREACHABLE])
async def test_overload_blames_no_record(fault):
    """Rate limits, overload and a server that is away are never a record's fault."""
    rig = Rig(max_attempts=2)
    rig.script.answers["q"] = [fault] * 9
    rig.cancel.during = lambda: rig.others(100)
    caption = await rig.caption()
    assert (caption.ok, caption.attempts) == (True, 10)
    assert rig.script.asked == 0


@pytest.mark.parametrize("others", [0, 100])
@pytest.mark.parametrize("fault", [status(429), status(503), UNREACHABLE])
async def test_overload_does_not_count_towards_blame(fault, others):
    """One real fault after a long wait over rate limits or a restart does not fail a record."""
    rig = Rig(max_attempts=5)
    rig.script.answers["q"] = [*[fault] * 8, DISCONNECTED]
    rig.cancel.during = lambda: rig.others(others)
    outcome = await rig.caption()
    assert outcome.ok
    assert outcome.attempts == 10


@pytest.mark.parametrize("headers", [{"retry_after": "30"}, {"retry_after_ms": "30000"}])
async def test_retry_after_holds_all_workers(skip, headers):
    """When one record is told to come back later, nobody sends before that."""
    rig = Rig()
    rig.script.answers["first"] = [status(429, **headers)]
    first = asyncio.create_task(rig.caption("first"))
    await settle()
    others = [asyncio.create_task(rig.caption(f"{number}")) for number in range(3)]
    await settle()
    assert rig.script.sent == ["first"]
    assert 29 < rig.limiter.paused_s <= 30
    assert rig.progress.in_flight == 0
    skip(31)
    outcomes = await asyncio.gather(first, *others)
    assert all(outcome.ok for outcome in outcomes)
    assert Counter(rig.script.sent) == {"first": 2, "0": 1, "1": 1, "2": 1}
    rig.at_rest()


async def test_retry_after_holds_who_waits_for_a_permit(skip):
    """One who was waiting for the very permit that brought the message is held as well."""
    rig = Rig(limit=1)
    rig.script.answers["first"] = [status(429, retry_after="30")]
    tasks = [asyncio.create_task(rig.caption(name)) for name in ("first", "second")]
    await settle()
    sent = list(rig.script.sent)
    skip(31)
    await asyncio.gather(*tasks)
    assert sent == ["first"]


async def test_waiting_holds_no_permit():
    """A record that waits for its next attempt lets the others send."""
    rig = Rig(limit=1)
    rig.script.answers["q"] = [status(500), EMPTY, DISCONNECTED]
    seen = []
    rig.cancel.during = lambda: seen.append(rig.limiter.in_flight)
    assert (await rig.caption()).ok
    assert seen == [0, 0, 0]


async def test_no_more_requests_than_permits():
    """However many records are under way, no more requests than allowed are on the wire."""
    rig = Rig(limit=3)
    most = 0

    async def before(_: str) -> None:
        nonlocal most
        most = max(most, rig.progress.in_flight)
        await asyncio.sleep(0)

    rig.script.before = before
    for number in range(0, 50, 3):
        rig.script.answers[f"{number}"] = [status(500)]
    outcomes = await asyncio.gather(*(rig.caption(f"{number}") for number in range(50)))
    assert all(outcome.ok for outcome in outcomes)
    assert most == 3
    rig.at_rest()


async def test_an_outage_goes_over():
    """Many workers through an outage: all captions arrive, each is asked for till it came once."""
    down = 60

    class Outage(Script):
        async def send(self, request: Request) -> Response:
            nonlocal down
            if request.method == "POST":
                down -= 1
                if down >= 0:
                    self.sent.append("")
                    await asyncio.sleep(0)
                    raise UNREACHABLE
            return await super().send(request)

    rig = Rig(Outage(), limit=8, max_attempts=2)
    outcomes = await asyncio.gather(*(rig.caption(f"{number}") for number in range(20)))
    assert all(outcome.ok for outcome in outcomes)
    good = Counter(question for question in rig.script.sent if question)
    assert set(good.values()) == {1}
    assert len(good) == 20
    assert not rig.breaker.is_open
    rig.at_rest()


async def test_a_resting_endpoint_is_probed_by_one_at_a_time():
    """While the endpoint rests there is never more than one request on the wire."""
    rig = Rig(limit=8)
    for _ in range(10):
        rig.breaker.record_fault(UNREACHABLE, probe=False)
    most = 0
    fails = 12

    async def before(_: str) -> None:
        nonlocal most, fails
        if rig.breaker.is_open:
            most = max(most, rig.progress.in_flight)
            await asyncio.sleep(0)
            fails -= 1
            if fails >= 0:
                raise UNREACHABLE

    rig.script.before = before
    outcomes = await asyncio.gather(*(rig.caption(f"{number}") for number in range(8)))
    assert all(outcome.ok for outcome in outcomes)
    assert most == 1


@pytest.mark.parametrize("reply", [EMPTY, REFUSAL, GOOD])
async def test_any_sensible_reply_ends_a_rest(reply):
    """An endpoint that answers a probe, be it with a refusal, is well again."""
    rig = Rig()
    for _ in range(10):
        rig.breaker.record_fault(UNREACHABLE, probe=False)
    rig.script.answers["q"] = [reply]
    await rig.caption()
    assert not rig.breaker.is_open


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (status(401), EndpointRefusedError),
        (status(307), EndpointRefusedError),
        (status(402), EndpointGaveOutError),
        (
            Response(429, {}, b'{"error":{"code":"insufficient_quota","message":"x"}}'),
            EndpointGaveOutError,
        ),
    ],
)
@pytest.mark.parametrize("resting", [False, True])
async def test_what_no_record_would_survive_stops_the_run(reply, kind, resting):
    """A wrong key, a wrong address or an empty account ends the run; no record is failed for it."""
    rig = Rig()
    if resting:
        for _ in range(10):
            rig.breaker.record_fault(UNREACHABLE, probe=False)
    rig.script.always["q"] = reply
    with pytest.raises(kind):
        await rig.caption()
    rig.at_rest()
    assert rig.script.sent == ["q"] * STOP_VERDICT
    assert (await rig.caption("other")).ok  # the probe is not left behind


async def test_an_unknown_model_stops_the_run_once_that_is_certain():
    """Ten 404s before any caption are the model or the address, whichever records meet them."""
    rig = Rig()
    rig.script.always = dict.fromkeys("abcd", status(404))
    outcomes = await asyncio.gather(*map(rig.caption, "abcd"), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {EndpointRefusedError}
    assert STOP_FIRST <= len(rig.script.sent) <= STOP_FIRST + 3
    rig.at_rest()


async def test_a_404_for_one_body_fails_that_record_only():
    """A record that alone gets a 404, while others go through, is failed."""
    rig = Rig()
    assert (await rig.caption("first")).ok
    rig.script.always["q"] = status(404)
    rig.cancel.during = lambda: rig.others(POISON_SUCCESSES)
    failure = await rig.caption()
    assert (failure.ok, failure.code) == (False, "http_404")


@pytest.mark.parametrize(
    ("answer", "fewest"), [(UNREACHABLE, 10), (status(503, retry_after="86400"), 2)]
)
async def test_an_outage_that_lasts_too_long_stops_the_run(skip, answer, fewest):
    """An endpoint away for longer than allowed ends the run, whatever it says of its return."""
    rig = Rig(max_outage_s=600)
    rig.script.always["q"] = answer
    rig.cancel.during = lambda: skip(5)
    with pytest.raises(EndpointGaveOutError):
        await rig.caption()
    assert len(rig.script.sent) >= fewest
    rig.at_rest()


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (status(504), "raise the proxy's read timeout"),
        (status(524), "raise the proxy's read timeout"),
        (TIMEOUT, "raise --timeout"),
    ],
)
async def test_requests_that_are_given_up_halve_what_is_sent(answer, advice, caplog):
    """A proxy that does not wait makes the server work for nobody: fewer are sent, with a word."""
    rig = Rig(limit=8)
    limits: list[float] = []
    rig.cancel.during = lambda: limits.append(rig.limiter.window.load)
    for number in range(8):
        rig.script.answers[f"q{number}"] = [answer] * 3
    captions = await asyncio.gather(*(rig.caption(f"q{number}") for number in range(8)))
    assert all(caption.ok for caption in captions)
    assert min(limits) <= 4
    (warning,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "lower --concurrency" in warning
    assert advice in warning


async def test_a_host_that_does_not_exist_stops_the_run_at_once():
    """Before the first caption the address is wrong; after it the name service has trouble."""
    unknown = EndpointFaultError("connection", "cannot connect to nowhere:1: not known")
    unknown.is_unknown_host = True
    rig = Rig()
    rig.script.always["q"] = unknown
    with pytest.raises(EndpointRefusedError, match=r"nowhere:1.*check --base-url"):
        await rig.caption()
    assert len(rig.script.sent) == 1
    rig.at_rest()
    rig = Rig()
    rig.script.answers["q"] = [GOOD, *[unknown] * 12]
    assert [(await rig.caption()).ok for _ in range(2)] == [True, True]


async def test_stopping_ends_the_wait_for_the_next_attempt():
    """A record between two attempts stays pending when the run stops."""
    for answer in (EMPTY, status(500)):
        rig = Rig()
        rig.script.always["q"] = answer
        rig.cancel.during = rig.cancel.set
        with pytest.raises(StoppedError):
            await rig.caption()
        assert rig.script.sent == ["q"]
        rig.at_rest()


async def test_stopping_lets_the_reply_on_the_wire_arrive():
    """What is paid for is kept: a reply that comes after the wish to stop is a caption."""
    rig = Rig()

    async def before(_: str) -> None:
        rig.cancel.request()

    rig.script.before = before
    assert (await rig.caption()).ok
    rig.script.always["bad"] = REFUSAL
    with pytest.raises(StoppedError):
        await rig.caption("bad")  # but nothing new is sent
    assert rig.script.sent == ["q"]
    rig.at_rest()


async def test_stopping_ends_every_kind_of_wait():
    """Those who wait for a permit, a pause or a probe all stop, and nothing more is sent."""
    paused, broken = Rig(limit=1), Rig(probes=False)
    paused.limiter.pause(1000)
    for _ in range(10):
        broken.breaker.record_fault(UNREACHABLE, probe=False)
    for rig in (paused, broken):
        waiting = [asyncio.create_task(rig.caption(f"{number}")) for number in range(3)]
        await settle()
        rig.cancel.request()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(result) for result in results} == {StoppedError}
        assert rig.script.sent == []
        rig.at_rest()


async def test_cancelling_gives_everything_back():
    """A worker that is cancelled on the wire, even as the probe, leaves nothing held."""
    rig = Rig(limit=1)
    for _ in range(10):
        rig.breaker.record_fault(UNREACHABLE, probe=False)
    hang = asyncio.Event()

    async def before(question: str) -> None:
        if question == "hanging":
            await hang.wait()

    rig.script.before = before
    first = asyncio.create_task(rig.caption("hanging"))
    await settle()
    second = asyncio.create_task(rig.caption("second"))
    await settle()
    assert rig.script.sent == ["hanging"]
    first.cancel()
    assert (await second).ok
    with pytest.raises(asyncio.CancelledError):
        await first
    rig.at_rest()


async def test_a_bug_in_a_transport_is_not_swallowed():
    """What is no fault of the endpoint comes out as it is, with nothing left held."""
    rig = Rig()
    rig.script.always["q"] = RuntimeError("bug")
    with pytest.raises(RuntimeError, match="bug"):
        await rig.caption()
    rig.at_rest()


async def test_an_endpoint_that_fails_now_and_then_blames_no_record():
    """Where a tenth of all requests fail, three faults of one record among thousands are chance."""
    rig = Rig()
    rig.breaker.captions, rig.endpoint.noise = 9_000, 1_000

    async def others_go_through(_: str) -> None:
        rig.others(50)

    rig.script.before = others_go_through
    rig.script.answers["q"] = [status(500)] * 4
    outcome = await rig.caption()
    assert outcome.ok
