"""``--serve`` with commands that behave as real servers do, and with transformers where it is."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import command, rows
from waiting import wait_until

from captioner import Captioner, Progress, Settings, SettingsError, run_batch
from captioner.core.cancellation import CancelToken
from captioner.core.errors import EndpointGaveOutError
from captioner.endpoints.serving.running import running_servers

CAPTION = "A red cat sits on a grey mat."


def questions(count: int) -> list[str]:
    return [f"What is in image {number}?" for number in range(count)]


@pytest.mark.parametrize(
    "serve", ["vllm:org/m", "sglang:org/m", "llamacpp:m.gguf", "ollama:qwen2.5vl:7b"]
)
async def test_a_run_starts_a_server_and_stops_it(
    serve, started, records, monkeypatch, tmp_path
) -> None:
    """The server gets no key, listens on this machine only, and is gone afterwards."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-user")
    monkeypatch.setenv("HF_TOKEN", "hf_needed_for_gated_models")
    monkeypatch.setenv("CAPTIONER_HEADER", "X-Account: private-of-the-user")
    report = await run_batch(records(questions(20)), serve=serve)
    assert (report.captioned, report.failed) == (20, 0)
    (one,) = started.all
    assert "CAPTIONER_HEADER" not in one["env"]
    assert one["env"]["HF_TOKEN"] == "hf_needed_for_gated_models"
    assert "OPENAI_API_KEY" not in one["env"]
    host = one["env"].get("OLLAMA_HOST", "").partition(":")[0] or started.argument("--host")[0]
    assert host == "127.0.0.1"
    assert not started.left
    assert not list((tmp_path / "state/captioner/servers").iterdir())


async def test_arguments_of_the_user_come_last_and_win(started, records) -> None:
    source = records(questions(2))
    await run_batch(source, serve="vllm:org/m", serve_args="--max-model-len 777", replicas=2)
    for one in started.all:
        assert one["argv"][-2:] == ["--max-model-len", "777"]
    assert len(set(started.argument("--port"))) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--port 1234", "leave --host and --port out"),
        ("--max-num-seqs 2 --host=0.0.0.0", "leave --host and --port out"),
        ("--api-key=abc", "leave --api-key out"),
    ],
)
async def test_arguments_with_which_a_run_would_not_reach_the_server_are_refused(
    arguments, said, started, records
) -> None:
    with pytest.raises(SettingsError, match=said):
        await run_batch(records(questions(1)), serve="vllm:org/m", serve_args=arguments)
    assert not started.all


@pytest.mark.parametrize("model", ["llamacpp:missing.gguf", "vllm:/missing/folder", "vllm:~/none"])
async def test_a_file_that_is_missing_is_named(model, started, records) -> None:
    with pytest.raises(SettingsError, match=f"no file or folder {model.partition(':')[2]}"):
        await run_batch(records(questions(1)), serve=model)
    assert not started.all


