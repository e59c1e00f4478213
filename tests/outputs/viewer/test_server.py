from __future__ import annotations

import io
import json
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import jpeg, rows
from page_requests import send
from PIL import Image

from captioner import run_batch
from captioner.core.errors import SettingsError


def get(url, **headers):
    """Return status, headers and body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def found(url):
    status, _, body = get(url)
    assert status == 200, body
    return json.loads(body)


def say(page, **said):
    return send(page, "review", **said)


def test_who_does_not_know_the_token_sees_nothing(captioned, view):
    """Without the token nothing is shown, whatever the path."""
    page = view(captioned)
    base, token = page.url.rstrip("/").rsplit("/", 1)
    assert len(token) >= 20
    assert base.startswith("http://127.0.0.1:")
    for path in ("", "/", "/x/", f"/{token[:-1]}/", f"/{token}x/", "/api/status", "/x/api/status"):
        status, headers, body = get(base + path)
        assert status == 404
        assert b"caption" not in body
        assert "default-src 'none'" in headers.get("Content-Security-Policy", "default-src 'none'")
    assert get(page.url)[0] == 200


def test_nothing_may_be_loaded_from_elsewhere(captioned, view):
    """Every reply forbids scripts, styles, frames and connections other than its own."""
    page = view(captioned)
    for path in (
        "",
        "compare.html",
        "app.js",
        "compare.js",
        "charts.js",
        "uplot.js",
        "style.css",
        "icon.svg",
        "api/status",
    ):
        status, headers, body = get(page.url + path)
        assert status == 200
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        if path not in ("icon.svg", "uplot.js"):
            assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"")
            assert b"https://" not in body
    assert get(page.url + "server.py")[0] == 404
    assert get(page.url + "../server.py")[0] == 404


def test_rows_as_they_are_shown(captioned, view):
    """A row is shown with caption, prompt, usage and its other fields."""
    page = view(captioned)
    status = found(page.url + "api/status")
    assert (status["rows"], status["failures"], status["running"]) == (38, 2, False)
    assert status["codes"] == {"image_missing": 1, "filtered": 1}
    first, last = found(page.url + "api/rows?numbers=0,37,99")
    written = rows(captioned)
    assert first["captions"] == {"caption": written[0]["caption"]}
    assert first["prompt"] == "Describe number 0."
    assert first["extras"]["caption_usage"] == written[0]["caption_usage"]
    assert first["fields"]["image"] == "images/0.jpg"
    assert last["number"] == 37
    missing, filtered = found(page.url + "api/failures?numbers=0,1")
    assert {missing["code"], filtered["code"]} == {"image_missing", "filtered"}
    assert missing["line"] in (6, 7)


@pytest.mark.parametrize(("size", "side"), [("small", 320), ("large", 320)])
def test_images_are_drawn_small(captioned, view, size, side):
    """An image is a JPEG no larger than requested, also for a failed record."""
    page = view(captioned)
    found(page.url + "api/status")
    for kind, number in (("rows", 3), ("failures", 1)):
        code = found(f"{page.url}api/failures?numbers={number}")
        if kind == "failures" and code[0]["code"] == "image_missing":
            number = 0  # noqa: PLW2901
        status, headers, body = get(f"{page.url}image/{kind}/1/{number}/0/{size}")
        assert status == 200, body
        assert headers["Content-Type"] == "image/jpeg"
        with Image.open(io.BytesIO(body)) as image:
            assert max(image.size) == side


def test_images_that_cannot_be_shown_are_told(captioned, view):
    """Where there is no image, a sentence says why."""
    page = view(captioned)
    found(page.url + "api/status")
    missing = [one["number"] for one in found(page.url + "api/failures?numbers=0,1")
               if one["code"] == "image_missing"]  # fmt: skip
    status, _, body = get(f"{page.url}image/failures/1/{missing[0]}/0/small")
    assert status == 404
    assert "missing.jpg" in json.loads(body)["error"]
    for path in ("rows/1/0/9/small", "rows/1/999/0/small", "rows/1/0/0/huge", "else/1/0/0/small"):
        assert get(f"{page.url}image/{path}")[0] == 404


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        ("text=ZEBRA", 1),
        ("text=A CAT", 36),
        ("text=number 12.", 1),
        ("text=nothing like that", 0),
        ("text=onerror=%22document", 1),
        ("shortest=300", 4),
        ("longest=30", 1),
        ("flag=any", 0),
        ("verdict=none", 38),
        ("verdict=accepted", 0),
    ],
)
def test_finding(captioned, view, asked, numbers):
    """Rows are found by text in any case, by length, by flag and by review."""
    page = view(captioned)
    found(page.url + "api/status")
    asked = asked.replace(" ", "%20")
    forth = found(f"{page.url}api/find/rows?first=0&{asked}")
    back = found(f"{page.url}api/find/rows?first=37&newest=1&{asked}")
    assert len(forth["numbers"]) == numbers
    assert forth["numbers"] == back["numbers"][::-1]
    assert (forth["next"], forth["looked_at"]) == (None, 38)


def test_finding_failures(captioned, view):
    """Failures are found by code and by message."""
    page = view(captioned)
    found(page.url + "api/status")
    for asked, count in (("code=image_missing", 1), ("text=MISSING.jpg", 1), ("code=x", 0)):
        assert len(found(f"{page.url}api/find/failures?first=0&{asked}")["numbers"]) == count


def test_reviews(captioned, view):
    """A review is kept beside the output and shown from then on."""
    page = view(captioned)
    found(page.url + "api/status")
    shown = found(page.url + "api/rows?numbers=0,1,2,3")
    about = [{name: row[name] for name in ("number", "key", "of")} for row in shown]
    assert say(page, **about[0], verdict="accepted")["verdict"] == "accepted"
    assert say(page, **about[1], verdict="rejected", note="no cat")["verdict"] == "rejected"
    edit = {"caption": "One cat.  "}
    assert say(page, **about[2], verdict="edited", captions=edit)["captions"] == {
        "caption": "One cat."
    }
    unchanged = {"caption": shown[3]["captions"]["caption"]}
    assert say(page, **about[3], verdict="edited", captions=unchanged)["verdict"] == "accepted"
    again = found(page.url + "api/rows?numbers=0,1,2,3")
    assert [row["verdict"] for row in again] == ["accepted", "rejected", "edited", "accepted"]
    assert again[1]["note"] == "no cat"
    assert again[2]["captions"] == {"caption": "One cat."}
    assert found(page.url + "api/find/rows?first=0&verdict=rejected")["numbers"] == [1]
    assert found(page.url + "api/find/rows?first=0&text=one%20cat.")["numbers"] == [2]
    assert len(rows(captioned.with_name("out.review.jsonl"))) == 4
    assert say(page, **about[1], verdict="none")["verdict"] == "none"
    assert found(page.url + "api/status")["verdicts"] == {"accepted": 2, "edited": 1}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"verdict": "perhaps"}, "not a verdict"),
        ({"of": "00"}, "no longer exists"),
        ({"key": "00"}, "no longer exists"),
        ({"verdict": "edited", "captions": {"caption": "  "}}, "reject it instead"),
        ({"verdict": "edited", "captions": {"id": "7"}}, "not a caption field"),
        ({"verdict": "edited", "captions": 7}, ""),
    ],
)
def test_reviews_that_are_none(captioned, view, change, why):
    """An invalid review is refused with a sentence, and nothing is written."""
    page = view(captioned)
    found(page.url + "api/status")
    (row,) = found(page.url + "api/rows?numbers=0")
    said = {"number": 0, "key": row["key"], "of": row["of"], "verdict": "accepted", **change}
    status, message = say(page, **said)
    assert status == 400
    assert why in message
    assert not captioned.with_name("out.review.jsonl").exists()


@pytest.mark.parametrize(
    "path",
    [
        "api/rows",
        "api/rows?numbers=x",
        "api/find/rows",
        "api/else",
        "api/find/rows?first=x",
        "api/find/rows?first=0&shortest=x",
    ],
)
def test_questions_that_make_no_sense(captioned, view, path):
    """The response is a sentence and no stack trace."""
    status, _, body = get(view(captioned).url + path)
    assert status in (400, 404)
    assert b"Traceback" not in body


def test_charts(captioned, view):
    """The statistics of captions, and the tokens and seconds in the rows."""
    page = view(captioned)
    found(page.url + "api/status")
    charts = found(page.url + "api/charts")
    assert charts["quality"]["captions"] == 38
    assert set(charts["histograms"]) == {"latency", "prompt_tokens", "completion_tokens"}
    assert sum(count for _, count in charts["histograms"]["prompt_tokens"]) == 38


def test_an_output_that_does_not_exist_yet(tmp_path, view):
    """The page of a run that has written nothing yet is there, and empty."""
    page = view(tmp_path / "out.jsonl")
    assert found(page.url + "api/status")["rows"] == 0
    assert found(page.url + "api/find/rows?first=0&text=x")["numbers"] == []
    assert found(page.url + "api/rows?numbers=0") == []
    assert found(page.url + "api/charts")["quality"]["captions"] == 0


def test_an_output_that_grows_and_is_replaced(captioned, view):
    """New lines are shown, an incomplete one once it is whole; a new file is read whole."""
    page = view(captioned)
    before = found(page.url + "api/status")
    with captioned.open("ab") as file:
        file.write(b'{"id":99,"caption":"late"}\n{"id":100,"capt')
    grown = found(page.url + "api/status")
    assert (grown["rows"], grown["generation"]) == (before["rows"] + 1, before["generation"])
    (row,) = found(page.url + f"api/rows?numbers={before['rows']}")
    assert row["captions"] == {"caption": "late"}
    other = captioned.with_name("other")
    other.write_bytes(b'{"id":1,"caption":"new"}\n')
    other.replace(captioned)
    replaced = found(page.url + "api/status")
    assert replaced["rows"] == 1
    assert replaced["generation"] != before["generation"]


def test_a_port_that_is_taken(captioned, view):
    """The error is one sentence."""
    port = int(view(captioned).url.split(":")[2].partition("/")[0])
    with pytest.raises(SettingsError, match="cannot listen on"):
        view(captioned, port=port)


def test_answers_that_are_objects(tmp_path, view):
    """A caption that is an object is shown as JSON, and edited as such."""
    output = tmp_path / "out.jsonl"
    output.write_text('{"id":1,"caption":{"objects":["cat"],"big":123456789012345678901}}\n')
    page = view(output)
    found(page.url + "api/status")
    (row,) = found(page.url + "api/rows?numbers=0")
    about = {name: row[name] for name in ("number", "key", "of")}
    text = row["captions"]["caption"]
    assert json.loads(text)["big"] == 123456789012345678901
    status, why = say(page, **about, verdict="edited", captions={"caption": text + "}"})
    assert (status, why) == (400, "caption is not valid JSON")
    for wrong in ("7", "[]", "{}"):
        status, why = say(page, **about, verdict="edited", captions={"caption": wrong})
        assert status == 400
    big = {"caption": text.replace("cat", "dog")}
    assert say(page, **about, verdict="edited", captions=big)["verdict"] == "edited"
    (row,) = found(page.url + "api/rows?numbers=0")
    assert json.loads(row["captions"]["caption"])["big"] == 123456789012345678901
    new = {"objects": ["cat", "dog"]}
    kept = say(page, **about, verdict="edited", captions={"caption": json.dumps(new)})
    assert kept["captions"]["caption"] == new


def test_accepting_keeps_what_is_shown(captioned, view):
    """Accepting an edited caption accepts the edit; line ends of a browser are no edit."""
    page = view(captioned)
    found(page.url + "api/status")
    (row,) = found(page.url + "api/rows?numbers=0")
    about = {name: row[name] for name in ("number", "key", "of")}
    say(page, **about, verdict="edited", captions={"caption": "One cat."})
    again = say(page, **about, verdict="accepted", captions={"caption": "One cat."})
    assert again == {"verdict": "edited", "captions": {"caption": "One cat."}}
    untouched = {"caption": row["captions"]["caption"] + "\r\n"}
    assert say(page, **about, verdict="accepted", captions=untouched)["verdict"] == "accepted"


def test_filters_go_by_what_is_shown(captioned, view):
    """An edited caption is found by its new text and length, and not by its old ones."""
    page = view(captioned)
    found(page.url + "api/status")
    (row,) = found(page.url + "api/rows?numbers=10")
    about = {name: row[name] for name in ("number", "key", "of")}
    old = row["captions"]["caption"].split()[1]
    say(page, **about, verdict="edited", captions={"caption": "Zug."})
    assert found(page.url + "api/find/rows?first=0&text=zug")["numbers"] == [10]
    assert found(page.url + "api/find/rows?first=0&longest=5")["numbers"] == [10]
    numbers = found(page.url + f"api/find/rows?first=0&text=image%20{old}")["numbers"]
    assert 10 not in numbers


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [("Straße", "straße"), ("Straße", "STRASSE"), ("oﬃce", "office"), ("a/b", "a/b"),
     ("ÄRGER", "ärger"), ('say "x"', '"x"'), ("back\\slash", "\\s")],
)  # fmt: skip
def test_finding_in_any_language_and_spelling(tmp_path, view, caption, wanted):
    """Case is that of the language, and how a row spells a character makes no difference."""
    output = tmp_path / "out.jsonl"
    plain = json.dumps({"caption": caption}, ensure_ascii=False)
    escaped = json.dumps({"caption": caption}).replace("/", "\\/")
    output.write_text(f'{{"caption":"else"}}\n{plain}\n{escaped}\n')
    page = view(output)
    found(page.url + "api/status")
    asked = urllib.parse.quote(wanted)
    assert found(f"{page.url}api/find/rows?first=0&text={asked}")["numbers"] == [1, 2]


def test_a_line_that_cannot_be_read_hides_no_others(captioned, view):
    """A row that is broken is shown as such, between the others."""
    with captioned.open("ab") as file:
        file.write(b'rubbish\n\n{"id":99,"caption":"late"}\n')
    page = view(captioned)
    found(page.url + "api/status")
    shown = found(page.url + "api/rows?numbers=37,38,39,40")
    assert [row["captions"].get("caption", "broken") for row in shown[1:]] == [
        "broken", "broken", "late",
    ]  # fmt: skip
    assert found(page.url + "api/find/rows?first=0&text=late")["numbers"] == [40]
    assert found(page.url + "api/charts")["quality"]["captions"] == 39


def test_images_of_lines_that_were_put_in_order(captioned, view):
    """An address from before the lines were put in order never shows another row's image."""
    page = view(captioned)
    generation = found(page.url + "api/status")["generation"]
    assert get(f"{page.url}image/rows/{generation}/0/0/small")[0] == 200
    other = captioned.with_name("other")
    other.write_bytes(b"".join(reversed(captioned.read_bytes().splitlines(keepends=True))))
    other.replace(captioned)
    found(page.url + "api/status")
    status, _, body = get(f"{page.url}image/rows/{generation}/0/0/small")
    assert status == 404
    assert b"another order" in body


