"""The pages of the documentation, which are part of the package."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from captioner.core.errors import SettingsError
from captioner.settings.validation import did_you_mean

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


def _pages() -> dict[str, Traversable]:
    """Return the files of the pages by topic."""
    folder = files("captioner") / "docs"
    found = (
        [file for file in folder.iterdir() if file.name.endswith(".md")] if folder.is_dir() else []
    )
    return {file.name.removesuffix(".md"): file for file in sorted(found, key=lambda one: one.name)}


def first_lines() -> dict[str, str]:
    """Return the first line of each page by topic, without the mark of a heading."""
    texts = {topic: file.read_text("utf-8") for topic, file in _pages().items()}
    return {topic: text.partition("\n")[0].lstrip("# ") for topic, text in texts.items()}


def page(topic: str) -> str:
    """Return the page of a topic.

    Raises:
        SettingsError: There is none; the message lists the topics.
    """
    pages = _pages()
    if topic not in pages:
        known = ", ".join(pages) or "none"
        raise SettingsError(
            f"docs: there is no topic {topic!r}.{did_you_mean(topic, pages)} Topics: {known}"
        )
    return pages[topic].read_text("utf-8").rstrip("\n")
