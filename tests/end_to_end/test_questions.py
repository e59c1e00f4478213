"""What is asked and how, seen at the endpoint and in the rows: the whole path but the command."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import jpeg, rows
from endpoint import FakeEndpoint, Reply, caption_of, completion
from PIL import Image

from captioner import run_batch
from captioner.core.errors import SettingsError

LOOP = "The cat sits on the mat. " * 30


async def caption(source: Path, endpoint: FakeEndpoint, **options: Any):
    said: list[str] = []
    options = {"existing": "replace", "concurrency": 4, **options}
    options = {"base_url": endpoint.base_url, "model": "m", **options}
    report = await run_batch(source, warn=said.append, **options)
    failures = Path(report.failures)
    failed = rows(failures) if failures.exists() else []
    return rows(Path(report.output)), failed, said


def only_after(count: int, body: Any, status: int = 200):
    """Answer the first attempts of each record with something else."""
    seen: dict[str, int] = {}

    def behave(call):
        seen[call.texts[0]] = seen.get(call.texts[0], 0) + 1
        return Reply(status, body) if seen[call.texts[0]] <= count else None

    return behave


async def test_tokens_from_the_cache_of_the_endpoint_are_summed(make_input, endpoint) -> None:
    """They are a part of the input tokens, and do not count twice."""
    reply = completion("a cat")
    reply["usage"]["prompt_tokens_details"] = {"cached_tokens": 64}
    endpoint.behave = lambda _: Reply(200, reply)
    report = await run_batch(
        make_input(5), base_url=endpoint.base_url, model="m", ask=["a=What?", "b=Where?"]
    )
    assert (report.prompt_tokens, report.cached_tokens) == (1_000, 640)


async def test_a_refused_parameter_costs_one_round_and_no_attempts(make_input, endpoint) -> None:
    """Adapted once for all records; the user is told once."""

    def behave(call):
        if "max_tokens" in call.body:
            message = "Unsupported parameter: 'max_tokens' is not supported with this model."
            code = "unsupported_parameter"
            return Reply(400, {"error": {"message": message, "param": "max_tokens", "code": code}})
        return None

    endpoint.behave = behave
    done, failed, said = await caption(
        make_input(40), endpoint, max_tokens=50, concurrency=4, max_attempts=1
    )
    assert (len(done), failed) == (40, [])
    assert endpoint.count <= 40 + 4
    assert endpoint.calls[-1].body["max_completion_tokens"] == 50
    assert len(said) == 1
    assert "max_completion_tokens for max_tokens" in said[0]


async def test_images_are_made_smaller_until_they_fit_and_that_is_remembered(
    tmp_path, endpoint
) -> None:
    """413: smaller images, never none; later ones of that size go out smaller at once."""
    large = jpeg(1, (400, 200), quality=100)
    (tmp_path / "a.jpg").write_bytes(large)
    (tmp_path / "small.jpg").write_bytes(jpeg(2))
    source = tmp_path / "input.jsonl"
    lines = [{"image": "a.jpg", "prompt": f"q{n}"} for n in range(5)]
    lines.append({"image": "small.jpg", "prompt": "small"})
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def width(call) -> int:
        return Image.open(io.BytesIO(call.images[0])).width

    endpoint.behave = lambda call: Reply(413, b"<html>") if width(call) > 250 else None
    done, failed, _ = await caption(source, endpoint, concurrency=1)
    assert (len(done), failed) == (6, [])
    assert [width(call) for call in endpoint.calls] == [400, 280, 200, 200, 200, 200, 200, 32]


async def test_a_image_that_never_fits_fails_alone(make_input, endpoint) -> None:
    """After the smallest size the record is failed with the endpoint's words."""
    endpoint.behave = lambda call: (
        Reply(400, {"error": {"message": "context length exceeded", "code": 400}})
        if call.texts == ["q1"]
        else None
    )
    done, failed, _ = await caption(make_input(3), endpoint)
    assert len(done) == 2
    assert [(row["code"], row["attempts"]) for row in failed] == [("too_large", 4)]


