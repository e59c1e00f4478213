"""What error responses mean: a table of rows, the first that matches decides.

To teach captioner another response, add one row: the verdict, the words that mark the response
(a regular expression over its error code, type and message, without case), the statuses it comes
with if the words alone are not enough, and the server it was seen at. Write the marks for a kind
of response, not for one wording. `tests/endpoints/replies` holds examples with their verdicts.

Verdicts:

=========== ====================================================================================
filtered    a content filter refused this record
day         the quota of a day or month is used up
quota       the account has no credit or quota
stop        no record will be captioned: key, model, region, or a model without vision
wait        trouble of the endpoint: send the request again later
tokens      ``--max-tokens`` is above what the context leaves: ask for fewer
smaller     the images are too large: send them smaller
encode      the images cannot be read: send them as JPEG
role        the model accepts no system message
schema      the endpoint cannot enforce the JSON Schema: ask for it in words
thinking    the model's thinking cannot be switched: leave out what switches it
fetch       the endpoint could not fetch an image by its URL: send the request again
refused     this record is refused
=========== ====================================================================================
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Verdict = Literal[
    "filtered", "day", "quota", "stop", "wait", "tokens", "smaller", "encode", "role", "schema",
    "thinking", "fetch", "refused",
]  # fmt: skip


class Rule(NamedTuple):
    """One row of the table.

    Attributes:
        verdict: What the response means.
        marks: Regular expression that finds it in the code, type and message.
        status: Statuses that it comes with; empty for any.
        seen: Servers it was seen at.
    """

    verdict: Verdict
    marks: str
    status: tuple[int, ...] = ()
    seen: str = ""


_REFUSING = (400, 402, 403, 404, 405, 412, 415, 422, 429, 451)

RULES = (
    # What another server said of one image's URL, whatever it was.
    Rule(
        "fetch",
        r"(?:timeout|timed out|fail(?:ed)?|error|unable|cannot|could not).{0,40}"
        r"(?:download|fetch).{0,40}(?:https?:|image|url|file|media|content)|message='.{0,60}\burl=",
        (400, 408, 422, 424, 500),
        "OpenAI, vLLM",
    ),
    # A part of the endpoint that is down, though it is named for images or content.
    Rule(
        "wait",
        r"deadline exceeded|connection (?:refused|reset|aborted|error)|broken pipe|timed out"
        r"|time-?out|service is.{0,20}unavailable",
        (500,),
        "Ollama, gateways",
    ),
    # An account or resource that is blocked as a whole, though its words speak of content.
    Rule(
        "stop",
        r"\b(?:resource|account|project|organi[sz]ation|key)\b.{0,60}\b(?:blocked|banned|locked"
        r"|deactivated|disabled|terminated|restricted)|public access is disabled"
        r"|must be verified|blocked at the (?:project|organi[sz]ation|team) level|锁定|封禁",
        seen="Azure, OpenAI, Groq, Zhipu",
    ),
    # What no later request will change, with the status of a temporary error.
    Rule(
        "stop",
        r"authenticationerror|(?:incorrect|invalid|expired)[ _]api[ _]key|api[ _-]?key"
        r" (?:is |has )?(?:expired|invalid|not valid|incorrect)|model_not_found"
        r"|\bmodel\b.{0,80}(?:does not exist|not found)(?!.{0,40}(?:channel|deployment))",
        (500,),
        "LiteLLM, one-api",
    ),
    Rule(
        "day",
        r"\bper[ -]day\b|\b(?:RPD|TPD)\b|PerDay|ByDay\b|per 86,?400 ?s|\bdaily\b.{0,20}(?:limit"
        r"|quota)|calls ?(?:/|per) ?month|today's quota|(?:for|of) today\b|tomorrow|今日|明日再"
        r"|每日",
        (400, 402, 403, 429),
        "OpenAI, Groq, Gemini, Anthropic, OpenRouter, Bedrock, GitHub, ModelScope, Zhipu",
    ),
    Rule(
        "quota",
        r"insufficient[_ ](?:account )?(?:balance|funds|credit|quota)|exceeded your current quota"
        r"(?!.*PerMinute)|余额不足|欠费",
        (400, 402, 403, 500),
        "MiniMax, LiteLLM",
    ),
    Rule("quota", r"insufficient[_ ](?:balance|funds|credit)", (429,), "Zhipu, MiniMax"),
    # Rates a minute, whatever else the message says of quotas and billing.
    Rule(
        "wait",
        r"#token-limit|\bper[ -]?min(?:ute)?\b|PerMinute|\b(?:TPM|RPM|QPS)\b|limit_burst"
        r"|burst rate|online_prediction_\w*requests|high traffic"
        r"|throttl|rate[ _-]?limit|rate increased"
        r"|too many requests|requests? too (?:fast|quickly)|concurren(?:cy|t requests)|并发|限流"
        r"|请求过于频繁",
        (400, 403, 413, 429, 500, 503),
        "DashScope, Bedrock, Groq, Zhipu, Gemini, Vertex",
    ),
    Rule(
        "filtered",
        r"content[ _-]?(?:filter|moderation|management polic|policy)|\bmoderation\b|\bflagged\b"
        r"|data[ _]?inspection|inappropriate|sensitive[ _]?(?:content|information|word|data)"
        r"|high[ -]risk|_sensitive\b|censorship|responsible ?ai|response was filtered"
        r"|(?:usage|content|safety|community) (?:guideline|polic)"
        r"|safety[_ ](?:check|system|filter|violation|reason|block)|prohibited[_ ]content|nsfw"
        r"|\bunsafe\b|\bnot safe\b|harmful|content exists risk|content[ _]illegal|guardrail"
        r"|blocked (?:input|text|content)|pattern detected|敏感|违规|不合规|违反",
        (*_REFUSING, 500, 501),
        "all",
    ),
    Rule(
        "quota",
        r"budget.{0,30}exceeded|exceeded.{0,30}budget|insufficient[_ ](?:quota|credit"
        r"|balance|funds)|(?:not enough|no|low|negative|out of) (?:credit|balance|funds|quota)"
        r"|(?:credit|balance).{0,30}(?:too low|exhaust|insufficient|deplet|used up)|billing|arrear"
        r"|overdue|spend(?:ing)?[ _]limit|payment|purchase|top up|recharge|free tier.{0,40}exhaust"
        r"|(?:usage|monthly|daily|per day|quota).{0,30}(?:limit|exceed|exhaust|reached)"
        r"|set ?(?:inference )?limit|daily free|free allocation"
        r"|suspended|good standing|not active|call volume quota|balance is required"
        r"|余额|欠费|充值|配额|额度",
        _REFUSING,
        "all",
    ),
    # Before the model rules: a model that is known, but not ready.
    Rule(
        "wait",
        r"model.{0,60}(?:unloaded|is (?:un)?loading|loading|not (?:yet )?(?:ready|loaded)"
        r"|crashed|starting|warming)|loading model|failed to load model|cold start|overload"
        r"|server (?:is )?busy|engine_overloaded|temporarily|no deployments available"
        r"|try again (?:later|in)|runner (?:process )?has terminated|cuda error|out of memory"
        r"|\bOOM\b|worker.{0,20}(?:died|unavailable)|queue is full|at capacity"
        r"|in_queue|in progress|degraded function|channel error",
        seen="LM Studio, Ollama, vLLM, LiteLLM, TGI",
    ),
    Rule("wait", r"upstream", (404, 429, 500), "gateways"),
    Rule(
        "stop",
        r"(?:in(?:correct|valid)|expired|revoked|missing|unknown|bad|wrong|disabled|no)"
        r"\W{0,3}(?:api|access|auth\w*)?[ _-]?(?:key|token|credential)"
        r"|(?:api|access|security)[ _-]?(?:key|token)\b.{0,40}(?:in(?:correct|valid)|expired"
        r"|not valid|not found|revoked|missing|required)|api_key_invalid|authenticat"
        r"|unauthori[sz]ed|authorization|permission.denied|no permission"
        r"|network/firewall|\bNoAuth|授权错误"
        r"|key does not have (?:permission|access)|must (?:first )?(?:accept|agree)"
        r"|submit the prompt .agree|model[ .]access[ ]?denied|no connected db",
        (400, 401, 403),
        "all",
    ),
    Rule(
        "stop",
        r"unexpected endpoint|method not allowed|no (?:such )?route|cannot (?:GET|POST) /"
        r"|unknown (?:url|path|endpoint|route)|invalid url|endpoint not found|could not route to"
        r"|sent to https port|header or cookie too large|network authentication required",
        seen="LM Studio, Cloudflare, nginx",
    ),
    Rule(
        "stop",
        r"(?:country|region|territory|location|area)\b.{0,60}(?:not (?:supported|available"
        r"|allowed)|unsupported|restricted)|unsupported_country",
        seen="OpenAI, Gemini",
    ),
    Rule(
        "refused",
        r"too many images|exceeds? the number of images|number of images allowed"
        r"|images?.{0,40}(?:must be (?:larger|greater|at least)|too small)"
        r"|at most [1-9]\d* image",
        (400, 413, 422, 500),
        "Mistral, vLLM, DashScope",
    ),
    Rule(
        "encode",
        r"(?:unsupported|invalid|corrupt\w*|malformed) (?:or corrupt\w* )?image\b"
        r"(?![ _](?:input|url|content|part))|unsupported image url:? data:",
        (400, 415, 422, 500),
        "OpenAI, llama.cpp",
    ),
    Rule(
        "stop",
        r"not? (?:a )?(?:multi-?modal|vlm|vision)|(?:not|n't|un)[ -]?support(?:ed)?\b"
        r"[^.]{0,30}\b(?:image|vision|visual|picture|multi-?modal)(?!/| (?:format|type))"
        r"|(?:image|vision|picture|multi-?modal)s?(?:[ _](?:input|content|url|part)s?)?"
        r" (?:is|are|isn't|aren't|not)\b.{0,12}(?:not )?(?:enabled|supported|only supported)\b"
        r"(?!:|.{0,20}(?:format|type))|image_url is only supported|at most 0 (?:image|mm)"
        r"|required for image input|content must be a string|mmproj|text[- ]only"
        r"|content\b.{0,20}should be a valid string|should be a valid string.{0,40}content"
        r"|no vision|without vision|unknown variant .?image|不支持图",
        (400, 404, 415, 422, 500, 501),
        "OpenAI, Moonshot, LM Studio, vLLM, Ollama, llama.cpp, Groq",
    ),
    Rule("schema", r"handle the requested parameters", (404,), "OpenRouter"),
    Rule(
        "thinking",
        r"(?:not|n't) support (?:parameter )?(?:thinking|reasoning)\b|only works? in thinking mode"
        r"|(?:thinking|reasoning)\b.{0,30}(?:mandatory|can(?:not|'t) be (?:disabled|turned off))"
        r"|thinking (?:type )?disabled is not supported|budget 0 is invalid",
        (400, 422),
        "Ollama, Gemini, OpenRouter, Volcengine",
    ),
    Rule(
        "stop",
        r"only supports? stream|enable the stream parameter|multiple models|provider not provided"
        r"|default chat template|template error(?!.*\brole)|reached its end of life"
        r"|does not work with the specified model",
        (400, 404, 410, 422),
        "DashScope, LM Studio, LiteLLM, vLLM, TGI, NVIDIA, Azure",
    ),
    Rule(
        "stop",
        r"\b(?:models?|deployment|endpoint)\b\W{0,3}\S{0,80}\s+(?:or endpoint \S+ )?"
        r"(?:is |was |does |has been |id )?(?:not[_ ](?:exist|found|supported|available|a valid"
        r"|valid|a chat|served)|unknown|deprecated|retired|no longer|invalid"
        r"|disabled|decommissioned)|model_decommissioned|unable to access (?:\S+ )?model"
        r"|\b(?:unknown|invalid|unsupported|no such|non-?existent) (?:model|deployment)\b"
        r"|model[_ ]?(?:not[_ ]?(?:found|exist|supported)|name passed)|model id|deploymentnotfound"
        r"|deployment.{0,40}does not exist|invalid_model|(?:\A|\n)model: |no endpoints found"
        r"|try pulling it|on-demand throughput|invalidendpoint|模型不存在"
        r"|server is pinned to",
        (400, 403, 404, 410, 422),
        "all",
    ),
    Rule(
        "tokens",
        r"max_(?:completion_|output_)?tokens\b.{0,60}(?:too (?:large|big|high|many)"
        r"|exceed|must be (?:less|at most|between|<=|no more)|cannot be greater|larger than"
        r"|greater than|maximum)|\brange of max_(?:completion_|output_)?tokens\b",
        (400, 422),
        "vLLM, OpenAI, DeepSeek",
    ),
    Rule(
        "smaller",
        r"context[ _](?:length|window|size)|(?:prompt|input|message|request|content)\b"
        r".{0,60}(?:is )?too (?:long|large|big|many)|too (?:many|large).{0,20}\b(?:tokens|pixels"
        r"|bytes|patches)|maximum (?:allowed )?(?:model |sequence |input |prompt |number of "
        r"(?:input )?)?(?:length|tokens|size)|max(?:imum)?[_ ](?:model[_ ]len|input[_ ]length"
        r"|num[_ ]tokens|pixels|image[_ ]size)|session_len|string_above_max_length"
        r"|(?:inputs?`?|prompt|input token)\b.{0,60}(?:must be <=|exceed)"
        r"|(?:payload|entity|body|file|image|upload)\b.{0,40}too (?:large|big|long)"
        r"|dimensions?.{0,40}(?:exceed|too)|exceed.{0,60}\b(?:MB|MiB|bytes|pixels|characters"
        r"|size limit|max\w* (?:allowed )?size|number of tokens)\b|encoder cache"
        r"|(?:image|pixel).{0,40}exceed|request too long|exceed.{0,40}token limit"
        r"|more than \d+ (?:mega)?pixels|max_(?:completion_)?tokens must be at least 1\b"
        r"|must have (?:less|fewer) than|range of input length|图片(?:过大|太大)|超长|过长",
        (400, 413, 422, 500),
        "all",
    ),
    Rule(
        "role",
        r"\b(?:system|developer)\b.{0,30}\b(?:role|message|prompt|instruction|turn)s?\b"
        r".{0,40}(?:\bnot|\bunsupported|n't)|unexpected role"
        r"|(?:roles?|message\(s\)) (?:must|should) (?:be )?alternat"
        r"|only (?:\W?user\W? and \W?assistant\W?|user/assistant).{0,12}roles?"
        r"|(?:not|n't|un)\w*.{0,20}\b(?:system|developer) (?:role|message|prompt|instruction)"
        r"|\brole\b.{0,40}\b(?:system|developer)\b",
        (400, 422, 500),
        "Gemma, Mistral, LLaVA, TGI, Gemini",
    ),
    Rule(
        "schema",
        r"response_?(?:format|schema)|json[ _]?(?:schema|object|grammar)|structured"
        r"|guided|\bgrammar\b|contain the word .?json|invalid schema",
        (400, 422, 501),
        "Groq, DeepSeek, LM Studio, llama.cpp, vLLM, SGLang, Ollama, Fireworks",
    ),
    Rule("schema", r"json schema|response_format|grammar error", (500,), "Ollama, llama.cpp"),
    Rule(
        "encode",
        r"(?:unsupported|invalid|unknown|unrecogni[sz]ed|not a valid|corrupt\w*|bad"
        r"|malformed) (?:or corrupt\w* )?(?:image|picture|mime|media|file (?:format|type))"
        r"|image\w*(?: input)?"
        r"(?: file| data| format| type| media type)*\W.{0,40}(?:not (?:supported|recogni|valid)"
        r"|unsupported|invalid|unknown|corrupt)|(?:can(?:not|'t)|could(?: not|n't)|unable to"
        r"|failed to|error) (?:identify|process|decode|load|open|read|pars)\w* "
        r"(?:the |input |an? )*(?:image|picture|base64)|image: unknown format"
        r"|(?:does not|doesn't) match.{0,30}media type"
        r"|media[_ ]?type|content-type|\bmime\b|cannot identify|invalid[_ ]base64|\bimage\b"
        r".{0,60}(?:(?:can|could) ?not be (?:load|open|decod|read|identif|process|pars)|truncated"
        r"|illegal|(?:decod|pars|load)\w* (?:failed|error))|broken data stream"
        r"|broken (?:png|jpe?g|gif|webp|image)\b",
        (400, 412, 415, 422, 500),
        "all",
    ),
)

_PATTERNS = [(rule, re.compile(rule.marks, re.IGNORECASE | re.DOTALL)) for rule in RULES]

_BY_STATUS: dict[int, Verdict] = {
    401: "stop", 402: "quota", 403: "refused", 408: "wait", 409: "wait", 413: "smaller",
    415: "encode", 424: "wait", 425: "wait", 429: "wait", 460: "wait", 498: "wait", 499: "wait",
    501: "refused", 511: "stop",
}  # fmt: skip
"""Verdicts of statuses whose words match no row. 5xx waits, any other one refuses the record."""


def verdict_of(status: int, text: str) -> Verdict:
    """Return what an error response means.

    Args:
        status: Its HTTP status, or the status that its body claims.
        text: Its error code, type and message.
    """
    return verdict_by_words(status, text) or verdict_by_status(status)


def verdict_by_words(status: int | None, text: str) -> Verdict | None:
    """Return the verdict of the first row that matches, None if none does.

    Args:
        status: As in `verdict_of`; None if it is not known, which fits any row.
        text: As in `verdict_of`.
    """
    kind = status if status is None or status == 501 else min(status, 500)
    for rule, pattern in _PATTERNS:
        if (not rule.status or kind is None or kind in rule.status) and pattern.search(text):
            return rule.verdict
    return None


def verdict_by_status(status: int) -> Verdict:
    """Return the verdict of a status whose words match no row."""
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return "wait" if 500 <= status < 600 else "refused"