async def test_a_tilde_is_the_home_folder(started, records, tmp_path, monkeypatch) -> None:
    """Shells do not expand it after a colon."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (await run_batch(records(questions(1)), serve="llamacpp:~/m.gguf")).captioned == 1
    assert started.argument("-m") == [str(tmp_path / "m.gguf")]


async def test_one_server_for_each_gpu(started, records, tmp_path) -> None:
    """Each sees its own GPU; with two for a model there are half as many."""
    smi = tmp_path / "bin/nvidia-smi"
    smi.write_text('#!/bin/sh\nfor i in 0 1 2 3; do echo "$i, NVIDIA L4, 23034"; done\n')
    smi.chmod(0o755)
    await run_batch(records(questions(8)), serve="vllm:org/m")
    assert sorted(one["env"]["CUDA_VISIBLE_DEVICES"] for one in started.all) == list("0123")
    before = len(started.all)
    await run_batch(
        records(questions(8)),
        tmp_path / "2.jsonl",
        serve="vllm:org/m",
        serve_args="--tensor-parallel-size 2",
    )
    both = [one["env"]["CUDA_VISIBLE_DEVICES"] for one in started.all[before:]]
    assert sorted(both) == ["0,1", "2,3"]


async def test_a_server_that_does_not_start_shows_its_last_lines(
    started, records, monkeypatch
) -> None:
    monkeypatch.setenv("FAKE_BROKEN", "ValueError: There is no module 'm' in org/m")
    with pytest.raises(SettingsError, match=r"ended with status 1(.|\n)*no module 'm'"):
        await run_batch(records(questions(1)), serve="vllm:org/m")
    assert len(started.all) == 1


async def test_without_a_network_the_message_says_so(started, records, monkeypatch) -> None:
    monkeypatch.setenv(
        "FAKE_BROKEN",
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files",
    )
    with pytest.raises(SettingsError, match="cannot be downloaded: check the network"):
        await run_batch(records(questions(1)), serve="vllm:org/m")


async def test_a_model_that_ollama_does_not_have(started, records) -> None:
    with pytest.raises(SettingsError, match="file does not exist"):
        await run_batch(records(questions(1)), serve="ollama:missing:7b")
    assert not started.left


async def test_a_server_that_is_not_installed(started, records, tmp_path) -> None:
    (tmp_path / "bin/vllm").unlink()
    with pytest.raises(SettingsError, match="pip install vllm"):
        await run_batch(records(questions(1)), serve="vllm:org/m")


@pytest.mark.parametrize(
    ("serve", "memory", "argument", "values"),
    [
        ("vllm:org/m", 9_000 * 8, "--max-num-seqs", ["32", "16", "8"]),
        ("vllm:org/m", 9_000, "--max-model-len", ["16384", "8192", "4096", "4096", "4096"]),
        ("llamacpp:m.gguf", 4 * 4_096, "--parallel", ["8", "4"]),
    ],
)
async def test_too_little_memory_lowers_the_servers_limits(
    serve, memory, argument, values, started, records, monkeypatch
) -> None:
    monkeypatch.setenv("FAKE_MEMORY", str(memory))
    said: list[str] = []
    report = await run_batch(records(questions(3)), serve=serve, warn=said.append)
    assert report.captioned == 3
    seen = started.argument(argument)
    assert seen[: len(values)] == values[: len(seen)]
    assert len(seen) > 1
    assert any("too little memory: starting it with" in line for line in said)


async def test_a_batch_that_uses_up_the_memory_lowers_the_servers_limits(
    started, records, short_pauses
) -> None:
    """No record fails for it: the server takes less at once from then on."""
    asked = questions(30)
    asked[3] = "TOO LARGE"
    report = await run_batch(records(asked), serve="vllm:org/m", concurrency=4)
    assert (report.captioned, report.failed) == (30, 0)
    assert started.argument("--gpu-memory-utilization") == ["0.90", "0.85", "0.80"]
    assert started.argument("--max-num-seqs") == ["4", "2", "1"]


async def test_memory_that_never_suffices_is_said(started, records, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_MEMORY", "100")
    with pytest.raises(SettingsError, match="choose a smaller model"):
        await run_batch(records(questions(1)), serve="vllm:org/m")


async def test_a_server_that_the_system_kills_at_its_start_lacks_memory(
    started, records, monkeypatch
) -> None:
    """The system writes nothing into its log."""
    monkeypatch.setenv("FAKE_KILLED", "1")
    with pytest.raises(SettingsError, match=r"killed by signal 9(.|\n)*memory was used up: choose"):
        await run_batch(records(questions(1)), serve="llamacpp:m.gguf")


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_server_killed_in_mid_run_is_started_again(
    processes, started, records, monkeypatch
) -> None:
    """Nothing is lost, nothing fails, and all is said."""
    monkeypatch.setenv("FAKE_SECONDS", "0.05")
    progress, said = Progress(), []
    running = asyncio.create_task(
        run_batch(
            records(questions(120)),
            serve="vllm:org/m",
            progress=progress,
            warn=said.append,
            concurrency=8,
            processes=processes,
        )
    )
    while progress.captioned < 20:
        await asyncio.sleep(0.01)
    os.kill(started.all[-1]["pid"], signal.SIGKILL)
    report = await running
    assert (report.captioned, report.failed, report.pending) == (120, 0, 0)
    assert len(started.all) == 2
    assert any("was killed by signal 9" in line for line in said)
    ports = set(started.argument("--port"))
    assert len(ports) == 1
    assert not started.left


@pytest.mark.parametrize("processes", [1, 2])
async def test_the_record_that_kills_the_server_fails_alone(
    processes, started, records, short_pauses
) -> None:
    """Two records kill it; every other one gets its caption."""
    asked = questions(60)
    asked[5], asked[40] = "KILL", "DEAD ENGINE"
    report = await run_batch(
        records(asked), serve="vllm:org/m", processes=processes, concurrency=16
    )
    assert (report.captioned, report.failed) == (58, 2)
    assert report.codes == {"server_died": 2}
    failed = rows(Path(report.failures))
    assert {row["line"] for row in failed} == {6, 41}
    messages = " ".join(row["message"] for row in failed)
    assert "killed by signal 9" in messages
    assert "ended with status 0" in messages
    assert 4 <= len(started.all) <= 7  # each record may have three deaths, and some are shared


async def test_a_server_that_cannot_be_started_again_ends_the_run(
    started, records, monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("FAKE_BROKEN", "RuntimeError: No CUDA GPUs are available")
    monkeypatch.setenv("FAKE_BROKEN_FROM", "2")
    asked = [*questions(40), "KILL"]
    with pytest.raises(EndpointGaveOutError, match="5 starts of the server failed") as caught:
        await run_batch(records(asked), serve="vllm:org/m", concurrency=4)
    assert caught.value.exit_code == 7
    assert caught.value.report.captioned == len(rows(tmp_path / "in.captions.jsonl"))
    assert len(started.all) == 6


async def test_a_server_that_hangs_is_started_again(started, records, monkeypatch) -> None:
    """It says that it is healthy, but works on a request without progress."""
    monkeypatch.setattr("captioner.endpoints.serving.pulse.HANG_S", 1.0)
    monkeypatch.setattr("captioner.endpoints.serving.server.WATCH_S", 0.1)
    said: list[str] = []
    report = await run_batch(
        records([*questions(9), "STALL"]), serve="vllm:org/m", concurrency=4, warn=said.append
    )
    assert (report.captioned, report.failed) == (9, 1)
    assert report.codes == {"server_died": 1}
    assert any("made no progress for 1.0 s and was ended" in line for line in said)


async def test_a_run_that_is_cancelled_while_the_server_starts_leaves_none(
    started, records, monkeypatch
) -> None:
    """The display says meanwhile what the server does."""
    cancel, progress = CancelToken(), Progress()
    monkeypatch.setattr("captioner.endpoints.serving.server.Server._health", _never)
    running = asyncio.create_task(
        run_batch(records(questions(1)), serve="vllm:org/m", progress=progress, cancel=cancel)
    )
    while "Starting to load model" not in progress.waiting:
        await asyncio.sleep(0.01)
    cancel.request()
    report = await running
    assert report.stopped == "interrupted"
    assert not started.left


async def _never(_: object) -> bool:
    return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_is_left_however_captioner_ends(how, started, records, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.05")
    source = records(questions(400))
    output = source.with_name("in.captions.jsonl")
    arguments = (source, "--serve", "vllm:org/m", "--concurrency", 8)
    first = subprocess.Popen(command(*arguments), start_new_session=True)
    wait_until(lambda: output.exists() and output.read_text().count("\n") > 10, first)
    assert len(started.left) == 1
    os.kill(first.pid, how)
    first.wait()
    wait_until(lambda: not started.left)
    assert not list(running_servers())
    monkeypatch.setenv("FAKE_SECONDS", "0")
    assert subprocess.run(command(*arguments), check=False).returncode == 0
    captions = [row["prompt"] for row in rows(output)]
    assert captions == questions(400)
    assert not started.left


async def test_a_stream_starts_a_server_too(started, records) -> None:
    """So does all else that opens an engine."""
    async with Captioner(serve="vllm:org/m") as captioner:
        assert await captioner.caption(records(questions(1)).with_name("0.jpg")) == CAPTION
        assert started.left
    assert not started.left


def test_serve_excludes_what_names_another_endpoint() -> None:
    for other in (
        {"base_url": "http://localhost:8000/v1"},
        {"offline": True},
        {"engine": "ray"},
        {"batch_api": True},
        {"endpoints": [{"base-url": "http://localhost:8000/v1"}]},
    ):
        with pytest.raises(SettingsError, match="serve: "):
            Settings.create("in.jsonl", serve="vllm:org/m", **other)


async def test_the_report_says_that_requests_queue_for_the_gpu(
    started, records, monkeypatch
) -> None:
    """The server says so at /metrics; captioner sends it no more than makes sense."""
    monkeypatch.setenv("FAKE_SECONDS", "0.1")
    monkeypatch.setattr("captioner.executors.local.LOOK_S", 0.02)
    monkeypatch.setattr("captioner.endpoints.server_load.POLL_S", 0.02)
    report = await run_batch(
        records(questions(200)),
        serve="vllm:org/m",
        serve_args="--max-num-seqs 2",
        concurrency=64,
    )
    assert (report.captioned, report.failed) == (200, 0)
    assert report.held_by == "gpu"
