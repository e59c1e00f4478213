"""The page in Chromium, as a person uses it: with mouse and keyboard, by what is on the screen."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from threading import Event

import pytest
from conftest import command, jpeg, rows
from endpoint import Reply, completion
from playwright.sync_api import expect
from viewer_browser import CHROMIUM, DESK, HOSTILE, PHONE, axe
from waiting import LIMIT_S

from captioner.outputs.viewer import indexer
from captioner.outputs.viewer.indexer import Indexer

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    pytest.mark.xdist_group("heavy"),
]
expect.set_options(timeout=1_000 * LIMIT_S)


def cards(page):
    return page.locator("#cards .card")


def test_the_gallery(captioned, view, tab):
    """Images, captions, model and counts are there."""
    page = tab(view(captioned).url)
    expect(page.locator("h1")).to_have_text("in.jsonl, captioned by m")
    expect(page.locator("#counts")).to_contain_text("out.jsonl · 38 captions · 2 failed")
    first = cards(page).first
    expect(first.locator(".caption")).to_have_text("Image 0: a cat sits there")
    expect(first.locator(".foot")).to_have_text("#1 · 0.jpg")
    expect(page).to_have_title("in.jsonl \u2013 captioner")
    image = first.locator("img")
    expect(image).to_be_visible()
    expect(image).to_have_js_property("naturalWidth", 320)


def test_a_hostile_caption_is_text(captioned, view, tab):
    """A caption is shown as text and never becomes part of the page."""
    page = tab(view(captioned).url)
    page.fill("#text", "hacked")
    expect(page.locator("#found")).to_have_text("1 found")
    expect(cards(page).first.locator(".caption")).to_have_text(HOSTILE)
    cards(page).first.click()
    expect(page.locator("#detail textarea")).to_have_value(HOSTILE)
    assert page.locator("#detail script, #cards script").count() == 0
    assert "hacked" not in page.title()


def test_searching_and_filtering(captioned, view, tab):
    """Search and filters narrow the gallery together; empty ones show all again."""
    page = tab(view(captioned).url)
    page.fill("#text", "zebra")
    expect(page.locator("#found")).to_have_text("1 found")
    expect(cards(page)).to_have_count(1)
    expect(cards(page).first).to_contain_text("Image 11: a zebra")
    page.fill("#text", "a cat")
    expect(page.locator("#found")).to_have_text("36 found")
    page.fill("#shortest", "300")
    expect(page.locator("#found")).to_have_text("4 found")
    page.check("#newest")
    expect(cards(page).first).to_contain_text("Image 39")
    page.fill("#text", "")
    page.fill("#shortest", "")
    expect(page.locator("#found")).to_have_text("")
    expect(cards(page).first).to_contain_text("Image 39")


def test_reviewing_by_keyboard(captioned, view, tab):
    """Accept, reject with a note, edit, take back: all without a mouse, and all of it kept."""
    page = tab(view(captioned).url)
    expect(cards(page).first).to_contain_text("Image 0")
    page.keyboard.press("j")  # the first one is chosen
    expect(cards(page).first).to_be_focused()
    page.keyboard.press("a")
    expect(cards(page).nth(0)).to_contain_text("accepted")
    expect(cards(page).nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#detail-title")).to_have_text("#2")
    page.keyboard.press("n")
    page.keyboard.type("no cat at all")
    page.keyboard.press("Enter")
    page.keyboard.press("r")
    expect(page.locator("#detail-title")).to_have_text("#3")  # it goes on to the next by itself
    page.keyboard.press("e")
    expect(page.locator("#detail textarea")).to_be_focused()
    page.keyboard.press("Control+A")
    page.keyboard.type("Two cats & a <dog>.")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#detail-title")).to_have_text("#4")
    page.keyboard.press("a")
    expect(page.locator("#detail-title")).to_have_text("#5")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#said")).to_have_text("accepted")
    page.keyboard.press("u")
    expect(page.locator("#said")).to_have_text("")
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    expect(page.locator("#counts")).to_contain_text("1 accepted · 1 edited · 1 rejected")

    said = [(one["verdict"], one["note"]) for one in rows(captioned.with_name("out.review.jsonl"))]
    assert said == [
        ("accepted", ""), ("rejected", "no cat at all"), ("edited", ""), ("accepted", ""),
        ("none", ""),
    ]  # fmt: skip
    page.reload()
    expect(cards(page).nth(1)).to_contain_text("rejected #2 · no cat at all · 1.jpg")
    expect(cards(page).nth(2).locator(".caption")).to_have_text("Two cats & a <dog>.")
    page.select_option("#verdict", "rejected")
    expect(page.locator("#found")).to_have_text("1 found")
    expect(cards(page).first).to_contain_text("Image 1:")


def test_what_is_not_looked_at_is_not_judged(captioned, view, tab):
    """A key reviews the chosen caption once, and does nothing without one."""
    page = tab(view(captioned).url)
    expect(cards(page).first).to_contain_text("Image 0")
    page.keyboard.press("r")  # nothing is chosen yet
    page.keyboard.press("j")
    page.evaluate("""import("./review.js").then(({judge}) => Promise.all([
        judge("accepted"), judge("accepted")]))""")  # a second time while the first is on its way
    expect(cards(page).first).to_contain_text("accepted")
    page.keyboard.press("k")
    expect(cards(page).first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#detail-title")).to_have_text("#1")
    page.evaluate("""import("./review.js").then(({judge}) => Promise.all([
        judge("rejected"), judge("rejected")]))""")
    expect(page.locator("#detail-title")).to_have_text("#2")
    page.keyboard.press("Escape")
    said = rows(captioned.with_name("out.review.jsonl"))
    assert {one["key"] for one in said} == {said[0]["key"]}
    assert said[-1]["verdict"] == "rejected"


def test_what_was_typed_is_accepted(captioned, view, tab):
    """Accepting in the dialog accepts the text that is shown there."""
    page = tab(view(captioned).url)
    cards(page).first.click()
    page.fill("#detail textarea", "My own words.")
    page.click("#detail >> text=Accept")
    expect(page.locator("#detail-title")).to_have_text("#2")
    (said,) = rows(captioned.with_name("out.review.jsonl"))
    assert (said["verdict"], said["captions"]) == ("edited", {"caption": "My own words."})
    page.keyboard.press("Escape")
    expect(cards(page).first).to_contain_text("My own words.")
    page.keyboard.press("k")
    page.keyboard.press("a")
    expect(cards(page).nth(1)).to_be_focused()
    expect(cards(page).first).to_contain_text("edited")


def test_what_was_typed_is_not_dropped_unasked(captioned, view, tab):
    """Leaving a caption that was changed asks first; a note goes with the verdict that follows."""
    page = tab(view(captioned).url)
    expect(cards(page).first).to_contain_text("Image 0")
    page.keyboard.press("j")
    page.keyboard.press("n")
    expect(page.locator("#note")).to_be_focused()
    page.keyboard.type("a dark one")
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_have_text("accept or reject, and the note is kept")
    page.fill("#detail textarea", "My own words.")
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    page.click("#after")
    page.locator("#close").focus()
    page.keyboard.press("Escape")
    expect(page.locator("#detail textarea")).to_have_value("My own words.")
    assert asked == ["Drop what you have written?"] * 2
    page.click("#detail >> text=Accept")
    expect(page.locator("#detail-title")).to_have_text("#2")
    (said,) = rows(captioned.with_name("out.review.jsonl"))
    assert (said["note"], said["captions"]["caption"]) == ("a dark one", "My own words.")


def test_new_captions_do_not_move_the_one_that_is_looked_at(captioned, view, tab):
    """With the newest first, new rows wait while a card is chosen, which keeps its caption."""
    page = tab(view(captioned).url)
    page.check("#newest")
    expect(cards(page).first).to_contain_text("Image 39")
    page.locator("#newest").blur()
    page.keyboard.press("j")
    expect(cards(page).first).to_be_focused()
    with captioned.open("ab") as file:
        file.write(b'{"id":"late","caption":"a late one"}\n')
    expect(page.locator("#more")).to_have_text("1 new")
    expect(cards(page).first).to_contain_text("Image 39")
    page.click("#more")
    expect(cards(page).first).to_contain_text("a late one")


def test_putting_in_order_waits_for_who_is_writing(captioned, view, tab):
    """The end of a run sorts its rows; an edit that is being typed can still be saved."""
    page = tab(view(captioned).url)
    cards(page).first.click()
    page.fill("#detail textarea", "My own words.")
    other = captioned.with_name("other")
    other.write_bytes(b"".join(reversed(captioned.read_bytes().splitlines(keepends=True))))
    other.replace(captioned)
    with page.expect_response(lambda reply: "status" in reply.url):
        pass
    page.click("#detail >> text=Save edit")
    expect(page.locator("#said")).to_have_text("edited")
    page.keyboard.press("Escape")
    expect(cards(page).first).to_contain_text("Image 39")
    page.select_option("#verdict", "edited")
    expect(cards(page)).to_have_count(1)
    expect(cards(page).first).to_contain_text("My own words.")


def test_failures_with_their_images(captioned, view, tab):
    """Failed records are on a page of their own, by code, with image and reason."""
    page = tab(view(captioned).url)
    page.click("nav >> text=Failures")
    expect(cards(page)).to_have_count(2)
    page.select_option("#code", "filtered")
    expect(page.locator("#found")).to_have_text("1 found")
    expect(cards(page)).to_have_count(1)
    expect(cards(page).first).to_contain_text("content filter")
    expect(page.locator("#cards img").first).to_have_js_property("naturalWidth", 320)
    page.select_option("#code", "image_missing")
    expect(cards(page).first.locator(".frame")).to_contain_text("missing.jpg")
    cards(page).first.click()
    expect(page.locator("#detail")).to_contain_text("there is no file images/missing.jpg")
    expect(page.locator("#verdicts")).to_be_hidden()


def test_charts(captioned, view, tab):
    """Lengths, tokens and latency are drawn, and say in words what they show."""
    page = tab(view(captioned).url)
    page.click("nav >> text=Charts")
    for label in ("Caption length: up to", "Latency of a caption: up to", "Prompt tokens: up to"):
        expect(page.locator(f"[role=img][aria-label^='{label}']")).to_be_visible()
    expect(page.locator("#charts .facts")).to_contain_text("word-for-word duplicates")


def test_a_bar_shows_its_captions(captioned, view, tab):
    """A click on a bar of lengths, or on its line in the table, filters by it; axes begin at 0."""
    page = tab(view(captioned).url)
    page.click("nav >> text=Charts")
    chart = page.locator("[role=img][aria-label^='Caption length']")
    over = chart.locator(".u-over")
    size = over.bounding_box()
    over.click(position={"x": size["width"] - 3, "y": size["height"] - 3})
    expect(page.locator("#found")).to_contain_text("found")
    low, high = page.input_value("#shortest"), page.input_value("#longest")
    lengths = [len(row["caption"]) for row in rows(captioned)]
    assert int(low) <= max(lengths) <= int(high)
    fitting = sum(int(low) <= length <= int(high) for length in lengths)
    expect(page.locator("#found")).to_have_text(f"{fitting} found")
    page.click("nav >> text=Charts")
    page.locator("summary").first.click()
    page.get_by_role("button", name=f"{low} to {high} characters").click()
    expect(page.locator("#found")).to_have_text(f"{fitting} found")


def test_reviewing_by_mouse(captioned, view, tab):
    """Each card has what a review needs; what is left is counted, and undo takes a step back."""
    page = tab(view(captioned).url)
    page.get_by_role("button", name="Accept #1", exact=True).click()
    expect(cards(page).nth(0)).to_contain_text("accepted")
    page.get_by_role("button", name="Reject #2", exact=True).click()
    expect(cards(page).nth(1)).to_contain_text("rejected")
    expect(page.locator("#counts")).to_contain_text("36 left")
    page.get_by_role("button", name="Edit #3", exact=True).click()
    expect(page.locator("#detail textarea")).to_be_focused()
    expect(page.locator("#left")).to_have_text("36 left")
    page.keyboard.press("Escape")
    page.keyboard.press("z")
    expect(page.locator("#found")).to_have_text("1 undone")
    expect(cards(page).nth(1)).not_to_contain_text("rejected")
    expect(cards(page).nth(0)).to_contain_text("accepted")
    said = [one["verdict"] for one in rows(captioned.with_name("out.review.jsonl"))]
    assert said == ["accepted", "rejected", "none"]
    page.select_option("#verdict", "none")
    expect(page.locator("#found")).to_have_text("37 found")


def test_find_and_replace_in_a_selection(captioned, view, tab):
    """Selected captions change together after a preview; one key takes all of it back."""
    page = tab(view(captioned).url)
    page.get_by_role("checkbox", name="Select #1", exact=True).click()
    page.get_by_role("checkbox", name="Select #3", exact=True).click(modifiers=["Shift"])
    expect(page.locator("#selected")).to_have_text("3 selected")
    page.click("#change")
    page.fill("#find", "(cat) sits")
    page.fill("#replacement", r"black \1 lies")
    page.check("#pattern")
    expect(page.locator("#apply")).to_be_disabled()
    page.click("#preview")
    expect(page.locator("#changes li")).to_have_count(3)
    expect(page.locator("#changes ins").first).to_have_text("Image 0: a black cat lies there")
    page.click("#apply")
    expect(page.locator("#edit")).to_be_hidden()
    expect(cards(page).first.locator(".caption")).to_have_text("Image 0: a black cat lies there")
    expect(page.locator("#counts")).to_contain_text("3 edited")
    page.keyboard.press("z")
    expect(cards(page).first.locator(".caption")).to_have_text("Image 0: a cat sits there")
    page.fill("#text", "zebra")
    expect(page.locator("#found")).to_have_text("1 found")
    page.click("#all")
    expect(page.locator("#selected")).to_have_text("1 selected")
    page.click("#reject-all")
    expect(cards(page).first).to_contain_text("rejected")


def test_captioning_the_selected_again(captioned, endpoint, view, tab):
    """Selected captions are marked, sent again with another question, and shown as they come."""
    page = tab(view(captioned).url)
    endpoint.behave = lambda call: Reply(body=completion(f"A new caption: {call.texts[-1]}"))
    page.get_by_role("checkbox", name="Select #2", exact=True).click()
    page.click("#again")
    page.fill("#question", "What is it?")
    expect(page.locator("#command")).to_contain_text("'--ask=caption=What is it?'")
    expect(page.locator("#where")).to_contain_text(
        "1 caption selected. What is marked goes to m at"
    )
    page.click("#mark")
    expect(page.locator("#marked")).to_contain_text("1 caption marked")
    page.keyboard.press("Escape")
    expect(cards(page).nth(1)).to_contain_text("to caption again")
    page.select_option("#verdict", "again")
    expect(page.locator("#found")).to_have_text("1 found")
    page.click("#again")
    page.click("#start")
    expect(page.locator("#again-dialog")).to_be_hidden()
    expect(page.locator("#redone")).to_contain_text("1 captioned")
    expect(page.locator("#found")).to_have_text("0 found")
    page.fill("#text", "a new caption")
    page.select_option("#verdict", "")
    expect(page.locator("#found")).to_have_text("1 found")
    expect(cards(page).first).to_contain_text("A new caption: What is it?")
    expect(page.locator("#counts")).not_to_contain_text("to caption again")


def test_sizes_and_the_original(captioned, view, tab):
    """Images fill their cards, in three sizes and a list; a click in a caption zooms."""
    page = tab(view(captioned).url)
    for size in ("small", "large", "list"):
        page.select_option("#size", size)
        image = cards(page).first.locator("img")
        expect(image).to_be_visible()
        expect(image).to_have_js_property("naturalWidth", 320)
        page.wait_for_function(  # the cards may be made anew meanwhile
            """() => {
                const [frame, image] = [".frame", "img"].map((one) =>
                    document.querySelector(`#cards .card ${one}`)?.getBoundingClientRect());
                return image && frame &&
                    ["x", "y", "width", "height"].every((one) => image[one] === frame[one]);
            }"""
        )
    assert cards(page).nth(1).bounding_box()["x"] == cards(page).first.bounding_box()["x"]
    cards(page).first.click()
    page.get_by_role("button", name="Zoom image 1 of #1", exact=True).click()
    expect(page.locator("#detail img")).to_have_attribute("src", re.compile("/full$"))
    expect(page.locator("#detail img")).to_have_js_property("naturalWidth", 320)


def test_a_phone_shows_all_filters(captioned, view, tab):
    """Behind one button, no filter is cut off."""
    page = tab(view(captioned).url, **PHONE)
    expect(page.locator("#verdict")).to_be_hidden()
    page.click("#filtering")
    for name in ("verdict", "flag", "repeated", "opening", "shortest", "longest", "newest"):
        box = page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390


def test_a_run_is_seen_live(endpoint, make_input, tmp_path, tab):
    """With --view captions appear while the run goes on, without a reload; then it ends."""
    source, output = make_input(30), tmp_path / "out.jsonl"
    endpoint.behave = lambda call: None if call.number <= 3 else Reply(fault="hang")
    run = subprocess.Popen(
        command(source, "-o", output, "--base-url", endpoint.base_url, "--model", "m", "--view",
                "--concurrency", 6, "--drain", 0),
        stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    try:
        said = run.stderr.readline()
        kept = re.fullmatch(
            r"captions: http://127\.0\.0\.1:\d+/ \(the address with its token is in (.*)\)\n", said
        )[1]
        url = Path(kept).read_text().strip()
        page = tab(url)
        expect(cards(page)).to_have_count(3)
        expect(page.locator("#counts")).to_contain_text("3 captions")
        expect(page.locator("#counts")).to_contain_text("in flight")
        with output.open("ab") as file:  # as the run itself appends
            file.write(b'{"id":"late","caption":"a late one"}\n')
        expect(cards(page)).to_have_count(4)
        expect(cards(page).last).to_contain_text("a late one")
        page.check("#newest")
        expect(cards(page).first).to_contain_text("a late one")
        page.click("nav >> text=Charts")
        expect(page.locator("[role=img][aria-label^='Records a second']")).to_be_visible()
        page.close()  # it asks for news until then, and the run is about to end
    finally:
        run.terminate()
        run.communicate(timeout=LIMIT_S)


def test_a_hundred_thousand_rows_are_scrolled(tmp_path, view, tab):
    """Every row of a long output can be scrolled to; only visible rows are in the page."""
    output = tmp_path / "out.jsonl"
    (tmp_path / "a.jpg").write_bytes(jpeg(1, (320, 240)))
    with output.open("w") as file:
        for number in range(100_000):
            row = {"id": number, "image": "a.jpg", "caption": f"caption number {number}"}
            file.write(json.dumps(row) + "\n")
    page = tab(view(output, image_root=tmp_path).url)
    expect(cards(page).first).to_contain_text("caption number 0")
    page.focus("#gallery")
    page.keyboard.press("End")
    expect(page.locator("#cards", has_text="caption number 99999")).to_be_visible()
    assert cards(page).count() < 60
    page.evaluate("document.querySelector('#gallery').scrollTop /= 2")
    expect(
        page.locator("#cards", has_text=re.compile(r"caption number (49|50)\d\d\d"))
    ).to_be_visible()
    assert cards(page).count() < 60
    for _ in range(30):
        page.mouse.move(600, 600)
        page.mouse.wheel(0, 900)
    expect(page.locator("#cards", has_text=re.compile(r"caption number 50\d\d\d"))).to_be_visible()
    page.fill("#text", "number 9999")
    expect(page.locator("#found")).to_have_text("11 found")
    page.fill("#text", "caption")
    expect(page.locator("#found")).to_contain_text("found so far")


def test_every_row_of_a_long_output_can_be_reached(tmp_path, view, tab):
    """On a phone, small steps scroll by as much, although 100,000 cards exceed a page's height."""
    output = tmp_path / "out.jsonl"
    with output.open("w") as file:
        file.writelines(f'{{"caption":"caption number {n}"}}\n' for n in range(100_000))
    page = tab(view(output).url, viewport={"width": 390, "height": 780})
    expect(cards(page).first).to_contain_text("caption number 0")
    page.mouse.move(200, 600)
    for number in (1, 2, 3):
        page.mouse.wheel(0, 362)
        card = page.locator(".card", has_text=re.compile(rf"caption number {number}\b"))
        expect(card).to_be_in_viewport(ratio=0.9)
        expect(cards(page).first).not_to_be_in_viewport()
    expect(page.get_by_text("100,000 captions").first).to_be_visible()  # all are read
    page.focus("#gallery")
    page.keyboard.press("End")
    expect(page.locator("#cards", has_text="caption number 99999")).to_be_visible()


