from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import jpeg

from captioner.core.errors import BadImageError
from captioner.images import archives
from captioner.images.archives import Archives, check_size, in_archive
from captioner.images.files import ImageFolders


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    return path


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.mkdir("folder")
        for name, data in members.items():
            file.writestr(name, data)
    return path


MEMBERS = {f"shard/{n}.jpg": jpeg(n) for n in range(30)} | {"./dot.jpg": jpeg(99), "none": b""}


@pytest.fixture(params=["tar", "zip"])
def archive(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    made = tar if request.param == "tar" else zipped
    return made(tmp_path / f"a.{request.param}", MEMBERS)


OPENED: list[Archives] = []


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def folders(root: Path, *, bound: bool = False, max_bytes: int = 1 << 20) -> ImageFolders:
    OPENED.append(Archives(max_bytes))
    return ImageFolders([root], bound=bound, max_bytes=max_bytes, archives=OPENED[-1])


def read(root: Path, path: str, **options: int) -> bytes:
    return folders(root, **options).read(path, lambda _: None)


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("a.tar#b.jpg", ("a.tar", "b.jpg")),
        ("x/a.ZIP#y/b#c.jpg", ("x/a.ZIP", "y/b#c.jpg")),
        ("a#b.jpg", None),
        ("a.tar", None),
        ("a.tar#", None),
        ("a.tar.gz#b.jpg", None),
    ],
)
def test_references(reference, found):
    """A member is named after a number sign; other files may have one in their names."""
    assert in_archive(reference) == found


def test_members_are_read(archive):
    """Every member comes out as it went in, read by many threads at once."""
    shared = folders(archive.parent)
    names = [name for name in MEMBERS if MEMBERS[name]] * 5

    def check(name: str) -> bool:
        return shared.read(f"{archive.name}#{name}", lambda _: None) == MEMBERS[name]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(check, names))


def test_memory_is_reserved_first(archive):
    """The size of a member is known, and its place taken, before it is read."""
    taken: list[int] = []
    folders(archive.parent).read(f"{archive.name}#shard/3.jpg", taken.append)
    assert taken == [len(jpeg(3))]


@pytest.mark.parametrize(
    ("member", "code"),
    [("missing.jpg", "image_missing"), ("none", "image_empty"), ("shard", "image_missing"),
     ("folder/", "image_missing"), ("../a.jpg", "image_missing"), ("link.jpg", "image_missing")],
)  # fmt: skip
def test_what_is_no_member(archive, member, code):
    """Only regular files in the archive are read; links are not followed."""
    with pytest.raises(BadImageError) as caught:
        read(archive.parent, f"{archive.name}#{member}")
    assert caught.value.code == code


def test_large_members_are_refused_unread(archive):
    """A member over the limit is not unpacked."""
    with pytest.raises(BadImageError, match="--max-image-bytes") as caught:
        read(archive.parent, f"{archive.name}#shard/1.jpg", max_bytes=100)
    assert caught.value.code == "image_too_large"


def test_videos_have_a_limit_of_their_own(tmp_path):
    """The suffix tells which option limits a file; a query after it does not matter."""
    check_size("a.mp4", 150, 100, 200)
    check_size("https://host/a.MOV?sign=1.jpg", 150, 100, 200)
    for name, size, option in (("a.jpg", 150, "--max-image"), ("a.webm", 201, "--max-video")):
        with pytest.raises(BadImageError, match=f"{option}-bytes") as caught:
            check_size(name, size, 100, 200)
        assert caught.value.code == "image_too_large"
    (tmp_path / "a.mp4").write_bytes(bytes(150))
    folders = ImageFolders([tmp_path], bound=False, max_bytes=100, max_video_bytes=200)
    assert len(folders.read("a.mp4", lambda _: None)) == 150


