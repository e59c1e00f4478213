from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from captioner.core.errors import BadImageError
from captioner.images.files import ImageFolders


def read(
    path: str,
    *roots: Path,
    bound: bool = False,
    max_bytes: int = 1000,
    reserve=lambda _: None,
) -> bytes:
    return ImageFolders(roots, bound=bound, max_bytes=max_bytes).read(path, reserve)


def code_of(*arguments, **options) -> str:
    with pytest.raises(BadImageError) as caught:
        read(*arguments, **options)
    assert caught.value.message
    return caught.value.code


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.jpg").write_bytes(b"inside")
    (tmp_path / "outside.jpg").write_bytes(b"outside")
    (tmp_path / "root-too").mkdir()
    (tmp_path / "root-too" / "a.jpg").write_bytes(b"outside")
    return folder


def lowest_free_descriptor() -> int:
    fd = os.open(os.devnull, os.O_RDONLY)
    os.close(fd)
    return fd


@pytest.mark.parametrize("size", [1, 999, 1000])
def test_reads_all_bytes(root, size):
    """A file is read whole, up to the largest size allowed."""
    data = os.urandom(size)
    (root / "x").write_bytes(data)
    assert read("x", root) == data


def test_large_file(root):
    """A file of several megabytes arrives whole."""
    data = os.urandom(5 << 20)
    (root / "x").write_bytes(data)
    assert read("x", root, max_bytes=len(data)) == data


def test_short_reads_are_continued(root, monkeypatch):
    """A file system that gives less than asked for does not cut the image short."""
    whole = os.read
    monkeypatch.setattr(os, "read", lambda fd, size: whole(fd, min(size, 2)))
    assert read("sub/a.jpg", root) == b"inside"


def test_folders_are_tried_in_order(root, tmp_path):
    """A relative path is looked for beside the input first, then where the command runs."""
    other = tmp_path / "root-too"
    assert read("outside.jpg", root, tmp_path) == b"outside"
    (other / "sub").mkdir()
    (other / "sub" / "a.jpg").write_bytes(b"second")
    assert read("sub/a.jpg", root, other) == b"inside"
    assert read("sub/a.jpg", other, root) == b"second"
    assert read(str(tmp_path / "outside.jpg"), root) == b"outside"


def test_memory_is_reserved_before_the_file_is_read(root):
    """Memory is asked for once, with the file's size, while nothing is held yet."""
    asked = []
    (root / "big").write_bytes(b"x" * 2000)
    assert read("sub/a.jpg", root, reserve=asked.append) == b"inside"
    assert asked == [6]
    assert code_of("big", root, reserve=asked.append) == "image_too_large"
    assert asked == [6]


def test_missing(root):
    """A missing file is said to be missing, and where it was looked for."""
    with pytest.raises(BadImageError, match=r"gone\.jpg") as caught:
        read("gone.jpg", root)
    assert caught.value.code == "image_missing"
    assert str(root) in caught.value.message
    (root / "dangling").symlink_to("gone.jpg")
    assert code_of("dangling", root) == "image_missing"
    assert code_of("sub/a.jpg/deeper", root) == "image_missing"
    assert code_of("nul\0", root) == "image_missing"
    assert code_of("nul\0", root, bound=True) == "image_missing"


@pytest.mark.parametrize("bound", [False, True])
def test_unreadable(root, bound):
    """What the system will not open is said to be unreadable, with the system's reason."""
    (root / "loop").symlink_to("loop")
    assert code_of("loop", root, bound=bound) in {"image_unreadable", "image_missing"}
    assert code_of("n" * 5000, root, bound=bound) == "image_unreadable"


def test_long_names_are_not_repeated_in_full(root):
    """An image pasted where its path belongs does not fill the file of failures."""
    with pytest.raises(BadImageError) as caught:
        read("data" * 100_000, root)
    assert len(caught.value.message) < 500


def test_empty(root):
    """An empty file has its own failure code."""
    (root / "x").touch()
    assert code_of("x", root) == "image_empty"


@pytest.mark.parametrize("bound", [False, True])
def test_folder_is_no_file(root, bound):
    """A path that names a folder fails the record."""
    assert code_of("sub", root, bound=bound) == "image_not_a_file"


