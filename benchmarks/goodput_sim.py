"""How much an endpoint should be asked at once: two rules on simulated servers, in virtual time.

The rules are `AimdLimit` of captioner, and the candidate in `goodput_limit.py`, which decides by
experiments. Workers retry a failed record after the pauses of captioner. Each server has an ideal,
the captions that it could give. The table has the share of it that each rule reaches, mean and
least of five runs, and the share of requests that were refused or failed.

usage: python benchmarks/goodput_sim.py [CASE ...]     default all; about a minute; prints a table
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from goodput_limit import GoodputLimit

from captioner.endpoints.limiter import AimdLimit, start_of

SEEDS = range(2, 7)
REFUSED_S = 0.005


@dataclass
class Server:
    """A server with a latency, and faults by chance, a quota, or slots with a queue."""

    latency_s: float
    faults: float = 0.0
    per_minute: float = 0.0
    slots: int = 0
    queue: int = 0
    steps: tuple[tuple[float, int], ...] = ()  # other numbers of slots, from a time on
    seed: int = 0
    ends: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.level, self.at = self.per_minute, 0.0

    def send(self, now: float) -> tuple[float, bool]:
        """Return when a request ends and whether it succeeds."""
        if self.per_minute:
            self.level += (now - self.at) * self.per_minute / 60
            self.level, self.at = min(self.per_minute, self.level), now
            if self.level < 1:
                return now + REFUSED_S, False
            self.level -= 1
        succeeds = self.random.random() >= self.faults
        begin = now
        if self.slots:
            slots = [count for since, count in self.steps if since <= now][-1:] or [self.slots]
            while self.ends and self.ends[0] <= now:
                heapq.heappop(self.ends)
            if len(self.ends) >= slots[0] + self.queue:
                return now + REFUSED_S, False
            if len(self.ends) >= slots[0]:
                begin = sorted(self.ends)[len(self.ends) - slots[0]]
        end = begin + self.latency_s * self.random.uniform(0.7, 1.5)
        if self.slots:
            heapq.heappush(self.ends, end)
        return end, succeeds


class Aimd:
    """The rule of captioner."""

    pace = math.inf
    fails_by_chance = False

    def __init__(self, ceiling: int) -> None:
        self.window = AimdLimit(ceiling, float(min(ceiling, start_of(ceiling))))

    @property
    def limit(self) -> float:
        return self.window.limit

    @property
    def epoch(self) -> int:
        return self.window.epoch

    def result(
        self, epoch: int, latency_s: float, in_flight: int, now: float, *, good: bool
    ) -> float:
        """Note a result; return for how long its permit stays out."""
        del latency_s, now
        if good:
            self.window.succeeded(in_flight)
        else:
            self.window.overloaded(epoch)
        return 0.0

    def hold_back(self) -> None:
        """Note that the pace held a request back."""


class Goodput(Aimd):
    """The candidate."""

    def __init__(self, ceiling: int) -> None:
        self.window: Any = GoodputLimit(ceiling, min(ceiling, start_of(ceiling)))

    @property
    def pace(self) -> float:  # type: ignore[override]
        return self.window.pace

    @property
    def fails_by_chance(self) -> bool:  # type: ignore[override]
        return self.window.is_noisy

    def result(
        self, epoch: int, latency_s: float, in_flight: int, now: float, *, good: bool
    ) -> float:
        if good:
            self.window.succeeded(epoch, latency_s, in_flight, now)
            return 0.0
        self.window.failed(epoch, in_flight, now)
        return self.window.hold_s(latency_s, now, 0.0)

    def hold_back(self) -> None:
        self.window.held_back = True


class Case(NamedTuple):
    about: str
    server: dict[str, Any]
    ceiling: int
    seconds: float
    ideal: Callable[[float], float]  # captions in that many seconds


STEPS = ((80.0, 16), (160.0, 32))
CASES = {
    "r35": Case("35 % faults, 50 ms", {"latency_s": 0.05, "faults": 0.35}, 64, 25,
                lambda s: 64 / 0.055 * 0.65 * s),
    "r10": Case("10 % faults, 2 s", {"latency_s": 2.0, "faults": 0.1}, 64, 240,
                lambda s: 64 / 2.2 * 0.9 * s),
    "q600": Case("600 a minute, 100 ms", {"latency_s": 0.1, "per_minute": 600.0}, 64, 240,
                 lambda s: 600 + 10 * s),
    "q6000": Case("6,000 a minute, 1 s", {"latency_s": 1.0, "per_minute": 6_000.0}, 256, 240,
                  lambda s: min(6_000 + 100 * s, 256 / 1.1 * s)),
    "s32": Case("32 slots, queue 16", {"latency_s": 1.0, "slots": 32, "queue": 16}, 256, 240,
                lambda s: 32 / 1.1 * s),
    "s32r": Case("the same, 20 % faults",
                 {"latency_s": 1.0, "slots": 32, "queue": 16, "faults": 0.2}, 256, 240,
                 lambda s: 32 / 1.1 * 0.8 * s),
    "cap2": Case("2 slots, no queue", {"latency_s": 1.0, "slots": 2}, 64, 240,
                 lambda s: 2 / 1.1 * s),
    "step": Case("32 slots, then 16, then 32",
                 {"latency_s": 1.0, "slots": 32, "queue": 16, "steps": STEPS}, 256, 240,
                 lambda s: (32 * (s - 80) + 16 * 80) / 1.1),
    "up": Case("8 slots, after 60 s 64",
               {"latency_s": 1.0, "slots": 8, "queue": 4, "steps": ((60.0, 64),)}, 256, 240,
               lambda s: (8 * 60 + 64 * (s - 60)) / 1.1),
}  # fmt: skip


def run(server: Server, rule: Aimd, workers: int, seconds: float, seed: int) -> tuple[int, int]:
    """Return the captions and the refused requests of a run."""
    rand = random.Random(seed)
    order = itertools.count()
    events: list[tuple[float, int, str, list[int], bool, float, int]] = []
    idle = deque([0] for _ in range(workers))  # errors so far of each worker's record
    now = next_at = 0.0
    in_flight = held = done = refused = 0
    while True:
        while idle and in_flight + held < int(rule.limit):
            pace = rule.pace
            if pace < math.inf:
                if now < next_at - 1e-12:
                    rule.hold_back()
                    break
                next_at = max(next_at, now - max(0.02, 0.5 / pace)) + 1 / pace
            end, good = server.send(now)
            in_flight += 1
            heapq.heappush(events, (end, next(order), "end", idle.popleft(), good, now, rule.epoch))
        now = max(
            now,
            min(
                events[0][0] if events else math.inf,
                next_at if next_at > now and idle else math.inf,
            ),
        )
        if now > seconds:
            return done, refused
        while events and events[0][0] <= now:
            _, _, kind, errors, good, sent, epoch = heapq.heappop(events)
            if kind == "retry":
                idle.append(errors)
            elif kind == "free":
                held -= 1
            else:
                hold_s = rule.result(epoch, now - sent, in_flight, now, good=good)
                in_flight -= 1
                if good:
                    done += 1
                    idle.append([0])
                    continue
                refused += 1
                errors[0] += 1
                if hold_s > 0:
                    held += 1
                    heapq.heappush(events, (now + hold_s, next(order), "free", errors, False, 0, 0))
                pauses = errors[0] - (4 if rule.fails_by_chance else 0)
                pause_s = rand.uniform(0, min(8, 0.5 * 2 ** (pauses - 1))) if pauses > 0 else 0.0
                heapq.heappush(events, (now + pause_s, next(order), "retry", errors, False, 0, 0))


def main() -> None:
    print("| server | of the ideal, AIMD | refused | of the ideal, candidate | refused |")
    print("| :--- | ---: | ---: | ---: | ---: |")
    for name in sys.argv[1:] or CASES:
        case = CASES[name]
        cells = [case.about]
        for rule in (Aimd, Goodput):
            shares, lost = [], []
            for seed in SEEDS:
                server = Server(**case.server, seed=7 * seed)
                done, refused = run(server, rule(case.ceiling), case.ceiling, case.seconds, seed)
                shares.append(done / case.ideal(case.seconds))
                lost.append(refused / max(1, done + refused))
            mean = sum(shares) / len(shares)
            cells += [f"{mean:.2f} ({min(shares):.2f})", f"{sum(lost) / len(lost):.1%}"]
        print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
