"""How much the limiter gets out of an endpoint: simulated servers, in virtual time.

The limiter is captioner's, with its timers; only the clock is simulated. Workers retry a failed
record after the pauses of captioner. Each server has an ideal, the captions that it could give. The
table has the share of it that is reached, mean and least of five runs, and the share of requests
that were refused, failed or given up.

usage: python benchmarks/goodput_sim.py [CASE ...]     default all; some minutes; prints a table
       python benchmarks/goodput_sim.py --plot         writes captioner/docs/images/load.svg
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cluster_sim import VirtualLoop, plot

from captioner.endpoints.circuit_breaker import FAULTS_TO_OPEN, CircuitBreaker
from captioner.endpoints.goodput import GIVEN_UP, REFUSAL
from captioner.endpoints.limiter import Limiter, start_of
from captioner.endpoints.pool import EndpointPool

SEEDS = range(2, 7)
REFUSED_S = 0.005
AT_ONCE = 4


@dataclass
class Server:
    """A server with a latency, and faults by chance, a quota, or slots with a queue.

    Attributes:
        fault_says: What a fault by chance says; see `refusal`.
        refusal: What a refusal says: `REFUSAL` as a 429 does, 1 as a plain 500.
        steps: Other numbers of slots, each from a second on.
        outages: Seconds from and until which every request fails at once.
        outage_says: What these failures say; see `refusal`.
        refuses_first: Refuses the first request of each record.
    """

    latency_s: float
    faults: float = 0.0
    fault_says: float = 1.0
    per_minute: float = 0.0
    burst: float = 1.0  # minutes
    slots: int = 0
    queue: int = 0
    refusal: float = REFUSAL
    steps: tuple[tuple[float, int], ...] = ()
    outages: tuple[tuple[float, float], ...] = ()
    outage_says: float = 1.0
    refuses_first: bool = False
    seed: int = 0
    ends: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.level, self.at = self.per_minute * self.burst, 0.0

    def send(self, now: float, *, first: bool = False) -> tuple[float, float]:
        """Return how long a request takes and its error's weight, 0 if it succeeds.

        Args:
            now: Seconds since the beginning.
            first: It is the record's first request.
        """
        if any(since <= now < until for since, until in self.outages):
            return REFUSED_S, self.outage_says
        if first and self.refuses_first:
            return REFUSED_S, self.refusal
        if self.per_minute:
            self.level += (now - self.at) * self.per_minute / 60
            self.level, self.at = min(self.per_minute * self.burst, self.level), now
            if self.level < 1:
                return REFUSED_S, self.refusal
            self.level -= 1
        error = self.fault_says * (self.random.random() < self.faults)
        begin = now
        if self.slots:
            slots = [count for since, count in self.steps if since <= now][-1:] or [self.slots]
            while self.ends and self.ends[0] <= now:
                heapq.heappop(self.ends)
            if len(self.ends) >= slots[0] + self.queue:
                return REFUSED_S, self.refusal
            if len(self.ends) >= slots[0]:
                begin = sorted(self.ends)[len(self.ends) - slots[0]]
        end = begin + self.latency_s * self.random.uniform(0.7, 1.5)
        if self.slots:
            heapq.heappush(self.ends, end)
        return end - now, error


class Endpoint:
    """A server behind captioner's limiter, as `EndpointPool` sees it."""

    def __init__(self, server: Server, ceiling: int, timeout_s: float) -> None:
        self.limiter = Limiter(ceiling, start=start_of(ceiling), longest_s=timeout_s)
        self.breaker = CircuitBreaker("simulated", max_outage_s=None)  # stays closed
        self.refused = self.most = 0
        self._server = server
        self._timeout_s = timeout_s
        self._in_row = 0  # errors

    @property
    def load(self) -> tuple[float, float]:
        return self.limiter.backlog_s(0.0), self.limiter.load

    async def send(self, *, first: bool) -> float:
        """Send one request; return its error's weight, 0 if it succeeds."""
        limiter, loop = self.limiter, asyncio.get_running_loop()
        epoch = await limiter.acquire()
        self.most = max(self.most, limiter.in_flight)
        takes, weight = self._server.send(loop.time(), first=first)
        if takes > self._timeout_s:
            takes, weight = self._timeout_s, GIVEN_UP
        await asyncio.sleep(takes)
        if weight:
            self.refused += 1
            self._in_row = 0 if weight == REFUSAL else self._in_row + 1
            limiter.release(limiter.overloaded(epoch, takes, weight))
        else:
            limiter.succeeded(epoch, takes)
            if self._in_row >= FAULTS_TO_OPEN:  # the circuit breaker would have opened
                limiter.recovered()
            self._in_row = 0
            limiter.release()
        return weight


