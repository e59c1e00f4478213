"""What an endpoint refuses is named otherwise or left out; what is too large is told apart."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from captioner.core.errors import (
    BadReplyError,
    EndpointRefusedError,
    ImageRejectedError,
    ParameterError,
    RefusedError,
)
from captioner.core.types import EncodedImage, ImageRef, RequestOverrides, Response, Turn
from captioner.endpoints.openai_chat import OpenAIChat

TURNS = [Turn("system", ("Be brief.",)), Turn("user", (ImageRef(path="a"), "what?"))]
IMAGE = EncodedImage("image/png", b"QUJD", "", 10, 10)


def body(dialect: OpenAIChat, overrides: RequestOverrides = RequestOverrides()) -> dict[str, Any]:  # noqa: B008
    request = dialect.request(dialect.messages(TURNS, [IMAGE]), overrides)
    return orjson.loads(b"".join(request.pieces))


def refused(dialect: OpenAIChat, reply: Any, status: int = 400) -> Exception:
    with pytest.raises((ParameterError, ImageRejectedError, RefusedError, BadReplyError)) as caught:
        dialect.judge(Response(status, {}, orjson.dumps(reply)))
    return caught.value


def openai_error(message: str, param: str | None, code: str | None) -> dict[str, Any]:
    kind = "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


LENGTH = openai_error(
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
    "'max_completion_tokens' instead.",
    "max_tokens",
    "unsupported_parameter",
)


def test_the_length_is_named_as_the_model_wants_it() -> None:
    """o-series and GPT-5: max_completion_tokens; where that is refused as well, none."""
    dialect = OpenAIChat("m", max_tokens=300)
    error = refused(dialect, LENGTH)
    assert error.parameter == "max_tokens"
    assert dialect.adapt(error.parameter) == "max_completion_tokens for max_tokens"
    assert body(dialect)["max_completion_tokens"] == 300
    assert "max_tokens" not in body(dialect)
    assert body(dialect, RequestOverrides(max_tokens=600))["max_completion_tokens"] == 600
    assert dialect.adapt("max_completion_tokens") == "no max_completion_tokens"
    assert (
        not {"max_tokens", "max_completion_tokens"}
        & body(dialect, RequestOverrides(max_tokens=6)).keys()
    )
    assert dialect.adapt("max_tokens") == ""
    assert dialect.version == 2


@pytest.mark.parametrize(
    "reply",
    [
        openai_error(
            "Unsupported value: 'temperature' does not support 0.2 with this model. Only the "
            "default (1) value is supported.",
            "temperature",
            "unsupported_value",
        ),
        {"error": {"code": 400, "message": "temperature: Extra inputs are not permitted"}},
        {"object": "error", "message": "Unknown parameter `temperature`", "code": 400},
        [{"error": {"code": 400, "message": 'Unknown name "temperature": Cannot find field.'}}],
        {"detail": [{"loc": ["body", "temperature"], "msg": "extra fields not permitted"}]},
        {"type": "error", "error": {"message": "`temperature` is deprecated for this model."}},
    ],
)
def test_a_refused_temperature_is_left_out(reply) -> None:
    """Whatever the shape of the error, the parameter it names goes."""
    dialect = OpenAIChat("m", temperature=0.2, max_tokens=5)
    error = refused(dialect, reply)
    assert dialect.adapt(error.parameter) == "no temperature"
    sent = body(dialect, RequestOverrides(temperature=1.0))
    assert "temperature" not in sent
    assert sent["max_tokens"] == 5


@pytest.mark.parametrize("name", ["seed", "stream_options", "response_format"])
def test_any_parameter_may_be_left_out(name) -> None:
    """Those of --extra-body, --stream and --schema as well."""
    schema = {"type": "object"}
    dialect = OpenAIChat("m", stream=True, schema=schema, extra={"seed": 7})
    assert name in body(dialect)
    assert dialect.adapt(f"{name}.more[0]")
    assert name not in body(dialect)
    said = body(dialect)["messages"][-1]["content"]
    assert ('{"type":"object"}' in said) == (name == "response_format")


def test_a_refused_system_role_becomes_part_of_the_users_message() -> None:
    """The words stay, before the image, and no two turns of one role follow each other."""
    dialect = OpenAIChat("m")
    reply = openai_error(
        "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
        "messages[0].role",
        "unsupported_value",
    )
    assert dialect.adapt(refused(dialect, reply).parameter)
    (only,) = body(dialect)["messages"]
    assert only["role"] == "user"
    assert [part["type"] for part in only["content"]] == ["text", "image_url", "text"]
    assert only["content"][0]["text"] == "Be brief."
    assert dialect.adapt("messages[0].role") == ""


@pytest.mark.parametrize(
    "parameter", ["model", "messages", "messages[1].content[0].image_url", "x"]
)
def test_what_must_be_there_is_never_left_out(parameter) -> None:
    """No request goes out without its model, its question or its image."""
    dialect = OpenAIChat("m", max_tokens=1)
    before = body(dialect)
    assert dialect.adapt(parameter) == ""
    assert (body(dialect), dialect.version) == (before, 0)


@pytest.mark.parametrize(
    ("status", "reply"),
    [
        (413, {}),
        (400, openai_error("too long", "messages", "context_length_exceeded")),
        (400, {"error": {"message": "x", "type": "exceed_context_size_error", "n_ctx": 4096}}),
        (
            400,
            {
                "object": "error",
                "message": "This model's maximum context length is 4096 tokens. However, you "
                "requested 5012 tokens (4712 in the messages, 300 in the completion).",
                "param": "max_tokens",
                "code": 400,
            },
        ),
        (400, {"error": {"message": "image exceeds 5 MB maximum: 6291456 bytes > 5242880 bytes"}}),
        (400, {"error": {"message": "prompt is too long: 210000 tokens > 200000 maximum"}}),
        (422, {"detail": "Image file is too large"}),
    ],
)
def test_what_is_too_large_is_made_smaller(status, reply) -> None:
    """An overflow is no refused parameter, though it may name one."""
    error = refused(OpenAIChat("m", max_tokens=300), reply, status)
    assert isinstance(error, ImageRejectedError)
    assert error.smaller


@pytest.mark.parametrize(
    "reply",
    [
        openai_error("You uploaded an unsupported image.", None, "invalid_image_format"),
        {"error": {"message": "Could not process image"}},
        {"error": {"message": "cannot identify image file <_io.BytesIO>", "code": 400}},
        {"error": {"message": "The media_type image/jpeg does not match the image's content"}},
    ],
)
def test_images_the_endpoint_cannot_read_are_drawn_anew(reply) -> None:
    """Once; what is wrong with them then is for the failures file."""
    error = refused(OpenAIChat("m"), reply)
    assert isinstance(error, ImageRejectedError)
    assert not error.smaller


def test_a_url_the_endpoint_could_not_fetch_is_asked_for_again() -> None:
    """A download that timed out says 400, and may do better next time."""
    reply = {"error": {"message": "Timeout while downloading https://example.org/a.jpg"}}
    assert isinstance(refused(OpenAIChat("m"), reply), BadReplyError)


def test_detail_and_extra_members_are_sent() -> None:
    """What the user adds goes out beside what we say."""
    sent = body(OpenAIChat("m", detail="low", extra={"seed": 7, "top_p": 0.5}, temperature=0))
    assert sent["messages"][1]["content"][0]["image_url"]["detail"] == "low"
    assert (sent["seed"], sent["top_p"], sent["temperature"]) == (7, 0.5, 0)


def test_turns_after_the_question_are_sent_last() -> None:
    """An answer that would not do, and why not."""
    turns = (Turn("assistant", ('{"a"',)), Turn("user", ("again",)))
    messages = body(OpenAIChat("m"), RequestOverrides(turns=turns))["messages"]
    assert [turn["role"] for turn in messages] == ["system", "user", "assistant", "user"]
    assert messages[-2:] == [
        {"role": "assistant", "content": '{"a"'},
        {"role": "user", "content": "again"},
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_tokens": 300, "temperature": 0.2, "detail": "high"},
        {"stream": True, "schema": {"type": "object", "properties": {}}, "extra": {"seed": 1}},
    ],
)
@pytest.mark.parametrize("adapted", [(), ("max_tokens",), ("messages[0].role",)])
def test_bodies_are_what_openais_own_package_would_take(options, adapted) -> None:
    """Each request validates against the request types of the openai package."""
    from openai.types.chat import completion_create_params as params
    from pydantic import TypeAdapter

    dialect = OpenAIChat("m", **options)
    for parameter in adapted:
        dialect.adapt(parameter)
    streaming = options.get("stream")
    kind = (
        params.CompletionCreateParamsStreaming
        if streaming
        else (params.CompletionCreateParamsNonStreaming)
    )
    turns = (Turn("assistant", ("no",)), Turn("user", ("again",)))
    for overrides in (RequestOverrides(), RequestOverrides(1.0, 500, turns)):
        sent = body(dialect, overrides)
        taken = TypeAdapter(kind).validate_python(sent)
        assert set(taken) == set(sent)
        assert len(list(taken["messages"])) == len(sent["messages"])


@pytest.mark.parametrize(
    "reply",
    [
        {"error": {"message": "image exceeds the number of images allowed"}},
        {"error": {"message": "The image the model requested was at a URL not found"}},
    ],
)
def test_a_value_out_of_range_is_no_unsupported_parameter(reply) -> None:
    """What the user chose is not dropped for all because one request went too far."""
    dialect = OpenAIChat("m", max_tokens=300, temperature=0.2)
    assert isinstance(refused(dialect, reply), RefusedError)


@pytest.mark.parametrize(
    "said",
    [
        "cannot tell: broken data stream when reading image file",
        "This image of seed packets was rejected by a reviewer",
        "The image stream is truncated",
        "the thermometer shows a temperature not seen in nature",
        "too much detail is in the image",
        "Could not finish the message because max_tokens or model output limit was reached.",
        "max_tokens must be at least 1, got -120.",
    ],
)
def test_words_about_one_image_name_no_parameter(said) -> None:
    """Parameters have the names of common things; an image may show these."""
    options = {"max_tokens": 300, "temperature": 0.2, "detail": "low", "stream": True}
    dialect = OpenAIChat("m", extra={"seed": 1}, **options)
    for reply in (openai_error(said, None, None), {"detail": {"error": said}}, {"detail": said}):
        assert not isinstance(refused(dialect, reply), ParameterError)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("Streaming is not supported for this model.", "stream"),
        ("stream mode is not supported", "stream"),
        ("Unrecognized request argument supplied: seed", "seed"),
        ("seed: Extra inputs are not permitted", "seed"),
        ('json: unknown field "stream_options"', "stream_options"),
        ("property 'body.stream_options' is unsupported", "stream_options"),
        ("Model x does not support parameter reasoningEffort.", "reasoning_effort"),
        ("temperature is deprecated for this model", "temperature"),
        ("The value of temperature is out of range: it must be 1", "temperature"),
        ("'detail' must be auto", "detail"),
        ("got an unexpected keyword argument 'think'", "think"),
        ('"qwen2.5vl:7b" does not support thinking', "thinking"),
        ("Budget 0 is invalid. This model only works in thinking mode.", "thinking"),
        ("maxOutputTokens is not supported", "max_tokens"),
    ],
)
def test_a_parameter_is_refused_in_many_words(said, name) -> None:
    """Quotes, or words that refuse, tell a parameter from a word of the same letters."""
    options = {"max_tokens": 300, "temperature": 0.2, "detail": "low", "stream": True}
    dialect = OpenAIChat("m", extra={"seed": 1}, **options)
    body(dialect, RequestOverrides(thinking=False))
    error = refused(dialect, openai_error(said, None, None))
    assert isinstance(error, ParameterError)
    assert error.parameter == name
    assert dialect.adapt(name)
    sent = body(dialect, RequestOverrides(thinking=False))
    assert name not in sent
    assert "detail" not in str(sent["messages"]) or name != "detail"


def test_the_providers_words_behind_a_router_name_the_parameter() -> None:
    """OpenRouter tells what the provider said as a text of JSON."""
    raw = orjson.dumps(openai_error("Unsupported parameter", "temperature", None)).decode()
    said = {"message": "Provider returned error", "code": 400, "metadata": {"raw": raw}}
    assert refused(OpenAIChat("m", temperature=1), {"error": said}).parameter == "temperature"


def test_without_a_stream_there_are_no_stream_options() -> None:
    """What makes no sense alone goes together; so does all that switches thinking."""
    dialect = OpenAIChat("m", stream=True)
    assert dialect.adapt("stream")
    assert not {"stream", "stream_options"} & body(dialect).keys()
    off = RequestOverrides(thinking=False)
    assert {"think", "reasoning_effort"} <= body(dialect, off).keys()
    assert dialect.adapt("thinking")
    assert body(dialect, off).keys() == {"model", "messages"}


def test_a_change_that_did_not_help_is_taken_back() -> None:
    """A parameter that is refused although it was not sent was not the cause, now and later."""
    dialect = OpenAIChat("m", extra={"seed": 1})
    assert dialect.adapt("seed") == "no seed"
    assert "seed" not in body(dialect)
    version = dialect.version
    assert dialect.adapt("seed") == ""
    assert body(dialect)["seed"] == 1
    assert dialect.version > version
    assert dialect.adapt("seed") == ""
    assert body(dialect)["seed"] == 1


def test_a_model_that_only_streams_is_told_how_to_be_asked() -> None:
    """The way out is an option of ours."""
    reply = openai_error("This model only support stream mode", None, "invalid_parameter_error")
    with pytest.raises(EndpointRefusedError, match="Run with --stream"):
        OpenAIChat("m").judge(Response(400, {}, orjson.dumps(reply)))
