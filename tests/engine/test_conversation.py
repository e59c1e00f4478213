from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.core.errors import BadRecordError
from captioner.core.types import ImageRef, Turn
from captioner.engine.conversation import read_turns
from captioner.settings.options import PromptSettings, RecordSettings

A, B, C = (ImageRef(path=f"./{name}.png") for name in "abc")
PROMPT = PromptSettings(system_prompt="be brief", prompt="What is it?")
SYSTEM = Turn("system", ("be brief",))


def read(record, prompt=PROMPT, **options):
    return read_turns(record, RecordSettings(**options), prompt)


def sent(record, **options):
    """Return the turns without the default system prompt."""
    first, *turns = read(record, **options)
    assert first == SYSTEM
    return turns


def refused(record, **options):
    with pytest.raises(BadRecordError) as error:
        read(record, **options)
    return error.value


def human(value, **more):
    return {"conversation": [{"from": "human", "value": value}], "image": "./a.png", **more}


def test_the_seed_form():
    """The record of the data set's own form is sent as image and question."""
    record = {"image": ["./a.png"], "conversation": [{"from": "human", "value": "Why?"}]}
    assert read(record) == [SYSTEM, Turn("user", (A, "Why?"))]


FROM = {"user": "human", "assistant": "gpt", "system": "system"}


@pytest.mark.parametrize("name", ["conversation", "conversations", "messages"])
@pytest.mark.parametrize("mixed", [0, 1, 2, 3])
def test_both_spellings_are_read_alike(name, mixed):
    """from/value and role/content mean the same, mixed as one likes."""
    spoken = [("system", "S"), ("user", "<image>\none"), ("assistant", "two"), ("user", "three")]
    turns = [
        {"from": FROM[role], "value": text}
        if number % 2 == mixed % 2 and mixed < 3
        else {"role": role, "content": text}
        for number, (role, text) in enumerate(spoken)
    ]
    assert read({"image": "./a.png", name: turns}) == [
        Turn("system", ("S",)),
        Turn("user", (A, "one")),
        Turn("assistant", ("two",)),
        Turn("user", ("three",)),
    ]


@pytest.mark.parametrize(
    "turn",
    [
        {"from": None, "value": None, "role": "user", "content": "Why?"},
        {"from": "human", "value": "Why?", "role": None, "content": None},
        {"role": "user", "content": "Why?", "value": None},
    ],
)
def test_a_null_in_the_other_spelling_hides_nothing(turn):
    """Tables that hold both spellings fill the unused one with null; the text is still asked."""
    assert sent({"image": "./a.png", "messages": [turn]}) == [Turn("user", (A, "Why?"))]


@pytest.mark.parametrize("role", ["system", "developer", "System"])
def test_an_own_system_prompt_wins(role):
    """A record's own system turn takes the place of the default one."""
    record = {
        "image": "./a.png",
        "messages": [{"role": role, "content": "own"}, {"role": "user", "content": "x"}],
    }
    assert read(record) == [Turn("system", ("own",)), Turn("user", (A, "x"))]


def test_no_system_prompt_at_all():
    """An empty system prompt sends no system turn."""
    assert read(human("x"), PromptSettings(system_prompt="")) == [Turn("user", (A, "x"))]


@pytest.mark.parametrize(
    ("record", "asked"),
    [
        ({}, "What is it?"),
        ({"prompt": "Why?"}, "Why?"),
        ({"prompt": "  "}, "What is it?"),
        ({"prompt": None, "conversation": None}, "What is it?"),
        ({"conversation": []}, "What is it?"),
        ({"conversation": "Why?"}, "Why?"),
        ({"conversation": [], "messages": [{"role": "user", "content": "Why?"}]}, "Why?"),
    ],
)
def test_records_without_a_conversation(record, asked):
    """A plain prompt is asked; without any, the one of the settings is."""
    assert sent({"image": "./a.png", **record}) == [Turn("user", (A, asked))]


