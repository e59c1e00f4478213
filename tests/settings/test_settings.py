"""The options: one definition, checked when they are made."""

from __future__ import annotations

import dataclasses
from dataclasses import fields
from pathlib import Path

import pytest

from captioner.core.errors import SettingsError
from captioner.endpoints.addresses import api_key, base_url
from captioner.settings.options import GROUPS, EndpointSettings, PromptSettings, option_groups
from captioner.settings.settings import Settings


def test_flat_names_reach_their_groups():
    """A user names options without knowing of groups."""
    settings = Settings.create("in.jsonl", "out.jsonl", max_side=1024, model="m", drain=5)
    assert settings.input == Path("in.jsonl")
    assert settings.output == Path("out.jsonl")
    assert settings.images.max_side == 1024
    assert settings.endpoint.model == "m"
    assert settings.run.drain == 5


def test_every_option_is_unique_and_explained():
    """No option hides another, and --help has a sentence for each."""
    options = [option for kind in GROUPS.values() for option in fields(kind)]
    assert len(option_groups()) == len(options)
    for option in options:
        assert len(option.metadata["help"]) > 8, option.name
        assert option.metadata["help"].endswith("."), option.name


def test_an_unknown_option_names_the_nearest():
    """A typing error in a keyword is told with the name that was meant."""
    with pytest.raises(SettingsError, match=r"'max_sid'.*max_side"):
        Settings.create("in.jsonl", max_sid=3)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("timeout", 0),
        ("timeout", float("nan")),
        ("max_outage", -1),
        ("base_url", "localhost:8000/v1"),
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("prompt", "  "),
        ("limit", 0),
        ("output_field", ""),
        ("id_field", "caption"),
        ("image_root", "/nowhere/at/all"),
        ("max_side", 0),
        ("max_image_bytes", 0),
        ("memory", -5),
        ("concurrency", 0),
        ("max_attempts", 0),
        ("order", "random"),
        ("drain", -1),
        ("drain", float("nan")),
        ("disk_wait", -1),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(option, value):
    """A bad value is refused before anything is sent, and the message names the option."""
    with pytest.raises(SettingsError, match=option.replace("_", "[-_ ]")):
        Settings.create("in.jsonl", **{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [("concurrency", "8"), ("concurrency", 1.5), ("timeout", "soon"), ("model", 3)],
)
def test_a_value_of_a_wrong_type_is_a_settings_error(option, value):
    """From Python, too, a value of the wrong type is told as such, not as a TypeError later on."""
    with pytest.raises(SettingsError, match=option):
        Settings.create("in.jsonl", **{option: value})


@pytest.mark.parametrize("url", ["http://localhost:99999/v1", "http://", "http://[::1/v1"])
def test_a_base_url_that_is_none_is_refused(url):
    """A base URL without a host or with an impossible port is told before a request is tried."""
    with pytest.raises(SettingsError, match="base-url"):
        Settings.create("in.jsonl", base_url=url)


def test_settings_are_values():
    """Two settings made alike are equal, and neither can be changed behind a run's back."""
    one, two = Settings.create("a", model="m"), Settings.create(Path("a"), model="m")
    assert one == two
    assert hash(one) == hash(two)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.run.concurrency = 3


def test_settings_read_no_environment(monkeypatch):
    """In a library, only what is passed in counts."""
    monkeypatch.setenv("CAPTIONER_CONCURRENCY", "7")
    monkeypatch.setenv("CAPTIONER_MODEL", "other")
    assert Settings.create("in.jsonl") == Settings(input=Path("in.jsonl"))


@pytest.mark.parametrize(
    ("given", "output", "expected"),
    [
        ("data/in.jsonl", None, "data/in.captions.jsonl"),
        ("data/in.json", None, "data/in.captions.jsonl"),
        ("data/in.jsonl", "o.json", "o.json"),
    ],
)
def test_the_output_stands_beside_the_input(given, output, expected):
    """Without -o the captions are found beside the input, under its name."""
    assert Settings.create(given, output).output_path == Path(expected)


def test_without_input_an_output_is_asked_for():
    """Records from elsewhere have no name to derive the output's from."""
    with pytest.raises(SettingsError, match="output"):
        _ = Settings.create().output_path


def test_prompts_are_read_from_files(tmp_path):
    """@FILE gives the file's text, without the line end an editor puts there."""
    (tmp_path / "p.txt").write_text("Was ist das? ä\n", "utf-8")
    prompt = PromptSettings(prompt=f"@{tmp_path}/p.txt", system_prompt="as is").resolved()
    assert prompt.prompt == "Was ist das? ä"
    assert prompt.system_prompt == "as is"


@pytest.mark.parametrize("name", ["prompt", "system_prompt"])
def test_a_prompt_file_that_cannot_be_read_is_told(tmp_path, name):
    """A missing or binary prompt file is named, with the option it came from."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfa")
    for file in ("none", "binary"):
        with pytest.raises(SettingsError, match=rf"{name.replace('_', '-')}.*{file}"):
            PromptSettings(**{name: f"@{tmp_path / file}"}).resolved()


def test_an_empty_prompt_file_is_refused(tmp_path):
    """A prompt from a file may be as little empty as one on the command line."""
    (tmp_path / "p.txt").write_text("\n")
    with pytest.raises(SettingsError, match="prompt"):
        PromptSettings(prompt=f"@{tmp_path}/p.txt").resolved()


def test_what_shapes_captions_and_what_does_not():
    """A job may go on faster and elsewhere, but not with another question or another model."""
    base = Settings.create("in.jsonl").shaping("m")
    for change in (
        {"concurrency": 1},
        {"base_url": "http://x/v1"},
        {"api_key_env": "X"},
        {"timeout": 1.0},
        {"limit": 3},
        {"retry_failed": "all"},
        {"order": "completion"},
        {"memory": 1},
        {"dedup": False},
        {"cache": "c"},
        {"pass_urls": True},
        {"verify": "full"},
        {"max_side": 2048},
    ):
        assert Settings.create("in.jsonl", **change).shaping("m") == base, change
    for change in (
        {"prompt": "p"},
        {"system_prompt": "s"},
        {"max_tokens": 3},
        {"temperature": 0.5},
        {"max_side": 5},
        {"max_pixels": 5},
        {"min_side": 5},
        {"size_for": "gpt-4o"},
        {"frames": 2},
        {"frames": "scene:2"},
        {"frame_times": True},
        {"background": "none"},
        {"image_field": "i"},
        {"conversation_field": "c"},
        {"output_field": "o"},
        {"id_field": "id"},
    ):
        assert Settings.create("in.jsonl", **change).shaping("m") != base, change
    assert Settings.create("in.jsonl").shaping("n") != base


def test_where_the_key_comes_from(monkeypatch):
    """--api-key-env wins; else CAPTIONER_API_KEY, OPENAI_API_KEY, DF_API_KEY, in that order."""
    assert api_key(EndpointSettings()) is None
    for name in ("DF_API_KEY", "OPENAI_API_KEY", "CAPTIONER_API_KEY"):
        monkeypatch.setenv(name, f"key of {name}")
        assert api_key(EndpointSettings()) == f"key of {name}"
    monkeypatch.setenv("CAPTIONER_API_KEY", "")
    assert api_key(EndpointSettings()) == "key of OPENAI_API_KEY"
    monkeypatch.setenv("MINE", "mine")
    assert api_key(EndpointSettings(api_key_env="MINE")) == "mine"


def test_a_named_key_that_is_not_set_is_told_by_name(monkeypatch):
    """A misspelled variable does not fall back to some other key."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with pytest.raises(SettingsError, match="MINE") as caught:
        api_key(EndpointSettings(api_key_env="MINE"))
    assert "sk-secret" not in str(caught.value)


def test_a_key_with_a_line_end_works(monkeypatch):
    """A key read from a file brings a line end; no header can carry that."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\n")
    assert api_key(EndpointSettings()) == "sk-secret"


def test_a_key_that_no_header_can_carry_is_refused(monkeypatch):
    """Two keys pasted into one variable are told at once, without showing them."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\nsk-other")
    with pytest.raises(SettingsError, match="OPENAI_API_KEY") as caught:
        api_key(EndpointSettings())
    assert "sk-" not in str(caught.value)


