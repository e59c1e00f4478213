# ruff: noqa: RUF001 - Chinese text has commas of its own
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from captioner.core.errors import BadReplyError, RefusedError
from captioner.core.types import Completion, RequestOverrides, Usage
from captioner.endpoints.thinking import final_text
from captioner.engine import caption_checks as checks
from captioner.engine import wordings
from captioner.engine.caption_checks import (
    HOTTEST,
    LONGEST,
    CaptionRules,
    attempts_for,
    check,
    is_looping,
)
from captioner.settings.options import CODES

LONG = (
    "A brown dog runs along a sandy beach at low tide, its shadow long in the evening light, while "
    "two children in red jackets wave from a wooden pier in the background."
)


def ask_again(
    fault: BadReplyError, said: Completion, asked: RequestOverrides, usual: RequestOverrides
) -> RequestOverrides:
    return checks.ask_again(fault, said, asked, usual, CaptionRules())


def completion(text: str, reason: str = "stop", tokens: int = 0) -> Completion:
    return Completion(text, reason, "m", Usage(10, tokens))


def fault_of(text: str, reason: str = "stop", **rules) -> str:
    try:
        check(completion(text, reason), CaptionRules(**rules))
    except BadReplyError as error:
        return error.code
    return ""


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, I cannot describe this image.",
        "Sorry, I am not able to identify people in images.",
        "I cannot assist with that request.",
        "I can't view images.",
        "I'm unable to process this image.",
        "As an AI language model, I cannot see images.",
        "Unfortunately, I can't tell.",
        '"I apologize, but I will not describe it."',
    ],
)
def test_a_refusal_in_prose_is_no_caption(text) -> None:
    """What a model says instead of describing must not train another."""
    assert fault_of(text) in ("refused", "no_image_seen")


@pytest.mark.parametrize(
    "text",
    [
        'A sign reads "I\'m sorry, we are closed".',
        'The poster says "As an AI language model, I cannot".',
        "Sorrel leaves on a plate.",
        "I see a cat.",
        "Icannot is written on a wall.",
        "Unfortunate weather over a harbour.",
        '"Sorry, we\'re closed" sign hanging in a glass door.',
        "Sorry! board game box on a table.",
        "I Won't Grow Up poster",
        "'I can't' is written on the wall.",
        "I'm sorry is painted on a wall. " + LONG * 3,
    ],
)
def test_legible_text_is_no_refusal(text) -> None:
    """A caption is judged by its beginning and length only, and never cut."""
    assert fault_of(text) == ""
    assert check(completion(text), CaptionRules()).value == text


@pytest.mark.parametrize(
    "unit",
    ["la ", "a tree, ", "A red car is parked on the street. ", "x" * 5 + "y" * 60 + " ", "é\n"],
)
def test_a_loop_is_found_whatever_its_length(unit) -> None:
    """One unit over and over at the end, begun and broken off anywhere."""
    for cut in range(min(12, len(unit))):
        text = LONG + " " + unit * 60
        assert is_looping(text[: len(text) - cut])


@pytest.mark.parametrize(
    "text",
    [
        LONG,
        "ha ha ha ha ha",
        LONG + " " + "." * 500,
        "A table of contents:" + " -" * 200,
        " ".join(f"Chair {number} is red." for number in range(100)),
        "The red car. " * 3 + LONG,
        LONG + LONG,
        "",
    ],
)
def test_what_only_repeats_a_little_is_no_loop(text) -> None:
    """Lists, rulings and echoes are captions."""
    assert not is_looping(text)


def test_each_fault_has_its_code() -> None:
    """The worst is told first: a loop that ran into the limit is a loop."""
    assert fault_of("") == "empty"
    assert fault_of("a cat on", "length") == "truncated"
    assert fault_of("", "length") == "truncated"
    assert fault_of(LONG + " and on" * 50, "length") == "looping"
    assert fault_of("a cat", min_chars=6) == "too_short"
    assert fault_of("a cat", max_chars=4) == "too_long"
    assert fault_of("a cat", min_chars=5, max_chars=5) == ""


