"""A run that continues an output may leave out what did not change; its advice can be pasted."""

from __future__ import annotations

import json
import re
import shlex
import subprocess

import pytest
from conftest import command, jpeg, rows
from endpoint import Reply, completion

from captioner.journal.checkpoint import read_checkpoint
from captioner.journal.disk import Files


@pytest.fixture
def source(make_input, endpoint):
    endpoint.behave = lambda call: Reply(body=completion(f"{call.texts[-1]} {call.number}"))
    path = make_input(3)
    with path.open("a") as file:
        file.write('{"image": "images/late.jpg"}\n')
    return path


def advised(stderr, word):
    """Return the command that a line of the summary advises."""
    line = next(line for line in stderr.splitlines() if line.startswith(word))
    return shlex.split(line.partition(": ")[2])


def pasted(words, folder):
    assert words[:3] == ["python", "-m", "captioner"]
    return subprocess.run(
        command(*words[3:]), cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_command_that_is_advised_can_be_pasted(source, endpoint, run_command):
    """It takes model, address, prompt and the rest from the output."""
    ended = run_command(
        source.name, "--base-url", endpoint.base_url, "--model", "m", "--prompt", "Say 'it'.",
        "--prompt-field", "question", "--with", "model", "--max-tokens", "50", "--max-side", "500",
        cwd=source.parent,
    )  # fmt: skip
    assert ended.returncode == 3
    (source.parent / "images/late.jpg").write_bytes(jpeg(9))
    again = pasted(advised(ended.stderr, "retry them"), source.parent)
    assert (again.returncode, "1 captioned" in again.stderr) == (0, True), again.stderr
    last = rows(source.with_name("input.captions.jsonl"))[-1]
    assert last["caption"].startswith("Say 'it'. ")
    assert last["caption_model"] == "m"


def test_a_part_of_the_input_continues_as_that_part(source, endpoint, run_command):
    """What chooses records is part of the advice: the whole input would be another run."""
    ended = run_command(
        source, "--base-url", endpoint.base_url, "--model", "m", "--where", "id != 1",
        "--output-format", "csv", "-o", source.with_name("o.csv"),
    )  # fmt: skip
    words = advised(ended.stderr, "retry them")
    assert "--where=id != 1" in words
    assert words[words.index("--output-format") + 1] == "csv"


def test_what_is_given_comes_first_and_replaces_what_goes_with_it(
    source, endpoint, run_command, tmp_path
):
    output = tmp_path / "o.jsonl"
    known = ["--base-url", endpoint.base_url, "--model", "m"]
    run_command(source, "-o", output, *known, "--limit", "1", "--resize", "500")
    other = run_command(source, "-o", output, "--limit", "2", "--resize", "gpt-4o")
    assert re.search("max-side was '?500'?, now not set", other.stderr)
    other = run_command(source, "-o", output, "--limit", "2", "--preset", "dense")
    assert "preset was not set, now 'dense'" in other.stderr
    # With --accept-changes what is given is all that counts.
    other = run_command(source, "-o", output, "--limit", "2", "--accept-changes", *known)
    assert other.returncode == 0
    assert read_checkpoint(Files(), output).settings["max_side"] == 2_048


def test_a_key_goes_to_the_address_it_was_given_for(source, endpoint, run_command, monkeypatch):
    """Another address gets neither the key of the first nor its headers."""
    monkeypatch.setenv("ONE_KEY", "secret-of-one")
    known = ["--base-url", endpoint.base_url, "--model", "m", "--limit", "1"]
    first = run_command(source, *known, "--api-key-env", "ONE_KEY", "--header", "X-Own: of-one")
    assert first.returncode == 0, first.stderr
    output = source.with_name("input.captions.jsonl")
    assert b"of-one" not in output.with_name(f"{output.name}.ckpt").read_bytes()
    other = endpoint.base_url.replace("127.0.0.1", "localhost")
    run_command(source, "--base-url", other, "--limit", "2")
    sent = [{name.lower(): v for name, v in call.headers.items()} for call in endpoint.calls]
    assert sent[0]["authorization"] == "Bearer secret-of-one"
    assert "authorization" not in sent[-1]
    assert "x-own" not in sent[-1]


@pytest.mark.parametrize("which", ["other options", "another user", "no seal", "no text"])
def test_options_that_came_with_a_data_set_are_not_used(
    source, endpoint, run_command, monkeypatch, tmp_path, which
):
    """A checkpoint names where a key is sent, and files that are read: only one's own counts."""
    monkeypatch.setenv("OWN_KEY", "secret-of-the-user")
    first = run_command(source, "--base-url", endpoint.base_url, "--model", "m", "--limit", "1")
    assert first.returncode == 0, first.stderr
    path = source.with_name("input.captions.jsonl.ckpt")
    checkpoint = json.loads(path.read_text())
    if which == "another user":
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    else:
        checkpoint["options"]["api_key_env"] = ["OWN_KEY"]
        checkpoint["options"]["prompt"] = "@/etc/passwd"
    if which == "no seal":
        del checkpoint["options"]["seal"]
    elif which == "no text":
        checkpoint["options"]["seal"] = {"seal": ["\u00e9"]}
    path.write_text(json.dumps(checkpoint))
    calls = endpoint.count
    again = run_command(source, "--limit", "2")
    assert again.returncode == 2
    assert "the options in input.captions.jsonl.ckpt are not used" in again.stderr
    assert endpoint.count == calls
    given = run_command(source, "--base-url", endpoint.base_url, "--model", "m", "--limit", "2")
    assert given.returncode == 0, given.stderr
    assert "secret-of-the-user" not in str([call.headers for call in endpoint.calls])
    last = run_command(source, "--limit", "3")  # now they are this user's
    assert last.returncode == 0, last.stderr


def test_without_a_place_for_the_seal_all_is_to_be_given_again(
    source, endpoint, run_command, monkeypatch
):
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
    first = run_command(source, "--base-url", endpoint.base_url, "--model", "m")
    assert "the output does not remember --base-url, --model, --probe: add the same" in first.stderr


def test_what_is_not_remembered_is_told(source, endpoint, run_command):
    known = ["--base-url", endpoint.base_url, "--model", "m", "--header", "X-Own: 1"]
    ended = run_command(source, *known)
    assert "the output does not remember --header: add the same" in ended.stderr
