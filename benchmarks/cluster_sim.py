"""Many workers against one endpoint, simulated: our limiters and our broker in virtual time.

A worker here is what an actor has of the engine: slots that ask a `Limiter` for permits, under
leases of the `RateBroker`. The endpoint is either one quota (60,000 requests a minute, half a
second a request) or a service that scales up: replicas of 32 requests at once and two seconds
each, one at first, half as many more every 15 s while they are busy, 200 at the most; it refuses
what it would have to queue for longer than two requests take.

usage: python benchmarks/cluster_sim.py [SECONDS]       default 240 simulated seconds; prints tables
       and writes cluster_sim.svg beside this file
"""

from __future__ import annotations

import asyncio
import random
import selectors
import sys
import time
from pathlib import Path

from captioner.endpoints.goodput import REFUSAL
from captioner.endpoints.limiter import Limiter
from captioner.executors.ray.rate_broker import RENEW_S, LeaseHolder, RateBroker

WORKERS = (1, 10, 100, 1_000)
SLOTS = 8_000
"""Requests in flight that all workers together may have."""

QUOTA = 60_000.0
HERE = Path(__file__).parent


class _NoWaiting(selectors.SelectSelector):
    """Does not wait: time goes on by as much as the loop would have waited.

    It goes on by a nanosecond at least, as a real clock does: a wait too short to change the time
    would be repeated for ever.
    """

    now = 0.0

    def select(self, timeout: float | None = None):
        self.now += max(timeout or 0.0, 1e-9)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time costs none."""

    def __init__(self) -> None:
        self._virtual = _NoWaiting()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


class QuotaEndpoint:
    """Grants so many requests a minute, from a bucket that begins full."""

    latency_s = 0.5

    def __init__(self) -> None:
        self.level, self.at = QUOTA, 0.0

    def take(self, now: float) -> float | None:
        """Return the seconds a request takes, None if it is refused."""
        self.level = min(QUOTA, self.level + (now - self.at) * QUOTA / 60)
        self.at = now
        if self.level < 1:
            return None
        self.level -= 1
        return self.latency_s

    def done(self) -> None:
        pass

    def grow(self) -> None:
        pass


class ScalingEndpoint:
    """Replicas that become more while they are busy."""

    each, service_s, most = 32, 2.0, 200

    def __init__(self) -> None:
        self.replicas, self.running, self.next = 1, 0, 15.0

    def take(self, _: float) -> float | None:
        capacity = self.replicas * self.each
        if self.running >= 3 * capacity:
            return None
        self.running += 1
        return self.service_s * max(1.0, self.running / capacity)

    def done(self) -> None:
        self.running -= 1

    def grow(self) -> None:
        if self.running > 0.8 * self.replicas * self.each:
            self.replicas = min(self.most, self.replicas + max(1, self.replicas // 2))

    @property
    def per_s(self) -> float:
        return self.replicas * self.each / self.service_s


class Tally:
    def __init__(self, seconds: int) -> None:
        self.done = [0] * (seconds + 1)
        self.refused = 0
        self.leases = 0
        self.capacity = [0.0] * (seconds + 1)


async def slot(limiter: Limiter, endpoint, tally: Tally, until: float) -> None:
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        epoch = await limiter.acquire()
        hold_s, began = 0.0, loop.time()
        try:
            takes = endpoint.take(began)
            if takes is None:
                tally.refused += 1
                hold_s = limiter.overloaded(epoch, 0.0, REFUSAL)
                limiter.pause(1.0)
            else:
                await asyncio.sleep(takes * random.uniform(0.8, 1.2))
                endpoint.done()
                limiter.succeeded(epoch, loop.time() - began)
                tally.done[min(len(tally.done) - 1, int(loop.time()))] += 1
        finally:
            limiter.release(hold_s)


async def worker(
    name: str, count: int, broker: RateBroker, rpm, endpoint, tally: Tally, until: float
):
    loop = asyncio.get_running_loop()
    await asyncio.sleep(random.random())  # actors do not start at the same moment
    limiter = Limiter(SLOTS, rpm=rpm)
    holder = LeaseHolder([limiter])
    holder.apply(broker.lease(name, holder.take_feedback()))
    # As many slots as it could ever have a lease for; those without a permit cost nothing.
    most = max(2, min(SLOTS, 2 * SLOTS // count))
    slots = [asyncio.create_task(slot(limiter, endpoint, tally, until)) for _ in range(most)]
    while loop.time() < until:
        await asyncio.sleep(RENEW_S)
        tally.leases += 1
        holder.apply(broker.lease(name, holder.take_feedback()))
    for task in slots:
        task.cancel()
    await asyncio.gather(*slots, return_exceptions=True)


async def simulate(count: int, endpoint, rpm: float | None, seconds: int) -> Tally:
    loop = asyncio.get_running_loop()
    broker = RateBroker(SLOTS, loop.time)
    tally = Tally(seconds)

    async def watch() -> None:
        while loop.time() < seconds:
            tally.capacity[int(loop.time())] = getattr(endpoint, "per_s", QUOTA / 60)
            if isinstance(endpoint, ScalingEndpoint) and loop.time() >= endpoint.next:
                endpoint.next += 15
                endpoint.grow()
            await asyncio.sleep(1)

    tasks = [
        worker(f"w{number}", count, broker, rpm, endpoint, tally, seconds)
        for number in range(count)
    ]
    await asyncio.gather(watch(), *tasks)
    return tally


def run(count: int, endpoint, rpm: float | None, seconds: int) -> tuple[Tally, float]:
    random.seed(1)
    began = time.process_time()
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        tally = runner.run(simulate(count, endpoint, rpm, seconds))
    return tally, time.process_time() - began


def lease_us() -> float:
    """Microseconds of one lease with 1,000 workers, each reporting four requests."""
    now = 0.0
    broker = RateBroker(SLOTS, lambda: now)
    from captioner.executors.ray.rate_broker import Feedback

    for number in range(1_000):
        broker.lease(f"w{number}", Feedback())
    began = time.perf_counter()
    for number in range(5_000):
        broker.lease(f"w{number % 1_000}", Feedback(good=4, in_flight=4))
    return (time.perf_counter() - began) / 5_000 * 1e6


def plot(path: Path, curves: dict[str, list[float]], seconds: int) -> None:
    """Write an SVG of captions a second over time."""
    width, height, left, bottom = 720, 400, 60, 40
    top = max(map(max, curves.values())) * 1.05
    colours = ["#999999", "#1b6ca8", "#2e8b57", "#c0504d", "#8064a2"]

    def xy(second: int, value: float) -> str:
        x = left + second / seconds * (width - left - 20)
        return f"{x:.1f},{height - bottom - value / top * (height - bottom - 20):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        "<style>text { font: 12px sans-serif }</style>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = xy(0, top / 1.05 * share).split(",")
        parts.append(
            f'<text x="{float(x) - 8}" y="{y}" text-anchor="end">{top / 1.05 * share:,.0f}</text>'
        )
        parts.append(f'<line x1="{x}" y1="{y}" x2="{width - 20}" y2="{y}" stroke="#dddddd"/>')
    for number, (name, values) in enumerate(curves.items()):
        smooth = [
            sum(values[max(0, n - 2) : n + 3]) / len(values[max(0, n - 2) : n + 3])
            for n in range(len(values) - 1)
        ]
        points = " ".join(xy(second, value) for second, value in enumerate(smooth))
        colour = colours[number % len(colours)]
        line = f'fill="none" stroke="{colour}" stroke-width="1.5"'
        parts.append(f'<polyline points="{points}" {line}/>')
        parts.append(f'<text x="{left + 12}" y="{30 + 16 * number}" fill="{colour}">{name}</text>')
    parts.append(
        f'<text x="{width / 2}" y="{height - 10}" text-anchor="middle">seconds</text></svg>'
    )
    path.write_text("\n".join(parts) + "\n")


def main() -> None:
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 240
    print("| workers, one quota | of the quota | refused | leases/s | CPU s to simulate |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for count in WORKERS:
        tally, cpu = run(count, QuotaEndpoint(), QUOTA, seconds)
        # From the second that the ramp takes on; the run's own bucket begins full.
        late = tally.done[seconds // 4 : seconds]
        used = sum(late) / len(late) / (QUOTA / 60)
        refused = tally.refused / (tally.refused + sum(tally.done))
        leases = tally.leases / seconds
        print(f"| {count:,} | {used:.2f} | {refused:.1%} | {leases:,.0f} | {cpu:.0f} |")
    print(
        "\n| workers, scaling service | of its capacity, last minute | captions/s then | refused |"
    )
    print("| ---: | ---: | ---: | ---: |")
    curves: dict[str, list[float]] = {}
    for count in WORKERS:
        tally, _ = run(count, ScalingEndpoint(), None, seconds)
        curves.setdefault("capacity, 1 worker", tally.capacity)
        curves[f"{count:,} workers"] = tally.done
        rate = sum(tally.done[-61:-1]) / 60
        capacity = sum(tally.capacity[-61:-1]) / 60
        refused = tally.refused / (tally.refused + sum(tally.done))
        print(f"| {count:,} | {rate / capacity:.2f} | {rate:,.0f} | {refused:.1%} |")
    plot(HERE / "cluster_sim.svg", curves, seconds)
    print(f"\none lease among 1,000 workers: {lease_us():.0f} us")


if __name__ == "__main__":
    main()
