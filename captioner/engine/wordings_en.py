"""Rows of `captioner.engine.wordings` in English."""

from __future__ import annotations

from typing import NamedTuple


class Wording(NamedTuple):
    """One row of the table.

    Attributes:
        kind: What it says; see `captioner.engine.wordings`.
        language: ISO 639-1 code.
        pattern: Regular expression for the beginning of a clause in lower case.
    """

    kind: str
    language: str
    pattern: str


def rows(language: str, table: tuple[tuple[str, ...], ...]) -> tuple[Wording, ...]:
    """Return the rows of a language.

    Args:
        language: ISO 639-1 code.
        table: The kind of each row, and its pattern in one part or several, joined without spaces.
    """
    return tuple(Wording(kind, language, "".join(parts)) for kind, *parts in table)


IMAGE = (
    r"(?:images?|pictures?|photos?|photographs?|screenshots?|attachments?|files?|pics?|graphics"
    r"|visuals|visual (?:inputs?|content|data|information|media|files?))\b"
    r"(?! (?:frame|booth|album|book|studio|wall|gallery|of\b))"
)
NOT = r"(?:not|n't|unable|cannot|no|never|without)"
SENT = (
    r"(?:attach(?:ed)?|provided?|upload(?:ed)?|includ(?:ed?|ing)|shared?|sen[dt]|suppl(?:y|ied)"
    r"|submit(?:ted)?|posted|pasted?)\b"
)
SEE = (
    r"(?:see|view|get|find|access|detect|receiv|process|interpret|display|open|contain|have"
    r"|analy[sz]"
    r"|perceiv|look at|attach|provid|upload|includ|shar|sen[dt]|suppl|submit)\w*"
)
NEAR = r"(?:(?!\b(?:in|on|of|from|within|inside)\b).){0,60}?"
"""Nothing between verb and image may be what is seen: "I see no people in the image"."""

HERE = (
    r"(?:\W*\Z|[,:]| (?:correctly|properly|successfully|fully|here|yet|again|so\b|to me|for me"
    r"|by you|due to|on my (?:end|side)|and (?:i|therefore)\b|(?:in|into|with|to) (?:your|our|this"
    r"|the) (?:message|chat|conversation|request|prompt|question)))"
)
"""What follows when the image of the request is meant, and not one in the image."""

CANNOT = (
    r"(?:i|we)(?:'m| am|'re| are|'ve|'ll|'d)? (?:really |simply |just |also |still )?(?:can ?not"
    r"|can't|won't|will not|would not|wouldn't|unable to|not able to|must decline to"
    r"|have to decline to|decline to|refuse to|not (?:comfortable|allowed|permitted|going) (?:to )?"
    r"|(?:don't|do not) feel comfortable|prefer not to|would rather not|rather not|do not|don't)"
)
HELP = (
    r"(?:help(?! \w+ing\b)|assist|describ|caption|process|provid|analy[sz]|fulfil|comply|answer"
    r"|tell you"
    r"|access|generat|continu|do (?:that|this|so)\b|discuss|creat|writ|engag|produc|offer|comment"
    r"|respond|complete (?:this|that|your)|(?:identif|recogni[sz])\w* (?:or \w+ )?(?:(?:the|any"
    r"|real|specific|this|that|these|individual) )*(?:people|persons?|individuals?|who|someone"
    r"|anyone|faces?)|support (?:this|that|your)|participat|tell\W*\Z)"
)
SERVICE = (
    r"(?:(?:the|our|this|your|that) )?(?:\w+ )?(?:server|model|service|system|engine|api|endpoint"
    r"|backend|provider|upstream|cluster|gpu|worker|channel)s?"
)
NOW = (
    r"(?: (?:right now|at the moment|at this time|now|currently|today|for maintenance|again"
    r"|on our (?:end|side)|due to\b.{0,60}|because of\b.{0,60}"
    r"|(?:with|by) (?:\w+ ){0,2}(?:requests?|traffic|users|load)))?(?:, (?:please|try|retry"
    r"|wait)\b.*|\W*\Z)"
)