def test_a_review_of_a_row_that_has_moved(captioned, view):
    """A row that has moved is found by its key."""
    page = view(captioned)
    found(page.url + "api/status")
    (row,) = found(page.url + "api/rows?numbers=0")
    other = captioned.with_name("other")
    other.write_bytes(b"".join(reversed(captioned.read_bytes().splitlines(keepends=True))))
    other.replace(captioned)
    found(page.url + "api/status")
    about = {name: row[name] for name in ("number", "key", "of")}
    assert say(page, **about, verdict="rejected")["verdict"] == "rejected"
    assert found(page.url + "api/find/rows?first=0&verdict=rejected")["numbers"] == [37]


async def test_a_video_is_shown_by_its_middle_frame(endpoint, view, tmp_path):
    """The page has a picture of each clip."""
    pytest.importorskip("av", reason="videos are tested with the extra video")
    from films import cuts, film

    blue, red = (0, 0, 255), (255, 0, 0)
    (tmp_path / "a.mp4").write_bytes(film(cuts((blue, 9), (red, 9), (blue, 9))))
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"video": "a.mp4"}\n')
    await run_batch(source, output, base_url=endpoint.base_url, model="m")
    page = view(output)
    generation = found(f"{page.url}api/status")["generation"]
    status, headers, data = get(f"{page.url}image/rows/{generation}/0/0/small")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    pixel = Image.open(io.BytesIO(data)).convert("RGB").getpixel((9, 9))
    assert [value > 127 for value in pixel] == [True, False, False]


