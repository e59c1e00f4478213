from __future__ import annotations

import base64
import io
import json
import os

import pytest
from conftest import jpeg
from PIL import Image

from captioner.core.memory import MemoryBudget
from captioner.core.types import Failure, InputRecord, PreparedRecord
from captioner.endpoints.openai_chat import OpenAIChat
from captioner.engine.prepare import Preparer
from captioner.images.files import ImageFolders
from captioner.images.fit import FitOptions
from captioner.images.render import render
from captioner.settings.settings import Settings


class Bench:
    """A preparer over a folder, with its budget in sight."""

    def __init__(self, folder, *, bound=False, total=1 << 20, **options):
        self.settings = Settings.create(**options)
        self.budget = MemoryBudget(total)
        most = self.settings.images.max_image_bytes
        folders = ImageFolders([folder], bound=bound, max_bytes=most)
        wanted = FitOptions(self.settings.images, self.settings.prompt.detail)
        self.preparer = Preparer(
            self.settings,
            OpenAIChat("m"),
            folders,
            self.budget,
            lambda data, image_overrides: render(data, wanted, image_overrides),
        )

    def __call__(self, record, **line):
        raw = record if isinstance(record, bytes) else json.dumps(record).encode()
        return self.preparer.prepare(InputRecord(3, raw, **line))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "b.jpg").write_bytes(jpeg(2))
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "cut.jpg").write_bytes(jpeg(3)[:-40])
    (tmp_path / "text.jpg").write_bytes(b"not an image")
    (tmp_path / "album").mkdir()
    return tmp_path


def messages(prepared):
    assert isinstance(prepared, PreparedRecord), prepared
    return json.loads(b"".join(prepared.questions[0]))


def data_uri(data):
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def test_a_record_is_ready_to_be_sent(folder):
    """Images are read from their files and sent as they are, in their places."""
    bench = Bench(folder, system_prompt="S")
    record = {"image": ["a.jpg", "b.jpg"], "prompt": "This <image> or that <image>?"}
    prepared = bench(record)
    assert messages(prepared) == [
        {"role": "system", "content": "S"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "This"},
                {"type": "image_url", "image_url": {"url": data_uri(jpeg(1))}},
                {"type": "text", "text": "or that"},
                {"type": "image_url", "image_url": {"url": data_uri(jpeg(2))}},
                {"type": "text", "text": "?"},
            ],
        },
    ]
    assert prepared.record.raw == json.dumps(record).encode()
    assert prepared.replaces is False


@pytest.mark.parametrize(
    "image",
    [
        "a.jpg",
        {"path": "./a.jpg"},
        {"bytes": base64.b64encode(jpeg(1)).decode()},
        data_uri(jpeg(1)),
    ],
)
def test_every_way_to_give_a_image_sends_the_same(folder, image):
    """A file, bytes and a data URI of one image make one request."""
    assert Bench(folder)({"image": image}).questions == Bench(folder)({"image": "a.jpg"}).questions


def test_a_url_is_passed_on(folder):
    """An image on the web may be left to the endpoint to fetch, and takes no memory here."""
    bench = Bench(folder, system_prompt="", pass_urls=True)
    prepared = bench({"image": "https://host/x.jpg?a=1&b=2"})
    part = {"type": "image_url", "image_url": {"url": "https://host/x.jpg?a=1&b=2"}}
    assert messages(prepared)[0]["content"][0] == part
    assert prepared.reserved == 0


def test_an_absolute_path_is_read(folder):
    """A path may be absolute unless a root bounds it."""
    record = {"image": os.fspath(folder / "a.jpg")}
    assert isinstance(Bench(folder)(record), PreparedRecord)
    assert isinstance(Bench(folder, bound=True)(record), PreparedRecord)
    assert Bench(folder / "album", bound=True)(record).code == "image_outside_root"


@pytest.mark.parametrize(
    ("record", "replaces"),
    [
        ({"image": "a.jpg"}, False),
        ({"image": "a.jpg", "caption": None}, True),
        ({"caption": "old", "image": "a.jpg"}, True),
        ({"image": "a.jpg", "meta": {"caption": "inner"}}, False),
        ({"image": "a.jpg", "prompt": "caption"}, False),
    ],
)
def test_a_record_that_has_the_field_already(folder, record, replaces):
    """Only a member of the record itself is replaced, be it null."""
    prepared = Bench(folder, existing="replace")(record)
    assert prepared.replaces is replaces
    assert prepared.record.raw == json.dumps(record).encode()


