"""The command as users run it: real processes, a real endpoint, real signals."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import command, rows
from endpoint import Call, Reply, start_and
from waiting import LIMIT_S, wait_until

import captioner.cli.session
from captioner.core.errors import (
    CaptionerError,
    DiskError,
    EndpointGaveOutError,
    EndpointRefusedError,
    OutputBusyError,
    OutputDamagedError,
    SettingsError,
)
from captioner.endpoints.blame import STOP_LATER
from captioner.settings.settings import Settings

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command; whatever still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: object, **options: object) -> subprocess.Popen[str]:
        options = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, **options}
        process = subprocess.Popen(command(*arguments), text=True, **options)
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def options(endpoint) -> list[str]:
    return [f"--base-url={endpoint.base_url}", "--model=m"]


def is_clean(error: str) -> bool:
    """Return whether a text on stderr holds nothing that has no place there."""
    return not any(bad in error for bad in ("Traceback", KEY, "base64", "\x1b"))


# -- exit codes and summaries ------------------------------------------------------------------


def test_a_good_run(run_command, make_input, endpoint, options):
    """All captioned: exit 0, the captions in the input's order, the summary on stderr alone."""
    path = make_input(20)
    done = run_command(path, *options)
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    captions = rows(path.with_name("input.captions.jsonl"))
    assert [row["id"] for row in captions] == list(range(20))
    assert all(row["caption"].startswith(row["prompt"]) for row in captions)
    assert "20 captioned" in done.stderr
    assert "input.captions.jsonl" in done.stderr
    assert "fail" not in done.stderr
    assert all(call.images for call in endpoint.calls)
    again = run_command(path, *options)
    assert again.returncode == 0
    assert "20 were captioned before" in again.stderr
    assert endpoint.count == 20


def test_failures_are_told_by_kind(run_command, make_input, options, tmp_path):
    """Bad records are one failure line each, the rest is captioned, exit 3, and a summary helps."""
    path = make_input(5)
    (tmp_path / "corrupt.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    bad = [
        json.dumps({"image": "none-1.jpg"}),
        json.dumps({"image": "none-2.jpg"}),
        json.dumps({"image": "corrupt.jpg"}),
        '{"image":',
        json.dumps({"image": "images/0.jpg", "messages": [{"role": "judge", "content": "?"}]}),
    ]
    path.write_text("\n".join(bad) + "\n" + path.read_text())
    done = run_command(path, *options)
    assert done.returncode == 3
    assert is_clean(done.stderr)
    assert len(rows(path.with_name("input.captions.jsonl"))) == 5
    failures = {row["line"]: row for row in rows(path.with_name("input.captions.failed.jsonl"))}
    assert sorted(failures) == [1, 2, 3, 4, 5]
    for number, failure in failures.items():
        assert list(failure) == ["line", "key", "code", "message", "attempts", "record"]
        assert failure["attempts"] == 0
        assert "Error" not in failure["message"]
        assert str(failure["code"]) in done.stderr
        assert failure["record"] == (bad[3] if number == 4 else json.loads(bad[number - 1]))
    assert "5 captioned" in done.stderr
    assert "5 failed" in done.stderr
    assert "2 image_missing, for example line" in done.stderr
    assert f"captioner {path} --retry failed" in done.stderr


def test_failures_of_earlier_runs_are_told_as_well(run_command, make_input, options, tmp_path):
    """Run again without --retry: the exit code is still 3, and the failures are shown again."""
    path = make_input(2)
    (tmp_path / "images" / "0.jpg").unlink()
    assert run_command(path, *options).returncode == 3
    again = run_command(path, *options)
    assert again.returncode == 3
    assert "1 failed" in again.stderr
    assert "image_missing" in again.stderr


