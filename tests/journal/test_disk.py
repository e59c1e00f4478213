from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import FULL, FaultyFiles

from captioner.core.errors import DiskError, OutputBusyError
from captioner.journal.disk import (
    Files,
    atomic_write,
    network_file_system,
    remove_temporary_files,
    replacing,
    write_all,
)

HOLD = """
import sys
from pathlib import Path
from captioner.journal.disk import Files
fd = Files().lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
if len(sys.argv) == 2:
    Files().unlock(fd, Path(sys.argv[1]))
"""


def hold(path, *how):
    """Let another process hold the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("fault", ["write", "short"])
def test_write_all_after_an_error(tmp_path, fault):
    """A write that the disk refuses half-way leaves the file as it was, ready for another try."""
    files = FaultyFiles(fault, 1, FULL)
    fd = files.open(tmp_path / "f", create=True)
    assert write_all(Files(), fd, b"before\n", 0) == 7
    with pytest.raises(OSError, match="No space"):
        write_all(files, fd, b"0123456789\n", 7)
    assert (tmp_path / "f").read_bytes() == b"before\n"
    assert write_all(files, fd, b"0123456789\n", 7) == 11
    assert (tmp_path / "f").read_bytes() == b"before\n0123456789\n"
    files.close(fd)


def test_write_all_in_pieces(tmp_path):
    """A disk that takes a little at a time still gets everything."""

    class Slow(Files):
        def write(self, fd, data, offset):
            return super().write(fd, data[:3], offset)

    fd = Slow().open(tmp_path / "f", new=True)
    assert write_all(Slow(), fd, b"0123456789", 0) == 10
    os.close(fd)
    assert (tmp_path / "f").read_bytes() == b"0123456789"


def test_atomic_write(tmp_path):
    """The target has its old content until the new one is complete, and nothing else is left."""
    target = tmp_path / "f"
    target.write_text("old")
    with atomic_write(target, Files()) as file:
        file.write(b"ne")
        assert target.read_text() == "old"
        file.write(b"w")
    assert (target.read_text(), file.size) == ("new", 3)
    with pytest.raises(ZeroDivisionError), atomic_write(target, Files()) as file:
        file.write(b"other")
        raise ZeroDivisionError
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_write_follows_no_planted_file(tmp_path, monkeypatch):
    """A file that has the temporary name already is neither written to nor followed."""
    monkeypatch.setattr("secrets.token_hex", lambda _: "guess")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    with atomic_write(tmp_path / "f", Files()) as file:
        planted = file.path
    planted.symlink_to(victim)
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "f", Files()):
        pass
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("name", ["x" * 250, "\N{GRINNING FACE}" * 60])
def test_replacing_a_file_with_a_long_name(tmp_path, name):
    """A temporary name fits into a file system that allows 255 bytes."""
    with replacing(tmp_path / "new" / name) as path:
        path.write_text("content")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]
    assert (tmp_path / "new" / name).read_text() == "content"


def test_replacing_on_a_full_disk(tmp_path):
    """The error names the file, and the file is as it was."""
    target = tmp_path / "f"
    target.write_text("old")
    with pytest.raises(DiskError, match="refused to write f: No space"), replacing(target):
        raise OSError(FULL, os.strerror(FULL))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_remove_temporary_files(tmp_path):
    """What a crash left of one target goes; files of others stay, even with a similar name."""
    other = tmp_path / ("x" * 60 + "2")
    with atomic_write(other, Files()) as kept:
        pass
    for target in (tmp_path / "f", tmp_path / ("x" * 60 + "1")):
        with atomic_write(target, Files()) as left:
            pass
        left.path.touch()
    kept.path.touch()
    remove_temporary_files(Files(), tmp_path / "f", tmp_path / ("x" * 60 + "1"))
    assert [path for path in tmp_path.iterdir() if path.suffix == ".partial"] == [kept.path]


def test_lock_excludes_another_process(tmp_path):
    """Two runs cannot write one output: the second is told which process on which host does."""
    files, path = Files(), tmp_path / "o.jsonl.lock"
    with hold(path) as other:
        who = re.escape(
            f"o.jsonl is being written by process {other.pid} on {socket.gethostname()}"
        )
        with pytest.raises(OutputBusyError, match=who):
            files.lock(path)
        assert files.holder(path) == f"{socket.gethostname()} {other.pid}"
        other.communicate("")
    assert other.returncode == 0
    assert list(tmp_path.iterdir()) == []  # the other one left nothing behind
    files.unlock(files.lock(path), path)
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_dead_process(tmp_path):
    """A run that was killed does not keep the next one out, whatever file it left."""
    files, path = Files(), tmp_path / "o.jsonl.lock"
    with hold(path) as other:
        other.kill()
        other.wait()
    assert path.exists()
    assert files.holder(path) == ""
    fd = files.lock(path)
    assert path.read_text() == f"{socket.gethostname()} {os.getpid()}\n"
    files.unlock(fd, path)
    assert not path.exists()


def test_holder_only_looks(tmp_path):
    """Asking who writes an output neither makes a lock nor stands in the way of one."""
    files, path = Files(), tmp_path / "o.jsonl.lock"
    assert files.holder(path) == ""
    assert not path.exists()
    fd = files.lock(path)
    assert files.holder(path) == f"{socket.gethostname()} {os.getpid()}"
    files.unlock(fd, path)
    assert files.holder(path) == ""


def test_kind(tmp_path):
    """A link or a pipe is never taken for a file that may be replaced."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    names = ("file", "link", "dangling", "fifo", ".", "none", "file/below")
    assert [Files().kind(tmp_path / name) for name in names] == [
        *("file", "other", "other", "other", "folder", "missing", "missing")
    ]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/x/o.jsonl", "nfs4"),
        ("/data", "nfs4"),
        ("/database/o.jsonl", ""),  # only begins like the mount point
        ("/data/local/o.jsonl", ""),  # a local disk inside
        ("/my share/o.jsonl", "cifs"),
        ("/over/o.jsonl", "fuse.sshfs"),  # the later of two mounts
    ],
)
def test_network_file_system(monkeypatch, path, kind):
    """A network file system, on which locks may not reach other hosts, is told from a disk."""
    mounts = (
        "/dev/sda1 / ext4 rw 0 0\n"
        "host:/export /data nfs4 rw 0 0\n"
        "/dev/sdb1 /data/local xfs rw 0 0\n"
        "//host/share /my\\040share cifs rw 0 0\n"
        "/dev/sdc1 /over ext4 rw 0 0\n"
        "host: /over fuse.sshfs rw 0 0\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: mounts)
    assert network_file_system(Path(path)) == kind


def test_network_file_system_unknown(monkeypatch):
    """Where mounts cannot be looked up, nothing is claimed."""

    def refuse(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert network_file_system(Path("/data")) == ""