def test_a_response_is_bounded_whatever_the_rows_hold(tmp_path, view):
    """A caption that is too long for the page is not shown in part: that could be saved."""
    lengths = [10, 2_000_000, *[900_000] * 25, 10]
    output = tmp_path / "out.jsonl"
    lines = [{"n": n, "text": "y" * 10_000, "caption": "x" * n} for n in lengths]
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = view(output)
    assert found(f"{page.url}api/status")["rows"] == len(lengths)
    numbers = ",".join(map(str, range(len(lengths))))
    status, _, body = get(f"{page.url}api/rows?numbers={numbers}")
    assert status == 200
    assert len(body) < 18 << 20
    captions = [next(iter(row["captions"].values())) for row in json.loads(body)]
    shown = [len(text) if text.strip("x") == "" else text for text in captions]
    assert [shown[0], *shown[2:20], shown[-1]] == [10, *[900_000] * 18, 10]
    assert all("too large" in text for text in [shown[1], *shown[20:-1]])


@pytest.mark.parametrize("kind", ["parquet", "arrow", "tar", "zip"])
async def test_images_inside_the_input_are_shown(endpoint, view, tmp_path, kind):
    """Images in tables and archives are read where they are, in any order."""
    data = [jpeg(number, (64, 48 + number)) for number in range(30)]
    source = _with_images(tmp_path, kind, data)
    output = tmp_path / "out.jsonl"
    await run_batch(source, output, base_url=endpoint.base_url, model="m")
    page = view(output)
    generation = found(f"{page.url}api/status")["generation"]
    names = [one["images"][0] for one in found(f"{page.url}api/rows?numbers=0,1")]
    written = rows(output)
    for number in (0, 29, 3):
        status, _, body = get(f"{page.url}image/rows/{generation}/{number}/0/full")
        assert status == 200, body
        with Image.open(io.BytesIO(body)) as image:
            assert image.size == (64, 48 + written[number]["n"])
    if kind in ("tar", "zip"):
        assert names[0].endswith(".jpg")


