"""A folder of files: a local or shared path, or an object store through fsspec."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.core.extras import needed
from captioner.core.types import library_of
from captioner.journal.disk import Files, atomic_write
from captioner.settings.locations import storage_url

if TYPE_CHECKING:
    from collections.abc import Iterable


MANIFEST = "manifest.json"
"""Describes the shards. Without it, the other files of the folder are ignored."""


class ShardStore:
    """A folder that may be in an object store.

    Args:
        location: A path, or the address of an object store such as ``s3://bucket/folder``.
        scratch: Local folder for copies of an object store's files; not used for a path.

    Attributes:
        folder: The local folder: the path itself, or the copies.
        remote: The files are in an object store and must be fetched and pushed.
    """

    def __init__(self, location: str, scratch: Path) -> None:
        url = storage_url(Path(location))
        self.remote = url is not None
        self.folder = scratch if self.remote else Path(location)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._system: Any = None
        if url is not None:
            core = needed("fsspec", f"fsspec {library_of(url)}").core
            self._system, self._path = core.url_to_fs(url.rstrip("/"))

    def fetch(self, names: Iterable[str]) -> None:
        """Copy files from the object store; a file that it does not have is removed here."""
        for name in names if self.remote else ():
            source = f"{self._path}/{name}"
            if self._system.exists(source):
                self._system.get_file(source, str(self.folder / name))
            else:
                (self.folder / name).unlink(missing_ok=True)

    def push(self, names: Iterable[str]) -> None:
        """Copy existing files to the object store, in this order."""
        if not self.remote:
            return
        if not self._system.exists(self._path):
            self._system.makedirs(self._path, exist_ok=True)
        for name in names:
            if (self.folder / name).exists():
                self._system.put_file(str(self.folder / name), f"{self._path}/{name}")

    def clear(self) -> None:
        """Remove all files, the manifest first: an interrupted removal must not look complete."""
        if self.remote and self._system.exists(self._path):
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
        """Remove the folder and everything in it."""
        self.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, name: str, data: bytes) -> None:
        """Write a small file atomically."""
        with atomic_write(self.folder / name, Files(), private=True) as file:
            file.write(data)
        self.push([name])