async def test_a_image_the_endpoint_cannot_read_is_drawn_anew(make_input, endpoint) -> None:
    """Once, as a JPEG of ours."""
    source = make_input(1)
    sent = (source.parent / "images/0.jpg").read_bytes()
    message = "You uploaded an unsupported image."
    error = {"error": {"message": message, "code": "invalid_image_format"}}
    endpoint.behave = lambda call: Reply(400, error) if sent in call.images else None
    done, failed, _ = await caption(source, endpoint)
    assert (len(done), failed) == (1, [])
    assert endpoint.count == 2
    assert all(image[:2] == b"\xff\xd8" for call in endpoint.calls for image in call.images)


async def test_loops_are_asked_for_again_hotter(make_input, endpoint) -> None:
    """A model in a loop gets another temperature, and the loop is nobody's caption."""
    endpoint.behave = only_after(2, completion(LOOP))
    done, failed, _ = await caption(make_input(1), endpoint, temperature=0.1)
    assert [call.body["temperature"] for call in endpoint.calls] == [0.1, 0.4, 0.7]
    assert (len(done), failed) == (1, [])
    assert "sits" not in done[0]["caption"]


async def test_truncated_captions_get_more_room_or_fail(make_input, endpoint) -> None:
    """Cut off at the limit: twice the room; still cut off after all attempts: no caption."""
    endpoint.behave = lambda _: Reply(200, completion("A cat on", finish_reason="length"))
    done, failed, _ = await caption(make_input(1), endpoint, max_tokens=1000, max_attempts=3)
    assert [call.body["max_tokens"] for call in endpoint.calls] == [1000, 2000, 4000]
    assert (done, [row["code"] for row in failed]) == ([], ["truncated"])


async def test_accepted_faults_are_kept_and_flagged(make_input, endpoint) -> None:
    """--accept takes the first such caption, whole, and says so beside it; again resumes."""
    endpoint.behave = lambda call: (
        Reply(200, completion("A cat on", finish_reason="length")) if call.number == 1 else None
    )
    source = make_input(2)
    options = {"accept": "truncated", "concurrency": 1}
    done, failed, _ = await caption(source, endpoint, **options)
    assert failed == []
    assert [row.get("caption_flag") for row in done] == ["truncated", None]
    assert done[0]["caption"] == "A cat on"
    before = endpoint.count
    await caption(source, endpoint, **options)
    assert endpoint.count == before


async def test_refusals_fail_after_two(make_input, endpoint) -> None:
    """A model that says it is sorry is asked once more, then believed."""
    endpoint.behave = lambda _: Reply(200, completion("I'm sorry, I can't help with that."))
    done, failed, _ = await caption(make_input(1), endpoint)
    assert (done, endpoint.count) == ([], 2)
    assert (failed[0]["code"], failed[0]["attempts"]) == ("refused", 2)


async def test_members_asked_for_stand_behind_the_caption(make_input, endpoint) -> None:
    """--with adds what was asked for; the same command again does nothing."""
    source = make_input(3)
    options = {"with_": "usage,finish_reason,model,attempts,latency"}
    done, _, _ = await caption(source, endpoint, **options)
    for row in done:
        assert list(row)[:4] == ["id", "image", "prompt", "caption"]
        assert row["caption_usage"] == {"prompt_tokens": 100, "completion_tokens": 10}
        assert (row["caption_finish_reason"], row["caption_model"]) == ("stop", "m")
        assert row["caption_attempts"] == 1
        assert 0 < row["caption_latency"] < 30
    await caption(source, endpoint, **options)
    assert endpoint.count == 3
    await caption(source, endpoint, accept_changes=True)  # other members, the same records
    assert endpoint.count == 3


async def test_a_record_that_has_our_members_keeps_their_places(tmp_path, endpoint) -> None:
    """Members of a row that is captioned again are replaced where they stand."""
    (tmp_path / "a.jpg").write_bytes(jpeg())
    source = tmp_path / "input.jsonl"
    source.write_text('{"caption_model": "old", "image": "a.jpg", "caption": "old", "b": 1}\n')
    options = {"with_": "model,attempts"}
    (row,), _, _ = await caption(source, endpoint, **options)
    assert list(row) == ["caption_model", "image", "caption", "b", "caption_attempts"]
    assert (row["caption_model"], row["caption_attempts"]) == ("m", 1)
    assert row["caption"].startswith("Describe")
    await caption(source, endpoint, **options)
    assert endpoint.count == 1


