"""Stages: what is asked of a record, what is written, and what is never asked twice."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import command, jpeg, rows
from endpoint import Call, FakeEndpoint, Reply, completion, kill_in_mid_run
from PIL import Image

import captioner
from captioner import run_batch
from captioner.cli.summaries import describe_estimate
from captioner.core.errors import EndpointRefusedError, SettingsError
from captioner.core.where import Where
from captioner.engine.estimate import estimate
from captioner.engine.stage_plan import FUNCTIONS, plans_of
from captioner.outputs.check import check_output
from captioner.settings.settings import Settings
from captioner.settings.stages import known_sets, tables_of

DRAFT = {"name": "draft", "prompt": "Describe it.", "field": "caption"}
VERIFY = {
    "name": "verify",
    "each": "sentences(draft)",
    "prompt": "Is it true? {{ item }}",
    "answer": "yes-no",
}
REWRITE = {
    "name": "rewrite",
    "image": False,
    "when": "lowest(verify) < 0.5",
    "prompt": "Join: {% for one in verify if one.answer > 0.5 %}{{ one.item }} {% endfor %}",
    "field": "caption",
}


async def staged(source: Path, endpoint: FakeEndpoint, *stages: dict[str, Any], **options: Any):
    """Run with stages; return rows and failures."""
    options = {"base_url": endpoint.base_url, "model": "m", "concurrency": 4, **options}
    if stages:
        options["stage"] = list(stages)
    report = await run_batch(source, **options)
    failures = Path(report.failures)
    return rows(Path(report.output)), rows(failures) if failures.exists() else []


def question(call: Call) -> str:
    return " ".join(call.texts)


def scripted(answers: dict[str, Any]):
    """Answer by what the question begins with; a callable is given the question."""

    def behave(call: Call) -> Reply:
        asked = question(call)
        for begin, answer in answers.items():
            if asked.startswith(begin):
                given = answer(asked) if callable(answer) else answer
                return given if isinstance(given, Reply) else Reply(200, completion(given))
        raise AssertionError(f"not expected: {asked}")

    return behave


def with_logprobs(text: str, *tokens: tuple[str, float], top: Any = ()) -> Reply:
    content = [{"token": token, "logprob": log, "top_logprobs": list(top)} for token, log in tokens]
    return Reply(200, completion(text, logprobs={"content": content}))


async def test_later_stages_see_earlier_answers_and_the_last_one_is_the_caption(
    make_input, endpoint
) -> None:
    endpoint.behave = scripted(
        {
            "Draft q0": "A red cat.",
            "Draft q1": "A red dog.",
            "Shorten: A red cat.": "Cat.",
            "Shorten: A red dog.": "Dog.",
        }
    )
    first = {"name": "draft", "prompt": "Draft {{ prompt }}", "field": "long"}
    second = {"name": "short", "prompt": "Shorten: {{ draft }}", "image": False}
    done, failed = await staged(make_input(2), endpoint, first, second)
    assert failed == []
    assert {(row["long"], row["caption"]) for row in done} == {
        ("A red cat.", "Cat."),
        ("A red dog.", "Dog."),
    }
    assert [len(call.images) for call in endpoint.calls if "Draft" in question(call)] == [1, 1]
    assert [len(call.images) for call in endpoint.calls if "Shorten" in question(call)] == [0, 0]


async def test_a_stage_that_does_not_run_costs_nothing(make_input, endpoint) -> None:
    endpoint.behave = scripted({"Describe": "One is true. Two is true.", "Is it true?": "Yes."})
    done, failed = await staged(make_input(1), endpoint, DRAFT, VERIFY, REWRITE)
    assert failed == []
    assert [row["caption"] for row in done] == ["One is true. Two is true."]
    assert endpoint.count == 3


async def test_detailed_removes_just_the_planted_sentences(make_input, endpoint) -> None:
    true = ["A dog sits on grass.", "The sky is grey.", "A fence stands behind it."]
    false = ["A man waves.", "Two cats sleep."]
    drafts = {
        "images/0.jpg": [true[0], false[0], true[1], false[1], true[2]],
        "images/1.jpg": true,
        "images/2.jpg": false,
    }
    names = {jpeg(number): f"images/{number}.jpg" for number in range(3)}

    def behave(call: Call) -> Reply:
        asked = question(call)
        if asked.startswith("Describe this image in 4"):
            return Reply(200, completion(" ".join(drafts[names[call.images[0]]])))
        if asked.startswith("Look"):
            (sentence,) = [one for one in [*true, *false] if one in asked]
            return Reply(200, completion("yes" if sentence in true else "No."))
        kept = "; ".join(re.findall(r"- (.*)", asked))
        return Reply(200, completion(kept if "These sentences" in asked else "Just grass."))

    endpoint.behave = behave
    done, failed = await staged(make_input(3), endpoint, stages="detailed")
    assert failed == []
    assert {row["image"]: row["caption"] for row in done} == {
        "images/0.jpg": "; ".join(true),
        "images/1.jpg": " ".join(true),
        "images/2.jpg": "Just grass.",
    }
    judged = [call for call in endpoint.calls if question(call).startswith("Look")]
    assert all(len(call.images) == 1 and call.body["max_tokens"] == 8 for call in judged)


@pytest.mark.parametrize("draft", ["- {}\n- {}", "1. {}.\n2. {}.", "{}\n\n{}"])
async def test_detailed_checks_each_line_of_a_draft_that_is_a_list(
    draft, make_input, endpoint
) -> None:
    endpoint.behave = scripted(
        {
            "Describe this image in 4": draft.format("A dog sits on grass", "Dr. Smith waves"),
            "Look": lambda asked: "No" if "Smith" in asked else "Yes",
            "These sentences": lambda asked: "; ".join(re.findall(r"- (.*)", asked)),
        }
    )
    ((row,), failed) = await staged(make_input(1), endpoint, stages="detailed")
    assert failed == []
    assert row["caption"].rstrip(".") == "A dog sits on grass"
    assert endpoint.count == 4


async def test_a_yes_that_is_cut_off_is_not_asked_again(make_input, endpoint) -> None:
    """Many models explain their yes, and a check allows few tokens."""
    cut = completion("Yes, the image shows", finish_reason="length")
    endpoint.behave = scripted({"Describe": "One. Two.", "Is it true?": Reply(200, cut)})
    done, failed = await staged(make_input(1), endpoint, DRAFT, {**VERIFY, "max_tokens": 8})
    assert (len(done), failed) == (1, [])
    assert endpoint.count == 3


async def test_a_thought_that_is_cut_off_is_asked_again_with_more_tokens(
    make_input, endpoint
) -> None:
    def check(call: Call) -> Reply:
        if not question(call).startswith("Is it true?"):
            return Reply(200, completion("One."))
        if call.body["max_tokens"] == 8:
            return Reply(200, completion("Let me see whether", finish_reason="length"))
        return Reply(200, completion("No."))

    endpoint.behave = check
    done, failed = await staged(make_input(1), endpoint, DRAFT, {**VERIFY, "max_tokens": 8})
    assert (len(done), failed) == (1, [])
    assert [call.body.get("max_tokens") for call in endpoint.calls] == [None, 8, 1024]


async def test_a_set_writes_its_caption_to_the_output_field(make_input, endpoint) -> None:
    endpoint.behave = scripted({"Describe": "One.", "Look": "Yes"})
    ((row,), _) = await staged(make_input(1), endpoint, stages="detailed", output_field="answer")
    assert row["answer"] == "One."
    assert "caption" not in row


async def test_fields_named_item_and_number_are_those_of_the_record(tmp_path, endpoint) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"image": "0.jpg", "number": 5, "item": "hat"}) + "\n")
    endpoint.behave = scripted({"Sell hat 5": "A. B.", "Is it true? A. 1": "Yes", "Is": "Yes"})
    sell = {"name": "sell", "prompt": "Sell {{ item }} {{ number }}", "field": "caption"}
    each = {"name": "each", "prompt": "Is it true? {{ item }} {{ number }}", "each": "lines(sell)"}
    done, failed = await staged(source, endpoint, sell, each)
    assert (len(done), failed) == (1, [])
    assert [question(call) for call in endpoint.calls] == ["Sell hat 5", "Is it true? A. B. 1"]


async def test_the_stage_that_was_changed_is_named(make_input, endpoint) -> None:
    first = {"name": "first", "prompt": "First"}
    second = {"name": "second", "prompt": "Second: {{ first }}"}
    source = make_input(1)
    await staged(source, endpoint, first, second)
    with pytest.raises(SettingsError, match="other settings: stages: second differs;"):
        await staged(source, endpoint, first, {**second, "prompt": "Changed: {{ first }}"})


@pytest.mark.parametrize("name", known_sets())
async def test_each_set_of_stages_runs(name, make_input, endpoint, monkeypatch) -> None:
    """On an endpoint that says no to every check, so that all its stages run."""
    source = make_input(2)
    if name == "ocr-grounded":
        pytest.importorskip("rapidocr")
    boxes = {"boxes": [[0, 0, 16, 32], [0.5, 0, 1, 1]], "language": "French", "alt_text": "x"}
    lines = [
        json.dumps({**json.loads(line), **boxes}) for line in source.read_text().split("\n")[:2]
    ]
    source.write_text("\n".join(lines) + "\n")

    def behave(call: Call) -> Reply:
        asked = question(call)
        text = "No" if "yes or no alone" in asked else f"Seen by request {call.number}."
        return Reply(200, completion(text))

    endpoint.behave = behave
    done, failed = await staged(source, endpoint, stages=name)
    assert failed == []
    assert len(done) == 2
    assert all(row["caption"].startswith("Seen by request") for row in done)
    asked = [question(call) for call in endpoint.calls]
    assert not any("{{" in text or "{%" in text for text in asked)
    assert len(asked) >= 2 * (len(tables_of(name)) - 1)


@pytest.mark.parametrize("name", ["tags-prose", "translate", "region"])
async def test_answers_in_several_fields_are_in_every_output(name, tmp_path, endpoint) -> None:
    """The keys of rows are without all fields that stages write, in the run and afterwards."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    table = [{"image": f"{number}.jpg", "boxes": [[0.0, 0, 1, 1]]} for number in range(3)]
    parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "in.parquet")
    endpoint.behave = lambda call: Reply(200, completion(f"seen {call.number}"))
    options = {"base_url": endpoint.base_url, "model": "m", "stages": name}
    output = tmp_path / "out.parquet"
    report = await run_batch(tmp_path / "in.parquet", output, **options)
    assert report.failed == 0
    found = parquet.read_table(output).to_pylist()
    extra = {"tags-prose": "tags", "translate": "translation", "region": "regions"}[name]
    assert len(found) == 3
    assert all(row["caption"] and row[extra] for row in found)
    checked = await check_output(output)
    assert (checked.captioned, checked.pending, checked.orphans) == (3, 0, 0)


