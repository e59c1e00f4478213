"""The command line: where options come from, and what is said when one is wrong."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from waiting import LIMIT_S

from captioner.cli.main import run_command as run_in_process
from captioner.settings.flags import all_options
from captioner.settings.options import CODES, GROUPS
from captioner.settings.settings import Settings
from captioner.settings.validation import flag_name

pytestmark = pytest.mark.usefixtures("no_option_from_the_environment", "in_a_folder")

SAMPLES = {
    "metrics_port": 9_000,
    "log_json": True,
    "log_file": Path("run.log"),
    "budget": 2.5,
    "budget_tokens": 1_000_000,
    "renew_budget": True,
    "engine": "ray",
    "shards": 4,
    "workers": 2,
    "batch_api": True,
    "batch_requests": 10,
    "max_images": 10,
    "batch_bytes": 1_000,
    "batch_poll": 1.5,
    "batch_max_wait": 2.5,
    "prompt_field": "question",
    "output_format": "csv",
    "overwrite": True,
    "processes": 2,
    "input_format": "parquet",
    "base_url": "http://localhost:1/v1",
    "offline": True,
    "image_root": Path(),
    "duplicates": "skip",
    "order": "completion",
    "accept_changes": True,
    "accept_edits": True,
    "retry_rejected": True,
    "otel": True,
    "csv_safe": True,
    "view": True,
    "replicas": 2,
    "rpm": 600.0,
    "tpm": 150_000.0,
    "timeout": 1.5,
    "max_outage": 2.5,
    "stop_after": 9,
    "thinking": "off",
    "hedge": "on",
    "missing": "empty",
    "prompt_mix": "2.5=What is it?",
    "prompt_file_in_folder": "prompt.txt",
    "probe": False,
    "temperature": 0.25,
    "drain": 3.5,
    "disk_wait": 4.5,
    "cache_size": 5_000_000,
    "max_tokens": 11,
    "limit": 12,
    "where": "size > 10",
    "sample": 14,
    "seed": 15,
    "redo": "length < 20",
    "max_side": 13,
    "max_line": 20,
    "max_pixels": 21,
    "min_side": 22,
    "size_for": "gpt-4o",
    "max_bytes": 23,
    "background": "#ff0000",
    "existing": "skip",
    "replace": "old=new",
    "replace_re": "(a+)=b",
    "max_clip_tokens": 75,
    "max_t5_tokens": 255,
    "tags": "sorted",
    "frames": 24,
    "frame_times": True,
    "verify": "full",
    "pass_urls": True,
    "allow_private_urls": True,
    "fetch_concurrency": 25,
    "fetch_timeout": 5.5,
    "image_timeout": 6.5,
    "max_image_pixels": 26,
    "dedup": False,
    "cache": Path("some-cache"),
    "max_image_bytes": 14,
    "max_video_bytes": 27,
    "memory": 15,
    "concurrency": 16,
    "max_attempts": 17,
    "api_key_env": "SOME_KEY",
    "header": "X-Team: vision",
    "extra_body": '{"seed": 7}',
    "stream": True,
    "weight": 2.5,
    "courtesy": 2.0,
    "detail": "low",
    "preset": "dense",
    "pick": "best",
    "stages": "detailed",
    "fallback": "another-model",
    "ask": "short=In one sentence?",
    "samples": 3,
    "accept": "truncated,looping",
    "min_length": 18,
    "max_length": 19,
    "with_": "usage,latency",
}
ON = [o.name for kind in GROUPS.values() for o in fields(kind) if o.default is True]
OPTIONS = [option.name for kind in GROUPS.values() for option in fields(kind)]


def sample(name: str) -> object:
    return SAMPLES.get(name, f"some {name}")


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_can_be_given_in_every_way(parsed, monkeypatch, tmp_path, name):
    """A flag, a variable, a line of TOML and a keyword mean the same, for every option."""
    value = sample(name)
    expected = Settings.create("in.jsonl", **{name: value})
    assert expected != Settings.create("in.jsonl")
    flag = f"--{flag_name(name)}"
    assert parsed("in.jsonl", *([flag] if value is True else [f"{flag}={value}"])) == expected
    literal = json.dumps(str(value) if isinstance(value, Path) else value)
    (tmp_path / "c.toml").write_text(f"{flag_name(name).replace('-', '_')} = {literal}\n")
    assert parsed("in.jsonl", "--config", "c.toml") == expected
    (tmp_path / "c.toml").write_text(f"{flag_name(name)} = {literal}\n")
    assert parsed("in.jsonl", "--config", "c.toml") == expected
    monkeypatch.setenv(f"CAPTIONER_{flag_name(name).upper().replace('-', '_')}", str(value))
    assert parsed("in.jsonl") == expected


@pytest.mark.parametrize("name", [*ON, "stream", "accept_changes"])
def test_switches_can_be_negated(parsed, name):
    """--no-dedup is --dedup=false, for every switch."""
    assert parsed("in.jsonl", f"--no-{flag_name(name)}") == Settings.create(
        "in.jsonl", **{name: False}
    )


def test_precedence(parsed, monkeypatch, tmp_path):
    """Command line before environment before TOML before default."""
    assert parsed("in.jsonl").run.concurrency == 32
    (tmp_path / "c.toml").write_text("concurrency = 2\nmax_side = 5\n")
    assert parsed("in.jsonl", "--config", "c.toml").run.concurrency == 2
    monkeypatch.setenv("CAPTIONER_CONCURRENCY", "3")
    assert parsed("in.jsonl", "--config", "c.toml").run.concurrency == 3
    both = parsed("in.jsonl", "--config", "c.toml", "--concurrency", "4")
    assert both.run.concurrency == 4
    assert both.images.max_side == 5


def test_input_output_and_config_without_flags(parsed, monkeypatch, tmp_path):
    """-o and --config have variables as well, and TOML may name the output."""
    assert parsed("in.jsonl", "-o", "x.jsonl").output == Path("x.jsonl")
    (tmp_path / "c.toml").write_text('output = "t.jsonl"\n')
    monkeypatch.setenv("CAPTIONER_CONFIG", "c.toml")
    assert parsed("in.jsonl").output == Path("t.jsonl")
    monkeypatch.setenv("CAPTIONER_OUTPUT", "e.jsonl")
    assert parsed("in.jsonl").output == Path("e.jsonl")


def test_a_whole_number_is_a_number(parsed, tmp_path):
    """1 in TOML, "1" on the command line and 1.0 are the same temperature, also to the cache."""
    (tmp_path / "c.toml").write_text("temperature = 1\n")
    for given in (["--config=c.toml"], ["--temperature=1"]):
        assert repr(parsed("in.jsonl", *given).prompt.temperature) == "1.0"


def test_a_variable_asks_for_a_dry_run(monkeypatch):
    """A variable that is not refused is heeded: nobody pays for what they meant to try."""
    tried: list[Path] = []
    monkeypatch.setattr("captioner.cli.session.run_in_console", lambda *_, **__: pytest.fail("ran"))
    monkeypatch.setattr(
        "captioner.cli.commands.estimate_in_console", lambda to, **_: tried.append(to.input) or 0
    )
    monkeypatch.setenv("CAPTIONER_DRY_RUN", "1")
    assert run_in_process(["in.jsonl"]) == 0
    assert tried == [Path("in.jsonl")]


def test_an_empty_variable_is_unset(parsed, monkeypatch):
    """CAPTIONER_MODEL= in a shell script means no model, not one without a name."""
    monkeypatch.setenv("CAPTIONER_MODEL", "")
    monkeypatch.setenv("CAPTIONER_CONCURRENCY", "")
    assert parsed("in.jsonl") == Settings.create("in.jsonl")


def test_a_switch_can_be_turned_off_again(parsed, tmp_path, monkeypatch):
    """What TOML or the environment turns on, the command line turns off."""
    (tmp_path / "c.toml").write_text("offline = true\n")
    assert parsed("in.jsonl", "--config", "c.toml").endpoint.offline
    assert not parsed("in.jsonl", "--config", "c.toml", "--offline=false").endpoint.offline
    monkeypatch.setenv("CAPTIONER_OFFLINE", "0")
    assert not parsed("in.jsonl", "--config", "c.toml").endpoint.offline


def test_the_key_variable_is_no_unknown_option(parsed, monkeypatch):
    """CAPTIONER_API_KEY holds a key, not an option; nothing of it ends up in the settings."""
    monkeypatch.setenv("CAPTIONER_API_KEY", "sk-secret")
    assert "sk-secret" not in repr(parsed("in.jsonl"))


def test_retry_failed_stands_alone_or_with_a_code(parsed):
    """The older --retry-failed without a code means all failures, wherever it stands."""
    assert parsed("--retry-failed", "in.jsonl").run.retry_failed == "all"
    assert parsed("in.jsonl", "--retry-failed").run.retry_failed == "all"
    assert parsed("in.jsonl", "--retry-failed=bad_json").run.retry_failed == "bad_json"
    assert parsed("in.jsonl").run.retry_failed is None


def test_retry_failed_is_a_switch_as_well(parsed, monkeypatch, tmp_path):
    """True and false are no codes, wherever they are said."""
    assert parsed("in.jsonl", "--retry-failed=true").run.retry_failed == "all"
    assert parsed("in.jsonl", "--retry-failed=no").run.retry_failed is None
    (tmp_path / "c.toml").write_text("retry-failed = true\n")
    assert parsed("in.jsonl", "--config", "c.toml").run.retry_failed == "all"
    monkeypatch.setenv("CAPTIONER_RETRY_FAILED", "0")
    assert parsed("in.jsonl", "--config", "c.toml").run.retry_failed is None


def test_a_code_after_a_space_is_told_how_to_be_written(refused):
    """The older --retry-failed CODE without = is refused with the spelling that works."""
    assert "--retry-failed=" in refused("in.jsonl", "--retry-failed", "bad_json")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["in.jsonl", "--max-sid", "3"], "--max-side"),
        (["in.jsonl", "--concurency=3"], "--concurrency"),
        (["in.jsonl", "--accept-change"], "--accept-changes"),
        (["in.jsonl", "--no-dedu"], "--no-dedup"),
        (["export", "out.jsonl"], "--to"),
        (["export", "out.jsonl", "--to=x", "--to-format=xml"], "webdataset"),
        (["batch", "stat"], "status"),
        (["batch", ""], "no command"),
        (["batch", "statsu", "out.jsonl"], "Did you mean status?"),
        (["reprot", "out.jsonl"], "no command or file reprot. Did you mean report?"),
        (["view2", "out.jsonl", "--port=1"], "Did you mean view?"),
        (["eval-", "out.jsonl"], "Did you mean eval?"),
        (["captoin", "in.jsonl"], "no command or file captoin. A run needs no command: captioner"),
        (["caption", "in.jsonl"], "A run needs no command: captioner INPUT"),
        (["run", "in.jsonl", "--offline"], "A run needs no command: captioner INPUT"),
        (["help"], "Did you mean --help?"),
        (["in.jsonl", "--no-dedup=true"], "--no-dedup takes no value"),
        (["in.jsonl", "x", "--", "y"], "'x'"),
        (["-", "-"], "'-'"),
        (["--", "in.jsonl", "--limit", "3"], "'--limit' is one word too many"),
        (["check", "--output", "x"], "OUTPUT goes without a flag"),
        (["--retry-failed", "refused", "in.jsonl"], "--retry-failed=refused"),
        (["in.jsonl", "other.jsonl", "--retry-failed"], "'other.jsonl' is one word too many. See"),
        (["in.jsonl", "--redo", "width > 5"], "Did you mean '--redo=width > 5'?"),
        (["in.jsonl", "--model", "--offline"], "--model needs a value"),
        (["--model", "--offlin", "in.jsonl"], "--model needs a value"),
        (["in.jsonl", "--temperature", "-1e3"], "temperature: must"),
        (["in.jsonl", "--prompt", "a\udcff"], "UTF-8"),
        (["in.jsonl", "--max-side", "9" * 23], "too large"),
        (["in.jsonl", "--concurrency", "many"], "--concurrency"),
        (["in.jsonl", "--concurrency", "1.5"], "--concurrency"),
        (["in.jsonl", "--concurrency", "0"], "concurrency"),
        (["in.jsonl", "--concurrency", "-3"], "concurrency"),
        (["in.jsonl", "--timeout", "soon"], "--timeout"),
        (["in.jsonl", "--order", "random"], "--order"),
        (["in.jsonl", "--model"], "--model"),
        (["in.jsonl", "--offline=maybe"], "--offline"),
        (["in.jsonl", "--model", "a", "--model", "b"], "--model"),
        (["in.jsonl", "another.jsonl"], "another.jsonl"),
        (["in.jsonl", "--base-url", "localhost:8000"], "http://"),
        (["in.jsonl", "--config", "none.toml"], "none.toml"),
        (["in.jsonl", "--config", "."], "--config"),
        (["serve", "--port", "x"], "--port"),
        (["in.jsonl", "-offline"], "Did you mean --offline?"),
        (["in.jsonl", "-output=x"], "Did you mean --output?"),
        ([""], "INPUT: it is empty"),
        (["in.jsonl", "--cache", ""], "--cache: it is empty"),
        (["in.jsonl", "--image-root="], "--image-root: it is empty"),
        (["in.jsonl", "--retry-failed="], "retry: "),
        (["in.jsonl", "--no-model"], "there is no --no-model"),
        (["in.jsonl", "--hel"], "--help"),
        (["in.jsonl", "--help=3"], "--help takes no value"),
        (["in.jsonl", "--dedup", "false"], "--dedup=false"),
        (["chek", "out.jsonl"], "Did you mean check?"),
        (["--offline", "check", "out.jsonl"], "check is a command: it comes first"),
        (["check", "."], "is a folder"),
        (["view", "/"], "is a folder"),
        (["eval", ".", "--references", "x"], "cannot read x"),
        (["batch", "status", "."], "is a folder"),
        (["export", ".", "--to", "x"], "is a folder"),
    ],
)
def test_a_wrong_command_line_is_told_in_a_line(refused, arguments, said):
    """A wrong flag or value exits with 2 and names what is wrong or what was meant."""
    assert said in refused(*arguments)


def test_without_input_the_usage_is_told(refused):
    """The bare command says what it wants: an INPUT, in the word that --help uses."""
    assert "INPUT" in refused()


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("max_sid = 3", "max-side"),
        ("concurency = 3", "concurrency"),
        ("[endpoint]\nmodel = 'm'", "endpoint"),
        ("concurrency = 'x'", "concurrency"),
        ("concurrency = 1.5", "concurrency"),
        ("limit = true", "limit"),
        ("timeout = [1]", "timeout"),
        ("concurrency = {a = 1}", "concurrency"),
        ("offline = 3", "offline"),
        ("order = 'random'", "order"),
        ("max_side = 1\nmax-side = 2", "twice"),
        ("max_side 3", "c.toml"),
        ("input = 'in.jsonl'", "input"),
        ("config = 'd.toml'", "unknown option 'config'"),
        ("port = 3", "unknown option 'port'"),
        ("preset = ['a']", "c.toml: preset: ['a'] is not one of"),
        ("extra-body = {d = 1979-05-27}", "c.toml: extra-body"),
        ("json = 1", "c.toml: json: must be true or false"),
        ('output = "a\\u0000b"', "NUL"),
        ("a = " + "[" * 9_000, "not valid TOML"),
        ('cache = ""', "c.toml: cache: must not be empty"),
        ('header = {Authorization = "Bearer sk-secret"}', "c.toml: header: must be text or a list"),
        ('extra-body = ["sk-secret"]', "c.toml: extra-body: must be text"),
    ],
)
def test_a_wrong_toml_file_is_told_in_a_line(refused, tmp_path, toml, said):
    """A wrong name or value in TOML exits with 2 and names it."""
    (tmp_path / "c.toml").write_text(toml)
    error = refused("in.jsonl", "--config", "c.toml")
    assert said in error
    assert "sk-secret" not in error


def test_a_toml_file_that_is_no_text_is_told(refused, tmp_path):
    """A binary file given as --config is no reason for a stack trace."""
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe\x00")
    assert "c.toml" in refused("in.jsonl", "--config", "c.toml")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CAPTIONER_MODLE", "m", "CAPTIONER_MODEL"),
        ("CAPTIONER_CONCURRENCY", "many", "CAPTIONER_CONCURRENCY"),
        ("CAPTIONER_OFFLINE", "maybe", "CAPTIONER_OFFLINE"),
        ("CAPTIONER_ORDER", "random", "CAPTIONER_ORDER"),
        ("CAPTIONER_INPUT", "in.jsonl", "CAPTIONER_INPUT"),
        ("CAPTIONER_APIKEY", "sk-secret", "CAPTIONER_API_KEY"),
    ],
)
def test_a_wrong_variable_is_told_in_a_line(refused, monkeypatch, name, value, said):
    """A wrong name or value in the environment exits with 2, names it, and shows no key."""
    monkeypatch.setenv(name, value)
    error = refused("in.jsonl")
    assert said in error
    assert "sk-secret" not in error


def test_options_of_the_run_do_not_disturb_serve(monkeypatch):
    """Whoever exports options for captioning can still start the describer."""
    served: list[tuple[str, int]] = []
    monkeypatch.setattr(
        "captioner.endpoints.offline.server.serve", lambda host, port: served.append((host, port))
    )
    monkeypatch.setenv("CAPTIONER_MODEL", "m")
    monkeypatch.setenv("CAPTIONER_DEBUG", "1")
    monkeypatch.setenv("CAPTIONER_PORT", "0")
    assert run_in_process(["serve", "--host", "127.0.0.1"]) == 0
    assert served == [("127.0.0.1", 0)]


def test_help_names_every_option(capsys):
    """--help-all shows each option that no other one replaces, and how to switch off defaults."""
    assert run_in_process(["--help-all"]) == 0
    shown = capsys.readouterr().out
    for option in all_options().values():
        assert bool(re.search(rf"^  --{option.key}\b(?!-)", shown, re.MULTILINE)) != option.hidden
    assert "INPUT" in shown
    assert not re.search("sentinel|unset", shown, re.IGNORECASE)
    assert set(re.findall(r"--no-[\w-]+", shown)) == {f"--no-{flag_name(name)}" for name in ON}


def test_help_fits_two_screens(capsys, monkeypatch):
    """--help shows examples, commands and the common flags, and no flag that only tunes."""
    monkeypatch.setenv("COLUMNS", "80")
    assert run_in_process(["--help"]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 96
    for text in ("--output-format txt", "resumes", "--budget 25usd", "--help-all", "docs", "view"):
        assert text in shown
    for option in all_options().values():
        if option.tuning or option.hidden:
            assert f"  --{option.key} " not in shown


def test_tuning_flags_have_a_section_of_their_own(capsys):
    assert run_in_process(["--help-all"]) == 0
    tuning = capsys.readouterr().out.partition("\nTuning:\n")[2]
    listed = set(re.findall(r"^  --([\w-]+)", tuning, re.MULTILINE))
    assert listed == {option.key for option in all_options().values() if option.tuning}
    assert len(listed) >= 17


@pytest.mark.parametrize(
    "arguments", [["-h"], ["in.jsonl", "--max-side", "--help"], ["--modle", "-h"], ["batch", "-h"]]
)
def test_help_is_given_wherever_it_is_asked_for(capsys, arguments):
    """Whoever is lost in the middle of a line gets help, not an error."""
    assert run_in_process(arguments) == 0
    assert capsys.readouterr().out.startswith("Usage: captioner ")


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["--help-all"]])
def test_batch_has_the_same_layout_as_the_other_commands(capsys, arguments):
    assert run_in_process(["batch", *arguments]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(
        "Usage: captioner batch COMMAND [OPTIONS]\n\nShow or cancel the batches of --batch-api.\n"
        "\nCommands:\n  status "
    )
    assert shown.endswith("\nParameters:\n  -h, --help  Show this help.\n")


def test_a_folder_with_a_name_like_a_command_is_an_input(parsed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("reports", "caption"):
        (tmp_path / name).mkdir()
        assert str(parsed(name).input) == name


def test_help_names_every_code_that_can_be_accepted(capsys):
    assert run_in_process(["--help-all"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    listed = shown.partition("--accept TEXT")[2].partition("Separate several")[0]
    for code in CODES:
        assert code in listed


def test_help_tells_defaults(capsys):
    """Each default that is not told in words is shown, and how switches are turned off."""
    assert run_in_process(["--help-all"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(r"--samples N [^-]*Default: 1\.", shown)
    assert "--dedup, --no-dedup " in shown
    assert "--accept-changes[=edits] " in shown
    assert run_in_process(["serve", "--help"]) == 0
    assert "Variable: CAPTIONER_PORT." in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("columns", ["1", "40", "500"])
def test_help_fits_the_terminal(capsys, monkeypatch, columns):
    """No line is longer than the terminal, 40 columns at the least, nor than can be read."""
    monkeypatch.setenv("COLUMNS", columns)
    assert run_in_process(["--help"]) == 0
    longest = max(map(len, capsys.readouterr().out.splitlines()))
    assert longest <= min(100, max(40, int(columns)))


@pytest.mark.parametrize("command", ["check", "estimate", "eval", "export", "init", "report"])
def test_commands_are_named_and_explained(capsys, command):
    """--help lists the commands, and each explains itself in the same sentence."""
    assert run_in_process(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert run_in_process([command, "--help"]) == 0
    usage, _, explained = capsys.readouterr().out.partition("\n\n")
    assert usage.startswith(f"Usage: captioner {command} ")
    assert f" {command} {explained.splitlines()[0]}" in shown


def test_words_that_begin_with_a_dash(parsed):
    """After -- every word is one, and a lone dash is standard input."""
    assert parsed("--", "-odd.jsonl").input == Path("-odd.jsonl")
    assert parsed("-", "-o", "out.jsonl").input == Path("-")
    assert parsed("in.jsonl", "--prompt", "-old or new?").prompt.prompt == "-old or new?"
    assert parsed("in.jsonl", "--max_side", "5").images.max_side == 5
    assert parsed("in.jsonl", "--prompt=--briefly").prompt.prompt == "--briefly"


@pytest.mark.parametrize("arguments", [["--version"], ["in.jsonl", "--version"]])
def test_version(capsys, arguments):
    """--version prints one line."""
    assert run_in_process(arguments) == 0
    assert capsys.readouterr().out == "captioner 0.1.0\n"


def test_without_endpoint_the_ways_to_give_one_are_shown(run_command, make_input):
    """The first thing a new user does wrong exits with 2 and a few lines that help."""
    done = run_command(make_input(1))
    assert done.returncode == 2
    assert not done.stdout
    assert "--base-url" in done.stderr
    assert "--offline" in done.stderr
    assert len(done.stderr.splitlines()) <= 6


@pytest.mark.parametrize("port", ["99999", "-1", "taken"])
def test_a_port_that_cannot_be_served_is_told(run_command, port):
    """A port out of range or in use exits with 2 and a line, not with a stack trace."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1] if port == "taken" else port
        done = run_command("serve", f"--port={number}")
    assert "Traceback" not in done.stderr
    assert done.returncode == 2
    assert "port" in done.stderr or "address" in done.stderr.lower()


