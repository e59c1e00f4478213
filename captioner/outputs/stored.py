"""Outputs in object stores as local copies."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from captioner.core.errors import SettingsError
from captioner.core.extras import needed
from captioner.core.secrets import without_secrets
from captioner.core.types import library_of
from captioner.journal.companions import checkpoint_path, failures_path, journal_path, reviews_path
from captioner.readers.bytestreams import unreadable
from captioner.settings.locations import storage_url

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def local_copy(output: Path) -> Iterator[Path]:
    """Give a path at which an output can be read: its own, or that of a copy for the time.

    Args:
        output: The output; JSONL if it is in an object store.

    Raises:
        SettingsError: The object store has no such output, or cannot be read.
    """
    url = storage_url(output)
    if url is None:
        yield output
        return
    name = Path(output.name)
    if journal_path(name) != name:
        raise SettingsError(
            f"{without_secrets(url)} is not JSON Lines, and from an object store no other output "
            f"is read: name {name} in the folder of its run, which has the captions as JSON Lines"
        )
    with TemporaryDirectory(prefix="captioner-output-") as folder:
        copy = Path(folder) / output.name
        base = url.rpartition("/")[0]
        core = needed("fsspec", f"fsspec {library_of(url)}").core
        try:
            for local in (copy, failures_path(copy), reviews_path(copy), checkpoint_path(copy)):
                system, path = core.url_to_fs(f"{base}/{local.name}")
                if local == copy or system.isfile(path):
                    system.get_file(path, str(local))
        except Exception as error:  # noqa: BLE001 - each store has its own errors
            raise unreadable("the output", url, error) from None
        yield copy
