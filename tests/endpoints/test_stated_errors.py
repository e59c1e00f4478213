"""Errors that come with a status of success, in every place that servers put them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from captioner.core import errors
from captioner.core.types import Completion, Response
from captioner.endpoints.openai_chat import OpenAIChat

HALF = "A plain field with"


def reply(text: str | None = HALF, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"content": text}}
    return {"choices": [choice], **more}


def judge(body: Any, status: int = 200) -> Completion:
    return OpenAIChat("m", max_tokens=9).judge(Response(status, {}, orjson.dumps(body)))


@pytest.mark.parametrize(
    "more",
    [
        {"base_resp": {"status_code": 1013, "status_msg": "internal error"}},
        {"code": 500, "message": "upstream broke"},
        {"code": "500", "msg": "upstream broke"},
        {"code": "InternalError", "message": "upstream broke"},
        {"error_code": 336100, "error_msg": "try later"},
        {"object": "error", "message": "engine dead"},
        {"error": {"code": 0, "message": "odd"}},
        {"error": "odd"},
    ],
)
def test_half_a_text_beside_an_error_is_no_caption(more) -> None:
    """An error beside a text counts, whatever member states it."""
    with pytest.raises(errors.AttemptError):
        judge(reply(**more))


@pytest.mark.parametrize(
    "more",
    [
        {"error": {"code": 0, "message": ""}},
        {"error": {"code": "0", "message": "success"}},
        {"error": {}},
        {"error": {"message": None, "type": None, "code": None}},
        {"base_resp": {"status_code": 0, "status_msg": ""}},
        {"base_resp": {"status_code": 0, "status_msg": "success"}},
        {"code": 0, "message": "ok"},
        {"code": 200, "msg": "success"},
        {"code": "200", "message": "Success."},
        {"code": 20000, "message": "Ok", "status": True},
        {"code": None, "message": "cached"},
        {"message": "cached reply"},
        {"detail": "from cache", "status": "completed"},
        {"errors": []},
        {"prompt_filter_results": [{"content_filter_results": {"hate": {"filtered": False}}}]},
    ],
)
def test_a_success_beside_a_caption_is_no_error(more) -> None:
    """Servers that always send the members of an error, with nothing in them, are understood."""
    assert judge(reply("A plain field.", **more)).text == "A plain field."


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": {"message": "Invalid API key", "code": "invalid_api_key"}}, "EndpointRefused"),
        ({"error": {"message": "User not found.", "code": "401"}}, "EndpointRefused"),
        ({"error": {"message": "Sorry", "status": 401}}, "EndpointRefused"),
        ({"object": "error", "message": "The model `x` does not exist."}, "EndpointRefused"),
        ({"error_code": 110, "error_msg": "Access token invalid"}, "EndpointRefused"),
        ({"error_code": 17, "error_msg": "daily request limit reached"}, "EndpointGaveOut"),
        ({"error_code": 18, "error_msg": "Open api qps request limit reached"}, "EndpointFault"),
        ({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}},
         "EndpointGaveOut"),
        ({"base_resp": {"status_code": 1002, "status_msg": "rate limit exceeded(RPM)"}},
         "EndpointFault"),
        ({"base_resp": {"status_code": 1026, "status_msg": "input new_sensitive"}}, "Refused"),
        ({"code": 10013, "message": "输入内容审核不通过 涉嫌违规"}, "Refused"),
        ({"error": {"message": "max_tokens is not supported", "code": "invalid"}}, "Parameter"),
        ({"error": {"message": "image exceeds 5 MB maximum", "code": "bad"}}, "ImageRejected"),
        ({"text": "**NETWORK ERROR DUE TO HIGH TRAFFIC.**", "error_code": 50004}, "EndpointFault"),
        ({"detail": "Service is overloaded"}, "EndpointFault"),
        ({"errors": [{"message": "Invalid API token", "code": 10000}]}, "EndpointRefused"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("choices", [None, []])
def test_the_words_of_an_error_decide(body, kind, choices) -> None:
    """What is for ever is not waited for, though its status is one of success."""
    with pytest.raises(getattr(errors, f"{kind}Error")) as caught:
        judge({**body, "choices": choices})
    assert type(caught.value).__name__ == f"{kind}Error"


@pytest.mark.parametrize(
    "more",
    [
        {"prompt_filter_results": [{"content_filter_results": {"violence": {"filtered": True}}}]},
        {"promptFeedback": {"blockReason": "SAFETY"}},
        {"prompt_feedback": {"block_reason": "PROHIBITED_CONTENT"}},
    ],
)
@pytest.mark.parametrize("choices", [None, []])
def test_a_filter_without_choices_is_final(more, choices) -> None:
    """What a filter held back is not asked for again."""
    with pytest.raises(errors.RefusedError) as caught:
        judge({"choices": choices, **more})
    assert caught.value.code == "filtered"


def test_the_first_choice_is_the_one_with_that_index() -> None:
    """A server may send its choices in any order."""
    other = {"index": 1, "finish_reason": "stop", "message": {"content": "Other"}}
    (first,) = reply("A field.")["choices"]
    assert judge({"choices": [other, first]}).text == "A field."
    assert judge({"choices": [first, other]}).text == "A field."
    assert judge({"choices": [other]}).text == "Other"
