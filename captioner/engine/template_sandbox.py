"""The environment in which templates run: values of a stranger's record cost bounded work."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOST_TEXT = 16 << 20
"""Characters of a text that a template makes, and the largest number that says how many."""

MOST_STEPS = 1_000_000
"""Steps of all loops of a template for one record."""

STEP = 4_096
"""Characters or items that are copied for one step: ``+`` and ``~`` in a loop copy all before."""

_WIDTH = re.compile(r"\d{6}|\*|\{[^{}]*\{")
"""In a format: a width of six digits, or one that is a value itself."""

_WRAPPED = 79
"""Characters of a line of the filter ``wordwrap``."""

_MOST_BITS = 10_000
"""Bits of a whole number."""

_GROWING = (
    "batch",
    "center",
    "format",
    "indent",
    "join",
    "replace",
    "slice",
    "sum",
    "tojson",
    "wordwrap",
)
"""Filters whose result may be much larger than their value."""


def sandbox(jinja: Any, *, strict: bool = True) -> Any:  # noqa: C901 - one class with its functions
    """Return the environment: fields hide methods, and work is bounded.

    What is missing or null is an error, or empty if it is not ``strict``.

    Its method ``text_of(template, fields)`` renders.
    """
    base: Any = import_module("jinja2.sandbox").ImmutableSandboxedEnvironment
    left = threading.local()

    class Sandbox(base):  # type: ignore[misc]
        intercepted_binops = frozenset({"*", "**", "%", "+"})

        def getattr(self, obj: Any, attribute: str) -> Any:
            if isinstance(obj, Mapping) and attribute in obj:
                return obj[attribute]
            return super().getattr(obj, attribute)

        def _parse(self, *source: Any) -> Any:
            tree = super()._parse(*source)
            for loop in tree.find_all(jinja.nodes.For):
                loop.iter = jinja.nodes.Filter(
                    loop.iter, "counted", [], [], None, None, lineno=loop.lineno
                )
            for joined in tree.find_all(jinja.nodes.Concat):  # the operator ~
                most = jinja.nodes.Const(MOST_TEXT // len(joined.nodes))
                joined.nodes = [
                    jinja.nodes.Filter(part, "bounded", [most], [], None, None, lineno=part.lineno)
                    for part in joined.nodes
                ]
            return tree

        def call_binop(self, context: Any, operator: str, one: Any, other: Any) -> Any:
            _check_operation(operator, one, other)
            made = super().call_binop(context, operator, one, other)
            spend(_length(made) // STEP)
            return made

        def call(self, context: Any, obj: Any, /, *args: Any, **more: Any) -> Any:
            owner = getattr(obj, "__self__", None)
            if isinstance(owner, str | bytes | int):
                _check_growth(obj.__name__, owner, (*args, *more.values()))
            return super().call(context, obj, *args, **more)

        def text_of(self, template: Any, fields: dict[str, Any]) -> str:
            left.steps = MOST_STEPS
            pieces, size = [], 0
            for piece in template.generate(fields):
                size += len(piece)
                if size > MOST_TEXT:
                    raise OverflowError(f"the text has more than {MOST_TEXT} characters")
                pieces.append(piece)
            return "".join(pieces)

    def spend(steps: int) -> None:
        left.steps -= steps
        if left.steps < 0:
            raise OverflowError(f"it takes more than {MOST_STEPS} steps")

    def bounded(value: Any, most: int) -> Any:
        """Return a value that is joined to others, unless its text is too long."""
        if (length := _length(value)) > most:
            raise OverflowError("the result of ~ is too large")
        spend(length // STEP)
        return value

    def counted(values: Any) -> Iterator[Any]:
        for value in values:
            spend(1)
            yield value

    def shown(value: Any) -> Any:
        if value is None and not strict:
            return ""
        if value is None:
            raise jinja.UndefinedError("a field that it names is null")
        if callable(value) and not isinstance(value, jinja.Undefined):
            raise jinja.UndefinedError("it names a method in place of a field")
        return value

    undefined = jinja.StrictUndefined if strict else jinja.ChainableUndefined
    environment = Sandbox(undefined=undefined, finalize=shown)
    filters = environment.filters
    filters["counted"] = counted
    filters["bounded"] = bounded
    for name in _GROWING:
        filters[name] = _checked(name, filters[name])
    del environment.globals["lipsum"]  # any number of paragraphs
    return environment


def _checked(name: str, use: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that refuses values with which its result would be too large."""

    def checked(*args: Any, **more: Any) -> Any:
        first = 1 if hasattr(use, "jinja_pass_arg") else 0
        _check_growth(name, args[first], (*args[first + 1 :], *more.values()))
        return use(*args, **more)

    vars(checked).update(vars(use))  # whether Jinja passes the context
    return checked


def _check_operation(operator: str, one: Any, other: Any) -> None:
    sizes = [value if isinstance(value, int) else _length(value) for value in (one, other)]
    if operator == "**":
        bits = sizes[0].bit_length() * abs(sizes[1])
        large = bits > _MOST_BITS
    elif operator == "*":
        if isinstance(one, int) and isinstance(other, int):
            large = one.bit_length() + other.bit_length() > _MOST_BITS
        else:
            large = sizes[0] * sizes[1] > MOST_TEXT
    elif operator == "%":
        _check_growth("format", one, other if isinstance(other, tuple) else (other,))
        large = False
    else:
        large = _length(one) + _length(other) > MOST_TEXT
    if large:
        raise OverflowError(f"the result of {operator} is too large")


def _check_growth(name: str, value: Any, args: tuple[Any, ...]) -> None:
    if name == "sum" and any(isinstance(one, list | tuple) for one in args):
        raise OverflowError("sum adds numbers only")  # lists are copied for each that is added
    numbers = [one for one in args if isinstance(one, int)]
    size = max(numbers, default=0)
    if name == "replace":
        size = max(size, (_length(value) + 1) * max(map(_length, args[1:]), default=0))
    elif name == "join":
        size = max([size, *(_length(value) * _length(one) for one in args)])
    elif name in ("format", "format_map") and isinstance(value, str) and _WIDTH.search(value):
        size = MOST_TEXT + 1
    elif name == "wordwrap":  # for each line of a long word the rest of it is copied
        width = min((one for one in args if type(one) is int and one > 0), default=_WRAPPED)
        size = _length(value) ** 2 // (width * STEP // 16)
    elif name in ("indent", "tojson", "expandtabs"):
        size *= _length(value) + 1
    if size > MOST_TEXT:
        raise OverflowError(f"the result of {name} is too large")


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 1
