"""The pages of the documentation, which are part of the package."""

from __future__ import annotations

from importlib.resources import files

import click

from captioner.core.errors import SettingsError
from captioner.settings.validation import did_you_mean


def docs_in_console(topic: str) -> None:
    """Show the page of a topic or, if it is empty, list the pages with their first sentences.

    Raises:
        SettingsError: There is no such page.
    """
    pages = {
        file.name.removesuffix(".md"): file.read_text("utf-8")
        for file in sorted((files("captioner") / "docs").iterdir(), key=lambda file: file.name)
        if file.name.endswith(".md")
    }
    if topic in pages:
        click.echo_via_pager(pages[topic].rstrip("\n"))
    elif topic:
        raise SettingsError(
            f"docs: there is no topic {topic!r}.{did_you_mean(topic, pages)} Topics: "
            f"{', '.join(pages)}"
        )
    else:
        for name, text in pages.items():
            _, *lines = filter(None, text.split("\n"))
            print(f"{name:16} {lines[0] if lines else ''}")
