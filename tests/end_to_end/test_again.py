"""Changing one's mind: --redo, --retry, and captioner remove."""

from __future__ import annotations

import os
import pty
import subprocess

import pytest
from conftest import command, jpeg, rows
from endpoint import Reply, completion, start_and
from judging import judge
from waiting import LIMIT_S

from captioner.journal.companions import reviews_path
from captioner.journal.disk import Files


@pytest.fixture
def photos(make_photos):
    return make_photos(6)


@pytest.fixture
def words(endpoint, photos, tmp_path):
    """The command line of a run, whose captions repeat the prompt and number the requests."""
    endpoint.behave = lambda call: Reply(body=completion(f"{call.texts[-1]} {call.number}"))

    def make(*options):
        output = tmp_path / "out.jsonl"
        known = ["--base-url", endpoint.base_url, "--model", "m", "--concurrency", "1"]
        return [photos, "-o", output, *known, *options]

    return make


@pytest.fixture
def run(run_command, words):
    return lambda *options: run_command(*words(*options))


def captions(path):
    return {row["image"].rpartition("/")[2]: row["caption"] for row in rows(path)}


def test_after_a_preview_a_new_prompt_is_no_dead_end(run, endpoint, tmp_path):
    """The refusal names --redo, which then captions the preview's records with the new prompt."""
    output = tmp_path / "out.jsonl"
    assert run("--limit", "2", "--prompt", "old").returncode == 0
    refused = run("--limit", "2", "--prompt", "new")
    assert refused.returncode == 2
    assert "--redo" in refused.stderr
    assert run("--limit", "2", "--prompt", "new", "--redo").returncode == 0
    assert captions(output) == {"0.jpg": "new 3", "1.jpg": "new 4"}
    kept = tmp_path / "out.jsonl.replaced-1"
    assert captions(kept) == {"0.jpg": "old 1", "1.jpg": "old 2"}
    assert run("--prompt", "new").returncode == 0
    assert endpoint.count == 8
    assert list(captions(output)) == [f"{n}.jpg" for n in range(6)]


def test_only_records_of_the_run_are_redone(run, tmp_path):
    """With --limit, captions of other records stay, and so do those whose record is gone."""
    output = tmp_path / "out.jsonl"
    assert run().returncode == 0
    before = captions(output)
    (tmp_path / "photos/0.jpg").unlink()
    assert run("--limit", "1", "--redo").returncode == 0
    changed = {name for name, text in captions(output).items() if before[name] != text}
    assert changed == {"1.jpg"}
    assert captions(tmp_path / "out.jsonl.replaced-1") == {"1.jpg": before["1.jpg"]}


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("length < 5", {"3.jpg"}),
        ("code == 'too_short'", {"3.jpg"}),
        ("review == 'rejected'", {"1.jpg"}),
        ("endswith(image, '4.jpg') or length < 5", {"3.jpg", "4.jpg"}),
        ("failed", {"5.jpg"}),
        ("code == 'filtered'", {"5.jpg"}),
        ("caption == 'long enough' and not failed", {"0.jpg", "1.jpg", "2.jpg", "4.jpg"}),
    ],
)
def test_where_chooses_what_is_redone(run, endpoint, tmp_path, where, names):
    """By length, code, review and any field; what failed is chosen like what has a caption."""
    output = tmp_path / "out.jsonl"
    texts = {4: "abc", 6: None}

    def behave(call):
        text = texts.get(call.number, "long enough")
        return Reply(body=completion(text, finish_reason="stop" if text else "content_filter"))

    endpoint.behave = behave
    options = ["--min-length", "5", "--accept", "too_short", "--max-attempts", "1", "--no-dedup"]
    assert run(*options).returncode == 3
    sent = endpoint.count
    judge(output, _1="rejected")
    endpoint.behave = lambda _: Reply(body=completion("another caption"))
    done = run(*options, f"--redo={where}")
    assert done.returncode == (0 if "5.jpg" in names else 3), done.stderr
    assert endpoint.count - sent == len(names)
    again = {name for name, text in captions(output).items() if text == "another caption"}
    assert again == names


@pytest.mark.parametrize("options", [["--redo"], ["--redo", "--limit", "4"], ["--retry", "failed"]])
def test_after_a_kill_nothing_is_redone_twice(run, words, endpoint, photos, tmp_path, options):
    """The same command goes on: what was redone stays, and what is kept aside is kept once."""
    output = tmp_path / "out.jsonl"
    if "failed" in options:
        for number in range(1, 6):
            (photos / f"{number}.jpg").write_bytes(b"no image")
    assert run().returncode == (3 if "failed" in options else 0)
    for number in range(1, 6):
        (photos / f"{number}.jpg").write_bytes(jpeg(number))
    before = captions(output)
    sent = endpoint.count
    endpoint.behave = lambda call: Reply(body=completion(f"new {call.number}"))
    process = start_and(lambda one: one.kill(), endpoint, sent + 3, command(*words(*options)))
    assert process.wait(LIMIT_S) != 0
    process.stderr.close()
    redone = {name: text for name, text in captions(output).items() if "new" in text}
    assert len(redone) == 2
    done = run(*options)
    assert done.returncode == 0, done.stderr
    assert "left are captioned again" in done.stderr
    wanted = 5 if "failed" in options else 4 if "--limit" in options else 6
    assert endpoint.count - sent == wanted + 1  # the one in flight
    now = captions(output)
    assert {name: now[name] for name in redone} == redone
    assert sum("new" in text for text in now.values()) == wanted
    kept = [row for path in sorted(tmp_path.glob("*.replaced-*")) for row in rows(path)]
    assert len(kept) == (0 if "failed" in options else wanted)
    assert all(before[row["image"].rpartition("/")[2]] == row["caption"] for row in kept)
    assert run(*options).returncode == 0  # it is finished: this is a new one
    assert endpoint.count - sent == wanted + 1 + (0 if "failed" in options else wanted)