# fmt: off
ENGLISH = rows(
    "en",
    (
        # The model speaks of itself.
        ("unseen",
            rf"(?:i\b|i'(?:m|ve|d|ll)\b|we\b).{{0,120}}?{NOT}\b.{{0,80}}?{SEE}{NEAR}\b{IMAGE}"),
        ("unseen",
            rf"(?:as )?an? (?:\w+[- ]){{0,4}}?(?:ai|model|assistant|bot|llm)\b.{{0,80}}?{NOT}\b",
            rf".{{0,80}}?{SEE}{NEAR}\b{IMAGE}"),
        ("unseen",
            r"i(?:'m| am) (?:only |just |actually )?an? (?:purely |large )?text[- ](?:only",
            r"|based)\b"),
        ("unseen", r"(?:my|the) (?:capabilit|abilit|functionalit)\w+ (?:is|are) limited to text"),
        ("unseen",
            r"i(?:'m| am)? (?:only|limited to|can only)(?: able to)? ?(?:process|handle|work with",
            r"|read|understand|see)?(?:ing)? text\b"),
        ("unseen",
            rf"(?:this|the|your) (?:model|endpoint|api|assistant)\b.{{0,30}}{NOT}\b.{{0,20}}",
            rf"(?:support|accept|process|handle|take|see|view)\w* {IMAGE}"),
        ("unseen", rf"i (?:see|have|got|received?|find|detect) no {IMAGE}"),
        ("unseen",
            r"i (?:do not|don't|did not|didn't|can't|cannot) (?:see|have|receive|find|detect)",
            r" (?:one|any|anything) (?:attached|included|uploaded|provided|shared|in your)"),
        ("unseen",
            r"(?:(?:in order )?to .{1,40}? )?i(?:'d| would|'ll| will)? (?:first |still )?need ",
            r"(?:to (?:see|view|look at) |you to \w+ |access to )?(?:the|your|an?|that) ",
            rf"(?:actual )?{IMAGE}"),
        ("unseen",
            r"i(?:'m| am|'d be| would be) (?:ready|happy|glad) to .{0,40}?(?:please|once|when",
            rf"|if|as soon as)\b.{{0,40}}?{SENT} (?:the|your|an?) {IMAGE}"),
        ("unseen",
            r"without (?:seeing|viewing|access to|being able to (?:see|view)) (?:the|your|an?",
            rf"|any) (?:actual )?{IMAGE}"),
        ("unseen_whole",
            r"(?:i|we) (?:can't|cannot|do not|don't) (?:see|view|access|open) (?:it|that|them)",
            r"\b.{0,20}\Z"),
        ("unseen",
            r"i (?:do not|don't|lack) ?(?:have )?(?:the |any )?(?:vision|visual",
            r"|image)\b.{0,12}(?:capabilit|abilit|support)\w*"),
        ("unseen",
            r"i (?:do not|don't) have (?:the |any )?(?:ability|capability|way) to (?:see|view",
            r"|look)"),
        # The user is asked for it.
        ("unseen",
            r"you(?:'ve| have)? (?:sent|provided|shared|uploaded",
            rf"|submitted) .{{0,30}}without (?:any|an?) {IMAGE}"),
        ("unseen",
            rf"(?:you (?:have|did|need)|your (?:message|request|prompt)).{{0,120}}?{NOT}\b",
            rf".{{0,80}}?{SEE}{NEAR}\b{IMAGE}"),
        ("unseen",
            rf"you(?:'ve| have)? (?:forgot(?:ten)?|failed|neglected) to {SENT}.{{0,20}}{IMAGE}"),
        ("unseen",
            rf"(?:could|can|would) you (?:please |kindly )?(?:try (?:to )?)?(?:re-?)?(?:{SENT}",
            rf"|describe).{{0,40}}{IMAGE}"),
        ("unseen",
            rf"(?:please|kindly) (?:try (?:to )?)?(?:re-?)?{SENT}.{{0,40}}{IMAGE}.{{0,20}}",
            r"\b(?:you'd|you would|you want|i|me|again)\b"),
        ("unseen_whole",
            rf"(?:please|kindly) (?:try (?:to )?)?(?:re-?)?(?:{SENT}",
            rf"|describe).{{0,40}}{IMAGE}(?! like)(?:[^,]*|, (?:so|and|then|if)\b.*)\Z"),
        # The image is not there.
        ("unseen",
            r"there(?:(?: is|'s| was| are| were| seems? to be| appears? to be)(?: currently",
            r"| actually)? no|(?: isn't| wasn't| is not| was not| doesn't (?:seem|appear) to be",
            rf"| does not (?:seem|appear) to be) (?:any|an?)) {IMAGE}(?:\W*\Z| (?:{SENT}|here",
            r"|to\b",
            r"|for me|in (?:your|this|our|the) (?:message|chat|conversation|request|prompt)",
            r"|that i|available))"),
        ("unseen",
            rf"no {IMAGE}(?: (?:data|files?|inputs?|content|urls?))?(?: (?:was|were|is|are",
            r"|has been",
            r"|have been|seems? to have been|appears? to have been|seems? to be",
            rf"|appears? to be))?(?: actually| currently| successfully)? (?:{SENT}|receiv\w+",
            r"|came through|visible to me|available to me)"),
        ("unseen",
            rf"(?:the|your|this|that|an?|any) {IMAGE}.{{0,40}}?(?:not|n't)\b.{{0,20}}?(?:{SENT}",
            rf"|(?:come|came) through|load(?:ed|ing)?|receiv\w+|visible|accessible){HERE}"),
        ("unseen",
            rf"(?:the|your|this|that) {IMAGE}.{{0,40}}?(?:fail(?:ed|s)|unable) to (?:load|upload",
            rf"|open|display|render|come through|process){HERE}"),
        ("unseen_whole",
            rf"(?:(?:the|your|this) )?{IMAGE} (?:is|was|seems to be|appears to be) (?:missing",
            r"|unavailable|inaccessible)\W*\Z"),
        ("unseen_whole",
            rf"(?:(?:the|your|this) )?{IMAGE}(?: (?:is|was|were|could|can|has been))? ?(?:not",
            r"|n't) (?:be )?(?:found|available|loaded|provided|attached|displayed|there",
            r"|supported|accessible|received|uploaded)\W*\Z"),
        ("unseen_whole", rf"(?:no|missing) {IMAGE}(?: (?:found|available|detected|here))?\W*\Z"),
        ("unseen_whole",
            r"(?:failed to|unable to|could not|couldn't|cannot|can't) (?:load|open|access",
            r"|read|process|view|see|fetch|download|decode|display) (?:(?:the|your|this|any)",
            rf" )?{IMAGE}"),
        ("unseen_whole",
            r"(?:there (?:is|was|seems to be|appears to be) )?(?:an? )?(?:issue|problem|error",
            r"|trouble) (?:with|loading|opening|accessing|viewing|processing|reading",
            rf"|uploading) (?:the|your) {IMAGE}"),
        ("unseen_whole",
            rf"(?:the |your )?{IMAGE} (?:could not|couldn't|cannot|can't|can not) be (?:opened",
            r"|displayed|processed|read|decoded|viewed|accessed|fetched|retrieved)\W*\Z"),
        ("unseen_whole",
            rf"{IMAGE}(?: inputs?)? (?:is|are) not (?:supported|allowed|accepted",
            r"|enabled)(?:\W*\Z| (?:by|for|in)\b.*)"),
        ("unseen_whole",
            r"(?:the |your )?(?:image )?(?:url|link)(?: to the image)? (?:is|was|seems to be",
            r"|appears to be) (?:invalid|broken|expired|not)\b.*"),
        # Refusals.
        ("refused",
            r"(?:that|this)(?:'s| is)(?: not)? something (?:that )?i(?:'m| am)?(?: can(?:not",
            r"|'t)?| unable| not (?:able|allowed|comfortable)| able)\b"),
        ("refused",
            r"i(?:'m going to| am going to)? (?:have to|must|need to|will have to) (?:decline",
            r"|refuse|pass)\b"),
        ("refused", r"(?:this|that|it) goes against my\b"),
        ("refused_whole",
            r"(?:the|this|your) (?:image|picture|photo|content|request|prompt) (?:may|might",
            r"|appears to|seems to) (?:contain|include) (?:\w+ )?(?:inappropriate|sensitive",
            r"|harmful|explicit|prohibited|unsafe)\b.*"),
        ("refused_whole",
            r"(?:blocked|filtered|censored|flagged|rejected) (?:for|due to|because of",
            r"|by)\b.{0,24}(?:safety|polic|content|filter|moderation).*"),
        ("refused", rf"{CANNOT}\b.{{0,30}}?\b{HELP}(?!\w*(?:ed|ten)\b)"),
        ("refused", r"(?:i'm|i am) (?:unable|not able) to (?:do so|say|tell)\W*\Z"),
        ("refused", r"i can(?:'t|not| not) (?:do|say|tell)(?: (?:that|this|so))?\W*\Z"),
        ("refused",
            r"as an ai\b(?! ?-?generated)(?: language)?(?: model| assistant)?,? (?:i|my|it|we)\b",
            rf".{{0,60}}?{NOT}\b"),
        ("refused",
            r"(?:this|the|your) (?:image|picture|photo|content|request|prompt)\b.{0,40}?\b",
            r"(?:violat\w+|against|in breach of|breach\w*) .{0,40}?(?:polic|guideline|terms)"),
        ("refused",
            r"(?:let's|can we) (?:talk|chat|discuss|change)\b.{0,30}(?:else|subject|topic)"),
        ("refused",
            r"i(?:'m| am) (?:just |only )?an? (?:ai|language model)\b.{0,60}?(?:not|n't)\b"),
        ("refused_whole",
            r"(?:(?:this|the|your) )?(?:\w+ )?(?:request|content|image|response|output|prompt",
            r"|answer|reply)s? (?:(?:was|has been|is|were|got) )?(?:blocked|filtered|flagged",
            r"|rejected|removed|censored|withheld|moderated)(?:\W*\Z| (?:by|due|because",
            r"|for|as|under)\b.*)"),
        ("refused_whole",
            r"(?:(?:potentially )?(?:sensitive|unsafe|harmful|explicit|inappropriate) content",
            r"|content (?:filter|polic\w+)|safety filter) (?:detected|found|filtered|blocked",
            r"|removed|violat\w+|triggered|applied|error)\b.{0,40}\Z"),
        # Errors that no caption begins with.
        ("error", r"traceback \(most recent call last\)"),
        ("error", r"(?:http )?error(?: code)?: ?\W{0,3}[1-5]\d\d\b"),
        ("error", r"(?:\[|\(|<)?(?:error|fatal|exception)(?:\]|\)|>| ?:)(?! [a-z]+ing\b)"),
        ("error",
            r"(?:an? |the )?(?:fatal|internal|api|server|unexpected|runtime|connection|network",
            r"|request",
            r"|upstream|unknown|system|cuda|proxy|gateway|upload|generation|inference|model",
            r"|validation|timeout|ssl|http|rate limit|authentication)(?: \w+)? error ?:"),
        ("error", r"[a-z_][a-z0-9_.]{1,60}(?:error|exception)(?:\(|\[|:| ?-)"),
        ("error",
            r"(?:litellm|openai|anthropic|httpx|aiohttp|requests|urllib3?|botocore|grpc|vllm",
            r"|torch|asyncio)\.[a-z_.]{0,40}(?:error|exception|timeout|exceeded)"),
        ("error", r"(?:cuda|hip|gpu|torch|device)\W{1,2}(?:error|out of memory)"),
        ("error", r"network error due to high traffic"),
        ("error", r"(?:[a-z_]\w{0,30}\.){1,6}\w{0,40}(?:error|exception)(?:\W*\Z|:)"),
        ("error",
            r"panic: |segmentation fault\b|(?:\w+ )?(?:econn[a-z]+|etimedout|enotfound|epipe)\b"),
        # Errors, if there is nothing else.
        ("error_whole", r"(?:http )?error:? ?(?:code )?[45]\d\d(?:\W*\Z|: .{0,40}\Z)"),
        ("error_whole",
            r"(?:unknown|server|inference|internal|network|api|system|unexpected",
            r"|generation) error(?: \(?\d+\)?)?\W*\Z"),
        ("error_whole",
            r"(?:time-?out|timed out|fetch failed|socket hang ?up|killed|unauthorized)\W*\Z"),
        ("error_whole",
            r"(?:the|your|this) request (?:could not|couldn't|cannot|can't) be \w+ed\b.*"),
        ("error_whole",
            r"there (?:was|is|has been|seems to be) (?:an?|some) (?:\w+ )?(?:error|problem",
            r"|issue) (?:processing|handling|generating|completing|while|with|connecting",
            r"|in)\b.{0,24}(?:request|response|server|connection|model|api|input|service)\b.*"),
        ("error_whole",
            r"there (?:was|is|has been) an? (?:technical|temporary|unexpected|internal) (?:issue",
            r"|problem|error|glitch)\b.*"),
        ("error_whole",
            r"i(?:'ve| have)? (?:encountered|ran into|hit) an? (?:\w+ )?(?:error|issue",
            r"|problem)\b.*"),
        ("error_whole",
            r"i(?:'m| am) (?:having|experiencing) (?:\w+ )?(?:trouble|difficult\w+|issues?",
            r"|problems?)\b.{0,16}(?:processing|connect\w+|generating|accessing|completing",
            r"|responding)\b.*"),
        ("error_whole", r"you(?:'re| are) (?:being )?(?:rate[- ]limited|throttled)\b.*"),
        ("error_whole",
            r"(?:the |your )?(?:api|access|secret) ?(?:key|token) (?:is |was )?(?:not valid",
            r"|invalid|expired|missing|not found|required|incorrect)\b.*"),
        ("error_whole",
            r"(?:http(?:/\d(?:\.\d)?)? )?(?:\(?[45]\d\d\)?\W{1,3})?(?:internal (?:server )?error",
            r"|bad gateway|service (?:temporarily )?unavailable|gateway time-?out",
            r"|too many requests|request (?:entity|body) too large|payload too large",
            r"|request time-?out|method not allowed|payment required|unprocessable \w+",
            r"|bad request)(?:\W*\Z|, (?:please|try|you)\b.*)"),
        ("error_whole",
            r"(?:http(?:/\d(?:\.\d)?)? )?\(?[45]\d\d\)?\W{1,3}(?:not found|unauthorized",
            r"|forbidden|page not found|error|server error|client error)(?:\W*\Z|: .{0,40}\Z)"),
        ("error_whole",
            r"(?:the |your |this )?(?:upstream|endpoint|gateway|proxy|request|connection|read",
            r"|server",
            r"|operation|response|api|stream|inference|network|generation|model|provider",
            r"|remote|websocket)(?: (?:request|connect|connection|server|read|call|provider",
            r"|end))? (?:(?:has |was |is )?(?:been )?(?:error|time-?out|timed out|failed|failure",
            r"|refused|reset|closed|aborted|terminated|disconnected|interrupted|cancelled",
            r"|canceled|lost)|returned an error|error occurred)(?:\W*\Z",
            r"| (?:by peer|or disconnect|before|while|after|due to|unexpectedly|with)\b.*)"),
        ("error_whole",
            r"(?:an |a |some |the following )?(?:\w+ ){0,2}error (?:has |have )?(?:occurr?ed",
            r"|happened|was encountered)(?:\W*\Z| (?:while|during|in|on|when|with) (?:processing",
            r"|generating|the (?:server|request|model|upstream|response)|your|our|calling",
            r"|handling|trying|communicating|connecting|fetching|inference|generation)\b.*)"),
        ("error_whole",
            r"(?:something|things) went wrong(?:\W*\Z| (?:on our|when|while (?:processing",
            r"|generating)",
            r"|when|with (?:your (?:request|upload|input)|the (?:request|server|model|api",
            r"|upload)))",
            r"\b.*)"),
        ("error_whole",
            rf"{SERVICE} (?:is|are|was|seems to be|appears to be) (?:\w+ly )?(?:overloaded|busy",
            r"|unavailable|down|offline|at (?:full )?capacity|not (?:available|responding",
            r"|reachable|ready|loaded|found)|under (?:maintenance|heavy load)|overwhelmed",
            rf"|(?:still )?loading|starting(?: up)?|unreachable|experiencing .{{0,60}}){NOW}"),
        ("error_whole",
            r"you(?:'ve| have)? (?:already |just )?(?:exceeded|reached|hit|exhausted|run out of",
            r"|used up|no (?:more )?(?:credits?|quota)|insufficient).{0,30}\b(?:quota|limits?",
            r"|credits?|balance|tokens|usage|allowance|requests|plan)[^,]*(?:, (?:please|check|try",
            r"|upgrade|wait)\b.*)?\Z"),
        ("error_whole",
            r"you (?:do not|don't) have (?:access|permission|enough|sufficient|any (?:credit",
            r"|quota)).*"),
        ("error_whole",
            r"your (?:\w+ ){0,2}(?:trial|subscription|credits?|quota|api key|plan|balance|session",
            r"|token|account|usage|limit)s? (?:has|have|is|are|was) (?:\w+ly |been )?(?:ended",
            r"|expired|exhausted|invalid|insufficient|too low|used up|suspended|disabled",
            r"|exceeded|reached|blocked|not \w+|empty|overdue|deactivated).*"),
        ("error_whole",
            r"(?:the |your )?(?:maximum )?(?:rate|request|usage|token|quota|credit|daily|monthly",
            r"|spending",
            r"|context|concurrency)s?(?: \w+)?(?: limit)?(?: has been| was| is)? (?:exceeded",
            r"|reached|exhausted)\b.*"),
        ("error_whole",
            r"(?:insufficient|not enough) (?:account )?(?:balance|credits?|funds|quota",
            r"|permissions?|resources|memory)\b.*"),
        ("error_whole",
            r"(?:invalid|missing|incorrect|expired|unknown|unsupported|wrong) (?:or \w+ )?(?:api",
            r"|access|auth\w*|request|model|token|credential|parameter|argument|input|json",
            r"|response|image)(?: ?(?:key|token|body|name|id|format|type|url|data))?s?\W*",
            r"(?:\Z|: .*|provided.*|from .*)"),
        ("error_whole",
            r"(?:the )?model (?:\S+ )?(?:was |is )?(?:not found|does not exist|not loaded",
            r"|failed to load|not available|unavailable)(?:\W*\Z| (?:or|for|in (?:this|the|your)",
            r"|on (?:this|the)|at)\b.*)"),
        ("error_whole",
            r"no (?:available |healthy |active )?(?:models?|servers?|workers?|channels?",
            r"|providers?|endpoints?|deployments?|upstream|backends?|responses?|choices",
            r"|completions?)(?: (?:is|are|was|were))? ?(?:from (?:the )?(?:model|server|upstream",
            r"|api|endpoint|provider|service)\b.*|available|found|loaded|left|returned",
            r"|received|generated|configured|upstream|for .*)?\W*\Z"),
        ("error_whole",
            r"(?:unable to|failed to|not able to|could not|cannot) (?:connect|reach|process",
            r"|complete|generate|fetch",
            r"|parse",
            r"|retrieve|create|handle|contact|authenticate|allocate|decode|obtain|get) (?:a |an",
            r" |the |your |to |with |any )*(?:request|response|server|model|output|answer|caption",
            r"|completion|content|result|text|api|upstream|message|data|memory|service|reply",
            r"|description)\b.*"),
        ("error_whole",
            r"(?:access|permission|authentication|authorization) (?:denied|failed|required|error)",
            r"(?:\W*\Z|[:,] (?:you|your|the|please|invalid|no|user)\b.*| (?:to|for|by|from)\b.*)"),
        ("error_whole",
            r"(?:please |kindly )?(?:try again|retry)(?: later| in \d.*| in an? .*| shortly",
            r"| soon)?\W*\Z"),
        ("error_whole",
            r"(?:we're|we are) (?:currently |temporarily )?(?:experiencing|having|under|down|over",
            r"|overloaded|unable to (?:process|complete)|at capacity)\b.*"),
        ("error_whole", r"\(?error[ _]?code\W{0,3}\w+\W*\Z"),
        ("error_whole", r"(?:cuda |gpu )?out of memory\b.{0,60}\Z"),
        # What is said beside.
        ("polite",
            r"(?:please|kindly|let me know|feel free|if (?:you|this|the (?:problem|issue|error))",
            r"|how (?:can|may) i|is there anything|thank|thanks|i (?:understand|appreciate|know",
            r"|realize|recommend|suggest|encourage)|i(?:'d| would) be (?:happy|glad)|i(?:'m",
            r"| am) (?:ready|here",
            r"|happy|glad)|i (?:can|could|will|would|may) (?:still |only |then |gladly )?(?:help",
            r"|assist|try|describe|write|provide|offer)|(?:could|can|would) you|you can|you may",
            r"|you(?:'ll| will)|contact|check|refresh|reload|upgrade|recharge|top up|wait",
            r"|once you",
            r"|see https?|visit|for more|for (?:further|additional)|request[ -]id|trace[ -]id",
            r"|ref(?:erence)?[ -]id|code\W{0,3}\d+|status\W{0,3}\d+|our (?:team|engineers)|we",
            r" (?:apologi[sz]e|are working)|error\W{0,3}\d|reset reason|reason:|details?:",
            r"|in the meantime|otherwise)\b.*"),
    ),
)
# fmt: on
