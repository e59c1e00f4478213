"""One prepared record to its outcome: the attempts, and what each of them means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captioner.errors import BadReplyError, EndpointFaultError, RefusedError
from captioner.ratelimits import read_limits
from captioner.records import Caption, Failure, Request
from captioner.retry import waits
from captioner.stopping import StoppedError

if TYPE_CHECKING:
    from captioner.health import Health
    from captioner.interfaces import Dialect, Transport
    from captioner.limiter import Limiter
    from captioner.records import Completion, Outcome, Prepared, Progress
    from captioner.stopping import Stopping

POISON_FAULTS = 3
POISON_SUCCESSES = 20
POISON_CHANCE = 1e-6
"""A record is blamed only if so many faults in a row would be this unlikely by chance."""

FIRST_GUESS_TOKENS = 1_500.0
"""Tokens a record is taken to cost until the endpoint has told what the first ones did."""

_OVERLOAD = frozenset({"connection", "http_429", "http_503", "http_529"})


class Endpoint:
    """One endpoint: its language, its connection, its permits and its health.

    Args:
        dialect: Builds requests, judges replies.
        transport: Carries them.
        limiter: Permits.
        health: What its workers have seen of it.
        progress: Counts.
        stopping: Ends waits.
        max_attempts: Replies that are no captions after which a record fails.
    """

    def __init__(
        self,
        dialect: Dialect,
        transport: Transport,
        limiter: Limiter,
        health: Health,
        progress: Progress,
        stopping: Stopping,
        *,
        max_attempts: int,
    ) -> None:
        self._dialect = dialect
        self._transport = transport
        self._limiter = limiter
        self._health = health
        self._progress = progress
        self._stopping = stopping
        self._max_attempts = max_attempts
        self._mean_tokens = FIRST_GUESS_TOKENS

    async def caption(self, prepared: Prepared) -> Outcome:
        """Return what became of a record.

        Trouble of the endpoint costs time only; replies that are no captions cost attempts. A
        record that alone keeps failing on an endpoint that serves others is failed as well.

        Raises:
            StoppedError: The run is stopping before there is an outcome.
            RunError: No record will be captioned.
        """
        request = self._dialect.request(prepared.messages)
        attempts = bad_replies = faults = 0
        successes_before = 0
        pauses = waits()
        while True:
            attempts += 1
            try:
                completion = await self._attempt(request, retry=attempts > 1)
            except RefusedError as error:
                return Failure(prepared.line, error.code, error.message, attempts)
            except BadReplyError as error:
                bad_replies += 1
                if bad_replies >= self._max_attempts:
                    return Failure(prepared.line, error.code, error.message, attempts)
                await self._stopping.sleep(next(pauses))
            except EndpointFaultError as error:
                blamed = error.code not in _OVERLOAD
                if blamed and not faults:
                    successes_before = self._health.successes
                faults += blamed
                self._health.blamed += blamed
                others = self._health.successes - successes_before
                if blamed and await self._is_poison(faults, others):
                    message = f"{error.message} ({faults} times, while the endpoint was well)"
                    return Failure(prepared.line, error.code, message, attempts)
                await self._stopping.sleep(min(next(pauses), self._health.left_s()))
            else:
                return Caption(
                    prepared.line, completion.text, prepared.replaces, attempts, completion.usage
                )

    async def _attempt(self, request: Request, *, retry: bool) -> Completion:
        probe = await self._health.ready()
        verdict = False
        try:
            estimated = self._mean_tokens
            epoch = await self._limiter.acquire(estimated)
            try:
                if self._stopping:
                    raise StoppedError
                completion = await self._exchange(request, retry=retry)
                self._note_success(estimated, completion)
            except EndpointFaultError as error:
                # All before the permit goes to the next one.
                if error.retry_after_s is not None:
                    self._limiter.pause(error.retry_after_s)
                if error.code != "connection":
                    self._limiter.overloaded(epoch)
                raise
            finally:
                self._limiter.release()
        except EndpointFaultError as error:
            verdict = True
            self._progress.waiting = f"the endpoint: {error.message}"
            self._health.faulted(error, probe=probe)
            raise
        except (BadReplyError, RefusedError):
            verdict = True
            self._progress.waiting = ""
            self._health.succeeded()
            raise
        else:
            verdict = True
            self._health.succeeded()
            return completion
        finally:
            if probe and not verdict:
                self._health.abandoned()

    async def _exchange(self, request: Request, *, retry: bool) -> Completion:
        progress = self._progress
        progress.calls += 1
        progress.retries += retry
        progress.in_flight += 1
        try:
            response = await self._transport.send(request)
        finally:
            progress.in_flight -= 1
        self._health.answered()
        requests, tokens = read_limits(response.headers)
        self._limiter.learn_requests(*requests)
        self._limiter.learn_tokens(*tokens)
        completion = self._dialect.judge(response)
        progress.waiting = ""
        return completion

    def _note_success(self, estimated: float, completion: Completion) -> None:
        self._limiter.succeeded()
        used = sum(completion.usage)
        if used:
            self._limiter.correct_tokens(estimated, used)
            self._mean_tokens += (used - self._mean_tokens) / 16

    async def _is_poison(self, faults: int, others: int) -> bool:
        """Tell whether it is the record that breaks the endpoint, not the endpoint itself.

        It is if others went through meanwhile, and the endpoint does not fail so often that it
        may be chance; where there are no others to tell by, if the endpoint answers a harmless
        question between two faults.
        """
        health = self._health
        elsewhere = health.blamed - faults
        share = (elsewhere + 0.04) / (health.successes + elsewhere + 2)
        if faults < POISON_FAULTS or share**faults > POISON_CHANCE:
            return False
        if others >= POISON_SUCCESSES:
            return True
        if faults < self._max_attempts:
            return False
        try:
            reply = await self._transport.send(Request("GET", "/models"))
        except EndpointFaultError:
            return False
        return reply.status < 500 and reply.status != 429