def test_where_the_base_url_comes_from(monkeypatch):
    """The option wins, then CAPTIONER_BASE_URL, then OPENAI_BASE_URL; else ways to give one."""
    with pytest.raises(SettingsError, match=r"(?s)--base-url.*--offline"):
        base_url(EndpointSettings())
    monkeypatch.setenv("OPENAI_BASE_URL", "http://openai/v1/")
    assert base_url(EndpointSettings()) == "http://openai/v1"
    monkeypatch.setenv("CAPTIONER_BASE_URL", "http://ours/v1")
    assert base_url(EndpointSettings()) == "http://ours/v1"
    assert base_url(EndpointSettings(base_url="http://given/v1")) == "http://given/v1"


@pytest.mark.parametrize("name", ["CAPTIONER_BASE_URL", "OPENAI_BASE_URL"])
def test_a_base_url_from_the_environment_is_checked_as_well(monkeypatch, name):
    """A base URL without http:// is refused wherever it comes from."""
    monkeypatch.setenv(name, "localhost:8000/v1")
    with pytest.raises(SettingsError, match="http://"):
        base_url(EndpointSettings())


@pytest.mark.parametrize(
    "url", ["ftp://me:sk-hush@host/v1?key=sk-hush", "http://me:sk-hush@host:99999/v1#sk-hush"]
)
def test_what_is_secret_in_a_base_url_is_not_repeated(url):
    """A URL that is refused is not shown: what is wrong with it may be in the password."""
    with pytest.raises(SettingsError) as caught:
        Settings.create("in.jsonl", base_url=url)
    assert "hush" not in str(caught.value)
    assert "base-url" in str(caught.value)