async def test_several_questions_make_several_members(make_input, endpoint, tmp_path) -> None:
    """Each question is asked about the same image, in place of the record's own."""
    (tmp_path / "dense.txt").write_text("In detail?\n")
    source = make_input(3)
    options = {"ask": ["short=In short?", f"dense=@{tmp_path}/dense.txt"]}
    done, failed, _ = await caption(source, endpoint, **options)
    assert failed == []
    for row in done:
        assert list(row) == ["id", "image", "prompt", "short", "dense"]
        assert row["short"].startswith("In short? [")
        assert row["dense"].replace("In detail?", "In short?") == row["short"]
    assert endpoint.count == 6
    await caption(source, endpoint, **options)
    assert endpoint.count == 6


async def test_samples_make_a_list(make_input, endpoint) -> None:
    """Three answers to one question."""
    endpoint.behave = lambda call: Reply(200, completion(f"{caption_of(call)} {call.number}"))
    done, _, _ = await caption(make_input(2), endpoint, samples=3)
    assert [len(set(row["caption"])) for row in done] == [3, 3]


async def test_a_question_that_fails_fails_the_record(make_input, endpoint) -> None:
    """No row is half a row."""
    endpoint.behave = lambda call: (
        Reply(400, {"error": {"message": "no"}}) if call.texts == ["b?"] else None
    )
    done, failed, _ = await caption(make_input(1), endpoint, ask=["a=a?", "b=b?"])
    assert (done, failed[0]["code"], failed[0]["attempts"]) == ([], "http_400", 2)


