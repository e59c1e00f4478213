"""How export and --retry rejected use the reviews of a run."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import command, jpeg, rows
from endpoint import Reply, completion
from judging import FIELDS, judge

from captioner.cli.page_address import how_to_open
from captioner.core.keys import RecordKeys
from captioner.journal.companions import reviews_path
from captioner.journal.reviews import Reviews

LOOPBACK = ("127.0.0.1", "::1")


@pytest.fixture
def run(endpoint, make_input, run_command, tmp_path):
    """Caption five records; return a function that runs again with more options."""
    source = make_input(5)

    def again(*options, output=tmp_path / "out.jsonl"):
        return run_command(
            source, "-o", output, "--base-url", endpoint.base_url, "--model", "m", *options
        )

    return again


@pytest.mark.parametrize("name", ["final.jsonl", "final.json", "final.csv", "final.parquet"])
def test_export_goes_by_the_reviews(run, run_command, tmp_path, name):
    """Edited captions are exported as edited, rejected ones are left out; the output stays."""
    output, target = tmp_path / "out.jsonl", tmp_path / name
    assert run().returncode == 0
    before = output.read_bytes()
    judge(output, _0="accepted", _1="rejected", _3={"caption": 'two "cats"'})
    done = run_command("export", output, "--to", target)
    assert done.returncode == 0, done.stderr
    assert "1 rejected caption is left out; 1 caption is written as edited" in done.stderr
    if target.suffix == ".jsonl":
        found = rows(target)
    elif target.suffix == ".json":
        found = json.loads(target.read_text())
    elif target.suffix == ".csv":
        found = list(csv.DictReader(target.read_text().splitlines()))
    else:
        found = pq.read_table(target).to_pylist()
    assert [int(row["id"]) for row in found] == [0, 2, 3, 4]
    assert found[2]["caption"] == 'two "cats"'
    assert output.read_bytes() == before


@pytest.mark.parametrize("reviewed", ["apply", "only", "ignore"])
def test_parquet_export_of_a_table_applies_reviews(endpoint, run_command, tmp_path, reviewed):
    """The columns of a table input keep their types, and the reviews choose its rows."""
    source, output, target = (tmp_path / name for name in ("in.parquet", "out.jsonl", "x.parquet"))
    table = pa.table({"n": pa.array(range(4), pa.int8()), "image": [jpeg(n) for n in range(4)]})
    pq.write_table(table, source)
    options = ["--base-url", endpoint.base_url, "--model", "m"]
    assert run_command(source, "-o", output, *options).returncode == 0
    captions = {row["n"]: row["caption"] for row in rows(output)}
    lines = {f"_{row['n']}": f"_{at}" for at, row in enumerate(rows(output))}
    reviews = {"_0": "accepted", "_1": "rejected", "_3": {"caption": "two cats"}}
    judge(output, **{lines[name]: verdict for name, verdict in reviews.items()})
    done = run_command("export", output, "--to", target, "--reviewed", reviewed)
    assert done.returncode == 0, done.stderr
    expected = {
        "apply": {0: captions[0], 2: captions[2], 3: "two cats"},
        "only": {0: captions[0], 3: "two cats"},
        "ignore": captions,
    }
    found = pq.read_table(target)
    assert found.schema.field("n").type == pa.int8()
    assert {row["n"]: row["caption"] for row in found.to_pylist()} == expected[reviewed]


def test_export_of_what_was_reviewed_only(run, run_command, tmp_path):
    """--reviewed only leaves out captions without a review; ignore exports all unchanged."""
    output = tmp_path / "out.jsonl"
    assert run().returncode == 0
    asked = run_command("export", output, "--to", tmp_path / "x.jsonl", "--reviewed", "only")
    assert asked.returncode == 2
    assert "there are no reviews" in asked.stderr
    judge(output, _0="accepted", _1="rejected", _3={"caption": "two cats"})
    for how, ids in (("only", [0, 3]), ("ignore", [0, 1, 2, 3, 4])):
        target = tmp_path / f"{how}.jsonl"
        done = run_command("export", output, "--to", target, "--reviewed", how)
        assert done.returncode == 0, done.stderr
        assert [row["id"] for row in rows(target)] == ids


def test_rejected_captions_are_made_again(endpoint, run, tmp_path):
    """Only rejected captions are requested again; new ones have no review, old ones are kept."""
    output = tmp_path / "out.jsonl"
    assert run().returncode == 0
    first = rows(output)
    judge(output, _0="accepted", _1="rejected", _3="rejected", _4={"caption": "two cats"})
    endpoint.behave = lambda _: Reply(body=completion("a better caption"))
    again = run("--retry", "rejected")
    assert again.returncode == 0, again.stderr
    assert endpoint.count == 7
    now = rows(output)
    assert [row["id"] for row in now] == [0, 1, 2, 3, 4]
    better = [row["id"] for row in now if row["caption"] == "a better caption"]
    assert better == [1, 3]
    assert [row for row in now if row["id"] in (0, 2, 4)] == [first[0], first[2], first[4]]
    assert rows(output.with_name("out.jsonl.replaced-1")) == [first[1], first[3]]
    reviews = Reviews(reviews_path(output))
    said = {
        row["id"]: (review.verdict if review else None)
        for line, row in zip(output.read_bytes().splitlines(), now, strict=True)
        for review in [reviews.of(RecordKeys(FIELDS).of_output(line), row, FIELDS)]
    }
    assert said == {0: "accepted", 1: None, 2: None, 3: None, 4: "edited"}
    assert len(reviews.rejected()) == 2  # who gets the same caption again finds it rejected
    once_more = run("--retry", "rejected")
    assert once_more.returncode == 0
    assert "the output has no caption that a reviewer rejected" in once_more.stderr
    assert endpoint.count == 7


def test_the_same_caption_again_is_still_rejected(endpoint, run, tmp_path):
    """A caption that comes out the same stays rejected."""
    output = tmp_path / "out.jsonl"
    assert run().returncode == 0
    judge(output, _1="rejected")
    for count in (6, 7):
        assert run("--retry", "rejected").returncode == 0
        assert endpoint.count == count
    assert len(rows(output)) == 5


def test_an_output_in_another_format_keeps_what_was_captioned(endpoint, run, run_command, tmp_path):
    """The output of a run has all its captions, in every format; only export applies reviews."""
    output = tmp_path / "out.csv"
    assert run(output=output).returncode == 0
    journal = tmp_path / "out.csv.jsonl"
    judge(output, journal, _1="rejected", _2={"caption": "two cats"})
    assert run(output=output).returncode == 0
    assert len(list(csv.DictReader(output.read_text().splitlines()))) == 5
    for named in (output, journal):  # the journal is not another output
        done = run_command("export", named, "--to", tmp_path / "x.jsonl", "--overwrite")
        assert "1 rejected caption is left out; 1 caption is written as edited" in done.stderr
    endpoint.behave = lambda _: Reply(body=completion("a better caption"))
    assert run("--retry", "rejected", output=output).returncode == 0
    found = {row["id"]: row for row in csv.DictReader(output.read_text().splitlines())}
    assert len(found) == 5
    assert found["1"]["caption"] == "a better caption"
    refused = run_command("export", output, "--to", reviews_path(output), "--overwrite")
    assert refused.returncode == 2
    assert len(Reviews(reviews_path(output))) == 2


def test_equal_records_are_told_apart_by_their_captions(endpoint, run_command, tmp_path):
    """Of two equal records only the rejected one is left out, or requested again."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    source.write_text('{"id":1,"image":"a.jpg"}\n' * 3)
    endpoint.behave = lambda call: Reply(body=completion(f"caption {call.number}"))
    arguments = [source, "-o", output, "--base-url", endpoint.base_url, "--model", "m"]
    assert run_command(*arguments, "--no-dedup").returncode == 0
    judge(output, _0="rejected", _1="accepted")
    kept = [row["caption"] for row in rows(output)[1:]]
    run_command("export", output, "--to", tmp_path / "x.jsonl")
    assert [row["caption"] for row in rows(tmp_path / "x.jsonl")] == kept
    assert run_command(*arguments, "--no-dedup", "--retry", "rejected").returncode == 0
    assert sorted(row["caption"] for row in rows(output)) == sorted([*kept, "caption 4"])