def test_what_is_accepted_is_flagged_and_whole() -> None:
    """--accept keeps the text as it came and says what is wrong with it; nothing is not kept."""
    rules = CaptionRules(accept=frozenset({"truncated", "too_long"}), max_chars=3)
    answer = check(completion("a cat on", "length"), rules)
    assert (answer.value, answer.flag) == ("a cat on", "truncated")
    assert check(completion("a cat"), rules).flag == "too_long"
    with pytest.raises(BadReplyError):
        check(completion("", "length"), rules)


def test_loops_are_asked_for_hotter_and_hotter() -> None:
    """The same settings give the same loop again."""
    fault = BadReplyError("looping", "")
    asked, seen = RequestOverrides(), []
    for _ in range(4):
        asked = ask_again(fault, completion("x"), asked, RequestOverrides(0.1))
        seen.append(asked.temperature)
    assert seen == [0.4, 0.7, 1.0, HOTTEST]
    assert (
        ask_again(fault, completion("x"), RequestOverrides(), RequestOverrides(1.5)).temperature
        == 1.5
    )


def test_truncated_captions_get_more_room() -> None:
    """Twice what there was, within bounds; a length that the user gave counts."""
    fault = BadReplyError("truncated", "")
    again = ask_again(fault, completion("x", tokens=700), RequestOverrides(), RequestOverrides())
    assert again.max_tokens == 1400
    assert ask_again(fault, completion("x"), again, RequestOverrides()).max_tokens == 2800
    assert (
        ask_again(
            fault, completion("x"), RequestOverrides(), RequestOverrides(max_tokens=16)
        ).max_tokens
        == 1024
    )
    assert ask_again(
        fault, completion("x"), RequestOverrides(max_tokens=9_000), RequestOverrides()
    ) == RequestOverrides(max_tokens=LONGEST)


def test_a_limit_that_cannot_grow_is_not_paid_for_again() -> None:
    """The same length cuts the same text off; thinking may still be switched off."""
    cut, thinking = BadReplyError("truncated", "cut off"), BadReplyError("thinking", "thought")
    most = RequestOverrides(max_tokens=LONGEST)
    for asked, usual, tokens in (
        (most, RequestOverrides(), 0),
        (RequestOverrides(), RequestOverrides(max_tokens=99_999), 0),
        (RequestOverrides(), RequestOverrides(), LONGEST),
    ):
        with pytest.raises(RefusedError) as caught:
            ask_again(cut, completion("x", tokens=tokens), asked, usual)
        assert caught.value.code == "truncated"
    assert ask_again(thinking, completion(""), most, RequestOverrides()) == most
    with pytest.raises(RefusedError):
        ask_again(thinking, completion(""), most._replace(thinking=False), RequestOverrides())


def test_other_faults_are_asked_for_as_before() -> None:
    """An empty reply says nothing about how to ask."""
    assert (
        ask_again(
            BadReplyError("empty", ""), completion(""), RequestOverrides(), RequestOverrides(0.1)
        )
        == RequestOverrides()
    )


def test_nobody_begs() -> None:
    """A model that refuses twice means it."""
    assert attempts_for("refused", CaptionRules(max_attempts=5)) == 2
    assert attempts_for("refused", CaptionRules(max_attempts=1)) == 1
    assert attempts_for("empty", CaptionRules(max_attempts=5)) == 5


def test_a_refusal_inside_an_object_is_a_refusal() -> None:
    """A model that has to answer in JSON refuses in JSON."""
    rules = CaptionRules(parse=lambda _: {"short": "I'm sorry, I can't help with that.", "n": 1})
    with pytest.raises(BadReplyError) as caught:
        check(completion("{}x"), rules)
    assert caught.value.code == "refused"
    mixed = CaptionRules(parse=lambda _: {"a": "I'm sorry, I can't.", "b": "A cat on a mat."})
    assert check(completion("{}x"), mixed).flag == ""


def answers(name: str) -> list:
    """Return the answers of a data file, one object a line."""
    path = Path(__file__).parent / "answers" / name
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


BAD, CAPTIONS = answers("bad.jsonl"), answers("captions.jsonl")


