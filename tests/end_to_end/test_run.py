"""The main job over real HTTP: what is sent, what is written, what a second run does."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest
from aiohttp import web
from conftest import command, jpeg, rows
from endpoint import Call, FakeEndpoint, Reply, completion, start_and
from PIL import Image
from waiting import LIMIT_S

from captioner import (
    EndpointGaveOutError,
    OutputDamagedError,
    SettingsError,
    run_batch,
)
from captioner.core.cancellation import CancelToken
from captioner.endpoints.blame import STOP_LATER

ASK = "Generate detailed captions based on image content."


@pytest.fixture
def image_files(tmp_path: Path) -> list[bytes]:
    """Three images, 0.jpg to 2.jpg, beside the input."""
    made = [jpeg(number) for number in range(3)]
    for number, data in enumerate(made):
        (tmp_path / f"{number}.jpg").write_bytes(data)
    return made


def write(path: Path, *records: object) -> Path:
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return path


def in_order(endpoint: FakeEndpoint) -> list[Call]:
    """The calls by the digit that each test puts at the end of its question."""
    return sorted(endpoint.calls, key=lambda call: call.texts[-1][-1])


async def test_every_spelling_of_a_record_is_sent_with_its_image(
    tmp_path, image_files, endpoint
) -> None:
    """Whatever way a record names its image and its question, the model gets both."""
    encoded = base64.b64encode(image_files[0]).decode()
    source = write(
        tmp_path / "in.jsonl",
        {"image": ["./0.jpg"], "conversation": [{"from": "human", "value": f"{ASK} 0"}]},
        {"image": "0.jpg", "conversations": [{"role": "user", "content": "1"}]},
        {"image": {"path": "0.jpg"}, "messages": [{"role": "user", "content": "2"}]},
        {"image": {"bytes": encoded}, "prompt": "3"},
        {"image": f"data:image/jpeg;base64,{encoded}", "prompt": "4"},
        {
            "image": str(tmp_path / "0.jpg"),
            "conversation": [{"from": "system", "value": "S"}, {"role": "user", "content": "5"}],
        },
        {
            "image": "0.jpg",
            "conversation": [
                {"from": "human", "value": "6"},
                {"from": "gpt", "value": "an old answer"},
            ],
        },
        {"image": "0.jpg", "conversation": [{"role": "developer", "content": "D"}], "prompt": "7"},
    )
    report = await run_batch(source, base_url=endpoint.base_url, model="m")
    assert (report.captioned, report.failed) == (8, 0)
    calls = in_order(endpoint)
    assert [call.images for call in calls] == [[image_files[0]]] * 8
    assert [call.texts[-1][-1] for call in calls] == list("01234567")
    roles = [[message["role"] for message in call.body["messages"]] for call in calls]
    assert roles == [["system", "user"]] * 8
    assert [calls[5].body["messages"][0]["content"], calls[7].body["messages"][0]["content"]] == [
        "S",
        "D",
    ]


async def test_a_url_is_passed_to_the_endpoint_as_it_is(tmp_path, endpoint) -> None:
    """An http(s) image is named to the model, not lost."""
    url = "https://example.org/a%20b.jpg?x=1"
    source = write(tmp_path / "in.jsonl", {"image": url}, {"image": {"url": url}, "prompt": "p"})
    await run_batch(source, base_url=endpoint.base_url, model="m", pass_urls=True)
    assert [call.urls for call in endpoint.calls] == [[url], [url]]


async def test_several_images_go_in_order_each_its_own_part(
    tmp_path, image_files, endpoint
) -> None:
    """Placeholders say where images go; the last user turn gets the others, in order."""
    source = write(
        tmp_path / "in.jsonl",
        {"image": ["2.jpg", "0.jpg", "1.jpg"], "prompt": "all 0"},
        {
            "image": ["1.jpg", "0.jpg"],
            "conversation": [{"from": "human", "value": "first <image> then <image> why 1"}],
        },
        {
            "image": ["0.jpg", "1.jpg"],
            "messages": [
                {"role": "user", "content": "<image>\nwhat"},
                {"role": "assistant", "content": "a cat"},
                {"role": "user", "content": "and here 2"},
            ],
        },
    )
    await run_batch(source, base_url=endpoint.base_url, model="m")
    first, second, third = in_order(endpoint)
    assert first.images == [image_files[2], image_files[0], image_files[1]]
    parts = second.body["messages"][-1]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "text", "image_url", "text"]
    assert second.images == [image_files[1], image_files[0]]
    shapes = [
        message["content"] if isinstance(message["content"], str) else len(message["content"])
        for message in third.body["messages"][1:]
    ]
    assert shapes == [2, "a cat", 2]
    assert third.images == [image_files[0], image_files[1]]


async def test_a_record_comes_back_as_it_was_with_a_caption(
    tmp_path, image_files, endpoint
) -> None:
    """Key order, big integers, floats, escapes and unicode survive; only the caption is new."""
    lines = [
        '{"z":1,  "image":"0.jpg","id":123456789012345678901234567890,"f":1.10,"e":1E+5}',
        '{"image":"1.jpg","text":"caf\\u00e9 \\ud83d\\ude00 Ω","a":[1, {"caption":"inner"}]}',
        '{"caption":"old","image":"2.jpg","n":null}',
        '{"image":"2.jpg","caption":null}  ',
    ]
    source = write(tmp_path / "in.jsonl", *lines)
    await run_batch(source, base_url=endpoint.base_url, model="m", existing="replace")
    written = (tmp_path / "in.captions.jsonl").read_text("utf-8").splitlines()
    captions = [json.dumps(json.loads(line)["caption"], ensure_ascii=False) for line in written]
    assert all("[" in caption for caption in captions)
    assert written == [
        lines[0][:-1] + f',"caption":{captions[0]}}}',
        lines[1][:-1] + f',"caption":{captions[1]}}}',
        lines[2].replace('"old"', captions[2]),
        lines[3].strip().replace(":null}", f":{captions[3]}}}"),
    ]


async def test_output_is_in_input_order_unless_told_otherwise(make_input, endpoint) -> None:
    """Slow captions do not change the order of the finished output."""
    endpoint.behave = lambda call: Reply(delay_s=0.3 if call.texts[-1] == "q0" else 0)
    source = make_input(20)
    await run_batch(source, base_url=endpoint.base_url, model="m")
    assert [row["id"] for row in rows(source.with_name("input.captions.jsonl"))] == list(range(20))
    other = source.with_name("other.jsonl")
    await run_batch(source, other, base_url=endpoint.base_url, model="m", order="completion")
    assert [row["id"] for row in rows(other)][-1] == 0


async def test_the_output_can_be_read_while_it_grows(make_input, endpoint) -> None:
    """`tail -f` sees captions long before the run ends."""
    source = make_input(3)
    endpoint.on_request[3] = lambda: setattr(endpoint, "hold", True)
    task = asyncio.create_task(
        run_batch(source, base_url=endpoint.base_url, model="m", concurrency=1)
    )
    output = source.with_name("input.captions.jsonl")
    # The third request is in: until then `hold` is not yet set, and would be set for ever.
    while not (endpoint.hold and output.exists() and len(rows(output)) == 2):
        assert not task.done()
        await asyncio.sleep(0.005)
    endpoint.hold = False
    await task


async def test_a_json_array_is_read_and_written_as_one(tmp_path, image_files, endpoint) -> None:
    """A .json file with one array comes back as one array, in input order."""
    records = [{"id": n, "image": f"{n}.jpg", "prompt": str(n)} for n in range(3)]
    source = tmp_path / "in.json"
    source.write_text(json.dumps(records, indent=2))
    target = tmp_path / "out.json"
    endpoint.behave = lambda call: Reply(delay_s=0.2 if call.texts[-1] == "0" else 0)
    report = await run_batch(source, target, base_url=endpoint.base_url, model="m")
    got = json.loads(target.read_text())
    assert [{k: v for k, v in row.items() if k != "caption"} for row in got] == records
    assert [row["caption"][0] for row in got] == ["0", "1", "2"]
    assert report.output == str(target)
    before = target.read_bytes()
    again = await run_batch(source, target, base_url=endpoint.base_url, model="m")
    assert (again.captioned, again.resumed, endpoint.count) == (0, 3, 3)
    assert target.read_bytes() == before


async def test_bad_records_fail_plainly_and_the_rest_is_captioned(
    tmp_path, image_files, endpoint
) -> None:
    """Each kind of bad record is one line in the failures file, with the record in it."""
    (tmp_path / "broken.jpg").write_bytes(image_files[0][:-40])
    good = {"image": "0.jpg"}
    bad = [
        {"image": "nowhere.jpg"},
        {"image": "broken.jpg"},
        '{"image": "0.jpg", }',
        {"image": "0.jpg", "conversation": [{"from": "alien", "value": "?"}]},
        {"prompt": "no image"},
        {"image": "0.jpg", "conversation": [{"from": "human", "value": "<image><image>"}]},
        "[1, 2]",
    ]
    source = write(tmp_path / "in.jsonl", good, *bad, {"image": "1.jpg"})
    report = await run_batch(source, base_url=endpoint.base_url, model="m")
    assert (report.captioned, report.failed) == (2, 7)
    failures = sorted(rows(tmp_path / "in.captions.failed.jsonl"), key=lambda row: row["line"])
    assert [list(row) for row in failures] == [
        ["line", "key", "code", "message", "attempts", "record"]
    ] * 7
    assert [row["line"] for row in failures] == [2, 3, 4, 5, 6, 7, 8]
    assert [row["code"] for row in failures] == [
        "image_missing",
        "image_corrupt",
        "bad_json",
        "unknown_role",
        "no_image",
        "image_count",
        "bad_record",
    ]
    assert [row["record"] for row in failures] == [
        r if isinstance(r, dict) else (json.loads(r) if r == "[1, 2]" else r) for r in bad
    ]
    assert "nowhere.jpg" in failures[0]["message"]
    assert endpoint.count == 2


async def test_an_error_is_never_written_as_a_caption(make_input, endpoint) -> None:
    """Whatever the endpoint says instead of a caption, the output holds captions only."""
    replies = [
        Reply(400, {"error": {"message": "bad image"}}),
        Reply(200, {"error": {"message": "no", "code": 400}}),
        Reply(200, b"<html>busy</html>"),
        Reply(200, completion("")),
        Reply(200, completion(None)),
        Reply(200, completion("half a sen", finish_reason="length")),
        Reply(200, completion(None, finish_reason="content_filter")),
        Reply(200, {"choices": None}),
        Reply(200, b""),
        Reply(422, {"detail": [{"loc": ["body"], "msg": "nope"}]}),
    ]
    endpoint.behave = lambda call: (
        replies[int(call.texts[-1][1:])] if call.texts[-1] != "q10" else None
    )
    source = make_input(11)
    report = await run_batch(source, base_url=endpoint.base_url, model="m", max_attempts=1)
    assert (report.captioned, report.failed) == (1, 10)
    assert [row["id"] for row in rows(Path(report.output))] == [10]


async def test_passing_trouble_is_retried_until_it_passes(make_input, endpoint) -> None:
    """Rate limits, 5xx, resets and torn replies delay captions and fail nothing."""
    faults = [
        Reply(429, {"error": {"message": "slow"}}, {"Retry-After": "0.05"}),
        Reply(500, b"oops"),
        Reply(503, b""),
        Reply(fault="reset"),
        Reply(fault="truncate"),
        Reply(200, b"<html>"),
    ]
    seen: set[str] = set()

    def first_time_trouble(call: Call) -> Reply | None:
        if call.identity in seen:
            return None
        seen.add(call.identity)
        return faults[int(call.texts[-1][1:]) % len(faults)]

    endpoint.behave = first_time_trouble
    source = make_input(24)
    report = await run_batch(source, base_url=endpoint.base_url, model="m")
    assert (report.captioned, report.failed, report.retries) == (24, 0, 24)
    assert set(endpoint.answered.values()) == {1}


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(401, {"error": {"message": "bad key"}}), EndpointGaveOutError),
        (Reply(404, {"error": {"message": "no such model"}}), EndpointGaveOutError),
        (
            Reply(429, {"error": {"message": "pay", "code": "insufficient_quota"}}),
            EndpointGaveOutError,
        ),
    ],
)
async def test_a_hopeless_endpoint_stops_the_run_and_keeps_what_is_done(
    make_input, endpoint, reply, error, short_pauses
) -> None:
    """A wrong key or an empty account ends the run soon; what was paid for is saved."""
    source = make_input(200)
    endpoint.behave = lambda call: reply if call.number > 20 else None
    with pytest.raises(error) as caught:
        await run_batch(source, base_url=endpoint.base_url, model="m", concurrency=4)
    assert endpoint.count <= 20 + STOP_LATER + 4
    report = caught.value.report
    assert report.captioned == len(rows(Path(report.output))) == 20
    assert not source.with_name("input.captions.failed.jsonl").exists()
    endpoint.behave = lambda _: None
    again = await run_batch(source, base_url=endpoint.base_url, model="m")
    assert (again.captioned, again.resumed) == (180, 20)
    assert endpoint.given == 200


async def test_running_again_does_only_what_is_left(make_input, endpoint) -> None:
    """A finished run calls nothing again and leaves the output as it is, byte for byte."""
    source = make_input(10)
    first = await run_batch(source, base_url=endpoint.base_url, model="m")
    before = Path(first.output).read_bytes()
    again = await run_batch(source, base_url=endpoint.base_url, model="m")
    assert (again.captioned, again.resumed, again.complete) == (0, 10, True)
    assert endpoint.count == 10
    assert Path(first.output).read_bytes() == before


async def test_failures_are_retried_only_when_asked_for(make_input, endpoint) -> None:
    """--retry failed tries all, --retry CODE some; what then succeeds leaves the file."""
    source = make_input(6)
    bad = Reply(400, {"error": {"message": "bad"}})
    filtered = Reply(200, completion(None, finish_reason="content_filter"))
    endpoint.behave = lambda call: {"q1": bad, "q2": filtered, "q3": bad}.get(call.texts[-1])
    first = await run_batch(source, base_url=endpoint.base_url, model="m")
    assert (first.captioned, first.failed) == (3, 3)
    quiet = await run_batch(source, base_url=endpoint.base_url, model="m")
    assert (quiet.calls, quiet.failed) == (0, 3)
    endpoint.behave = lambda call: {"q3": bad}.get(call.texts[-1])
    some = await run_batch(source, base_url=endpoint.base_url, model="m", retry_failed="http_400")
    assert (some.calls, some.captioned, some.failed) == (2, 1, 2)
    failures = rows(Path(first.failures))
    assert sorted((row["line"], row["code"]) for row in failures) == [
        (3, "filtered"),
        (4, "http_400"),
    ]
    endpoint.behave = lambda _: None
    last = await run_batch(source, base_url=endpoint.base_url, model="m", retry_failed="all")
    assert (last.captioned, last.failed) == (2, 0)
    assert not Path(first.failures).exists()
    assert [row["id"] for row in rows(Path(first.output))] == list(range(6))


async def test_a_changed_prompt_or_model_is_not_mixed_in_silently(make_input, endpoint) -> None:
    """A run refuses to go on with other settings and names what changed."""
    source = make_input(4)
    await run_batch(source, base_url=endpoint.base_url, model="m", limit=2)
    with pytest.raises(SettingsError, match=r"model was 'm', now 'other'.*--accept-changes"):
        await run_batch(source, base_url=endpoint.base_url, model="other")
    assert endpoint.count == 2
    report = await run_batch(source, base_url=endpoint.base_url, model="other", accept_changes=True)
    assert (report.captioned, report.resumed) == (2, 2)
    with pytest.raises(SettingsError, match="output-field"):
        await run_batch(
            source,
            base_url=endpoint.base_url,
            model="other",
            output_field="text",
            accept_changes=True,
        )


async def test_a_damaged_output_is_left_alone(make_input, endpoint) -> None:
    """A byte changed below what was safely written stops the run before anything is written."""
    source = make_input(5)
    report = await run_batch(source, base_url=endpoint.base_url, model="m")
    output = Path(report.output)
    data = bytearray(output.read_bytes())
    data[10] ^= 1
    output.write_bytes(data)
    with pytest.raises(OutputDamagedError, match="--accept-changes=edits"):
        await run_batch(source, base_url=endpoint.base_url, model="m")
    assert output.read_bytes() == data


async def test_equal_records_each_get_their_row(tmp_path, image_files, endpoint) -> None:
    """Duplicates in the input are captioned one by one and resumed one by one."""
    source = write(tmp_path / "in.jsonl", *[{"image": "0.jpg"}] * 5, {"image": "1.jpg"})
    first = await run_batch(source, base_url=endpoint.base_url, model="m", limit=3)
    assert first.captioned == 3
    again = await run_batch(source, base_url=endpoint.base_url, model="m")
    assert (again.resumed, again.captioned) == (3, 3)
    assert [row["image"] for row in rows(Path(again.output))] == ["0.jpg"] * 5 + ["1.jpg"]


async def test_the_only_model_is_found_by_itself(make_input, endpoint) -> None:
    """With one model served none need be named; with several the choice is shown."""
    endpoint.models = ["only-one"]
    await run_batch(make_input(1), base_url=endpoint.base_url)
    assert endpoint.calls[0].body["model"] == "only-one"
    endpoint.models = ["a", "b"]
    with pytest.raises(SettingsError, match="serves a, b; choose one with --model"):
        await run_batch(make_input(1), base_url=endpoint.base_url)


async def test_options_reach_the_request(make_input, endpoint, monkeypatch, tmp_path) -> None:
    """Model, prompts, token limit, temperature and key are what the endpoint receives."""
    monkeypatch.setenv("MY_KEY", "s3cret")
    system = tmp_path / "system.txt"
    system.write_text("Be brief.\n")
    source = write(tmp_path / "in.jsonl", {"image": "images/0.jpg"})
    make_input(1)
    await run_batch(
        source,
        base_url=endpoint.base_url,
        model="vlm",
        api_key_env="MY_KEY",
        system_prompt=f"@{system}",
        prompt="Why?",
        max_tokens=77,
        temperature=0.5,
    )
    body = endpoint.calls[0].body
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("vlm", 77, 0.5)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert endpoint.calls[0].texts == ["Why?"]
    assert endpoint.calls[0].headers["authorization"] == "Bearer s3cret"


async def test_nothing_lies_outside_the_image_root(tmp_path, image_files, endpoint) -> None:
    """With --image-root no path, link or `..` reaches a file outside it."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "in.jpg").write_bytes(image_files[1])
    (root / "link.jpg").symlink_to(tmp_path / "0.jpg")
    paths = ["in.jpg", "../0.jpg", str(tmp_path / "0.jpg"), "link.jpg"]
    source = write(tmp_path / "in.jsonl", *({"image": path} for path in paths))
    report = await run_batch(source, base_url=endpoint.base_url, model="m", image_root=root)
    assert (report.captioned, report.codes) == (1, {"image_outside_root": 3})
    assert [call.images for call in endpoint.calls] == [[image_files[1]]]


