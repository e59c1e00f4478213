"""Write the tables of options in captioner/docs/options.md from the definitions of the options.

usage: python scripts/write_docs.py [--check]
"""

from __future__ import annotations

import sys
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.settings.options import GROUPS
from captioner.settings.validation import flag_name

if TYPE_CHECKING:
    from collections.abc import Iterator

OPTIONS = Path(__file__).parent.parent / "captioner" / "docs" / "options.md"
BEGIN, END = "<!-- options -->\n", "<!-- /options -->"
HEAD = ["", "| flag and TOML key | variable | default | description |", "| --- | --- | --- | --- |"]
LONGEST_DEFAULT = 30


def tables() -> str:
    """Return the options as Markdown: a section for each group, and one for tuning."""
    lines: list[str] = []
    tuning: list[str] = []
    for kind in GROUPS.values():
        rows = []
        for option in fields(kind):
            if option.metadata.get("hidden"):
                continue
            (tuning if option.metadata.get("tuning") else rows).append(row(option))
        if rows:
            lines += ["", f"## {kind.__doc__.strip().splitlines()[0].rstrip('.')}", *HEAD, *rows]
    if tuning:
        lines += ["", "## Tuning", "", "The defaults suit nearly every run.", *HEAD, *tuning]
    return "\n".join(lines) + "\n\n"


def row(option: Field[Any]) -> str:
    """Return the row of one option."""
    flag = flag_name(option.name)
    variable = "CAPTIONER_" + flag.upper().replace("-", "_")
    cells = (f"`--{flag}`", f"`{variable}`", default_of(option.default), option.metadata["help"])
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def default_of(value: Any) -> str:
    """Return a default for the table; a long text is in the code, not here."""
    if value is None or value is False or value == ():
        return ""
    if value is True:
        return "on"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST_DEFAULT else "see below"


def long_defaults() -> Iterator[str]:
    """Yield the defaults that are too long for the table, each as a paragraph."""
    for kind in GROUPS.values():
        for option in fields(kind):
            if default_of(option.default) == "see below" and not option.metadata.get("hidden"):
                yield f"Default of `--{flag_name(option.name)}`:\n\n> {option.default}\n\n"


def main() -> None:
    text = OPTIONS.read_text("utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    fresh = head + BEGIN + tables() + "".join(long_defaults()) + END + tail
    if "--check" not in sys.argv:
        OPTIONS.write_text(fresh, "utf-8")
    elif fresh != text:
        sys.exit("captioner/docs/options.md is out of date: run python scripts/write_docs.py")


if __name__ == "__main__":
    main()