def test_sidecars_of_rejected_captions_go(run, run_command, tmp_path):
    """A text file of an earlier export is removed when its caption is rejected."""
    output = tmp_path / "out.jsonl"
    assert run().returncode == 0
    arguments = ["export", output, "--to", tmp_path, "--to-format", "txt"]
    assert run_command(*arguments).returncode == 0
    (tmp_path / "images/3.txt").write_text("by hand\n")
    judge(output, _1="rejected", _3="rejected")
    done = run_command(*arguments)
    assert "1 file of a rejected caption was kept" in done.stderr
    assert sorted(path.name for path in (tmp_path / "images").glob("*.txt")) == [
        "0.txt", "2.txt", "3.txt", "4.txt",
    ]  # fmt: skip
    run_command(*arguments, "--overwrite")
    assert not (tmp_path / "images/3.txt").exists()


def test_open_batches_go_first(run, tmp_path):
    """While batches are open, rejected captions cannot be requested again."""
    output = tmp_path / "out.jsonl"
    assert run("--limit", "2").returncode == 0
    assert run("--to-batch-file", tmp_path / "requests.jsonl").returncode in (0, 3)
    judge(output, _1="rejected")
    before = output.read_bytes()
    refused = run("--retry", "rejected", "--from-batch-file", tmp_path / "answers.jsonl")
    assert refused.returncode == 2
    assert "batches are not finished" in refused.stderr
    assert output.read_bytes() == before


