"""Finding a file in an archive by its name, through links."""

from __future__ import annotations

import posixpath
import tarfile
from typing import IO, TYPE_CHECKING, Generic, TypeVar

from captioner.core.errors import BadImageError
from captioner.core.filenames import spellings
from captioner.core.tarfiles import members

if TYPE_CHECKING:
    from collections.abc import Callable

Place = TypeVar("Place")

_MOST_LINKS = 40
"""Links from one to the next; as many as Linux follows."""


class ArchiveIndex(Generic[Place]):
    """The files of an archive by name.

    Args:
        shown: The archive's name, for messages.
        is_equal: Returns whether two places hold the same bytes.
    """

    def __init__(self, shown: str, is_equal: Callable[[Place, Place], bool]) -> None:
        self._shown = shown
        self._is_equal = is_equal
        self._places: dict[str, Place] = {}
        self._others: dict[str, list[Place]] = {}
        self._links: dict[str, str] = {}
        self._sparse: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._places or self._links or self._sparse)

    def add(self, name: str, place: Place) -> None:
        """Add a file. A name that is there already needs equal bytes, or it is ambiguous."""
        name = _normal(name)
        if name in self._places:
            self._others.setdefault(name, []).append(place)
        else:
            self._places[name] = place

    def add_link(self, name: str, target: str) -> None:
        """Add a link to another name, given from the root of the archive."""
        self._links[_normal(name)] = _normal(target)

    def add_sparse(self, name: str) -> None:
        """Add a sparse file, which is not read."""
        self._sparse.add(_normal(name))

    def find(self, name: str) -> Place:
        """Return the place of a file.

        Raises:
            BadImageError: ``image_missing``, ``image_ambiguous`` or ``image_unreadable``.
        """
        name = _normal(name)
        for one in (name, *spellings(name)):
            found = self._followed(one)
            if found in self._sparse:
                raise BadImageError(
                    "image_unreadable",
                    f"{self._member(name)} is a sparse file: write the archive without --sparse",
                )
            if found in self._places:
                return self._only(found, name)
        if name in self._links:
            target = self._links[name]
            raise BadImageError(
                "image_missing",
                f"{self._member(name)} is a link to {target[:200]}, which is not in the archive",
            )
        raise BadImageError("image_missing", f"there is no {self._member(name)}")

    def is_folder(self, name: str) -> bool:
        """Return whether a name, or what it links to, is a folder with files."""
        inside = self._followed(_normal(name)) + "/"
        return any(one.startswith(inside) for one in self._places)

    def _only(self, name: str, shown: str) -> Place:
        place = self._places[name]
        twice = name in self._links or not all(
            self._is_equal(place, other) for other in self._others.get(name, ())
        )
        if twice:
            raise BadImageError(
                "image_ambiguous",
                f"{self._shown} has two different members of the name {shown[:200]}: "
                "give each a unique name",
            )
        return place

    def _followed(self, name: str) -> str:
        """Return the name that a name leads to through links.

        Raises:
            BadImageError: ``image_missing``: they lead in a circle.
        """
        if not self._links:
            return name
        for _ in range(_MOST_LINKS):
            if name in self._links and name not in self._places:
                name = self._links[name]
                continue
            parts = name.split("/")
            folders = ("/".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
            link = next((folder for folder in folders if folder in self._links), None)
            if link is None:
                return name
            name = posixpath.normpath(self._links[link] + name[len(link) :])
        raise BadImageError(
            "image_missing", f"the links of {self._member(name)} lead back to themselves"
        )

    def _member(self, name: str) -> str:
        return f"{self._shown}#{name}"[:200]


def tar_index(file: IO[bytes], shown: str) -> ArchiveIndex[tuple[int, int]]:
    """Return the offset and size of each file, up to the cut in a truncated archive.

    Raises:
        tarfile.ReadError: Nothing can be read.
    """

    def read(place: tuple[int, int]) -> bytes:
        file.seek(place[0])
        return file.read(place[1])

    found = ArchiveIndex[tuple[int, int]](
        shown, lambda one, other: one[1] == other[1] and read(one) == read(other)
    )
    try:
        for member in members(file):
            if member.kind == "file":
                found.add(member.name, (member.offset, member.size))
            elif member.kind == "link":
                found.add_link(member.name, member.target)
            elif member.kind == "sparse":
                found.add_sparse(member.name)
    except tarfile.ReadError:
        if not found:
            raise
    return found


def _normal(name: str) -> str:
    return name.removeprefix("./")