@pytest.mark.parametrize("name", ["broken.tar", "broken.zip", "empty.tar", "empty.zip"])
def test_broken_archives(tmp_path, name):
    """An archive that cannot be read fails its records, one by one."""
    (tmp_path / name).write_bytes(b"x" * 5000 if "broken" in name else b"")
    for _ in range(2):
        with pytest.raises(BadImageError) as caught:
            read(tmp_path, f"{name}#a.jpg")
        assert caught.value.code == "image_unreadable"


def test_an_archive_cut_short(tmp_path):
    """Members before the cut are read; those after it are missed, not made up."""
    path = tar(tmp_path / "a.tar", {"1.jpg": jpeg(1), "2.jpg": jpeg(2) * 9})
    path.write_bytes(path.read_bytes()[: 2048 + 700])
    assert read(tmp_path, "a.tar#1.jpg") == jpeg(1)
    with pytest.raises(BadImageError):
        read(tmp_path, "a.tar#2.jpg")


def test_archives_obey_the_root(tmp_path):
    """An archive outside the image root is no way around it, nor is one that is no file."""
    root = tmp_path / "root"
    root.mkdir()
    tar(tmp_path / "a.tar", {"1.jpg": jpeg(1)})
    (root / "link.tar").symlink_to(tmp_path / "a.tar")
    for path in ("../a.tar#1.jpg", f"{tmp_path}/a.tar#1.jpg", "link.tar#1.jpg"):
        with pytest.raises(BadImageError) as caught:
            folders(root, bound=True).read(path, lambda _: None)
        assert caught.value.code == "image_outside_root"
    (root / "folder.zip").mkdir()
    with pytest.raises(BadImageError) as caught:
        read(root, "folder.zip#1.jpg")
    assert caught.value.code == "image_not_a_file"
    with pytest.raises(BadImageError) as caught:
        read(root, "gone.zip#1.jpg")
    assert caught.value.code == "image_missing"


def test_only_so_many_are_kept_open(tmp_path):
    """A thousand shards do not take a thousand descriptors."""
    for number in range(archives.OPEN_AT_ONCE + 5):
        tar(tmp_path / f"{number}.tar", {"a.jpg": jpeg(number)})
    shared = folders(tmp_path)
    for number in [*range(archives.OPEN_AT_ONCE + 5), 0, 1]:
        assert shared.read(f"{number}.tar#a.jpg", lambda _: None) == jpeg(number)
    links = Path("/proc/self/fd").iterdir()
    opened = [link for link in links if os.path.realpath(link).startswith(f"{tmp_path}/")]
    assert len(opened) == archives.OPEN_AT_ONCE


def test_a_file_may_be_called_like_a_member(tmp_path):
    """A file that is there goes before a member of an archive."""
    (tmp_path / "odd.zip#1.jpg").write_bytes(jpeg(4))
    assert read(tmp_path, "odd.zip#1.jpg") == jpeg(4)


@pytest.mark.skipif(shutil.which("zip") is None, reason="the program zip encrypts the archive")
def test_an_encrypted_member_says_so(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    subprocess.run(["zip", "-q", "-P", "secret", "in.zip", "a.jpg"], cwd=tmp_path, check=True)
    with pytest.raises(BadImageError) as caught:
        folders(tmp_path).read("in.zip#a.jpg", lambda _: None)
    assert caught.value.code == "image_unreadable"
    assert caught.value.message == "in.zip#a.jpg is encrypted: unpack the archive with its password"


@pytest.mark.parametrize(
    ("encoding", "name"), [("utf-8", "caf\u00e9.jpg"), ("latin-1", "caf\\xe9.jpg")]
)
def test_names_in_a_zip_that_does_not_tell_their_encoding(tmp_path, encoding, name):
    """As macOS and Windows write them."""
    written = "caf\u00e9.jpg".encode(encoding)
    placeholder = "x" * (len(written) - 4) + ".jpg"
    path = zipped(tmp_path / "in.zip", {placeholder: jpeg(0)})
    path.write_bytes(path.read_bytes().replace(placeholder.encode(), written))
    assert folders(tmp_path).read(f"in.zip#{name}", lambda _: None) == jpeg(0)
