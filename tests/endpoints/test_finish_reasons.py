"""Every server's words for the end of a text, each in its family."""

from __future__ import annotations

import pytest

from captioner.endpoints.finish_reasons import finish_family

FAMILIES = {
    "stop": (
        "|stop|STOP|Stop|eos|eos_token|EOS_TOKEN|end_turn|END-TURN|stop_sequence|stop_str|COMPLETE"
        "|complete|completed|finished|FINISH_REASON_STOP|FinishReason.STOP|finishReason: STOP|end"
        "|end_of_text|endoftext|<|im_end|>|done|success|normal|stop_token|eod|null|none|tool_calls"
        "|function_call|final|STOP_SEQUENCE|stop_criteria"
    ),
    "length": (
        "MAX_TOKENS|max_tokens|maxTokens|LENGTH|Length|model_length|max_length|max_new_tokens"
        "|token_limit|token limit|model_context_window_exceeded|context_length_exceeded|incomplete"
        "|limit|max_output_tokens|FinishReason.MAX_TOKENS|FINISH_REASON_MAX_TOKENS|truncated"
        "|out_of_tokens|exceed_context_size|MAX-COMPLETION-TOKENS|context_overflow|num_predict"
        "|max_total_tokens|length_capped|cutoff|tokens_exhausted"
    ),
    "filter": (
        "SAFETY|RECITATION|PROHIBITED_CONTENT|BLOCKLIST|SPII|IMAGE_SAFETY|LANGUAGE|content_filter"
        "|content-filter|CONTENT_FILTERED|content_filter: SPII|guardrail_intervened|sensitive"
        "|refusal|blocked|moderation|violation|risk|toxic|ERROR_TOXIC|IMAGE_RECITATION|MODEL_ARMOR"
        "|security|harmful|policy_violation|unsafe_content|illegal|contentFilter|nsfw"
        "|IMAGE_PROHIBITED_CONTENT|safety_error|responsible_ai_policy_violation|内容违规"
    ),
    "broken": (
        "abort|ABORT|aborted|error|ERROR|network_error|insufficient_system_resource"
        "|engine_overloaded|cancelled|canceled|user_cancelled|timeout|time-out|interrupted"
        "|server_error|malformed_function_call|MALFORMED_RESPONSE|eviction|evicted|disconnected"
        "|killed|crash|preempted|failed|expired|rate_limit|time_limit|shutdown|internal"
        "|RESOURCE_EXHAUSTED|oom|connection_closed|deadline_exceeded"
    ),
    "loop": "repetition|REPETITION_TRUNCATION|repeat|loop_detected|degenerate",
    "unknown": (
        "OTHER|FinishReason.OTHER|FINISH_REASON_UNSPECIFIED|pause_turn|blue|7|zorp|stopped_halfway"
    ),
}
CASES = [
    (word, family)
    for family, words in FAMILIES.items()
    for word in words.replace("<|im_end|>", "im_end").split("|")
]


@pytest.mark.parametrize(("reason", "family"), CASES)
def test_a_reason_is_in_its_family_however_it_is_written(reason, family) -> None:
    """Compared by stems: any case, any separators, with or without the name of the field."""
    assert finish_family(reason) == family
    assert finish_family(reason.upper() if reason.islower() else reason) == family
    assert finish_family(reason.replace("_", "-")) == family


def test_a_long_reason_costs_nothing() -> None:
    """A page of text in the place of a word is unknown."""
    assert finish_family("x_" * 50_000) == "unknown"
    assert finish_family("<|im_end|>") == "stop"
