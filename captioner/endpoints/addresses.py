"""Addresses and keys of endpoints, from the settings or the environment."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from captioner.core.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from captioner.settings.options import EndpointSettings

KEY_NAMES = ("CAPTIONER_API_KEY", "OPENAI_API_KEY", "DF_API_KEY")
URL_NAMES = ("CAPTIONER_BASE_URL", "OPENAI_BASE_URL")


def base_url(endpoint: EndpointSettings) -> str:
    """Return the endpoint's base URL, from the settings or the environment.

    Raises:
        SettingsError: There is none. The message says how to give one.
    """
    urls = (*endpoint.base_url, *(os.environ.get(name) for name in URL_NAMES))
    if url := next(filter(None, urls), None):
        scheme, colon, rest = url.strip(_AROUND).partition(":")
        url = f"{scheme.lower()}{colon}{rest}"
        replace(endpoint, base_url=(url,))  # checks a URL of the environment, too
        address, mark, query = url.partition("#")[0].partition("?")
        address = re.sub(_PASTED, "", address)
        return f"{address}{mark}{query}"
    from captioner.endpoints.serving.machine import look, propose

    here = look()
    serve, install = propose(here)
    how = f"first: {install}" if install else "a model on this machine"
    raise SettingsError(
        "no endpoint. Give one of:\n"
        f"  {f'--serve {serve}':<52}{how} ({here})\n"
        "  --base-url http://localhost:8000/v1 --model NAME    your own server\n"
        "  --base-url https://api.openai.com/v1 --model NAME   with the key in OPENAI_API_KEY\n"
        "  --offline                                           the built-in describer, to try"
    )


def api_key(endpoint: EndpointSettings) -> str | None:
    """Return the key, None if no environment variable holds one.

    Raises:
        SettingsError: The variable that the settings name is not set.
    """
    for name in endpoint.api_key_env:
        if key := _key_in(name):
            return key
        shown = name if name.isupper() else f"{name[:3]}…"  # it may be the key itself
        raise SettingsError(f"api-key-env: the environment variable {shown} is not set")
    return next(filter(None, map(_key_in, KEY_NAMES)), None)


def variables_of(endpoints: Iterable[EndpointSettings]) -> set[str]:
    """Return the names of the environment variables from which endpoints get address and key."""
    found: set[str] = set()
    for one in endpoints:
        if not one.offline:
            found.update(one.api_key_env or KEY_NAMES)
            found.update(() if one.base_url else URL_NAMES)
    return found


_AROUND = " \t\r\n\ufeff\u00a0\"'"
"""What surrounds keys and addresses that were copied from a page or an .env file."""

_PASTED = r"(?:/+chat)?/+completions/*\Z|(?<=/v\d)/+(?:chat|models)/*\Z|/+\Z"
"""What follows the base in an address of one of the API's calls."""


def _key_in(name: str) -> str:
    key = os.environ.get(name, "").strip(_AROUND).removeprefix("Bearer ").strip(_AROUND)
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(f"the key in {name} has characters that cannot be sent in a header")
    return key
