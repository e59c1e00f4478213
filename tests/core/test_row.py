from __future__ import annotations

from captioner.core.row import RowLayout, field_names
from captioner.core.types import Completion, Usage, ValidatedCompletion


def answer(value, flag="", latency=0.5) -> ValidatedCompletion:
    return ValidatedCompletion(
        value, Completion(str(value), "stop", "m-1", Usage(100, 10)), flag, latency
    )


def test_one_answer_is_the_caption() -> None:
    """Nothing is added that was not asked for."""
    assert RowLayout(["caption"]).compose([[answer("a")]], 3) == ("a", ())


def test_samples_are_a_list_and_questions_are_members() -> None:
    """Two questions twice each: two members, a list each."""
    layout = RowLayout(["short", "dense"])
    answers = [[answer("s1"), answer("s2")], [answer("d1"), answer("d2")]]
    assert layout.compose(answers, 4) == (["s1", "s2"], (("dense", ["d1", "d2"]),))


def test_flags_stand_beside_the_answer_they_are_about() -> None:
    """An accepted fault is told for its own member, and only there."""
    layout = RowLayout(["short", "dense"])
    answers = [[answer("s1")], [answer("d1"), answer("d2", "truncated")]]
    _, more = layout.compose(answers, 3)
    assert more == (("dense", ["d1", "d2"]), ("dense_flag", ["", "truncated"]))


def test_extras_of_a_row() -> None:
    """Tokens and seconds of all answers, and the requests that were sent."""
    extras = ("usage", "finish_reason", "model", "attempts", "latency")
    _, more = RowLayout(["caption"], extras).compose([[answer("a")]], 3)
    assert dict(more) == {
        "caption_usage": {"prompt_tokens": 100, "completion_tokens": 10},
        "caption_finish_reason": "stop",
        "caption_model": "m-1",
        "caption_attempts": 3,
        "caption_latency": 0.5,
    }
    _, more = RowLayout(["caption"], ("model", "latency")).compose([[answer("a"), answer("b")]], 2)
    assert dict(more) == {"caption_model": ["m-1", "m-1"], "caption_latency": 1.0}


def test_every_member_that_may_be_added_is_in_the_family() -> None:
    """Rows are known again whatever options wrote them."""
    layout = RowLayout(["a", "b"], ("usage", "latency"))
    _, more = layout.compose([[answer("x", "looping")], [answer("y", "refused")]], 2)
    assert {"a", *(name for name, _ in more)} <= set(field_names(["a", "b"]))
