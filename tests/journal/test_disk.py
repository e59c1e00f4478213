from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import FULL, FaultyFiles

from captioner.core.errors import OutputBusyError
from captioner.journal.disk import Files, network_file_system, write_all

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

    fd = Slow().open(tmp_path / "f", fresh=True)
    assert write_all(Slow(), fd, b"0123456789", 0) == 10
    os.close(fd)
    assert (tmp_path / "f").read_bytes() == b"0123456789"


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
