"""What a run that continues an output takes from it, given its own options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from captioner.settings.remembered import recalled, remembered
from captioner.settings.settings import Settings


@pytest.mark.parametrize(
    ("kept", "given", "wanted"),
    [
        pytest.param(
            {"budget": 5.0, "budget_tokens": 1e6, "renew_budget": True},
            {},
            {"budget_per_run": "5.0usd,1000000tok"},
            id="a budget of each run is said as such",
        ),
        pytest.param(
            {"budget": 5.0, "renew_budget": True}, {"budget": 2.0}, {"budget": 2.0},
            id="another budget replaces it",
        ),
        pytest.param({"cache": "/c", "model": "m"}, {"redo": "all"}, {"model": "m", "redo": "all"},
            id="what is captioned again is not answered from a cache"),
        pytest.param({"cache": "/c"}, {"retry": "failed"}, {"retry": "failed"},
            id="nor what is retried"),
        pytest.param(
            {"serve": "m.gguf", "model": "m", "api_key_env": ["K"]},
            {"base_url": ("http://127.0.0.1:1/v1",)},
            {"base_url": ("http://127.0.0.1:1/v1",), "model": "m"},
            id="an address replaces a server, its key and its arguments",
        ),
        pytest.param(
            {"base_url": ["http://127.0.0.1:1/v1"], "model": "m"}, {"serve": "n"}, {"serve": "n"},
            id="a server replaces an address and its model",
        ),
        pytest.param({"of_tomorrow": 1, "model": "m"}, {}, {"model": "m"},
            id="an option that this version does not know is left out"),
        pytest.param({"prompt": "p"}, {"accept_changes": True}, {"accept_changes": True},
            id="with accept_changes the given ones are complete"),
        pytest.param(
            {"prompt": "p"}, {"accept_changes": True, "accept_edits": True},
            {"prompt": "p", "accept_changes": True, "accept_edits": True},
            id="but edits of rows change no option",
        ),
    ],
)  # fmt: skip
def test_what_is_taken(kept: dict[str, Any], given: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert recalled(kept, given) == wanted


def test_a_seed_is_kept_if_it_chooses_prompts() -> None:
    """Of a sample it is the run's; of a mix of prompts the next run needs the same."""
    mixed = Settings.create("in.jsonl", prompt_mix=("1=One?", "2=Two?"), seed=7)
    assert remembered(mixed)["seed"] == 7
    assert "seed" not in remembered(Settings.create("in.jsonl", sample=3, seed=7))


def test_paths_are_kept_for_runs_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    kept = remembered(Settings.create("in.jsonl", image_root="images", cache="cache"))
    assert kept["image_root"] == str(tmp_path / "images")
    assert kept["cache"] == str(tmp_path / "cache")