def test_resolved_settings_are_read_once(tmp_path):
    """Files and presets are in place, and resolving again does not read a text that looks so."""
    (tmp_path / "p.txt").write_text("@home, what is this?")
    settings = Settings.create("in.jsonl", prompt=f"@{tmp_path}/p.txt").resolved()
    assert settings.prompt.prompt == "@home, what is this?"
    assert settings.resolved() is settings
    preset = Settings.create("in.jsonl", preset="dense").resolved()
    assert preset.questions == (preset.prompt.prompt,)
    assert preset.resolved() == preset


def test_the_old_path_has_its_names():
    """What could be imported from captioner.settings when it was a module still can."""
    from captioner import settings

    for name in ("Settings", *settings.__all__):
        assert getattr(settings, name).__class__
    from captioner.settings import EndpointSettings as Again

    assert Again is EndpointSettings
    with pytest.raises(AttributeError):
        _ = settings.nothing


@pytest.mark.parametrize("given", [3, "3", "scene:3", "scene:003"])
def test_frames_are_a_number_or_scenes(given):
    """A number means the same as text, so that a file and a flag do not differ."""
    images = Settings.create(frames=given).images
    assert images.frames_of(8) == (3, "scene" in str(given))
    assert (images.frames == 3) == ("scene" not in str(given))


@pytest.mark.parametrize("given", [0, -1, "0", "scene:0", "scene:", "scene", "eight", "3.5", ""])
def test_other_frames_are_refused(given):
    with pytest.raises(SettingsError, match=r"^frames: "):
        Settings.create(frames=given)


def test_frames_depend_on_the_kind_by_default():
    images = Settings.create().images
    assert (images.frames_of(1), images.frames_of(8)) == ((1, False), (8, False))
