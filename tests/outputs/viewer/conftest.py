from __future__ import annotations

import json

import pytest
from conftest import jpeg, rows
from endpoint import Reply, completion
from viewer_browser import DESK, HOSTILE, launched
from waiting import LIMIT_S

from captioner.outputs.viewer import Viewer, ViewerThread


@pytest.fixture
def view():
    """Serve the page of an output in a thread; return it."""
    pages = []

    def serve(output, **options):
        page = ViewerThread(Viewer(output, **options))
        pages.append(page)
        return page

    yield serve
    for page in pages:
        page.close()


@pytest.fixture
def captioned(endpoint, run_command, tmp_path):
    """Caption some records and return the output: one caption is hostile, two records fail."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.jpg").write_bytes(jpeg(number, (320, 240)))
    records = [
        {"id": number, "image": f"images/{number}.jpg", "prompt": f"Describe number {number}."}
        for number in range(40)
    ]
    records[5]["image"] = "images/missing.jpg"
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))

    def behave(call):
        number = int(call.texts[-1].split()[-1].rstrip("."))
        if number == 6:
            error = {"message": "your image was rejected by the content filter"}
            return Reply(status=400, body={"error": {**error, "code": "content_filter"}})
        if number == 7:
            return Reply(body=completion(HOSTILE))
        words = "a zebra crosses the street" if number == 11 else "a cat sits there"
        return Reply(
            body=completion(
                f"Image {number}: {words}" + "".join(f" thing{n}" for n in range(number))
            )
        )

    endpoint.behave = behave
    run = run_command(
        source, "-o", output, "--base-url", endpoint.base_url, "--model", "m",
        "--with", "usage,latency", cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 3, run.stderr
    assert len(rows(output)) == 38
    return output


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture
def tab(browser):
    """Open a page; an error in its console fails the test."""
    contexts, complaints = [], []

    def visit(url, **options):
        context = browser.new_context(**{**DESK, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1_000 * LIMIT_S)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda said: (
                complaints.append(said.text)
                if said.type in ("error", "warning") and "404" not in said.text
                else None
            ),
        )
        page.goto(url)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []
