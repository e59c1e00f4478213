"""Captions on standard output, and images that are named one by one."""

from __future__ import annotations

import json
import subprocess

import pytest
from conftest import command, jpeg, rows
from endpoint import Reply, completion

from captioner import SettingsError, run_batch


@pytest.fixture
def photos(tmp_path):
    """Three images; the second is broken."""
    for number, name in enumerate(("a.jpg", "b.jpg", "c c.jpg")):
        (tmp_path / name).write_bytes(jpeg(number))
    (tmp_path / "b.jpg").write_bytes(b"no image")
    return tmp_path


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_caption_of_a_single_image_is_printed_and_nothing_is_written(
    photos, endpoint, run_command
):
    endpoint.behave = lambda _: Reply(body=completion("A cat\non a mat."))
    before = files(photos)
    ended = run_command("a.jpg", "--base-url", endpoint.base_url, "--model", "m", cwd=photos)
    assert (ended.returncode, ended.stdout) == (0, "A cat\non a mat.\n")
    assert ended.stderr == ""
    ended = run_command("b.jpg", "--base-url", endpoint.base_url, "--model", "m", cwd=photos)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr.startswith("captioner: b.jpg: the file is not an image")
    assert files(photos) == before


def test_the_caption_of_stages_is_printed_as_well(photos, endpoint, run_command):
    """The question that wrote it is in rows, unasked; a single caption needs it not."""
    endpoint.behave = lambda call: Reply(
        body=completion("Yes" if "yes or no" in " ".join(call.texts) else "A cat.")
    )
    options = ["--base-url", endpoint.base_url, "--model", "m", "--stages", "detailed"]
    ended = run_command("a.jpg", *options, cwd=photos)
    assert (ended.returncode, ended.stdout) == (0, "A cat.\n")
    ended = run_command("a.jpg", *options, "--with", "prompt", cwd=photos)
    assert json.loads(ended.stdout).keys() == {"image", "caption", "caption_prompt"}


def test_rows_of_a_single_image_have_what_a_caption_has_not(photos, endpoint, run_command):
    options = ["--base-url", endpoint.base_url, "--model", "m", "--with", "model"]
    ended = run_command("a.jpg", *options, cwd=photos)
    assert json.loads(ended.stdout).keys() == {"image", "caption", "caption_model"}


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_go_to_standard_output(make_input, endpoint, run_command, processes):
    """The records with their captions, what failed on standard error, and no file."""
    source = make_input(4)
    with source.open("a") as file:
        file.write('{"image": "gone.jpg"}\n')
    before = files(source.parent)
    ended = run_command(
        source, "-o", "-", "--base-url", endpoint.base_url, "--model", "m",
        "--processes", processes,
    )  # fmt: skip
    assert ended.returncode == 3
    printed = [json.loads(line) for line in ended.stdout.splitlines()]
    assert sorted(row["id"] for row in printed) == [0, 1, 2, 3]
    assert all(row["caption"] for row in printed)
    assert "line 5: " in ended.stderr
    assert "(image_missing)" in ended.stderr
    assert "--retry" not in ended.stderr  # there is nothing to continue
    assert files(source.parent) == before


def test_a_reader_that_has_enough_ends_the_run(make_input, endpoint):
    """As in captioner input.jsonl -o - | head -1."""
    line = command(make_input(60), "-o", "-", "--base-url", endpoint.base_url, "--model", "m")
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        run.stdout.readline()
        run.stdout.close()
        error = run.stderr.read()
    assert run.returncode == 141
    assert "internal error" not in error


@pytest.mark.parametrize(
    "more", [["--redo"], ["--view"], ["--batch-api"], ["--output-format", "csv"], ["--json"]]
)
def test_standard_output_takes_rows_only(make_input, run_command, more):
    ended = run_command(make_input(1), "-o", "-", "--offline", *more)
    assert ended.returncode == 2
    assert "Name a file with -o" in ended.stderr or "name a file with -o" in ended.stderr


def test_images_can_be_named_one_by_one(photos, endpoint, run_command):
    """As a shell does for a pattern; the command that continues them can be pasted."""
    options = ["--base-url", endpoint.base_url, "--model", "m"]
    named = ["a.jpg", "c c.jpg", "b.jpg"]
    ended = run_command(*named, *options, "-o", "out.jsonl", cwd=photos)
    assert ended.returncode == 3
    assert [row["image"] for row in rows(photos / "out.jsonl")] == ["a.jpg", "c c.jpg"]
    assert "a.jpg 'c c.jpg' b.jpg -o out.jsonl --retry failed" in ended.stderr
    (photos / "b.jpg").write_bytes(jpeg(5))
    again = run_command(*named, *options, "-o", "out.jsonl", "--retry", "failed", cwd=photos)
    assert again.returncode == 0, again.stderr
    assert [row["image"] for row in rows(photos / "out.jsonl")] == named
    dry = run_command(*named, *options, "--dry-run", cwd=photos)
    assert dry.stdout.startswith("3 records, 3 requests")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.jpg", "b.jpg"], "-o - prints rows"),
        (["a.jpg", "gone.jpg", "-o", "-"], "cannot read the input gone.jpg"),
        (["a.jpg", "rows.jsonl"], "'rows.jsonl' is one word too many"),
    ],
)
def test_what_cannot_be_a_list_is_told(photos, run_command, words, message):
    ended = run_command(*words, "--offline", cwd=photos)
    assert ended.returncode == 2
    assert message in ended.stderr


async def test_the_library_takes_a_list_of_images(photos, endpoint):
    options = {"base_url": endpoint.base_url, "model": "m"}
    names = [photos / "a.jpg", str(photos / "c c.jpg")]
    report = await run_batch(names, photos / "out.jsonl", **options)
    assert (report.captioned, report.complete) == (2, True)
    with pytest.raises(
        SettingsError, match=r"must be images or videos, and .*in\.jsonl is neither"
    ):
        await run_batch(["in.jsonl"], photos / "out.jsonl", **options)