def test_a_retry_that_is_interrupted_goes_on(endpoint, run, tmp_path):
    """After a kill, the same run without the option captions what is still missing."""
    output = tmp_path / "out.jsonl"
    assert run().returncode == 0
    judge(output, _1="rejected", _3="rejected")
    endpoint.behave = lambda _: Reply(status=500)
    assert run("--retry", "rejected", "--max-outage", "0.1").returncode == 7
    assert [row["id"] for row in rows(output)] == [0, 2, 4]
    endpoint.behave = lambda _: Reply(body=completion("a better caption"))
    assert run().returncode == 0
    assert [row["id"] for row in rows(output)] == [0, 1, 2, 3, 4]


def test_a_cache_would_give_the_same_again(run, tmp_path):
    """--retry rejected is refused with a cache, which would return the same captions."""
    refused = run("--retry", "rejected", "--cache", tmp_path / "cache")
    assert refused.returncode == 2
    assert "with --cache, captions would come back unchanged" in refused.stderr


def test_the_command_serves_until_it_is_stopped(run, tmp_path):
    """captioner view prints the address without its token if the output is no terminal.

    The token is in a file for the user alone. Ctrl-C ends the command and removes the file.
    """
    output = tmp_path / "out.jsonl"
    assert run().returncode == 0
    with subprocess.Popen(
        command("view", output), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as serving:
        url = serving.stdout.readline()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\n", url)
        told = serving.stderr.readline()
        kept = Path(re.search(r"open the address in (\S+) in", told)[1])
        assert kept.stat().st_mode & 0o777 == 0o600
        with urllib.request.urlopen(kept.read_text().strip()) as page:
            assert page.status == 200
        serving.send_signal(signal.SIGINT)
        rest, said = serving.communicate(timeout=20)
    assert (serving.returncode, rest) == (0, "")
    assert "Ctrl-C" in told
    assert not kept.exists()
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("host", "ssh", "said"),
    [
        ("127.0.0.1", "", "in a browser on this machine; Ctrl-C"),
        ("::1", "10.0.0.9 50 10.0.0.5 22", "ssh -N -L 8000:[::1]:8000 ann@10.0.0.5; Ctrl-C"),
        ("0.0.0.0", "", "the connection is not encrypted. Without --host"),
        ("192.168.1.4", "10.0.0.9 5 10.0.0.5 22", "ssh -N -L 8000:127.0.0.1:8000 ann@10.0.0.5. "),
    ],
)
def test_who_can_open_the_page_is_said(host, ssh, said):
    """The message says where the page can be opened, by whom, and how through ssh."""
    told = how_to_open("it", host, 8000, {"USER": "ann", "SSH_CONNECTION": ssh})
    assert said in told
    assert ("on this machine;" in told or "on this machine," in told) == (host in LOOPBACK)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["view", "missing.jsonl"], "there is no output missing.jsonl"),
        (["view", "missing.jsonl", "--port", "70000"], "port: 70000 is not between"),
    ],
)
def test_what_cannot_be_viewed(run_command, tmp_path, arguments, said):
    """The error is one line."""
    done = run_command(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
