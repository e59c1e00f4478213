"""Debian's Chromium for tests of the page, and axe to look at it."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
DESK = {"viewport": {"width": 1_200, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 780}, "is_mobile": True, "has_touch": True}
QUIET = [
    "--no-sandbox",  # as root it has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",  # it asks for nothing but our pages
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def launched():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        try:
            yield browser
        finally:
            browser.close()


def axe(page, what):
    """Return what axe complains of, each with where it is."""
    from axe_playwright_python.sync_playwright import Axe

    return [
        (what, one["id"], [node["html"] for node in one["nodes"]])
        for one in Axe().run(page).response["violations"]
    ]