@pytest.mark.parametrize(
    "raw",
    [
        b'{"image":"a.jpg","\\u0063aption":"old"}',
        b'{"image":"a.jpg","\\u0063aption":"old","x":"caption"}',
        b'{"image":"a.jpg","\\u0063aption":"old","x":{"caption":1}}',
        b'{"image":"a.jpg","caption":"older","\\u0063aption":"old"}',
    ],
)
def test_an_escaped_name_of_the_field_is_refused(folder, raw):
    """A field that could not be replaced in place is reported before anything is paid for."""
    failure = Bench(folder)(raw)
    assert isinstance(failure, Failure)
    assert failure.code == "bad_record"
    assert "escapes" in failure.message


CASES = [
    (b"not json", {}, "bad_json", "not valid JSON"),
    (b'{"image":"a.jpg"', {}, "bad_json", "not valid JSON"),
    (b'{"image":"\xff"}', {}, "bad_json", "not valid JSON"),
    (b"", {}, "bad_json", "not valid JSON"),
    (b'["a.jpg"]', {}, "bad_record", "not a JSON object"),
    (b'"a.jpg"', {}, "bad_record", "not a JSON object"),
    (b"null", {}, "bad_record", "not a JSON object"),
    ({"image": "a.jpg"}, {"id_field": "id"}, "no_id", "'id'"),
    ({"image": "a.jpg", "n": {"id": 1}}, {"id_field": "id"}, "no_id", "'id'"),
    ({}, {}, "no_image", "no image"),
    ({"image": 7}, {}, "bad_image_reference", "neither"),
    ({"image": {"bytes": "a"}}, {}, "bad_image_reference", "base64"),
    ({"image": "a.jpg", "prompt": 1}, {}, "bad_prompt", "not text"),
    ({"image": "a.jpg", "messages": 1}, {}, "bad_conversation", "not a list"),
    ({"image": "a.jpg", "messages": [{"from": "x"}]}, {}, "unknown_role", "'x'"),
    ({"image": "a.jpg", "prompt": "<image><image>"}, {}, "image_count", "2 places"),
    ({"image": "gone.jpg"}, {}, "image_missing", "gone.jpg"),
    ({"image": "a.jpg/x.jpg"}, {}, "image_missing", "x.jpg"),
    ({"image": "a\0.jpg"}, {}, "image_missing", "NUL"),
    ({"image": "x" * 300}, {}, "image_unreadable", "cannot read"),
    ({"image": "album"}, {}, "image_not_a_file", "album"),
    ({"image": "empty.jpg"}, {}, "image_empty", "empty"),
    ({"image": "cut.jpg"}, {}, "image_corrupt", "broken"),
    (
        {"image": "a.jpg", **{f"k{number}": 0 for number in range(10_000)}},
        {},
        "record_too_large",
        "10000 fields",
    ),
    ({"image": "text.jpg"}, {}, "image_unknown_type", "known type"),
    ({"image": {"bytes": ""}}, {}, "image_empty", "empty"),
    ({"image": "a.jpg"}, {"max_image_bytes": 99}, "image_too_large", "the most is 99"),
    ({"image": "../a.jpg"}, {"bound": True}, "image_outside_root", "outside"),
]


@pytest.mark.parametrize(("record", "options", "code", "says"), CASES)
def test_what_cannot_be_sent_says_why(folder, record, options, code, says):
    """A record that cannot be sent becomes a failure with a code and one plain sentence."""
    bench = Bench(folder, **options)
    failure = bench(record)
    assert isinstance(failure, Failure)
    assert failure.code == code
    assert says in failure.message
    assert "\n" not in failure.message
    assert "Error" not in failure.message
    assert failure.attempts == 0
    assert failure.record.number == 3
    assert bench.budget.held == 0


def test_a_fault_of_the_source_is_passed_on(folder):
    """What the source could not read fails with the source's own reason."""
    failure = Bench(folder)(b'{"image":"a.jpg"}', fault=("record_too_long", "far too long"))
    assert (failure.code, failure.message) == ("record_too_long", "far too long")


def test_a_image_given_as_bare_base64_fails_briefly(folder):
    """An image's text taken for a path is not repeated by the megabyte in the message."""
    failure = Bench(folder)({"image": base64.b64encode(bytes(100_000)).decode()})
    assert failure.code in ("image_unreadable", "image_missing", "bad_image_reference")
    assert len(failure.message) < 1_000