def test_a_system_turn_alone_is_followed_by_the_prompt():
    """A conversation in which nobody asks yet gets the question."""
    record = {"image": "./a.png", "messages": [{"role": "system", "content": "own"}]}
    assert read(record) == [Turn("system", ("own",)), Turn("user", (A, "What is it?"))]


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("Why?", (A, "Why?")),
        ("<image>\nWhy?", (A, "Why?")),
        ("Why?\n<image>", ("Why?", A)),
        ("This <image> is?", ("This", A, "is?")),
        ("<image>", (A, "What is it?")),
        ("<Image> < image >", (A, "<Image> < image >")),
        ("  Why?\n", (A, "  Why?\n")),
    ],
)
def test_a_placeholder_marks_the_place(value, parts):
    """The image goes where its placeholder is, and before the text without one."""
    assert sent(human(value)) == [Turn("user", parts)]


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("Why?", (A, B, C, "Why?")),
        ("<image><image><image>", (A, B, C, "What is it?")),
        ("1 <image> 2 <image> 3 <image>", ("1", A, "2", B, "3", C)),
        ("1 <image> 2", (B, C, "1", A, "2")),
    ],
)
def test_several_images_keep_their_order(value, parts):
    """Each image is a part of its own; those without a placeholder come first."""
    record = human(value, image=["./a.png", "./b.png", "./c.png"])
    assert sent(record) == [Turn("user", parts)]


def test_images_over_several_turns():
    """Placeholders of all user turns count; images left over go into the last one."""
    record = {
        "images": ["./a.png", "./b.png", "./c.png"],
        "conversations": [
            {"from": "human", "value": "<image> one"},
            {"from": "gpt", "value": "an <image> of mine"},
            {"from": "human", "value": "two <image>"},
        ],
    }
    assert sent(record) == [
        Turn("user", (A, "one")),
        Turn("assistant", ("an <image> of mine",)),
        Turn("user", (C, "two", B)),
    ]


def test_an_old_answer_is_not_sent():
    """A conversation that is answered already is asked again from its last question."""
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "<image> Because."}]
    assert sent({"image": "./a.png", "conversation": turns}) == [Turn("user", (A, "Why?"))]


@pytest.mark.parametrize(
    ("value", "image"),
    [
        ("./a.png", A),
        (["./a.png"], A),
        ({"path": "./a.png"}, A),
        ({"bytes": None, "path": "./a.png"}, A),
        ({"url": "http://host/x.jpg"}, ImageRef(url="http://host/x.jpg")),
        ({"url": None, "path": "./a.png"}, A),
        ("HTTPS://host/x.jpg?a=b", ImageRef(url="HTTPS://host/x.jpg?a=b")),
        ({"bytes": base64.b64encode(b"pixels").decode()}, ImageRef(data=b"pixels")),
        ("data:image/png;base64,cGl4ZWxz", ImageRef(data=b"pixels")),
        ("DATA:image/png;charset=x;BASE64,cGl4ZWxz", ImageRef(data=b"pixels")),
        ({"url": "data:;base64,cGl4\nZWxz"}, ImageRef(data=b"pixels")),
        ("httpd/logo.png", ImageRef(path="httpd/logo.png")),
        ("a b/é.png", ImageRef(path="a b/é.png")),
    ],
)
def test_how_a_image_is_named(value, image):
    """A path, a URL, a data URI or bytes: each is understood, in a list or alone."""
    assert sent({"image": value}) == [Turn("user", (image, "What is it?"))]


def test_openai_parts():
    """Images inside the conversation stay where they are."""
    content = [
        {"type": "text", "text": "one"},
        {"type": "image_url", "image_url": {"url": "http://h/x.png", "detail": "low"}},
        {"type": "image_url", "image_url": "http://h/y.png"},
        {"type": "image", "image": "./a.png"},
        "two",
    ]
    x, y = ImageRef(url="http://h/x.png"), ImageRef(url="http://h/y.png")
    assert sent({"messages": [{"role": "user", "content": content}]}) == [
        Turn("user", ("one", x, y, A, "two"))
    ]


def test_parts_that_stand_for_the_images_of_the_record():
    """An image part without a source is a placeholder for the next image."""
    content = [{"type": "text", "text": "one"}, {"type": "image"}, {"type": "text", "text": "two"}]
    record = {"images": ["./a.png", "./b.png"], "messages": [{"role": "user", "content": content}]}
    assert sent(record) == [Turn("user", (B, "one", A, "two"))]


def test_a_null_source_does_not_hide_the_other():
    """A part whose image_url is null takes the image it names as image."""
    part = {"type": "image", "image_url": None, "image": "./a.png", "text": None}
    turns = sent({"messages": [{"role": "user", "content": [part]}]})
    assert turns == [Turn("user", (A, "What is it?"))]


def test_no_part_is_left_without_its_image():
    """A place whose image the record lacks is an error, even beside another image."""
    content = [{"type": "image"}, {"type": "image", "image": "./b.png"}]
    assert refused({"messages": [{"role": "user", "content": content}]}).code == "image_count"


