"""The options of the endpoint."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Any

from captioner.core.errors import SettingsError
from captioner.settings.options.definition import OptionGroup, common, option, tuning
from captioner.settings.validation import check_url, text_of, words

_FIELD_NAME = r"[\w!#$%&'*+.^`|~-]+"
"""A header's name; RFC 9110, section 5.6.2."""

_NOT_EXTRA = {
    "model": "--model",
    "messages": "--prompt",
    "max_tokens": "--max-tokens",
    "temperature": "--temperature",
    "stream": "--stream",
    "n": "--samples",
    "response_format": "--schema",
}


@dataclass(frozen=True, slots=True)
class EndpointSettings(OptionGroup):
    """Endpoint."""

    base_url: tuple[str, ...] = common(
        "Base URL of an OpenAI-compatible endpoint, such as http://localhost:8000/v1. Repeat the "
        "flag to spread the work over several endpoints. Also read from OPENAI_BASE_URL.",
        (),
    )
    model: str | None = common(
        "Model name. Default: the model that the endpoint serves, if it is one."
    )
    api_key_env: tuple[str, ...] = common(
        "Environment variable that holds the API key. Repeat the flag for several "
        "keys: one for each base URL, or all for a single one. Default: the first of "
        "CAPTIONER_API_KEY, OPENAI_API_KEY and DF_API_KEY that is set. Local servers need no key.",
        (),
    )
    header: tuple[str, ...] = option(
        "Header of every request, as 'Name: value'. Repeat the flag for several.", ()
    )
    extra_body: str | None = option(
        "JSON object of further fields of every request, such as '{\"seed\": 7}'."
    )
    stream: bool = option(
        "Stream the responses, for gateways that close idle connections. An early end is an error.",
        default=False,
    )
    offline: bool = common(
        "Use the built-in describer: no endpoint, no key. It names "
        "sizes, colours and legible text. It is not a vision-language model.",
        default=False,
    )
    serve: str | None = common(
        "Start a model server on this machine for the run. The value is MODEL, or vllm:MODEL, "
        "sglang:MODEL, llamacpp:MODEL, ollama:MODEL or transformers:MODEL. MODEL is one of "
        "captioner models, a name on the hub, a folder or a GGUF file."
    )
    serve_args: str = option(
        "Arguments for the server of --serve, as one text: --serve-args='--max-model-len 8192'. "
        "They replace those of captioner.",
        "",
    )
    replicas: int | None = option(
        "Servers that --serve starts. Default: one for each GPU, or each group of GPUs that "
        "--serve-args asks for."
    )
    timeout: float = option("Seconds that one request may take.", 300.0, unit="seconds")
    max_outage: float | None = option(
        "Seconds that an endpoint may give no caption before the run ends with exit code 7. "
        "Default: before the first caption 60, or longer if the endpoint says how long to wait or "
        "that it loads its model; after it no limit.",
        unit="seconds",
    )
    rpm: float | None = common(
        "Requests per minute. Default: the endpoint's limit, if it reports one."
    )
    tpm: float | None = common(
        "Tokens per minute, input and output. Default: the endpoint's limit, if it reports one."
    )
    courtesy: float = tuning(
        "How long to wait before more requests are tried after some were refused, relative to the "
        "usual 1 to 32 s.",
        1.0,
    )
    weight: float = tuning(
        "Share of the work relative to other endpoints, in an [[endpoint]] table of a TOML file.",
        1.0,
    )

    def _check(self) -> None:
        object.__setattr__(self, "base_url", words(self.base_url))
        object.__setattr__(self, "api_key_env", words(self.api_key_env))
        for line in self.header:
            name, _, value = line.partition(":")
            if not (re.fullmatch(_FIELD_NAME, name.strip(), re.ASCII) and value.strip()):
                raise SettingsError("header: every header must be 'Name: value'")
            if not (value.isascii() and value.strip().isprintable()):
                raise SettingsError(f"header: the value of {name.strip()} cannot be sent")
        self.extra_fields()
        if self.serve is not None and (self.offline or not self.serve.strip()):
            raise SettingsError("serve: name a model, and leave --offline out")
        try:
            shlex.split(self.serve_args)
        except ValueError as error:
            raise SettingsError(f"serve-args: {error}") from None
        if not all(re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) for name in self.api_key_env):
            raise SettingsError(
                "api-key-env: give the name of an environment variable that holds the key, not the "
                "key itself"
            )
        if len(self.api_key_env) > 1 and len(self.base_url) not in (1, len(self.api_key_env)):
            raise SettingsError("api-key-env: give one key, or one for each base URL")
        for url in self.base_url:
            check_url("base_url", url)

    def extra_fields(self) -> dict[str, Any]:
        """Return the fields of ``extra_body``.

        Raises:
            SettingsError: It is not a JSON object, or sets a field that has its own option.
        """
        if self.extra_body is None:
            return {}
        import json

        try:
            extra = json.loads(text_of("extra_body", self.extra_body))
        except ValueError as error:
            raise SettingsError(f"extra-body: not valid JSON: {error}") from None
        if not isinstance(extra, dict):
            raise SettingsError("extra-body: must be a JSON object")
        for name, flag in _NOT_EXTRA.items():
            if name in extra:
                raise SettingsError(f"extra-body: set {name!r} with {flag}")
        return extra
