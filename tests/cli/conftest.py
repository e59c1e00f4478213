from __future__ import annotations

import pytest


@pytest.fixture
def no_option_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite sends no test image; here the options are those that a test gives."""
    monkeypatch.delenv("CAPTIONER_PROBE", raising=False)
