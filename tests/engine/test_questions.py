"""A question for each folder, and a mix of questions."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from conftest import jpeg, rows

from captioner import SettingsError, run_batch
from captioner.cli.main import run_command as run_in_process
from captioner.engine.templates import Templates
from captioner.settings.settings import Settings

MIX = ("3=Describe {{ stem }}.", "1=In one sentence?")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "cats" / "black").mkdir(parents=True)
    (folder / "dogs").mkdir()
    for number, name in enumerate(("top", "cats/a", "cats/black/b", "dogs/c")):
        (folder / f"{name}.jpg").write_bytes(jpeg(number))
    return folder


async def test_the_nearest_file_in_the_folders_of_an_image_asks(photos, endpoint):
    """It is text as it stands, and no file outside the input counts."""
    (photos.parent / "prompt.txt").write_text("outside")
    (photos / "cats" / "prompt.txt").write_text("Which cat? {{ stem }}\n")
    (photos / "dogs" / "prompt.txt").symlink_to(photos.parent / "prompt.txt")
    options = {"base_url": endpoint.base_url, "model": "m", "prompt": "What?"}
    output = photos.with_name("out.jsonl")
    await run_batch(photos, output, **options, prompt_file_in_folder="prompt.txt")
    assert {row["image"]: row["caption_prompt"] for row in rows(output)} == {
        "cats/a.jpg": "Which cat? {{ stem }}",
        "cats/black/b.jpg": "Which cat? {{ stem }}",
        "dogs/c.jpg": "What?",
        "top.jpg": "What?",
    }
    assert sorted(call.texts[0] for call in endpoint.calls) == [
        "What?",
        "What?",
        "Which cat? {{ stem }}",
        "Which cat? {{ stem }}",
    ]


async def test_each_record_gets_a_question_of_the_mix(tmp_path, endpoint):
    """The same in each run, about as often as the weights say, and kept in the row."""
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    source = tmp_path / "in.jsonl"
    source.write_text(
        "".join(json.dumps({"id": n, "image": "a.jpg"}) + "\n" for n in range(400))
        + json.dumps({"id": "own", "image": "a.jpg", "prompt": "Mine?"})
        + "\n"
    )
    options = {"base_url": endpoint.base_url, "model": "m", "prompt_mix": MIX}
    found = []
    for number, seed in enumerate((0, 0, 1)):
        output = tmp_path / f"out{number}.jsonl"
        await run_batch(source, output, **options, seed=seed)
        found.append([row["caption_prompt"] for row in rows(output)])
    counts = Counter(found[0])
    assert counts.keys() == {"Describe a.", "In one sentence?", "Mine?"}
    assert 250 < counts["Describe a."] < 350
    assert found[0] == found[1] != found[2]
    assert endpoint.count == 9  # equal requests of a run are sent once


async def test_an_export_has_the_question_that_a_row_keeps(photos, endpoint):
    output = photos.with_name("out.json")
    await run_batch(
        photos, output, base_url=endpoint.base_url, model="m", prompt_mix=MIX, output_format="llava"
    )
    asked = {entry["image"]: entry["conversations"][0] for entry in json.loads(output.read_text())}
    assert asked["top.jpg"]["value"] in ("<image>\nDescribe top.", "<image>\nIn one sentence?")


def test_a_mix_in_a_toml_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    seen: list[Settings] = []
    monkeypatch.setattr(
        "captioner.cli.session.run_in_console", lambda settings, **_: seen.append(settings) or 0
    )
    (tmp_path / "short.txt").write_text("In one sentence?\n")
    config = tmp_path / "c.toml"
    config.write_text('[[prompt]]\ntext = "What?"\nweight = 3\n[[prompt]]\nfile = "short.txt"\n')
    assert run_in_process(["in.jsonl", "--config", "c.toml"]) == 0
    assert seen[0].resolved().prompt.mix() == [(3.0, "What?"), (1.0, "In one sentence?")]
    config.write_text('[[prompt]]\ntext = "What?"\nwieght = 3\n')
    assert run_in_process(["in.jsonl", "--config", "c.toml"]) == 2
    assert "[[prompt]] has a text or a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prompt_mix": "What?"}, "is not WEIGHT=QUESTION"),
        ({"prompt_mix": "0=What?"}, "is not WEIGHT=QUESTION"),
        ({"prompt_mix": "inf=What?"}, "is not WEIGHT=QUESTION"),
        ({"prompt_mix": "1=What?", "prompt": "Who?"}, "takes the place of --prompt"),
        ({"prompt_mix": "1=What?", "preset": "dense"}, "cannot be combined"),
        ({"prompt_file_in_folder": "../prompt.txt"}, "without a folder"),
        ({"prompt_file_in_folder": ".."}, "without a folder"),
    ],
)
def test_what_cannot_work_is_refused(options, told):
    with pytest.raises(SettingsError, match=told):
        Settings.create("in.jsonl", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "Is it {{ caption_prompt }}?"},
        {"ask": ["dense={% if record['dense_raw'] %}More?{% endif %}"]},
        {"caption_template": "{{ caption }} {{ caption_model }}"},
    ],
)
async def test_templates_cannot_name_what_captioner_writes(photos, endpoint, options):
    """Records that differ only in such a field are equal, and would get each other's captions."""
    settings = {"base_url": endpoint.base_url, "model": "m", **options}
    with pytest.raises(SettingsError, match=r"captioner writes itself; choose another --output-f"):
        await run_batch(photos, photos.with_name("out.jsonl"), **settings)
    assert not endpoint.count


async def test_templates_may_name_fields_of_similar_names(tmp_path, endpoint):
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    record = {"image": "a.jpg", "raw": "fur", "settings": "s", "image_digest": "d"}
    (tmp_path / "in.jsonl").write_text(json.dumps(record) + "\n")
    options = {"base_url": endpoint.base_url, "model": "m", "with_": ["prompt"]}
    prompt = "{{ raw }} {{ settings }} {{ image_digest }} caption_raw"
    await run_batch(tmp_path / "in.jsonl", tmp_path / "out.jsonl", **options, prompt=prompt)
    (row,) = rows(tmp_path / "out.jsonl")
    assert row["caption_prompt"] == "fur s d caption_raw"
    assert row.items() >= record.items()


@pytest.mark.parametrize(
    ("preset", "values", "told", "not_told"),
    [
        ("recaption", {"existing": 'a "cat"'}, "claims: \"a 'cat'\". It is a claim", "sidecar"),
        ("recaption", {}, "40 to 120 words. Answer", "claim"),
        ("tags-to-prose", {"sidecar": "1girl, hat"}, '"1girl, hat". They are no', "claim"),
        ("tags-to-prose", {}, "plain prose. Answer", "tags"),
        (
            "photo-library",
            {"exif": {"people": ["Ada", "Bob"], "place": "Lyon", "camera": "X"}},
            "\nPeople: Ada, Bob\nPlace: Lyon\nAnswer",
            "Date",
        ),
        ("photo-library", {}, "without names.\nAnswer", "People:"),
    ],
)
def test_presets_tell_the_model_what_is_known(preset, values, told, not_told):
    """Nothing is said of what is not known, so that nothing is made up."""
    (question,) = Settings.create("in.jsonl", preset=preset).questions
    (text,) = Templates("", "x", [question]).fill(values).questions
    assert told in text
    assert not_told not in text
