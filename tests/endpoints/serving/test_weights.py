"""Weights for llama.cpp from a hub on this machine, through the real huggingface_hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub import serving

from captioner import Progress, SettingsError, run_batch
from captioner.endpoints.serving.weights import choose

FILES = {
    "README.md": b"a model",
    "Cat-Q4_K_M.gguf": b"GGUF" + bytes(3_000_000),
    "Cat-Q8_0.gguf": b"GGUF" + bytes(5_000_000),
    "mmproj-Cat-BF16.gguf": b"GGUF",
    "mmproj-Cat-F16.gguf": b"GGUF" + bytes(1_000),
}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")


async def run(source: Path, model: str, name: str = "out.jsonl") -> None:
    report = await run_batch(source, source.with_name(name), serve=f"llamacpp:{model}")
    assert report.captioned == 1


async def test_model_and_projector_are_downloaded_once(started, records, monkeypatch) -> None:
    """The second run needs no network."""
    source = records(["What is it?"])
    with serving("org/Cat-GGUF", FILES, "models") as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        await run(source, "org/Cat-GGUF")
    await run(source, "org/Cat-GGUF", "2.jsonl")
    for path, name in (("-m", "Cat-Q4_K_M.gguf"), ("--mmproj", "mmproj-Cat-F16.gguf")):
        for given in map(Path, started.argument(path)):
            assert given.name == name
            assert given.read_bytes() == FILES[name]
    assert started.argument("--alias") == ["org/Cat-GGUF"] * 2


async def test_a_quantization_is_chosen_by_its_name(started, records, monkeypatch) -> None:
    with serving("org/Cat-GGUF", FILES, "models") as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        await run(records(["What is it?"]), "org/Cat-GGUF:Q8_0")
    assert [Path(path).name for path in started.argument("-m")] == ["Cat-Q8_0.gguf"]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("org/Cat-GGUF:Q2_K", r"the repository has Cat-Q4_K_M\.gguf, Cat-Q8_0\.gguf"),
        ("org/Dog-GGUF", r"(no repository org/Dog-GGUF|cannot be reached)"),
    ],
)
async def test_what_the_hub_does_not_have(model, said, started, records, monkeypatch) -> None:
    with serving("org/Cat-GGUF", FILES, "models") as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(SettingsError, match=f"{model} cannot be downloaded: .*{said}"):
            await run(records(["What is it?"]), model)
    assert not started.all


async def test_without_a_network_the_message_says_so(started, records, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SettingsError, match=r"the hub cannot be reached\. Check the network"):
        await run(records(["What is it?"]), "org/Cat-GGUF")


async def test_the_progress_of_a_download_is_shown(started, records, monkeypatch) -> None:
    shown: list[str] = []

    class Watched(Progress):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "waiting":
                shown.append(str(value))

    with serving("org/Cat-GGUF", FILES, "models") as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        source = records(["What is it?"])
        await run_batch(source, serve="llamacpp:org/Cat-GGUF", progress=Watched())
    assert any("org/Cat-GGUF is downloaded: " in line and "% of 0.00 GB" in line for line in shown)


def test_all_parts_of_a_model_are_chosen() -> None:
    parts = [f"m-Q4_K_M-0000{part}-of-00002.gguf" for part in (1, 2)]
    assert choose([*reversed(parts), "m-Q8_0.gguf"], "") == (parts, None)
    assert choose(["m-IQ3.gguf", "mmproj.gguf"], "") == (["m-IQ3.gguf"], "mmproj.gguf")
    with pytest.raises(ValueError, match="no GGUF files"):
        choose(["README.md"], "")