async def test_regions_are_cut_out_of_the_image(tmp_path, endpoint) -> None:
    image = Image.new("RGB", (100, 60), "red")
    image.paste("blue", (50, 0, 100, 60))
    image.save(tmp_path / "a.png")
    record = {"image": "a.png", "boxes": [[0, 0, 50, 60], [0.5, 0, 1, 0.5]]}
    (tmp_path / "in.jsonl").write_text(json.dumps(record) + "\n")

    def behave(call: Call) -> Reply:
        seen = Image.open(io.BytesIO(call.images[0])).convert("RGB")
        red, _, blue = seen.getpixel((seen.width // 4, seen.height // 2))
        colour = "red" if red > blue else "blue"
        return Reply(200, completion(f"{colour} {seen.width}x{seen.height}"))

    endpoint.behave = behave
    done, failed = await staged(tmp_path / "in.jsonl", endpoint, stages="region")
    assert failed == []
    assert done[0]["regions"] == [
        {"item": [0, 0, 50, 60], "answer": "red 50x60"},
        {"item": [0.5, 0, 1, 0.5], "answer": "blue 50x30"},
    ]
    assert done[0]["caption"] == "red 100x60"


async def test_an_image_is_downloaded_once_for_all_its_regions(tmp_path, endpoint) -> None:
    """Besides the once for the whole of it."""
    fetched = Counter()

    async def give(request: web.Request) -> web.Response:
        fetched[request.path] += 1
        return web.Response(body=jpeg(int(request.path[1:])))

    app = web.Application()
    app.router.add_get("/{name}", give)
    async with TestServer(app) as server:
        boxes = [[0, 0, x / 10, 1] for x in range(1, 9)]
        with (tmp_path / "in.jsonl").open("w") as file:
            for name in range(3):
                url = str(server.make_url(f"/{name}"))
                file.write(json.dumps({"image": url, "boxes": boxes}) + "\n")
        done, failed = await staged(
            tmp_path / "in.jsonl", endpoint, stages="region", allow_private_urls=True
        )
    assert (len(done), failed) == (3, [])
    assert fetched == {"/0": 2, "/1": 2, "/2": 2}
    assert len({call.images[0] for call in endpoint.calls}) == 3 * (1 + len(boxes))


async def test_answers_for_items_do_not_outgrow_a_row(make_input, endpoint, monkeypatch) -> None:
    """A model that writes without end for each of 100 items costs that record."""
    monkeypatch.setattr("captioner.engine.stages.MOST_CHARS", 100)
    endpoint.behave = scripted(
        {"Describe": "One. Two. Three. Four.", "Is it": "It is a red dog on a mat here."}
    )
    parts = {"name": "parts", "each": "sentences(draft)", "prompt": "Is it {{ item }}?"}
    done, failed = await staged(make_input(1), endpoint, DRAFT, {**parts, "field": "parts"})
    assert done == []
    assert [(row["code"], "more than 100 characters" in row["message"]) for row in failed] == [
        ("stage_items", True)
    ]


async def test_a_box_outside_the_image_is_that_records_failure(tmp_path, endpoint) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    boxes = [[[40, 0, 50, 10]], [["a", 0, 1, 1]], "none", [[0, 0, 9, 9]] * 101, [[0, 0, 9, 9]]]
    lines = [json.dumps({"image": "a.jpg", "boxes": box}) for box in boxes]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    done, failed = await staged(tmp_path / "in.jsonl", endpoint, stages="region")
    assert [row["boxes"] for row in done] == [boxes[-1]]
    codes = Counter(row["code"] for row in failed)
    assert codes == {"bad_box": 2, "stage_items": 2}
    assert all("stage regions: " in row["message"] for row in failed)


async def test_a_bad_box_leaves_the_other_regions(tmp_path, endpoint) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    boxes = [[40, 0, 50, 10], [0, 0, 9, 9]]
    (tmp_path / "in.jsonl").write_text(json.dumps({"image": "a.jpg", "boxes": boxes}) + "\n")
    endpoint.behave = scripted({"This is a part": "A tail.", "Describe": lambda asked: asked})
    ((row,), failed) = await staged(tmp_path / "in.jsonl", endpoint, stages="region")
    assert failed == []
    assert row["regions"] == [
        {"item": boxes[0], "answer": None},
        {"item": boxes[1], "answer": "A tail."},
    ]
    assert "- A tail." in row["caption"]
    assert "None" not in row["caption"]


async def test_a_stage_has_a_model_and_an_endpoint_of_its_own(make_input, endpoint) -> None:
    other = FakeEndpoint()
    other.start()
    try:
        strong = {
            "name": "strong",
            "prompt": "Better: {{ draft }}",
            "model": "strong",
            "base-url": other.base_url,
            "extra-body": {"seed": 1},
            "temperature": 0,
        }
        done, failed = await staged(
            make_input(3), endpoint, DRAFT, strong, header=("X-Run: 1",), max_tokens=70
        )
    finally:
        other.stop()
    assert (len(done), failed) == (3, [])
    assert (endpoint.count, other.count) == (3, 3)
    body = other.calls[0].body
    assert (body["model"], body["seed"], body["temperature"]) == ("strong", 1, 0)
    assert body["max_tokens"] == 70
    assert "x-run" not in other.calls[0].headers
    assert endpoint.calls[0].headers["x-run"] == "1"


async def test_a_failure_names_its_stage(make_input, endpoint) -> None:
    endpoint.behave = scripted(
        {"Describe": "A dog. A cat.", "Is it true?": "I'm sorry, I can't help with that."}
    )
    done, failed = await staged(make_input(1), endpoint, DRAFT, VERIFY, REWRITE)
    assert done == []
    error = failed[0]
    assert error["code"] == "refused"
    assert error["message"].startswith("stage verify: item 1: the model refused")


async def test_a_run_that_one_stage_stops_names_it(make_input, endpoint) -> None:
    endpoint.behave = lambda call: (
        Reply(200, completion("A dog. A cat."))
        if question(call).startswith("Describe")
        else Reply(400, {"error": {"message": "no such adapter"}})
    )
    with pytest.raises(EndpointRefusedError) as error:
        await staged(make_input(20), endpoint, DRAFT, VERIFY, REWRITE)
    assert str(error.value).startswith("stage verify: The first ")
    assert "o such adapter" in str(error.value)


async def test_a_wrong_schema_names_its_stage(make_input, endpoint, tmp_path) -> None:
    (tmp_path / "schema.json").write_text("{")
    wrong = {"name": "facts", "prompt": "Facts", "schema": str(tmp_path / "schema.json")}
    with pytest.raises(SettingsError, match=r"^stage facts: schema: .* not valid JSON"):
        await staged(make_input(1), endpoint, wrong, DRAFT)
    assert endpoint.count == 0


async def test_an_unclear_answer_is_asked_for_once_more_with_what_was_wrong(
    make_input, endpoint
) -> None:
    asked = []

    def check(call: Call) -> Reply:
        if question(call).startswith("Describe"):
            return Reply(200, completion("A dog. A cat."))
        asked.append(call)
        is_second = len(call.body["messages"]) > 1
        is_dog = "A dog" in question(call)
        return Reply(200, completion("The answer is yes." if is_second and is_dog else "Hm."))

    endpoint.behave = check
    done, failed = await staged(make_input(1), endpoint, DRAFT, VERIFY)
    assert done == []
    assert failed[0]["code"] == "unclear"
    assert failed[0]["message"].startswith("stage verify: item 2: the answer is neither yes nor no")
    assert len(asked) == 4
    _, said, again = asked[1].body["messages"]
    assert (said["role"], said["content"]) == ("assistant", "Hm.")
    assert "neither yes nor no" in again["content"]
    assert "with yes or no alone" in again["content"]


async def test_a_run_may_go_on_without_a_stage(make_input, endpoint) -> None:
    endpoint.behave = scripted(
        {"Describe": "A dog.", "Check": "I'm sorry, I can't help with that.", "Instead": "Another."}
    )
    check = {"name": "check", "prompt": "Check", "on-failure": "go-on", "field": "checked"}
    instead = {
        "name": "instead",
        "prompt": "Instead",
        "when": "codes['check'] == 'refused' and check is None",
    }
    done, failed = await staged(
        make_input(1), endpoint, DRAFT, check, {**instead, "field": "caption"}
    )
    assert failed == []
    assert (done[0]["caption"], done[0]["checked"]) == ("Another.", None)


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply(200, completion("I'm sorry, but I can't help with that.")), "refused"),
        (Reply(200, completion("", finish_reason="content_filter")), "filtered"),
        (Reply(200, completion("The cat sits on the mat. " * 50)), "looping"),
        (Reply(200, completion("I cannot see any image. Please provide one.")), "no_image_seen"),
    ],
)
async def test_a_fallback_is_asked_before_a_record_fails(make_input, endpoint, reply, code) -> None:
    def behave(call: Call) -> Reply | None:
        if call.body["model"] == "m" and "q1" in question(call):
            return reply
        return Reply(200, completion(f"by {call.body['model']}"))

    endpoint.behave = behave
    done, failed = await staged(
        make_input(4), endpoint, fallback=("middle", "strong"), with_="model"
    )
    assert failed == []
    assert Counter(row["caption"] for row in done) == {"by m": 3, "by middle": 1}