def _with_images(folder, kind, data):
    table = pa.table({"n": range(len(data)), "image": data})
    source = folder / f"in.{kind}"
    if kind == "parquet":
        pq.write_table(table, source, row_group_size=7)
    elif kind == "arrow":
        with pa.ipc.new_file(source, table.schema) as file:
            file.write_table(table, max_chunksize=7)
    else:
        members = {f"{number}.jpg": one for number, one in enumerate(data)}
        if kind == "zip":
            with zipfile.ZipFile(source, "w") as archive:
                for name, one in members.items():
                    archive.writestr(name, one)
        else:
            with tarfile.open(source, "w") as archive:
                for name, one in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(one)
                    archive.addfile(info, io.BytesIO(one))
        lines = [{"n": n, "image": f"in.{kind}#{name}"} for n, name in enumerate(members)]
        source = folder / "in.jsonl"
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return source


async def test_an_image_that_is_in_the_input_no_more(endpoint, view, tmp_path):
    """A damaged or a changed table costs its images, never the page."""
    source = _with_images(tmp_path, "parquet", [jpeg(number) for number in range(3)])
    output = tmp_path / "out.jsonl"
    await run_batch(source, output, base_url=endpoint.base_url, model="m")
    _with_images(tmp_path, "parquet", [jpeg(9)])
    page = view(output)
    generation = found(f"{page.url}api/status")["generation"]
    status, _, body = get(f"{page.url}image/rows/{generation}/0/0/small")
    assert (status, json.loads(body)["error"]) == (404, "the image is not in the input any more")
    whole = source.read_bytes()
    source.write_bytes(whole[:40] + b"\xff" * 200 + whole[240:])
    status, _, body = get(f"{page.url}image/rows/{generation}/1/0/small")
    assert status == 404
    assert found(f"{page.url}api/status")["rows"] == 3