def test_an_unknown_role_is_named_briefly(folder):
    """Whatever stands where the role should be, the message stays a sentence."""
    turns = [{"role": {"x": "y" * 100_000}, "content": "x"}]
    failure = Bench(folder)({"image": "a.jpg", "messages": turns})
    assert failure.code == "unknown_role"
    assert len(failure.message) < 1_000


@pytest.mark.parametrize("turn", ["assistant", "system"])
def test_a_image_place_in_another_turn_does_not_crash(folder, turn):
    """An image's place beside an image in an answer fails the record at worst, not the run."""
    content = [{"type": "image"}, {"type": "image", "image": "b.jpg"}]
    turns = [{"role": turn, "content": content}, {"role": "user", "content": "Why?"}]
    bench = Bench(folder)
    prepared = bench({"image": "a.jpg", "messages": turns})
    assert isinstance(prepared, PreparedRecord | Failure)
    assert bench.budget.held == getattr(prepared, "reserved", 0)


@pytest.mark.parametrize("second", ["gone.jpg", "cut.jpg", "empty.jpg", {"bytes": "eA=="}])
def test_a_failure_gives_back_its_memory(folder, second):
    """A record that fails at its second image leaves no memory taken by the first."""
    bench = Bench(folder)
    assert isinstance(bench({"image": ["a.jpg", second]}), Failure)
    assert bench.budget.held == 0


def test_a_prepared_record_holds_what_it_takes(folder):
    """The memory of a record is accounted for, its base64 included, until it is settled."""
    bench = Bench(folder)
    prepared = bench({"image": ["a.jpg", data_uri(jpeg(2))]})
    size = len(jpeg(1)) + len(jpeg(2))
    assert bench.budget.held == prepared.reserved
    assert size * 4 / 3 - 2 <= prepared.reserved <= size * 4 / 3
    bench.budget.release(prepared.reserved)
    assert bench.budget.held == 0