async def test_an_answer_against_the_schema_is_told_what_is_wrong(
    make_input, endpoint, tmp_path
) -> None:
    """The endpoint is asked by response_format, and again with the error after its answer."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    (tmp_path / "s.json").write_text(json.dumps(schema))

    def behave(call):
        if call.body["messages"][-1]["role"] == "user" and len(call.body["messages"]) > 3:
            return Reply(200, completion('```json\n{"n": 7}\n```'))
        return Reply(200, completion('{"n": "seven"}'))

    endpoint.behave = behave
    (row,), failed, _ = await caption(make_input(1), endpoint, schema=str(tmp_path / "s.json"))
    assert (row["caption"], failed) == ({"n": 7}, [])
    first, second = endpoint.calls
    assert first.body["response_format"]["json_schema"]["schema"] == schema
    assert second.body["messages"][-2] == {"role": "assistant", "content": '{"n": "seven"}'}
    again = second.body["messages"][-1]["content"]
    assert "'seven' is not of type 'integer'" in again
    assert json.dumps(schema, separators=(",", ":")) in again
    assert second.images == first.images


async def test_an_answer_that_never_follows_the_schema_is_no_caption(
    make_input, endpoint, tmp_path
) -> None:
    """After all attempts the record is failed with the last error."""
    (tmp_path / "s.json").write_text('{"type": "object", "required": ["n"]}')
    done, failed, _ = await caption(
        make_input(1), endpoint, schema=str(tmp_path / "s.json"), max_attempts=2
    )
    assert (done, failed[0]["code"], endpoint.count) == ([], "schema", 2)


async def test_an_endpoint_that_knows_no_schemas_is_told_in_words(make_input, endpoint) -> None:
    """Where response_format is refused, the schema goes into the question."""

    def behave(call):
        if "response_format" in call.body:
            return Reply(400, {"error": {"message": "Unknown parameter: response_format"}})
        assert '"dense"' in json.dumps(call.body["messages"][-1]).replace("\\", "")
        return Reply(200, completion('{"short": "a", "dense": "b"}'))

    endpoint.behave = behave
    done, failed, _ = await caption(make_input(2), endpoint, preset="caption")
    assert failed == []
    assert [row["caption"] for row in done] == [{"short": "a", "dense": "b"}] * 2


@pytest.mark.parametrize("preset", ["dense", "alt-text"])
async def test_presets_of_plain_text(make_input, endpoint, preset) -> None:
    """The preset's question takes the place of the record's; the answer is text."""
    endpoint.behave = lambda _: Reply(200, completion("A cat on a mat."))
    (row,), _, _ = await caption(make_input(1), endpoint, preset=preset)
    assert row["caption"] == "A cat on a mat."
    assert "q0" not in json.dumps(endpoint.calls[0].body["messages"])
    assert endpoint.calls[0].images


def stream(*events: Any, done: bool = True) -> bytes:
    lines = [b": OPENROUTER PROCESSING\n\n"]
    lines += [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    return b"".join([*lines, b"data: [DONE]\n\n" if done else b""])


def delta(text: str | None = None, reason: str | None = None) -> dict[str, Any]:
    return {"model": "m", "choices": [{"delta": {"content": text}, "finish_reason": reason}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


async def test_streamed_captions(make_input, endpoint) -> None:
    """Pieces make one caption, with the tokens of the last event."""
    body = stream(delta(""), delta("A c"), delta("at."), delta(None, "stop"), USAGE)
    endpoint.behave = lambda _: Reply(200, body, {"Content-Type": "text/event-stream"})
    (row,), _, _ = await caption(make_input(1), endpoint, stream=True, with_="usage")
    assert row["caption"] == "A cat."
    assert row["caption_usage"] == {"prompt_tokens": 7, "completion_tokens": 3}
    assert endpoint.calls[0].body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (stream(delta("A c"), done=False), "broken_stream"),
        (stream(), "bad_reply"),
        (b"data: {\n\n", "bad_reply"),
        (stream(delta("A c"), delta(None, "length")), "truncated"),
        (stream(delta("A c"), {"error": {"code": 400, "message": "x"}}), "http_400"),
        (stream(delta("A c"), delta(None, "content_filter")), "filtered"),
    ],
)
async def test_a_stream_that_does_not_end_as_it_should_is_no_caption(
    make_input, endpoint, body, code
) -> None:
    """[DONE] or a finish reason, or it never was."""
    endpoint.behave = lambda _: Reply(200, body, {"Content-Type": "text/event-stream"})
    done, failed, _ = await caption(make_input(1), endpoint, stream=True, max_attempts=1)
    assert (done, failed[0]["code"]) == ([], code)


@pytest.mark.parametrize(
    "body",
    [
        stream(delta("A cat."), delta(None, "stop"), done=False),
        stream(delta("A cat.")),
        stream(delta("A cat.")) + b"data: {",
    ],
)
async def test_either_end_of_a_stream_will_do(make_input, endpoint, body) -> None:
    """Some servers send no [DONE], others no finish reason."""
    endpoint.behave = lambda _: Reply(200, body, {"Content-Type": "text/event-stream"})
    done, failed, _ = await caption(make_input(1), endpoint, stream=True, max_attempts=1)
    assert ([row["caption"] for row in done], failed) == (["A cat."], [])


async def again(source: Path, endpoint: FakeEndpoint, first: dict, *later: dict) -> None:
    """Run with some options and then with others; nothing may be asked again or doubled."""
    done, failed, _ = await caption(source, endpoint, **first)
    assert failed == []
    count = endpoint.count
    for options in (first, *later):
        same, failed, _ = await caption(source, endpoint, accept_changes=True, **options)
        assert same == done
        assert (failed, endpoint.count) == ([], count)


@pytest.mark.parametrize(
    "record",
    [
        {"image": "a.jpg", "caption": "old", "caption_usage": 1},
        {"image": "a.jpg", "caption_usage": {"old": 1}},
        {"caption": "old", "image": "a.jpg"},
        {"caption_flag": "looping", "image": "a.jpg", "caption": "old", "caption_usage": 1},
        {"image": "a.jpg", "caption_flag": "looping"},
    ],
)
@pytest.mark.parametrize("first", [{}, {"with_": "usage"}, {"accept": "truncated"}])
async def test_records_with_members_of_ours_are_known_again(
    tmp_path, endpoint, record, first
) -> None:
    """Whatever --with and --accept say now or said then, no row is doubled or paid twice."""
    (tmp_path / "a.jpg").write_bytes(jpeg())
    source = tmp_path / "input.jsonl"
    source.write_text(json.dumps(record) + "\n")
    endpoint.behave = lambda _: (
        Reply(200, completion("A cat on", finish_reason="length")) if first.get("accept") else None
    )
    await again(source, endpoint, first, {}, {"with_": "usage,model"}, {"accept": "truncated"})


@pytest.mark.parametrize("record", [{"b": 1, "image": "a.jpg"}, {"image": "a.jpg", "b": "old"}])
async def test_records_that_have_a_member_that_is_asked_for(tmp_path, endpoint, record) -> None:
    """A second run of several questions finds its rows again."""
    (tmp_path / "a.jpg").write_bytes(jpeg())
    source = tmp_path / "input.jsonl"
    source.write_text(json.dumps(record) + "\n")
    await again(source, endpoint, {"ask": ["a=a?", "b=b?"]})


async def test_a_flag_of_an_older_caption_goes(tmp_path, endpoint) -> None:
    """A good caption does not stand beside what was wrong with the last one."""
    (tmp_path / "a.jpg").write_bytes(jpeg())
    source = tmp_path / "input.jsonl"
    source.write_text('{"image": "a.jpg", "caption": "old", "caption_flag": "truncated"}\n')
    (row,), _, _ = await caption(source, endpoint)
    assert row["caption_flag"] is None
    assert row["caption"].startswith("Describe")


async def test_more_room_than_the_endpoint_has_shrinks_no_image(make_input, endpoint) -> None:
    """The retry of one truncated caption changes nothing for the others, nor for itself."""

    def behave(call):
        if call.texts == ["q0"] and call.body["max_tokens"] == 1000:
            return Reply(200, completion("A cat on", finish_reason="length"))
        if call.body["max_tokens"] > 1000:
            message = "This model's maximum context length is 1500 tokens."
            return Reply(400, {"error": {"message": message, "code": 400}})
        return None

    endpoint.behave = behave
    source = make_input(5)
    done, failed, said = await caption(source, endpoint, max_tokens=1000, max_attempts=3)
    assert len(done) == 4
    assert [row["code"] for row in failed] == ["truncated"]
    sent = {image for call in endpoint.calls for image in call.images}
    assert sent == {(source.parent / f"images/{n}.jpg").read_bytes() for n in range(5)}
    assert said == []


async def test_a_404_in_passing_changes_nothing(make_input, endpoint) -> None:
    """A gateway that reloads answers 404 once: the same request goes out again."""
    endpoint.behave = lambda call: (
        Reply(404, b"default backend - 404") if call.number == 5 else None
    )
    source = make_input(10)
    done, failed, _ = await caption(source, endpoint, concurrency=1)
    assert (len(done), failed) == (10, [])
    sent = {image for call in endpoint.calls for image in call.images}
    assert sent == {(source.parent / f"images/{n}.jpg").read_bytes() for n in range(10)}


async def test_one_record_for_which_there_is_no_model_fails_alone(make_input, endpoint) -> None:
    """A router that finds no model for one record does not stop the run of all others."""
    reply = Reply(404, {"error": {"message": "The model `other` does not exist"}})
    endpoint.behave = lambda call: reply if call.texts == ["q7"] else None
    endpoint.latency_s = 0.05
    done, failed, _ = await caption(make_input(200), endpoint, concurrency=2)
    assert len(done) == 199
    assert [(row["code"], row["record"]["id"]) for row in failed] == [("http_404", 7)]


async def test_a_image_in_a_system_turn(tmp_path, endpoint) -> None:
    """It stays there, and the questions get the others."""
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "b.jpg").write_bytes(jpeg(99))
    part = {"type": "image_url", "image_url": {"url": "b.jpg"}}
    turns = [{"role": "system", "content": [part]}, {"role": "user", "content": "what?"}]
    source = tmp_path / "input.jsonl"
    source.write_text(json.dumps({"image": "a.jpg", "messages": turns}) + "\n")
    (row,), _, _ = await caption(source, endpoint, ask=["a=a?", "b=b?"])
    assert row["a"]
    for call in endpoint.calls:
        assert call.images == [jpeg(99), jpeg(1)]


@pytest.mark.parametrize("name", ["image", "prompt", "messages", "id", "caption_usage"])
async def test_questions_cannot_take_the_place_of_what_the_record_needs(
    make_input, endpoint, name
) -> None:
    """No answer overwrites the image, the question or the id."""
    options = {"ask": ["caption=c?", f"{name}=x?"], "with_": "usage", "id_field": "id"}
    with pytest.raises(SettingsError, match="ask"):
        await caption(make_input(1), endpoint, **options)
    assert endpoint.count == 0


async def test_a_key_in_a_header_is_shown_to_nobody(make_input, endpoint) -> None:
    """What an endpoint echoes of a header is masked."""
    reply = Reply(400, {"error": {"message": "bad value sekrit-12345678"}})
    endpoint.behave = lambda _: reply
    _, failed, _ = await caption(make_input(1), endpoint, header=["X-Key: sekrit-12345678"])
    assert "***" in failed[0]["message"]
    assert "sekrit" not in json.dumps(failed)