def test_the_key_end_reaches_the_end_while_the_browser_is_busy(tmp_path, view, tab):
    """Although no frame is drawn while the bar moves, the last row is where it stops."""
    output = tmp_path / "out.jsonl"
    with output.open("w") as file:
        file.writelines(f'{{"caption":"caption number {n}"}}\n' for n in range(30_000))
    page = tab(view(output).url, viewport={"width": 390, "height": 780})
    expect(cards(page).first).to_contain_text("caption number 0")
    page.evaluate("window.requestAnimationFrame = () => 0")
    page.focus("#gallery")
    page.keyboard.press("End")
    expect(page.locator("#cards", has_text="caption number 29999")).to_be_visible()
    page.keyboard.press("Home")
    expect(page.locator("#cards", has_text=re.compile(r"caption number 0\b"))).to_be_visible()


def test_a_search_during_indexing_is_not_over(tmp_path, monkeypatch, view, tab):
    """What is indexed later may repeat captions that were passed over: these are found as well."""
    output, may_go_on = tmp_path / "out.jsonl", Event()
    captions = ["Two cats.", "A dog.", "A horse.", "Two cats."]
    output.write_text("".join(f'{{"caption":"{caption}"}}\n' for caption in captions))
    advance = Indexer.advance

    def advance_once(self):
        return (may_go_on.is_set() or not self.count) and advance(self)

    monkeypatch.setattr(indexer, "ROWS", 2)
    monkeypatch.setattr(Indexer, "advance", advance_once)
    page = tab(view(output).url)
    for newest in (False, True):
        page.select_option("#repeated", "exactly")
        page.set_checked("#newest", newest)
        expect(page.locator("#found")).to_have_text("0 found in the 2 captions indexed so far")
    may_go_on.set()
    expect(page.locator("#found")).to_have_text("2 found")
    expect(cards(page)).to_have_count(2)