async def test_a_fallback_that_refuses_all_is_left_out(make_input, endpoint) -> None:
    def behave(call: Call) -> Reply:
        if call.body["model"] == "broken":
            return Reply(401, {"error": {"message": "Incorrect API key provided"}})
        if call.body["model"] == "m":
            return Reply(200, completion("I'm sorry, but I can't help with that."))
        return Reply(200, completion("fine"))

    endpoint.behave = behave
    done, failed = await staged(make_input(40), endpoint, fallback=("broken", "good"))
    assert ([row["caption"] for row in done], failed) == (["fine"] * 40, [])
    refused = [call for call in endpoint.calls if call.body["model"] == "broken"]
    assert len(refused) <= 12


async def test_only_doubtful_records_go_to_the_strong_model(make_input, endpoint) -> None:
    def behave(call: Call) -> Reply:
        if call.body["model"] == "strong":
            return Reply(200, completion("strong"))
        assert call.body["logprobs"] is True
        log = -2.0 if "q1" in question(call) or call.images[0] == jpeg(1) else -0.05
        return with_logprobs("weak", ("we", log), ("ak", log))

    endpoint.behave = behave
    quick = {"name": "quick", "prompt": "Describe {{ prompt }}.", "field": "caption"}
    strong = {
        "name": "strong",
        "prompt": "Describe.",
        "model": "strong",
        "when": "doubt > 0.4",
        "field": "caption",
    }
    done, failed = await staged(make_input(4), endpoint, quick, strong)
    assert failed == []
    assert {row["id"]: row["caption"] for row in done} == {
        0: "weak",
        1: "strong",
        2: "weak",
        3: "weak",
    }


