"""`captioner init`: the commands that it prints work in the new folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import command
from hub import serving

from captioner.cli.init.folder import options_file
from captioner.settings.flags import all_options
from captioner.settings.settings import Settings

BIN = Path(sys.executable).parent


@pytest.mark.timeout(180)
def test_the_commands_that_it_prints_work(tmp_path):
    """Each ends with status 0 and writes a caption for every image."""
    made = subprocess.run(
        command("init", tmp_path / "my project"), capture_output=True, text=True, check=True
    )
    go, first, second = made.stdout.splitlines()
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    for line in (first, second):
        ended = subprocess.run(
            f"{go} && {line}", shell=True, cwd=tmp_path, env=environment, capture_output=True,
            text=True, check=False, timeout=90,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
    for name in ("captions.json", "cache_local/caption_step1.json"):
        found = json.loads((tmp_path / "my project" / name).read_bytes())
        assert [row["image"] for row in found] == [["./ball.png"], ["./sign.png"], ["./chart.png"]]
        assert all(row["caption"] for row in found)
    readme = (tmp_path / "my project" / "README.md").read_text()
    assert first in readme
    assert second in readme


def test_existing_files_are_not_changed(tmp_path):
    (tmp_path / "captioner.toml").write_text("mine")
    made = subprocess.run(
        command("init"), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert made.returncode == 2
    assert "is there already" in made.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["captioner.toml"]


def test_every_option_is_in_the_file_as_a_comment():
    """With its # removed, each line is TOML with an option that captioner accepts."""
    text = options_file()
    assert tomllib.loads(text) == {}
    names = {option.key: option.name for option in all_options().values() if not option.hidden}
    found = {}
    for line in text.splitlines():
        name, equals, _ = line.removeprefix("# ").partition(" = ")
        if equals and name in names:
            found |= tomllib.loads(line.removeprefix("# "))
    assert found.keys() == names.keys()
    for name, value in found.items():
        Settings.create("in.jsonl", "out.jsonl", **{names[name]: value})


@pytest.mark.parametrize("sign", ["^# ", "^# ?", "^#"])
def test_with_every_comment_sign_taken_away_the_file_is_toml(sign):
    """As an editor does that uncomments all lines: the explanations stay comments."""
    names = {option.key for option in all_options().values() if not option.hidden}
    text = re.sub(sign, "", options_file(), flags=re.MULTILINE)
    assert tomllib.loads(text).keys() == names


def test_the_pipeline_needs_nothing_beyond_the_core(tmp_path):
    """The second step of its README, where only what every installation has is there."""
    subprocess.run(command("init", tmp_path / "p"), capture_output=True, check=True)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('pandas', 'pyarrow', 'datasets', 'rapidocr', 'numpy'):\n"
        "    sys.modules[name] = None\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "api_pipelines/image_caption.py"],
        cwd=tmp_path / "p", env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "p/cache_local/caption_step1.json").read_bytes())
    assert all(row["caption"] for row in found)


FILES = {"README.md": b"# images", "images/0.png": b"\x89PNG image"}


@pytest.fixture
def hub() -> Iterator[str]:
    with serving("OpenDCAI/dataflow-demo-image", FILES) as url:
        yield url


def download(folder: Path, hub: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(folder / "hf")}
    return subprocess.run(
        command("init", folder / "project", "--download"),
        env=environment, capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip


def test_the_example_images_of_dataflow_are_fetched_from_the_hub(tmp_path, hub):
    ended = download(tmp_path, hub)
    assert ended.returncode == 0, ended.stderr
    place = tmp_path / "project" / "example_data" / "dataflow-demo-image"
    assert {name: (place / name).read_bytes() for name in FILES} == FILES


def test_an_unreachable_hub_is_an_error_and_the_folder_stays(tmp_path):
    ended = download(tmp_path, "http://127.0.0.1:9")
    assert ended.returncode == 2
    assert "cannot be fetched" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "project" / "captioner.toml").exists()