class Client:
    """A run that never ends: workers that caption one record after the other."""

    def __init__(self, servers: list[Server], ceiling: int, *, timeout_s: float, seed: int) -> None:
        self.endpoints = [Endpoint(server, ceiling, timeout_s) for server in servers]
        self.done = 0
        self._pool = EndpointPool(self.endpoints)
        self._random = random.Random(seed)
        self._workers = ceiling

    @property
    def limiter(self) -> Limiter:
        return self.endpoints[0].limiter

    @property
    def most(self) -> int:
        return max(endpoint.most for endpoint in self.endpoints)

    @property
    def refused(self) -> int:
        return sum(endpoint.refused for endpoint in self.endpoints)

    async def run(self) -> None:
        await asyncio.gather(*(self._work() for _ in range(self._workers)))

    async def _work(self) -> None:
        while True:
            at_once = pauses = 0
            while True:
                endpoint = self._pool.choose()
                weight = await endpoint.send(first=at_once + pauses == 0)
                if not weight:
                    break
                is_chance = endpoint.limiter.window.is_noisy and weight != REFUSAL
                if is_chance and at_once < AT_ONCE:
                    at_once += 1
                else:
                    await asyncio.sleep(self._random.uniform(0, min(8, 0.5 * 2**pauses)))
                    pauses += 1
            self.done += 1


class Case(NamedTuple):
    about: str
    server: dict[str, Any]
    ceiling: int
    seconds: float
    ideal: Callable[[float], float]  # captions in that many seconds
    timeout_s: float = math.inf
    clients: int = 1
    others: tuple[dict[str, Any], ...] = ()  # more servers, one endpoint each