async def test_the_doubt_of_a_caption_can_stand_in_its_row(make_input, endpoint) -> None:
    endpoint.behave = lambda _: with_logprobs("a dog", ("a", -0.1), (" dog", -0.3))
    done, _ = await staged(make_input(1), endpoint, with_="doubt")
    assert done[0]["caption_doubt"] == pytest.approx(0.1813, abs=1e-3)


async def test_that_no_doubt_is_known_is_told(make_input, endpoint, caplog) -> None:
    done, _ = await staged(make_input(1), endpoint, with_="doubt")
    assert done[0]["caption_doubt"] is None
    assert "gives no logprobs" in caplog.text


async def test_a_name_that_nothing_has_is_warned_of(make_input, endpoint, caplog) -> None:
    strong = {"name": "strong", "prompt": "Describe.", "when": "doubtt > 0.4 or width > 1e6"}
    done, _ = await staged(make_input(3), endpoint, DRAFT, {**strong, "field": "caption"})
    assert len(done) == endpoint.count == 3
    assert "stage strong: no record and no earlier stage had a value for doubtt" in caplog.text


async def test_nothing_is_said_of_names_if_no_record_came_that_far(
    make_input, endpoint, caplog
) -> None:
    endpoint.behave = scripted({"Describe": "I'm sorry, I can't help with that."})
    strong = {"name": "strong", "prompt": "Again.", "when": "len(draft) > 5 and title"}
    done, failed = await staged(
        make_input(3), endpoint, DRAFT, {**strong, "field": "caption"}, stop_after=100
    )
    assert (done, len(failed)) == ([], 3)
    assert "had a value for" not in caplog.text


async def test_nothing_is_said_of_items_if_no_list_has_any(make_input, endpoint, caplog) -> None:
    each = {"name": "each", "prompt": "Part?", "each": "lines('')", "crop": "item['box']"}
    done, _ = await staged(make_input(2), endpoint, DRAFT, {**each, "field": "parts"})
    assert [row["parts"] for row in done] == [[], []]
    assert "had a value for" not in caplog.text


async def test_samples_that_disagree_are_doubtful(make_input, endpoint) -> None:
    samples = iter(["a red dog", "a red dog", "the blue cat"])
    endpoint.behave = lambda _: Reply(200, completion(next(samples)))
    done, _ = await staged(make_input(1), endpoint, samples=3, pick="best", with_="doubt")
    assert done[0]["caption"] == "a red dog"
    assert done[0]["caption_doubt"] == pytest.approx(2 / 3, abs=1e-3)


async def test_an_unknown_doubt_is_told(make_input, endpoint, caplog) -> None:
    strong = {"name": "strong", "prompt": "Again.", "when": "doubt > 0.4", "field": "caption"}
    done, _ = await staged(make_input(2), endpoint, DRAFT, strong)
    assert len(done) == 2
    assert caplog.text.count("gives no logprobs") == 1


async def test_the_probability_of_yes_is_used_where_the_endpoint_gives_it(
    make_input, endpoint
) -> None:
    top = [{"token": " No", "logprob": -0.36}, {"token": "Yes", "logprob": -1.2}]
    endpoint.behave = scripted(
        {
            "Describe": "A dog.",
            "Is it true?": lambda _: with_logprobs("Yes", ("Yes", -1.2), top=top),
            "Join": "nothing",
        }
    )
    verify = {**VERIFY, "field": "checks"}
    done, failed = await staged(make_input(1), endpoint, DRAFT, verify, REWRITE)
    assert failed == []
    assert done[0]["caption"] == "nothing"
    assert done[0]["checks"][0]["answer"] == pytest.approx(0.3015, abs=1e-3)