@pytest.mark.parametrize(
    "how", [DESK, {**DESK, "color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"]
)
def test_it_can_be_used_by_everybody(captioned, view, tab, how):
    """axe finds no error in the gallery, a caption, the failures, the charts or the help."""
    page = tab(view(captioned).url, **how)
    expect(page.locator("#cards img").first).to_have_js_property("naturalWidth", 320)
    found = axe(page, "gallery")
    cards(page).first.click()
    expect(page.locator("#detail img")).to_be_visible()
    page.click("#detail >> text=Reject")
    expect(page.locator("#detail-title")).to_have_text("#2")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#said")).to_have_text("rejected")
    found += axe(page, "caption")
    page.keyboard.press("Escape")
    found += axe(page, "gallery with a review")
    page.keyboard.press("x")
    expect(page.locator("#selection")).to_be_visible()
    page.click("#change")
    page.fill("#find", "cat")
    page.click("#preview")
    expect(page.locator("#edited")).to_contain_text("would change")
    found += axe(page, "edit")
    page.click("#edit-close")
    page.click("#again")
    expect(page.locator("#start")).to_be_enabled()
    found += axe(page, "again")
    page.click("#again-close")
    page.click("nav >> text=Keys")
    expect(page.locator("#help")).to_be_visible()
    found += axe(page, "help")
    page.click("#help-close")
    page.click("nav >> text=Failures")
    expect(cards(page)).to_have_count(2)
    found += axe(page, "failures")
    page.click("nav >> text=Charts")
    expect(page.locator("#charts canvas").first).to_be_visible()
    found += axe(page, "charts")
    assert found == []
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= how["viewport"]["width"]  # nothing has to be scrolled sideways