def test_retrying_failures(run_command, make_input, endpoint, options):
    """--retry failed asks for the failed ones only, --retry CODE for those of one kind."""
    path = make_input(6)

    def behave(call: Call) -> Reply | None:
        status = {"q1": 400, "q2": 400, "q3": 422}.get(call.texts[0])
        return Reply(status, {"error": {"message": "no"}}) if status else None

    endpoint.behave = behave
    assert run_command(path, *options).returncode == 3
    sent = endpoint.count
    assert sent <= 10  # three refused at once are sent again, after one that shows that all is well
    assert run_command(path, *options).returncode == 3
    assert endpoint.count == sent
    endpoint.behave = lambda _: None
    assert run_command(path, *options, "--retry", "http_400").returncode == 3
    assert sorted(call.texts[0] for call in endpoint.calls[sent:]) == ["q1", "q2"]
    assert run_command(path, *options, "--retry=http_401,http_422").returncode == 0
    assert [call.texts[0] for call in endpoint.calls[sent + 2 :]] == ["q3"]
    assert [row["id"] for row in rows(path.with_name("input.captions.jsonl"))] == list(range(6))
    failures = path.with_name("input.captions.failed.jsonl")
    assert not failures.exists() or not failures.read_bytes()


def test_retrying_a_kind_that_did_not_occur_is_told(run_command, make_input, options, tmp_path):
    """A misspelled code does not pass as a retry after which the failures are still there."""
    path = make_input(1)
    (tmp_path / "images" / "0.jpg").unlink()
    assert run_command(path, *options).returncode == 3
    done = run_command(path, *options, "--retry", "image_mising")
    assert done.returncode in {2, 3}
    assert "image_mising" in done.stderr


@pytest.mark.parametrize(
    ("variables", "arguments", "sent"),
    [
        ({}, [], None),
        ({"OPENAI_API_KEY": KEY}, [], f"Bearer {KEY}"),
        ({"DF_API_KEY": KEY}, [], f"Bearer {KEY}"),
        ({"MINE": KEY, "OPENAI_API_KEY": "no"}, ["--api-key-env=MINE"], f"Bearer {KEY}"),
    ],
)
def test_the_key_that_is_sent(
    run_command, make_input, endpoint, options, variables, arguments, sent
):
    """A local server is sent no key; else the key comes from where it was said to be."""
    done = run_command(make_input(1), *options, *arguments, env={**os.environ, **variables})
    assert done.returncode == 0, done.stderr
    assert endpoint.calls[0].headers.get("authorization") == sent
    assert is_clean(done.stderr)


@pytest.mark.parametrize(
    ("reply", "code", "said"),
    [
        (Reply(401, {"error": {"message": f"Incorrect API key: {KEY}"}}), 7, "key"),
        (Reply(404, {"error": {"message": "The model `m` does not exist"}}), 7, "does not exist"),
        (
            Reply(429, {"error": {"message": "Pay first", "code": "insufficient_quota"}}),
            7,
            "run the same command again",
        ),
    ],
)
def test_a_fatal_answer_stops_the_run(
    run_command, make_input, endpoint, options, reply, code, said
):
    """One clear sentence, what was finished is kept, and the next run pays for the rest only."""
    path = make_input(60)
    endpoint.behave = lambda call: reply if call.number > 10 else None
    env = {**os.environ, "OPENAI_API_KEY": KEY}
    done = run_command(path, *options, "--concurrency=4", env=env)
    assert done.returncode == code, done.stderr
    assert is_clean(done.stderr)
    assert said in done.stderr.splitlines()[-1]
    assert endpoint.count <= 10 + STOP_LATER + 4
    assert len(rows(path.with_name("input.captions.jsonl"))) == 10
    endpoint.behave = lambda _: None
    assert run_command(path, *options, env=env).returncode == 0
    assert endpoint.given == 60
    assert max(endpoint.answered.values()) == 1