@pytest.mark.parametrize(
    ("pick", "expected", "requests"),
    [
        ("best", "a brown dog runs", 3),
        ("longest", "a white cat sleeps on a chair", 3),
        ("merge", "merged", 4),
        ("judge", "a brown dog runs fast", 4),
    ],
)
async def test_one_caption_of_several_samples(
    make_input, endpoint, pick, expected, requests
) -> None:
    samples = iter(["a brown dog runs fast", "a brown dog runs", "a white cat sleeps on a chair"])

    def behave(call: Call) -> Reply:
        asked = question(call)
        if asked.startswith("These captions"):
            assert "1. a brown dog runs fast" in asked
            assert len(call.images) == 1
            return Reply(200, completion("Number 1." if "number alone" in asked else "merged"))
        return Reply(200, completion(next(samples)))

    endpoint.behave = behave
    done, failed = await staged(make_input(1), endpoint, samples=3, pick=pick)
    assert failed == []
    assert done[0]["caption"] == expected
    assert endpoint.count == requests


async def test_the_shape_of_captions_is_that_of_the_caption_alone(make_input, endpoint) -> None:
    endpoint.behave = scripted({"Describe": "An image of a dog", "Short": "A dog"})
    short = {"name": "short", "prompt": "Short", "field": "caption"}
    draft = {**DRAFT, "field": "draft_text"}
    done, failed = await staged(
        make_input(1), endpoint, draft, short, prefix="ohwx, ", forbid="image of"
    )
    assert failed == []
    assert (done[0]["caption"], done[0]["draft_text"]) == ("ohwx, A dog", "An image of a dog")


async def test_equal_records_are_told_by_all_that_any_stage_sees(tmp_path, endpoint) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    titles = ["x", "x", "y"]
    lines = [json.dumps({"id": n, "image": "a.jpg", "title": t}) for n, t in enumerate(titles)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    second = {"name": "second", "prompt": "Again {{ title }}: {{ draft }}", "field": "caption"}
    done, failed = await staged(tmp_path / "in.jsonl", endpoint, DRAFT, second, concurrency=1)
    assert (len(done), failed) == (3, [])
    asked = Counter(question(call)[:8] for call in endpoint.calls)
    assert asked["Again x:"] == asked["Again y:"] == 1


async def test_records_cannot_write_into_templates_or_stand_for_answers(tmp_path, endpoint) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    hostile = {
        "image": "a.jpg",
        "title": "{{ 7 * 7 }}{% for x in range(9) %}x{% endfor %}",
        "draft": "MINE",
        "codes": {"draft": "refused"},
        "doubt": 1,
    }
    (tmp_path / "in.jsonl").write_text(json.dumps(hostile))
    last = {
        "name": "last",
        "prompt": "{{ title }} / {{ draft }}",
        "when": "codes['draft'] == '' and doubt < 0.5",
        "image": False,
        "field": "caption",
    }
    endpoint.behave = scripted({"Describe": "THEIRS", "{{ 7": lambda asked: asked})
    done, failed = await staged(tmp_path / "in.jsonl", endpoint, DRAFT, last)
    assert failed == []
    assert done[0]["caption"] == f"{hostile['title']} / THEIRS"


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"prompt": "x"}], "a table with a name"),
        ([{"name": "A b", "prompt": "x"}], "a table with a name"),
        ([{"name": ["a"], "prompt": "x"}], "a table with a name"),
        ([1], "a table with a name"),
        ([{"name": "true", "prompt": "x"}], "the name is taken"),
        ([DRAFT, {**VERIFY, "samples": 3}], "each cannot be combined with samples"),
        (
            [DRAFT, {"name": "a", "prompt": "x", "crop": "b", "image": False}],
            "crop needs the image",
        ),
        ([DRAFT, {"name": "a", "prompt": "x", "choose": "draft"}], "with several samples"),
        ([{"name": "a", "promt": "x"}], "Did you mean prompt?"),
        ([{"name": "a", "prompt": "{{ b }}"}, {"name": "b", "prompt": "x"}], "b has no answer yet"),
        ([{"name": "a", "prompt": "{{ x"}], "the template is wrong"),
        ([{"name": "a", "prompt": "x", "when": "__import__('os')"}], "stage a: when"),
        ([{"name": "a", "prompt": "x"}, {"name": "a", "prompt": "y"}], "two stages"),
        ([{"name": "exif", "prompt": "x"}], "the name is taken"),
        ([{"name": "a", "image": False}], "give it a prompt"),
        ([{"name": "a", "prompt": "x", "field": "other"}], "for the caption"),
        ([{**DRAFT, "on-failure": "skip-item"}], "is for stages with each"),
        ([{"name": "a", "prompt": "x", "choose": "b"}], "choose: no earlier stage"),
        ([{"name": "a", "prompt": ""}], "stage a: prompt: must not be empty"),
        ([DRAFT, {"name": "a", "prompt": "x", "max_tokens": -1}], "stage a: max-tokens: must be"),
        ([{"name": "a", "prompt": "x", "field": "image"}, DRAFT], "own field 'image'"),
    ],
)
async def test_a_wrong_stage_is_refused_before_anything_is_sent(
    make_input, endpoint, stages, words
) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)):
        await staged(make_input(1), endpoint, *stages)
    assert endpoint.count == 0


@pytest.mark.parametrize(
    "option", [{"schema": '{"type": "object"}'}, {"prompt_file_in_folder": "prompt.txt"}]
)
async def test_what_no_stage_would_use_is_refused(option, make_input, endpoint) -> None:
    with pytest.raises(SettingsError, match="no stage would use --"):
        await staged(make_input(1), endpoint, DRAFT, **option)
    assert endpoint.count == 0


@pytest.mark.parametrize("option", ["prompt", "system_prompt"])
async def test_a_question_that_no_stage_asks_is_told_once(
    option, make_input, endpoint, caplog
) -> None:
    source = make_input(2)
    await staged(source, endpoint, DRAFT, **{option: "Own"})
    flag = f"--{option.replace('_', '-')}"
    assert caplog.text.count(f"no stage uses {flag}, for each has a prompt of its own") == 1
    assert "[[stage]]" in caplog.text
    caplog.clear()
    await staged(source, endpoint, {"name": "own"}, redo="all", **{option: "Own"})
    assert "no stage uses" not in caplog.text