@pytest.mark.parametrize("role", ["assistant", "system"])
def test_a_image_place_in_another_turn(role):
    """An image's place in an answer or a system turn never reaches the endpoint as rubbish."""
    turns = [
        {"role": role, "content": [{"type": "image"}]},
        {"role": "user", "content": "Why?"},
    ]
    try:
        read_back = read({"image": "./a.png", "messages": turns})
    except BadRecordError as error:
        assert error.code in ("bad_conversation", "image_count")
    else:
        parts = [part for turn in read_back for part in turn.parts]
        assert all(isinstance(part, str | ImageRef) for part in parts)


def test_fields_of_other_names():
    """With the fields named, others of the usual names are left alone."""
    record = {
        "image": "./b.png",
        "photo": "./a.png",
        "conversation": "no",
        "talk": [{"from": "human", "value": "Why?"}],
    }
    named = {"image_field": "photo", "conversation_field": "talk"}
    assert sent(record, **named) == [Turn("user", (A, "Why?"))]
    assert refused({"image": "./a.png"}, **named).code == "no_image"


@pytest.mark.parametrize("field", ["video", "videos"])
def test_videos_are_read_like_images(field):
    """A field `video` or `videos`, the marker, and the parts that chats have."""
    one, two = ImageRef(path="a.mp4"), ImageRef(path="b.mov")
    record = {field: ["a.mp4", "b.mov"], "prompt": "<video> or <video>?"}
    assert sent(record) == [Turn("user", (one, "or", two, "?"))]
    assert sent({field: "a.mp4"}) == [Turn("user", (one, PROMPT.prompt))]
    parts = [{"type": "video"}, {"type": "text", "text": "Why?"}]
    assert sent({field: "a.mp4", "messages": [{"role": "user", "content": parts}]}) == [
        Turn("user", (one, "Why?"))
    ]
    parts[0] = {"type": "video_url", "video_url": {"url": "b.mov"}}
    assert sent({"messages": [{"role": "user", "content": parts}]}) == [Turn("user", (two, "Why?"))]


@pytest.mark.parametrize(
    ("record", "code", "says"),
    [
        ({}, "no_image", "no image"),
        ({"image": []}, "no_image", "no image"),
        ({"image": None, "prompt": "<image>"}, "no_image", "no image"),
        ({"image": " "}, "bad_image_reference", "neither"),
        ({"image": [None]}, "bad_image_reference", "neither"),
        ({"image": 7}, "bad_image_reference", "neither"),
        ({"image": {"bytes": [1, 2]}}, "bad_image_reference", "neither"),
        ({"image": {}}, "bad_image_reference", "neither"),
        ({"image": {"bytes": "abcde"}}, "bad_image_reference", "base64"),
        ({"image": {"bytes": "é"}}, "bad_image_reference", "base64"),
        ({"image": "data:image/png,abc"}, "bad_image_reference", "base64"),
        ({"image": "data:image/png;base64"}, "bad_image_reference", "base64"),
        ({"image": "./a.png", "prompt": 7}, "bad_prompt", "not text"),
        ({"image": "./a.png", "conversation": 7}, "bad_conversation", "not a list"),
        ({"image": "./a.png", "messages": {"role": "user"}}, "bad_conversation", "not a list"),
        ({"image": "./a.png", "messages": ["x"]}, "bad_conversation", "turn 1"),
        (human(7), "bad_conversation", "turn 1"),
        (human([{"type": "audio"}]), "bad_conversation", "turn 1"),
        (human([{"type": "text", "text": None}]), "bad_conversation", "turn 1"),
        (human([7]), "bad_conversation", "turn 1"),
        ({"image": "./a.png", "messages": [{"content": "x"}]}, "unknown_role", "None"),
        (
            {"image": "./a.png", "messages": [{"role": "tool", "content": "x"}]},
            "unknown_role",
            "'tool'",
        ),
        (human("<image><image>"), "image_count", "2 places"),
        (human("<image><video>"), "image_count", "2 places"),
    ],
)
def test_what_cannot_be_read(record, code, says):
    """A record that lacks something says in a sentence what it is."""
    error = refused(record)
    assert error.code == code
    assert says in error.message
    assert "\n" not in error.message