def test_a_image_that_its_decoder_chokes_on_fails_alone(folder):
    """A broken image of a rare kind fails its record, not the run, and frees its memory."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG2000")
    (folder / "odd.jp2").write_bytes(out.getvalue()[:-60] + bytes(60))
    bench = Bench(folder)
    failure = bench({"image": "odd.jp2"})
    assert isinstance(failure, Failure)
    assert failure.code == "image_corrupt"
    assert bench.budget.held == 0


def test_one_record_larger_than_the_budget_passes(folder):
    """A record whose images exceed the whole budget neither waits for itself nor fails."""
    bench = Bench(folder, total=1)
    assert isinstance(bench({"image": "a.jpg"}), PreparedRecord)


def test_a_large_image_is_made_smaller(folder):
    """An image over the limit is sent smaller; the file stays as it is."""
    path = folder / "large.jpg"
    path.write_bytes(jpeg(4, (300, 100)))
    before = path.read_bytes()
    prepared = Bench(folder, max_side=60, min_side=1, system_prompt="")({"image": "large.jpg"})
    url = messages(prepared)[0]["content"][0]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        assert image.size == (60, 20)
    assert path.read_bytes() == before


def test_big_integers_do_not_trouble_a_record(folder):
    """Numbers beyond 64 bits are nothing to refuse a record for."""
    raw = b'{"image":"a.jpg","n":123456789012345678901234567890,"m":-18446744073709551617}'
    assert isinstance(Bench(folder)(raw), PreparedRecord)


def test_other_field_names(folder):
    """The output field and the id field have the names the settings give them."""
    bench = Bench(folder, output_field="légende", id_field="ключ", existing="replace")
    raw = '{"ключ":null,"légende":"x","image":"a.jpg","caption":1}'.encode()
    assert bench(raw).replaces is True
    assert bench(b'{"image":"a.jpg"}').code == "no_id"


# -- at once ---------------------------------------------------------------------------------------


def test_what_is_in_memory_is_prepared_at_once(folder):
    """A file that was just written needs no disk; the result is the same as in a thread."""
    bench = Bench(folder)
    record = {"image": ["a.jpg", data_uri(jpeg(2))], "prompt": "q"}
    line = InputRecord(1, json.dumps(record).encode())
    assert bench.preparer.prepare_at_once(line) == bench.preparer.prepare(line)
    bad = InputRecord(2, b'{"image": "nowhere.jpg"}')
    assert bench.preparer.prepare_at_once(bad) == bench.preparer.prepare(bad)


@pytest.mark.parametrize("what", ["drawing", "an archive", "memory", "a large file"])
def test_what_would_wait_is_not_prepared_at_once(folder, what, monkeypatch):
    """The event loop waits for no decoder, archive, memory or disk, and nothing is held for it."""
    image = "a.jpg"
    bench = Bench(folder, max_side=16, min_side=1) if what == "drawing" else Bench(folder)
    if what == "an archive":
        image = "x.tar#a.jpg"
    elif what == "memory":
        bench.budget.reserve(1 << 20)
    elif what == "a large file":
        monkeypatch.setattr("captioner.images.files.MOST_AT_ONCE", 100)
    held = bench.budget.held
    assert (
        bench.preparer.prepare_at_once(InputRecord(1, json.dumps({"image": image}).encode()))
        is None
    )
    assert bench.budget.held == held


def test_a_record_has_no_more_images_than_are_allowed(folder, tmp_path):
    """No memory is taken for a record that names too many."""
    bench = Bench(folder, max_images=3)
    assert isinstance(bench({"image": ["a.jpg"] * 3, "prompt": "?"}), PreparedRecord)
    held = bench.budget.held
    parts = [{"type": "image", "image": "a.jpg"}] * 4
    for record in (
        {"image": ["a.jpg"] * 4, "prompt": "?"},
        {"image": json.dumps(["a.jpg"] * 4), "prompt": "?"},
        {"messages": [{"role": "user", "content": parts}]},
        {"image": ["a.jpg"] * 2, "messages": [{"role": "user", "content": parts[:2]}]},
        {"image": [f"http://a.example/{n}.jpg" for n in range(4)], "prompt": "?"},
    ):
        failure = bench(record)
        assert isinstance(failure, Failure)
        assert (failure.code, "--max-images" in failure.message) == ("too_many_images", True)
    assert bench.budget.held == held
    assert Bench(folder)({"image": ["a.jpg"] * 65, "prompt": "?"}).code == "too_many_images"


@pytest.mark.parametrize("resize", [None, "16"])
def test_the_images_of_a_record_take_no_more_than_the_memory(folder, monkeypatch, resize):
    """The first image may be larger than the budget; what follows is not even read."""
    noise = Image.frombytes("RGB", (200, 200), os.urandom(120_000))
    noise.save(folder / "a.jpg", quality=90)
    size = (folder / "a.jpg").stat().st_size
    bench = Bench(folder, total=3 * size, **({"resize": resize} if resize else {}))
    reads = []
    read = os.read
    monkeypatch.setattr(os, "read", lambda fd, most: reads.append(most) or read(fd, most))
    failure = bench({"image": ["a.jpg"] * 60, "prompt": "?"})
    if resize:  # small images are left, so that many fit
        assert isinstance(failure, PreparedRecord)
        return
    assert isinstance(failure, Failure)
    assert (failure.code, "--memory" in failure.message) == ("record_too_large", True)
    assert len(reads) == 2
    assert bench.budget.held == 0
    bench = Bench(folder, total=size // 2)
    assert isinstance(bench({"image": "a.jpg", "prompt": "?"}), PreparedRecord)


@pytest.mark.parametrize(
    "record",
    [
        {"image": "a.jpg", "conversation": [{"from": "human", "value": "a"}] * 10_001},
        {"image": "a.jpg", "messages": [{"role": "user", "content": ["a"] * 10_001}]},
        {"image": "a.jpg", "messages": [{"role": "user", "content": ["a"] * 5_001}] * 2},
        {"image": "a.jpg", "prompt": "<image>" * 10_001},
        {"image": "a.jpg", "prompt": "a" * ((4 << 20) + 1)},
        {"image": "a.jpg", "messages": [{"role": "user", "content": "a" * (3 << 20)}] * 2},
        {"image": "a.jpg", "prompt": "?", "more": [[]] * 400_000},
    ],
    ids=["turns", "parts", "parts of turns", "places", "prompt", "texts", "values"],
)
def test_the_turns_and_texts_of_a_record_are_bounded(folder, record):
    failure = Bench(folder)(record)
    assert isinstance(failure, Failure)
    assert failure.code == "record_too_large"


def test_the_text_of_a_template_is_bounded(folder):
    bench = Bench(folder, prompt="{% for n in range(100000) %}{{ text }}{% endfor %}")
    failure = bench({"image": "a.jpg", "text": "a" * 50})
    assert isinstance(failure, Failure)
    assert failure.code == "record_too_large"