@pytest.mark.parametrize("count", [1, 40])
def test_an_endpoint_that_is_away_too_long(run_command, make_input, count):
    """With nobody listening the run ends with 7 after --max-outage, however few its records."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    done = run_command(
        make_input(count),
        f"--base-url=http://user:{KEY}@127.0.0.1:{port}/v1",
        "--model=m",
        "--max-outage=0.1",
    )
    assert done.returncode == 7, done.stderr
    assert is_clean(done.stderr)
    assert f"127.0.0.1:{port}" in done.stderr
    assert "same command again" in done.stderr


def test_an_output_in_use_is_left_alone(run_command, start, make_input, endpoint, options):
    """A second run on the same output ends at once with 4 and sends nothing."""
    path = make_input(1)
    endpoint.behave = lambda _: Reply(fault="hang")
    first = start(path, *options)
    wait_until(lambda: endpoint.count == 1, first)
    second = run_command(path, *options)
    assert second.returncode == 4
    assert is_clean(second.stderr)
    assert endpoint.count == 1


def test_a_damaged_output_is_left_alone(run_command, make_input, endpoint, options):
    """An output that is not what was written ends the run with 5, unchanged, nothing sent."""
    path = make_input(5)
    output = path.with_name("input.captions.jsonl")
    assert run_command(path, *options).returncode == 0
    damaged = b"garbage\n" + output.read_bytes()[20:]
    output.write_bytes(damaged)
    done = run_command(path, *options)
    assert done.returncode == 5, done.stderr
    assert is_clean(done.stderr)
    assert output.read_bytes() == damaged
    assert endpoint.count == 5


def test_names_from_the_endpoint_cannot_command_the_terminal(run_command, make_input, endpoint):
    """A server with hostile model names fails the run, not the terminal."""
    endpoint.models = ["a\x1b[2J", "b\nforged line"]
    done = run_command(make_input(1), f"--base-url={endpoint.base_url}")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def _own_signals() -> Iterator[None]:
    """The command's handlers do not stay in the process of the tests."""
    before = {number: signal.getsignal(number) for number in captioner.cli.session.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_own_signals")
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("x is wrong"), 2),
        (EndpointRefusedError("x is wrong"), 2),
        (OutputBusyError("x is wrong"), 4),
        (OutputDamagedError("x is wrong"), 5),
        (EndpointGaveOutError("x is wrong"), 7),
        (DiskError("x is wrong"), 9),
        (CaptionerError("x is wrong"), 1),
        (ZeroDivisionError("x is wrong"), 1),
    ],
)
def test_every_error_has_its_exit_code(monkeypatch, capsys, error, code):
    """Scripts can tell by the exit code what to do; people get one line."""

    async def fail(*_: object, **__: object) -> None:
        await asyncio.sleep(0)
        raise error

    monkeypatch.setattr(captioner.cli.session, "run_batch", fail)
    assert captioner.cli.session.run_in_console(Settings.create("in.jsonl")) == code
    out, err = capsys.readouterr()
    assert not out
    assert "x is wrong" in err
    assert len(err.splitlines()) == 1
    assert ("--debug" in err) == (type(error) is ZeroDivisionError)


@pytest.mark.usefixtures("_own_signals")
def test_debug_shows_where_an_internal_error_happened(monkeypatch):
    """--debug lets the stack trace through, for a report."""

    async def fail(*_: object, **__: object) -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    monkeypatch.setattr(captioner.cli.session, "run_batch", fail)
    with pytest.raises(ZeroDivisionError):
        captioner.cli.session.run_in_console(Settings.create("in.jsonl"), debug=True)


# -- signals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_a_signal_drains_and_the_next_run_continues(
    run_command, start, make_input, endpoint, options, number, code
):
    """Stopped midway, nothing is lost and nothing is called twice."""
    path = make_input(150)
    endpoint.latency_s = 0.05
    endpoint.on_request[20] = lambda: process.send_signal(number)
    process = start(path, *options, "--concurrency=8")
    _, error = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code, error
    assert is_clean(error)
    assert "stopping: " in error
    assert "continue: " in error
    given = endpoint.given
    assert 20 <= given < 150
    assert endpoint.count == given, "everything on the wire was waited for"
    assert len(rows(path.with_name("input.captions.jsonl"))) == given
    endpoint.latency_s = 0
    done = run_command(path, *options)
    assert done.returncode == 0
    assert f"{150 - given} captioned" in done.stderr
    assert endpoint.given == endpoint.count == 150
    assert max(endpoint.answered.values()) == 1
    captions = rows(path.with_name("input.captions.jsonl"))
    assert [row["id"] for row in captions] == list(range(150))


