"""Expressions over a record, such as ``folder == 'cats' and size > 1e6``.

``--where`` and ``--redo`` choose records by them, and stages say with them when they run.

They have the syntax of Python, without attributes, powers, comprehensions and assignments. The
length of an expression bounds the steps that it takes. A value that is missing or of another type
than expected makes a comparison false, so that no record stops a run.
"""

from __future__ import annotations

import ast
import operator
import threading
import warnings
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from captioner.core.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LONGEST = 4_000
"""Characters of an expression."""

MOST_PARTS = 400
"""Names, values and operators of an expression."""

RECORD = "record"
"""Name of the whole record, for fields whose names are no words: ``record['max width']``."""

_LARGEST = 1 << 63

_ALLOWED = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.BinOp, ast.Add,
    ast.Sub, ast.Mult, ast.Div, ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
    ast.In, ast.NotIn, ast.Is, ast.IsNot, ast.Call, ast.Name, ast.Load, ast.Constant, ast.List,
    ast.Tuple, ast.Subscript,
)  # fmt: skip


def _of_numbers(compute: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def computed(one: Any, other: Any) -> Any:
        if not (_is_number(one) and _is_number(other)):
            return None
        try:
            return compute(one, other)
        except ArithmeticError:
            return None

    return computed


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < _LARGEST


def _in_order(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compared(one: Any, other: Any) -> bool:
        texts = isinstance(one, str) and isinstance(other, str)
        return (texts or (_is_number(one) and _is_number(other))) and compare(one, other)

    return compared


def _contains(one: Any, other: Any) -> bool:
    if isinstance(other, str):
        return isinstance(one, str) and one in other
    return isinstance(other, list | tuple | dict) and one in list(other)


def _about_text(test: Callable[[str, str], bool]) -> Callable[[Any, Any], bool]:
    return lambda text, other: (
        isinstance(text, str) and isinstance(other, str) and test(text, other)
    )


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Not: operator.not_,
    ast.USub: lambda value: -value if _is_number(value) else None,
    ast.Add: _of_numbers(operator.add),
    ast.Sub: _of_numbers(operator.sub),
    ast.Mult: _of_numbers(operator.mul),
    ast.Div: _of_numbers(operator.truediv),
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: _in_order(operator.lt),
    ast.LtE: _in_order(operator.le),
    ast.Gt: _in_order(operator.gt),
    ast.GtE: _in_order(operator.ge),
    ast.In: _contains,
    ast.NotIn: lambda one, other: not _contains(one, other),
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": lambda value: len(value) if isinstance(value, str | list | dict) else 0,
    "lower": lambda value: value.lower() if isinstance(value, str) else None,
    "startswith": _about_text(str.startswith),
    "endswith": _about_text(str.endswith),
    "like": _about_text(fnmatchcase),
}
"""Functions of every expression."""

_ARGUMENTS = {"len": 1, "lower": 1}


class Where:
    """An expression that is true for some records.

    Args:
        text: The expression.
        option: Name of the option, for messages.
        functions: Functions that it may call beside the usual ones; each takes one value, and
            any value.

    Attributes:
        text: The expression.
        names: The names in it.
        unseen: Those that no record had so far.

    Raises:
        SettingsError: It is no such expression.
    """

    def __init__(
        self, text: str, option: str, functions: Mapping[str, Callable[[Any], Any]] | None = None
    ) -> None:
        self.text = text
        self._option = option
        self._functions = {**FUNCTIONS, **(functions or {})}
        self._arguments = {**_ARGUMENTS, **dict.fromkeys(functions or {}, 1)}
        tree = self._parsed()
        nodes = list(ast.walk(tree))
        self._check(nodes)
        called = {node.func for node in nodes if isinstance(node, ast.Call)}
        named = [node for node in nodes if isinstance(node, ast.Name) and node not in called]
        self.names = frozenset(node.id for node in named)
        self.unseen = set(self.names)
        self._body = tree.body
        self._one_at_a_time = threading.Lock()  # stages evaluate in threads
        from simpleeval import EvalWithCompoundTypes

        self._evaluator = EvalWithCompoundTypes(operators=_OPERATORS, functions=self._functions)

    def __call__(self, record: Any, computed: Mapping[str, Callable[[], Any]]) -> bool:
        """Return whether it is true for a record.

        Args:
            record: The parsed record; anything but an object has no fields.
            computed: Values that are not fields, by name; they come before fields of that name.
        """
        fields = record if isinstance(record, dict) else {}
        values: dict[str, Any] = {}
        for name in self.names:
            if name in computed:
                values[name] = computed[name]()
            else:
                values[name] = fields if name == RECORD else fields.get(name)
                if values[name] is None:
                    continue
            self.unseen.discard(name)
        return bool(self.value(values))

    def value(self, values: Mapping[str, Any]) -> Any:
        """Return its value for the names in it; None if it has none.

        Args:
            values: The value of each of ``names``.
        """
        with self._one_at_a_time:
            self._evaluator.names = values
            try:
                return self._evaluator.eval(self.text, previously_parsed=self._body)
            except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError):
                return None  # such as a subscript of a value that is no list, or a huge integer

    def _parsed(self) -> ast.Expression:
        if len(self.text) > LONGEST:
            raise self._wrong(f"it has more than {LONGEST} characters")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.parse(self.text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = getattr(error, "msg", "") or "it is nested too deeply"
            raise self._wrong(f"{reason}. Text needs quotes, as in code == 'refused'") from None

    def _check(self, nodes: list[ast.AST]) -> None:
        if len(nodes) > MOST_PARTS:
            raise self._wrong(f"it has more than {MOST_PARTS} parts")
        for node in nodes:
            if not isinstance(node, _ALLOWED) or (isinstance(node, ast.Call) and node.keywords):
                raise self._wrong(f"{type(node).__name__} is not allowed")
            if isinstance(node, ast.Call):
                known = isinstance(node.func, ast.Name) and node.func.id in self._functions
                if not known:
                    raise self._wrong(f"the only functions are {', '.join(self._functions)}")
                count = self._arguments.get(node.func.id, 2)  # type: ignore[attr-defined]
                if len(node.args) != count:
                    name = node.func.id  # type: ignore[attr-defined]
                    raise self._wrong(f"{name} takes {count} value{'s' * (count > 1)}")

    def _wrong(self, reason: str) -> SettingsError:
        return SettingsError(f"{self._option}: {self.text[:200]!r} cannot be read: {reason}")
