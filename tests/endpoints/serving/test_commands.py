"""``captioner serve MODEL``, ``captioner models``, and what is proposed without an endpoint."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import command
from waiting import wait_until

from captioner import Progress, run_batch
from captioner.endpoints.serving.machine import Gpu, Machine, choose, known_models, propose
from captioner.endpoints.serving.running import RunningServer, ServerState
from captioner.errors import SettingsError


@pytest.fixture
def serve(started) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Run ``captioner serve`` and return the process and its first line."""
    running: list[subprocess.Popen[str]] = []

    def run(*arguments: object) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            command("serve", *arguments, "--port", 0), stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        return process, process.stdout.readline()

    yield run
    for process in running:
        process.kill()
        process.communicate()


def test_other_runs_find_the_server_of_captioner_serve(
    serve, started, records, run_command
) -> None:
    """They do not stop it; the signal does."""
    process, line = serve("vllm:org/m")
    assert line.startswith("Serving http://127.0.0.1:")
    assert "(model org/m; Ctrl-C stops it)" in line
    for model in ("vllm:org/m", "org/m"):
        source = records(["What is it?", f"What is it of {model}?"])
        found = run_command(source, "-o", source.with_name(f"{len(model)}.jsonl"), "--serve", model)
        assert found.returncode == 0, found.stderr
        assert "using the server that captioner serve runs at" in found.stderr
    assert len(started.left) == len(started.all) == 1
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0
    assert not started.left


@pytest.mark.parametrize(
    ("own", "asked", "is_meant"),
    [
        ("vllm:org/m", "vllm:org/m", True),
        ("vllm:org/m", "org/m", True),
        ("org/m", "vllm:org/m", True),
        ("vllm:org/m", "sglang:org/m", False),
        ("vllm:org/m", "vllm:org/other", False),
        ("ollama:qwen2.5vl:7b", "qwen2.5vl:7b", True),
    ],
)
def test_a_run_finds_the_server_of_its_model(own, asked, is_meant) -> None:
    state = ServerState(own, "its name", "http://127.0.0.1:1/v1", state="ready", shared=True)
    assert state.serves(asked) == is_meant
    assert not replace(state, shared=False).serves(asked)
    assert not replace(state, state="failed").serves(asked)


async def test_a_run_waits_for_a_server_that_starts(started, records, endpoint) -> None:
    """It does not start a second one, for which there is no memory."""
    port = urlsplit(endpoint.base_url).port
    state = ServerState("vllm:org/m", "org/m", endpoint.base_url, shared=True)
    running = RunningServer(port, state)
    progress = Progress()
    run = asyncio.create_task(
        run_batch(records(["What is it?"]), serve="vllm:org/m", progress=progress)
    )
    while progress.waiting != "the server of captioner serve starts":
        await asyncio.sleep(0.01)
    running.change(state="ready")
    assert (await run).captioned == 1
    running.close()
    assert not started.all


def test_a_server_of_captioner_serve_dies_with_it(serve, started, records, run_command) -> None:
    """The next run starts one of its own, and removes what was left of the state."""
    process, _ = serve("vllm:org/m")
    process.kill()
    process.wait()
    wait_until(lambda: not started.left)
    assert run_command(records(["What is it?"]), "--serve", "vllm:org/m").returncode == 0
    assert len(started.all) == 2
    assert not started.left


def test_a_server_that_is_stopped_during_a_run_ends_it(
    serve, started, records, monkeypatch
) -> None:
    """The run is finished later, with a server of its own."""
    monkeypatch.setenv("FAKE_SECONDS", "0.2")
    process, _ = serve("vllm:org/m")
    source = records([f"What is in image {number}?" for number in range(200)])
    words = command(source, "--serve", "vllm:org/m", "--concurrency", 4)
    running = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    output = source.with_name("in.captions.jsonl")
    wait_until(lambda: output.exists() and output.stat().st_size > 0, running)
    process.send_signal(signal.SIGTERM)
    _, said = running.communicate()
    assert running.returncode == 7
    assert "The server was stopped" in said
    monkeypatch.setenv("FAKE_SECONDS", "0")
    assert subprocess.run(words, check=False).returncode == 0
    assert output.read_text().count("\n") == 200


def test_an_endpoint_for_other_programs(serve) -> None:
    _, line = serve("llamacpp:m.gguf")
    with urllib.request.urlopen(f"{line.split()[1]}/models") as reply:
        assert json.load(reply)["data"][0]["id"] == "m.gguf"


