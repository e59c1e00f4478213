"""The page of two outputs in Chromium: votes by keyboard and by mouse."""

from __future__ import annotations

import pytest
from conftest import rows
from playwright.sync_api import expect
from viewer_browser import CHROMIUM, DESK, PHONE, axe
from waiting import LIMIT_S

from captioner.outputs.viewer import ViewerStore

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    pytest.mark.xdist_group("heavy"),
]
expect.set_options(timeout=1_000 * LIMIT_S)


@pytest.fixture
def url(captioned, view):
    """The address of a comparison with an output whose captions are longer, but for one."""
    other = captioned.with_name("other.jsonl")
    lines = captioned.read_bytes().splitlines(keepends=True)
    longer = [line.replace(b'"caption":"Image', b'"caption":"Longer image') for line in lines]
    other.write_bytes(b"".join(longer))
    return view(captioned, versus=ViewerStore(other, image_root=None)).url


def sides(page):
    return page.locator("#caption-1").inner_text(), page.locator("#caption-2").inner_text()


def shown(page, voted):
    """Wait for the pair after some votes."""
    expect(page.locator("#counts")).to_contain_text(f"{voted} voted")
    expect(page.locator("#pair")).to_be_visible()
    return sides(page)


def test_voting_by_keyboard(captioned, url, tab):
    """Keys vote, skip and take back; the longer captions win, and the result says so."""
    page = tab(url)
    shown(page, 0)
    expect(page.locator("#image img")).to_have_js_property("naturalWidth", 320)
    assert "captioned by" not in page.content()  # nothing tells the outputs apart
    for number in range(6):
        left, _ = shown(page, number)
        page.keyboard.press("1" if left.startswith("Longer") else "ArrowRight")
    before = shown(page, 6)
    page.keyboard.press("0")
    after = shown(page, 7)
    assert after != before
    page.keyboard.press("z")
    assert shown(page, 6) == before
    page.keyboard.press("s")
    expect(page.locator("#caption-1")).not_to_have_text(before[0])
    assert shown(page, 6) == after
    assert [one["better"] for one in rows(captioned.with_name("out.votes.jsonl"))] == [
        *["second"] * 6, "equal", "none",
    ]  # fmt: skip
    page.reload()
    shown(page, 6)
    page.click("#show-result")
    expect(page.locator("#summary")).to_contain_text("other.jsonl is better in 6 of 6")
    expect(page.locator("#votes")).to_contain_text("other.jsonl is better6 votes")
    page.keyboard.press("1")  # keys do not vote behind the dialog
    page.click("#adopt")
    expect(page.locator("#adopted")).to_have_text("6 captions replaced, 0 accepted.")
    page.keyboard.press("Escape")
    shown(page, 6)
    reviews = rows(captioned.with_name("out.review.jsonl"))
    assert all(one["captions"]["caption"].startswith("Longer image") for one in reviews)


def test_to_the_last_pair(captioned, url, tab):
    """Skipped pairs come again at the end; then the page says that all are decided."""
    page = tab(url)
    shown(page, 0)
    skipped = sides(page)
    page.click("#skip")
    expect(page.locator("#caption-1")).not_to_have_text(skipped[0])
    for number in range(36):
        shown(page, number)
        page.click("#equal")
    assert shown(page, 36) == skipped
    page.click("#equal")
    expect(page.locator("#said")).to_contain_text("All pairs are decided.")
    expect(page.locator("#counts")).to_have_text("37 voted · 0 left · 1 with equal captions")
    expect(page.locator("#pair")).to_be_hidden()
    expect(page.locator("#equal")).to_be_disabled()
    page.click("#undo")
    shown(page, 36)


def test_outputs_that_have_nothing_in_common(captioned, view, tab, tmp_path):
    """The page says so, and pairs appear when the other output gets them."""
    other = tmp_path / "other.jsonl"
    other.write_text('{"id":"else","caption":"another one"}\n')
    page = tab(view(captioned, versus=ViewerStore(other, image_root=None)).url)
    expect(page.locator("#said")).to_have_text("The outputs have no record and no image in common.")
    with other.open("ab") as file:
        file.write(captioned.read_bytes().replace(b"Image", b"Picture"))
    shown(page, 0)


@pytest.mark.parametrize(
    "how", [DESK, {**DESK, "color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"]
)
def test_it_can_be_used_by_everybody(url, tab, how):
    """axe finds no error in a pair, the result or the help, and nothing is cut off."""
    page = tab(url, **how)
    shown(page, 0)
    expect(page.locator("#image img")).to_have_js_property("naturalWidth", 320)
    found = axe(page, "pair")
    page.click("#keys")
    found += axe(page, "help")
    page.click("#help-close")
    page.click("#show-result")
    expect(page.locator("#summary")).to_have_text("No pair is decided yet.")
    found += axe(page, "result")
    assert found == []
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= how["viewport"]["width"]
