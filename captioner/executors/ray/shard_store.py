"""Where shards lie: in a folder that all machines see, or in an object store through fsspec."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.core.extras import needed
from captioner.journal.disk import Files, atomic_write
from captioner.settings.locations import storage_url

if TYPE_CHECKING:
    from collections.abc import Iterable


MANIFEST = "manifest.json"
"""Tells what is there; without it nothing is."""


class Store:
    """A folder, local or not.

    Args:
        place: A path, or the address of an object store as in ``s3://bucket/folder``.
        scratch: Local folder for what an object store's files become here; not used for a path.
    """

    def __init__(self, place: str, scratch: Path) -> None:
        url = storage_url(Path(place))
        self._root = url.rstrip("/") if url else ""
        self._system: Any = None
        self.folder = Path(place)
        if url:
            fsspec = needed("fsspec", "s3")
            self._system, self._path = fsspec.core.url_to_fs(self._root)
            self.folder = scratch
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def remote(self) -> bool:
        """Files have to be fetched and pushed."""
        return self._system is not None

    def fetch(self, names: Iterable[str]) -> None:
        """Bring files here, those that there are; a folder has them already."""
        if self._system is None:
            return
        for name in names:
            source = f"{self._path}/{name}"
            if self._system.exists(source):
                self._system.get_file(source, str(self.folder / name))
            else:
                (self.folder / name).unlink(missing_ok=True)

    def push(self, names: Iterable[str]) -> None:
        """Put files there, those that there are, in this order."""
        if self._system is None:
            return
        self._system.makedirs(self._path, exist_ok=True)
        for name in names:
            if (self.folder / name).exists():
                self._system.put_file(str(self.folder / name), f"{self._path}/{name}")

    def clear(self) -> None:
        """Remove all files, what tells of them first: half of it gone must not look whole."""
        if self._system is not None and self._system.exists(self._path):
            if self._system.exists(f"{self._path}/{MANIFEST}"):
                self._system.rm_file(f"{self._path}/{MANIFEST}")
            self._system.rm(self._path, recursive=True)
        if self.folder.is_dir():
            (self.folder / MANIFEST).unlink(missing_ok=True)
            Files().sync_folder(self.folder)
            for path in self.folder.iterdir():
                if path.is_file():
                    path.unlink()

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        self.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def put_in_place(self, name: str, data: bytes) -> None:
        """Write a small file whole or not at all."""
        with atomic_write(self.folder / name, Files()) as file:
            file.write(data)
        self.push([name])