@pytest.mark.parametrize("answer", BAD, ids=range(len(BAD)))
def test_what_is_said_instead_of_a_caption_is_a_fault(answer) -> None:
    """No image, a refusal, an error or nothing, in any language: none is kept as a caption."""
    text, _ = final_text(answer["text"])
    assert fault_of(text) in (answer["code"], "empty" if answer["code"] == "garbage" else "")


@pytest.mark.parametrize("caption", CAPTIONS, ids=range(len(CAPTIONS)))
def test_a_description_with_the_words_of_a_fault_is_a_caption(caption) -> None:
    """Screenshots, signs, memes, tables and what an image does not show, in several languages."""
    text, thought = final_text(caption["text"])
    assert (text, thought) == (caption["text"], False)
    assert fault_of(text) == ""


def test_no_accepted_code_lets_an_error_through() -> None:
    """--accept is for captions with a fault; an error message is not one."""
    rules = CaptionRules(accept=frozenset(CODES))
    for answer in BAD:
        if answer["code"] == "bad_reply":
            with pytest.raises(BadReplyError):
                check(completion(answer["text"]), rules)


def test_an_error_is_an_error_before_it_is_cut_off() -> None:
    """`--accept truncated` keeps half a caption, not half an error."""
    accept = frozenset({"truncated"})
    assert fault_of("Internal Server Error", "length", accept=accept) == "bad_reply"
    assert fault_of("I don't see any image attached. Please", "length") == "no_image_seen"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Internal Server Error", "bad_reply"),
        ("No image provided.", "no_image_seen"),
        ("抱歉，我不能描述这张图片。", "refused"),
    ],
)
def test_what_is_said_instead_inside_an_object_is_a_fault(text, code) -> None:
    """A schema gives a shape, not a caption; names of fields say nothing."""
    rules = CaptionRules(parse=lambda _: {"error": text, "score": 1})
    with pytest.raises(BadReplyError) as caught:
        check(completion(json.dumps({"error": text})), rules)
    assert caught.value.code == code
    whole = CaptionRules(parse=json.loads)
    assert check(completion('{"error": "A page that reads 404."}'), whole).flag == ""


def test_a_rows_pattern_has_no_groups_and_a_known_kind() -> None:
    """The matcher tells rows apart by its own groups."""
    for row in wordings.ROWS:
        assert re.compile(row.pattern).groups == 0, row
        assert row.kind in wordings.__doc__, row


@pytest.mark.parametrize(
    "unit",
    [
        "I can't see ", "i not see the ", "sorry, ", "we're very sorry ", "an ai model not see ",
        "<html", "<title>", '{"a":', "{", "[", "`", "“", '"', "as an ai ", "to i need ", " ", "?",
        "我无法", "没有看到", "画像が", "an error ", "you not have ", "\\n", "<a", "\u3164", "a.",
    ],
)  # fmt: skip
@pytest.mark.parametrize("length", [290, 499, 100_000])
def test_hostile_text_is_judged_at_once(unit, length) -> None:
    """No expression tries the same text in many ways; a hang is caught by the suite's timeout."""
    for before in ("", "I can't ", "sorry ", '{"error'):
        text = (before + unit * (length // len(unit) + 1))[:length]
        fault_of(text)
        fault_of(text + " x", "length")


@pytest.mark.parametrize(
    "text",
    [
        "!" * 200, "?" * 50, "....", "\u200b\u200c", "\ufeff", "\ufffd" * 40,
        "A \ufffd\ufffd\ufffd dog",
        "@" * 99, "-" * 300, "<unk>", "<pad><pad>", "<image>", "\x00\x00", "A cat. " + "!" * 300,
        "A cat " + "\u200b" * 400, "0" * 300, "0 0 0 " * 60, "the the " * 60, "1. \n" * 80,
        "<unk>" * 40, "a" * 100, "嗯" * 90, "啊,  " * 60, "1, 2, " * 60,
    ],
)  # fmt: skip
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_signs_and_loops_are_no_captions(text, reason) -> None:
    """A loop is a loop before it is a truncation, and signs alone describe nothing."""
    assert fault_of(text, reason) in ("garbage", "looping")
