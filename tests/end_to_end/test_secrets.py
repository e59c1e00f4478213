"""Where secrets and control characters of strangers end up in a run."""

from __future__ import annotations

import csv
import io
import json
import os
import re

import orjson
import pytest
from conftest import rows
from endpoint import FakeEndpoint, Reply
from fakes import EchoTransport, ListSource

from captioner import SettingsError, run_batch
from captioner.cli.jsonlog import JsonLog
from captioner.core.progress import Progress
from captioner.journal.companions import checkpoint_path

KEYS = ("sk-KEYKEYKEY-1", "HDRHDRHDR-2", "BODYBODY-8")
ODD = "a\x9b31mred\u202eb\x7f\u2066c\u200f"


def options(endpoint: FakeEndpoint) -> list[str]:
    return [
        "--base-url", endpoint.base_url, "--model", "m", "--api-key-env", "MYAUTH", "--header",
        "X-Auth: Bearer HDRHDRHDR-2", "--extra-body", '{"api_key":"BODYBODY-8"}',
        "--max-attempts", "1", "--concurrency", "4",
    ]  # fmt: skip


@pytest.mark.parametrize("processes", [1, 2])
def test_no_file_and_no_line_has_a_secret(
    make_input, endpoint, run_command, tmp_path, processes, monkeypatch
):
    """Not even when the endpoint repeats all it was sent, in an error or in a caption."""
    monkeypatch.setenv("MYAUTH", KEYS[0])
    escaped = "".join(f"\\u{ord(char):04x}" for char in KEYS[0])
    text = f"no: {KEYS} {escaped}"
    body = {"error": {"message": text}}
    message = {"role": "assistant", "content": f"a photo of {KEYS[0]} and {KEYS[1]}"}
    good = {"choices": [{"finish_reason": "stop", "message": message}]}
    fails = processes == 1
    endpoint.behave = lambda call: (
        Reply(400, body) if fails and "q1" not in call.texts[-1] else Reply(200, good)
    )
    source = make_input(4)
    given = (source, *options(endpoint), "--processes", processes, "--log-json")
    first = run_command(*given)
    assert first.returncode == (3 if fails else 0), first.stderr
    shown = first.stdout + first.stderr
    files = [path for path in tmp_path.iterdir() if path.suffix in (".jsonl", ".ckpt")]
    assert len(files) == (4 if fails else 3)
    everything = [shown, *(path.read_text() for path in files)]
    assert not [key for key in KEYS for text in everything if key in text]
    assert len(endpoint.calls) >= 4


async def test_a_checkpoint_of_an_earlier_version_has_clear_values(tmp_path):
    """They are compared as before, named but not shown when they differ, and written anew."""
    output, extra = tmp_path / "o.jsonl", '{"api_key":"BODYBODY-8"}'
    given = {"source": ListSource(["q0"]), "transport": EchoTransport(), "model": "m"}
    await run_batch("unused", output, extra_body=extra, **given)
    path = checkpoint_path(output)
    content = orjson.loads(path.read_bytes())
    assert content["settings"]["extra_body"].startswith("blake2b:")
    content["settings"]["extra_body"] = extra
    path.write_bytes(orjson.dumps(content))
    with pytest.raises(SettingsError, match="extra-body differs") as refused:
        await run_batch("unused", output, extra_body='{"api_key":"OTHEROTHER-9"}', **given)
    assert not re.search("BODYBODY|OTHEROTHER", str(refused.value))
    report = await run_batch("unused", output, extra_body=extra, **given)
    assert (report.complete, report.resumed) == (True, 1)
    assert b"BODYBODY-8" not in path.read_bytes()


def test_control_characters_reach_no_terminal_and_no_log(
    make_input, endpoint, run_command, tmp_path
):
    """C1 controls, DEL and what changes the direction of text are escaped; JSON stays JSON."""
    endpoint.behave = lambda _: Reply(400, {"error": {"message": f"no {ODD} no"}})
    source = make_input(1)
    given = (source, "--base-url", endpoint.base_url, "--model", "m", "--max-attempts", "1")
    for more in (("--log-json",), ("--json",), ()):
        told = run_command(*given, "-o", tmp_path / f"o{len(more)}{more[:1]}.jsonl", *more)
        shown = told.stdout + told.stderr
        assert "no a" in shown
        assert all(char.isprintable() or char == "\n" for char in shown), more
        if more == ("--log-json",):
            assert all(json.loads(line) for line in told.stderr.splitlines())


