"""What models and gateways say instead of a caption: a table of rows, and one matcher.

To teach captioner another wording, add one row: its kind, its language and a regular expression.
An expression is matched at the beginning of a clause, in lower case, after politeness like "sorry,"
(`POLITENESS`). It has no capturing groups. Write it for a kind of answer, not for one sentence, and
add examples to `tests/engine/answers`, among them captions with the same words.

Kinds:

============== =================================================================================
unseen         the model says that there is no image; in any clause
unseen_whole   the same, if the whole answer is made of such rows and politeness
refused        the model refuses; in the first clause that is not only polite
refused_whole  a filter's notice, if it is the whole answer
error          an error, in the first clause: no caption begins so
error_whole    an error, if it is the whole answer
polite         what is said beside: "please try again", "let me know"
============== =================================================================================
"""

from __future__ import annotations

import re
from functools import cache
from typing import Literal

from captioner.engine.wordings_en import ENGLISH
from captioner.engine.wordings_other import OTHERS

Fault = Literal["unseen", "refused", "error", ""]

UNSEEN_CHARS = 500
"""Most characters of an answer that says that there is no image, or that is an error."""

REFUSAL_CHARS = 300
"""Most characters of a refusal: a longer text that begins like one is a description."""

REST_CHARS = 12
"""Most characters of a clause after a row that stands for all of the clause."""

POLITENESS = (
    # English
    r"(?:i am |i'm |we're |we are |my )?(?:very |so |really |terribly |deeply )?(?:sorry|apologies)"
    r"(?: about that| for (?:the|any) (?:confusion|inconvenience))?"
    r"|(?:i|we) (?:sincerely )?apologi[sz]e(?: for (?:the|any) (?:confusion|inconvenience))?"
    r"|unfortunately|regrettably|i'm afraid(?: that)?|i regret(?: to (?:inform|say"
    r"|tell)(?: you)?)?(?: that)?|hello|hi(?: there)?|hey"
    r"|oops|hmm+|uh-oh|oh|ok(?:ay)?|sure|of course|certainly|absolutely|well|note(?: that)?"
    r"|since|because|given that|currently|at the moment|right now|but|and|however"
    r"|it (?:seems|looks|appears)(?: to me)?(?: like| that| as if| as though)*|(?:that said|so)"
    r"|i (?:think|believe|must say|have to say)(?: that)?|unfortunately for (?:me|us)|still"
    r"|actually"
    # German, French, Spanish, Portuguese, Italian, Dutch, Polish, Swedish, Danish, Czech
    r"|(?:es )?tut mir (?:wirklich |sehr )?leid|leider|entschuldigung|entschuldige[n]?(?: sie)?"
    r"|ich bedaue?re|aber|hallo|es scheint(?:, dass| dass)?"
    r"|(?:je suis |nous sommes )?(?:vraiment )?désolée?s?|malheureusement|pardon|bonjour|mais"
    r"|il semble (?:que|qu)|excusez-moi|je m'excuse"
    r"|(?:lo siento|lo lamento)(?: mucho)?|lamentablemente|desafortunadamente|disculpa|disculpe"
    r"|hola"
    r"|pero|parece que|perdón|por favor"
    r"|desculpe|desculpa|lamento|sinto muito|infelizmente|olá|parece que|mas"
    r"|mi dispiace|spiacente|purtroppo|ciao|sembra che|scusa|ma"
    r"|het spijt me|sorry|helaas|maar|het lijkt erop dat|przepraszam|niestety|przykro mi|ale"
    r"|wygląda na to, że|förlåt|tyvärr|beklager|desværre|undskyld|jag är ledsen|men|bohužel"
    r"|omlouvám se"
    # Russian, Ukrainian, Turkish, Arabic, Persian, Vietnamese, Indonesian
    r"|извините|простите|к сожалению|мне (?:очень )?жаль|но|похоже(?:, что)?|вибачте|на жаль"
    r"|üzgünüm|maalesef|özür dilerim|ancak|عذر[اً]+|آسف|للأسف|أعتذر|لكن|متأسفم|متأسفانه"
    r"|(?:tôi )?(?:rất |thành thật )?xin lỗi|rất tiếc|nhưng|maaf|mohon maaf|maafkan saya|sayangnya"
    # Chinese, Japanese, Korean, Hindi, Thai
    r"|(?:非常|很|十分|真的?)?(?:抱歉|对不起|對不起|不好意思|遗憾)(?:的是)?|您好|你好|但是?|不过"
    r"|好的|目前|由于|因为|看起来|似乎"
    r"|申し訳(?:ありません|ございません|ないです)?(?:が|けど)?|すみません(?:が)?|ごめんなさい"
    r"|残念ながら|恐れ入りますが"
    r"|(?:정말 |대단히 )?(?:죄송합니다만?|죄송하지만|미안합니다|유감스럽게도|안녕하세요|아쉽게도)"
    r"|क्षमा करें|माफ़? ?कीजिए|माफ़ करें|ขออภัย(?:ครับ|ค่ะ)?|ขอโทษ(?:ครับ|ค่ะ)?"
)
"""What may stand before a row, in any language."""

