"""Cases 3 and 4: torn tails, holes and junk are cut; damage to what was safe is refused."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path

import orjson
import pytest

from captioner.core.errors import OutputDamagedError, SettingsError
from captioner.core.keys import RecordKeys
from captioner.journal.journal import Journal

IDENTITY = RecordKeys(("caption",))
LINES = [
    orjson.dumps({"id": n, "caption": "abcdefghij" * (n % 7) + 'é"\\{}[],:'}) + b"\n"
    for n in range(12)
]
SAFE = b"".join(LINES[:9])
TAIL = b"".join(LINES[9:])


def checkpoint(path: Path, data: bytes, **changes: object) -> None:
    value = {
        "version": 1,
        "length": len(data),
        "crc32": zlib.crc32(data),
        "next": None,
        "settings": {},
        "input": "",
        **changes,
    }
    path.with_name(path.name + ".ckpt").write_bytes(orjson.dumps(value))


def recover(path: Path) -> tuple[int, bytes]:
    """Open and close the output; return how many records it holds and what it is now."""
    journal = Journal(path, IDENTITY, {})
    journal.open()
    if journal.repeated:
        journal.truncate_duplicates({})
    count = len(journal.done)
    journal.close()
    return count, path.read_bytes()


def tails() -> list[tuple[str, bytes]]:
    """Everything a crash may leave above what is safe, and what it may not but hands do."""
    rng = random.Random(7)
    cases = [(f"cut at {n}", TAIL[:n]) for n in range(len(TAIL) + 1)]
    holes = range(0, len(TAIL) - 64, 3)
    cases += [(f"hole at {n}", TAIL[:n] + bytes(64) + TAIL[n + 64 :]) for n in holes]
    cases += [
        ("zeros behind", TAIL + bytes(512)),
        ("junk behind", TAIL + b"\xff\xfe\x00junk"),
        ("a line of junk in the middle", LINES[9] + b"junk\n" + LINES[10]),
        ("no caption", LINES[9] + b'{"id":99}\n'),
        ("an array", b"[1]\n"),
        ("an empty line", LINES[9] + b"\n" + LINES[10]),
    ]
    for n in range(40):
        noise = bytes(rng.randrange(256) for _ in range(20))
        cases.append((f"noise {n}", TAIL[: rng.randrange(len(TAIL))] + noise))
    return cases


def test_whatever_a_crash_leaves_behind_is_cut_at_a_line(tmp_path) -> None:
    """Above the durable length the first bad line ends the output; whole lines before it stay,
    and every cut byte is kept in a file of its own."""
    cut_something = 0
    for number, (name, tail) in enumerate(tails()):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(SAFE + tail)
        checkpoint(path, SAFE)
        count, after = recover(path)
        assert after.startswith(SAFE), name
        assert (SAFE + tail).startswith(after), name
        assert after.count(b"\n") == count, name
        assert all("caption" in json.loads(line) for line in after.splitlines()), name
        whole = len(SAFE)
        for line in LINES[9:]:
            if not tail[whole - len(SAFE) :].startswith(line):
                break
            whole += len(line)
        assert len(after) >= whole, name
        kept = path.with_name(path.name + ".broken-1")
        assert after + (kept.read_bytes() if kept.exists() else b"") == SAFE + tail, name
        cut_something += kept.exists()
    assert cut_something > 200


def test_a_piece_that_is_there_twice_is_cut(tmp_path) -> None:
    """A repeated tail is no second caption of the same record."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(SAFE + TAIL + TAIL)
    checkpoint(path, SAFE)
    assert recover(path) == (12, SAFE + TAIL)
    assert recover(path) == (12, SAFE + TAIL)


def test_without_a_checkpoint_only_a_torn_last_line_is_forgiven(tmp_path) -> None:
    """A lost or garbled checkpoint costs care, not captions: it is made anew."""
    for number, garbage in enumerate([None, b"", b"{", b"[]", b'{"version":1}', bytes(100)]):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(SAFE + TAIL[:-5])
        if garbage is not None:
            path.with_name(path.name + ".ckpt").write_bytes(garbage)
        assert recover(path) == (11, SAFE + b"".join(LINES[9:11]))
        assert recover(path)[0] == 11