def test_a_log_of_json_escapes_what_a_terminal_would_obey():
    """The text is the same for who parses the line."""
    stream = io.StringIO()
    JsonLog(Progress(), stream).say(f"é 漢字 {ODD}")
    line = stream.getvalue()
    assert json.loads(line)["message"] == f"é 漢字 {ODD}"
    assert line[:-1].isprintable()
    assert "é 漢字" in line


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_formulas_in_tables(tmp_path, run_command, ending):
    """As they are by default; with --csv-safe a spreadsheet shows them as text."""
    cells = ['=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", "\t=1", "\uff1d1", " =1", "a=b", "-"]
    output = tmp_path / "o.jsonl"
    lines = [{"id": f"{n}", "n": -5, "caption": cell} for n, cell in enumerate(cells)]
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    target = tmp_path / f"t{ending}"
    for safe in (False, True):
        flags = ["--csv-safe"] if safe else []
        done = run_command("export", output, "--to", target, "--overwrite", *flags)
        assert done.returncode == 0, done.stderr
        with target.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file, delimiter="," if ending == ".csv" else "\t")
            found = [(row["caption"], row["n"]) for row in table]
        harmless = {"a=b"} if safe else set(cells)
        assert found == [(c if c in harmless else f"'{c}", "-5") for c in cells]


@pytest.mark.parametrize(
    ("command", "which"),
    [
        *((command, "o.review.jsonl") for command in ("view", "check", "export", "report")),
        *((command, "o.failed.jsonl") for command in ("check", "report")),
        *((command, "o.jsonl.ckpt") for command in ("check", "export", "report")),
        *((command, "o.jsonl.lock") for command in ("check", "export", "report")),
    ],
)
def test_no_command_waits_for_a_pipe(tmp_path, run_command, command, which):
    """A pipe in the place of a companion never blocks; who needs the file says what it is."""
    output = tmp_path / "o.jsonl"
    output.write_text('{"id":1,"caption":"a"}\n')
    os.mkfifo(tmp_path / which)
    more = ["--to", tmp_path / "t.csv"] if command == "export" else []
    done = run_command(command, output, *more)
    if which == "o.review.jsonl" and command in ("view", "export"):
        assert done.returncode in (2, 5)
        assert f"{which} is not a regular file" in done.stderr
    assert rows(output) == [{"id": 1, "caption": "a"}]


@pytest.mark.parametrize("link", ["captioner.toml", "api_pipelines"])
def test_init_writes_through_no_link(tmp_path, run_command, link):
    """Not even through one that leads to nothing."""
    folder = tmp_path / "work"
    folder.mkdir()
    elsewhere = tmp_path / "elsewhere"
    if link == "api_pipelines":
        elsewhere.mkdir()
    (folder / link).symlink_to(elsewhere)
    done = run_command("init", folder)
    assert done.returncode == 2
    assert f"{link} is a link" in done.stderr
    assert not elsewhere.exists() or not list(elsewhere.iterdir())


@pytest.mark.parametrize("name", ["captions.sqlite", "captions.sqlite-wal"])
async def test_a_cache_that_is_a_link(tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / name).symlink_to(victim)
    given = {"source": ListSource(["q0"]), "transport": EchoTransport(), "model": "m"}
    with pytest.raises(SettingsError, match=rf"cache: .*{name} is not a regular file"):
        await run_batch("unused", tmp_path / "o.jsonl", cache=tmp_path / "cache", **given)
    assert victim.read_text() == "precious"


async def test_a_cache_is_for_its_owner_only(tmp_path):
    given = {"source": ListSource(["q0"]), "transport": EchoTransport(), "model": "m"}
    await run_batch("unused", tmp_path / "o.jsonl", cache=tmp_path / "cache", **given)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "cache").iterdir()} == {0o600}