ROWS = (*ENGLISH, *OTHERS)
_ORDER = ("unseen", "error", "refused", "unseen_whole", "error_whole", "refused_whole", "polite")

_FAULTS: dict[str, Fault] = {
    "unseen": "unseen", "unseen_whole": "unseen", "error": "error", "error_whole": "error",
    "refused": "refused", "refused_whole": "refused",
}  # fmt: skip
_BESIDE = frozenset({"polite", "nothing"})
_BY_BEGINNING = frozenset({"unseen", "error", "refused"})

_QUOTED = re.compile(
    r'"[^"]*"|“[^”]*”|„[^“”]*[“”]|«[^»]*»|「[^」]*」|『[^』]*』|\u2018[^\u2019]*\u2019|`[^`]*`'
)
_CLAUSE_END = re.compile(
    r"(?:[.!?…\u061f]++[\"')\]*]*+(?=\s|\Z)|[;\n。\uff01\uff1f\uff1b]"
    r"|[\uff0c,、](?=\s?[\u3040-\u30ff\u4e00-\u9fff])|,? (?:but|however)\b,?"
    r"|, ?(?:aber|pero|mais|ma|mas|però|но|але|maar|ale|tetapi|ama|men|nhưng)(?=\s))\s*+"
)
_SORRY = re.compile(r"sorry|apolog|désolé|lo siento|tut mir leid|抱歉|对不起|申し訳|죄송|извините")


def fault_in(text: str) -> Fault:
    """Return what an answer says instead of describing an image, or nothing if it may be one."""
    said = _unquoted(text)
    match = _rows().match
    telling: list[str] = []
    for clause in _CLAUSE_END.split(said):  # with few calls: it runs for every caption
        found = match(clause) if clause else None
        kind = (found.lastgroup or "") if found is not None else ""
        if found is not None and kind not in _BY_BEGINNING:
            kind = "" if len(clause) - found.end() > REST_CHARS else kind
        if clause and kind not in _BESIDE:
            telling = [*telling, kind]
    if telling and not telling[0] and "unseen" not in telling:
        return ""
    return _verdict(telling, said, len(text))


def _unquoted(text: str) -> str:
    """Return the beginning of a text in lower case without quotations, unless it is one."""
    said = text[:UNSEEN_CHARS].lower()
    if "\u2019" in said:
        said = said.replace("\u2019", "'")
    unquoted = _QUOTED.sub("@", said)
    return unquoted if unquoted != said and any(map(str.isalnum, unquoted)) else said


def _verdict(telling: list[str], said: str, length: int) -> Fault:
    """Return what the kinds of the clauses, but for polite ones, make of an answer."""
    is_short = length <= REFUSAL_CHARS
    if not telling:
        return "refused" if is_short and _SORRY.search(said) else ""
    kind = telling[0]
    if kind not in ("error", "refused"):
        kind = "" if "" in telling else min(telling, key=_ORDER.index)
    if "unseen" in telling and kind != "error":
        kind = "unseen"
    if kind == "error" or length <= UNSEEN_CHARS:
        fault = _FAULTS.get(kind, "")
        return "" if fault == "refused" and not is_short else fault
    return ""


@cache
def _rows() -> re.Pattern[str]:
    """Return the table as one expression, a group for each kind; it is made when first needed."""
    kinds = (
        f"(?P<{kind}>{'|'.join(row.pattern for row in ROWS if row.kind == kind)})"
        for kind in _ORDER
    )
    polite = rf"(?:(?:{POLITENESS})(?:[\s,:…\u2013\u2014\uff0c\u060c.!-]++|\Z))*+"
    nothing = r"(?P<nothing>[\s\"'*_)\]]*\Z)"
    return re.compile(rf"[\s\"'*_#>\[(¡¿~-]*+{polite}(?:{'|'.join(kinds)}|{nothing})")