@pytest.mark.parametrize(
    ("name", "data", "changes"),
    [
        ("a changed byte", SAFE[:50] + b"?" + SAFE[51:], {}),
        ("a zeroed byte", SAFE[:50] + b"\0" + SAFE[51:], {}),
        ("a changed digit", SAFE.replace(b'"id":3', b'"id":4'), {}),
        ("a removed line", SAFE[len(LINES[0]) :], {}),
        ("cut short", SAFE[:-10], {}),
        ("from the future", SAFE, {"version": 99}),
    ],
)
def test_damage_to_what_was_safe_is_refused_and_left_alone(tmp_path, name, data, changes) -> None:
    """Exit 5: nothing is written when the output is not what its checkpoint vouches for."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(data)
    checkpoint(path, SAFE, **changes)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(OutputDamagedError) as caught:
        recover(path)
    assert caught.value.exit_code == 5
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_damage_in_the_middle_without_a_checkpoint_is_refused(tmp_path) -> None:
    """Without a checkpoint a bad line in the middle may be anything: it is not cut."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(LINES[0] + b"junk\n" + LINES[1])
    with pytest.raises(OutputDamagedError, match=f"byte {len(LINES[0])}"):
        recover(path)
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_an_output_that_vanished_is_noticed(tmp_path) -> None:
    """A removed output with its checkpoint left behind does not silently start all over."""
    path = tmp_path / "out.jsonl"
    checkpoint(path, SAFE)
    with pytest.raises(OutputDamagedError, match="is gone"):
        recover(path)


def test_more_than_a_crash_can_leave_is_not_cut(tmp_path, monkeypatch) -> None:
    """A huge unreadable tail was never one commit group: it is refused."""
    monkeypatch.setattr("captioner.journal.scan.LONGEST_CUT", 100)
    path = tmp_path / "out.jsonl"
    path.write_bytes(SAFE + b"\0" * 101)
    checkpoint(path, SAFE)
    with pytest.raises(OutputDamagedError, match="more than a crash"):
        recover(path)


def test_a_checkpoint_of_other_settings_refuses_before_anything_is_touched(tmp_path) -> None:
    """The sentence names every option that changed, with both values."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(SAFE)
    checkpoint(path, SAFE, settings={"model": "a", "prompt": "x"})
    journal = Journal(path, IDENTITY, {"model": "b", "prompt": "x"})
    with pytest.raises(SettingsError, match="model was 'a', now 'b'"):
        journal.open()
    assert path.read_bytes() == SAFE


def test_the_command_says_what_to_do_and_accept_edits_does_it(
    make_input, endpoint, run_command
) -> None:
    """A line removed by hand: exit 5 with the way out, and with it just that record is redone."""
    source = make_input(6)
    options = ("--base-url", endpoint.base_url, "--model", "m")
    assert run_command(source, *options).returncode == 0
    output = source.with_name("input.captions.jsonl")
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:2] + lines[3:]))
    refused = run_command(source, *options)
    assert refused.returncode == 5
    assert "--accept-changes=edits" in refused.stderr
    checked = run_command("check", output)
    assert checked.returncode == 5
    assert "damaged" in checked.stdout
    assert run_command(source, *options, "--accept-changes=edits").returncode == 0
    assert output.read_bytes() == b"".join(lines)
    assert endpoint.count == 7


def test_check_says_how_an_output_stands_and_changes_nothing(
    make_input, endpoint, run_command
) -> None:
    """Done, failed, pending and a torn tail are counted; not a byte is different afterwards."""
    source = make_input(10)
    (source.parent / "images" / "1.jpg").unlink()
    options = ("--base-url", endpoint.base_url, "--model", "m", "--limit", 6)
    assert run_command(source, *options).returncode == 3
    output = source.with_name("input.captions.jsonl")
    with output.open("ab") as file:
        file.write(b'{"id": 7, "im')
    before = {p.name: p.read_bytes() for p in source.parent.iterdir() if p.is_file()}
    done = run_command("check", output, "--json")
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    counts = {name: report[name] for name in ("captioned", "failed", "pending", "tail_bytes")}
    assert counts == {"captioned": 5, "failed": 1, "pending": 4, "tail_bytes": 13}
    assert "5 captioned, 1 failed, 4 pending" in run_command("check", output).stdout
    assert {p.name: p.read_bytes() for p in source.parent.iterdir() if p.is_file()} == before
