"""Prompts made of the record."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import rows

from captioner import SettingsError, run_batch
from captioner.core.errors import BadRecordError
from captioner.engine.templates import Templates


def test_members_of_the_record_are_filled_in():
    templates = Templates(
        "You know {{ topic }}.",
        "What of {{ title|upper }}{% if tags %}, {{ tags|join(' and ') }}{% endif %}?",
        ["{{ record['a name'] }}?"],
    )
    record = {"topic": "cats", "title": "Tom", "tags": ["a", "b"], "a name": "x", "image": "a.jpg"}
    texts = templates.fill(record)
    assert (texts.system_prompt, texts.prompt, texts.questions) == (
        "You know cats.",
        "What of TOM, a and b?",
        ("x?",),
    )


def test_values_of_records_are_no_templates():
    """What a stranger wrote into a record is text, whatever it looks like."""
    templates = Templates("", "{{ title }}")
    assert templates.fill({"title": "{{ 7 * 7 }}"}).prompt == "{{ 7 * 7 }}"


def test_a_text_without_marks_needs_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert Templates("s", "a { b } c", ["d"]).fill({}) == ("s", "a { b } c", ("d",))


@pytest.mark.parametrize(
    ("template", "record", "code", "told"),
    [
        ("{{ title }}", {"name": 1}, "prompt_field", "title"),
        ("{{ a.b.c }}", {"a": {"b": {}}}, "prompt_field", "c"),
        ("{{ a + 1 }}", {"a": "x"}, "prompt_template", ""),
        ("{{ a }}", {"a": "  "}, "prompt_template", "empty"),
        ("{{ a.__class__.__mro__ }}", {"a": "x"}, "prompt_template", ""),
        ("{% for n in range(10**9) %}x{% endfor %}", {}, "prompt_template", ""),
    ],
)
def test_what_cannot_be_filled_in_is_the_records_failure(template, record, code, told):
    with pytest.raises(BadRecordError) as error:
        _ = Templates("", template).fill(record).prompt
    assert error.value.code == code
    assert told in error.value.message


def test_a_wrong_template_is_refused_before_the_run():
    with pytest.raises(SettingsError, match="line 2"):
        Templates("", "fine\n{{ not fine")


def test_members_go_before_methods_and_nothing_is_no_text():
    """A record may have a member of any name, and one that is null is not asked about."""
    templates = Templates("", "{{ meta.items }}")
    assert templates.fill({"meta": {"items": "seven"}}).prompt == "seven"
    for template, record in (("{{ a }}", {"a": None}), ("{{ a.title }}", {"a": "text"})):
        with pytest.raises(BadRecordError) as error:
            _ = Templates("", template).fill(record).prompt
        assert error.value.code == "prompt_field"


def test_only_what_is_asked_is_filled_in(make_input):
    """A record that brings its own question needs nothing of the template."""
    filled = Templates("", "{{ title }}").fill({"conversation": []})
    assert (filled.system_prompt, filled.questions) == ("", ())


async def test_in_a_run(make_input, endpoint):
    """Each record is asked its own question; one that lacks a member fails by name."""
    source = make_input(2)
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    for number, line in enumerate(lines):
        del line["prompt"]
        line["title"] = f"t{number}"
    lines.append({"image": "images/1.jpg"})
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {"base_url": endpoint.base_url, "model": "m"}
    report = await run_batch(source, prompt="What is {{ title }}?", **options)
    assert (report.captioned, report.failed) == (2, 1)
    assert sorted(call.texts[0] for call in endpoint.calls) == ["What is t0?", "What is t1?"]
    (failure,) = rows(source.with_name("input.captions.failed.jsonl"))
    assert (failure["code"], failure["line"]) == ("prompt_field", 3)
    assert "title" in failure["message"]


async def test_in_an_export(make_input, endpoint):
    """A conversation for training holds the question that was asked, not its template."""
    source = make_input(1)
    source.write_text('{"image": "images/0.jpg", "title": "Tom"}\n')
    await run_batch(
        source,
        source.with_name("out.json"),
        base_url=endpoint.base_url,
        model="m",
        prompt="Who is {{ title }}?",
        output_format="llava",
    )
    (entry,) = json.loads(source.with_name("out.json").read_bytes())
    assert entry["conversations"][0]["value"] == "<image>\nWho is Tom?"


MACRO = (
    "{% macro m(b) %}{% for a in b %}{% for c in b %}x{% endfor %}{% endfor %}{% endmacro %}"
    "{{ m(many) }}"
)


@pytest.mark.parametrize(
    "template",
    [
        "{{ text * n }}",
        "{{ [1] * n }}",
        "{{ n ** n }}",
        "{{ text.ljust(n) }}",
        "{{ text|center(n) }}",
        "{{ text|indent(n) }}",
        "{{ text|tojson(n) }}",
        "{{ 'x'|batch(n, '-')|list|length }}",
        "{{ wide % 1 }}",
        "{{ wide|format(1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ text|replace('', text) }}",
        "{{ text.replace('', text) }}",
        "{{ many|join(text) }}",
        "{{ text.join(many) }}",
        "{% for a in many %}{% for b in many %}{% endfor %}{% endfor %}x",
        "{% for a in many %}{{ text }}{% endfor %}",
        MACRO,
        "{% set s = namespace(x=text) %}{% for a in many %}{% set s.x = s.x + s.x %}{% endfor %}x",
        "{% set s = namespace(x=text) %}{% for a in many %}{% set s.x = s.x ~ s.x %}{% endfor %}x",
        "{% set s = namespace(x='') %}{% for a in words %}{% set s.x = s.x ~ a %}{% endfor %}x",
        "{{ [many]|sum(start=[])|length }}",
        "{{ words|join|replace(' ', '')|wordwrap(9) }}",
        "{{ lipsum(n) }}",
    ],
)
def test_no_value_of_a_record_makes_endless_work(template):
    """It is the failure of the record, before memory or time is spent."""
    record = {"text": "x" * 10_000, "n": 10**9, "wide": "%999999999d", "many": [0] * 5_000}
    record["words"] = ["caption of ten words"] * 500_000
    with pytest.raises(BadRecordError) as error:
        _ = Templates("", template).fill(record).prompt
    assert error.value.code in ("prompt_template", "prompt_field")


def test_what_templates_usually_do_is_not_limited():
    template = (
        "{% for tag in tags %}{{ loop.index }}/{{ loop.length }} {{ tag|center(3) }}"
        "{% if not loop.last %}, {% endif %}{% else %}none{% endfor %} "
        "{{ '%.1f' % score }} {{ '{:.2f}'.format(score) }} {{ 2 ** 10 * 3 }} {{ '-' * 3 ~ score }} "
        "{{ tags|join('; ')|replace('a', 'o')|indent(2) }} {{ tags|tojson }} {{ [1] + [2] }}"
    )
    filled = Templates("", template).fill({"tags": ["cat", "bat"], "score": 0.5}).prompt
    assert filled == ('1/2 cat, 2/2 bat 0.5 0.50 3072 ---0.5 cot; bot ["cat", "bat"] [1, 2]')