def test_a_second_signal_gives_up_what_is_in_flight(start, make_input, endpoint, options):
    """Asked twice, the run does not wait for answers that do not come; what it had is kept."""
    path = make_input(20)
    endpoint.behave = lambda call: Reply(fault="hang") if call.number > 5 else None
    process = start(path, *options, "--concurrency=4", "--drain=600")
    wait_until(lambda: endpoint.count == 9, process)
    process.send_signal(signal.SIGTERM)
    assert "stopping: 4 requests" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) == 143
    assert len(rows(path.with_name("input.captions.jsonl"))) == 5


def test_a_drain_has_an_end(start, make_input, endpoint, options):
    """Answers that do not come within --drain are given up without a second signal."""
    path = make_input(4)
    endpoint.behave = lambda call: Reply(fault="hang") if call.number > 1 else None
    process = start(path, *options, "--concurrency=1", "--drain=0.1")
    wait_until(lambda: endpoint.count == 2, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) == 130
    assert len(rows(path.with_name("input.captions.jsonl"))) == 1


def test_a_signal_while_the_endpoint_is_asked_for_its_model(start, make_input):
    """Ctrl-C works before the first record, too: at a server that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(LIMIT_S)
        process = start(make_input(1), f"--base-url=http://127.0.0.1:{server.getsockname()[1]}/v1")
        connection, _ = server.accept()
        with connection:
            assert connection.recv(4).startswith(b"GET ")
            process.send_signal(signal.SIGINT)
            assert process.wait(LIMIT_S) == 130


def test_a_run_under_nohup_outlives_its_terminal(make_input, endpoint, options):
    """SIGHUP that was ignored when the run began stays ignored."""
    path = make_input(100)
    endpoint.latency_s = 0.02
    process = start_and(
        lambda process: process.send_signal(signal.SIGHUP), endpoint, 5,
        ["/bin/sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *command(path, *options)], text=True,
    )  # fmt: skip
    try:
        _, error = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, error
    assert "100 captioned" in error


def test_nobody_has_to_read_what_is_said(start, make_input, endpoint, options):
    """A reader of stderr that goes away (`2>&1 | head`) does not end the run or change its code."""
    path = make_input(50)
    endpoint.latency_s = 0.02

    def close() -> None:
        process.stderr.close()

    endpoint.on_request[5] = close
    process = start(path, *options, "--concurrency=4")
    code = process.wait(LIMIT_S)
    process.stderr = None
    assert len(rows(path.with_name("input.captions.jsonl"))) == 50
    assert code == 0


# -- the display -------------------------------------------------------------------------------


def test_on_a_terminal_progress_is_live(start, make_input, endpoint, options):
    """At a terminal numbers move while the run goes on, and the summary is what stays."""
    path = make_input(30)
    endpoint.hold = True
    ours, theirs = pty.openpty()
    try:
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "60"}
        process = start(path, *options, "--concurrency=1", stderr=theirs, env=env)
        os.close(theirs)
        shown = b""
        while b"in flight" not in shown:
            shown += os.read(ours, 65536)
        endpoint.hold = False
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:  # how a terminal ends on Linux
                break
            if not more:
                break
            shown += more
    finally:
        os.close(ours)
    assert process.wait(LIMIT_S) == 0
    assert b"ETA" in shown
    assert b"30 captioned" in shown.rpartition(b"\x1b[")[2]


def test_an_input_of_a_name_with_spaces_is_quoted(run_command, make_input, options, tmp_path):
    """The command that the summary shows works as it stands, whatever the file is called."""
    path: Path = make_input(1, "my input.jsonl")
    (tmp_path / "images" / "0.jpg").unlink()
    done = run_command(path, *options)
    assert f"'{path}' --retry failed" in done.stderr
