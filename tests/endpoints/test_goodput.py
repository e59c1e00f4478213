"""What the limiter gets out of servers, simulated in virtual time: no clock and no luck."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from captioner.endpoints.goodput import GoodputLimit

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from goodput_sim import CASES, Case, simulate


@pytest.mark.parametrize(
    ("name", "least", "most_refused"),
    [
        ("r35", 0.85, 0.37),
        ("r10", 0.85, 0.13),
        ("q600", 0.98, 0.035),
        ("q6000", 0.98, 0.03),
        ("q500", 0.98, 0.04),
        ("s32", 0.95, 0.05),
        ("s32x", 0.95, 0.05),
        ("s32r", 0.85, 0.40),
        ("cap2", 0.85, 0.40),
        ("step", 0.90, 0.05),
        ("up", 0.85, 0.08),
        ("serial", 0.95, 0.0),
        ("slow", 0.85, 0.10),
        ("outage", 0.90, 0.05),
        ("several", 0.90, 0.15),
        ("r429", 0.40, 0.13),
    ],
)
def test_what_a_server_can_give_is_got(name: str, least: float, most_refused: float) -> None:
    """Noise slows no run down; a quota, slots and a queue do, and few requests are refused."""
    case = CASES[name]
    (client,) = simulate(case, 3)
    assert client.done >= least * case.ideal(case.seconds)
    assert client.refused <= most_refused * (client.done + client.refused)


def test_two_runs_share_a_quota() -> None:
    """Neither of two runs on one key gets more than three fifths."""
    case = CASES["two"]
    clients = simulate(case, 4)
    done = sum(client.done for client in clients)
    assert done >= 0.95 * case.ideal(case.seconds)
    assert max(client.done for client in clients) <= 0.6 * done


def random_case(seed: int) -> tuple[Case, float]:
    """Return a server of some kind, and the captions a second that it gives for ever."""
    rand = random.Random(seed)
    latency_s = 10 ** rand.uniform(-1.5, 0.7)
    faults = rand.choice([0.0, 0.0, 0.02, 0.1, 0.3])
    server: dict[str, object] = {"latency_s": latency_s, "faults": faults}
    server["refusal"] = rand.choice([1.0, 2.0, 2.0])
    ceiling = rand.choice([4, 16, 64])
    rate = ceiling / latency_s / 1.1
    kind = rand.choice(["plain", "slots", "quota"])
    if kind == "slots":
        slots = server["slots"] = rand.randint(1, 32)
        server["queue"] = rand.randint(0, 32)
        rate = min(rate, slots / latency_s / 1.1)
    elif kind == "quota":
        per_minute = server["per_minute"] = 10 ** rand.uniform(2, 4)
        server["burst"] = 0.1
        rate = min(rate, per_minute / 60)
    seconds = max(200 * latency_s, 2_000 / rate, 60.0)
    return Case(kind, server, ceiling, seconds, lambda s: s * rate), rate * (1 - faults)


@pytest.mark.parametrize("seed", range(300))
def test_a_server_of_any_kind_is_used(seed: int) -> None:
    """No run stands still or sends more at once than allowed, and each finds the server's rate."""
    case, per_s = random_case(seed)
    done: list[int] = []  # after each second
    (client,) = simulate(case, seed, lambda client: done.append(client.done))
    seconds, half = len(done), len(done) // 2
    still = max(seconds // 4, 1)
    assert all(done[end] > done[end - still] for end in range(half, seconds))
    assert client.most <= case.ceiling
    assert client.done >= 0.6 * per_s * case.seconds
    assert done[-1] - done[half] >= 0.6 * per_s * (seconds - 1 - half)


@pytest.mark.parametrize("seed", range(30))
def test_endpoints_of_any_speed_are_all_used(seed: int) -> None:
    """Each of several endpoints gives what it can, however much they differ."""
    rand = random.Random(seed)
    servers = []
    per_s = 0.0
    for _ in range(rand.randint(2, 4)):
        slots, faults = rand.choice([4, 8, 16, 32]), rand.choice([0.0, 0.0, 0.2])
        latency_s = rand.uniform(0.5, 2.0)
        servers.append(
            {"latency_s": latency_s, "slots": slots, "queue": slots // 2, "faults": faults}
        )
        per_s += slots / latency_s / 1.1 * (1 - faults)
    case = Case("several", servers[0], 128, 120, lambda s: per_s * s, others=tuple(servers[1:]))
    (client,) = simulate(case, seed)
    assert client.done >= 0.65 * case.ideal(case.seconds)
    assert all(endpoint.most <= case.ceiling for endpoint in client.endpoints)


def test_the_load_grows_only_while_it_is_what_holds_us_back() -> None:
    """A run with few records does not talk itself into a hundred permits."""
    window = GoodputLimit(128, 20.0)
    for number in range(1_000):
        window.succeeded(window.epoch, 1.0, 3, number * 0.3)
    assert window.load == 20


def test_fewer_requests_without_an_error_are_no_noise() -> None:
    """A run does not go back to what was refused because few requests later all succeed."""
    window = GoodputLimit(64, 64.0)
    now = 0.0
    for number in range(2_000):
        now += 0.1 / window.load
        if window.load > 1 and number > 100:
            window.failed(window.epoch, 8, now, 2.0)
        else:
            window.succeeded(window.epoch, 0.1, 8, now)
    assert not window.is_noisy
    assert window.load < 8


def test_an_error_among_many_successes_changes_nothing() -> None:
    window = GoodputLimit(100, 100.0)
    for number in range(2_000):
        now = number / 100
        if number % 400 == 399:
            window.failed(window.epoch, 100, now)
        else:
            window.succeeded(window.epoch, 1.0, 100, now)
    assert window.load == 100


REFUSES = 60.0, 240.0


@pytest.mark.parametrize(
    ("ceiling", "latency_s", "timeout_s"), [(1, 1.0, 300.0), (2, 1.0, 300.0), (64, 125.0, 300.0)]
)
def test_what_refused_for_minutes_is_used_again(
    ceiling: int, latency_s: float, timeout_s: float
) -> None:
    """Few workers and slow replies leave the load as low as it fell only for a while."""
    end = 240.0 + 60 * latency_s
    server = {"latency_s": latency_s, "outages": (REFUSES,), "outage_says": 2.0}
    case = Case("refuses", server, ceiling, end, lambda s: s, timeout_s)
    (client,) = simulate(case, 3)
    assert client.limiter.window.load >= min(0.5 * ceiling, 10)


def test_an_outage_of_hours_ends() -> None:
    """Nothing but errors, at any load: no noise is learnt from that, and no division fails."""
    window = GoodputLimit(64, 8.0)
    now = 0.0
    for _ in range(200):
        now += 1.0
        window.succeeded(window.epoch, 0.5, 8, now)
    for _ in range(20_000):
        now += 1.0
        window.failed(window.epoch, 8, now)
    window.recovered(now)
    assert window.noise <= 0.5
    assert window.gap_s <= 10


def test_requests_are_never_more_than_ten_seconds_apart() -> None:
    """A load that was learnt from quick replies fits slow ones, too."""
    window = GoodputLimit(64, 8.0)
    now = 0.0
    for number in range(400):
        now += 0.05
        if number % 10:
            window.failed(window.epoch, 8, now, 2.0)
        else:
            window.succeeded(window.epoch, 0.05, 8, now)
    for _ in range(200):
        now += 20.0
        window.succeeded(window.epoch, 20.0, 1, now)
        assert window.gap_s <= 10
