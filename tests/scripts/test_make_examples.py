from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from captioner.endpoints.offline.describe import describe_file

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_examples.py"


def run(folder):
    return subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples") / "new" / "demo"
    run(folder)
    return folder


def listed(folder):
    return [json.loads(line) for line in (folder / "input.jsonl").read_text().splitlines()]


def drawn(record):
    image = record["image"]
    return image[0] if isinstance(image, list) else image


def test_every_listed_image_is_there_and_decodes(examples):
    """No demo image is missing or broken."""
    names = [drawn(record) for record in listed(examples)]
    assert len(names) == 10
    for name in names:
        with Image.open(examples / name) as image:
            image.load()
            assert min(image.size) >= 300
    written = {path.name for path in (examples / "images").iterdir()}
    assert written == {Path(name).name for name in names}


def test_the_input_mixes_the_forms_that_data_sets_come_in(examples):
    """The demo shows each record form that the engine reads."""
    records = listed(examples)
    ask = "Generate detailed captions based on image content."
    seed = {"image": ["./images/astronaut.jpg"]}
    assert records[0] == seed | {"conversation": [{"from": "human", "value": ask}]}
    assert any("messages" in record for record in records)
    assert any("prompt" in record and record["id"] == 7 for record in records)
    assert any(set(record) == {"image"} for record in records)
    assert any("<image>" in json.dumps(record) for record in records)


def test_the_same_files_are_written_every_time(examples, tmp_path):
    """The script writes the same data set every time, and says what it wrote."""
    done = run(tmp_path)
    assert done.stdout.count("\n") == 1
    assert "10 records" in done.stdout

    def digests(folder):
        return {
            path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file()
        }

    assert digests(tmp_path) == digests(examples)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("concert.png", ["SUMMER JAZZ", "NIGHT", "Friday 12 June", "Riverside Park"]),
        ("hours.png", ["Old Mill Bakery", "Opening hours", "Saturday / 7:00 - 14:00"]),
        ("warning.png", ["DANGER", "Falling rocks", "Stay on the marked trail"]),
        ("slide.png", ["Faster captions, lower cost", "Resume after a crash"]),
    ],
)
def test_the_words_of_each_poster_are_in_its_caption(examples, name, words):
    """The demo's posters show what the offline describer is good at."""
    caption, _ = describe_file((examples / "images" / name).read_bytes())
    for word in words:
        assert word in caption


def test_no_text_is_imagined_in_the_photographs_without_any(examples):
    """A cup, a cat's eye or a star is not reported as a letter."""
    for name in ("cat.jpg", "coffee.jpg", "galaxies.jpg", "rocket.jpg"):
        caption, _ = describe_file((examples / "images" / name).read_bytes())
        assert "text" not in caption
