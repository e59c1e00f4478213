"""Write the table of options in the README from their one definition.

usage: python scripts/readme_options.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from captioner.settings.flags import all_options

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- options -->\n", "<!-- /options -->"


def table() -> str:
    """Return the options as a Markdown table."""
    lines = ["| flag and TOML key | environment | default | |", "| --- | --- | --- | --- |"]
    for option in all_options().values():
        if option.hidden:
            continue
        value = option.default
        default = "" if value is None or value is False or value == () else str(value)
        if len(default) > 30:
            default = "a concise caption" if "system" in option.name else "describe"
        text = option.help.replace("|", "\\|")
        lines.append(f"| `--{option.key}` | `{option.variable}` | {default} | {text} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    text = README.read_text("utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    fresh = head + BEGIN + table() + END + tail
    if "--check" in sys.argv and fresh != text:
        sys.exit("README.md: the table of options is out of date: python scripts/readme_options.py")
    README.write_text(fresh, "utf-8")


if __name__ == "__main__":
    main()
