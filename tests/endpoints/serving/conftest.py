from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import jpeg
from fake_servers import install
from starts import Started


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Started:
    """Put the fakes first in PATH, and the state of servers into a folder of this test.

    The working directory has a model m.gguf, and there is no hub.
    """
    log = tmp_path / "starts.log"
    folder = install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("FAKE_LOG", str(log))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.gguf").touch()
    monkeypatch.setattr("captioner.endpoints.serving.server.LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr("captioner.endpoints.serving.server.READY_POLL_S", 0.02)
    monkeypatch.setattr("captioner.endpoints.serving.quarantine.POLL_S", 0.02)
    return Started(log)


@pytest.fixture
def records(tmp_path: Path) -> Callable[..., Path]:
    """Write an input of records whose questions are given, each with an image of its own."""

    def write(questions: list[str]) -> Path:
        path = tmp_path / "in.jsonl"
        lines = []
        for number, question in enumerate(questions):
            (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
            lines.append(json.dumps({"image": f"{number}.jpg", "prompt": question}) + "\n")
        path.write_text("".join(lines))
        return path

    return write
