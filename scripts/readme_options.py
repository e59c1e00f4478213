"""Write the table of options in the README from their one definition.

usage: python scripts/readme_options.py [--check]
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

from captioner.settings.options import GROUPS
from captioner.settings.validation import flag_name

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- options -->\n", "<!-- /options -->"


def table() -> str:
    """Return the options as a Markdown table."""
    lines = ["| flag and TOML key | environment | default | |", "| --- | --- | --- | --- |"]
    for kind in GROUPS.values():
        for option in fields(kind):
            flag = flag_name(option.name)
            value = option.default
            default = "" if value is None or value is False or value == () else str(value)
            if len(default) > 30:
                default = "a caption, concise and informative" if "system" in flag else "describe"
            text = option.metadata["help"].replace("|", "\\|")
            name = flag_name(option.name).upper().replace("-", "_")
            lines.append(f"| `--{flag}` | `CAPTIONER_{name}` | {default} | {text} |")
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
