"""Flags: those that stand for several, units, tuning, words of other programs, completion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from captioner.cli.main import run_command as run_in_process
from captioner.core.errors import SettingsError
from captioner.settings import Settings
from captioner.settings.flags import all_options

pytestmark = pytest.mark.usefixtures("no_option_from_the_environment", "in_a_folder")


@pytest.fixture
def parsed(parsed):
    """Parse the flags of an input."""
    return lambda *flags: parsed("in.jsonl", *flags)


MERGED = [
    (["--retry", "failed"], {"retry_failed": "all"}),
    (["--retry", "http_400"], {"retry_failed": "http_400"}),
    (["--retry", "http_400,refused"], {"retry_failed": "http_400,refused"}),
    (
        ["--retry=http_400", "--retry=rejected"],
        {"retry_failed": "http_400", "retry_rejected": True},
    ),
    (["--retry", "rejected"], {"retry_rejected": True}),
    (["--accept-changes"], {"accept_changes": True}),
    (["--accept-changes=edits"], {"accept_changes": True, "accept_edits": True}),
    (["--accept-changes=false"], {}),
    (["--equal-records", "skip"], {"duplicates": "skip"}),
    (["--ray"], {"engine": "ray"}),
    (["--ray=ray://head:10001"], {"engine": "ray", "ray_address": "ray://head:10001"}),
    (["--no-ray"], {}),
    (["--resize", "1024"], {"max_side": 1024}),
    (["--resize", "gpt-4o"], {"size_for": "gpt-4o"}),
    (["--budget", "25"], {"budget": 25.0}),
    (["--budget", "$2.50"], {"budget": 2.5}),
    (["--budget", "25usd"], {"budget": 25.0}),
    (["--budget", "3Mtok"], {"budget_tokens": 3_000_000}),
    (["--budget", "25usd,3Mtok"], {"budget": 25.0, "budget_tokens": 3_000_000}),
    (["--budget", "25", "--budget-tokens", "9"], {"budget": 25.0, "budget_tokens": 9}),
]


@pytest.mark.parametrize(("arguments", "stored"), MERGED)
def test_merged_flags_mean_the_old_ones(parsed, arguments, stored):
    assert parsed(*arguments) == Settings.create("in.jsonl", **stored)


@pytest.mark.parametrize(
    ("name", "toml", "value", "stored"),
    [
        ("retry", '["failed", "rejected"]', ("failed", "rejected"),
         {"retry_failed": "all", "retry_rejected": True}),
        ("accept_changes", '"edits"', "edits", {"accept_changes": True, "accept_edits": True}),
        ("equal_records", '"error"', "error", {"duplicates": "error"}),
        ("ray", "true", True, {"engine": "ray"}),
        ("ray", '"auto"', "auto", {"engine": "ray", "ray_address": "auto"}),
        ("resize", "1024", 1024, {"max_side": 1024}),
        ("resize", '"gpt-4o"', "gpt-4o", {"size_for": "gpt-4o"}),
        ("budget", "25", 25, {"budget": 25.0}),
        ("budget", '"3Mtok"', "3Mtok", {"budget_tokens": 3_000_000}),
    ],
)  # fmt: skip
def test_merged_options_in_toml_and_python(parsed, tmp_path, name, toml, value, stored):
    expected = Settings.create("in.jsonl", **stored)
    assert Settings.create("in.jsonl", **{name: value}) == expected
    (tmp_path / "c.toml").write_text(f"{name} = {toml}\n")
    assert parsed("--config", "c.toml") == expected


def test_a_merged_flag_overrides_the_file_and_the_environment(parsed, monkeypatch, tmp_path):
    """Also where the file uses the old name and the command line the new one."""
    (tmp_path / "c.toml").write_text("max-side = 100\nretry-failed = true\n")
    monkeypatch.setenv("CAPTIONER_RETRY", "http_500")
    settings = parsed("--config", "c.toml", "--resize", "200")
    assert settings.images.max_side == 200
    assert settings.run.retry_failed == "http_500"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resize": 5, "max_side": 6}, "max-side.*resize|resize.*max-side"),
        ({"budget": "25usd", "retry": 3}, "retry"),
        ({"budget": "3 apples"}, "25usd"),
        ({"budget": "1usd,2usd"}, "25usd"),
        ({"resize": 0}, "resize"),
        ({"resize": "no-such-model"}, "no-such-model"),
        ({"accept_changes": "all"}, "accept-changes"),
        ({"equal_records": "drop"}, "equal-records"),
    ],
)
def test_merged_options_that_cannot_work(options, said):
    with pytest.raises(SettingsError, match=said):
        Settings.create("in.jsonl", **options)


def test_a_private_address_is_not_shown(refused):
    assert "secret" not in refused("x", "--ray=ray://u:secret@h:1", "--ray=ray://u:secret@h:2")


# -- units -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("memory", "256MB", 256_000_000),
        ("memory", "1.5GiB", 3 << 29),
        ("max_image_bytes", "500kB", 500_000),
        ("max_image_bytes", "500", 500),
        ("max_line", "2 mib", 2 << 20),
        ("timeout", "90", 90.0),
        ("timeout", "30s", 30.0),
        ("drain", "0", 0.0),
        ("max_outage", "5m", 300.0),
        ("disk_wait", "2h", 7_200.0),
        ("fetch_timeout", "250ms", 0.25),
        ("batch_max_wait", "2", 2.0),
        ("batch_max_wait", "30m", 0.5),
        ("batch_max_wait", "1d", 24.0),
    ],
)
def test_units(parsed, monkeypatch, tmp_path, name, text, value):
    """Sizes and durations mean the same on the command line, in variables and in TOML."""
    expected = Settings.create("in.jsonl", **{name: value})
    option = all_options()[name]
    assert parsed(f"--{option.key}={text}") == expected
    (tmp_path / "c.toml").write_text(f'{option.key} = "{text}"\n')
    assert parsed("--config", "c.toml") == expected
    monkeypatch.setenv(option.variable, text)
    assert parsed() == expected


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--memory=3XB", "256MB"),
        ("--memory=lots", "256MB"),
        ("--memory=1.5", "256MB"),
        ("--memory=infGB", "256MB"),
        ("--timeout=5 weeks", "30s"),
        ("--timeout=", "30s"),
        ("--timeout=nan", "more than 0"),
        ("--timeout=-5m", "more than 0"),
    ],
)
def test_units_that_do_not_exist(refused, argument, said):
    assert said in refused("in.jsonl", argument)


# -- tuning ------------------------------------------------------------------------------------


def test_a_tuning_table(parsed, tmp_path):
    """Tuning options work in [tuning], at the top level and as flags."""
    (tmp_path / "c.toml").write_text('drain = 5\n[tuning]\nmemory = "1GB"\nmax_line = 7\n')
    settings = parsed("--config", "c.toml", "--max-line", "8")
    assert settings == Settings.create("in.jsonl", drain=5, memory=10**9, max_line=8)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[tuning]\nmodel = 'm'", "[tuning]: unknown option 'model'"),
        ("[tuning]\nmemroy = 5", "Did you mean memory?"),
        ("memory = 5\n[tuning]\nmemory = 6", "given twice"),
        ("[tuning]\nmemory = true", "[tuning]: memory: must be"),
        ("tuning = 3", "as a table [tuning]"),
    ],
)
def test_a_tuning_table_that_cannot_work(refused, tmp_path, toml, said):
    (tmp_path / "c.toml").write_text(toml)
    assert said in refused("in.jsonl", "--config", "c.toml")


# -- what people type --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--force", "--overwrite"),
        ("--url", "--base-url"),
        ("--endpoint", "--base-url"),
        ("--api-base", "--base-url"),
        ("--api_base=x", "--base-url"),
        (
            "--api-key",
            "--api-key-env, with the name of the environment variable that holds the key",
        ),
        ("--out", "-o"),
        ("--resume", "running the same command again resumes"),
        ("--threads", "--concurrency"),
        ("--num-workers", "--concurrency"),
        ("--question", "--prompt"),
        ("--retries", "--max-attempts"),
    ],
)
def test_flags_of_other_programs(refused, flag, said):
    assert said in refused("in.jsonl", flag)


def test_an_api_key_on_the_command_line_is_not_shown(refused):
    assert "sk-secret" not in refused("in.jsonl", "--api-key=sk-secret")
    assert "sk-secret" not in refused("in.jsonl", "--api-key", "sk-secret")


@pytest.mark.parametrize("flag", ["--colour", "--wait", "--ordinal", "--sampled-at"])
def test_no_suggestion_that_differs_much(refused, flag):
    assert "Did you mean" not in refused("in.jsonl", flag)


def complete(*words: str) -> list[str]:
    environment = {
        **os.environ,
        "_CAPTIONER_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["captioner", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-m", "captioner"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_the_shell_completes_commands_flags_and_choices():
    assert complete("ex") == ["export", "ex"]
    assert complete("in.jsonl", "--conc") == ["--concurrency"]
    assert complete("in.jsonl", "--order", "co") == ["completion"]
    assert complete("batch", "st") == ["status"]


# -- captioner docs ----------------------------------------------------------------------------


@pytest.fixture
def _pages(monkeypatch, tmp_path):
    folder = tmp_path / "package" / "docs"
    folder.mkdir(parents=True)
    (folder / "resume.md").write_text("# How a run resumes\n\nRun it again.\n")
    (folder / "budget.md").write_text("# Budgets\n\nSpend less.\n")
    (folder / "notes.txt").write_text("not a page")
    monkeypatch.setattr("captioner.cli.docs.files", lambda _: Path(tmp_path / "package"))


@pytest.mark.usefixtures("_pages")
def test_docs(capsys, refused):
    """Without a topic all are listed; with one it is printed; another is an error with the list."""
    assert run_in_process(["docs"]) == 0
    listed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert listed == [["budget", "Spend less."], ["resume", "Run it again."]]
    assert run_in_process(["docs", "resume"]) == 0
    assert capsys.readouterr().out == "# How a run resumes\n\nRun it again.\n"
    assert "Did you mean resume?" in (said := refused("docs", "resum"))
    assert "budget, resume" in said


# -- the cost of starting ----------------------------------------------------------------------


def test_help_loads_nothing_heavy():
    """Help imports neither the network nor the imaging library."""
    code = (
        "import sys; from captioner.cli.main import run_command; run_command(['--help-all']);"
        "print('loaded', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.rpartition("loaded ")[2].split()
    assert not {"aiohttp", "PIL", "rich", "uvloop", "orjson", "tomllib", "asyncio"} & set(loaded)
