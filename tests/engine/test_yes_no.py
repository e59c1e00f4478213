# ruff: noqa: RUF001 - words of many languages
"""Yes and no, as models say them."""

from __future__ import annotations

import unicodedata

import pytest

from captioner.core.errors import BadReplyError
from captioner.core.types import Completion, Usage, ValidatedCompletion
from captioner.engine.doubt import probability_of_yes
from captioner.engine.yes_no import begins_yes_or_no, yes_or_no


@pytest.mark.parametrize(
    "text",
    [
        "Yes", "**Yes**.", "The answer is yes.", '{"answer": "yes"}', '{"answer": true}', "Yep!",
        "Yes, there is no doubt.", "There is no doubt: yes.", "Answer yes or no: yes", "Ja.",
        "Oui, c'est vrai.", "Sí.",
        "Sì, è vero.", "Sim, é verdade.", "Tak.", "Да, это так.", "EVET", "是的，图中有一只狗。",
        "答案：是", "对。", "はい、そうです。", "네, 맞습니다.", "예.", "نعم، هذا صحيح", "जी हाँ।",
    ],
)  # fmt: skip
def test_yes_in_many_languages(text) -> None:
    assert yes_or_no(text) == yes_or_no(unicodedata.normalize("NFD", text)) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "no", "Nope", "The answer is no.", '{"answer": "no"}', '{"answer": false}',
        "That is not true.", "This isn't entirely true.", "It cannot be true.",
        "It is, yes or no? No.", "Nein.", "Non.", "No, no es cierto.", "Não, não é.", "Nee.",
        "Nie.", "Нет.", "Hayır.", "HAYIR",
        "不是。", "不，没有狗。", "没有。", "否", "答案：不是", "いいえ。", "아니요.", "아닙니다",
        "لا، هذا خطأ", "नहीं।", "是否正确？否",
    ],
)  # fmt: skip
def test_no_in_many_languages(text) -> None:
    assert yes_or_no(text) == yes_or_no(unicodedata.normalize("NFD", text)) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Maybe.",
        "I cannot answer yes or no.",
        "Ja oder nein?",
        "a nose and eyes",
        "यहाँ",
        "不知道",
        "It is not false.",
    ],
)
def test_what_says_neither_is_unclear(text) -> None:
    with pytest.raises(BadReplyError) as error:
        yes_or_no(text)
    assert error.value.code == "unclear"


def test_an_answer_that_was_cut_off_counts_if_it_begins_with_the_word() -> None:
    """The beginning of a thought has yes and no in it as well."""
    assert begins_yes_or_no('"Yes, the image') == 1.0
    assert begins_yes_or_no("不是，图") == 0.0
    for text in ("Let me see whether there is no", '{"answer": "yes', "- "):
        with pytest.raises(BadReplyError):
            begins_yes_or_no(text)


@pytest.mark.parametrize("unit", ["not a ", "isn't ", "yes or no ", "是否", "n", " ", "a'"])
def test_long_answers_are_read_in_linear_time(unit) -> None:
    """A quadratic search would exceed the time limit of a test."""
    with pytest.raises(BadReplyError):
        yes_or_no(unit * (2_000_000 // len(unit)))


@pytest.mark.parametrize(
    ("tokens", "value", "expected"),
    [
        ([("The", []), (" answer", []), (" is", []), (" No", [("Yes", -1.2)])], 0.0, 0.332),
        ([("是的", [("不是", -1.2)])], 1.0, 0.668),
        ([("That", []), (" is", []), (" not", []), (" true", [(" false", -1.2)])], 0.0, 0.0),
        ([("はい", [("いいえ", -1.2)])], 1.0, 0.668),
    ],
)
def test_the_probability_is_that_of_the_token_which_says_so(tokens, value, expected) -> None:
    content = [
        {
            "token": token,
            "logprob": -0.5,
            "top_logprobs": [{"token": name, "logprob": log} for name, log in others],
        }
        for token, others in tokens
    ]
    said = Completion("", "stop", "m", Usage(1, 1), logprobs={"content": content})
    found = probability_of_yes(ValidatedCompletion(value, said))
    assert found == pytest.approx(expected, abs=1e-3)
