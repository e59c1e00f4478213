"""What a run will take, compared with what it then takes."""

from __future__ import annotations

import io
import json
import random

import pytest
from conftest import jpeg
from endpoint import Reply, completion
from PIL import Image

from captioner import Settings, run_batch
from captioner.engine.estimate import estimate
from captioner.settings.model_sizes import rule_of


@pytest.fixture
def source(tmp_path):
    """60 records of all sizes, some equal, two that cannot be sent."""
    chance = random.Random(1)
    lines = []
    for number in range(60):
        size = chance.randrange(60, 1_400), chance.randrange(60, 900)
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number, size))
        prompt = "Describe it." + " And more." * chance.randrange(20)
        lines.append(json.dumps({"image": f"{number}.jpg", "prompt": prompt}))
    lines += lines[:5]  # equal requests are sent once
    lines += ['{"image": "no.jpg"}', "no JSON"]
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def bill(call) -> Reply:
    """A stub's bill: for images a tenth more than the rule says, 1.4 a word, 31 a request."""
    width, height = Image.open(io.BytesIO(call.images[0])).size
    words = len(" ".join(call.texts).split())
    prompt = 31 + round(1.1 * rule_of("gpt-4o").tokens(width, height) + 1.4 * words)
    usage = {"prompt_tokens": prompt, "completion_tokens": 40 + call.number % 21}
    return Reply(body={**completion(f"c{call.number}"), "usage": usage})


async def test_what_is_counted_is_what_a_run_then_sends(source, endpoint):
    """Requests, images and bad ones exactly; and nothing is written or sent."""
    before = sorted(source.parent.iterdir())
    found = await estimate(Settings.create(source, model="gpt-4o-mini"))
    assert (found.records, found.requests, found.images) == (67, 60, 60)
    assert found.bad == {"image_missing": 1, "bad_json": 1}
    assert found.cost > found.batch_cost > 0
    assert sorted(source.parent.iterdir()) == before
    report = await run_batch(source, base_url=endpoint.base_url, model="gpt-4o-mini")
    assert (report.calls, report.codes) == (found.requests, found.bad)
    sent = sum(len(json.dumps(call.body)) for call in endpoint.calls)
    assert found.upload_bytes == pytest.approx(sent, rel=0.02)


async def test_what_cannot_be_sent_is_counted_as_a_run_counts_it(endpoint, tmp_path):
    """Damaged images, those that only a decoder can judge, and several frames of one."""
    whole, animated = jpeg(1, (90, 60)), io.BytesIO()
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "green", "blue")]
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    images = {
        "no end mark": whole[:-2],
        "cut": whole[:-40],
        "headers only": whole[:200],
        "nonsense": b"nonsense",
        "animated": animated.getvalue(),
        "large": jpeg(2, (2_500, 100)),
        "cut behind the first frame": animated.getvalue()[:-30],
    }
    for name, data in images.items():
        (tmp_path / name).write_bytes(data)
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"image": name}) + "\n" for name in images))
    options = {"frames": "3", "model": "m"}
    found = await estimate(Settings.create(path, **options))
    assert found.bad == {"image_corrupt": 3, "image_unknown_type": 1}
    report = await run_batch(path, base_url=endpoint.base_url, **options)
    assert (report.calls, report.codes) == (found.requests, found.bad)
    assert found.images == sum(len(call.images) for call in endpoint.calls)
    sent = sum(len(json.dumps(call.body)) for call in endpoint.calls)
    assert found.upload_bytes == pytest.approx(sent, rel=0.02)


async def test_after_a_probe_the_bill_is_met_within_three_per_cent(source, endpoint, tmp_path):
    endpoint.behave = bill
    prices = tmp_path / "prices.toml"
    prices.write_text("[gpt-4o]\ninput = 1.0\noutput = 4.0\n")
    options = {"base_url": endpoint.base_url, "model": "gpt-4o", "prices": prices}
    found = await estimate(Settings.create(source, **options), probe=30)
    assert found.probed == endpoint.count == 30
    report = await run_batch(source, **options)
    assert found.prompt_tokens == pytest.approx(report.prompt_tokens, rel=0.03)
    assert found.cost == pytest.approx(report.cost, rel=0.03)


async def test_time_at_the_limits_that_are_known(source):
    found = await estimate(Settings.create(source, model="m", rpm=30))
    assert found.seconds == 120
    assert (await estimate(Settings.create(source, model="m"))).seconds is None


async def test_images_that_are_elsewhere_are_not_fetched(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"image": "https://example.invalid/{n}.jpg"}}\n' for n in range(3)))
    found = await estimate(Settings.create(path, model="gpt-4o"))
    assert (found.requests, found.unfetched, found.bad) == (3, 3, {})
    assert found.prompt_tokens > 3 * 700


def test_the_command(source, run_command):
    ended = run_command("estimate", source, "--model", "gpt-4o-mini", "--json", "--limit", 10)
    assert json.loads(ended.stdout)["records"] == 10
    ended = run_command(source, "--model", "gpt-4o-mini", "--dry-run")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "60 requests" in ended.stdout
    assert "2 records cannot be sent" in ended.stdout
    assert "cost: $0." in ended.stdout
    ended = run_command("estimate", source, "--model", "my/model")
    assert "no price is known for my/model" in ended.stdout
    assert run_command("estimate", source.parent / "no.jsonl").returncode == 2
