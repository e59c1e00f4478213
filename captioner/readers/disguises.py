"""Files whose content does not fit their names: for each kind, how to correct it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captioner.core.badjson import is_binary, why_no_lines
from captioner.core.descriptors import patiently
from captioner.core.errors import SettingsError
from captioner.readers.bytestreams import FILE_ERRORS, open_binary

if TYPE_CHECKING:
    from pathlib import Path

HEAD = 4_096
"""Bytes at the beginning of a file that tell what it is."""

_POINTER = b"version https://git-lfs.github.com/spec/"
_ZIP = "a zip archive, as Excel workbooks are: unpack it, or save the sheet as CSV"
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", ".gz"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", ".zst"),
    b"\xfd7zXZ\0": ("xz", ""),
    b"BZh": ("bzip2", ""),
}
_OTHERS = {
    b"PK\x03\x04": _ZIP,
    b"PK\x05\x06": _ZIP,
    b"PAR1": "Parquet: name it .parquet, or give --input-format parquet",
    b"ARROW1": "Arrow: name it .arrow, or give --input-format arrow",
    b"SQLite format 3\0": "an SQLite database: export its table as CSV or JSONL",
    b"%PDF-": "PDF: write its pages as images, as pdftoppm does",
}
_MEDIA = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"\x1aE\xdf\xa3", b"\0\0\1\xba")
"""How frequent kinds of images and videos begin, whose metadata may be text."""

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def not_text(head: bytes) -> str:
    """Return why a file that should be UTF-8 text is none, and the cure; else an empty string.

    Args:
        head: The beginning of the file, after decompression by its suffix.
    """
    if why := not_itself(head):
        return why
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            return f"holds {what}"
    start = head[:200]
    zeros = start.count(0) if bytes(4) not in start else 0  # a hole in a file has more in a row
    if head.startswith(_UTF16) or (len(start) >= 4 and zeros * 3 >= len(start)):
        return "is UTF-16 or UTF-32, not UTF-8: convert it with iconv -f UTF-16 -t UTF-8"
    if head.startswith(_MEDIA) or is_binary(head):
        return (
            "is binary data, not text: if it is an image or a video, give it such a suffix or "
            "--input-format images"
        )
    return ""


def not_itself(head: bytes) -> str:
    """Return why a file is not what any name promises: compressed, or a Git LFS pointer."""
    if head.startswith(_POINTER):
        return "is a Git LFS pointer, not the data: fetch the data with git lfs pull"
    for magic, (name, suffix) in _COMPRESSED.items():
        if head.startswith(magic):
            cure = f"name it {suffix}, or unpack it" if suffix else "unpack it"
            return f"is compressed with {name}: {cure}"
    return ""


def not_tar(head: bytes) -> str:
    """Return why a file is no plain tar archive, and the cure; empty if it may be one."""
    if head.startswith(_POINTER):
        return not_itself(head)
    for magic, (name, _) in _COMPRESSED.items():
        if head.startswith(magic):
            return f"is compressed with {name}, and members are read in place: unpack it first"
    return "is a zip archive, not tar: unpack it" if head.startswith(b"PK\x03\x04") else ""


def head_of(path: Path) -> bytes:
    """Return the beginning of a file, decompressed by its suffix; empty if it cannot be read."""
    try:
        with open_binary(path) as file:
            return file.read(HEAD)
    except FILE_ERRORS:
        return b""  # the reader reports the error


def check_lines(name: str, head: bytes, *, ended: bool) -> None:
    """Refuse a text that is not JSON Lines, if that is the same for all its lines.

    Args:
        name: The file's name.
        head: Its beginning.
        ended: It is the whole file.

    Raises:
        SettingsError: It names the cause and the cure.
    """
    if why := why_no_lines(head + b"\n" * ended):
        raise SettingsError(f"{name} {why}")


_SKIPPED = b"\x2a\x4d\x18"
"""What follows the first byte of a frame that decoders of Zstandard skip; pzstd begins so."""


def check_compression(path: Path) -> None:
    """Refuse a file that is not compressed as its suffix says.

    Raises:
        SettingsError: It names the cause and the cure.
    """
    suffix = path.suffix.lower()
    try:
        with patiently(lambda: path.open("rb")) as file:
            head = file.read(HEAD)
    except OSError:
        return  # the reader reports the error
    if suffix == ".zst" and head[1:4] == _SKIPPED and 0x50 <= head[0] <= 0x5F:
        return
    for magic, (name, own) in _COMPRESSED.items():
        if head and suffix and suffix == own and not head.startswith(magic):
            raise SettingsError(f"{path.name} is not compressed with {name}: name it without {own}")


def check_text(name: str, head: bytes) -> None:
    """Refuse a file that is no UTF-8 text.

    Raises:
        SettingsError: It names the cause and the cure.
    """
    if why := not_text(head):
        raise SettingsError(f"{name} {why}")
