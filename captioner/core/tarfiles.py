"""Members of tar archives, of which several may follow each other in one file."""

from __future__ import annotations

import posixpath
import tarfile
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = tarfile.NUL * _BLOCK


class Member(NamedTuple):
    """A member of a tar archive.

    Attributes:
        name: The name as the archive has it.
        kind: A regular file, a hard or symbolic link, a sparse file, or anything else.
        offset: Where the bytes of a file begin.
        size: How many they are.
        end: Offset just after the member.
        target: The name that a link leads to, from the root of the archive.
    """

    name: str
    kind: Literal["file", "link", "sparse", "other"]
    offset: int
    size: int
    end: int
    target: str = ""


class NoMemberError(tarfile.ReadError):
    """What follows the members is neither a member nor the end; the members are whole."""


def members(file: IO[bytes]) -> Iterator[Member]:
    """Yield the members of all archives in a file; it may be read between two of them.

    Raises:
        NoMemberError: The file is damaged after the last member.
        tarfile.ReadError: The file is no tar archive, or it is damaged from the last member on.
    """
    start: int | None = 0
    while start is not None:
        file.seek(start)
        with _readable(), tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined] # else tarfile keeps them all
                yield _member(member, archive.offset)
            start = _next_archive(file, archive.offset)


@contextmanager
def _readable() -> Iterator[None]:
    """Turn what tarfile raises for headers that make no sense into its error of damage."""
    try:
        yield
    except (ArithmeticError, LookupError, RecursionError, ValueError):
        raise tarfile.ReadError("a header makes no sense") from None


def _member(member: tarfile.TarInfo, end: int) -> Member:
    if member.issparse():
        return Member(member.name, "sparse", 0, 0, end)
    if member.islnk() or member.issym():
        inside = posixpath.dirname(member.name) if member.issym() else ""
        target = posixpath.normpath(posixpath.join(inside, member.linkname))
        return Member(member.name, "link", 0, 0, end, target)
    kind: Literal["file", "other"] = "file" if member.isreg() else "other"
    return Member(member.name, kind, member.offset_data, member.size, end)


def _next_archive(file: IO[bytes], end: int) -> int | None:
    """Return where the next archive begins after the end of one; None if there is no other.

    tarfile takes a broken header for the end.
    """
    file.seek(end)
    if file.read(_BLOCK) != _ZEROS:
        raise NoMemberError("what follows is neither a member nor the end")
    while block := file.read(1 << 16):
        if rest := block.lstrip(tarfile.NUL):
            start = file.tell() - len(rest)
            return start - (start - end) % _BLOCK
    return None
