"""Take thinking, answer boxes and end-of-turn tokens out of a model's text.

Servers that know a model's marks remove them. Others pass them on, each model family with its own.
"""

from __future__ import annotations

import re

_NAMES = (
    "think",
    "thinking",
    "thought",
    "reasoning",
    "analysis",
    "reflection",
    "scratchpad",
    "seed:think",
)
_MARKS = [
    *((f"<{name}>", f"</{name}>") for name in _NAMES),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|thinking|>", "<|/thinking|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
]
_OPEN = "|".join(re.escape(begin) for begin, _ in _MARKS)
_CLOSE = "|".join(re.escape(end) for _, end in _MARKS)
_INNERMOST = re.compile(f"(?:{_OPEN})(?:(?!{_OPEN}).)*?(?:{_CLOSE})", re.DOTALL | re.IGNORECASE)
_UNQUOTED = r"(?<![\"'“\u2018`«])"  # a caption may quote a mark
_OPENED = re.compile(f"{_UNQUOTED}(?:{_OPEN})", re.IGNORECASE)
_CLOSED = re.compile(f"{_UNQUOTED}(?:{_CLOSE})", re.IGNORECASE)

_HARMONY = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")
"""A message of OpenAI's harmony format; the channel ``final`` is for the user."""

_BOX = re.compile(
    r"\A\s*(?:<\|begin_of_(?:box|solution)\|>(.*?)<\|end_of_(?:box|solution)\|>"
    r"|<answer>(.*?)(?:</answer>|\Z)|<\|START_RESPONSE\|>(.*?)(?:<\|END_RESPONSE\|>|\Z)"
    r"|\[BEGIN FINAL RESPONSE\](.*?)(?:\[END FINAL RESPONSE\]|\Z))\s*\Z",
    re.DOTALL | re.IGNORECASE,
)
_START_OF_TURN = re.compile(
    r"\A\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|assistant\|>|<\|im_start\|>assistant\b)"
)
_END_OF_TURN = re.compile(
    _UNQUOTED + r"(?:"
    r"<\|(?:im_end|im_start|eot_id|eom_id|end|endoftext|end_of_text|end_of_turn|return|start|user"
    r"|assistant|end▁of▁sentence)\|>|<\uff5cend▁of▁sentence\uff5c>|</s>|<eos>|<end_of_turn>"
    r"|<end_of_utterance>|<\|eot\|>"
    r"|<\|END_OF_TURN_TOKEN\|>|\[/INST\])"
)


def final_text(text: str) -> tuple[str, bool]:
    """Return the text that is for the user, and whether there was thinking in it.

    The text is empty if the thinking has no end: then nothing after it is known to be an answer.
    """
    if "<" not in text and "[" not in text and "◁" not in text:
        return text.strip(), False
    thought = False
    if messages := list(_HARMONY.finditer(text)):
        thought = messages[0][1] != "final"
        finals = [message.end() for message in messages if message[1] == "final"]
        text = text[finals[-1] :] if finals else ""
    while True:
        text, count = _INNERMOST.subn("", text)
        if not count:
            break
        thought = True
    if closes := list(_CLOSED.finditer(text)):  # the opening mark was part of the prompt
        thought = True
        text = text[closes[-1].end() :]
    if (opened := _OPENED.search(text)) and text[opened.end() :].strip():
        return "", True
    text = _START_OF_TURN.sub("", text)
    if end := _END_OF_TURN.search(text):
        text = text[: end.start()]
    if box := _BOX.match(text):
        text = next(filter(None, box.groups()), "")
    return text.strip(), thought
