"""The page of recipes, each command as it is printed, against an endpoint on this machine."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import jpeg, rows
from endpoint import Reply, completion
from photographs import photograph

from captioner.engine.tokens import clip_tokens

PAGE = Path(__file__).parents[2] / "captioner" / "docs" / "recipes.md"
WORDS = [
    "red",
    "blue",
    "green",
    "white",
    "black",
    "yellow",
    "orange",
    "purple",
    "brown",
    "grey",
    "pink",
    "dark",
    "bright",
]
SEARCH = {"alt_text": "A pier.", "keywords": ["sea", "dusk"]}


def commands() -> dict[str, str]:
    """Return the commands of the page, by their first words."""
    blocks = re.findall(r"(?:^ {4}.*\n)+", PAGE.read_text("utf-8"), re.MULTILINE)
    return {block.split(" --")[0].strip(): block.replace("\n    ", "\n") for block in blocks}


COMMANDS = commands()


def texts(folder: Path, suffix: str = "txt") -> dict[str, str]:
    return {path.stem: path.read_text() for path in folder.glob(f"*.{suffix}")}


@pytest.fixture
def run(tmp_path, endpoint):
    """Run the commands that begin with some words, in a shell."""
    there = os.fspath(Path(sys.executable).parent)
    variables = {
        **os.environ,
        "PATH": f"{there}{os.pathsep}{os.environ['PATH']}",
        "CAPTIONER_BASE_URL": endpoint.base_url,
        "CAPTIONER_MODEL": "m",
        "CAPTIONER_PROBE": "false",
    }

    def run(words: str) -> str:
        done = subprocess.run(
            ["bash", "-euc", COMMANDS[words]],
            cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


def make(folder: Path, count: int = 2, data=jpeg) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(data(number))
    return folder


def test_train_a_lora(tmp_path, endpoint, run):
    """Each caption begins with the trigger and fits; what is done is not sent again."""
    dataset = make(tmp_path / "dataset", 3)
    (dataset / "2.txt").write_text("mine")
    wet = (f"Lamp {number} of the long wet street is {word}." for number, word in enumerate(WORDS))
    said = f"An image of the man. The man walks a dog. The street is long. {' '.join(wet)}"
    endpoint.behave = lambda _: Reply(body=completion(said))
    for count in (4, 6):  # each is asked for again once, because of its words and length
        run("captioner dataset/ -o dataset")
        found = texts(dataset)
        assert found.pop("2") == "mine"
        assert set(found.values()) == {found["0"]}
        assert found["0"].startswith("ohwx man, The man walks a dog. The street")
        assert "image of" not in found["0"]
        assert clip_tokens()(found["0"]) <= 75
        assert endpoint.count <= count
        (dataset / "3.jpg").write_bytes(jpeg(3))
    endpoint.behave = lambda _: Reply(body=completion("Black_Hair, watermark, black hair, dog"))
    run("captioner dataset/ -o tags.jsonl")
    assert texts(dataset, "caption")["3"] == "ohwx, black hair, dog\n"


def test_prose_from_tags(tmp_path, endpoint, run):
    tagged = make(tmp_path / "tagged")
    (tagged / "0.txt").write_text("1girl, red hat")
    run("captioner tagged/ -o prose.jsonl")
    asked = sorted(call.texts[0] for call in endpoint.calls)
    assert '"1girl, red hat"' in asked[1]
    assert "tags" not in asked[0]
    assert texts(tagged) == {"0": "1girl, red hat"}
    assert sorted(texts(tagged, "caption")) == ["0", "1"]


def test_a_photo_library(tmp_path, endpoint, run):
    """What a photograph says goes into the question, and the caption into XMP."""
    photos = make(tmp_path / "photos", 1, lambda _: photograph())
    endpoint.behave = lambda _: Reply(body=completion("Ada Example on a bridge in Lyon."))
    run("captioner photos/ -o library.jsonl")
    assert "People: Ada Example\nPlace: Lyon, France" in endpoint.calls[0].texts[0]
    assert b"Ada Example on a bridge" in (photos / "0.jpg.xmp").read_bytes()
    run("captioner export library.jsonl")
    copy = (tmp_path / "captioned" / "0.jpg").read_bytes()
    assert b"Ada Example on a bridge" in copy
    assert b"Canon EOS R5" in copy


def test_alternative_texts(tmp_path, endpoint, run):
    make(tmp_path / "site")
    endpoint.behave = lambda call: Reply(
        body=completion("Picture of a red door." if len(call.texts) == 1 else "A red door.")
    )
    run("captioner site/ -o alt.csv")
    found = json.loads((tmp_path / "alt.json").read_text())
    assert [row["caption"] for row in found] == ["A red door.", "A red door."]


def test_better_captions_from_old_ones(tmp_path, endpoint, run):
    make(tmp_path / "images", 1)
    (tmp_path / "products.csv").write_text("image,alt\nimages/0.jpg,Aeron chair\n")
    endpoint.behave = lambda _: Reply(body=completion("A grey Aeron chair."))
    run("captioner products.csv -o recaptioned.csv")
    assert 'claims: "Aeron chair"' in endpoint.calls[0].texts[0]
    (row,) = csv.DictReader(io.StringIO((tmp_path / "recaptioned.csv").read_text()))
    assert row["alt"] == "A grey Aeron chair."
    assert "Aeron chair" in row["alt_prompt"]
    old = make(tmp_path / "old", 1)
    (old / "0.txt").write_text("a cat")
    run("captioner old/ -o new.jsonl")
    assert 'claims: "a cat"' in endpoint.calls[-1].texts[0]
    assert texts(old) == {"0": "A grey Aeron chair.\n"}
    endpoint.behave = lambda _: Reply(body=completion("Soft light."))
    run("captioner old/ -o old")
    assert texts(old) == {"0": "A grey Aeron chair. Soft light.\n"}


def test_a_search_index(tmp_path, endpoint, run):
    make(tmp_path / "photos", 1)
    endpoint.behave = lambda _: Reply(body=completion(json.dumps(SEARCH)))
    run("captioner photos/ -o index.jsonl")
    assert rows(tmp_path / "index.jsonl")[0]["caption"] == SEARCH
    with sqlite3.connect(tmp_path / "index.db") as database:
        (found,) = database.execute("SELECT caption FROM captions").fetchall()
    database.close()
    assert json.loads(found[0]) == SEARCH


def test_each_command_of_the_page_is_run():
    own = Path(__file__).read_text("utf-8")
    assert set(COMMANDS) == set(re.findall(r'run\("(captioner .*?)"\)', own))