TEXTS = st.sampled_from(["", " ", "x", "<image>", "a <image> b <image>", "./a.png", "http://h/a"])
SCALARS = st.one_of(TEXTS, st.none(), st.integers(), st.booleans())
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "image_url", "x"])},
    optional={"text": SCALARS, "image": SCALARS, "image_url": SCALARS},
)
TURNS = st.fixed_dictionaries(
    {},
    optional={
        "from": st.sampled_from(["human", "gpt", "system", None, "x"]),
        "role": st.sampled_from(["user", "assistant", "developer", 1]),
        "value": st.one_of(TEXTS, TEXTS, SCALARS, st.lists(PARTS, max_size=3)),
        "content": st.one_of(TEXTS, TEXTS, SCALARS, st.lists(PARTS, max_size=3)),
    },
)
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "image": st.one_of(TEXTS, st.lists(TEXTS, max_size=3), SCALARS),
        "images": st.lists(TEXTS, max_size=2),
        "conversation": st.one_of(SCALARS, st.lists(TURNS, max_size=4)),
        "messages": st.lists(TURNS, max_size=3),
        "prompt": SCALARS,
    },
)


@given(RECORDS)
@settings(max_examples=500, deadline=None)
def test_whatever_the_record_it_is_sent_with_its_images_or_refused(record):
    """Every image of the record is sent, once and in a user turn, or the record is refused."""
    try:
        turns = read(record)
    except BadRecordError as error:
        assert error.code.isidentifier()
        return
    parts = [part for turn in turns for part in turn.parts]
    assert all(isinstance(part, str | ImageRef) for part in parts)
    assert any(isinstance(part, ImageRef) for part in parts)
    assert turns[-1].role == "user"
    named = record.get("image") if record.get("image") is not None else record.get("images")
    for one in {*(named if isinstance(named, list) else [named] if named else [])}:
        places = [part for part in parts if isinstance(part, ImageRef) and one in part]
        assert len(places) >= (named.count(one) if isinstance(named, list) else 1)


@given(st.integers(1, 5), st.lists(st.lists(st.booleans(), max_size=3), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_images_fill_the_places_in_order(count, layout):
    """The first image goes to the first place, and none is sent twice or left out."""
    paths = [f"{number}.png" for number in range(count)]
    turns = [
        {"from": "human", "value": " ".join("<image>" if place else "word" for place in places)}
        for places in layout
    ]
    places = sum(map(sum, layout))
    record = {"image": paths, "conversation": turns}
    if places > count:
        assert refused(record).code == "image_count"
        return
    parts = [part for turn in sent(record) for part in turn.parts]
    found = [part.path for part in parts if isinstance(part, ImageRef)]
    assert sorted(found) == paths
    assert [path for path in found if path in paths[:places]] == paths[:places]


@pytest.mark.parametrize(
    "cell",
    [
        "['./a.png', './b.png']",
        " ['./a.png', \"./b.png\"] ",
        "['./a.png' './b.png']",
        "['./a.png'\n './b.png']",
        '["./a.png", "./b.png"]',
    ],
)
def test_a_list_in_a_cell_of_a_table(cell):
    """As str() of a list and of a NumPy array writes it, which is what pandas puts into CSV."""
    assert sent({"image": cell}) == [Turn("user", (A, B, "What is it?"))]


@pytest.mark.parametrize(
    "name", ["['a.png", "[a].png]", "['a.png', x]", "[b'a.png']", "{'a.png'}", "[" * 5_000 + "]"]
)
def test_other_brackets_are_a_path(name):
    assert sent({"image": name}) == [Turn("user", (ImageRef(path=name), "What is it?"))]


def test_a_conversation_as_python_writes_it():
    turns = str([{"from": "human", "value": '<image>\nWhat\'s "this"?'}])
    assert sent({"image": "./a.png", "conversation": turns}) == [
        Turn("user", (A, 'What\'s "this"?'))
    ]


@pytest.mark.parametrize(
    "url",
    [
        "file:///x/a%20b.png",
        "file:/x/a%20b.png",
        "file://localhost/x/a%20b.png",
        " FILE:/x/a b.png",
    ],
)
def test_file_addresses(url):
    assert sent({"image": url}) == [Turn("user", (ImageRef(path="/x/a b.png"), "What is it?"))]


def test_a_file_address_of_another_machine_says_what_to_write():
    error = refused({"image": "file://images/a.png"})
    assert error.code == "bad_image_reference"
    assert error.message.startswith(
        "file://images/a.png names the machine 'images': write file:///"
    )