@pytest.mark.parametrize("set_of_stages", ["detailed", "merge"])
async def test_the_describer_is_asked_no_questions(set_of_stages, make_input) -> None:
    source = make_input(1)
    with pytest.raises(SettingsError, match=r"stage \w+: the built-in describer .* base-url"):
        await run_batch(source, offline=True, stages=set_of_stages)
    assert not source.with_name("in.captions.jsonl").exists()


@pytest.mark.parametrize("options", [{"pick": "best"}, {"pick": "merge"}, {"fallback": ("m",)}])
def test_the_describer_still_takes_what_asks_it_nothing_else(options, make_input) -> None:
    assert plans_of(Settings.create(make_input(1), offline=True, **options))


async def test_a_stage_with_an_address_of_its_own_stands_beside_the_describer(
    make_input, endpoint
) -> None:
    endpoint.behave = scripted({"Better": "A cat."})
    strong = {"name": "strong", "prompt": "Better: {{ draft }}", "model": "m"}
    report = await run_batch(
        make_input(1),
        offline=True,
        stage=[{"name": "draft"}, {**strong, "base-url": endpoint.base_url}],
    )
    assert [row["caption"] for row in rows(Path(report.output))] == ["A cat."]


async def test_boxes_in_the_cell_of_a_table_are_a_list(tmp_path, endpoint) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    source = tmp_path / "in.csv"
    source.write_text('image,boxes,n\n0.jpg,"[[0, 0, 0.5, 1], [0, 0, 1, 1]]",1\n0.jpg,[none],2\n')
    report = await run_batch(
        source, base_url=endpoint.base_url, model="m", stages="region", output=tmp_path / "o.jsonl"
    )
    assert endpoint.count == 3
    assert len(rows(Path(report.output))) == 1
    (failed,) = rows(Path(report.failures))
    assert failed["code"] == "stage_items"


def test_the_command_for_dataflows_captions_works_as_printed(
    tmp_path, endpoint, run_command
) -> None:
    page = (Path(captioner.__file__).parent / "docs" / "dataflow.md").read_text()
    (line,) = re.findall(r"^    captioner (.*--stages.*)$", page, re.MULTILINE)
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "rows.jsonl").write_text('{"image": "0.jpg"}\n')
    endpoint.behave = scripted({"Describe": "One.", "Look": "Yes"})
    words = line.replace("URL", endpoint.base_url).replace("--model M", "--model m").split()
    done = run_command(*words, "--no-view", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["answer"] for row in rows(tmp_path / "answers.jsonl")] == ["One."]


def test_stages_stand_in_toml_beside_or_over_a_set(
    make_input, endpoint, run_command, tmp_path
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        'stages = "merge"\nmodel = "m"\n[[stage]]\nname = "second"\nmodel = "another"\n'
    )
    source = make_input(1)
    done = run_command(source, "--config", config, "--base-url", endpoint.base_url, "--no-view")
    assert done.returncode == 0, done.stderr
    assert [call.body["model"] for call in endpoint.calls] == ["m", "another", "m"]


async def test_changing_one_stage_asks_that_stage_again_and_no_other(make_input, endpoint) -> None:
    first = {"name": "first", "prompt": "First of {{ prompt }}."}
    second = {"name": "second", "prompt": "Second: {{ first }}"}
    source = make_input(5)
    await staged(source, endpoint, first, second)
    assert endpoint.count == 10
    changed = {**second, "prompt": "Changed: {{ first }}"}
    done, failed = await staged(source, endpoint, first, changed, redo="all")
    assert failed == []
    again = [question(call) for call in endpoint.calls[10:]]
    assert len(again) == 5
    assert all(text.startswith("Changed") for text in again)
    assert all(row["caption"].startswith("Changed") for row in done)


async def test_what_was_known_of_a_kept_answer_is_known_again(make_input, endpoint) -> None:
    """Probabilities come with a reply; a later run reads them from the file of answers."""
    quick = {"name": "quick", "prompt": "Describe.", "field": "caption"}
    check = {"name": "check", "prompt": "Is it?", "answer": "yes-no", "field": "check"}
    other = [{"token": "Yes", "logprob": -2.0}]
    last = {"name": "last", "prompt": "{{ doubts['quick'] }} {{ check }}", "field": "last"}
    endpoint.behave = scripted(
        {
            "Describe": lambda _: with_logprobs("dog", ("dog", -0.7)),
            "Is it": lambda _: with_logprobs("No", ("No", -0.1), top=other),
            "": lambda asked: f"told {asked}",
        }
    )
    source = make_input(1)
    (before,), _ = await staged(source, endpoint, quick, check, last)
    asked = endpoint.count
    changed = {**last, "prompt": last["prompt"] + " again"}
    (after,), _ = await staged(source, endpoint, quick, check, changed, redo="all")
    assert endpoint.count == asked + 1
    assert after["check"] == before["check"] == pytest.approx(0.13, abs=0.01)
    assert after["last"] == f"{before['last']} again"


async def test_redo_without_a_change_asks_all_stages_again(make_input, endpoint) -> None:
    first = {"name": "first", "prompt": "First of {{ prompt }}."}
    second = {"name": "second", "prompt": "Second: {{ first }}"}
    source = make_input(3)
    await staged(source, endpoint, first, second)
    await staged(source, endpoint, first, second, redo="all")
    assert endpoint.count == 12


