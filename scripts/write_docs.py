"""Write the tables of options in captioner/docs/options.md from the definitions of the options.

usage: python scripts/write_docs.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.settings.flags import Option, all_options

if TYPE_CHECKING:
    from collections.abc import Iterator

OPTIONS = Path(__file__).parent.parent / "captioner" / "docs" / "options.md"
BEGIN, END = "<!-- options -->\n", "<!-- /options -->"
HEAD = ["", "| flag and TOML key | variable | default | description |", "| --- | --- | --- | --- |"]
LONGEST_DEFAULT = 30


def tables() -> str:
    """Return the options as Markdown: a section for each group, and one for tuning."""
    sections: dict[str, list[str]] = {}
    for option in shown():
        sections.setdefault("Tuning" if option.tuning else option.group, []).append(row(option))
    sections["Tuning"] = sections.pop("Tuning", [])
    lines: list[str] = []
    for title, rows in sections.items():
        if rows:
            lines += ["", f"## {title}", *HEAD, *rows]
    return "\n".join(lines) + "\n\n"


def shown() -> list[Option]:
    """Return the options that are documented."""
    return [option for option in all_options().values() if not option.hidden]


def row(option: Option) -> str:
    """Return the row of one option."""
    flag = f"--{option.key}"
    if option.alone and option.alone[1]:
        flag += f"[={option.alone[1]}]"
    cells = (f"`{flag}`", f"`{option.variable}`", default_of(option.default), option.help)
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
    for option in shown():
        if default_of(option.default) == "see below":
            yield f"Default of `--{option.key}`:\n\n> {option.default}\n\n"


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
