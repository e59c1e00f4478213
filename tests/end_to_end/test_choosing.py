"""Which records a run takes: --where, --sample and --limit."""

from __future__ import annotations

import json

import pytest
from conftest import jpeg, rows

from captioner import Settings, run_batch
from captioner.core.errors import SettingsError
from captioner.core.where import LONGEST, Where
from captioner.engine.estimate import estimate


@pytest.fixture
def photos(tmp_path):
    for number in range(40):
        path = tmp_path / "photos" / ("cats" if number % 4 else "dogs") / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number, (32, 32) if number < 30 else (320, 320)))
    return tmp_path / "photos"


@pytest.fixture
def run(photos, endpoint, tmp_path):
    async def caption(**options):
        output = tmp_path / options.pop("name", "out.jsonl")
        known = {"base_url": endpoint.base_url, "model": "m"}
        report = await run_batch(options.pop("source", photos), output, **known, **options)
        return report, [row["image"] for row in rows(output)]

    return caption


async def test_a_sample_is_the_same_each_time_and_is_continued(run, endpoint):
    """It comes from the whole input; the full run pays for the others only, and orders all."""
    first, names = await run(sample=8)
    assert (first.captioned, first.complete, first.orphans) == (8, True, 0)
    assert names == sorted(names)
    numbers = [int(name[-6:-4]) for name in names]
    assert min(numbers) < 20 < max(numbers)
    assert (await run(sample=8))[0].calls == 0
    assert (await run(sample=8, name="b.jsonl"))[1] == names
    assert (await run(sample=8, seed=1, name="c.jsonl"))[1] != names
    sent = endpoint.count
    whole, every = await run()
    assert (whole.captioned, whole.resumed, endpoint.count - sent) == (32, 8, 32)
    assert every == sorted(every)
    part, still = await run(sample=3)  # and back: what is done is no orphan
    assert (part.orphans, still) == (0, every)


async def test_a_growing_sample_pays_for_what_is_new(run, endpoint):
    """A larger sample contains the smaller one."""
    await run(sample=5)
    report, names = await run(sample=12)
    assert (report.resumed, report.captioned, len(names)) == (5, 7, 12)


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("folder == 'dogs'", 10),
        ("like(file, '0*') and folder == 'cats'", 7),
        ("size > 1500", 10),
        ("endswith(image, '39.jpg')", 1),
        ("width > 10 or file in ['01.jpg', '02.jpg']", 2),
    ],
)
async def test_where_counts_alike_in_estimate_and_run(run, photos, endpoint, where, count):
    found = await estimate(Settings.create(photos, model="m", where=where))
    report, names = await run(where=where)
    assert (found.records, report.captioned, len(names)) == (count, count, count)


async def test_where_over_the_fields_of_a_table(run, tmp_path, endpoint):
    """Fields of other types, and those that records lack, make a comparison false."""
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    values = [3, "3", None, [1], {"w": 9}, 2.5, True]
    lines = [{"image": "a.jpg", "n": number, "v": value} for number, value in enumerate(values)]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f"{json.dumps(line)}\n" for line in [*lines, {"image": "a.jpg"}]))
    for name, where, wanted in (
        ("a", "v > 2", [0, 5]),
        ("b", "v['w'] == 9", [4]),
        ("c", "1 in v", [3]),
        ("d", "v is None and n is not None", [2]),
        ("e", "v * 2 == 6", [0]),
    ):
        await run(source=source, name=f"{name}.jsonl", where=where)
        assert [row["n"] for row in rows(tmp_path / f"{name}.jsonl")] == wanted, where


async def test_where_that_is_true_for_nothing_says_why(run, endpoint):
    """A misspelt name does not pass for an empty input."""
    with pytest.raises(SettingsError, match=r"no record.*no record has a field widht"):
        await run(where="widht > 5")
    assert endpoint.count == 0


@pytest.mark.parametrize(
    "text",
    [
        "().__class__",
        "a.b",
        "__import__('os')",
        "open('x')",
        "9 ** 9",
        "[x for x in a]",
        "lambda: 1",
        "f'{a}'",
        "'%9999999d' % 1",
        "a = 1",
        "(a := 1)",
        "a[1:2]",
        "1; 2",
        "",
        "(" * 3_000,
        "-" * 3_000 + "1",
        "a" * (LONGEST + 1),
        " or ".join(["a"] * 500),
        "len()",
        "like(a)",
        "len(*a)",
    ],
    ids=lambda text: text[:12] or "empty",
)
def test_expressions_are_only_expressions(text):
    """Attributes, powers, comprehensions, unknown functions and endless texts are refused."""
    with pytest.raises(SettingsError, match="where: "):
        Where(text, "where")


def test_values_that_grow_do_not():
    """Sums and products are of numbers of 64 bits only."""
    huge = {"a": "x" * 1_000, "n": 10**18, "f": 1e308}
    assert not Where("a * 1000000 == 1 or a + a == 1", "where")(huge, {})
    assert not Where("n * n * n > 0", "where")(huge, {})
    assert not Where("1 / 0 > 0 or f * f > 0", "where")(huge, {})