async def test_the_estimate_has_each_stage(make_input, tmp_path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text("[m]\ninput = 1.0\noutput = 2.0\n[big]\ninput = 10.0\noutput = 20.0\n")
    rewrite = {**REWRITE, "model": "big"}
    settings = Settings.create(
        make_input(10), model="m", stage=[DRAFT, VERIFY, rewrite], prices=prices
    )
    found = await estimate(settings)
    draft, verify, last = found.stages
    assert [stage.requests for stage in found.stages] == [10, 80, 10]
    assert (draft.is_bound, verify.is_bound, last.is_bound) == (False, False, True)
    assert last.model == "big"
    assert verify.prompt_tokens > 5 * draft.prompt_tokens
    assert last.cost == pytest.approx(
        (last.prompt_tokens * 10 + last.completion_tokens * 20) / 1_000_000
    )
    assert found.cost == pytest.approx(sum(stage.cost or 0 for stage in found.stages))
    assert found.requests == 100
    said = describe_estimate(found, settings)
    assert "stage draft: 10 requests" in said
    assert "stage verify: about 80 requests" in said  # nobody knows how many sentences come
    assert "stage rewrite: at most 10 requests" in said


async def test_the_estimate_of_detailed_has_as_many_sentences_as_it_asks_for(make_input) -> None:
    settings = Settings.create(make_input(10), model="m", stages="detailed")
    found = {stage.name: stage for stage in (await estimate(settings)).stages}
    (most,) = re.findall(r"\d+ to (\d+) short sentences", tables_of("detailed")[0]["prompt"])
    assert found["verify"].requests == 10 * int(most)


def test_the_page_about_stages_has_stages_that_work() -> None:
    page = (Path(captioner.__file__).parent / "docs" / "stages.md").read_text()
    blocks = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL)]
    assert len(blocks) == 4
    for block in blocks:
        plans_of(Settings.create("in.jsonl", **block))
    assert all(f"| `{name}` |" in page for name in known_sets())


async def test_an_answer_that_is_read_in_another_way_is_asked_again(make_input, endpoint) -> None:
    endpoint.behave = lambda _: with_logprobs("Yes", ("Yes", -0.7))
    check = {"name": "check", "prompt": "Is it?", "field": "check"}
    last = {"name": "last", "prompt": "Last", "when": "check != 'Yes'", "field": "caption"}
    source = make_input(1)
    await staged(source, endpoint, DRAFT, {**check, "answer": "yes-no"}, last)
    (row,), _ = await staged(source, endpoint, DRAFT, check, last, redo="all")
    assert (row["check"], endpoint.count) == ("Yes", 4)


async def test_a_doubt_that_is_wanted_later_is_asked_for(make_input, endpoint) -> None:
    endpoint.behave = lambda call: (
        with_logprobs("weak", ("weak", -2.0)) if "logprobs" in call.body else None
    )
    strong = {"name": "strong", "prompt": "Strong", "when": "doubt > 0.4", "field": "caption"}
    source = make_input(2)
    await staged(source, endpoint, DRAFT)
    done, _ = await staged(source, endpoint, DRAFT, strong, redo="all")
    assert endpoint.count == 2 + 4
    assert all(row["caption_prompt"] == "Strong" for row in done)


async def test_a_record_that_is_nested_deeply_fails_alone(tmp_path, endpoint) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    boxes = ["[" * 300 + "]" * 300, "[" * 251 + "]" * 251, "[[0, 0, 9, 9]]"]
    lines = [f'{{"image": "a.jpg", "boxes": {box}}}' for box in boxes]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    done, failed = await staged(tmp_path / "in.jsonl", endpoint, stages="region")
    assert len(done) == 1
    assert {row["code"] for row in failed} == {"record_too_large"}
    assert len(failed) == 2


async def test_a_retry_pays_for_no_stage_that_was_answered(make_input, endpoint) -> None:
    answers = {"Describe": "A dog.", "Check": "I'm sorry, I can't help with that."}
    endpoint.behave = scripted(answers)
    check = {"name": "check", "prompt": "Check", "field": "caption"}
    source = make_input(2)
    done, failed = await staged(source, endpoint, {**DRAFT, "field": None}, check)
    assert (len(done), len(failed)) == (0, 2)
    endpoint.calls.clear()
    answers["Check"] = "Fine."
    done, failed = await staged(source, endpoint, {**DRAFT, "field": None}, check, retry="refused")
    assert len(done) == 2
    assert {question(call) for call in endpoint.calls} == {"Check"}


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "- 3 cats on a mat\n2. 1950s red car\n\n* 3d render",
            ["3 cats on a mat", "1950s red car", "3d render"],
        ),
        ('"Stop" sign\n-5 degrees\n2024', ['"Stop" sign', "-5 degrees", "2024"]),
        (None, []),
    ],
)
def test_the_lines_of_an_answer_are_without_the_marks_of_a_list(text, lines) -> None:
    assert FUNCTIONS["lines"](text) == lines


@pytest.mark.parametrize("text", ["mean(a) > 1", "a[0] / a[1] > 1", "highest(a) + 0.5 > 1"])
def test_numbers_of_any_size_make_no_error(text) -> None:
    """An answer with an integer of a thousand digits has no mean, and does not end the run."""
    expression = Where(text, "when", FUNCTIONS)
    assert not expression.value({"a": [10**1_000, 0.5]})


def test_expressions_are_evaluated_for_one_record_at_a_time() -> None:
    expression = Where("item", "crop")

    def own(number: int) -> bool:
        return all(expression.value({"item": number}) == number for _ in range(300))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(own, range(64)))
    finally:
        sys.setswitchinterval(before)