@pytest.mark.parametrize("bound", [False, True])
def test_fifo_never_blocks(root, bound):
    """A named pipe without a writer fails at once and does not block a thread."""
    os.mkfifo(root / "pipe")
    assert code_of("pipe", root, bound=bound) == "image_not_a_file"


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/tty"])
def test_devices_are_not_read(root, device):
    """A device, which might never end, is not read."""
    assert code_of(device, root) in {"image_not_a_file", "image_unreadable"}


def test_socket_is_not_read():
    """A socket's name fails the record."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/s")  # a short path: names of sockets are
        assert code_of("s", Path(folder)) in {"image_not_a_file", "image_unreadable"}


@pytest.mark.parametrize("change", [b"longer than it was", b"less", b""])
def test_a_file_that_changes_while_it_is_read_is_not_used(root, change):
    """A file still being written is failed, not sent as half an image."""
    target = root / "sub" / "a.jpg"
    code = code_of("sub/a.jpg", root, reserve=lambda _: target.write_bytes(change) and None)
    assert code in {"image_unreadable", "image_empty"}


@pytest.mark.parametrize(
    "path",
    [
        "../outside.jpg",
        "sub/../../outside.jpg",
        "../root-too/a.jpg",
        "link.jpg",
        "folder/outside.jpg",
        "folder/root-too/a.jpg",
        "chain",
        "/etc/hosts",
        "../gone.jpg",
        "..",
    ],
)
def test_nothing_outside_a_bound_root(root, tmp_path, path):
    """An untrusted record reads nothing outside the root by dots, absolute path or link."""
    (root / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    (root / "folder").symlink_to("..")
    (root / "chain").symlink_to("link.jpg")
    assert code_of(path, root, bound=True) == "image_outside_root"


def test_absolute_path_outside_a_bound_root(root, tmp_path):
    """The absolute path of a readable image elsewhere is refused too."""
    assert code_of(str(tmp_path / "outside.jpg"), root, bound=True) == "image_outside_root"
    assert code_of(str(tmp_path / "root-too/a.jpg"), root, bound=True) == "image_outside_root"


def test_inside_a_bound_root(root, tmp_path):
    """Dots, absolute paths and links that stay inside the root work."""
    (root / "link.jpg").symlink_to("sub/a.jpg")
    (tmp_path / "alias").symlink_to(root)
    for path in ("sub/a.jpg", "./sub/../sub/a.jpg", "link.jpg", str(root / "sub/a.jpg")):
        assert read(path, root, bound=True) == b"inside"
        assert read(path, tmp_path / "alias", bound=True) == b"inside"
    assert code_of("gone.jpg", root, bound=True) == "image_missing"


def test_relative_bound_root(root, monkeypatch):
    """A root given relative to where the command runs works."""
    monkeypatch.chdir(root.parent)
    assert read("sub/a.jpg", Path("root"), bound=True) == b"inside"
    monkeypatch.chdir(root)
    assert read("sub/a.jpg", Path(), bound=True) == b"inside"


def test_the_file_system_as_bound_root(root):
    """The root folder of the file system can be the image root; it contains every file."""
    assert read(str(root / "sub/a.jpg"), Path("/"), bound=True) == b"inside"


def test_no_descriptor_is_left_open(root):
    """A million failures do not use up the files a process may open."""
    os.mkfifo(root / "pipe")
    (root / "empty").touch()
    (root / "big").write_bytes(b"x" * 2000)
    before = lowest_free_descriptor()
    read("sub/a.jpg", root)
    for path in ("pipe", "empty", "big", "sub", "gone"):
        code_of(path, root)

    def explode(_: int) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        read("sub/a.jpg", root, reserve=explode)
    assert lowest_free_descriptor() == before


def test_a_folder_swapped_between_check_and_open(root, tmp_path, monkeypatch):
    """A folder that becomes a link to elsewhere just after the check lets nothing out."""
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    (tmp_path / "elsewhere" / "a").write_bytes(b"secret")
    inner = root / "inner"
    inner.mkdir()
    (inner / "a").write_bytes(b"fine")
    real = os.path.realpath

    def check_then_swap(path: str) -> str:
        checked = real(path)
        inner.rename(root / "was")
        inner.symlink_to(tmp_path / "elsewhere")
        return checked

    folders = ImageFolders([root], bound=True, max_bytes=100)
    assert folders.read("inner/a", lambda _: None) == b"fine"
    monkeypatch.setattr("captioner.images.files.os.path.realpath", check_then_swap)
    with pytest.raises(BadImageError) as caught:
        folders.read("inner/a", lambda _: None)
    assert caught.value.code == "image_outside_root"
