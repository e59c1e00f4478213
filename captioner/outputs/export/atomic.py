"""Files that are replaced atomically."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from captioner.core.errors import DiskError
from captioner.journal.disk import Files
from captioner.journal.journal import companion

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary path; afterwards its file is synced and replaces the target.

    Raises:
        DiskError: The disk refused; the target is unchanged.
    """
    # Most file systems limit names to 255 bytes.
    partial = companion(target.with_name(target.name[:60]), ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        fd = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        partial.replace(target)
        Files().sync_folder(target.parent)
    except OSError as error:
        raise DiskError(
            f"the disk refused to write {target.name}: {error.strerror or error}. The captions "
            "are safe; make room, then run the same command again."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
