"""Check whether an answer is a caption, and decide how to request it again if not. Pure, no I/O.

Each fault has a code of its own and its own way to retry. Nothing is cut out of a caption to make
it pass.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from captioner.core.errors import BadReplyError
from captioner.core.humanize import counted
from captioner.core.types import RequestOverrides, Turn, ValidatedCompletion
from captioner.endpoints.finish_reasons import finish_family

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from captioner.core.types import Completion


REFUSAL_CHARS = 300
"""Most characters of a refusal: a longer text that begins like one is a description."""

LOOP_CHARS = 80
LOOP_TIMES = 5
LOOP_UNIT = 300
"""A loop ends with a unit of at most `LOOP_UNIT` characters, repeated `LOOP_TIMES` times or more,
`LOOP_CHARS` characters long in all."""

HOTTER = 0.3
HOTTEST = 1.2
DEFAULT_TEMPERATURE = 0.7
LONGER = 2
FIRST_LENGTH = 1_024
LONGEST = 16_384
"""Tokens that a retry asks for: at first, and at most."""

UNSEEN_CHARS = 500
"""Most characters of an answer that says that there is no image."""

_REFUSAL = re.compile(
    r"[\"'\s]*(?:(?:i am |i'm |i |we're |my )?(?:very |so |really )?"
    r"(?:sorry|apologi[sz]e|apologies)\b"
    r"(?:\W*\Z|[^.!?]{0,40}\b(?:i|we)\b.{0,30}?(?:can ?not|can't|unable|not able|won't|will not))"
    r"|(?:unfortunately,? )?i (?:can ?not|can't|won't|will not|am unable to|am not able to"
    r"|must decline to) (?:help|assist|describe|view|see|identify|process|provide|analy[sz]e|fulfil"
    r"|comply|answer|tell|access|generate|continue|do that|discuss|recogni[sz]e)"
    r"|(?:unfortunately,? )?i'm (?:unable|not able) to\b"
    r"|as an ai (?:language )?(?:model|assistant))",
    re.IGNORECASE,
)

_IMAGE = r"(?:images?|pictures?|photos?(?:graphs?)?|screenshots?|attachments?|files?)\b"
_NOT = r"(?:not|n't|unable|cannot|no|never|without)"
_START = r"(?:\A|[.!?\n]\s*|\bbut )[\"'\s]*(?:(?:sorry|unfortunately|hello|hi|sure)\b[,.!]? )?"
_SEEMS = r"(?:it (?:seems|looks|appears) (?:like |that |as if )*)"
_SEND = r"(?:attach|provid|upload|includ|shar|send|suppl|submit)"
_NEAR = r"(?:(?!\b(?:in|on|of|from|within|inside)\b)[^.!?\n])"
_UNSEEN = re.compile(
    # Nothing between verb and image may be what is seen: "I see no people in the image".
    rf"{_START}(?:i(?:'m| am|'ve| have|'d| would| currently)?\b|apologies|{_SEEMS}(?:you|the|an?)\b"
    rf"|you (?:have|did|need)|your message|as an? (?:ai|text|large|language|chat|virtual)\b)"
    rf"[^.!?\n]{{0,120}}?{_NOT}\b[^.!?\n]{{0,80}}?(?:see|view|find|access|detect|receiv|process"
    rf"|interpret|display|open|contain|have|{_SEND})\w*{_NEAR}{{0,60}}?\b{_IMAGE}"
    rf"|{_START}(?:{_SEEMS}|i'm sorry,? but )?there(?:(?: is|'s| was) no|(?: isn't| wasn't"
    rf"| doesn't (?:seem|appear) to be) (?:any|an?)) {_IMAGE}(?:[.!]|\Z| (?:{_SEND}|here|to\b"
    r"|for me|in (?:your|this|our|the) (?:message|chat|conversation|request|prompt)|that i"
    r"|available))"
    rf"|\byou (?:forgot|failed|neglected) to {_SEND}\w*[^.!?\n]{{0,20}}{_IMAGE}"
    rf"|\b(?:issue|problem|error|trouble) with (?:the|your) {_IMAGE}(?: upload)?[^.!?\n]{{0,60}}"
    rf"{_NOT}|{_START}(?:could|can|would) you (?:please )?(?:re-?)?(?:{_SEND}|describe)"
    rf"[^.!?\n]{{0,40}}{_IMAGE}"
    rf"|\A[\"'\s]*(?:(?:sure|hello|hi|of course|certainly|okay|sorry)[!,.] )?(?:please|kindly) "
    rf"(?:re-?)?{_SEND}\w*[^.!?\n]{{0,40}}{_IMAGE}"
    rf"|{_START}(?:please|kindly) (?:re-?)?{_SEND}\w*[^.!?\n]{{0,40}}{_IMAGE}[^.!?\n]{{0,20}}"
    r"\b(?:you'd|you would|you want|i|me|again)\b"
    rf"|(?:{_START}|\A\[)(?:{_SEEMS}|i'm sorry,? but )?no {_IMAGE}[^.!?\n]{{0,30}}(?:{_SEND}|receiv"
    rf"|came through|visible to me)"
    rf"|{_START}{_SEEMS}?(?:the|your|this) {_IMAGE}[^.!?\n]{{0,40}}(?:not|n't)\b[^.!?\n]{{0,20}}"
    rf"(?:{_SEND}|come through|load|receiv|visible to me)"
    rf"|{_START}(?:the|your) {_IMAGE} (?:is|seems to be|appears to be) (?:missing|unavailable)"
    rf"|\bi(?:'d| would|'ll| will)? need (?:to (?:see|view)|you to \w+) (?:the|your|an?) {_IMAGE}"
    r"|\bi(?:'m| am|'d be| would be) (?:ready|happy|glad) to (?:help|describe)[^\n]{0,40}?"
    rf"(?:please|but)\b[^\n]{{0,40}}?(?:{_SEND}\w* (?:the|your|an?) {_IMAGE}|see one)"
    rf"|{_START}without (?:seeing|viewing|access to|being able to see) (?:the|your|an?) {_IMAGE}"
    # Chinese and Japanese
    r"|(?:(?:\A|[。\uff01\uff1f\uff0c,\n])[^。\uff01\uff1f\uff1a\n]{0,4}?|[我您你][^。\uff01\uff1f\uff1a\n]{0,10}?)"
    r"(?:(?:没有?|未能?|无法|不能)[^。\uff01\uff1f\n]{0,6}(?:看到|看见|收到|查看|识别|访问|检测到|上传|提供|附)"
    r"|看不到|看不见|收不到)[^。\uff01\uff1f\n]{0,10}?(?:图片|图像|照片)(?![中里上内])"
    r"|(?:\A|[。\uff01\uff1f\uff0c,\n您你])请[^。\uff01\uff1f\n]{0,6}(?:上传|提供|发送|附上)"
    r"[^。\uff01\uff1f\n]{0,8}(?:图片|图像|照片|图)"
    r"|画像(?:が|を)(?:直接)?(?:添付|表示|確認|受け取|アップロード|見(?!ると|えると))"
    r"[^。、\n]{0,10}(?:ません|ていない)"
    # German, French, Spanish, Portuguese, Italian, Russian, Korean
    r"|\b(?:ich|leider|wurde)\b[^.!?\n]{0,50}\bkein\w* (?:\w+ )?(?:Bild|Foto)\w*"
    r" (?:sehen|gesehen|erkennen|angehängt|hochgeladen|bereitgestellt|erhalten|finden)"
    r"|\bich (?:kann|sehe)[^.!?\n]{0,20} (?:das|Ihr|dein|ein) (?:Bild|Foto) (?:leider )?nicht"
    r"|\bich sehe (?:leider |hier )*kein (?:Bild|Foto)"
    r"|\bje ne (?:vois|peux (?:pas )?voir)(?: pas| aucune?)*(?: d'| l'| les | la | votre | une?)*"
    r" ?(?:image|photo)"
    r"|(?:\A|[.!?]\s*|, )aucune (?:image|photo) n'"
    r"|(?:\A|[.!?¡¿,]\s*|\bpero )no (?:veo|puedo ver)(?: las?| ninguna| una| tu| su)?"
    r" (?:imagen|imágenes|fotos?)\b|\bno has (?:adjuntado|incluido|subido)[^.!?\n]{0,12}imagen"
    r"|\bnão (?:vejo|consigo ver|posso ver)(?: as?| nenhuma| uma| sua)? (?:imagem|imagens|fotos?)\b"
    r"|\bnon (?:vedo|posso vedere|riesco a vedere)(?: alcuna| nessuna| le| la| una)?"
    r" (?:l')?(?:immagin|foto)"
    r"|не (?:вижу|могу (?:увидеть|просмотреть|видеть))(?: ваше\w*| это\w*)?"
    r" (?:изображени|картин|фото)"
    r"|(?:이미지|사진)(?:를|을|가|이)? ?(?:직접 )?(?:볼 수 없|확인할 수 없|첨부되지|업로드되지"
    r"|제공되지)",
    re.IGNORECASE,
)
"""Ways to say that there is no image, at the start of a sentence: a caption may quote them."""

_QUOTED = re.compile(
    r'"[^"]*"|“[^”]*”|„[^“”]*[“”]|«[^»]*»|「[^」]*」|\u2018[^\u2019]*\u2019|`[^`]*`'
)
_TOKEN = re.compile(r"<[^<>\s]{1,24}>")

SIGNS_CHARS = 100
SIGNS_SHARE = 20
"""A text of `SIGNS_CHARS` or more is garbage if less than one in `SIGNS_SHARE` is a letter."""


class CaptionRules(NamedTuple):
    """What a caption must be like.

    Attributes:
        min_chars: Fewest characters.
        max_chars: Most characters; None is no limit.
        accept: Codes of faults that are accepted and flagged.
        max_attempts: Attempts of a record.
        parse: Returns the value of a text, or raises `BadReplyError`; None keeps the text.
        schema: The JSON Schema that ``parse`` checks, for the next request.
    """

    min_chars: int = 1
    max_chars: int | None = None
    accept: frozenset[str] = frozenset()
    max_attempts: int = 5
    parse: Callable[[str], Any] | None = None
    schema: str = ""


def check(
    completion: Completion, rules: CaptionRules, *, any_finish: bool = False
) -> ValidatedCompletion:
    """Return the answer to keep.

    Args:
        completion: The model's text.
        rules: What a caption must be like.
        any_finish: Accept and flag a text that ended for an unknown reason.

    Raises:
        BadReplyError: The text is no caption; the code says why.
    """
    text = completion.text
    code, message = _fault(completion, rules)
    accepted = code in rules.accept or (code == "unknown_finish" and any_finish)
    if code and not (accepted and text):
        raise BadReplyError(code, message)
    if rules.parse is None:
        return ValidatedCompletion(text, completion, code)
    try:
        value = rules.parse(text)
    except BadReplyError:
        if not code:
            raise
        return ValidatedCompletion(text, completion, code)  # half an object is kept as text
    texts = [one for one in value.values() if isinstance(one, str)]
    if texts and all(map(looks_refused, texts)):
        code = code or "refused"
        if "refused" not in rules.accept:
            raise BadReplyError("refused", f"the model refused: {' '.join(texts[0].split())}")
    return ValidatedCompletion(value, completion, code)


def ask_again(
    fault: BadReplyError,
    completion: Completion,
    overrides: RequestOverrides,
    defaults: RequestOverrides,
    rules: CaptionRules,
) -> RequestOverrides:
    """Return how to request a caption again after an answer that was none.

    A loop is retried at a higher temperature, because the same one gives the same loop, and with
    bounded tokens. A truncated text is retried with more tokens. An answer against the schema is
    sent back with its fault.

    Args:
        fault: What was wrong.
        completion: The answer.
        overrides: How it was requested.
        defaults: Temperature and length of the settings.
        rules: What a caption must be like.
    """
    if fault.code in ("looping", "garbage"):
        now = defaults.temperature if overrides.temperature is None else overrides.temperature
        now = DEFAULT_TEMPERATURE if now is None else now
        tokens = overrides.max_tokens or defaults.max_tokens or LONGER * FIRST_LENGTH
        return overrides._replace(
            temperature=round(min(max(HOTTEST, now), now + HOTTER), 2), max_tokens=tokens
        )
    if fault.code in ("truncated", "thinking"):
        had = overrides.max_tokens or defaults.max_tokens or completion.usage.completion_tokens
        return overrides._replace(max_tokens=min(LONGEST, max(FIRST_LENGTH, had * LONGER)))
    if fault.code == "schema":
        said = Turn("assistant", (completion.text,))
        again = f"Answer again with nothing but one JSON object that follows it: {rules.schema}"
        return overrides._replace(turns=(said, Turn("user", (f"{fault.message}. {again}",))))
    return overrides


def attempts_for(code: str, rules: CaptionRules) -> int:
    """Return the answers with a fault after which a record fails: fewer for refusals."""
    return (
        min(2, rules.max_attempts) if code in ("refused", "no_image_seen") else rules.max_attempts
    )


def is_looping(text: str) -> bool:
    """Return whether a text ends in one unit, repeated until the model was stopped."""
    if len(text) < LOOP_CHARS:
        return False
    end = len(text)
    tail = text[-12:]
    before = text.rfind(tail, max(0, end - 12 - LOOP_UNIT), end - 1)
    while before >= 0:
        unit = end - 12 - before
        times = max(LOOP_TIMES, -(-LOOP_CHARS // unit))
        if text.endswith(text[end - unit :] * times) and any(map(str.isalnum, tail)):
            return True
        before = text.rfind(tail, max(0, end - 12 - LOOP_UNIT), before + 11) if before else -1
    return False


def looks_refused(text: str) -> bool:
    """Return whether a caption reads like a refusal: it is short and begins like one."""
    if len(text) > REFUSAL_CHARS:
        return False
    return _REFUSAL.match(text.replace("\u2019", "'")) is not None


def says_no_image(text: str) -> bool:
    """Return whether an answer says that the model got no image."""
    if len(text) > UNSEEN_CHARS:
        return False
    unquoted = _QUOTED.sub("…", text)
    if any(map(str.isalnum, unquoted)):
        text = unquoted
    return _UNSEEN.search(text.replace("\u2019", "'")) is not None


def _is_garbage(text: str) -> bool:
    """Return whether a text has no words, or is mostly signs or replacement characters."""
    words = sum(map(str.isalnum, _TOKEN.sub("", text)))
    mostly_signs = len(text) >= SIGNS_CHARS and words * SIGNS_SHARE < len(text)
    return not words or mostly_signs or text.count("\ufffd") * 5 > len(text)


def _fault(completion: Completion, rules: CaptionRules) -> tuple[str, str]:
    """Return code and message of the fault of an answer, empty if there is none."""
    text = completion.text
    length = len(text)
    family = finish_family(completion.finish_reason)
    code = message = ""
    if family == "loop" or is_looping(text):
        code, message = "looping", "the caption repeats itself without end"
    elif not text and completion.thought:
        used = completion.usage.completion_tokens
        tokens = f"its {counted(used, 'token')}" if used else "all tokens"
        code, message = "thinking", f"the model used {tokens} for thinking"
    elif text and _is_garbage(text):
        code, message = "garbage", f"the caption has no words: {text[:40]!a}"
    elif family == "length":
        code, message = "truncated", "the caption was cut off at the token limit"
    elif not text:
        code, message = "empty", "the endpoint gave an empty caption"
    elif says_no_image(text):
        code, message = "no_image_seen", f"the model saw no image: {' '.join(text.split())[:200]}"
    elif looks_refused(text):
        code, message = "refused", f"the model refused: {' '.join(text.split())}"
    elif family == "unknown":
        reason = completion.finish_reason[:40]
        code, message = "unknown_finish", f"the caption ended for an unknown reason ({reason!r})"
    elif length < rules.min_chars:
        code = "too_short"
        message = f"the caption has {counted(length, 'character')}, fewer than {rules.min_chars}"
    elif rules.max_chars is not None and length > rules.max_chars:
        code = "too_long"
        message = f"the caption has {counted(length, 'character')}, more than {rules.max_chars}"
    return code, message