def test_a_redo_with_another_prompt_is_another_one(run, words, endpoint, tmp_path):
    """After a stop, --redo with a third prompt takes out what the second one made as well."""
    output = tmp_path / "out.jsonl"
    assert run("--prompt", "a").returncode == 0
    killed = command(*words("--redo", "--prompt", "b"))
    process = start_and(lambda one: one.kill(), endpoint, 9, killed)
    process.wait(LIMIT_S)
    process.stderr.close()
    assert run("--redo", "--prompt", "c").returncode == 0
    assert {text[0] for text in captions(output).values()} == {"c"}


def test_misspelt_names_are_told(run, endpoint):
    """An expression that cannot be read, or names what no row has, captions no pending record."""
    assert run("--limit", "4").returncode == 0
    refused = run("--redo=length <")
    assert refused.returncode == 2
    assert "redo: 'length <' cannot be read" in refused.stderr
    nothing = run("--redo=lenght < 5")
    assert nothing.returncode == 2
    assert "no row has a field lenght" in nothing.stderr
    assert "length, review" in nothing.stderr
    assert endpoint.count == 4


def test_a_field_that_rows_may_get_is_not_misspelt(run):
    """No caption has a flag: nothing is captioned again, and that is no error."""
    assert run().returncode == 0
    nothing = run("--redo=caption_flag == 'truncated'")
    assert nothing.returncode == 0
    assert "true for no record of the run" in nothing.stderr


def test_a_folder_and_a_file_are_captioned_again(run, photos, endpoint, tmp_path):
    """--redo knows the folder and the file name of an image, as --where does."""
    cats = photos / "cats"
    cats.mkdir()
    for name in ("0.jpg", "1.jpg"):
        (photos / name).rename(cats / name)
    assert run("--prompt", "old").returncode == 0
    chosen = "--redo=folder == 'cats' or file == '5.jpg'"
    assert run(chosen, "--prompt", "new").returncode == 0
    assert endpoint.count == 9
    made = {row["image"]: row["caption"][:3] for row in rows(tmp_path / "out.jsonl")}
    assert {name for name, words in made.items() if words == "new"} == {
        "cats/0.jpg", "cats/1.jpg", "5.jpg",
    }  # fmt: skip


# -- remove --------------------------------------------------------------------------------------


def test_remove_takes_an_output_and_its_companions(run, run_command, photos, tmp_path):
    """Everything that the runs made goes; links, and files of others, stay."""
    output = tmp_path / "out.jsonl"
    assert run().returncode == 0
    assert run("--redo", "--limit", "2").returncode == 0
    (tmp_path / "out.jsonl.note").write_text("mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    reviews_path(output).symlink_to(elsewhere)
    asked = run_command("remove", output)
    assert asked.returncode == 2
    assert "--yes" in asked.stderr
    assert output.exists()
    done = run_command("remove", output, "--yes")
    assert done.returncode == 0, done.stderr
    assert {line.rpartition("/")[2] for line in done.stdout.splitlines()} == {
        "out.jsonl", "out.jsonl.ckpt", "out.jsonl.replaced-1",
    }  # fmt: skip
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"photos", "out.jsonl.note", "elsewhere", "out.review.jsonl"}
    assert elsewhere.read_text() == "mine"


def test_remove_asks_on_a_terminal(run, tmp_path):
    output = tmp_path / "out.jsonl"
    assert run("--limit", "1").returncode == 0
    for answer, status in (("n", 1), ("y", 0)):
        ours, theirs = pty.openpty()
        words = command("remove", output)
        process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        os.write(ours, f"{answer}\n".encode())
        assert process.wait(LIMIT_S) == status
        os.close(ours)
        assert output.exists() == (answer == "n")


def test_remove_refuses_what_is_not_an_output(run_command, run, photos, tmp_path):
    """A file without a checkpoint is not captioner's, and an output in use stays."""
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"caption":"x"}\n')
    refused = run_command("remove", mine, "--yes")
    assert refused.returncode == 2
    assert "captioner did not write it" in refused.stderr
    assert mine.exists()
    output = tmp_path / "out.jsonl"
    assert run("--limit", "1").returncode == 0
    files = Files()
    lock = output.with_name("out.jsonl.lock")
    held = files.lock(lock)
    try:
        busy = run_command("remove", output, "--yes")
    finally:
        files.unlock(held, lock)
    assert busy.returncode == 4, busy.stderr
    assert output.exists()


def test_remove_takes_other_formats_with_their_journal(endpoint, run_command, photos, tmp_path):
    output = tmp_path / "out.csv"
    done = run_command(photos, "-o", output, "--base-url", endpoint.base_url, "--model", "m")
    assert done.returncode == 0, done.stderr
    assert run_command("remove", output, "--yes").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_rows_are_chosen_by_the_model_and_prompt_that_made_them(run, endpoint, tmp_path):
    """Each with those of its own run, not of the last one."""
    output = tmp_path / "out.jsonl"
    assert run("--limit", "2", "--prompt", "old").returncode == 0
    assert run("--prompt", "new", "--accept-changes").returncode == 0
    again = run("--prompt", "new", "--redo=prompt == 'old' and model == 'm'")
    assert again.returncode == 0, again.stderr
    assert captions(output) == {
        "0.jpg": "new 7", "1.jpg": "new 8", "2.jpg": "new 3", "3.jpg": "new 4", "4.jpg": "new 5",
        "5.jpg": "new 6",
    }  # fmt: skip
