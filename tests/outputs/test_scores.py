"""Captions against references."""

from __future__ import annotations

import json

import pytest
from endpoint import Reply, completion

from captioner import SettingsError
from captioner.outputs.scores import cider_d, read_references


@pytest.fixture
def output(make_input, endpoint, run_command):
    endpoint.behave = lambda call: Reply(
        body=completion(f"a photograph of {call.texts[0]} on a wooden table")
    )
    source = make_input(4)
    assert run_command(source, "--base-url", endpoint.base_url, "--model", "m").returncode == 0
    return source.with_name("input.captions.jsonl")


def test_coco_references(output, run_command, tmp_path):
    """References are found by the name of the file, whatever the ids are."""
    images = [{"id": 90 + n, "file_name": f"{n}.jpg"} for n in range(3)]
    notes = [
        {"image_id": 90 + n, "caption": f"a photograph of q{n} on a wooden table"} for n in range(3)
    ]
    path = tmp_path / "ref.json"
    path.write_text(json.dumps({"images": images, "annotations": notes}))
    found = json.loads(run_command("eval", output, "--references", path, "--json").stdout)
    assert (found["captions"], found["unmatched"], found["bleu"]) == (3, 1, 100.0)
    assert found["chrf"] == 100.0
    assert found["cider"] > 5
    told = run_command("eval", output, "--references", path)
    assert "3 captions compared" in told.stdout
    assert "1 has no reference" in told.stdout


def test_references_in_lines_by_id(output, run_command, tmp_path):
    path = tmp_path / "ref.jsonl"
    lines = [
        {"id": n, "captions": ["a photograph of a table", "nothing like it"]} for n in range(4)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = json.loads(run_command("eval", output, "--references", path, "--json").stdout)
    assert (found["captions"], found["unmatched"]) == (4, 0)
    assert 0 < found["bleu"] < 100


def test_cider_rewards_what_is_rare_and_shared():
    """The same caption scores highest, an unrelated one nothing, a shuffled one less."""
    references = [["a red bus on a bridge"], ["two dogs in the snow"], ["a plate of pasta"]]
    same = cider_d([one[0] for one in references], references)
    assert same == pytest.approx(10.0, rel=0.3)
    shuffled = cider_d(
        ["bridge a on bus red a", "snow the in dogs two", "pasta of plate a"], references
    )
    other = cider_d(["x y z"] * 3, references)
    assert same > shuffled > other == 0


@pytest.mark.parametrize("text", ["", "no", "[1, 2]", '{"id": 1}', "null"])
def test_what_holds_no_references_is_told(tmp_path, text):
    (tmp_path / "ref.json").write_text(text)
    with pytest.raises(SettingsError, match="references"):
        read_references(tmp_path / "ref.json")
    with pytest.raises(SettingsError, match="cannot read"):
        read_references(tmp_path / "none.json")


def test_references_of_other_images_are_told(output, run_command, tmp_path):
    (tmp_path / "ref.jsonl").write_text('{"id": "other", "caption": "x"}\n')
    ended = run_command("eval", output, "--references", tmp_path / "ref.jsonl")
    assert (ended.returncode, "none of them" in ended.stderr) == (2, True)