async def test_stopping_finishes_what_is_on_the_wire(make_input, endpoint) -> None:
    """A stopped run keeps every caption it received, and the next one asks for the others only."""
    endpoint.latency_s = 0.05
    source = make_input(300)
    cancel = CancelToken()
    loop = asyncio.get_running_loop()
    endpoint.on_request[40] = lambda: loop.call_soon_threadsafe(cancel.request)
    options = {"base_url": endpoint.base_url, "model": "m"}
    report = await run_batch(source, **options, concurrency=8, cancel=cancel)
    assert report.stopped == "interrupted"
    assert not report.complete
    assert len(rows(Path(report.output))) == report.captioned == endpoint.given < 300
    await run_batch(source, **options, concurrency=64)
    assert endpoint.given == 300


@pytest.mark.parametrize("attempt", range(2))
def test_kill_nine_in_the_middle_loses_only_what_was_in_flight(
    make_input, endpoint, attempt
) -> None:
    """2,000 records, 128 in flight, kill -9, run again: each once, at most 128 paid twice."""
    endpoint.latency_s = 0.2
    endpoint.keep_bodies = False
    source = make_input(2_000)
    arguments = ("--base-url", endpoint.base_url, "--model", "m", "--concurrency", 128)
    moment = 700 + 400 * attempt
    first = start_and(subprocess.Popen.kill, endpoint, moment, command(source, *arguments))
    first.communicate(timeout=LIMIT_S)
    assert first.returncode == -signal.SIGKILL
    done = subprocess.run(
        command(source, *arguments), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    got = rows(source.with_name("input.captions.jsonl"))
    assert [row["id"] for row in got] == list(range(2_000))
    assert all(row["caption"].startswith(row["prompt"] + " ") for row in got)
    assert endpoint.max_in_flight <= 128
    assert 2_000 <= endpoint.count <= 2_000 + 128


# -- equal records, and what was asked before ------------------------------------------------------


async def test_equal_records_are_asked_for_once(tmp_path, image_files, endpoint) -> None:
    """The same image and question, under whatever names: one request, a row each."""
    for name in ("copy.jpg", "other.png"):
        (tmp_path / name).write_bytes((tmp_path / "0.jpg").read_bytes())
    images = ["0.jpg", "copy.jpg", "other.png", "1.jpg", "0.jpg"] * 20
    records = [{"id": n, "image": image} for n, image in enumerate(images)]
    source = write(tmp_path / "in.jsonl", *records)
    report = await run_batch(source, base_url=endpoint.base_url, model="m", with_=("usage",))
    assert (report.captioned, report.calls, report.shared) == (100, 2, 98)
    assert report.prompt_tokens == 200
    found = rows(tmp_path / "in.captions.jsonl")
    assert [row["id"] for row in found] == list(range(100))
    assert len({row["caption"] for row in found}) == 2
    assert sum(row["caption_usage"]["prompt_tokens"] for row in found) == 200


async def test_equal_records_are_asked_for_each_when_that_is_wished(
    tmp_path, image_files, endpoint
) -> None:
    """Who samples wants an answer for each."""
    source = write(tmp_path / "in.jsonl", *[{"id": n, "image": "0.jpg"} for n in range(10)])
    report = await run_batch(source, base_url=endpoint.base_url, model="m", dedup=False)
    assert (report.captioned, report.calls, report.shared) == (10, 10, 0)


async def test_what_was_asked_before_is_not_asked_again(tmp_path, image_files, endpoint) -> None:
    """Another data set with the same images costs nothing, unless what is asked differs."""
    options = {"base_url": endpoint.base_url, "model": "m", "cache": tmp_path / "cache"}
    first = write(tmp_path / "one.jsonl", {"image": "0.jpg"}, {"image": "1.jpg"})
    second = write(tmp_path / "two.jsonl", {"photo": "1.jpg"}, {"photo": "2.jpg"})
    await run_batch(first, **options)
    report = await run_batch(second, **options, image_field="photo")
    assert (report.captioned, report.calls, report.cached) == (2, 1, 1)
    one, two = rows(tmp_path / "one.captions.jsonl"), rows(tmp_path / "two.captions.jsonl")
    assert two[0]["caption"] == one[1]["caption"]
    others = ({"prompt": "Else?"}, {"max_tokens": 7}, {"max_side": 30}, {"model": "n"})
    for number, other in enumerate(others):
        changed = await run_batch(first, tmp_path / f"{number}.jsonl", **{**options, **other})
        assert (changed.calls, changed.cached) == (2, 0), other


async def test_failures_are_not_cached(tmp_path, image_files, endpoint) -> None:
    """What failed is asked again in the next run."""
    options = {"base_url": endpoint.base_url, "model": "m", "cache": tmp_path / "cache"}
    source = write(tmp_path / "in.jsonl", {"image": "0.jpg"})
    endpoint.behave = lambda _: Reply(400, {"error": {"message": "no"}})
    assert (await run_batch(source, **options)).failed == 1
    endpoint.behave = lambda _: None
    report = await run_batch(source, **options, retry_failed="all")
    assert (report.captioned, report.cached) == (1, 0)


# -- images from elsewhere -----------------------------------------------------------------------


async def test_images_on_the_web_are_fetched_and_sent(tmp_path, image_files, endpoint) -> None:
    """Records with URLs, paths and both are captioned, each with its own images."""
    hits: list[str] = []

    async def give(request: web.Request) -> web.Response:
        hits.append(request.path)
        await asyncio.sleep(0.01)
        if request.path.endswith("none.jpg"):
            return web.Response(status=404)
        return web.Response(body=(tmp_path / request.path[1:]).read_bytes())

    app = web.Application()
    app.router.add_get("/{name}", give)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    records = [{"image": f"{base}/{n % 3}.jpg", "prompt": str(n)} for n in range(60)]
    records += [{"image": [f"{base}/0.jpg", "1.jpg"], "prompt": "both"}]
    records += [{"image": f"{base}/none.jpg", "prompt": "none"}, {"image": "2.jpg"}]
    source = write(tmp_path / "in.jsonl", *records)
    options = {"base_url": endpoint.base_url, "model": "m", "allow_private_urls": True}
    report = await run_batch(source, **options, memory=10_000)
    await runner.cleanup()
    assert (report.captioned, report.failed, report.codes) == (62, 1, {"image_missing": 1})
    sent = {call.texts[0]: call.images for call in endpoint.calls}
    data = [(tmp_path / f"{n}.jpg").read_bytes() for n in range(3)]
    assert all(sent[str(n)] == [data[n % 3]] for n in range(60))
    assert sent["both"] == [data[0], data[1]]
    assert not any(call.urls[0].startswith("http") for call in endpoint.calls)


async def test_members_of_archives(tmp_path, image_files, endpoint) -> None:
    """A tar of images is captioned without being unpacked."""
    with tarfile.open(tmp_path / "shard.tar", "w") as file:
        for number in range(3):
            file.add(tmp_path / f"{number}.jpg", f"in/{number}.jpg")
    records = [{"image": f"shard.tar#in/{n}.jpg", "prompt": str(n)} for n in range(4)]
    source = write(tmp_path / "in.jsonl", *records)
    report = await run_batch(source, base_url=endpoint.base_url, model="m")
    assert (report.captioned, report.codes) == (3, {"image_missing": 1})
    sent = {call.texts[0]: call.images for call in endpoint.calls}
    assert sent == {str(n): [(tmp_path / f"{n}.jpg").read_bytes()] for n in range(3)}


async def test_frames_of_a_film_are_sent_in_order(tmp_path, endpoint) -> None:
    """An animated image becomes several parts in the place of one."""
    films = [Image.new("RGB", (40, 40), (n * 28,) * 3) for n in range(9)]
    films[0].save(tmp_path / "a.gif", save_all=True, append_images=films[1:])
    record = {"image": "a.gif", "prompt": "Before <image> after"}
    source = write(tmp_path / "in.jsonl", record)
    await run_batch(source, base_url=endpoint.base_url, model="m", frames=3)
    (call,) = endpoint.calls
    parts = [part["type"] for part in call.body["messages"][-1]["content"]]
    assert parts == ["text", "image_url", "image_url", "image_url", "text"]
    shades = [Image.open(io.BytesIO(data)).convert("L").getpixel((9, 9)) for data in call.images]
    assert [round(shade / 28) for shade in shades] == [0, 4, 8]


async def test_standard_output_is_for_the_command(make_input, endpoint):
    """A program that calls the function takes rows by a sink; its own output is not ours."""
    with pytest.raises(SettingsError, match="name a file, or give a sink"):
        await run_batch(make_input(1), "-", base_url=endpoint.base_url, model="m")
    assert endpoint.count == 0
