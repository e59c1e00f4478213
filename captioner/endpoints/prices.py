"""What a model costs: from the user's own file, else from a library that is kept up to date."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from captioner.core.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from captioner.core.types import Usage

MILLION = 1_000_000


class Price(NamedTuple):
    """US dollars for a million tokens.

    Attributes:
        input: Of the prompt, images included.
        output: Of the answer.
    """

    input: float
    output: float

    def of(self, usage: Usage) -> float:
        """Return what some tokens cost, in US dollars."""
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        return (self.input * prompt + self.output * completion) / MILLION


FREE = Price(0.0, 0.0)


def price_of(model: str, base_url: str, prices: Path | None) -> Price:
    """Return the price of a model, at the endpoint or else by its name alone.

    Raises:
        SettingsError: There is none, or the file cannot be read.
    """
    found = price_at(model, base_url, prices) or _price(model)
    if found is not None:
        return found
    raise SettingsError(
        f"budget: no price is known for {model}. Give one in a file with --prices, for example: "
        f'["{model}"] and below it input = 0.15 and output = 0.60 (US dollars a million tokens)'
    )


def price_at(model: str, base_url: str, prices: Path | None) -> Price | None:
    """Return the price of a model at an endpoint, None if it is not known.

    Args:
        model: Its name.
        base_url: The endpoint, from which the provider follows.
        prices: A TOML file that takes precedence: a table for each model, with ``input`` and
            ``output``.

    Raises:
        SettingsError: The file cannot be read.
    """
    if prices is not None and (own := _own(model, prices)) is not None:
        return own
    if is_local(base_url):
        return None
    return _price(model, base_url)


def is_local(url: str) -> bool:
    """Return whether a URL's host is an address or a name that only a local network knows."""
    host = urlsplit(url).hostname or ""
    return "." not in host or host.replace(".", "").isdecimal()


def _price(model: str, base_url: str | None = None) -> Price | None:
    """Return a price that the library knows: at an endpoint, or by the name alone."""
    import genai_prices as library  # takes half a second

    usage = library.Usage(input_tokens=MILLION, output_tokens=MILLION)
    try:
        found = library.calc_price(usage, model, provider_api_url=base_url)
    except LookupError:
        return None
    return Price(float(found.input_price), float(found.output_price))


def _own(model: str, prices: Path) -> Price | None:
    try:
        tables: dict[str, Any] = tomllib.loads(prices.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"prices: cannot read {prices}: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"prices: {prices} is not valid TOML: {error}") from None
    if model not in tables:
        return None
    try:
        found = Price(float(tables[model]["input"]), float(tables[model]["output"]))
    except (KeyError, TypeError, ValueError):
        raise SettingsError(
            f"prices: {prices} needs numbers input and output for {model}"
        ) from None
    if min(found) < 0:
        raise SettingsError(f"prices: {prices} has a negative price for {model}")
    return found