STEPS = ((80.0, 16), (160.0, 32))
SLOTS = {"latency_s": 1.0, "slots": 32, "queue": 16}
CASES = {
    "r35": Case("35 % faults, 50 ms", {"latency_s": 0.05, "faults": 0.35}, 64, 25,
                lambda s: 64 / 0.055 * 0.65 * s),
    "r10": Case("10 % faults, 2 s", {"latency_s": 2.0, "faults": 0.1}, 64, 240,
                lambda s: 64 / 2.2 * 0.9 * s),
    "q600": Case("600 a minute, 100 ms", {"latency_s": 0.1, "per_minute": 600.0}, 64, 240,
                 lambda s: 600 + 10 * s),
    "q6000": Case("6,000 a minute, 1 s", {"latency_s": 1.0, "per_minute": 6_000.0}, 256, 240,
                  lambda s: min(6_000 + 100 * s, 256 / 1.1 * s)),
    "q500": Case("6,000 a minute, said by 500s",
                 {"latency_s": 1.0, "per_minute": 6_000.0, "refusal": 1.0}, 256, 240,
                 lambda s: min(6_000 + 100 * s, 256 / 1.1 * s)),
    "s32": Case("32 slots, queue of 16", SLOTS, 256, 240, lambda s: 32 / 1.1 * s),
    "s32x": Case("the same, said by 500s", SLOTS | {"refusal": 1.0}, 256, 240,
                 lambda s: 32 / 1.1 * s),
    "s32r": Case("the same with 429s, 20 % faults", SLOTS | {"faults": 0.2}, 256, 240,
                 lambda s: 32 / 1.1 * 0.8 * s),
    "cap2": Case("2 slots, no queue", {"latency_s": 1.0, "slots": 2}, 64, 240,
                 lambda s: 2 / 1.1 * s),
    "step": Case("32 slots, then 16, then 32", SLOTS | {"steps": STEPS}, 256, 240,
                 lambda s: (32 * (s - 80) + 16 * 80) / 1.1),
    "up": Case("8 slots, after 60 s 64",
               {"latency_s": 1.0, "slots": 8, "queue": 4, "steps": ((60.0, 64),)}, 256, 240,
               lambda s: (8 * 60 + 64 * (s - 60)) / 1.1),
    "serial": Case("1 slot of 1 s, endless queue, time-out 20 s",
                   {"latency_s": 1.0, "slots": 1, "queue": 10**6}, 64, 240,
                   lambda s: s / 1.1, 20.0),
    "slow": Case("8 slots of 40 s, queue of 4", {"latency_s": 40.0, "slots": 8, "queue": 4}, 64,
                 3_600, lambda s: 8 / 44 * s, 300.0),
    "outage": Case("32 slots, an outage of 60 s", SLOTS | {"outages": ((60.0, 120.0),)}, 256, 240,
                   lambda s: 32 / 1.1 * (s - 60)),
    "first": Case("200 ms, 429 for each record's first request",
                  {"latency_s": 0.2, "refuses_first": True}, 64, 240,
                  lambda s: 64 / (0.22 + 0.25) * s),  # a worker pauses for 0.25 s
    "r429": Case("10 % 429s by chance, 2 s", {"latency_s": 2.0, "faults": 0.1,
                 "fault_says": REFUSAL}, 64, 240, lambda s: 64 / 2.2 * 0.9 * s),
    "several": Case("three endpoints of 32, 16 and 8 slots, one with 20 % faults", SLOTS, 256, 240,
                    lambda s: (32 + 16 * 0.8 + 8) / 1.1 * s,
                    others=({"latency_s": 1.0, "slots": 16, "queue": 8, "faults": 0.2},
                            {"latency_s": 1.0, "slots": 8, "queue": 4})),
    "two": Case("6,000 a minute, two runs", {"latency_s": 1.0, "per_minute": 6_000.0}, 256, 480,
                lambda s: min(6_000 + 100 * s, 256 / 1.1 * s), clients=2),
}  # fmt: skip


def simulate(case: Case, seed: int, each_s: Callable[[Client], None] | None = None) -> list[Client]:
    """Run a case; return its clients. Show the first one to a function each second."""
    servers = [
        Server(**server, seed=7 * seed + number)
        for number, server in enumerate((case.server, *case.others))
    ]

    async def main() -> list[Client]:
        clients = [
            Client(servers, case.ceiling, timeout_s=case.timeout_s, seed=seed + number)
            for number in range(case.clients)
        ]
        tasks = [asyncio.create_task(client.run()) for client in clients]
        if each_s is None:
            await asyncio.sleep(case.seconds)
        else:
            for _ in range(int(case.seconds)):
                await asyncio.sleep(1)
                each_s(clients[0])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return clients

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


def plot_loads() -> None:
    """Write how the load of three servers goes on."""
    curves: dict[str, list[float]] = {}
    for name in ("r10", "q6000", "step"):
        loads = curves[CASES[name].about] = []
        simulate(
            CASES[name], 4, lambda client, loads=loads: loads.append(client.limiter.window.load)
        )
    plot(Path(__file__).parents[1] / "captioner/docs/images/load.svg", curves, 240)


def main() -> None:
    if sys.argv[1:] == ["--plot"]:
        plot_loads()
        return
    print("| server | of the ideal | least | refused or failed | parts |")
    print("| :--- | ---: | ---: | ---: | ---: |")
    for name in sys.argv[1:] or CASES:
        case = CASES[name]
        shares, lost, parts = [], [], []
        for seed in SEEDS:
            clients = simulate(case, seed)
            done = sum(client.done for client in clients)
            refused = sum(client.refused for client in clients)
            shares.append(done / case.ideal(case.seconds))
            lost.append(refused / max(1, done + refused))
            parts.append(max(client.done for client in clients) / done)
        mean = sum(shares) / len(shares)
        part = f"{max(parts):.0%}" if case.clients > 1 else ""
        share = sum(lost) / len(lost)
        print(
            f"| {case.about} | {mean:.2f} | {min(shares):.2f} | {share:.1%} | {part} |", flush=True
        )


if __name__ == "__main__":
    main()