def test_an_input_that_is_missing_is_told(run_command, tmp_path):
    """A mistyped file name exits with 2 and is named; no output is left behind."""
    done = run_command("none.jsonl", "--base-url=http://127.0.0.1:1/v1", "--model=m", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "captioner: cannot read the input none.jsonl: No such file or directory\n"
    assert not list(tmp_path.iterdir())


def test_the_output_may_not_be_the_input(run_command, make_input):
    """-o with the input's own name is refused, and the input stays as it is."""
    path = make_input(1)
    before = path.read_bytes()
    done = run_command(path, "-o", path, "--base-url=http://127.0.0.1:1/v1", "--model=m")
    assert done.returncode == 2
    assert "overwrite" in done.stderr
    assert path.read_bytes() == before


def test_an_output_that_is_a_folder_is_told(run_command, make_input, tmp_path):
    """-o with a folder is a mistake of the user's, not an internal error."""
    path = make_input(1)
    for output in (tmp_path, "."):
        done = run_command(
            path, "-o", output, "--base-url=http://127.0.0.1:1/v1", "--model=m", cwd=tmp_path
        )
        assert done.returncode == 2, done.stderr
        assert "internal error" not in done.stderr


def test_an_input_that_is_a_pipe_is_refused(run_command, tmp_path):
    """The input is read twice; a pipe nobody writes to must not hang the command."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    done = run_command(
        tmp_path / "pipe.jsonl", "--base-url=http://127.0.0.1:1/v1", "--model=m", timeout=LIMIT_S
    )
    assert done.returncode == 2
    assert "pipe.jsonl" in done.stderr


def test_tables_of_endpoints(parsed, tmp_path):
    """[[endpoint]] tables say what each has of its own; the rest is as for all."""
    (tmp_path / "c.toml").write_text(
        'model = "all"\nrpm = 60.0\n'
        '[[endpoint]]\nbase-url = "http://one/v1"\nweight = 2.0\n'
        '[[endpoint]]\nbase-url = "http://two/v1"\nmodel = "own"\nrpm = 5\n'
    )
    one, two = parsed("in.jsonl", "--config", "c.toml").each_endpoint
    assert (one.base_url, one.model, one.rpm, one.weight) == (("http://one/v1",), "all", 60, 2)
    assert (two.base_url, two.model, two.rpm, two.weight) == (("http://two/v1",), "own", 5, 1)


def test_tables_that_cannot_be_endpoints(refused, tmp_path):
    """What is wrong with a table is said before anything is sent."""
    for text, said in (
        ('[[endpoint]]\nbase-url = "http://one/v1"\nwieght = 2\n', "weight"),
        ("[[endpoint]]\nweight = 2.0\n", "base-url"),
        ("[endpoint]\nweight = 2.0\n", "[[endpoint]]"),
    ):
        (tmp_path / "c.toml").write_text(text)
        assert said in refused("in.jsonl", "--config", "c.toml")


def test_tables_do_not_beat_what_is_typed(refused, parsed, monkeypatch, tmp_path):
    """What only one of them says is taken; where both say something, nobody has to guess."""
    (tmp_path / "c.toml").write_text('[[endpoint]]\nbase-url = "http://one/v1"\nmodel = "m"\n')
    (one,) = parsed("in.jsonl", "--config", "c.toml", "--rpm", "5").each_endpoint
    assert (one.base_url, one.rpm) == (("http://one/v1",), 5)
    said = refused("in.jsonl", "--config", "c.toml", "--base-url", "http://two/v1")
    assert "--base-url" in said
    assert "c.toml" in said
    monkeypatch.setenv("CAPTIONER_MODEL", "other")
    assert "CAPTIONER_MODEL" in refused("in.jsonl", "--config", "c.toml")


def test_a_toml_file_may_begin_with_a_mark(parsed, tmp_path):
    """Editors on other systems put a byte order mark there."""
    (tmp_path / "c.toml").write_text("limit = 3\n", "utf-8-sig")
    assert parsed("in.jsonl", "--config", "c.toml").records.limit == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["--header", "Authorization Bearer sk-secret"],
        ["--header", "sk-secret"],
        ["--api-key-env", "sk-secret-1"],
        ["--base-url", "user:sk-secret@host:8000/v1"],
        ["--base-url", "http:/user:sk-secret@host"],
        ["--base-url", "http://user:sk-/secret@host"],
        ["--base-url", "http://user:sk-se,cret@host/v1"],
        ["--base-url", "sk-secret"],
        ["--ray-address", "ray://u:sk-secret@h:1", "--ray-address", "ray://u:sk-secret@h:2"],
        ["--extra-body", '{"k": "secret"}', "--extra-body", '{"k": "secret"}'],
    ],
)
def test_what_is_refused_may_be_secret(refused, arguments):
    """A key in a wrong place is refused without being shown."""
    error = refused("in.jsonl", *arguments)
    assert "secret" not in error
    assert "sk-" not in error
    assert arguments[0][2:] in error


def test_a_header_without_quotes_is_not_shown(refused):
    """The shell has made several words of it, the last of which is the key."""
    error = refused("in.jsonl", "--header", "Authorization:", "Bearer", "sk-secret")
    assert "sk-secret" not in error
    assert "quotes" in error


def test_a_key_that_could_be_a_name_is_not_shown(run_command, make_input):
    """Who gives the key in place of its variable's name does not find it in a log."""
    done = run_command(
        make_input(1), "--api-key-env=gsk_verysecret", "--model=m", "--base-url=http://127.0.0.1:1"
    )
    assert done.returncode == 2
    assert "verysecret" not in done.stderr
    assert "api-key-env" in done.stderr


def test_what_nobody_foresaw_is_told_in_a_line(capsys, monkeypatch):
    """A bug ends in one line and exit status 1; the trace is for whoever asks for it."""

    def bug(*_, **__):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("captioner.cli.commands.check_in_console", bug)
    assert run_in_process(["check", "out.jsonl"]) == 1
    error = capsys.readouterr().err
    assert "ZeroDivisionError" in error
    assert "Traceback" not in error
    monkeypatch.setenv("CAPTIONER_DEBUG", "0")
    assert run_in_process(["check", "out.jsonl"]) == 1
    monkeypatch.setenv("CAPTIONER_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run_in_process(["check", "out.jsonl"])


def test_a_name_that_is_too_long_is_told(capsys):
    """A path that no system takes is named, and is no bug."""
    assert run_in_process(["init", "x" * 5_000]) in (1, 2)
    error = capsys.readouterr().err
    assert "File name too long" in error
    assert "internal error" not in error


def test_repeated_flags_are_several(parsed, monkeypatch):
    """Flags that may be repeated; in a variable, one a line."""
    urls = ("http://one/v1", "http://two/v1")
    flags = [f"--base-url={url}" for url in urls]
    assert parsed("in.jsonl", *flags).endpoint.base_url == urls
    monkeypatch.setenv("CAPTIONER_BASE_URL", "\n".join(urls))
    monkeypatch.setenv("CAPTIONER_PROMPT", "two\nlines")
    settings = parsed("in.jsonl")
    assert settings.endpoint.base_url == urls
    assert settings.prompt.prompt == "two\nlines"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--header=no colon", "Name: value"),
        ("--header=A: b\x01c", "cannot be sent"),
        ("--extra-body=[]", "JSON object"),
        ("--extra-body={", "valid JSON"),
        ('--extra-body={"model": "x"}', "--model"),
        ("--accept=empty", "truncated"),
        ("--with=colour", "usage"),
        ("--ask=what?", "NAME=QUESTION"),
        ("--samples=0", "more than 0"),
        ("--preset=best", "preset"),
        ("--detail=most", "detail"),
    ],
)
def test_values_that_cannot_work(refused, argument, said):
    """Each is said in a sentence before anything is sent."""
    assert said in refused("in.jsonl", argument)


@pytest.mark.parametrize("where", [">&-", "> /dev/full", "2>&-"])
def test_nowhere_to_print(tmp_path, where):
    """Closed or full streams end in no stack trace."""
    command = f"{sys.executable} -m captioner --help {where}"
    done = subprocess.run(command, check=False, shell=True, capture_output=True, text=True)
    assert done.returncode == ("full" in where)
    assert "Traceback" not in done.stderr


def test_nobody_reads_any_more(endpoint, make_input, run_command):
    """Piped into what ends early, head say, a command ends without a trace."""
    source = make_input(1)
    output = source.with_name("out.jsonl")
    run_command(source, "-o", output, "--base-url", endpoint.base_url, "--model", "m")
    report = [sys.executable, "-m", "captioner", "report", str(output), "--json"]
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(report, check=False, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, "")