def test_a_port_that_is_taken_is_said_at_once(serve, started, endpoint, run_command) -> None:
    """By another server of captioner, whose lock is held, and by a program that may be healthy."""
    _, line = serve("vllm:org/m")
    for taken in (line.split()[1], endpoint.base_url):
        port = urlsplit(taken).port
        found = run_command("serve", "vllm:org/m", "--port", port)
        assert found.returncode == 2
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in found.stderr
    assert len(started.left) == len(started.all) == 1


def test_two_servers_cannot_have_one_port(started) -> None:
    """The second does not wait for the first, which runs for days."""
    state = ServerState("vllm:org/m", "org/m", "http://127.0.0.1:18/v1", shared=True)
    running = RunningServer(18, state)
    with pytest.raises(SettingsError, match="another captioner has port 18: choose another"):
        RunningServer(18, state)
    running.close()
    RunningServer(18, state).close()


def test_models_shows_licences_and_memory(started, run_command) -> None:
    shown = run_command("models")
    assert shown.returncode == 0
    for model in known_models():
        (line,) = [one for one in shown.stdout.splitlines() if one.startswith(f"{model.name} ")]
        assert model.licence in line
        assert f"{model.memory:g} GB" in line
    found = json.loads(run_command("models", "--json").stdout)
    assert [one["name"] for one in found] == [model.name for model in known_models()]


def test_models_are_of_every_size_and_ordered() -> None:
    memory = [model.memory for model in known_models()]
    assert memory == sorted(memory)
    assert {model.size for model in known_models()} == {"small", "middle", "large"}
    assert all(model.memory_4bit < model.memory for model in known_models())


def with_gpu(memory: float, *installed: str) -> Machine:
    return Machine((Gpu("0", "NVIDIA L4", memory),), apple=False, memory=64, installed=installed)


APPLE = Machine((), apple=True, memory=32, installed=("llamacpp",))
PLAIN = Machine((), apple=False, memory=16, installed=())


@pytest.mark.parametrize(
    ("machine", "serve", "install"),
    [
        (with_gpu(24.1, "vllm", "ollama"), "vllm:qwen3-vl-8b", ""),
        (with_gpu(24.1, "ollama"), "ollama:qwen3-vl-8b", ""),
        (with_gpu(12.0, "vllm"), "vllm:qwen3-vl-2b", ""),
        (with_gpu(24.1), "vllm:qwen3-vl-8b", "pip install vllm"),
        (APPLE, "llamacpp:qwen3-vl-8b", ""),
        (PLAIN, "llamacpp:smolvlm2-2.2b", "brew install llama.cpp"),
    ],
)
def test_what_works_on_a_machine_is_proposed(machine, serve, install) -> None:
    found = propose(machine)
    assert found.serve == serve
    assert found.install.startswith(install)
    assert bool(found.install) == bool(install)


@pytest.mark.parametrize(
    ("model", "machine", "chosen"),
    [
        ("qwen3-vl-8b", with_gpu(24, "vllm"), ("vllm", "Qwen/Qwen3-VL-8B-Instruct")),
        ("qwen3-vl-8b", with_gpu(24, "ollama"), ("ollama", "qwen3-vl:8b-instruct")),
        ("qwen3-vl-8b", APPLE, ("llamacpp", "Qwen/Qwen3-VL-8B-Instruct-GGUF")),
        ("org/model", with_gpu(24, "sglang", "transformers"), ("sglang", "org/model")),
        ("org/model-GGUF", APPLE, ("llamacpp", "org/model-GGUF")),
        ("gemma3:4b", with_gpu(24, "vllm", "ollama"), ("ollama", "gemma3:4b")),
        ("llama4:scout", with_gpu(96, "vllm", "ollama"), ("ollama", "llama4:scout")),
    ],
)
def test_a_model_without_a_server_gets_one_that_is_installed(model, machine, chosen) -> None:
    assert choose(model, machine) == chosen


def test_a_model_that_is_not_known() -> None:
    with pytest.raises(SettingsError, match="Did you mean qwen3-vl-8b"):
        choose("qwen3-vl-8", APPLE)
    with pytest.raises(SettingsError, match=r"no server llamcpp\. Did you mean llamacpp"):
        choose("llamcpp:models/m.gguf", APPLE)
    with pytest.raises(SettingsError, match="pip install vllm, or pip install sglang"):
        choose("org/model", with_gpu(24))


def test_without_an_endpoint_the_command_proposes_what_works(
    started, tmp_path: Path, run_command, records
) -> None:
    (tmp_path / "bin/nvidia-smi").write_text("#!/bin/sh\necho '0, NVIDIA L4, 23034'\n")
    (tmp_path / "bin/nvidia-smi").chmod(0o755)
    said = run_command(records(["What is it?"]))
    assert said.returncode == 2
    assert "--serve vllm:qwen3-vl-8b " in said.stderr
    assert "(NVIDIA L4 with 24 GB)" in said.stderr
