"""Where sentences end."""

import pytest

from captioner.engine.sentences import sentence_ends, split_sentences
from captioner.engine.stage_plan import sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A cat sits. a dog waves! Why?", ["A cat sits.", "a dog waves!", "Why?"]),
        (
            "Dr. Smith rides. It is No. 5. No. Yes.",
            ["Dr. Smith rides.", "It is No. 5.", "No.", "Yes."],
        ),
        ("A cat, e.g. a tabby. J. K. sits.", ["A cat, e.g. a tabby.", "J. K. sits."]),
        ("The U.S. Capitol at 5 p.m. on a day.", ["The U.S. Capitol at 5 p.m. on a day."]),
        ("Open at 5 p.m. A man waits.", ["Open at 5 p.m.", "A man waits."]),
        ("Built in 1990. A house of 3.5 m.", ["Built in 1990.", "A house of 3.5 m."]),
        ('A sign reads "Stop." A man stops.', ['A sign reads "Stop."', "A man stops."]),
        ("Wait... for it. So… it is.", ["Wait... for it.", "So… it is."]),
        ("这是猫。「狗。」鸟", ["这是猫。", "「狗。」", "鸟"]),
        ("1. A cat sits.\n2. A dog waves.", ["A cat sits.", "A dog waves."]),
        ("- A cat sits\n- A dog waves\r\n\n* Grass", ["A cat sits", "A dog waves", "Grass"]),
        ("A cat that\nsleeps.\nA dog", ["A cat that\nsleeps.", "A dog"]),
        (" \n ", []),
        (None, []),
    ],
)
def test_the_sentences_of_an_answer(text, expected):
    assert sentences(text) == expected
    assert "".join(split_sentences(text or "")) == (text or "")


def test_a_text_without_end_makes_bounded_work():
    assert len(sentence_ends("A cat. " * 100_000)) == 10_000
