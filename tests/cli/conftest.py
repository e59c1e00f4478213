from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from captioner.cli.main import run_command as run_in_process
from captioner.settings import Settings


@pytest.fixture
def no_option_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite sends no test image; here the options are those that a test gives."""
    monkeypatch.delenv("CAPTIONER_PROBE", raising=False)


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Parse arguments and return the settings that a run would get."""
    seen: list[Settings] = []

    def remember(settings: Settings, *, debug: bool, as_json: bool) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr("captioner.cli.session.run_in_console", remember)

    def parse(*arguments: str) -> Settings:
        assert run_in_process(arguments) == 0
        return seen.pop()

    return parse


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Check that arguments are refused as promised and return what is said."""
    monkeypatch.setattr("captioner.cli.session.run_in_console", lambda *_, **__: pytest.fail("ran"))

    def refuse(*arguments: str) -> str:
        assert run_in_process(arguments) == 2
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith("captioner: ")
        assert "Traceback" not in err
        assert len(err.splitlines()) <= 5
        return err

    return refuse
