"""Take what marks the turn of a conversation out of a text: roles, special tokens, answer boxes."""

from __future__ import annotations

import re

_PART = (
    r"(?!/?(?:\w{0,20}_)?(?:box|ref|quad|point|det|obj|ground|loc|coord|region|seg|poly|solution"
    r"|response))"
)
"""Tokens that are part of an answer: places in the image, and boxes."""

_SPECIAL = rf"<[|\uff5c]{_PART}[^|<>\uff5c\s]{{1,40}}[|\uff5c]>"
_BEGINNING = (
    rf"<[|\uff5c]{_PART}\w{{0,20}}(?:begin|bos|assistant|image|img|vision|video|media|pad|unk"
    r"|startoftext|start_of|sop|mask)\w{0,20}[|\uff5c]>"
)
_WEAK = (
    r"<(?:unk|pad|eod|bos|s|image|img|unused\d{1,4}|0x[0-9a-f]{2}|turn\||\|turn|start_of_turn"
    r"|/?(?:start|end)_of_image|sep|cls|mask)>|(?-i:\[(?:EOS|EOD|BOS|PAD|UNK|SEP|CLS|INST)\])"
)
_FIRST = re.compile(
    rf"(?i:(?:\s|{_BEGINNING}|{_WEAK}|<\|(?:im_start|start_header_id|start)\|>(?=\s*assistant)"
    r"|<\|end_header_id\|>))*+(?:(?:(?:assistant|model)(?=[ \t]*(?:\n|\Z|<\|))|ASSISTANT:(?=\s))"
    rf"(?i:\s|{_BEGINNING}|{_WEAK}|<\|end_header_id\|>)*+)*+"
)
_LAST = re.compile(_WEAK, re.IGNORECASE)
_LONGEST_TOKEN = 24

_CUT = re.compile(
    rf"{_SPECIAL}|</s>|<eos>|<end_of_turn>|<end_of_utterance>|<turn\|>|\[/INST\]", re.IGNORECASE
)
"""Tokens that end a turn: what follows was written past the end."""

_BOX = re.compile(
    r"\s*(?:<(?P<name>answer|caption|response|conclusion|output|result|description|o"
    r"|final(?:_(?:answer|response|caption|output))?)>(?P<named>.*?)</(?P=name)>"
    r"|<(?:answer|conclusion)>(?P<unclosed>(?:(?!</).)*)"
    r"|<\|begin_of_(?:box|solution)\|>(?P<box>.*?)<\|end_of_(?:box|solution)\|>"
    r"|<\|START_RESPONSE\|>(?P<cohere>.*?)(?:<\|END_RESPONSE\|>|\Z)"
    r"|\[BEGIN FINAL RESPONSE\](?P<servicenow>.*?)(?:\[END FINAL RESPONSE\]|\Z)"
    r"|\$?\\boxed\{(?:\\text\{)?(?P<boxed>[^{}]*)\}{1,2}\$?)\s*\Z",
    re.DOTALL | re.IGNORECASE,
)
_STEPS = re.compile(
    r"\s*<(?:SUMMARY|CAPTION)>.*<CONCLUSION>(.*?)(?:</CONCLUSION>|\Z)\s*\Z", re.DOTALL
)
"""Steps of a model that reasons in sections (LLaVA-CoT); the last one is for the user."""

_BOX_TOKEN = re.compile(r"<\|(?:begin|end)_of_(?:box|solution)\|>")
_QUOTES = frozenset("\"'“”\u2018\u2019`«»")


def without_turn_marks(text: str) -> str:
    """Return a text without roles, special tokens and an answer box around all of it."""
    text = _unboxed(_without_tokens(text))
    if "<|" in text:
        text = _BOX_TOKEN.sub("", text)
    return text.strip()


def _without_tokens(text: str) -> str:
    first = _FIRST.match(text)
    text = text[first.end() :] if first else text
    for cut in _CUT.finditer(text):
        if text[max(0, cut.start() - 1) : cut.start()] not in _QUOTES:
            text = text[: cut.start()]
            break
    end = len(text.rstrip())
    while end and text[end - 1] in ">]":
        opening = "<" if text[end - 1] == ">" else "["
        begin = text.rfind(opening, max(0, end - _LONGEST_TOKEN), end)
        if begin < 0 or not _LAST.fullmatch(text, begin, end):
            break
        if text[max(0, begin - 1) : begin] in _QUOTES:
            break
        end = begin
        while end and text[end - 1].isspace():
            end -= 1
    return text[:end]


def _unboxed(text: str) -> str:
    box = _STEPS.match(text) or _BOX.match(text)
    return next(filter(None, box.groups()[-6:]), "") if box else text