THREE = """
base-url = "{url}"
model = "m"
concurrency = 8

[[stage]]
name = "one"
prompt = "One {{{{ prompt }}}}"

[[stage]]
name = "two"
prompt = "Two {{{{ one }}}}"

[[stage]]
name = "three"
image = false
prompt = "Three {{{{ two }}}}"
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_kill_loses_no_record_and_pays_no_finished_stage_twice(
    make_input, endpoint, tmp_path, run_command, processes
) -> None:
    """Killed ten times. What was in flight at a kill was not finished; the rest was."""
    source, config, output = make_input(120), tmp_path / "run.toml", tmp_path / "out.jsonl"
    config.write_text(THREE.format(url=endpoint.base_url))
    words = command(
        source, "--config", config, "-o", output, "--no-view", f"--processes={processes}"
    )
    kill_in_mid_run(endpoint, words, times=10, after=25)
    done = run_command(*words[3:])
    assert done.returncode == 0, done.stderr
    assert sorted(row["id"] for row in rows(output)) == list(range(120))
    assert all(row["caption"].startswith("Three Two One q") for row in rows(output))
    asked = Counter(call.identity for call in endpoint.calls)
    assert len(asked) == 360
    assert endpoint.count - 360 <= 10 * 8


def test_answers_beside_the_output_are_neither_links_nor_trusted(
    make_input, endpoint, tmp_path, run_command
) -> None:
    config, output = tmp_path / "run.toml", tmp_path / "out.jsonl"
    config.write_text(THREE.format(url=endpoint.base_url))
    victim = tmp_path / "victim"
    victim.write_text("mine")
    answers = tmp_path / "out.jsonl.answers"
    answers.symlink_to(victim)
    words = (make_input(2), "--config", config, "-o", output, "--no-view")
    refused = run_command(*words)
    assert (refused.returncode, victim.read_text()) == (2, "mine")
    assert "is not a regular file" in refused.stderr
    answers.unlink()
    # Those of the same run by somebody else, who changed them; rubbish; and a hole of a terabyte.
    theirs = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "theirs")}
    made = run_command(words[0], *words[1:3], "-o", tmp_path / "theirs.jsonl", env=theirs)
    assert made.returncode == 0, made.stderr
    forged = (tmp_path / "theirs.jsonl.answers").read_bytes().replace(b"Three", b"A lie")
    assert b"A lie" in forged
    endpoint.calls.clear()
    answers.write_bytes(b"\xff" * 100 + b"\n" + forged + b'{"x')
    with answers.open("r+b") as file:
        file.truncate(1 << 40)
    done = run_command(*words)
    assert "not written by this user on this machine" in done.stderr
    assert done.returncode == 0, done.stderr
    assert all(row["caption"].startswith("Three Two One q") for row in rows(output))
    assert len(endpoint.calls) == 6
    assert run_command("remove", output, "--yes").returncode == 0
    assert not answers.exists()


async def test_stages_of_a_record_go_to_the_endpoint_that_has_its_image(
    make_input, endpoint
) -> None:
    other = FakeEndpoint()
    other.start()
    try:
        check = {"name": "check", "prompt": "Check {{ draft }}", "field": "caption"}
        await staged(
            make_input(40), endpoint, DRAFT, check, base_url=(endpoint.base_url, other.base_url)
        )
    finally:
        other.stop()
    seen = [{call.images[0] for call in one.calls} for one in (endpoint, other)]
    assert endpoint.count + other.count == 80
    assert min(map(len, seen)) > 5
    assert len(seen[0] & seen[1]) < 10


async def test_a_question_stays_its_own_when_its_image_is_encoded_anew(
    make_input, endpoint
) -> None:
    images: list[bytes] = []

    def behave(call: Call) -> Reply:
        if "second" in question(call):
            images.extend(call.images)
            if len(images) == 1:
                return Reply(413, {"error": {"message": "request entity too large"}})
        return Reply(200, completion(f"answer to {question(call)}"))

    endpoint.behave = behave
    done, failed = await staged(
        make_input(1), endpoint, ask=("a=the first?", "b=the second?"), fallback="other"
    )
    assert failed == []
    assert (done[0]["a"], done[0]["b"]) == ("answer to the first?", "answer to the second?")
    assert images[0] != images[1]


async def test_captions_of_several_questions_keep_their_shape_and_their_checks(
    tmp_path, endpoint
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "in.jsonl").write_text(json.dumps({"image": "a.jpg", "a": "old a", "b": "old b"}))
    endpoint.behave = lambda call: Reply(200, completion(f"new {question(call)}"))
    options = {"ask": ("a=x", "b=y"), "with_": "doubt", "existing": "append", "prefix": "P: "}
    done, failed = await staged(tmp_path / "in.jsonl", endpoint, **options)
    assert failed == []
    assert all(row.startswith("P: old ") and "new " in row for row in (done[0]["a"], done[0]["b"]))


async def test_the_judge_may_answer_shorter_than_a_caption(make_input, endpoint) -> None:
    endpoint.behave = lambda call: Reply(
        200, completion("2" if "number alone" in question(call) else f"a caption {call.number}")
    )
    done, failed = await staged(make_input(1), endpoint, pick="judge", samples=2, min_length=8)
    assert (failed, done[0]["caption"]) == ([], "a caption 2")


async def test_a_stage_that_goes_on_stops_no_run(make_input, endpoint) -> None:
    endpoint.behave = scripted({"Is it": "maybe", "Describe": "A dog."})
    check = {"name": "check", "prompt": "Is it?", "answer": "yes-no", "on-failure": "go-on"}
    done, failed = await staged(make_input(30), endpoint, check, DRAFT, max_attempts=1)
    assert (len(done), failed) == (30, [])


async def test_an_unknown_end_makes_no_number_of_a_text(make_input, endpoint) -> None:
    endpoint.behave = lambda _: Reply(200, completion("maybe", finish_reason="eos_of_theirs"))
    check = {"name": "check", "prompt": "Is it?", "answer": "yes-no", "on-failure": "go-on"}
    done, _ = await staged(make_input(1), endpoint, check, DRAFT, max_attempts=2)
    assert done[0]["caption"] == "maybe"


async def test_a_key_of_the_environment_goes_to_the_hosts_of_the_run(
    make_input, endpoint, monkeypatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-run")
    monkeypatch.setenv("OTHER_KEY", "sk-other")
    url = endpoint.base_url.replace("127.0.0.1", "localhost")
    here, there = {**DRAFT, "field": None}, {"name": "there", "prompt": "There", "base-url": url}
    own = {"name": "own", "prompt": "Own", "base-url": url, "api-key-env": "OTHER_KEY"}
    await staged(make_input(1), endpoint, here, there, own)
    keys = {question(call): call.headers.get("authorization") for call in endpoint.calls}
    assert keys == {"Describe it.": "Bearer sk-of-the-run", "There": None, "Own": "Bearer sk-other"}


async def test_an_option_that_changes_requests_asks_again(make_input, endpoint) -> None:
    source = make_input(1)
    await staged(source, endpoint, DRAFT)
    await staged(source, endpoint, DRAFT, redo="all", detail="low")
    assert endpoint.count == 2


async def test_records_leave_a_dead_endpoint_that_another_stage_has_alone(
    make_input, endpoint
) -> None:
    other = FakeEndpoint()
    other.start()
    other.behave = lambda _: Reply(500, {"error": {"message": "broken"}})
    never = {"name": "never", "prompt": "x", "when": "1 > 2", "base-url": other.base_url}
    try:
        done, failed = await staged(
            make_input(40), endpoint, {**DRAFT, "field": "caption"}, never,
            base_url=(endpoint.base_url, other.base_url),
        )  # fmt: skip
    finally:
        other.stop()
    assert (len(done), failed) == (40, [])
