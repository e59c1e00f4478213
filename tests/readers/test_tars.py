"""Tar shards as people have them: each sample is captioned for its own picture or a failure."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import webdataset
import zstandard
from conftest import jpeg
from inputs import captioned, mark, write_tar

from captioner import SettingsError
from captioner.readers.registry import open_input

A, B, C = jpeg(1), jpeg(2), jpeg(3)


def gnu_tar(folder: Path, *words: str) -> None:
    subprocess.run(["tar", *words], cwd=folder, check=True)


async def test_a_member_that_is_there_twice_is_a_failure_that_names_it(tmp_path, endpoint):
    source = write_tar(
        tmp_path / "in.tar", [("x.jpg", A), ("x.json", b"{}"), ("x.jpg", B), ("y.jpg", C)]
    )
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert found.pictures() == {"in.tar#y.jpg": mark(C)}
    assert found.codes == ["bad_shard"]
    assert "in.tar#x.jpg twice" in found.messages


async def test_two_texts_of_one_name_are_a_failure(tmp_path, endpoint):
    """Capitals make no other field."""
    source = write_tar(tmp_path / "in.tar", [("x.jpg", A), ("x.txt", b"1"), ("x.TXT", b"2")])
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert (found.rows, found.codes) == ([], ["bad_shard"])


async def test_concatenated_archives_are_read_to_the_end(tmp_path, endpoint):
    """As cat makes them, and as tar --concatenate does; the second may have more padding."""
    parts = []
    for number in range(3):
        part = tmp_path / f"{number}.part"
        with webdataset.TarWriter(str(part)) as shard:
            shard.write({"__key__": f"s{number}", "jpg": jpeg(number), "txt": f"t{number}"})
        parts.append(part.read_bytes())
    source = tmp_path / "in.tar"
    source.write_bytes(parts[0] + parts[1] + bytes(51_200) + parts[2])
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert found.failures == []
    assert found.pictures() == {f"in.tar#s{n}.jpg": mark(jpeg(n)) for n in range(3)}
    assert [row["txt"] for row in found.rows] == ["t0", "t1", "t2"]


async def test_damage_after_an_end_mark_is_told(tmp_path, endpoint):
    whole = write_tar(tmp_path / "one", [("a.jpg", A)]).read_bytes()
    second = bytearray(write_tar(tmp_path / "two", [("b.jpg", B)]).read_bytes())
    second[150] ^= 0xFF
    (tmp_path / "in.tar").write_bytes(whole + second)
    found = await captioned(tmp_path / "in.tar", endpoint, tmp_path / "out.jsonl")
    assert found.pictures() == {"in.tar#a.jpg": mark(A)}
    assert found.codes == ["bad_shard"]


async def test_links_lead_to_what_they_mean(tmp_path, endpoint):
    """As GNU tar writes hard and symbolic links, also to a folder and to a later member."""
    folder = tmp_path / "files"
    (folder / "real").mkdir(parents=True)
    (folder / "real" / "z.jpg").write_bytes(B)
    (folder / "real" / "z.txt").write_text("zed")
    (folder / "a.jpg").write_bytes(A)
    (folder / "b.jpg").hardlink_to(folder / "a.jpg")
    (folder / "c.jpg").symlink_to("real/z.jpg")
    (folder / "c.txt").symlink_to("real/z.txt")
    (folder / "short").symlink_to("real")
    (folder / "d.jpg").symlink_to("short/z.jpg")
    (folder / "e.jpg").symlink_to("/etc/hostname")
    (folder / "f.jpg").symlink_to("g.jpg")
    (folder / "g.jpg").symlink_to("f.jpg")
    (folder / "h.jpg").symlink_to("../outside.jpg")
    gnu_tar(folder, "--sort=name", "-cf", str(tmp_path / "in.tar"), ".")
    (tmp_path / "outside.jpg").write_bytes(C)
    found = await captioned(tmp_path / "in.tar", endpoint, tmp_path / "out.jsonl")
    pictures = {name.partition("#./")[2]: shown for name, shown in found.pictures().items()}
    assert pictures == {
        "a.jpg": mark(A), "b.jpg": mark(A), "c.jpg": mark(B), "d.jpg": mark(B),
        "real/z.jpg": mark(B),
    }  # fmt: skip
    assert [row.get("txt") for row in found.rows if row["__key__"] == "./c"] == ["zed"]
    assert found.codes == ["image_missing"] * 4
    for told in ("link to /etc/hostname", "link to ../outside.jpg", "lead back to themselves"):
        assert told in found.messages


async def test_a_text_that_is_a_link_to_nothing_fails_its_sample(tmp_path, endpoint):
    with tarfile.open(write_tar(tmp_path / "in.tar", [("a.jpg", A)]), "a") as shard:
        link = tarfile.TarInfo("a.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "gone.txt"
        shard.addfile(link)
    found = await captioned(tmp_path / "in.tar", endpoint, tmp_path / "out.jsonl")
    assert found.codes == ["bad_shard"]
    assert "in.tar#a.txt is a link to gone.txt" in found.messages


async def test_a_sample_without_an_image_is_a_failure(tmp_path, endpoint):
    source = write_tar(
        tmp_path / "in.tar", [("a.txt", b"a"), ("a.json", b"{}"), ("b.jpg", B), ("b.txt", b"b")]
    )
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert list(found.pictures()) == ["in.tar#b.jpg"]
    assert found.codes == ["no_image"]
    assert "sample a of in.tar has no image: its members are a.txt, a.json" in found.messages


async def test_members_that_are_not_side_by_side_are_told_with_the_cure(tmp_path, endpoint):
    """As ``tar -cf in.tar *.jpg *.txt`` writes them."""
    source = write_tar(
        tmp_path / "in.tar", [("a.jpg", A), ("b.jpg", B), ("a.txt", b"a"), ("b.txt", b"b")]
    )
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert found.pictures() == {"in.tar#a.jpg": mark(A), "in.tar#b.jpg": mark(B)}
    assert found.codes == ["bad_shard"] * 2
    assert "sample a in two places: sort the members (tar --sort=name)" in found.messages


async def test_a_sparse_member_is_a_failure(tmp_path, endpoint):
    """The bytes of a sparse file stand in pieces."""
    for name, data in (("a.jpg", A), ("b.jpg", B)):
        (tmp_path / name).write_bytes(data)
    with (tmp_path / "a.jpg").open("r+b") as file:
        file.truncate(4 << 20)
    gnu_tar(tmp_path, "--sparse", "--format=pax", "-cf", "in.tar", "a.jpg", "b.jpg")
    with tarfile.open(tmp_path / "in.tar") as shard:
        assert shard.getmember("a.jpg").issparse()
    found = await captioned(tmp_path / "in.tar", endpoint, tmp_path / "out.jsonl")
    assert found.pictures() == {"in.tar#b.jpg": mark(B)}
    assert found.codes == ["bad_shard"]
    assert "in.tar#a.jpg is a sparse file" in found.messages


@pytest.mark.parametrize(
    ("pack", "name"),
    [(gzip.compress, "gzip"), (zstandard.compress, "Zstandard"), (lzma.compress, "xz")],
)
async def test_a_compressed_shard_under_a_plain_name(tmp_path, endpoint, pack, name):
    """The first is refused at the start; another one is a failure, and the rest is captioned."""
    good = write_tar(tmp_path / "s-0.tar", [("a.jpg", A)])
    packed = tmp_path / "s-1.tar"
    packed.write_bytes(pack(write_tar(tmp_path / "plain", [("b.jpg", B)]).read_bytes()))
    with pytest.raises(SettingsError, match=f"s-1.tar is compressed with {name}.*unpack it"):
        open_input(packed)
    found = await captioned(tmp_path / "s-{0..1}.tar", endpoint, tmp_path / "out.jsonl")
    assert good.exists()
    assert found.codes == ["bad_shard"]
    assert f"s-1.tar breaks off: it is compressed with {name}" in found.messages
    assert [row["__key__"] for row in found.rows] == ["a"]


async def test_files_of_the_system_are_no_samples(tmp_path, endpoint):
    source = write_tar(
        tmp_path / "in.tar",
        [("./._a.jpg", b"\0\5\x16\7"), ("./a.jpg", A), ("./.DS_Store", b"x"),
         ("__MACOSX/._a.jpg", b"x"), ("PaxHeaders.12/a.jpg", b"x"), ("_b.jpg", B)],
    )  # fmt: skip
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert found.failures == []
    assert found.pictures() == {"in.tar#./a.jpg": mark(A), "in.tar#_b.jpg": mark(B)}


async def test_the_member_that_is_the_image_can_be_chosen(tmp_path, endpoint):
    """The others stay in the record under their suffixes; a sample without it says what it has."""
    source = tmp_path / "in.tar"
    with webdataset.TarWriter(str(source), encoder=False) as shard:
        shard.write({"__key__": "s1", "jpg": A, "seg.png": B, "txt": b"t"})
        shard.write({"__key__": "s2", "seg.png": B})
    found = await captioned(source, endpoint, tmp_path / "out.jsonl", image_field="jpg")
    (row,) = found.rows
    assert found.pictures("jpg") == {"in.tar#s1.jpg": mark(A)}
    assert (row["seg.png"], row["txt"]) == ("in.tar#s1.seg.png", "t")
    assert found.codes == ["no_image"]
    assert "sample s2 of in.tar has no image .jpg: its members are s2.seg.png" in found.messages


@pytest.mark.parametrize("field", ["image", "images", "video"])
async def test_a_usual_name_of_the_field_holds_every_image(tmp_path, endpoint, field):
    source = write_tar(tmp_path / "in.tar", [("a.jpg", A), ("b.png", B)])
    found = await captioned(source, endpoint, tmp_path / "out.jsonl", image_field=field)
    assert found.pictures(field) == {"in.tar#a.jpg": mark(A), "in.tar#b.png": mark(B)}


async def test_names_that_are_not_utf8(tmp_path, endpoint):
    """Their bytes are escaped, and found again."""
    folder = tmp_path / "files"
    folder.mkdir()
    Path(f"{folder}/caf\udce9.jpg").write_bytes(A)
    Path(f"{folder}/na\u00efve.jpg").write_bytes(B)
    gnu_tar(folder, "-cf", str(tmp_path / "in.tar"), ".")
    found = await captioned(tmp_path / "in.tar", endpoint, tmp_path / "out.jsonl")
    assert found.pictures() == {
        "in.tar#./caf\\xe9.jpg": mark(A), "in.tar#./naïve.jpg": mark(B),
    }  # fmt: skip


async def test_records_that_name_members(tmp_path, endpoint):
    """A name that is there twice is read only if both are equal; zip archives have links, too."""
    write_tar(tmp_path / "a.tar", [("1.jpg", A), ("2.jpg", B), ("1.jpg", C), ("2.jpg", B)])
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        file.writestr("d/3.jpg", C)
        link = zipfile.ZipInfo("d/4.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        file.writestr(link, "3.jpg")
        file.writestr("d/5.jpg", A)
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("d/5.jpg", B)
    names = ["a.tar#1.jpg", "a.tar#2.jpg", "b.zip#d/4.jpg", "b.zip#d\\3.jpg", "b.zip#d/5.jpg"]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"image": name}) + "\n" for name in names))
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert found.pictures() == {
        "a.tar#2.jpg": mark(B), "b.zip#d/4.jpg": mark(C), "b.zip#d\\3.jpg": mark(C),
    }  # fmt: skip
    assert found.codes == ["image_ambiguous"] * 2


async def test_a_text_of_the_json_is_not_overwritten(tmp_path, endpoint):
    """Whichever member comes first; both texts are in the row."""
    for name, order in (("a", ("json", "txt")), ("b", ("txt", "json"))):
        texts = {"json": json.dumps({"txt": "mine", "n": 1}).encode(), "txt": b"other"}
        members = [("x.jpg", A), *((f"x.{suffix}", texts[suffix]) for suffix in order)]
        source = write_tar(tmp_path / f"{name}.tar", members)
        found = await captioned(source, endpoint, tmp_path / f"{name}.jsonl")
        assert found.rows[0]["txt"] == "other"
        assert found.rows[0]["json"] == {"txt": "mine", "n": 1}


async def test_a_sample_with_an_image_and_a_video_sends_the_image(tmp_path, endpoint):
    source = tmp_path / "in.tar"
    with webdataset.TarWriter(str(source)) as shard:
        for key, data in (("x", A), ("y", B)):
            shard.write({"__key__": key, "jpg": data, "mp4": b"no video"})
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert found.pictures() == {"in.tar#x.jpg": mark(A), "in.tar#y.jpg": mark(B)}
    assert sorted(row["mp4"] for row in found.rows) == ["in.tar#x.mp4", "in.tar#y.mp4"]
    assert "samples such as x have images and videos" in found.warnings[0]
    assert found.warnings[1:] == []
    for field in ("mp4", "video"):
        output = tmp_path / f"{field}.jsonl"
        found = await captioned(source, endpoint, output, image_field=field)
        assert found.codes == ["image_unknown_type"] * 2
        sent = sorted(failure["record"][field] for failure in found.failures)
        assert sent == ["in.tar#x.mp4", "in.tar#y.mp4"]


@pytest.mark.parametrize(
    "pax",
    [
        {"GNU.sparse.major": "1", "GNU.sparse.realsize": "9" * 5_000},
        {"GNU.sparse.size": "9" * 5_000},
        {"GNU.sparse.map": "0,1,x"},
    ],
    ids=lambda one: next(iter(one)),
)
async def test_headers_that_make_no_sense_cost_their_shard(tmp_path, endpoint, pax):
    """Whole samples before them are captioned, and so are other shards."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for name in ("a.tar", "b.tar"):
        with tarfile.open(folder / name, "w", format=tarfile.PAX_FORMAT) as archive:
            for member in ("0.jpg", "1.jpg", "2.jpg"):
                info = tarfile.TarInfo(member)
                info.size = len(A)
                info.pax_headers = pax if (name, member) == ("a.tar", "2.jpg") else {}
                archive.addfile(info, io.BytesIO(A))
    found = await captioned(folder, endpoint, tmp_path / "out.jsonl")
    assert found.pictures().keys() == {
        "a.tar#0.jpg", "b.tar#0.jpg", "b.tar#1.jpg", "b.tar#2.jpg",
    }  # fmt: skip
    assert found.codes == ["bad_shard"]
    assert "a.tar breaks off: a header makes no sense" in found.messages
